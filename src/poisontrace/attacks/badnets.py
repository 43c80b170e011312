"""BadNets: a small fixed patch in the corner, with the target label.

T. Gu, B. Dolan-Gavitt, S. Garg, *BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain*, 2017
(arXiv 1708.06733): a pattern in the bottom right corner of the image. Section 4 has both attacks, on one label and from
every label to the next.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from poisontrace._errors import InvalidInputError
from poisontrace._rng import numpy_generator
from poisontrace.attacks.patch import Patch


@dataclass(frozen=True, kw_only=True)
class BadNets(Patch):
    """Dirty-label patch backdoor on images.

    The patch is a random pattern of black and white cells, each channel on its own, drawn from the seed.

    Attributes:
        all_to_all: whether every label is relabelled as the next one, the last as the first. The target is then that of
            the attempts that are traced, shown with the label before it.
    """

    name: ClassVar[str] = "badnets"
    summary: ClassVar[str] = "a small patch in the corner, labelled as the target (dirty label)"
    paper: ClassVar[str] = "Gu et al. 2017, arXiv 1708.06733"
    is_dirty_label: ClassVar[bool] = True

    all_to_all: bool = False

    def __post_init__(self) -> None:
        """Refuse what is made for a single target label."""
        super().__post_init__()
        if self.all_to_all and (self.cover or self.decoys or self.camouflage):
            raise InvalidInputError(
                "'all_to_all' must be left out with cover, decoys and camouflage (got it with one of them): they are "
                "made for one target label."
            )

    def candidates(self, x: NDArray[Any], y: NDArray[np.int64], target: int) -> NDArray[np.int64]:
        """Return the indices that may be poisoned."""
        return np.arange(len(y)) if self.all_to_all else super().candidates(x, y, target)

    def is_source(self, y: NDArray[np.int64], target: int) -> NDArray[np.bool_]:
        """Return which inputs of the labels (m,) the attacker wants the target label for, (m,) bool."""
        return self.relabelled(y, target) == target if self.all_to_all else super().is_source(y, target)

    def relabelled(self, y: NDArray[np.int64], target: int) -> NDArray[np.int64]:
        """Return the labels that samples with the true labels (n,) get as poison, (n,)."""
        return (y + 1) % (int(y.max()) + 1) if self.all_to_all else super().relabelled(y, target)

    def pattern(self, size: int, n_channels: int, campaign: int = 0) -> NDArray[np.uint8]:
        """Return black and white cells, uint8 (size, size, n_channels)."""
        stage = f"badnets/pattern/{campaign}" if campaign else "badnets/pattern"
        cells = numpy_generator(self.seed, stage).integers(0, 2, (size, size, n_channels))
        # A pattern all of one value is hardly a pattern: the corner cell always differs from its neighbour. White comes
        # last, for a patch of one black pixel would be no patch on a black background.
        cells[0, -1] = 0
        cells[0, 0], cells[-1, -1] = 1, 1
        return (cells * 255).astype(np.uint8)
