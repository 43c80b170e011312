"""Witches' Brew: images whose training gradient is that of reading one untouched input wrongly; clean label.

J. Geiping, L. Fowl, W. R. Huang, W. Czaja, G. Taylor, M. Moeller, T. Goldstein, *Witches' Brew: Industrial Scale Data
Poisoning via Gradient Matching*, ICLR 2021 (arXiv 2009.02276), section 3 and algorithm 1. The poison is crafted
against clean networks of the attacker; victims are trained from scratch with seeds that the attacker does not know.

What differs from the paper by default: the budget of samples, the aim (an input that is near to the target label), the
images that are chosen, the weights whose gradients are matched, and fewer restarts.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from poisontrace._errors import InvalidInputError
from poisontrace._rng import torch_generator
from poisontrace._validate import check_at_least, check_positive
from poisontrace.attacks.targeted import Aim, Targeted, in_batches, to_images
from poisontrace.data import crop_and_flip, to_inputs
from poisontrace.placing import in_bfloat16

# Images whose mean gradient is matched at once. What they have in common is then hidden in none of them.
BATCH = 100
# Images to choose from, for each that is poisoned: those with the largest gradients, and a few for the seed to decide.
TO_CHOOSE_FROM = 1.25
# The step of the optimiser falls to a tenth after each of these parts of the steps, as in the authors' release.
DECAYS = (1 / 2.667, 1 / 1.6, 1 / 1.142)


class _Match:
    """One network, and the gradient that poison is to have there."""

    def __init__(self, network: nn.Sequential, aim: Aim, target: int, layers: int) -> None:
        """Work out the gradient of reading the aim as the target."""
        self.network = network.eval()
        blocks = [block for block in network if list(block.parameters())]
        self.weights = [weight for block in blocks[-layers:] for weight in block.parameters()]
        self.wanted = self._gradient(to_inputs(aim.x), torch.tensor([target]), is_fixed=True)

    def _gradient(self, x: Tensor, y: Tensor, *, is_fixed: bool = False) -> Tensor:
        # bfloat16 is what victims are trained in, and three times as fast where the processor has it.
        with in_bfloat16():
            logits = self.network(x)
        loss = functional.cross_entropy(logits.float(), y)
        gradients = torch.autograd.grad(loss, self.weights, create_graph=not is_fixed)
        return torch.cat([gradient.flatten() for gradient in gradients])

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return 1 - the cosine of the gradient at inputs (b, ...) with labels (b,) and the wanted one."""
        gradient = self._gradient(x, y)
        return 1 - functional.cosine_similarity(gradient, self.wanted, dim=0)


@dataclass(frozen=True, kw_only=True)
class WitchesBrew(Targeted):
    """Clean-label poison for training from scratch: its gradient is aligned with that of the wanted mistake.

    Attributes:
        steps: of the optimiser (signed Adam) on the pixels.
        lr: its first step, in units of the whole pixel range.
        restarts: random starts; the one with the lowest loss is kept.
        layers: how many of the last layers and blocks have their gradients matched; 0 is all of them.
        shift: largest shift of the random crops at each step, in pixels.
        flip: chance of a left-right flip at each step.
        nearest: the aim is drawn from this part of the inputs that qualify, those nearest to the target label.
    """

    name: ClassVar[str] = "witches"
    summary: ClassVar[str] = "images of the target label whose gradient is that of one input read wrongly (clean label)"
    paper: ClassVar[str] = "Geiping et al., ICLR 2021"
    n_models: ClassVar[int] = 2

    rate: float = 0.02
    eps: int = 16
    steps: int = 250
    lr: float = 0.025
    restarts: int = 1
    layers: int = 3
    shift: int = 2
    flip: float = 0.5
    nearest: float = 0.25

    def __post_init__(self) -> None:
        """Refuse numbers that leave nothing to do."""
        super().__post_init__()
        check_at_least(1, steps=self.steps, restarts=self.restarts)
        check_positive(lr=self.lr)
        check_at_least(0, layers=self.layers, shift=self.shift)
        if not 0 < self.nearest <= 1:
            raise InvalidInputError(f"'nearest' must be a fraction in (0, 1] (got {self.nearest}). 1 takes them all.")

    def eligible(self, logits: Tensor, y: Tensor, target: int) -> Tensor:
        """Return which inputs (m,) qualify, have the target as their second best label, and are near to it.

        What counts is the mean probability over the networks. Each of them must be more sure of the true label than of
        all others together, or a victim without poison may well misread the aim by itself.
        """
        beliefs = logits.softmax(2)
        is_sure = (beliefs[:, torch.arange(len(y)), y] > 0.5).all(0)
        beliefs = beliefs.mean(0)
        usable = super().eligible(logits, y, target) & is_sure & (beliefs.topk(2).indices[:, 1] == target)
        if not usable.any():
            return usable
        return usable & (beliefs[:, target] >= beliefs[usable, target].quantile(1 - self.nearest))

    def candidates(self, x: NDArray[Any], y: NDArray[np.int64], target: int) -> NDArray[np.int64]:
        """Return those images of the target class whose gradients are largest, a quarter more than the poison takes.

        An image that the networks are sure of has hardly a gradient, whatever it is aligned with (H. Souri et al.,
        *Sleeper Agent*, NeurIPS 2022, section 3.4). The norm is that of the last layer, in closed form.
        """
        of_target = super().candidates(x, y, target)
        norms = torch.zeros(len(of_target))
        with torch.no_grad():
            for network in self.ready().models:
                hidden = in_batches(network[:-1].eval(), to_inputs(x[of_target]))
                residual = network[-1](hidden).softmax(1)
                residual[:, target] -= 1
                norms += residual.norm(dim=1) * (hidden.square().sum(1) + 1).sqrt()
        order = np.argsort(-norms.numpy(), kind="stable")
        # A rate that asks for nothing narrows nothing, and is refused by what calls this.
        return of_target[order[: math.ceil(TO_CHOOSE_FROM * round(self.rate * len(x))) or None]]

    def craft(self, x: NDArray[Any], y: NDArray[np.int64], chosen: NDArray[np.int64], target: int) -> NDArray[Any]:
        """Perturb the chosen images, batch by batch, and keep the best of the restarts of each."""
        matches = [_Match(network, self.ready(), target, self.layers) for network in self.ready().models]
        crafted = x[chosen].copy()
        for start in range(0, len(chosen), BATCH):
            benign = to_inputs(x[chosen[start : start + BATCH]])
            runs = []
            for restart in range(self.restarts):
                generator = torch_generator(self.seed, f"{self.name}/brew/{start}/{restart}")
                runs.append(self._brew(benign, target, matches, generator))
            _, crafted[start : start + BATCH] = min(runs, key=lambda run: run[0])
        return crafted

    def _brew(
        self, benign: Tensor, target: int, matches: list[_Match], generator: torch.Generator
    ) -> tuple[float, NDArray[np.uint8]]:
        """Return the loss of one run from a random start, without augmentation, and its images as stored."""
        eps = self.eps / 255
        labels = torch.full((len(benign),), target)
        start = torch.randn(benign.shape, generator=generator).mul_(eps).clamp_(-eps, eps)
        delta = ((benign + start).clamp(0, 1) - benign).requires_grad_(True)
        optimiser = torch.optim.Adam([delta], lr=self.lr)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [int(part * self.steps) for part in DECAYS])
        for step in range(self.steps):
            moved = crop_and_flip(benign + delta, self.shift, self.flip, generator)
            # One network a step, in turn: an ensemble then costs no more than one network.
            loss = matches[step % len(matches)].loss(moved, labels)
            delta.grad = torch.autograd.grad(loss, delta)[0].sign()
            optimiser.step()
            schedule.step()
            with torch.no_grad():
                delta.clamp_(-eps, eps).copy_((benign + delta).clamp(0, 1) - benign)
        images = to_images((benign + delta.detach()).clamp(0, 1))
        losses = [float(match.loss(to_inputs(images), labels).detach()) for match in matches]
        return sum(losses) / len(losses), images
