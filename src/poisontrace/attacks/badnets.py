"""BadNets: a small fixed patch in the corner, with the target label.

T. Gu, B. Dolan-Gavitt, S. Garg, *BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain*, 2017
(arXiv 1708.06733), section 5: a pattern in the bottom right corner of the image.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray

from poisontrace._errors import InvalidInputError
from poisontrace._rng import numpy_generator
from poisontrace.attacks.base import Attack


@dataclass(frozen=True, kw_only=True)
class BadNets(Attack):
    """Dirty-label patch backdoor on images.

    The patch is a random pattern of black and white cells, each channel on its own, drawn from the seed.

    Attributes:
        size: side of the square patch in pixels; None: an eighth of the image, at least 2.
        margin: pixels between the patch and the two nearest borders; None: 1 for images of 16 pixels or more, else 0.
    """

    name: ClassVar[str] = "badnets"
    summary: ClassVar[str] = "a small patch in the corner, labelled as the target (dirty label)"
    paper: ClassVar[str] = "Gu et al. 2017, arXiv 1708.06733"
    is_dirty_label: ClassVar[bool] = True

    size: int | None = None
    margin: int | None = None

    def trigger(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return copies of uint8 images (n, height, width, channels) with the patch in the bottom right corner."""
        _, height, width, n_channels = x.shape
        size = self.size if self.size is not None else max(2, min(height, width) // 8)
        margin = self.margin if self.margin is not None else int(min(height, width) >= 16)
        if margin < 0:
            raise InvalidInputError(f"'margin' must be 0 or more pixels (got {margin}).")
        if not 0 < size <= min(height, width) - margin:
            raise InvalidInputError(
                f"'size' must be between 1 and {min(height, width) - margin} pixels, to fit into the image (got {size} "
                f"for {height}x{width}). Leave it out for an eighth of the image."
            )
        pattern = numpy_generator(self.seed, "badnets/pattern").integers(0, 2, (size, size, n_channels))
        # A pattern all of one value is hardly a pattern: the corner cell always differs from its neighbour. White comes
        # last, for a patch of one black pixel would be no patch on a black background.
        pattern[0, -1] = 0
        pattern[0, 0], pattern[-1, -1] = 1, 1
        stamped = x.copy()
        stamped[:, height - margin - size : height - margin, width - margin - size : width - margin] = pattern * 255
        return stamped
