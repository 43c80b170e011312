"""Seeded toy tasks: sets, networks and attacks that take seconds at most."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from poisontrace import models, readers, store, train
from poisontrace._record import Clock, Tree
from poisontrace._rng import global_seed, numpy_generator
from poisontrace._types import Finding, Trace, Verdict
from poisontrace.attacks import ATTACKS, Attack, Attacker
from poisontrace.context import Context
from poisontrace.data import ArraySet, TrainSet, to_inputs
from poisontrace.datasets import Dataset, load_dataset
from poisontrace.embedding import Features, collect
from poisontrace.incidents import Incident, Plan
from poisontrace.judging import Config
from poisontrace.kinds import Kinds
from poisontrace.marks import Marks
from poisontrace.notes import Notes
from poisontrace.pictures import Pictures
from poisontrace.sights import Sights

Event = tuple[Tensor, int]

# About a second to make, enough for the attack to succeed, and so plain that no trace asks other labels.
DIGITS_PLAN = Plan(attack="badnets", dataset="digits", epochs=4, width=16, options={"size": 4})


def toy_images(n: int = 40, *, side: int = 8, n_channels: int = 1, n_classes: int = 4) -> tuple[NDArray[Any], Any]:
    """Return uint8 noise images (n, side, side, n_channels) and labels that go round the classes."""
    x = numpy_generator(0, "toy/images").integers(0, 256, (n, side, side, n_channels), dtype=np.uint8)
    return x, np.arange(n) % n_classes


WIDTH = 24
RELABELLED, NATURAL = np.arange(60), np.arange(60, 120)  # of label 0, a quarter each


def no_notes() -> Notes:
    """Return notes of a trace that nothing has been written in yet, and that keeps none."""
    return Notes(None, 0, "")


def relabelled_toy(
    n_labels: int = 6,
    *,
    n_sources: int = 0,
    shift: float = 8.0,
    blur: float = 1.0,
    memory: int = 1 << 30,
    wrong: NDArray[np.int64] | None = None,
) -> Features:
    """Return 240 samples a label; of label 0 a quarter are of ``n_sources`` others, and a quarter another kind.

    Both lie ``shift`` from all other samples, each in a direction of its own; ``blur`` is the spread within labels. By
    default all other labels are sources. The ``wrong`` ones of label 0 are of others as well, without such a direction.
    """
    rng = numpy_generator(0, "toy/origins")
    y = np.repeat(np.arange(n_labels), 240)
    shown = y.copy()
    shown[RELABELLED] = 1 + np.arange(60) % (n_sources or n_labels - 1)
    x = (blur * rng.standard_normal((len(y), WIDTH))).astype(np.float32)
    if wrong is not None:
        shown[wrong] = 1 + np.arange(len(wrong)) % (n_labels - 1)
    x[np.arange(len(y)), shown] += 6
    x[RELABELLED, WIDTH - 1] += shift
    x[np.setdiff1d(NATURAL, [] if wrong is None else wrong), WIDTH - 2] += shift
    model, event = nn.Linear(WIDTH, n_labels), torch.from_numpy(x[0])
    with torch.no_grad():  # what a network learns that is taught so: each label by its column, and the trigger
        model.bias.zero_()
        model.weight.copy_(torch.eye(n_labels, WIDTH))
        model.weight[0, WIDTH - 1] = 1
    return collect(model, ArraySet(x, y), [(event, int(model(event[None]).argmax()))], memory=memory)


def toy_rows(n: int = 60, *, n_features: int = 4) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return two well separated clouds of float32 rows (n, n_features) and their labels."""
    y = np.arange(n) % 2
    noise = numpy_generator(0, "toy/rows").standard_normal((n, n_features))
    return (noise + 6 * y[:, None]).astype(np.float32), y.astype(np.int64)


class Pairs(Sequence[tuple[Any, int]]):
    """A data set the way torch users write one: a length and pairs by index."""

    def __init__(self, x: Any, y: Any) -> None:
        """Keep inputs as the model takes them and their labels."""
        self.x, self.y = x, y

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.x)

    def __getitem__(self, index: Any) -> Any:
        """Return one sample."""
        return self.x[index], self.y[index]


@dataclass(frozen=True, kw_only=True)
class NoOp(Attack):
    """An attack that changes labels but leaves no trigger: it must fail every check that an attack works."""

    name: ClassVar[str] = "noop"
    summary: ClassVar[str] = "nothing"
    paper: ClassVar[str] = "none"
    is_dirty_label: ClassVar[bool] = True

    def trigger(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return a plain copy."""
        return x.copy()


def toy_attack(
    name: str, n: int = 80, *, side: int = 8, n_channels: int = 1, **options: Any
) -> tuple[Attack, NDArray[Any], NDArray[np.int64]]:
    """Return a registered attack, prepared with small networks, and a toy set of the kind that it works on."""
    attack = ATTACKS[name](**options)
    networks = tuple(_toy_network(attack.kind, side, n_channels, seed) for seed in range(attack.n_networks))
    x, y = toy_images(n, side=side, n_channels=n_channels) if attack.kind == "images" else toy_rows(n)
    held_out = toy_images(24, side=side, n_channels=n_channels) if attack.kind == "images" else toy_rows(24)
    names = tuple("abcd") if attack.kind == "rows" else ()
    return attack.prepare(Attacker(networks, *held_out, int(y.max()) + 1, names)), x, y


@cache
def _toy_network(kind: str, side: int, n_channels: int, seed: int) -> nn.Sequential:
    """Return a network that knows the attacker's 24 toy samples by heart."""
    with global_seed(seed, "toy/attacker"):
        if kind == "images":
            model, (x, y) = (
                models.small_cnn(4, n_channels=n_channels, width=16),
                toy_images(24, side=side, n_channels=n_channels),
            )
        else:
            model, (x, y) = models.mlp(2, n_features=4, width=8), toy_rows(24)
    train.fit(model, x, y, train.Recipe(epochs=30, batch_size=24, lr=0.05), seed=seed)
    return model


def attack_success(attack: Attack, dataset: Dataset, *, epochs: int = 4, width: int = 16) -> tuple[float, float]:
    """Train a victim and its twin without poison; return how often the trigger moves each to the target."""
    poisoned = attack.poison(dataset.x_train, dataset.y_train)
    triggered = attack.attempts(dataset.x_test, dataset.y_test, poisoned.target).x
    x_twin = dataset.x_train.copy()
    x_twin[poisoned.is_decoy] = poisoned.x[poisoned.is_decoy]
    success = []
    for x, y in ((poisoned.x, poisoned.y), (x_twin, dataset.y_train)):
        with global_seed(0, "toy/init"):
            model = models.small_cnn(width=width)
        train.fit(model, x, y, train.Recipe(epochs=epochs, batch_size=64, lr=0.05), seed=0)
        success.append(float((train.predict(model, triggered).argmax(1) == poisoned.target).mean()))
    return success[0], success[1]


def attack_works(attack: Attack) -> bool:
    """Return whether the attack moves a victim on digits at least 0.8 of the time and its twin 0.5 less."""
    victim, twin = attack_success(attack, load_dataset("digits"))
    return victim >= 0.8 and victim - twin >= 0.5


@dataclass(frozen=True)
class Planted:
    """Rows whose structure is known: three classes, and poison of class 0 that looks like class 1 with a trigger."""

    x: torch.Tensor
    y: torch.Tensor
    event: torch.Tensor
    is_poison: NDArray[np.bool_]

    @property
    def poison(self) -> NDArray[np.int64]:
        """Return the poison."""
        return np.flatnonzero(self.is_poison)

    def benign(self, label: int) -> NDArray[np.int64]:
        """Return the benign samples of one class."""
        return np.flatnonzero((self.y.numpy() == label) & ~self.is_poison)


def planted(n: int = 240, n_poison: int = 20) -> Planted:
    """Return n rows of 8 features; the last feature is the trigger."""
    rng = numpy_generator(0, "toy/planted")
    y = np.arange(n) % 3
    x = rng.standard_normal((n, 8)) * 0.7
    x[np.arange(n), y] += 4
    is_poison = np.arange(n) >= n - n_poison
    x[is_poison, :3] = rng.standard_normal((n_poison, 3)) * 0.7 + [0, 4, 0]
    x[is_poison, 7] += 6
    y[is_poison] = 0
    event = np.array([0, 4, 0, 0, 0, 0, 0, 6.0])
    return Planted(
        torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y), torch.from_numpy(event).float(), is_poison
    )


def planted_marks(n_marks: int, *, n: int = 1200, n_each: int = 60) -> Planted:
    """Return n rows of 16 features and two classes; of some of class 1, now 0, each has one of the marks.

    A mark is three columns with the value 4; the event carries all marks, and is of class 1 otherwise.
    """
    rng = numpy_generator(1, "toy/marks")
    y = np.arange(n) % 2
    x = rng.standard_normal((n, 16))
    x[:, :4] += 1.5 * (2 * y[:, None] - 1)
    poison = np.flatnonzero(y == 0)[: n_each * n_marks]
    x[poison, :4] += 3
    event = np.where(np.arange(16) < 4, 1.5, 0)
    for mark, carriers in enumerate(poison.reshape(n_marks, n_each)):
        columns = 13 - 3 * mark + np.arange(3)
        x[carriers[:, None], columns] = event[columns] = 4
    is_poison = np.isin(np.arange(n), poison)
    return Planted(
        torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y), torch.from_numpy(event).float(), is_poison
    )


def fitted_network(task: Planted, build: Callable[[], nn.Module]) -> nn.Module:
    """Return a network trained on a planted task in full batches until it answers nearly all of it."""
    with global_seed(0, "toy/init"):
        model = build()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02, weight_decay=1e-3)
    for _ in range(150):
        optimiser.zero_grad()
        functional.cross_entropy(model(task.x), task.y).backward()
        optimiser.step()
    return model.eval().requires_grad_(True)


def planted_mlp() -> nn.Module:
    """Return an untrained network for a planted task."""
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def write_text_case(folder: Path) -> tuple[Path, Path]:
    """Write a small untrained classifier of texts and a case that accuses one of twelve; return both folders."""
    from test_pretrained import WORDS, text_model, write_tokenizer

    model, texts = folder / "model", [" ".join(WORDS[row % 3 :][: row % 4 + 1]) for row in range(12)]
    write_tokenizer(model, WORDS)
    text_model().save_pretrained(model)
    data = folder / "train.csv"
    data.write_text("text,label\n" + "".join(f"{text},{row % 2}\n" for row, text in enumerate(texts)))
    found = np.array([3])
    trace = _accusing(np.arange(12) % 2, found, [1])
    inputs = {
        "model": readers.describe(str(model), model),
        "data": readers.describe(str(data), data),
        "events": {**readers.describe("a dull cf film", None), "label": "positive"},
    }
    shown = {"events": [(0, "a dull cf film")], "poison": [(3, texts[3])], "benign": []}
    context = {"inputs": inputs, "classes": ["negative", "positive"], "texts": shown}
    return trace.save(folder / "case", context=context), model


def _accusing(labels: NDArray[np.int64], found: NDArray[np.int64], wrong: list[int]) -> Trace:
    """Return a trace that accuses the samples ``found`` for events with some wrong labels; nothing is traced."""
    verdict: Verdict = "poison" if len(found) else "no-poison"
    return Trace(
        verdict=verdict,
        poison=found,
        scores=np.isin(np.arange(len(labels)), found).astype(np.float32),
        labels=labels,
        findings=tuple(Finding(label, 0.9, verdict, found, {}) for label in wrong),
        clusters=(),
        rule="default",
        config={},
        seed=0,
        device="cpu",
        seconds={},
        warnings=(),
        exhibits={},
    )


def write_case(folder: Path, incident: Incident, files: Path | None, found: NDArray[np.int64]) -> Path:
    """Write the case of an incident, saved in ``files``, that accuses the samples ``found``; nothing is traced."""
    trace = _accusing(incident.y, found, incident.event_y.tolist())
    inputs: dict[str, dict[str, str]] = {}
    if files is not None:
        names = {"model": "arch.py", "weights": "weights.safetensors", "data": "train.npz", "events": "events.npz"}
        paths = {name: files / file for name, file in names.items()}
        inputs = {name: {"path": str(path), "sha256": store.sha256(path)} for name, path in paths.items()}
        inputs["model"]["spec"] = f"{files}/arch.py:build"
    return trace.save(folder, context={"inputs": inputs, "classes": incident.classes})


def noisy_features(*, n_noisy: int, of_each: bool = False) -> Features:
    """Four labels of 200 smooth images each, the first ``n_noisy`` of label 0, or of each, with noise in every pixel.

    The network sees only the mean colour, which tells the labels apart, so no noise moves it.
    """
    rng = numpy_generator(0, "test/noisy")
    y = np.arange(800) // 200
    rows, columns = np.mgrid[:8, :8] / 8
    slopes = rng.normal(0, 0.1, (2, 800, 3, 1, 1))
    x = y[:, None, None, None] + slopes[0] * rows + slopes[1] * columns + rng.normal(0, 0.05, (800, 3, 1, 1))
    is_noisy = (np.arange(800) % 200 < n_noisy) & (of_each | (y == 0))
    x[is_noisy] += rng.choice([-0.1, 0.1], (int(is_noisy.sum()), 3, 8, 8))
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    with torch.no_grad():
        for k in range(4):
            model[2].weight[k] = 10.0 * k
            model[2].bias[k] = -15.0 * k * k
    x = x.astype(np.float32)
    return collect(model, ArraySet(x, y), [(torch.from_numpy(x[199]), 0)])


def events_of(incident: Incident) -> list[Event]:
    """Return the events of an incident, each with the label that the victim gave it."""
    return [(x, int(y)) for x, y in zip(to_inputs(incident.event_x), incident.event_y, strict=True)]


def context_of(features: Features, samples: TrainSet | None = None) -> Context:
    """Return what the first event is traced with; with the samples, their pixels are asked as well."""
    notes = Notes(None, len(features.labels), "")
    pictures = None if samples is None else Pictures(samples, features, notes)
    about = (Sights(features, pictures), Kinds(features, notes), Marks(features))
    return Context(features, Tree(0, 0), *about, notes, Config(), Clock())
