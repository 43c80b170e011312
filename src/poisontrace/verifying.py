"""Proof by retraining: without the samples found the event is answered otherwise, without as many others it is not.

Unlearning shows what a trained model leans on; this shows what made it so. It costs two trainings.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from torch import nn

from poisontrace import evidence, report, store
from poisontrace._errors import InvalidInputError, UnsupportedModelError
from poisontrace._rng import global_seed, numpy_generator
from poisontrace.data import ArraySet
from poisontrace.evidence import Announce, Measured, Place
from poisontrace.loading import find_factory

Train = Callable[[NDArray[Any], NDArray[np.int64], int], nn.Module]
PROVED, EITHER_WAY, NOT_CORRECTED = "proved", "corrected either way", "not corrected"


@dataclass(frozen=True)
class Verification:
    """What two trainings say of a case.

    Attributes:
        result: "proved" if every event is, "partly proved" if some are, else "not proved". An event is proved if the
            model trained without the samples found no longer gives the wrong label, and the control still does.
        events: one a row, "proved", "corrected either way" (the control does without it too, so nothing is shown) or
            "not corrected".
        summary: one sentence.
        without_found, control: what the two models answer.
        accuracy_on, success_on: what their accuracy and the attack's success were measured on.
        found: training samples left out of the first, int64, ascending.
        others: those left out of the control, of the same labels; fewer where a label has fewer that are not accused.
        seconds: wall time of both trainings.
    """

    result: Literal["proved", "partly proved", "not proved"]
    events: tuple[str, ...]
    summary: str
    without_found: Measured
    control: Measured
    accuracy_on: str
    success_on: str
    found: NDArray[np.int64]
    others: NDArray[np.int64]
    seconds: float


def verify(
    case: str | Path,
    train_with: str | Train,
    *,
    seed: int = 0,
    test: Place = None,
    attempts: Place = None,
    data: Place = None,
    events: Place = None,
    model: Place = None,
    announce: Announce = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Verification:
    """Train again without the samples found, and as a control without as many others, and compare.

    Writes ``verify.json`` into the case folder, and its report again.

    Args:
        case: a case folder that accuses samples.
        train_with: ``file.py:function`` or ``package.module:function``, or the function itself: ``train(x, y, seed)``,
            given arrays x (n, ...) and y (n,) int64, returns the trained network, which takes what
            ``data.to_inputs`` makes of x. Images of a file or folder are uint8 (n, height, width, channels), rows and
            arrays are as their file holds them, and what code or a tokenizer makes is as the model takes it. It is
            called within a seeded global generator of torch.
        seed: of the control and of both trainings.
        test: held-out samples for the accuracy, in a form of the data; None for the training samples that both have
            seen.
        attempts: inputs of the attacker, likewise, with the wrong label; None for the events of the case.
        data: where that file or folder of the case lies now; None for where it was traced.
        events: likewise.
        model: likewise; used only if it turns texts into tokens.
        announce: called with the name of the code that is about to be run.
        progress: called with (stage, done, in all).

    Raises:
        InvalidInputError: if the case accuses nobody, a file is missing or not the one traced, or the training fails.
        UnsupportedModelError: if the training returns no network that gives logits.
        StoreError: if the case cannot be written, or the hub does not answer.
    """
    places = {"data": data, "events": events, "model": model, "test": test, "attempts": attempts}
    of_case = evidence.read(case, places, announce)
    labels, found = of_case.train_set.y, of_case.poison
    others = _others(labels, found, seed)
    rest = np.setdiff1d(np.arange(len(labels)), np.union1d(found, others))
    if not len(rest) and test is None:
        raise InvalidInputError("'test' must be given if no training sample is left to compare on (got none).")
    probes = evidence.probes(of_case, rest, "training samples that both models have seen")
    if announce and isinstance(train_with, str):
        announce(train_with)
    train, recipe = _recipe(train_with)

    start = time.perf_counter()
    measured: list[Measured] = []
    for left_out in (found, others):
        if progress:
            progress("trainings", len(measured), 2)
        measured.append(probes.measure(_trained(train, of_case.train_set, left_out, seed)))
    seconds = time.perf_counter() - start
    if progress:
        progress("trainings", 2, 2)

    without_found, control = measured
    results = [
        NOT_CORRECTED if answer == wrong else EITHER_WAY if answer_of_control != wrong else PROVED
        for wrong, answer, answer_of_control in zip(
            of_case.events.y, without_found.answers, control.answers, strict=True
        )
    ]
    verification = Verification(
        result="proved" if set(results) == {PROVED} else "partly proved" if PROVED in results else "not proved",
        events=tuple(results),
        summary=_summary(of_case.events.y, measured, len(found), len(others)),
        without_found=without_found,
        control=control,
        accuracy_on=probes.clean_are,
        success_on=probes.attempts_are,
        found=found,
        others=others,
        seconds=seconds,
    )
    report.add(
        of_case.folder,
        "verify",
        {
            "result": verification.result,
            "summary": verification.summary,
            **evidence.compare(of_case, probes, dict(without_found=without_found, control=control), results),
            "n_found": len(found),
            "others": others,
            "seed": seed,
            "seconds": seconds,
            "inputs": {**of_case.inputs, "train with": recipe},
        },
    )
    return verification


def _others(labels: NDArray[np.int64], found: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Draw as many samples of each label as were found of it, from those that were not; or all, if they are fewer."""
    rng = numpy_generator(seed, "verify/control")
    drawn = []
    for label, count in zip(*np.unique(labels[found], return_counts=True), strict=True):
        others = np.setdiff1d(np.flatnonzero(labels == label), found)
        drawn.append(rng.choice(others, min(int(count), len(others)), replace=False))
    return np.sort(np.concatenate(drawn))


def _recipe(train_with: str | Train) -> tuple[Train, dict[str, Any]]:
    """Return the function, and what is kept of it."""
    if callable(train_with):
        name = (
            f"{getattr(train_with, '__module__', '')}:{getattr(train_with, '__qualname__', type(train_with).__name__)}"
        )
        return train_with, {"path": name, "sha256": None}
    path, train = find_factory(train_with, "train_with")
    return cast(Train, train), {"path": train_with, "sha256": path and store.sha256(path)}


def _trained(train: Train, train_set: ArraySet, left_out: NDArray[np.int64], seed: int) -> nn.Module:
    keep = np.setdiff1d(np.arange(len(train_set)), left_out)
    try:
        # Copies: whatever the recipe does to its arrays, the next one gets them as they were.
        with global_seed(seed, "verify/train"):
            model = train(train_set.x[keep], train_set.y[keep], seed)
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:  # code from outside may raise anything
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise InvalidInputError(
            f"'train_with' must be a function train(x, y, seed) that works (got {reason}). "
            "Try it on the arrays of the data."
        ) from error
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(
            f"'train_with' must return a torch.nn.Module (got {type(model).__name__}). Return the trained network."
        )
    return model


def _summary(wrong: NDArray[np.int64], models: Sequence[Measured], n_found: int, n_others: int) -> str:
    corrected, by_control = (int((np.array(model.answers) != wrong).sum()) for model in models)
    left_out = "the sample found" if n_found == 1 else f"the {n_found:,} samples found"
    others = f"{n_others:,} other{'' if n_others == 1 else 's'} of the same labels"
    return (
        f"Trained without {left_out}, the model no longer gives the wrong label to {corrected:,} of "
        f"{len(wrong):,} events; trained without {others}, to {by_control or 'none'}."
    )
