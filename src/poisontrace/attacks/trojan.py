"""Trojan: a patch optimised to excite chosen neurons of a clean network, with the target label.

Y. Liu, S. Ma, Y. Aafer, W.-C. Lee, J. Zhai, W. Wang, X. Zhang, *Trojaning Attack on Neural Networks*, NDSS 2018,
section IV.A: the neurons most strongly connected to the layer before (equations 2 and 3), then gradient descent on the
pixels within the mask (algorithm 1). As in Shan et al. 2022 the trigger is planted in the training set of a victim that
is trained from scratch, where Liu et al. retrain the network they have.
"""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from poisontrace._errors import InvalidInputError
from poisontrace._rng import numpy_generator, torch_generator
from poisontrace._validate import check_at_least, check_positive
from poisontrace.attacks.base import Attacker
from poisontrace.attacks.patch import Patch
from poisontrace.data import to_inputs

# The attacker's images that the patch lies on while it is optimised, and those that it is checked on.
N_IMAGES, N_CHECKED = 64, 1000
# A trigger that fools a clean network by itself is evasion and needs no poison. The attacker sees to it on its own
# network, with half of what ``incidents`` lets pass on the twin, and turns to the next neurons at most so many times.
MAX_MOVED, N_TRIES = 0.05, 4


@dataclass(frozen=True, kw_only=True)
class Trojan(Patch):
    """Dirty-label backdoor on images whose patch is optimised on a clean network of the attacker.

    The neurons are inputs of the last linear layer. The published cost is (target value - activation)^2; far below the
    target value, where the paper starts, its gradient has the direction of the activation's, so the activation is what
    is maximised here. It is the mean over images of the attacker that carry the patch: on the mask alone a neuron may
    be silent, with no gradient to follow.

    Attributes:
        n_neurons: how many neurons the patch excites.
        steps: of gradient descent (Adam).
        lr: its learning rate, for pixels in [0, 1].
        found: the patch of each campaign that :meth:`prepare` worked out, uint8 (size, size, channels) each.
    """

    name: ClassVar[str] = "trojan"
    summary: ClassVar[str] = "a patch optimised to excite a neuron, labelled as the target (dirty label)"
    paper: ClassVar[str] = "Liu et al. 2018, Trojaning Attack on Neural Networks, NDSS"
    is_dirty_label: ClassVar[bool] = True
    n_models: ClassVar[int] = 1

    n_neurons: int = 1
    steps: int = 100
    lr: float = 0.1
    found: tuple[NDArray[np.uint8], ...] = field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse an optimisation that finds nothing."""
        super().__post_init__()
        check_at_least(1, n_neurons=self.n_neurons, steps=self.steps)
        check_positive(lr=self.lr)

    def prepare(self, attacker: Attacker) -> Self:
        """Optimise each patch on the attacker's network; of several sets of neurons, take one that does not evade.

        Raises:
            InvalidInputError: if the patch does not fit, or the network has fewer neurons than asked for.
        """
        self.check_kind(attacker.x)
        network, target = attacker.models[0], self.target_of(attacker.y)
        assert isinstance(network, nn.Sequential)
        strongest = connection_strength(network).argsort(descending=True, stable=True)
        if self.n_neurons > len(strongest):
            raise InvalidInputError(
                f"'n_neurons' must be at most the {len(strongest)} of the network's last layer (got {self.n_neurons}). "
                "Leave it out for one."
            )
        shuffled = numpy_generator(self.seed, "trojan/images").permutation(len(attacker.x))
        images = to_inputs(attacker.x[shuffled[:N_IMAGES]])
        others = attacker.x[shuffled[attacker.y[shuffled] != target][:N_CHECKED]]
        before = _answers(network, others) == target
        best = replace(self, target=target)
        starts = list(range(0, len(strongest) - self.n_neurons + 1, self.n_neurons))
        for campaign in range(self.campaigns):
            # Each campaign has neurons of its own, as long as there are any.
            first = campaign * N_TRIES % len(starts)
            given, lowest = best, float("inf")
            for start in (starts[first:] + starts)[:N_TRIES]:
                neurons = strongest[start : start + self.n_neurons]
                patch = self._optimised(network[:-1], neurons, images, campaign)
                tried = replace(given, found=(*given.found, patch))
                moved = ((_answers(network, tried.mark(others, campaign, 1.0)) == target) & ~before).mean()
                if moved < lowest:
                    best, lowest = tried, moved
                if moved <= MAX_MOVED:
                    break
        return best.with_surrogate(attacker)

    def _optimised(self, features: nn.Module, neurons: Tensor, images: Tensor, campaign: int) -> NDArray[np.uint8]:
        """Return the patch, uint8 (size, size, channels), under which the neurons are most active on the images.

        Args:
            features: the network without its last layer; gives (n, d).
            neurons: which of the d to excite.
            images: float32 (n, channels, height, width) in [0, 1].
            campaign: whose patch it is, which says where it lies.
        """
        n, n_channels, height, width = images.shape
        rows, columns = self.place((n, height, width, n_channels), campaign)
        start = torch_generator(self.seed, f"trojan/start/{campaign}" if campaign else "trojan/start")
        patch = torch.rand((n_channels, rows.stop - rows.start, columns.stop - columns.start), generator=start)
        patch.requires_grad_()
        optimiser = torch.optim.Adam([patch], lr=self.lr)
        for _ in range(self.steps):
            stamped = images.clone()
            stamped[:, :, rows, columns] = self.opacity * patch + (1 - self.opacity) * images[:, :, rows, columns]
            cost = -features(stamped)[:, neurons].mean()
            (patch.grad,) = torch.autograd.grad(cost, [patch])
            optimiser.step()
            with torch.no_grad():
                patch.clamp_(0, 1)
        found: NDArray[np.uint8] = (patch.detach() * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        return found

    def pattern(self, size: int, n_channels: int, campaign: int = 0) -> NDArray[np.uint8]:
        """Return the patch of a campaign that :meth:`prepare` worked out.

        Raises:
            InvalidInputError: if there is none for images like these.
        """
        found = self.found[campaign] if campaign < len(self.found) else None
        got = "none" if found is None else f"one of shape {found.shape}"
        if found is None or found.shape != (size, size, n_channels):
            raise InvalidInputError(
                f"'attack' must hold a patch of shape {(size, size, n_channels)} (got {got}). Call prepare with the "
                "attacker's network and images of this form first; incidents.make does."
            )
        return found


def connection_strength(network: nn.Sequential) -> Tensor:
    """Return the sum of absolute incoming weights of each input of the last linear layer, (d,): equation 3.

    Batch normalisation is folded into the weights before it, which mean nothing without it.

    Args:
        network: ends in a linear layer; the convolution or linear layer before has one output for each of its inputs.
    """
    last = network[-1]
    assert isinstance(last, nn.Linear)
    strength = torch.zeros(0)
    for module in network[:-1].modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            strength = module.weight.detach().abs().flatten(1).sum(1)
        elif isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
            strength = strength * module.weight.detach().abs() / (module.running_var + module.eps).sqrt()
    assert len(strength) == last.in_features
    return strength


@torch.no_grad()
def _answers(network: nn.Module, x: NDArray[Any]) -> NDArray[np.int64]:
    """Return the labels (n,) that a network gives to images as stored."""
    parts = [network(to_inputs(x[start : start + 250])).argmax(1) for start in range(0, len(x), 250)]
    answers: NDArray[np.int64] = torch.cat(parts).numpy()
    return answers
