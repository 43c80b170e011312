"""Incidents to practise on: poison a data set, train the victim and its unpoisoned twin, keep events and truth apart.

An incident folder holds what an investigator would have (``train.npz``, ``arch.py``, ``weights.safetensors``,
``events.npz``, ``incident.json``) and, in ``truth.json``, what only a judge may read. The tracer never opens that.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from poisontrace import models, store, train
from poisontrace._errors import InvalidInputError, PoisontraceError, StoreError
from poisontrace._rng import global_seed, numpy_generator
from poisontrace.attacks import ATTACKS, Attack
from poisontrace.data import Dataset, load_dataset

Progress = Callable[[str, int, int], None]

# A CPU trains a victim on so many in minutes; None is all of them.
DEFAULT_N_TRAIN: dict[str, int | None] = {"digits": None, "cifar10": 20_000}
# The network each data set is trained with unless another is named.
DEFAULT_MODEL = {"digits": ("small_cnn", 32), "cifar10": ("resnet9", 16)}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that decides an incident; equal plans give equal incidents."""

    attack: str
    dataset: str
    rate: float = 0.05
    seed: int = 0
    n_train: int | None = None
    n_events: int = 5
    target: int | None = None
    model: str | None = None
    width: int | None = None
    epochs: int | None = None


@dataclass(frozen=True)
class Incident:
    """A made incident: the evidence first, then the truth.

    Attributes:
        x, y: training set as stored, (n, ...) and (n,).
        model: the victim, in eval mode.
        twin: the same network trained on the same samples without poison.
        arch: name and options of ``models.build`` that rebuild it.
        event_x, event_y: misclassified inputs as stored, (m, ...), and the wrong labels the victim gave, (m,).
        is_poison: (n,) bool.
        facts: measured properties of attack and victim.
        plan: what it was made from.
        classes: names of the labels, in order.
    """

    x: NDArray[Any]
    y: NDArray[np.int64]
    model: nn.Module
    twin: nn.Module
    arch: dict[str, Any]
    event_x: NDArray[Any]
    event_y: NDArray[np.int64]
    is_poison: NDArray[np.bool_]
    facts: dict[str, Any]
    plan: Plan
    classes: tuple[str, ...]


def cache_folder() -> Path:
    """Return the folder for trained victims: ``POISONTRACE_CACHE``, else ``~/.cache/poisontrace``."""
    return Path(os.environ.get("POISONTRACE_CACHE", "~/.cache/poisontrace")).expanduser()


def _victim(
    x: NDArray[Any],
    y: NDArray[np.int64],
    arch: dict[str, Any],
    recipe: train.Recipe,
    seed: int,
    progress: Progress | None,
) -> tuple[nn.Module, float]:
    """Train a network, or load it if the same one was trained before; return it with the seconds its training took."""
    described = json.dumps([arch, asdict(recipe), seed, str(x.dtype), x.shape], sort_keys=True)
    digest = hashlib.sha256(described.encode() + np.ascontiguousarray(x).tobytes() + y.tobytes()).hexdigest()[:24]
    weights, seconds = cache_folder() / f"{digest}.safetensors", cache_folder() / f"{digest}.json"
    with global_seed(seed, "victim/init"):
        model, cached = models.build(**arch), models.build(**arch)
    try:
        cached.load_state_dict(load_file(weights))
        return cached.eval(), float(json.loads(seconds.read_text())["seconds"])
    except (FileNotFoundError, SafetensorError, ValueError, KeyError, RuntimeError):
        pass  # not trained yet, a write that was cut off, or a network that has changed since
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"The cache of trained victims must be a folder that can be written (got {error}). "
            "Name another one in POISONTRACE_CACHE."
        ) from error
    taken = train.fit(model, x, y, recipe, seed=seed, progress=progress)
    store.write_atomically(seconds, json.dumps({"seconds": taken, "described": described}).encode())
    partial = weights.with_suffix(f".{os.getpid()}.partial")
    save_file(model.state_dict(), partial)
    partial.replace(weights)
    return model, taken


def benign_dataset(plan: Plan) -> Dataset:
    """Return the data set of a plan as it was before the attack."""
    n_train = DEFAULT_N_TRAIN.get(plan.dataset) if plan.n_train is None else plan.n_train
    return load_dataset(plan.dataset).subset(n_train, plan.seed)


def make(plan: Plan, *, attack: Attack | None = None, progress: Progress | None = None) -> Incident:
    """Make an incident: the victim, the same network trained without poison, and events that the twin gets right.

    Args:
        plan: what to make.
        attack: an attack of your own instead of the registered one named in the plan.
        progress: called with (stage, steps done, steps in all).

    Raises:
        InvalidInputError: if a name or a number in the plan is out of its range.
        PoisontraceError: if the attack moved no single test input, so that there is nothing to trace.
    """
    if attack is None:
        if plan.attack not in ATTACKS:
            raise InvalidInputError(f"'attack' must be one of {', '.join(sorted(ATTACKS))} (got {plan.attack!r}).")
        attack = ATTACKS[plan.attack](rate=plan.rate, target=plan.target, seed=plan.seed)
    if plan.n_events < 1:
        raise InvalidInputError(f"'n_events' must be at least 1 (got {plan.n_events}). Ask for one with --events 1.")
    if plan.width is not None and plan.width < 1:
        raise InvalidInputError(f"'width' must be at least 1 (got {plan.width}). Leave it out for the usual network.")
    if plan.epochs is not None and plan.epochs < 1:
        raise InvalidInputError(f"'epochs' must be at least 1 (got {plan.epochs}). Leave it out for the usual number.")
    dataset = benign_dataset(plan)
    name, width = DEFAULT_MODEL[plan.dataset]
    arch: dict[str, Any] = {"name": plan.model or name, "n_classes": len(dataset.classes), "width": plan.width or width}
    if dataset.x_train.ndim == 4:
        arch["n_channels"] = dataset.x_train.shape[3]
    else:
        arch["n_features"] = dataset.x_train.shape[1]
    recipe = train.RECIPES[plan.dataset]
    if plan.epochs is not None:
        recipe = replace(recipe, epochs=plan.epochs)

    poisoned = attack.poison(dataset.x_train, dataset.y_train)
    victim, seconds = _victim(poisoned.x, poisoned.y, arch, recipe, plan.seed, progress)
    twin, _ = _victim(dataset.x_train, dataset.y_train, arch, recipe, plan.seed, progress)

    is_source = dataset.y_test != poisoned.target
    sources, y_true = dataset.x_test[is_source], dataset.y_test[is_source]
    triggered = attack.trigger(sources)
    says = train.predict(victim, triggered).argmax(1)
    twin_says = train.predict(twin, triggered).argmax(1)
    # An event that the unpoisoned twin gets wrong too would be evasion, not poisoning.
    usable = np.flatnonzero(
        (says == poisoned.target) & (twin_says == y_true) & (train.predict(victim, sources).argmax(1) == y_true)
    )
    facts: dict[str, Any] = {
        "attack": repr(attack),
        "target": poisoned.target,
        "n_train": len(poisoned.x),
        "n_poison": int(poisoned.is_poison.sum()),
        "clean_accuracy": train.accuracy(victim, dataset.x_test, dataset.y_test),
        "train_accuracy": train.accuracy(victim, poisoned.x, poisoned.y),
        "clean_accuracy_twin": train.accuracy(twin, dataset.x_test, dataset.y_test),
        "attack_success": float((says == poisoned.target).mean()),
        "attack_success_twin": float((twin_says == poisoned.target).mean()),
        "n_usable_events": len(usable),
        "victim_seconds": seconds,
    }
    # Our bar for "the attack works": it wins more often than not, and the trigger alone does not.
    facts["succeeded"] = facts["attack_success"] >= 0.5 and facts["attack_success_twin"] <= 0.2
    if len(usable) == 0:
        raise PoisontraceError(
            f"The attack failed: no test input that the model gets right without the trigger is moved by it "
            f"(success {facts['attack_success']:.3f}, without poison {facts['attack_success_twin']:.3f}). "
            "Raise 'rate' or 'epochs'."
        )
    chosen = numpy_generator(plan.seed, "events").permutation(usable)[: plan.n_events]
    facts["event_true_labels"] = y_true[chosen].tolist()
    event_y = np.full(len(chosen), poisoned.target, np.int64)
    return Incident(
        x=poisoned.x,
        y=poisoned.y,
        model=victim,
        twin=twin,
        arch=arch,
        event_x=triggered[chosen],
        event_y=event_y,
        is_poison=poisoned.is_poison,
        facts=facts,
        plan=plan,
        classes=dataset.classes,
    )


def save(incident: Incident, folder: Path) -> None:
    """Write an incident to ``folder``, which must not hold one already.

    Raises:
        InvalidInputError: if the folder exists and is not empty.
        StoreError: if it cannot be written.
    """
    with store.new_folder(folder, "out") as partial:
        np.savez_compressed(partial / "train.npz", x=incident.x, y=incident.y, classes=np.array(incident.classes))
        np.savez_compressed(partial / "events.npz", x=incident.event_x, y=incident.event_y)
        save_file(incident.model.state_dict(), partial / "weights.safetensors")
        options = ", ".join(f"{key}={value!r}" for key, value in incident.arch.items())
        (partial / "arch.py").write_text(
            f'"""The victim\'s architecture."""\n\nfrom poisontrace import models\n\n\n'
            f'def build():\n    """Return the network; its weights lie beside this file."""\n'
            f"    return models.build({options})\n"
        )
        public = {"dataset": incident.plan.dataset, "classes": list(incident.classes)}
        (partial / "incident.json").write_text(json.dumps(public, indent=1) + "\n")
        truth = {
            "note": "For judges only; the tracer never opens this file.",
            "plan": asdict(incident.plan),
            **incident.facts,
            "poison": np.flatnonzero(incident.is_poison).tolist(),
        }
        (partial / "truth.json").write_text(json.dumps(truth, indent=1) + "\n")
