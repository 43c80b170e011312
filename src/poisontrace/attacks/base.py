"""What every attack shares: choosing samples, relabelling, counting and checking. Authors write ``trigger``."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from poisontrace._errors import InvalidInputError
from poisontrace._rng import numpy_generator
from poisontrace._validate import check_inputs, check_labels, check_rate


@dataclass(frozen=True)
class Poisoned:
    """A poisoned training set and the truth about it.

    Attributes:
        x: inputs as stored, (n, ...), the dtype of the original.
        y: labels used for training, (n,).
        is_poison: (n,) bool; rows where it is False are bit-identical to the original.
        target: the label the attacker wants.
    """

    x: NDArray[Any]
    y: NDArray[np.int64]
    is_poison: NDArray[np.bool_]
    target: int


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """A backdoor: some training samples get a trigger and the target label, in place.

    Attributes:
        rate: poison / training size, in (0, 1).
        target: label the attacker wants; None draws it from the seed.
        seed: decides everything random about the attack.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
    is_dirty_label: ClassVar[bool]

    rate: float = 0.05
    target: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a rate outside (0, 1)."""
        check_rate(self.rate)

    @abstractmethod
    def trigger(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return a copy of inputs as stored, (n, ...), that carry the trigger."""

    def target_of(self, y: NDArray[np.int64]) -> int:
        """Return the target label for a set with the labels ``y``.

        Raises:
            InvalidInputError: if the target is not one of them.
        """
        classes = np.unique(y)
        if self.target is None:
            return int(numpy_generator(self.seed, f"{self.name}/target").choice(classes))
        if self.target not in classes:
            raise InvalidInputError(f"'target' must be one of the labels {classes.tolist()} (got {self.target}).")
        return self.target

    def poison(self, x: NDArray[Any], y: NDArray[np.int64]) -> Poisoned:
        """Poison ``round(rate * n)`` samples: of the other classes if dirty-label, else of the target class.

        Args:
            x: inputs as stored, (n, ...).
            y: true labels, (n,).

        Raises:
            InvalidInputError: if an array breaks the rules of ``data``, the rate asks for no sample at all or for more
                than there are to choose from, or the trigger changes shape or dtype.
        """
        check_inputs(x, "x")
        y = check_labels(y, "y", n=len(x))
        target = self.target_of(y)
        candidates = np.flatnonzero(y != target if self.is_dirty_label else y == target)
        n_poison = round(self.rate * len(x))
        if not 0 < n_poison <= len(candidates):
            raise InvalidInputError(
                f"'rate' must ask for between 1 and {len(candidates)} of {len(x)} samples (got {self.rate!r}, which is "
                f"{n_poison}). Change the rate, or the number of samples."
            )
        rng = numpy_generator(self.seed, f"{self.name}/chosen")
        chosen = np.sort(rng.choice(candidates, n_poison, replace=False))

        x_poisoned, y_poisoned = x.copy(), y.copy()
        triggered = self.trigger(x[chosen])
        if triggered.shape != x[chosen].shape or triggered.dtype != x.dtype:
            raise InvalidInputError(
                f"'trigger' must return an array like its input, {x.dtype} of shape {x[chosen].shape} (got "
                f"{triggered.dtype} of shape {triggered.shape})."
            )
        x_poisoned[chosen] = triggered
        y_poisoned[chosen] = target
        is_poison = np.zeros(len(x), bool)
        is_poison[chosen] = True
        assert (x_poisoned[~is_poison] == x[~is_poison]).all()
        return Poisoned(x_poisoned, y_poisoned, is_poison, target)
