"""The evidence of a case, found again: each file is where the case or the caller says, and the same to the bit.

Here is also how two models are compared on it, for ``verifying`` and ``repairing``. Truth is not evidence: of a
practice incident, ``truth.json`` is never read.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from poisontrace import filing, hub, readers, report, store
from poisontrace._errors import InvalidInputError, StoreError
from poisontrace._validate import check_label_range
from poisontrace.data import ArraySet
from poisontrace.pretrained import ModelFolder
from poisontrace.watching import run

BATCH_SIZE = 256

Place = str | Path | None
Announce = Callable[[str], None] | None


@dataclass(frozen=True)
class Evidence:
    """What a case rests on.

    Attributes:
        folder: the case.
        case: content of its ``trace.json``.
        poison: the responsible samples, int64, ascending; at least one.
        train_set, events: as they were traced; an event's label is the wrong one that the model gave it.
        test: held-out clean samples, if there are any.
        attempts: inputs of the attacker with the wrong labels, if there are any.
        inputs: ``path`` and ``sha256`` of each file used, by name.
    """

    folder: Path
    case: dict[str, Any]
    poison: NDArray[np.int64]
    train_set: ArraySet
    events: ArraySet
    test: ArraySet | None
    attempts: ArraySet | None
    inputs: dict[str, dict[str, Any]]

    def name_of(self, label: int) -> str:
        """Return what a label is called."""
        return filing.class_name(self.case["classes"], label)


@dataclass(frozen=True)
class Measured:
    """What one model answers.

    Attributes:
        answers: label of each event, (m,).
        probabilities: its belief in each event's wrong label, (m,), in [0, 1].
        accuracy: share of clean samples answered with their label, in [0, 1].
        success: share of the attacker's inputs answered with the wrong label, in [0, 1].
    """

    answers: tuple[int, ...]
    probabilities: tuple[float, ...]
    accuracy: float
    success: float


@dataclass(frozen=True)
class Probes:
    """What models are compared on.

    Attributes:
        events: misclassified inputs with their wrong labels.
        clean, clean_are: samples with their own labels, and what they are, in words.
        attempts, attempts_are: inputs with the wrong labels that an attacker wants for them, and what they are.
    """

    events: ArraySet
    clean: ArraySet
    clean_are: str
    attempts: ArraySet
    attempts_are: str

    def measure(self, model: nn.Module) -> Measured:
        """Return what a model answers; it is put into eval mode and onto the CPU.

        Raises:
            InvalidInputError, UnsupportedModelError: if its outputs are no logits for these samples.
        """
        model.cpu().eval()
        logits = _logits(model, self.events, "events")
        check_label_range(self.events.y, "events: y", logits.shape[1])
        wrong = logits.softmax(1)[torch.arange(len(logits)), torch.from_numpy(self.events.y)]
        shares = [
            float((_logits(model, samples, name).argmax(1).numpy() == samples.y).mean())
            for samples, name in ((self.clean, "test"), (self.attempts, "attempts"))
        ]
        return Measured(tuple(logits.argmax(1).tolist()), tuple(wrong.tolist()), *shares)


def read(folder: str | Path, places: Mapping[str, Place], announce: Announce = None) -> Evidence:
    """Read a case that found poison, its training set and events, and what else models are to be compared on.

    Everything is held in memory. Where the model takes texts, they are turned into tokens as for the trace.

    Args:
        folder: the case.
        places: where ``data``, ``events`` and ``model`` lie now, None where the case says it; and ``test`` and
            ``attempts``, in a form of the data, None where there are none.
        announce: called with the name of code that is about to be run.

    Raises:
        InvalidInputError: if the case is broken or accuses no sample, or a file is missing or not the one traced.
        StoreError: if a file lies on the hub, which does not answer.
    """
    folder = Path(folder)
    try:
        case, ids = filing.read_case(folder)
        report.render(folder)  # what is broken is refused now, not after a training
    except StoreError as error:
        raise InvalidInputError(str(error)) from error  # the folder named is at fault
    if not isinstance(case.get("classes"), list):
        raise InvalidInputError(
            f"'case' must hold a trace.json as poisontrace wrote it (got no classes). {filing.WAY_OUT}"
        )
    if not ids:
        raise InvalidInputError(
            f"'case' must be one that accuses samples (got the verdict {case.get('verdict')!r}). "
            "No sample was found responsible, so there is nothing to leave out or to unlearn."
        )
    names = ["data", "events", *(name for name in ("test", "attempts") if places.get(name) is not None)]
    if case.get("texts"):
        names.append("model")
    found = {name: find(case, folder, name, places.get(name)) for name in names}
    inputs = {name: kept for name, (_, kept) in found.items()}
    tokenize = ModelFolder(Path(found["model"][0])).tokenizer() if "model" in found else None
    label = inputs["events"].get("label")
    label_column, source_column = (
        column if isinstance(column := inputs["data"].get(key), str) else None
        for key in ("label_column", "source_column")
    )

    def samples(name: str, like: readers.Samples | None = None) -> readers.Samples:
        spec = found[name][0]
        if readers.is_factory(spec) and announce:
            announce(spec)
        classes = tuple(map(str, case["classes"])) or None
        return readers.read(
            spec,
            name,
            classes=classes,
            label_column=label_column,
            source_column=source_column if name == "data" else None,
            tokenize=tokenize,
            like=like,
        )[0]

    source = samples("data")
    others: dict[str, ArraySet] = {}
    for name in names[1:]:
        if name == "model":
            continue
        if name == "events" and isinstance(label, str):
            other, _ = readers.read_event(found[name][0], label, source, tokenize=tokenize)
        else:
            other = samples(name, source)
        readers.check_same_form(other, source, name)
        others[name] = readers.as_arrays(other)
    train_set = readers.as_arrays(source)
    poison = np.array(sorted(ids), np.int64)
    if len(train_set) != case.get("n_samples") or not 0 <= poison[0] <= poison[-1] < len(train_set):
        raise InvalidInputError(
            f"'data' must be the training set of the case (got {len(train_set)} samples for {case.get('n_samples')!r}, "
            f"accused up to index {poison[-1]}). Name it with --data."
        )
    if len(poison) == len(train_set):
        raise InvalidInputError(
            f"'case' must leave samples that are not accused (got all {len(poison)}). There is nothing to train on."
        )
    return Evidence(
        folder, case, poison, train_set, others["events"], others.get("test"), others.get("attempts"), inputs
    )


def find(case: Mapping[str, Any], folder: Path, name: str, place: Place) -> tuple[str, dict[str, Any]]:
    """Find what was traced, a file, a folder or code, and make sure that it is the same.

    A case of a trace that was started from Python may name no files; then there is no SHA-256 to check.

    Args:
        case: content of ``trace.json``.
        folder: where that is.
        name: of the input.
        place: where it lies now, which may be on the hub; None for where it was.

    Returns:
        how to name it to ``readers``, and what the case says of it, with its place and SHA-256 as they are now.

    Raises:
        InvalidInputError: if it is missing or another one, or code that the case brings along.
        StoreError: if it lies on the hub, which does not answer.
    """
    inputs = case.get("inputs")
    traced = inputs.get(name) if isinstance(inputs, dict) else None
    traced = traced if isinstance(traced, dict) else {}
    spec = traced.get("spec", traced.get("path")) if place is None else str(place)
    if isinstance(spec, str) and hub.is_address(spec):
        # The file that was fetched for the trace; its hash says whether it is still the same.
        spec = traced.get("path") if place is None else str(hub.download(spec, name))
    if not isinstance(spec, str) or not spec:
        raise InvalidInputError(
            f"'{name}' must be named by the case or with --{name} (got neither). Name the file that was traced."
        )
    wanted = traced.get("sha256")
    if place is None and wanted is None and isinstance(traced.get("label"), str):
        return spec, traced  # an event that was given as a text or a line of numbers
    path, is_code = Path(spec), False
    if readers.is_factory(spec) and not path.exists():
        path, is_code = Path(spec.rpartition(":")[0]), True
        is_file = path.suffix == ".py"
        # A case may come from elsewhere: code that it brings along is not run because the case says so.
        home = path if is_file else Path.cwd().joinpath(*str(path).split("."))
        if place is None and home.resolve().is_relative_to(folder.resolve()):
            raise InvalidInputError(
                f"'{name}' must lie outside the case folder (got {str(path)!r}). Read that code, and name it with "
                f"--{name}."
            )
        if not is_file:
            return spec, {"path": spec, "sha256": None}
    if not path.is_file() and not path.is_dir():  # a device would be read for ever, a pipe waited for
        raise InvalidInputError(
            f"'{name}' must be an existing file or folder (got {str(path)!r}). Name its present place with --{name}."
        )
    sha256 = store.sha256(path)
    if wanted is not None and sha256 != wanted:
        raise InvalidInputError(
            f"'{name}' must be the file that was traced, of SHA-256 {str(wanted)[:16]}... (got {sha256[:16]}... in "
            f"{str(path)!r}). Name that file with --{name}, or trace again."
        )
    kept = {**traced, "path": str(path), "sha256": sha256}
    return spec, {**kept, "spec": spec} if is_code else kept


def probes(evidence: Evidence, rest: NDArray[np.int64], rest_is: str) -> Probes:
    """Return what to compare models on: held-out samples and the attacker's inputs, else what the case has.

    Args:
        evidence: of the case.
        rest: training samples in place of held-out ones, never empty.
        rest_is: what they are, in words.
    """
    x, y = evidence.train_set.x, evidence.train_set.y
    clean = evidence.test or ArraySet(x[rest], y[rest])
    tried = evidence.attempts or evidence.events
    return Probes(
        evidence.events,
        clean,
        f"{len(clean):,} {'held-out samples' if evidence.test else rest_is}",
        tried,
        f"{len(tried):,} {'inputs of the attacker' if evidence.attempts else 'events of the case'}",
    )


def compare(
    evidence: Evidence, probes: Probes, models: Mapping[str, Measured], results: Sequence[str]
) -> dict[str, Any]:
    """Return what two models answer, as it is kept in the case.

    Args:
        evidence: of the case.
        probes: what they were asked.
        models: what each answers, by its key in ``filing.ADDED``.
        results: a few words on each event.
    """
    return {
        "accuracy_on": probes.clean_are,
        "success_on": probes.attempts_are,
        "events": [
            {
                "label": int(wrong),
                "label_name": evidence.name_of(int(wrong)),
                "result": result,
                **{
                    key: {
                        "label": measured.answers[row],
                        "label_name": evidence.name_of(measured.answers[row]),
                        "probability": measured.probabilities[row],
                    }
                    for key, measured in models.items()
                },
            }
            for row, (wrong, result) in enumerate(zip(evidence.events.y, results, strict=True))
        ],
        **{key: {"accuracy": measured.accuracy, "success": measured.success} for key, measured in models.items()},
    }


@torch.no_grad()
def _logits(model: nn.Module, samples: ArraySet, name: str) -> torch.Tensor:
    parts = [run(model, x, name) for x, _ in samples.batches(BATCH_SIZE)]
    logits = torch.cat(parts).float()
    if not bool(torch.isfinite(logits).all()):
        raise InvalidInputError(
            f"'{name}' must get finite outputs (got NaN or infinity). Check how the model is trained."
        )
    return logits
