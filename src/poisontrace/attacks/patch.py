"""What attacks with a square patch share: where it is, and stamping it. Authors write ``pattern``."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poisontrace._errors import InvalidInputError
from poisontrace.attacks.base import Attack


@dataclass(frozen=True, kw_only=True)
class Patch(Attack):
    """A square patch in the bottom right corner, the same on every image.

    Attributes:
        size: side of the square patch in pixels; None: an eighth of the image, at least 2.
        margin: pixels between the patch and the two nearest borders; None: 1 for images of 16 pixels or more, else 0.
    """

    size: int | None = None
    margin: int | None = None

    @abstractmethod
    def pattern(self, size: int, n_channels: int) -> NDArray[np.uint8]:
        """Return the pixels of the patch, uint8 (size, size, n_channels)."""

    def check_kind(self, x: NDArray[Any]) -> None:
        """Refuse inputs that are no images, and a patch that does not fit into them."""
        super().check_kind(x)
        self.place(x.shape)

    def place(self, shape: tuple[int, ...]) -> tuple[slice, slice]:
        """Return the rows and the columns of the patch in images of a shape (n, height, width, channels).

        Raises:
            InvalidInputError: if it does not fit into the image.
        """
        _, height, width, _ = shape
        size = self.size if self.size is not None else max(2, min(height, width) // 8)
        margin = self.margin if self.margin is not None else int(min(height, width) >= 16)
        if margin < 0:
            raise InvalidInputError(f"'margin' must be 0 or more pixels (got {margin}).")
        if not 0 < size <= min(height, width) - margin:
            raise InvalidInputError(
                f"'size' must be between 1 and {min(height, width) - margin} pixels, to fit into the image (got {size} "
                f"for {height}x{width}). Leave it out for an eighth of the image."
            )
        return slice(height - margin - size, height - margin), slice(width - margin - size, width - margin)

    def trigger(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return copies of uint8 images (n, height, width, channels) with the patch in the bottom right corner."""
        rows, columns = self.place(x.shape)
        stamped = x.copy()
        stamped[:, rows, columns] = self.pattern(rows.stop - rows.start, x.shape[3])
        return stamped
