"""Evidence: trace every incident of a grid, one JSON row a trace, and make the tables from the rows.

Rows are appended to ``results/<grid>.jsonl`` as they come, so an interrupted run goes on where it stopped. Truth and
trace meet here, after the trace is finished.
"""

import hashlib
import json
import platform
import re
import resource
import statistics
import sys
import time
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import poisontrace
from poisontrace import incidents, metrics, store, tracing, train
from poisontrace._errors import InvalidInputError, PoisontraceError, StoreError
from poisontrace._rng import numpy_generator
from poisontrace._validate import check_file
from poisontrace.attacks import ATTACKS
from poisontrace.data import ArraySet
from poisontrace.datasets import DATASETS
from poisontrace.embedding import evaluating

Row = dict[str, Any]
Progress = Callable[[str, int, int], None]

MARK = "<!-- generated: {} -->"
TABLES = ("traces", "short", "every", "clean", "speed", "start", "bad-input")


def read_grid(path: Path) -> dict[str, Any]:
    """Read a grid: ``attack``, ``dataset``, ``rates``, ``seeds``, ``n_events``, ``rules``.

    Optional are ``n_train``, ``speed_repeats`` and ``natural_mistakes``.

    Raises:
        InvalidInputError: if the file is missing, is not TOML or lacks a key.
    """
    check_file(path, "grid")
    try:
        grid = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"'grid' must be TOML (got {error} in {path.name!r}). Correct it there.") from error
    keys = ("attack", "dataset", "rates", "seeds", "n_events", "rules")
    if missing := [key for key in keys if key not in grid]:
        raise InvalidInputError(
            f"'grid' must hold {', '.join(missing)} (got {', '.join(grid) or 'nothing'} in {path.name!r}). Add what is "
            "missing; benchmarks/grids has examples."
        )
    rules: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "attack": (f"one of {', '.join(ATTACKS)}", lambda value: value in list(ATTACKS)),
        "dataset": (f"one of {', '.join(DATASETS)}", lambda value: value in list(DATASETS)),
        "rates": ("a list of fractions in (0, 1)", _is_list_of(lambda rate: type(rate) is float and 0 < rate < 1)),
        "seeds": ("a list of whole numbers", _is_list_of(lambda seed: type(seed) is int)),
        "rules": (
            f"a list of {', '.join(tracing.RULES)}",
            lambda value: value == [] or _is_list_of(lambda rule: rule in tracing.RULES)(value),
        ),
        "n_events": ("at least 1", lambda value: type(value) is int and value >= 1),
        "n_train": ("at least 1", lambda value: type(value) is int and value >= 1),
        "speed_repeats": ("at least 0", lambda value: type(value) is int and value >= 0),
        "natural_mistakes": ("at least 0", lambda value: type(value) is int and value >= 0),
    }
    if unknown := [key for key in grid if key not in rules]:
        raise InvalidInputError(
            f"'grid' must hold no other keys than {', '.join(rules)} (got {unknown[0]!r} in {path.name!r}). Remove it."
        )
    for key, value in grid.items():
        rule, holds = rules[key]
        if not holds(value):
            raise InvalidInputError(f"'grid: {key}' must be {rule} (got {value!r}). Correct it in {path.name!r}.")
    return grid


def _is_list_of(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and bool(value) and all(map(holds, value))


def read_rows(path: Path) -> list[Row]:
    """Read the rows of one results file; a last line that was cut off is dropped.

    Raises:
        InvalidInputError: if another line is no row.
    """
    if not path.is_file():
        return []
    rows = []
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or "kind" not in row:
                raise ValueError("another thing")
            rows.append(row)
        except ValueError as error:
            if number < len(lines):
                raise InvalidInputError(
                    f"'results' must hold one JSON row a line (got another thing in line {number} of {path.name!r}). "
                    "Remove the line to have it measured again."
                ) from error
    return rows


def run(path: Path, results: Path, *, progress: Progress | None = None) -> None:
    """Trace what a grid asks for and is not in its results yet.

    Args:
        path: the grid, ``<name>.toml``.
        results: folder of the rows; ``<name>.jsonl`` is added to.
        progress: called with (stage, done, in all).
    """
    grid = read_grid(path)
    results.mkdir(parents=True, exist_ok=True)
    target = results / f"{path.stem}.jsonl"
    rows = read_rows(target)
    if target.exists():  # drops a line that was cut off, or the next row would be written behind it
        store.write_atomically(target, "".join(json.dumps(row) + "\n" for row in rows).encode())
    done = {_key(row) for row in rows}
    plans = [
        incidents.Plan(
            attack=grid["attack"],
            dataset=grid["dataset"],
            rate=rate,
            seed=seed,
            n_train=grid.get("n_train"),
            n_events=grid["n_events"],
        )
        for seed in grid["seeds"]
        for rate in grid["rates"]
    ]
    for position, plan in enumerate(plans):
        wanted = [
            (kind, rule, event)
            for kind, rules, n in (
                ("trace", grid["rules"], grid["n_events"]),
                ("speed", ["default"], grid.get("speed_repeats", 0)),
                ("clean", ["default"] if plan.rate == grid["rates"][0] else [], grid.get("natural_mistakes", 0)),
            )
            for rule in rules
            for event in range(n)
        ]
        asked = (plan.attack, plan.dataset, plan.rate, plan.seed)
        missing = [want for want in wanted if (*asked, *want) not in done]
        # An attack that failed fails again: the same plan gives the same victim.
        if missing and (*asked, "failed", "", 0) not in done:
            try:
                incident = incidents.make(plan, progress=progress)
            except (InvalidInputError, StoreError):
                raise  # the grid or the machine is at fault, not the attack
            except PoisontraceError as error:
                _append(target, {**asdict(plan), "kind": "failed", "rule": "", "event": 0, "error": str(error)})
                continue
            for kind, rule, event in missing:
                if kind == "trace" and event >= len(incident.event_y):
                    continue
                measure = {"trace": _trace_row, "speed": _speed_row, "clean": _clean_row}[kind]
                if measured := measure(incident, rule, event):
                    row = {**_common(incident), "kind": kind, "rule": rule, "event": event}
                    _append(target, row | measured)
        if progress:
            progress(path.stem, position + 1, len(plans))


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("attack", "dataset", "rate", "seed", "kind", "rule", "event"))


def _append(path: Path, row: Row) -> None:
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")


def _common(incident: incidents.Incident) -> Row:
    facts = ("n_train", "n_poison", "clean_accuracy", "train_accuracy", "attack_success", "attack_success_twin")
    plan = asdict(incident.plan)
    return {
        **{name: plan[name] for name in ("attack", "dataset", "rate", "seed")},
        **{name: incident.facts[name] for name in (*facts, "succeeded")},
        "model": incident.arch,
        "versions": {
            "poisontrace": poisontrace.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "threads": torch.get_num_threads(),
    }


def _trace_row(incident: incidents.Incident, rule: str, event: int) -> Row:
    """Trace one event on its own and compare the result with the truth."""
    start = time.perf_counter()
    trace = _trace(incident, rule, event)
    seconds = time.perf_counter() - start
    poison = np.flatnonzero(incident.is_poison)
    return {
        "verdict": trace.verdict,
        "n_found": len(trace.poison),
        "precision": metrics.precision(trace.poison, poison),
        "recall": metrics.recall(trace.poison, poison),
        "statistics": dict(trace.findings[0].statistics),
        "n_tests": sum(cluster.losses is not None for cluster in trace.clusters),
        "seconds": seconds,
        "stages": dict(trace.seconds),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024),
        "device": trace.device,
        "config": hashlib.sha256(json.dumps(dict(trace.config), sort_keys=True).encode()).hexdigest()[:12],
    }


def _speed_row(incident: incidents.Incident, rule: str, repeat: int) -> Row:
    """Time one plain forward pass over the training set and, right after it, one whole trace."""
    samples = ArraySet(incident.x, incident.y)
    start = time.perf_counter()
    with evaluating(incident.model), torch.inference_mode():
        for x, _ in samples.batches(256):
            incident.model(x)
    plain = time.perf_counter() - start
    start = time.perf_counter()
    trace = _trace(incident, rule, repeat % len(incident.event_y))
    seconds = time.perf_counter() - start
    return {"plain_seconds": plain, "seconds": seconds, "ratio": seconds / plain, "stages": dict(trace.seconds)}


def _clean_row(incident: incidents.Incident, rule: str, event: int) -> Row | None:
    """Trace a mistake of the unpoisoned twin, in turn the most confident and random ones; None after the last."""
    dataset = incidents.benign_dataset(incident.plan)
    logits = torch.from_numpy(train.predict(incident.twin, dataset.x_test))
    said = logits.argmax(1).numpy()
    mistakes = np.flatnonzero(said != dataset.y_test)
    confidence = logits.softmax(1).amax(1).numpy()[mistakes]
    drawn = numpy_generator(incident.plan.seed, "mistakes").permutation(mistakes)
    in_turn = np.stack([mistakes[np.argsort(-confidence)], drawn], 1).ravel().tolist()
    order = list(dict.fromkeys(in_turn))  # a mistake that comes up both ways counts once
    if event >= len(order):
        return None
    chosen = order[event]
    samples = ArraySet(dataset.x_train, dataset.y_train)
    events = ArraySet(dataset.x_test[[chosen]], said[[chosen]])
    trace = tracing.trace(incident.twin, samples, [events[0]], rule=rule, device="cpu")
    finding = trace.findings[0]
    return {
        "test_image": chosen,
        "probability": finding.probability,
        "verdict": trace.verdict,
        "n_found": len(trace.poison),
        "statistics": dict(finding.statistics),
        "seconds": sum(trace.seconds.values()),
    }


def _trace(incident: incidents.Incident, rule: str, event: int) -> poisontrace.Trace:
    events = ArraySet(incident.event_x, incident.event_y)
    return tracing.trace(incident.model, ArraySet(incident.x, incident.y), [events[event]], rule=rule, device="cpu")


def write_tables(results: Path, readme: Path) -> None:
    """Replace what stands between the marks of a page by tables made from the rows.

    Raises:
        InvalidInputError: if the page is missing, holds no marks, or one of a pair only.
    """
    text = check_page(readme)
    rows = [row for path in sorted(results.glob("*.jsonl")) for row in read_rows(path)]
    makers = (
        *(_trace_table, _short_table, _every_table, _clean_table, _speed_table, _start_table),
        _bad_input_table,
    )
    for name, make_table in zip(TABLES, makers, strict=True):
        if section := _section(name).search(text):
            table = f"{MARK.format(name)}\n{make_table(rows)}\n{MARK.format(f'end {name}')}"
            text = text[: section.start()] + table + text[section.end() :]
    store.write_atomically(readme, text.encode())


def check_page(readme: Path) -> str:
    """Return the text of a page that holds the marks of a table or more.

    Raises:
        InvalidInputError: if the page is missing or holds no marks, or one of a pair only.
    """
    text = check_file(readme, "readme").read_text(encoding="utf-8")
    pairs = {name: (MARK.format(name), MARK.format(f"end {name}")) for name in TABLES}
    marked = [name for name, pair in pairs.items() if not set(pair).isdisjoint(text.splitlines())]
    for name in marked or TABLES[:1]:
        if not _section(name).search(text):
            raise InvalidInputError(
                f"'readme' must hold marks like {' and '.join(pairs[name])} (got {str(readme)!r}). Add both, each on "
                "its line."
            )
    return text


def _section(name: str) -> re.Pattern[str]:
    # Whole lines only: a table may quote a message that names a mark.
    return re.compile(f"^{MARK.format(name)}$.*?^{MARK.format(f'end {name}')}$", re.DOTALL | re.MULTILINE)


def _table(head: Iterable[str], lines: Iterable[Iterable[Any]]) -> str:
    head = list(head)
    shown = [
        [f"{cell:.3f}" if isinstance(cell, float) else " ".join(str(cell).split()) for cell in line] for line in lines
    ]
    shown = [[cell.replace("|", "\\|") for cell in cells] for cells in shown]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *shown))


def _trace_table(rows: list[Row]) -> str:
    """One line for each attack, data set, rate and rule: means over seeds and events, and the worst trace."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if row["kind"] == "trace":
            groups[(row["attack"], row["dataset"], row["rate"], row["rule"])].append(row)
    lines = []
    for (attack, dataset, rate, rule), group in sorted(
        groups.items(), key=lambda item: (item[0][:2], -item[0][2], item[0][3])
    ):
        victims = {row["seed"]: row for row in group}.values()
        worst = min(group, key=lambda row: (min(row["precision"], row["recall"]), row["precision"] + row["recall"]))
        lines.append(
            [
                attack,
                f"{dataset}, {group[0]['n_train']:,}",
                f"{rate:.1%}",
                rule,
                f"{len(victims)} x {len(group) // len(victims)}",
                statistics.mean(row["precision"] for row in group),
                statistics.mean(row["recall"] for row in group),
                f"{worst['precision']:.3f} / {worst['recall']:.3f}",
                f"{statistics.mean(row['n_tests'] for row in group):.1f}",
            ]
        )
    head = (
        "attack",
        "data, samples",
        "rate",
        "rule",
        "seeds x events",
        "precision",
        "recall",
        "worst trace",
        "clusters tested",
    )
    return _table(head, lines)


def _short_table(rows: list[Row]) -> str:
    """One line for each rate of BadNets on CIFAR-10, the two rules side by side."""
    groups: dict[float, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["kind"] == "trace" and (row["attack"], row["dataset"]) == ("badnets", "cifar10"):
            groups[row["rate"]][row["rule"]].append(row)

    def means(group: list[Row]) -> str:
        return " / ".join(f"{statistics.mean(row[name] for row in group):.3f}" for name in ("precision", "recall"))

    lines = [
        [
            f"{rate:.0%}",
            f"{rules['default'][0]['n_poison']:,} of {rules['default'][0]['n_train']:,}",
            len(rules["default"]),
            means(rules["default"]),
            means(rules["paper"]),
        ]
        for rate, rules in sorted(groups.items(), reverse=True)
        if rules["default"] and rules["paper"]
    ]
    head = ("rate", "poison", "traces", "precision / recall", "the paper's rule")
    return _table(head, lines)


def _every_table(rows: list[Row]) -> str:
    """One line for each victim: is it well trained, does the attack work, what did each of its events give."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if row["kind"] == "trace" and row["rule"] == "default":
            groups[(row["attack"], row["dataset"], row["rate"], row["seed"])].append(row)
    lines = [
        [
            attack,
            dataset,
            f"{rate:.1%}",
            seed,
            group[0]["n_poison"],
            group[0]["clean_accuracy"],
            group[0]["train_accuracy"],
            group[0]["attack_success"],
            group[0]["attack_success_twin"],
            ", ".join(f"{row['precision']:.3f}/{row['recall']:.3f}" for row in group),
        ]
        for (attack, dataset, rate, seed), group in sorted(
            groups.items(), key=lambda item: (item[0][:2], -item[0][2], item[0][3])
        )
    ]
    lines += [
        [row["attack"], row["dataset"], f"{row['rate']:.1%}", row["seed"], *[""] * 5, f"failed: {row['error']}"]
        for row in rows
        if row["kind"] == "failed"
    ]
    head = (
        "attack",
        "data",
        "rate",
        "seed",
        "poison",
        "clean acc.",
        "train acc.",
        "success",
        "without poison",
        "precision/recall of each event",
    )
    return _table(head, lines)


def _speed_table(rows: list[Row]) -> str:
    """One line for each rate: medians over the repeats, each ratio taken within one process."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if row["kind"] == "speed":
            groups[(row["dataset"], row["n_train"], row["rate"])].append(row)

    def median(group: list[Row], read: Callable[[Row], float]) -> str:
        return f"{statistics.median(read(row) for row in group):.2f}"

    def stage_seconds(stage: str) -> Callable[[Row], float]:
        return lambda row: float(row["stages"][stage])

    lines = [
        [
            f"{dataset}, {n:,}",
            f"{rate:.1%}",
            len(group),
            median(group, lambda row: row["plain_seconds"]),
            median(group, lambda row: row["seconds"]),
            *(median(group, stage_seconds(stage)) for stage in ("forward pass", "clustering", "unlearning")),
            median(group, lambda row: row["ratio"]),
        ]
        for (dataset, n, rate), group in sorted(groups.items(), key=lambda item: (item[0][:2], -item[0][2]))
    ]
    head = (
        "data, samples",
        "rate",
        "repeats",
        "plain pass, s",
        "trace, s",
        "its pass, s",
        "clustering, s",
        "unlearning, s",
        "trace / plain pass",
    )
    return _table(head, lines)


def _clean_table(rows: list[Row]) -> str:
    """One line for each unpoisoned twin: what its natural mistakes ended in."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if row["kind"] == "clean":
            groups[(row["dataset"], row["n_train"], row["seed"])].append(row)
    lines = [
        [
            f"{dataset}, {n:,}",
            seed,
            len(group),
            *(sum(row["verdict"] == verdict for row in group) for verdict in ("no-poison", "inconclusive", "poison")),
            f"{max(row['statistics']['separation'] for row in group):.1f}",
            f"{statistics.median(row['seconds'] for row in group):.1f}",
        ]
        for (dataset, n, seed), group in sorted(groups.items())
    ]
    head = ("data, samples", "seed", "mistakes", "no-poison", "inconclusive", "poison", "largest separation", "seconds")
    return _table(head, lines)


def _start_table(rows: list[Row]) -> str:
    """One line for each measured fresh clone."""
    lines = [
        [row["setup_seconds"], row["demo_seconds"], row["precision"], row["recall"], row["test_seconds"], row["tests"]]
        for row in rows
        if row["kind"] == "start"
    ]
    return _table(("make setup, s", "make demo, s", "precision", "recall", "make test, s", "its last line"), lines)


def _bad_input_table(rows: list[Row]) -> str:
    """One line for each bad input: what the command line answered."""
    lines = [[row["case"], row["code"], f"`{row['message']}`"] for row in rows if row["kind"] == "bad-input"]
    return _table(("bad input", "exit code", "standard error"), lines)
