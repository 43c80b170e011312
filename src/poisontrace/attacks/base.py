"""What every attack shares: choosing samples, relabelling, counting and checking. Authors write ``trigger``.

An attack runs in three steps. ``prepare`` gives it what the attacker has of its own (clean networks, inputs to choose a
target from) and returns it ready; ``poison`` plants the samples; ``attempts`` says what the attacker later shows the
deployed model. A plain patch needs the second step only.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self, get_type_hints

import numpy as np
from numpy.typing import NDArray
from torch import nn

from poisontrace._errors import InvalidInputError
from poisontrace._rng import numpy_generator
from poisontrace._validate import check_inputs, check_labels, check_rate

KINDS = {"images": "uint8 images", "rows": "rows of floats"}


@dataclass(frozen=True)
class Attacker:
    """What an attacker has of its own; the victim is not among it.

    Attributes:
        models: clean networks for the task, in eval mode, trained by the attacker on samples drawn by itself; in
            transfer learning the first one holds the public extractor.
        x, y: the attacker's own labelled samples, (m, ...) and (m,): nobody trains on them.
        feature_names: of the columns, for rows of features.
        n_classes: labels of the task.
        rehearse: trains a network of the attacker's with the poison of an attack, to see how it will fare.
    """

    models: tuple[nn.Sequential, ...]
    x: NDArray[Any]
    y: NDArray[np.int64]
    n_classes: int
    feature_names: tuple[str, ...] = ()
    rehearse: "Callable[[Attack], nn.Sequential] | None" = None


@dataclass(frozen=True)
class Poisoned:
    """A poisoned training set and the truth about it.

    Attributes:
        x: inputs as stored, (n, ...), the dtype of the original.
        y: labels used for training, (n,).
        is_poison: (n,) bool.
        target: the label the attacker wants.
        carried: (n, campaigns) bool, the triggers that each poisoned row carries; False elsewhere. Most attacks have
            one campaign.
        is_decoy: (n,) bool, rows that the attacker changed too, under their true label, which make nobody err: never
            poison. Rows that are neither poison nor decoy are bit-identical to the original.
    """

    x: NDArray[Any]
    y: NDArray[np.int64]
    is_poison: NDArray[np.bool_]
    target: int
    carried: NDArray[np.bool_]
    is_decoy: NDArray[np.bool_]

    def responsible(self, carried: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return the truth for each event, (m, n) bool: poison with the target label that carries one of its triggers.

        Args:
            carried: (m, campaigns) bool, the triggers of each event.
        """
        shared: NDArray[np.int64] = carried.astype(np.int64) @ self.carried.T.astype(np.int64)
        is_responsible: NDArray[np.bool_] = (shared > 0) & (self.y == self.target)
        return is_responsible


@dataclass(frozen=True)
class Attempts:
    """Inputs the attacker shows the deployed model, hoping for the target label.

    Attributes:
        x: (m, ...) as stored.
        y: their true labels, (m,).
        x_before: the same inputs without the trigger; equal to ``x`` where the attack aims at an untouched input.
        carried: (m, campaigns) bool, the triggers that each carries; an untouched input answers for all of them.
    """

    x: NDArray[Any]
    y: NDArray[np.int64]
    x_before: NDArray[Any]
    carried: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """Some training samples are changed in place, and relabelled as the target if the attack is dirty-label.

    Attributes:
        rate: poison / training size, in (0, 1).
        target: label the attacker wants; None draws it from the seed.
        seed: decides everything random about the attack.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
    is_dirty_label: ClassVar[bool]
    kind: ClassVar[str] = "images"  # of samples it works on, one of KINDS
    n_models: ClassVar[int] = 0  # clean networks the attacker needs

    rate: float = 0.05
    target: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a rate outside (0, 1)."""
        check_rate(self.rate)

    @classmethod
    def options(cls) -> dict[str, Any]:
        """Return the types of the arguments that not every attack has; what ``prepare`` sets is not compared."""
        types = get_type_hints(cls)
        return {f.name: types[f.name] for f in fields(cls) if f.compare and f.name not in ("rate", "target", "seed")}

    @property
    def n_networks(self) -> int:
        """Clean networks that the attacker needs with these options."""
        return self.n_models

    def prepare(self, attacker: Attacker) -> Self:
        """Return the attack with what it works out beforehand: a trigger, a target image. Most need nothing.

        Args:
            attacker: at least ``n_networks`` networks, and samples of the task.
        """
        return self

    @abstractmethod
    def trigger(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return a copy of inputs as stored, (n, ...), that carry the trigger."""

    def craft(self, x: NDArray[Any], y: NDArray[np.int64], chosen: NDArray[np.int64], target: int) -> NDArray[Any]:
        """Return the poisoned inputs that replace ``x[chosen]``; they carry the trigger unless an attack says else.

        Args:
            x: the benign training set, (n, ...).
            y: its labels, (n,).
            chosen: ascending indices of the samples to poison.
            target: the label the attacker wants.
        """
        return self.trigger(x[chosen])

    def split(self, n_poison: int) -> NDArray[np.bool_]:
        """Return the triggers that each of the poisoned samples carries, (n_poison, campaigns) bool."""
        return np.ones((n_poison, 1), bool)

    def plant_decoys(
        self, x: NDArray[Any], y: NDArray[np.int64], chosen: NDArray[np.int64], target: int
    ) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Return which other samples are changed under their true label, and what replaces them; most attacks: none.

        Args:
            x: the benign training set, (n, ...).
            y: its labels, (n,).
            chosen: ascending indices of the poison, which is none of them.
            target: the label the attacker wants.
        """
        none = chosen[:0]
        return none, x[none]

    def attempts(self, x: NDArray[Any], y: NDArray[np.int64], target: int) -> Attempts:
        """Return what the attacker shows the deployed model: test inputs of other labels, with the trigger.

        Args:
            x: test inputs as stored, (m, ...).
            y: their labels, (m,).
            target: the label the attacker wants.
        """
        is_source = self.is_source(y, target)
        sources = x[is_source]
        return Attempts(self.trigger(sources), y[is_source], sources, np.ones((len(sources), 1), bool))

    def is_source(self, y: NDArray[np.int64], target: int) -> NDArray[np.bool_]:
        """Return which inputs of the labels (m,) the attacker wants the target label for, (m,) bool."""
        is_source: NDArray[np.bool_] = y != target
        return is_source

    def relabelled(self, y: NDArray[np.int64], target: int) -> NDArray[np.int64]:
        """Return the labels that samples with the true labels (n,) get as poison, (n,)."""
        return np.full(len(y), target, np.int64)

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

    def candidates(self, x: NDArray[Any], y: NDArray[np.int64], target: int) -> NDArray[np.int64]:
        """Return the indices that may be poisoned: other classes if dirty-label, else the target class."""
        return np.flatnonzero(y != target if self.is_dirty_label else y == target)

    def check_kind(self, x: NDArray[Any]) -> None:
        """Refuse inputs of a kind this attack does not work on."""
        if (x.dtype == np.uint8) != (self.kind == "images"):
            raise InvalidInputError(
                f"'attack' must be one for this kind of data (got {self.name}, which works on {KINDS[self.kind]}, for "
                f"{x.dtype} of shape {x.shape}). See poisontrace list."
            )

    def poison(self, x: NDArray[Any], y: NDArray[np.int64]) -> Poisoned:
        """Poison ``round(rate * n)`` of the samples that may be.

        Args:
            x: inputs as stored, (n, ...).
            y: true labels, (n,).

        Raises:
            InvalidInputError: if an array breaks the rules of ``data``, the rate asks for no sample at all or for more
                than there are to choose from, or the trigger changes shape or dtype.
        """
        check_inputs(x, "x")
        y = check_labels(y, "y", n=len(x))
        self.check_kind(x)
        target = self.target_of(y)
        candidates = self.candidates(x, y, target)
        n_poison = round(self.rate * len(x))
        if not 0 < n_poison <= len(candidates):
            raise InvalidInputError(
                f"'rate' must ask for between 1 and {len(candidates)} of {len(x)} samples (got {self.rate!r}, which is "
                f"{n_poison}). Change the rate, or the number of samples."
            )
        rng = numpy_generator(self.seed, f"{self.name}/chosen")
        chosen = np.sort(rng.choice(candidates, n_poison, replace=False))

        x_poisoned, y_poisoned = x.copy(), y.copy()
        crafted = self.craft(x, y, chosen, target)
        if crafted.shape != x[chosen].shape or crafted.dtype != x.dtype:
            raise InvalidInputError(
                f"'trigger' must return an array like its input, {x.dtype} of shape {x[chosen].shape} (got "
                f"{crafted.dtype} of shape {crafted.shape})."
            )
        x_poisoned[chosen] = crafted
        y_poisoned[chosen] = self.relabelled(y, target)[chosen]
        is_poison = np.zeros(len(x), bool)
        is_poison[chosen] = True
        carried = self.split(n_poison)
        carried_by_row = np.zeros((len(x), carried.shape[1]), bool)
        carried_by_row[chosen] = carried
        decoys, planted = self.plant_decoys(x, y, chosen, target)
        assert not is_poison[decoys].any()
        x_poisoned[decoys] = planted
        is_decoy = np.zeros(len(x), bool)
        is_decoy[decoys] = True
        is_benign = ~(is_poison | is_decoy)
        assert (x_poisoned[is_benign] == x[is_benign]).all()
        return Poisoned(x_poisoned, y_poisoned, is_poison, target, carried_by_row, is_decoy)
