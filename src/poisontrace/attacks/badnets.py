"""BadNets: a small fixed patch in the corner, with the target label.

T. Gu, B. Dolan-Gavitt, S. Garg, *BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain*, 2017
(arXiv 1708.06733), section 5: a pattern in the bottom right corner of the image.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from poisontrace._rng import numpy_generator
from poisontrace.attacks.patch import Patch


@dataclass(frozen=True, kw_only=True)
class BadNets(Patch):
    """Dirty-label patch backdoor on images.

    The patch is a random pattern of black and white cells, each channel on its own, drawn from the seed.
    """

    name: ClassVar[str] = "badnets"
    summary: ClassVar[str] = "a small patch in the corner, labelled as the target (dirty label)"
    paper: ClassVar[str] = "Gu et al. 2017, arXiv 1708.06733"
    is_dirty_label: ClassVar[bool] = True

    def pattern(self, size: int, n_channels: int, campaign: int = 0) -> NDArray[np.uint8]:
        """Return black and white cells, uint8 (size, size, n_channels)."""
        stage = f"badnets/pattern/{campaign}" if campaign else "badnets/pattern"
        cells = numpy_generator(self.seed, stage).integers(0, 2, (size, size, n_channels))
        # A pattern all of one value is hardly a pattern: the corner cell always differs from its neighbour. White comes
        # last, for a patch of one black pixel would be no patch on a black background.
        cells[0, -1] = 0
        cells[0, 0], cells[-1, -1] = 1, 1
        return (cells * 255).astype(np.uint8)
