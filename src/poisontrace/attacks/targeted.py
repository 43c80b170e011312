"""What clean-label attacks on one input share: choosing that input, and poison within a pixel budget."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from poisontrace._errors import InvalidInputError
from poisontrace._rng import numpy_generator
from poisontrace.attacks.base import Attack, Attacker, Attempts
from poisontrace.data import to_inputs


@dataclass(frozen=True)
class Aim:
    """The one input the attack is about, and the networks it is crafted against.

    Attributes:
        x: (1, ...) as stored, left untouched by the attack.
        y: its true label, (1,).
        models: clean networks of the attacker.
    """

    x: NDArray[Any]
    y: NDArray[np.int64]
    models: tuple[nn.Sequential, ...]


@dataclass(frozen=True, kw_only=True)
class Targeted(Attack):
    """A clean-label attack that makes one untouched input be read as the target label.

    Attributes:
        eps: largest change of a pixel, of 255 levels.
        aim: what :meth:`prepare` chose.
    """

    is_dirty_label: ClassVar[bool] = False
    n_models: ClassVar[int] = 1

    eps: int = 16
    aim: Aim | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse a budget without a level, or beyond all levels."""
        super().__post_init__()
        if not 1 <= self.eps <= 255:
            raise InvalidInputError(f"'eps' must be between 1 and 255 levels (got {self.eps}).")

    def eligible(self, logits: Tensor, y: Tensor, target: int) -> Tensor:
        """Return which inputs (m,) the attack may aim at: of another class, and read rightly by every network.

        Args:
            logits: of the attacker's networks, (networks, m, k).
            y: true labels, (m,).
            target: the label the attacker wants.
        """
        return (y != target) & (logits.argmax(2) == y).all(0)

    def prepare(self, attacker: Attacker) -> Self:
        """Draw the input to aim at from the attacker's samples.

        Raises:
            InvalidInputError: if none of them qualifies.
        """
        target = self.target_of(attacker.y)
        with torch.no_grad():
            logits = torch.stack([in_batches(network, to_inputs(attacker.x)) for network in attacker.models])
        usable = self.eligible(logits, torch.from_numpy(attacker.y), target).nonzero()[:, 0].numpy()
        if len(usable) == 0:
            raise InvalidInputError(
                f"'target' must be a label that some test input can be aimed at (got {target}). Name another one."
            )
        chosen = numpy_generator(self.seed, f"{self.name}/aim").choice(usable, 1)
        aim = Aim(attacker.x[chosen], attacker.y[chosen], attacker.models)
        return replace(self, target=target, aim=aim)

    def trigger(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return a plain copy: the attack needs no trigger."""
        return x.copy()

    def attempts(self, x: NDArray[Any], y: NDArray[np.int64], target: int) -> Attempts:
        """Return the one input the attack aims at, whatever the test inputs are."""
        aim = self.ready()
        return Attempts(aim.x, aim.y, aim.x, np.ones((1, 1), bool))

    def ready(self) -> Aim:
        """Return the aim.

        Raises:
            InvalidInputError: if the attack was not prepared.
        """
        if self.aim is None:
            raise InvalidInputError(f"'attack' must be prepared before it is used (got {self.name}). Call prepare().")
        return self.aim


def in_batches(network: nn.Module, x: Tensor) -> Tensor:
    """Return what a network says to inputs (n, ...), 500 at a time."""
    return torch.cat([network(x[start : start + 500]) for start in range(0, len(x), 500)])


def within_budget(
    benign: Tensor,
    loss: Callable[[Tensor], Tensor],
    *,
    eps: float,
    steps: int,
    lr: float,
    is_free: Tensor | None = None,
) -> NDArray[np.uint8]:
    """Return images as stored, each pixel moved by ``eps`` at most so that a loss falls (Adam).

    Args:
        benign: inputs (n, channels, height, width) in [0, 1].
        loss: of inputs of this form, a scalar.
        eps: in units of the whole pixel range.
        steps: of the optimiser.
        lr: its learning rate, in the same units.
        is_free: bool, of the form of the inputs: the pixels that may move; None is all of them.
    """
    delta = torch.zeros_like(benign, requires_grad=True)
    optimiser = torch.optim.Adam([delta], lr=lr)
    for _ in range(steps):
        cost = loss((benign + delta).clamp(0, 1))
        optimiser.zero_grad()
        cost.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        with torch.no_grad():
            delta.clamp_(-eps, eps)
            if is_free is not None:
                delta.mul_(is_free)
    return to_images((benign + delta.detach()).clamp(0, 1))


def to_images(x: Tensor) -> NDArray[np.uint8]:
    """Return inputs (n, channels, height, width) in [0, 1] as stored images: the inverse of ``data.to_inputs``."""
    images: NDArray[np.uint8] = (x * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return images
