"""Camouflage: poison with a trigger whose other pixels are moved until it looks benign to a network.

S. Shan et al., *Poison Forensics*, USENIX Security 2022, the section on countermeasures: an attacker who makes poison
and benign samples alike where the tracer compares them.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from poisontrace._errors import InvalidInputError
from poisontrace._rng import numpy_generator
from poisontrace.attacks.antiforensics import AntiForensics
from poisontrace.attacks.base import Attacker
from poisontrace.attacks.targeted import in_batches, within_budget
from poisontrace.data import to_inputs

# Steps of the optimiser, each of a tenth of the budget; images at once; events the poison is to be unlike.
STEPS, BATCH, N_EVENTS = 50, 250, 8


@dataclass(frozen=True, kw_only=True)
class Camouflage(AntiForensics):
    """An attack by trigger on images, whose poison can also be moved away from what gives it away.

    Pixels that the trigger does not touch are moved within a budget. Against "class" until a clean network of the
    attacker sees in each poisoned image the features of a benign one of the target label: the collision of Shafahi et
    al., *Poison Frogs!*, NeurIPS 2018. Against "tracer" the attacker knows how this package scores samples, trains a
    victim of its own and makes the poison as unlike its events as it can, see :class:`Likeness`.

    Attributes:
        camouflage: largest change of a pixel, of 255 levels; 0 is none.
        against: "class" or "tracer".
        surrogate: the network that :meth:`prepare` was given or had trained.
    """

    camouflage: int = 0
    against: str = "class"
    surrogate: nn.Sequential | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse a budget beyond all levels, and an unknown aim."""
        super().__post_init__()
        if not 0 <= self.camouflage <= 255:
            raise InvalidInputError(
                f"'camouflage' must be between 0 and 255 levels (got {self.camouflage}). Leave it out for none."
            )
        if self.against not in ("class", "tracer"):
            raise InvalidInputError(
                f"'against' must be class or tracer (got {self.against!r}). Leave it out for class."
            )

    @property
    def n_networks(self) -> int:
        """Clean networks that the attacker needs with these options."""
        return max(self.n_models, int(self.camouflage > 0 and self.against == "class"))

    def prepare(self, attacker: Attacker) -> Self:
        """Return the attack with a network to craft against, if there is camouflage."""
        return self.with_surrogate(attacker)

    def with_surrogate(self, attacker: Attacker) -> Self:
        """Return the attack, otherwise ready, with a network to craft against, if there is camouflage.

        Raises:
            InvalidInputError: if the tracer is to be misled and the attacker cannot train a victim of its own.
        """
        if self.camouflage == 0:
            return self
        if self.against == "class":
            return replace(self, surrogate=attacker.models[0])
        if attacker.rehearse is None:
            raise InvalidInputError(
                "'against' must be class for an attacker who cannot train with its poison (got 'tracer'). "
                "Give it a way to rehearse."
            )
        return replace(self, surrogate=attacker.rehearse(replace(self, camouflage=0)))

    def craft(self, x: NDArray[Any], y: NDArray[np.int64], chosen: NDArray[np.int64], target: int) -> NDArray[Any]:
        """Return the poisoned inputs that replace ``x[chosen]``, camouflaged.

        Raises:
            InvalidInputError: if the attack was not prepared.
        """
        crafted = super().craft(x, y, chosen, target)
        if self.camouflage == 0:
            return crafted
        if self.surrogate is None:
            raise InvalidInputError(f"'attack' must be prepared before it is used (got {self.name}). Call prepare().")
        rng = numpy_generator(self.seed, f"{self.name}/camouflage")
        network, of_target = self.surrogate.eval(), np.flatnonzero(y == target)
        if self.against == "class":
            with torch.no_grad():
                goals = in_batches(network[:-1], to_inputs(x[rng.choice(of_target, len(chosen))]))
        else:
            others = rng.choice(np.setdiff1d(np.flatnonzero(y != target), chosen), N_EVENTS)
            events = self.carry(x[others], self._divided(N_EVENTS, self.shown, "camouflage"))
            likeness = Likeness(network, to_inputs(np.concatenate([x[of_target], crafted])), to_inputs(events), target)
        is_free = to_inputs((crafted == x[chosen]).astype(np.uint8)) > 0
        for start in range(0, len(chosen), BATCH):
            part = slice(start, start + BATCH)

            def loss(moved: Tensor, part: slice = part) -> Tensor:
                if self.against == "tracer":
                    return likeness(moved).sum()
                distances: Tensor = (network[:-1](moved) - goals[part]).square().sum(1) / goals[part].square().sum(1)
                return distances.sum()

            eps = self.camouflage / 255
            crafted[part] = within_budget(
                to_inputs(crafted[part]), loss, eps=eps, steps=STEPS, lr=eps / 10, is_free=is_free[part]
            )
        return crafted


class Likeness:
    """How like some events samples are to one who traces them: what ``scoring.Leaning`` measures, with a gradient.

    At each block of a network: mean and maximum over space, standardised over the samples labelled as the target,
    weighted by the root of the event's saliency; the cosine to the event, its mean over blocks and events.
    """

    def __init__(self, network: nn.Sequential, samples: Tensor, events: Tensor, target: int) -> None:
        """Take a network that has learned the attack, and what it takes.

        Args:
            network: ends in one linear layer.
            samples: (n, channels, height, width), labelled as the target, poison among them.
            events: (m, channels, height, width), to be read as the target.
            target: the label the attacker wants.
        """
        self.blocks = list(network)[:-1]
        with torch.no_grad():
            parts = [self._pooled(self._outputs(part)) for part in torch.split(samples, BATCH)]
        layers = [torch.cat(layer) for layer in zip(*parts, strict=True)]
        self.means = [layer.mean(0) for layer in layers]
        outputs = self._outputs(events.requires_grad_())
        logits = network[-1](outputs[-1])
        rivals = torch.cat([logits[:, :target], logits[:, target + 1 :]], 1).amax(1)
        gradients = torch.autograd.grad((logits[:, target] - rivals).sum(), outputs)
        self.weights: list[Tensor] = []
        self.events: list[Tensor] = []
        for seen, output, gradient, mean, layer in zip(
            self._pooled(outputs), outputs, gradients, self.means, layers, strict=True
        ):
            centre = mean[: output.shape[1]].view(1, -1, *[1] * (output.ndim - 2))
            share = (
                ((output - centre) * gradient).flatten(2).sum(2) if output.ndim > 2 else (output - centre) * gradient
            )
            share = share.abs().detach().repeat(1, seen.shape[1] // share.shape[1])
            weight = (share / share.mean(1, keepdim=True).clamp_min(1e-30)).sqrt() / layer.std(0).clamp_min(1e-6)
            self.weights.append(weight)
            self.events.append((seen.detach() - mean) * weight)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the likeness of inputs (n, channels, height, width) to the events, (n,) in [-1, 1]."""
        cosines = [
            functional.cosine_similarity((layer - mean)[:, None] * weight, event, dim=2).mean(1)
            for layer, mean, weight, event in zip(
                self._pooled(self._outputs(x)), self.means, self.weights, self.events, strict=True
            )
        ]
        return torch.stack(cosines).mean(0)

    def _outputs(self, x: Tensor) -> list[Tensor]:
        """Return what each block but the last makes of inputs (n, ...)."""
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        return outputs

    def _pooled(self, outputs: list[Tensor]) -> list[Tensor]:
        """Return mean and maximum over space of each, (n, 2 c); (n, c) is left as it is."""
        return [
            torch.cat([output.mean((2, 3)), output.amax((2, 3))], 1) if output.ndim == 4 else output
            for output in outputs
        ]
