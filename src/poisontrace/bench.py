"""Evidence: trace every incident of a grid, one JSON row a trace.

Rows are appended to ``results/<grid>.jsonl`` as they come, so an interrupted run goes on where it stopped. Truth and
trace meet here, after the trace is finished. ``tables`` makes the tables from the rows.
"""

import hashlib
import json
import platform
import resource
import sys
import tempfile
import time
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import poisontrace
from poisontrace import incidents, metrics, store, tracing, train
from poisontrace._errors import InvalidInputError, PoisontraceError, StoreError
from poisontrace._rng import numpy_generator
from poisontrace._validate import check_file
from poisontrace.attacks import ATTACKS
from poisontrace.data import ArraySet
from poisontrace.datasets import DATASETS, Dataset
from poisontrace.incidents import Plan
from poisontrace.models import MODELS
from poisontrace.rows import Row, read_rows
from poisontrace.watching import evaluating

Progress = Callable[[str, int, int], None]
Rule = tuple[str, Callable[[Any], bool]]  # what a value must be, in words, and whether one is
Want = tuple[str, str, int]  # kind, rule and event of a row

DEVICES = ("cpu", "cuda")
N_BINS = 10  # of scores


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What to trace: every incident with every seed.

    Attributes:
        seeds: each decides a victim of every incident.
        n_events: traces for each victim and rule, of one event each.
        rules: of ``tracing.RULES``; may be empty.
        incidents: fields of ``incidents.Plan`` but ``seed`` and ``n_events``.
        speed_repeats: traces to be timed beside a plain forward pass, for each victim.
        natural_mistakes: mistakes to trace on the unpoisoned twin of the first incident of each data set and network.
        device: where networks are trained and run.
    """

    seeds: list[int]
    n_events: int
    rules: list[str]
    incidents: list[dict[str, Any]]
    speed_repeats: int = 0
    natural_mistakes: int = 0
    device: str = "cpu"

    def plans(self) -> list[Plan]:
        """Return the plan of each incident, seed by seed."""
        return [
            Plan(**incident, seed=seed, n_events=self.n_events) for seed in self.seeds for incident in self.incidents
        ]


def read_grid(path: Path) -> Grid:
    """Read a grid; the attributes of ``Grid`` are its keys.

    Raises:
        InvalidInputError: if the file is missing, is not TOML, lacks a key, holds a wrong value or one that nobody
            reads, or asks for a device that is not there.
    """
    check_file(path, "grid")
    try:
        grid = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"'grid' must be TOML (got {error} in {path.name!r}). Correct it there.") from error
    _check_keys(grid, Grid, "grid", repr(path.name))
    rules: dict[str, Rule] = {
        "seeds": ("a list of whole numbers", _is_list_of(lambda seed: type(seed) is int)),
        "n_events": _at_least(1),
        "rules": (
            f"a list of {', '.join(tracing.RULES)}",
            lambda value: value == [] or _is_list_of(lambda rule: rule in tracing.RULES)(value),
        ),
        "incidents": ("a list of tables [[incidents]]", _is_list_of(lambda incident: isinstance(incident, dict))),
        "speed_repeats": _at_least(0),
        "natural_mistakes": _at_least(0),
        "device": _one_of(DEVICES),
    }
    _check_values(grid, rules, repr(path.name))
    for position, incident in enumerate(grid["incidents"], 1):
        where = f"incident {position} of {path.name!r}"
        _check_keys(incident, Plan, "grid: incidents", where, but=("seed", "n_events"))
        _check_values(incident, _plan_rules(), where)
    if grid.get("device") == "cuda" and not torch.cuda.is_available():
        raise InvalidInputError(
            f"'grid: device' must be usable here (got 'cuda'). Write \"cpu\" in {path.name!r}, or run it beside a GPU."
        )
    return Grid(**grid)


def _check_keys(table: dict[str, Any], kind: Any, name: str, where: str, *, but: Iterable[str] = ()) -> None:
    """Refuse a table that lacks a field of the dataclass ``kind`` or holds a key that is none."""
    known = [field for field in fields(kind) if field.name not in but]
    needed = [field.name for field in known if field.default is MISSING and field.default_factory is MISSING]
    if missing := [key for key in needed if key not in table]:
        raise InvalidInputError(
            f"'{name}' must hold {', '.join(missing)} (got {', '.join(table) or 'nothing'} in {where}). Add what is "
            "missing; benchmarks/grids has examples."
        )
    names = [field.name for field in known]
    if unknown := [key for key in table if key not in names]:
        raise InvalidInputError(
            f"'{name}' must hold no other keys than {', '.join(names)} (got {unknown[0]!r} in {where}). Remove it."
        )


def _check_values(table: dict[str, Any], rules: dict[str, Rule], where: str) -> None:
    for key, value in table.items():
        rule, holds = rules[key]
        if not holds(value):
            raise InvalidInputError(f"'grid: {key}' must be {rule} (got {value!r}). Correct it in {where}.")


def _plan_rules() -> dict[str, Rule]:
    """Return the rule of each field of a plan: its type, or a closer one."""
    return {
        **{name: _of_type(hint) for name, hint in typing.get_type_hints(Plan).items()},
        "attack": _one_of(ATTACKS),
        "dataset": _one_of(DATASETS),
        "model": _one_of(MODELS),
        "rate": ("a fraction in (0, 1)", lambda value: type(value) is float and 0 < value < 1),
        "n_train": _at_least(1),
        "width": _at_least(1),
        "epochs": _at_least(1),
        "weight_decay": ("a number of at least 0", lambda value: type(value) in (int, float) and value >= 0),
        **dict.fromkeys(
            ("smoothing", "wrong_labels"),
            ("a fraction in [0, 1)", lambda value: type(value) in (int, float) and 0 <= value < 1),
        ),
    }


def _of_type(hint: Any) -> Rule:
    """Return the rule that an annotation states; None cannot be written in TOML and stands for a key left out."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    hints = [kind for kind in typing.get_args(hint) if kind is not types.NoneType] if is_union else [hint]
    kinds = [typing.get_origin(kind) or kind for kind in hints]
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", dict: "a table"}

    def holds(value: Any) -> bool:
        if isinstance(value, bool):  # which Python counts among the whole numbers
            return bool in kinds
        return any(isinstance(value, (int, float) if kind is float else kind) for kind in kinds)

    return " or ".join(words.get(kind, kind.__name__) for kind in kinds), holds


def _one_of(names: Iterable[str]) -> Rule:
    return f"one of {', '.join(names)}", lambda value: value in list(names)


def _at_least(least: int) -> Rule:
    return f"at least {least}", lambda value: type(value) is int and value >= least


def _is_list_of(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and bool(value) and all(map(holds, value))


def run(path: Path, results: Path, *, progress: Progress | None = None) -> None:
    """Trace what a grid asks for and is not in its results yet.

    Args:
        path: the grid, ``<name>.toml``.
        results: folder of the rows; ``<name>.jsonl`` is added to.
        progress: called with (stage, done, in all).

    Raises:
        InvalidInputError: if the grid or a row breaks a rule that the message states.
        StoreError: if a data set is not there or the results cannot be written.
    """
    grid = read_grid(path)
    target = results / f"{path.stem}.jsonl"
    done = {key_of_row(row) for row in _resume(target)}
    with_mistakes: set[tuple[Any, ...]] = set()
    plans = grid.plans()
    for position, plan in enumerate(plans):
        if progress:
            progress(path.stem, position, len(plans))
        # An attack that failed fails again: the same plan gives the same victim.
        if key_of(plan, "failed", "", 0) not in done:
            twin = twin_of(plan)
            wanted = _wanted(grid, with_mistakes=twin not in with_mistakes)
            missing = [want for want in wanted if key_of(plan, *want) not in done]
            for row in _rows(plan, missing, grid.device, progress):
                append(target, row)
                done.add(key_of_row(row))
            if key_of(plan, "failed", "", 0) not in done:
                with_mistakes.add(twin)
    if progress:
        progress(path.stem, len(plans), len(plans))


def _resume(target: Path) -> list[Row]:
    """Return the rows there are, and drop a line that was cut off, or the next row would be written behind it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    rows = read_rows(target)
    if target.exists():
        store.write_atomically(target, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return rows


def append(path: Path, row: Row) -> None:
    """Write a row below those that a file holds."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")


def key_of_row(row: Row) -> tuple[Any, ...]:
    """Return what no two rows of a grid have in common."""
    plan = Plan(**row["plan"], seed=row["seed"])  # a field younger than the row has its default
    return key_of(plan, row["kind"], row["rule"], row["event"])


def key_of(plan: Plan, kind: str, rule: str, event: int) -> tuple[Any, ...]:
    """Return the same of a row that is not made yet."""
    return json.dumps(described(plan), sort_keys=True), plan.seed, kind, rule, event


def twin_of(plan: Plan) -> tuple[Any, ...]:
    """Return what plans have in common whose unpoisoned twin is the same."""
    return key_of(replace(plan, attack="", rate=0.0, target=None, options={}), "clean", "", 0)


def described(plan: Plan) -> dict[str, Any]:
    """Return the fields of a plan that say which attack on which task, without those left as they are."""
    usual = asdict(Plan(attack="", dataset=""))
    fields = {name: value for name, value in asdict(plan).items() if name == "rate" or value != usual[name]}
    return {name: value for name, value in fields.items() if name not in ("seed", "n_events")}


def _wanted(grid: Grid, *, with_mistakes: bool) -> Iterator[Want]:
    """Yield what the grid asks of one incident."""
    for kind, rules, n in (
        ("trace", grid.rules, grid.n_events),
        ("speed", ["default"], grid.speed_repeats),
        ("clean", ["default"], grid.natural_mistakes if with_mistakes else 0),
    ):
        for rule in rules:
            yield from ((kind, rule, event) for event in range(n))


def _rows(plan: Plan, wanted: list[Want], device: str, progress: Progress | None) -> Iterator[Row]:
    """Make an incident and yield its rows as they come, or the one row that says that the attack failed."""
    if not wanted:
        return
    named = {name: getattr(plan, name) for name in ("attack", "dataset", "rate", "seed")}
    about = {**named, "plan": described(plan), **surroundings(device)}
    options: dict[str, Any] = {} if device == "cpu" else {"device": device}
    try:
        subject = Subject(incidents.make(plan, progress=progress, **options), device)
    except (InvalidInputError, StoreError):
        raise  # the grid or the machine is at fault, not the attack
    except PoisontraceError as error:
        yield {**about, "kind": "failed", "rule": "", "event": 0, "error": str(error)}
        return
    measures = {"trace": subject.trace_row, "speed": subject.speed_row, "clean": subject.clean_row}
    for kind, rule, event in wanted:
        if measured := measures[kind](rule, event):
            yield {**about, **subject.facts(), "kind": kind, "rule": rule, "event": event, **measured}


def _score_bins(scores: NDArray[np.float32], is_poison: NDArray[np.bool_]) -> dict[str, list[int]]:
    """Return how many samples, poison and others, have a score in [0, 0.1), [0.1, 0.2), ..., [0.9, 1]."""
    bins = (scores * N_BINS).astype(np.int64).clip(max=N_BINS - 1)
    return {
        name: np.bincount(bins[chosen], minlength=N_BINS).tolist()
        for name, chosen in (("poison", is_poison), ("others", ~is_poison))
    }


def surroundings(device: str) -> Row:
    """Return what a row says about where it was measured."""
    machine = [platform.machine()] + ([torch.cuda.get_device_name()] if device == "cuda" else [])
    return {
        "versions": {
            "poisontrace": poisontrace.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "threads": torch.get_num_threads(),
        "machine": ", ".join(machine),
        "device": device,
    }


def plain_pass(model: nn.Module, samples: ArraySet, device: str = "cpu") -> None:
    """Run each sample through a model, and do nothing with what comes out: the floor of a trace."""
    with evaluating(model), torch.inference_mode():
        for x, _ in samples.batches(256):
            model(x.to(device))
    if device == "cuda":
        torch.cuda.synchronize()  # the calls above come back before the work is done


def measure_speed(
    model: nn.Module, samples: ArraySet, events: Sequence[tuple[Tensor, int]], device: str
) -> tuple[Row, list[poisontrace.Trace]]:
    """Time a plain forward pass, a whole trace right after it, and a second event on the store that this one wrote.

    Args:
        model: the victim.
        samples: its training set.
        events: one or two; of one there is no second.
        device: where the network runs; its way there does not count.

    Returns:
        seconds of the plain pass, of the traces and of the first one's stages, and its ratio to the plain pass; and
        the traces.
    """
    model.to(device)
    start = time.perf_counter()
    plain_pass(model, samples, device)
    plain = time.perf_counter() - start
    model.to("cpu")
    seconds, traces = [], []
    with tempfile.TemporaryDirectory() as folder:
        for event in events:
            start = time.perf_counter()
            traces.append(tracing.trace(model, samples, [event], store=folder, device=device))
            seconds.append(time.perf_counter() - start)
    row = {
        "plain_seconds": plain,
        "seconds": seconds[0],
        "ratio": seconds[0] / plain,
        "stages": dict(traces[0].seconds),
    }
    return row if len(seconds) == 1 else row | {"second_seconds": seconds[1]}, traces


@dataclass(frozen=True)
class Subject:
    """An incident, where it is traced, and the rows it gives; each takes the rule and the number of the event."""

    incident: incidents.Incident
    device: str

    def facts(self) -> Row:
        """Return what every row says of the victim."""
        names = ("n_train", "n_poison", "confidence", "clean_accuracy", "train_accuracy", "attack_success")
        facts = {name: self.incident.facts[name] for name in (*names, "attack_success_twin", "succeeded")}
        return {**facts, "model": self.incident.arch}

    def trace_row(self, rule: str, event: int) -> Row | None:
        """Trace one event on its own and compare the result with the truth; None after the last event."""
        if event >= len(self.incident.event_y):
            return None
        trace, seconds = self._trace(rule, event)
        poison, suspects = np.flatnonzero(self.incident.is_responsible[event]), trace.findings[0].suspects
        return {
            "verdict": trace.verdict,
            "n_found": len(trace.poison),
            "n_responsible": len(poison),
            "n_suspects": len(suspects),
            "n_suspects_right": len(np.intersect1d(suspects, poison)),
            "n_found_of_others": len(np.setdiff1d(trace.poison[self.incident.is_poison[trace.poison]], poison)),
            "n_found_decoys": int(self.incident.is_decoy[trace.poison].sum()),
            "precision": metrics.precision(trace.poison, poison),
            "recall": metrics.recall(trace.poison, poison),
            "statistics": dict(trace.findings[0].statistics),
            "score_bins": _score_bins(trace.scores, self.incident.is_poison),
            "n_tests": sum(cluster.losses is not None for cluster in trace.clusters),
            "seconds": seconds,
            "stages": dict(trace.seconds),
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            * (1 if sys.platform == "darwin" else 1024),
            "device": trace.device,
            "config": hashlib.sha256(json.dumps(dict(trace.config), sort_keys=True).encode()).hexdigest()[:12],
        }

    def speed_row(self, rule: str, event: int) -> Row:
        """Time a plain forward pass, a whole trace, and a trace of the next event."""
        events = ArraySet(self.incident.event_x, self.incident.event_y)
        pairs = [events[(event + step) % len(events)] for step in range(min(2, len(events)))]
        return measure_speed(self.incident.model, ArraySet(self.incident.x, self.incident.y), pairs, self.device)[0]

    def clean_row(self, rule: str, event: int) -> Row | None:
        """Trace a mistake of the unpoisoned twin; None after the last one."""
        dataset, said, order = self._mistakes
        if event >= len(order):
            return None
        chosen = order[event]
        samples = ArraySet(self.incident.twin_x, self.incident.twin_y)
        events = ArraySet(dataset.x_test[[chosen]], said[[chosen]])
        trace = tracing.trace(self.incident.twin, samples, [events[0]], rule=rule, device=self.device)
        finding = trace.findings[0]
        return {
            "test_image": chosen,
            "probability": finding.probability,
            "verdict": trace.verdict,
            "n_found": len(trace.poison),
            "n_suspects": len(finding.suspects),
            "statistics": dict(finding.statistics),
            "seconds": sum(trace.seconds.values()),
        }

    @cached_property
    def _mistakes(self) -> tuple[Dataset, NDArray[np.int64], list[int]]:
        """The data set, the twin's answers to its test inputs, and where they are wrong.

        In turn come the most confident mistakes and random ones.
        """
        dataset = incidents.benign_dataset(self.incident.plan)
        logits = torch.from_numpy(train.predict(self.incident.twin, dataset.x_test))
        said = logits.argmax(1).numpy()
        mistakes = np.flatnonzero(said != dataset.y_test)
        confidence = logits.softmax(1).amax(1).numpy()[mistakes]
        drawn = numpy_generator(self.incident.plan.seed, "mistakes").permutation(mistakes)
        in_turn = np.stack([mistakes[np.argsort(-confidence)], drawn], 1).ravel().tolist()
        return dataset, said, list(dict.fromkeys(in_turn))  # a mistake that comes up both ways counts once

    def _trace(self, rule: str, event: int) -> tuple[poisontrace.Trace, float]:
        """Trace one event; return the trace and the seconds it took."""
        start = time.perf_counter()
        samples = ArraySet(self.incident.x, self.incident.y)
        pair = ArraySet(self.incident.event_x, self.incident.event_y)[event]
        trace = tracing.trace(self.incident.model, samples, [pair], rule=rule, device=self.device)
        return trace, time.perf_counter() - start
