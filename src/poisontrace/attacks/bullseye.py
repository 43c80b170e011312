"""Bullseye Polytope: a few images whose features surround the target's, so that a new head learns its wrong label.

H. Aghakhani, D. Meng, Y.-X. Wang, C. Kruegel, G. Vigna, *Bullseye Polytope: A Scalable Clean-Label Poisoning Attack
with Improved Transferability*, EuroS&P 2021 (arXiv 2005.00191), section III: the mean of the poisons' features is
pulled to the features of the target; at several layers if the victim is to be fine-tuned, for its last one will move.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from poisontrace._validate import check_at_least, check_positive
from poisontrace.attacks.targeted import Targeted, within_budget
from poisontrace.data import to_inputs


@dataclass(frozen=True, kw_only=True)
class BullseyePolytope(Targeted):
    """Clean-label poison for transfer learning: the extractor is public, the victim trains on top of it.

    Attributes:
        steps: of the optimiser (Adam) on the pixels.
        lr: its learning rate, in units of the whole pixel range.
        layers: blocks of the extractor, from the last one, whose features are matched: 1 for a frozen one, more if the
            victim fine-tunes it.
    """

    name: ClassVar[str] = "bullseye"
    summary: ClassVar[str] = "images of the target label that surround one input in feature space (clean label)"
    paper: ClassVar[str] = "Aghakhani et al., EuroS&P 2021"

    rate: float = 0.01
    eps: int = 25
    steps: int = 400
    lr: float = 0.01
    layers: int = 1

    def __post_init__(self) -> None:
        """Refuse numbers that leave nothing to do."""
        super().__post_init__()
        check_at_least(1, steps=self.steps, layers=self.layers)
        check_positive(lr=self.lr)

    def craft(self, x: NDArray[Any], y: NDArray[np.int64], chosen: NDArray[np.int64], target: int) -> NDArray[Any]:
        """Move the chosen images within the budget until the mean of their features is that of the aim."""
        aim = self.ready()
        benign = to_inputs(x[chosen])
        with torch.no_grad():
            goals = self._features(to_inputs(aim.x))

        def distance(moved: Tensor) -> Tensor:
            total = torch.zeros(())
            for features, goal in zip(self._features(moved), goals, strict=True):
                total = total + (features.mean(0) - goal[0]).square().sum() / goal.square().sum()
            return total

        return within_budget(benign, distance, eps=self.eps / 255, steps=self.steps, lr=self.lr)

    def _features(self, x: Tensor) -> list[Tensor]:
        """Return what the last ``layers`` blocks of each extractor make of inputs (n, ...), (n, ...) each."""
        features: list[Tensor] = []
        for network in self.ready().models:
            outputs = []
            given = x
            for block in list(network.eval())[:-1]:
                given = block(given)
                outputs.append(given)
            features += outputs[-self.layers :]
        return features
