"""What attacks with a square patch share: where it is, and stamping it. Authors write ``pattern``."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from poisontrace._errors import InvalidInputError
from poisontrace.attacks.camouflage import Camouflage

# Where the campaigns' patches lie, (down, across): 0 at the top or left, 1 in the middle, 2 at the bottom or right.
PLACES = ((2, 2), (2, 0), (0, 2), (0, 0), (2, 1), (1, 2), (0, 1), (1, 0), (1, 1))


@dataclass(frozen=True, kw_only=True)
class Patch(Camouflage):
    """A square patch in the bottom right corner, the same on every image; other campaigns have other places.

    Attributes:
        size: side of the square patch in pixels; None: an eighth of the image, at least 2.
        margin: pixels between the patch and the two nearest borders; None: 1 for images of 16 pixels or more, else 0.
        opacity: of the patch, in (0, 1]; below 1 the image shows through.
    """

    max_campaigns: ClassVar[int] = len(PLACES)

    size: int | None = None
    margin: int | None = None
    opacity: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a patch that nobody can see."""
        super().__post_init__()
        if not 0 < self.opacity <= 1:
            raise InvalidInputError(
                f"'opacity' must be a fraction in (0, 1] (got {self.opacity!r}). Leave it out for a solid patch."
            )

    @abstractmethod
    def pattern(self, size: int, n_channels: int, campaign: int = 0) -> NDArray[np.uint8]:
        """Return the pixels of the patch of a campaign, uint8 (size, size, n_channels)."""

    def check_kind(self, x: NDArray[Any]) -> None:
        """Refuse inputs that are no images, and patches that do not fit into them side by side."""
        super().check_kind(x)
        self.place(x.shape)

    def place(self, shape: tuple[int, ...], campaign: int = 0) -> tuple[slice, slice]:
        """Return the rows and the columns of a campaign's patch in images of a shape (n, height, width, channels).

        Raises:
            InvalidInputError: if the patches of all campaigns do not fit into the image side by side.
        """
        _, height, width, _ = shape
        size = self.size if self.size is not None else max(2, min(height, width) // 8)
        margin = self.margin if self.margin is not None else int(min(height, width) >= 16)
        if margin < 0:
            raise InvalidInputError(f"'margin' must be 0 or more pixels (got {margin}).")
        n_across = 1 if self.campaigns == 1 else 2 if self.campaigns <= 4 else 3
        largest = (min(height, width) - margin * min(n_across, 2)) // n_across
        if not 0 < size <= largest:
            raise InvalidInputError(
                f"'size' must be between 1 and {largest} pixels, to fit into the image (got {size} "
                f"for {height}x{width}). Leave it out for an eighth of the image."
            )
        down, across = (
            (margin, (side - size) // 2, side - margin - size)[where]
            for side, where in zip((height, width), PLACES[campaign], strict=True)
        )
        return slice(down, down + size), slice(across, across + size)

    def mark(self, x: NDArray[Any], campaign: int, strength: float) -> NDArray[Any]:
        """Return copies of uint8 images (n, height, width, channels) with the patch of a campaign."""
        rows, columns = self.place(x.shape, campaign)
        opacity = self.opacity * strength
        patch = self.pattern(rows.stop - rows.start, x.shape[3], campaign)
        stamped = x.copy()
        stamped[:, rows, columns] = np.round(opacity * patch + (1 - opacity) * x[:, rows, columns])
        return stamped
