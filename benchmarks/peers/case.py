"""What every method is given, and what it may answer."""

import json
import runpy
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from poisontrace import train
from poisontrace.data import ArraySet, read_array_set
from poisontrace.loading import find_factory


@dataclass(frozen=True)
class Case:
    """One misclassification of one victim.

    Attributes:
        model: the victim, in eval mode; its last module is its last linear layer. A method may do with it as it likes.
        train_set: n samples, as the victim was trained on.
        event_x: one input as the model takes it, without a batch axis.
        event_y: the wrong label that the model gave.
        recipe: how the victim was trained; for augmentation.
        seed: of whatever a method draws.
        rate: fraction of the event's label that is poison; for methods whose authors ask for it, else NaN.
        poison: the truth, for the oracle alone, else empty.
    """

    model: nn.Sequential
    train_set: ArraySet
    event_x: Tensor
    event_y: int
    recipe: train.Recipe
    seed: int = 0
    rate: float = float("nan")
    poison: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def head(self) -> nn.Linear:
        """The last linear layer."""
        head = self.model[-1]
        assert isinstance(head, nn.Linear)
        return head

    @property
    def body(self) -> nn.Sequential:
        """All below it: inputs to features (n, d)."""
        return nn.Sequential(*list(self.model)[:-1])


@dataclass(frozen=True)
class Answer:
    """What a method says of n samples.

    Attributes:
        found: ascending indices of what it accuses by its authors' own rule; None if they give none.
        scores: (n,), more is more suspicious; None if it has a set and no order.
    """

    found: NDArray[np.int64] | None = None
    scores: NDArray[np.float64] | None = None


def read_case(folder: Path, *, needs: str = "", event: int = 0) -> Case:
    """Read one event of an incident folder, and of the truth only what a method needs."""
    _, build = find_factory(f"{folder / 'arch.py'}:build")
    model: nn.Sequential = build()
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    train_set = read_array_set(folder / "train.npz", "data")
    event_x, event_y = read_array_set(folder / "events.npz", "events")[event]
    recipe = runpy.run_path(str(folder / "recipe.py"))["RECIPE"]
    case = Case(model.eval(), train_set, event_x, event_y, recipe)
    if not needs:
        return case
    poison = responsible(folder, event)
    if needs == "truth":
        return replace(case, poison=poison)
    return replace(case, rate=len(poison) / int((train_set.y == event_y).sum()))


def responsible(folder: Path, event: int = 0) -> NDArray[np.int64]:
    """Return the true poison behind one event of an incident folder."""
    truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
    return np.array(truth["responsible"][event] if "responsible" in truth else truth["poison"], np.int64)
