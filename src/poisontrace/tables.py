"""Tables from rows: what ``bench`` measured, between the marks of a page.

A results file holds one JSON row a line. Every number of a table comes from the rows alone.
"""

import json
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from poisontrace import store
from poisontrace._errors import InvalidInputError
from poisontrace._validate import check_file
from poisontrace.calibration import p_poison

Row = dict[str, Any]
Groups = dict[tuple[Any, ...], list[Row]]

MARK = "<!-- generated: {} -->"
# Precision / recall for each attack in the table of main results of Shan et al., "Poison Forensics", USENIX Security
# 2022. Empty so far: we know the bound over all attacks only, above 0.984 / 0.968, and a bound is no attack's figure.
REPORTED: dict[str, str] = {}
FLOOR = (0.984, 0.968)
# How a victim was trained whose row does not say it, and what a plan may change about it and the network.
TRAINING = "scratch"
CHANGES = ("wrong_labels", "model", "width", "epochs", "weight_decay", "smoothing")
DASH = "–"
# Options of attacks that are there to mislead a tracer, and what they are for; of several the first one counts.
MEASURES = {
    "shown": "framing",
    "planted": "framing",
    "decoys": "framing",
    "campaigns": "dispersal",
    "camouflage": "camouflage",
    "against": "camouflage",
    "cover": "camouflage",
    "opacity": "dilution",
    "faint": "dilution",
}
GPU_SPEED, DISK_SPEED = 5e13, 1e9  # operations and bytes a second that nobody measured here; the table says so
EDGES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)  # of the probability of poison
NAMES_OF_COST = ("attack_success", "attack_success_twin", "clean_accuracy")  # what a measure may cost
# Of the attempts, from which on an attack still works in spite of what its measure costs, and at most of its twin's.
HALF, OF_TWIN = 0.5, 0.1
# Methods of the comparison with others that its tables name: ours, the measure of cost, and what no method can lose to.
OURS, PASS = "ours", "one forward pass"
FLOORS = ("random", "oracle", PASS)
FIGURES = {"precision": "precision", "recall": "recall", "auprc": "AUPRC"}
# Tables that show attacks with these options too; the others are about attacks as published.
WITH_MEASURES = ("anti-forensics", "every")


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


def write_tables(results: Path, readme: Path) -> None:
    """Replace what stands between the marks of a page by tables made from the rows.

    Raises:
        InvalidInputError: if the page is missing, holds no marks, or one of a pair only.
    """
    text = check_page(readme)
    rows = _once(row for path in sorted(results.glob("*.jsonl")) for row in read_rows(path))
    plain = [row for row in rows if not _measures(row)]
    for name, make_table in TABLES.items():
        if section := _section(name).search(text):
            table = make_table(rows if name in WITH_MEASURES else plain)
            table = f"{MARK.format(name)}\n{table}\n{MARK.format(f'end {name}')}"
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
    for name in marked or list(TABLES)[:1]:
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


def _groups(rows: Iterable[Row], key: Callable[[Row], tuple[Any, ...]]) -> Groups:
    groups: Groups = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups


def _training(row: Row) -> str:
    plan = row["plan"]
    return ", ".join([plan.get("training", TRAINING), *_changes(row)])


def _changes(row: Row) -> list[str]:
    """Return what is not as usual about a row's network and its training."""
    named = {name: row["plan"][name] for name in CHANGES if name in row["plan"]}
    return [str(value) if name == "model" else f"{name.replace('_', ' ')} {value}" for name, value in named.items()]


def _measure(row: Row) -> str:
    return next((MEASURES[name] for name in _measures(row)), "")


def _attack(row: Row) -> str:
    training = row["plan"].get("training", TRAINING)
    unusual = [*([] if training == TRAINING else [training]), *_changes(row)]
    return ", ".join([row["attack"], *unusual, *(f"{name} {value}" for name, value in _measures(row).items())])


def _measures(row: Row) -> dict[str, Any]:
    """Return the options by which a row's attack misleads a tracer."""
    options = row.get("plan", {}).get("options", {})
    return {name: options[name] for name in MEASURES if name in options}


def _victim(row: Row) -> tuple[str, int]:
    """Return what tells victims apart; a row may be older than some fields of a plan."""
    return json.dumps({"training": TRAINING, "options": {}, **row["plan"]}, sort_keys=True), row["seed"]


def _once(rows: Iterable[Row]) -> list[Row]:
    """Return the rows without those that several grids asked for."""
    kept: dict[Any, Row] = {}
    for position, row in enumerate(rows):
        key = (_victim(row), row["kind"], row["rule"], row["event"]) if "plan" in row else position
        kept.setdefault(key, row)
    return list(kept.values())


def _is_sound(row: Row) -> bool:
    """Tell whether a row is a trace of a victim on which the attack succeeded; no other counts in a mean."""
    return bool(row["kind"] == "trace" and row["succeeded"])


def _still_works(row: Row) -> bool:
    """Tell whether a row is a trace of a victim on which a measure leaves the attack half of its attempts or more."""
    return bool(row["kind"] == "trace" and row["attack_success"] >= HALF and row["attack_success_twin"] <= OF_TWIN)


def _is_judged(row: Row) -> bool:
    """Whether a row says how well the conditions of an accusation were met, and the truth is beyond dispute."""
    if row["kind"] not in ("clean", "trace") or row["rule"] != "default" or "margin" not in row.get("statistics", {}):
        return False
    return row["kind"] == "clean" or (row["succeeded"] and not _measures(row))


def judged(rows: Iterable[Row]) -> tuple[list[float], list[bool]]:
    """Return the margin of each event that the default rule traced, and whether it was due to poison.

    Natural mistakes of networks trained without poison, and events of attacks that worked, without measures against
    tracing; rows of before there were margins are left out.
    """
    chosen = [row for row in _once(rows) if _is_judged(row)]
    return [row["statistics"]["margin"] for row in chosen], [row["kind"] == "trace" for row in chosen]


def _mean(rows: Iterable[Row], name: str) -> float:
    return float(statistics.mean(row[name] for row in rows))


def _worst(rows: list[Row]) -> str:
    worst = min(rows, key=lambda row: (min(row["precision"], row["recall"]), row["precision"] + row["recall"]))
    return f"{worst['precision']:.3f} / {worst['recall']:.3f}"


def _summary_table(rows: list[Row]) -> str:
    """One line for each attack, over all its data sets, and whether it reaches what the paper claims for all six."""
    groups = _groups((row for row in rows if _is_sound(row) and row["rule"] == "default"), lambda row: (row["attack"],))
    lines = []
    for (attack,), group in sorted(groups.items(), key=lambda item: item[0]):
        means = _mean(group, "precision"), _mean(group, "recall")
        reaches = all(mean >= least for mean, least in zip(means, FLOOR, strict=True))
        n_victims = len(set(map(_victim, group)))
        lines.append([attack, n_victims, len(group), *means, _worst(group), "yes" if reaches else "no"])
    head = (
        "attack",
        "victims",
        "traces",
        "precision",
        "recall",
        "worst trace",
        "at least {:.3f} / {:.3f}".format(*FLOOR),
    )
    return _table(head, lines)


def _attack_table(rows: list[Row]) -> str:
    """One line for each attack, data set, size, rate and training: means over the victims that it succeeded on."""
    groups = _groups(
        (row for row in rows if row["kind"] == "failed" or (row["kind"] == "trace" and row["rule"] == "default")),
        lambda row: (row["attack"], row["dataset"], row["plan"].get("n_train") or 0, -row["rate"], _training(row)),
    )
    head = (
        *("attack", "data, samples, training", "poison", "victims", "success", "without poison", "clean acc."),
        *("traces", "precision", "recall", "worst trace", "seconds", "the paper's"),
    )
    return _table(head, (_attack_line(group) for _, group in sorted(groups.items(), key=lambda item: item[0])))


def _attack_line(group: list[Row], counts: Callable[[Row], bool] = _is_sound) -> list[Any]:
    """Return the cells of one attack, with a dash for each number that no victim gave whose traces count."""
    first = next((row for row in group if row["kind"] == "trace"), group[0])
    traces = [row for row in group if counts(row)]
    victims = {_victim(row): row for row in traces}.values()
    n_train, rate = first.get("n_train", first["plan"].get("n_train")), f"{100 * first['rate']:.3g}%"
    task = [
        first["attack"],
        ", ".join([first["dataset"], *([f"{n_train:,}"] if n_train else []), _training(first)]),
        f"{first['n_poison']:,} ({rate})" if "n_poison" in first else rate,
        f"{len(victims)} of {len(set(map(_victim, group)))}",
    ]
    reported = REPORTED.get(first["attack"], DASH)
    if not traces:
        return [*task, *[DASH] * 3, 0, *[DASH] * 4, reported]
    return [
        *task,
        *(_mean(victims, name) for name in ("attack_success", "attack_success_twin", "clean_accuracy")),
        len(traces),
        *(_mean(traces, name) for name in ("precision", "recall")),
        _worst(traces),
        f"{statistics.median(row['seconds'] for row in traces):.1f}",
        reported,
    ]


def _anti_forensics_table(rows: list[Row]) -> str:
    """One line for each measure and strength, below the same attack without any.

    Success is the mean over all victims, those on which the attack failed among them: it is the price of the measure.
    Traces count where at least half of the attempts succeed.
    """
    groups = _groups(
        (row for row in rows if row["kind"] == "failed" or (row["kind"] == "trace" and row["rule"] == "default")),
        lambda row: (_task(row), _measure(row), tuple(_measures(row).items())),
    )
    tasks = {task for task, _, strength in groups if strength}
    lines = []
    for (task, measure, strength), group in sorted(groups.items(), key=lambda item: item[0]):
        if task in tasks:
            _, data, poison, victims, _, _, _, *numbers, _, _ = _attack_line(group, _still_works)
            tried = {_victim(row): row for row in group if row["kind"] == "trace"}.values()
            cost = [_mean(tried, name) if tried else DASH for name in NAMES_OF_COST]
            attack = f"{group[0]['attack']}, {data.removesuffix(f', {TRAINING}')}"
            named = ", ".join(f"`{name}` {value}" for name, value in strength)
            traces = [row for row in group if _still_works(row)]
            planted = statistics.mean(map(_of_any_campaign, traces)) if traces else DASH
            lines.append([attack, measure or DASH, named or DASH, poison, victims, *cost, *numbers, planted])
    head = (
        *("attack, data, samples", "measure", "strength", "poison", "victims", "success", "without poison"),
        *("clean acc.", "traces", "precision", "recall", "worst trace", "precision, any campaign"),
    )
    return _table(head, lines)


def _of_any_campaign(row: Row) -> float:
    """Return the fraction of what a trace found that is poison, be it another campaign's; what is left is innocent."""
    return float(row["precision"] + row.get("n_found_of_others", 0) / max(1, row.get("n_found", 0)))


def _task(row: Row) -> str:
    """Return what a measure is added to: the rest of the plan."""
    plan = {"training": TRAINING, "options": {}, **row["plan"]}
    options = {name: value for name, value in plan["options"].items() if name not in MEASURES}
    return json.dumps({**plan, "options": options}, sort_keys=True)


def _trace_table(rows: list[Row]) -> str:
    """One line for each attack, data set, rate and rule: means over seeds and events, and the worst trace."""
    groups = _groups(
        filter(_is_sound, rows),
        lambda row: (_attack(row), row["dataset"], row["n_train"], -row["rate"], row["rule"]),
    )
    lines = []
    for (attack, dataset, n_train, negative_rate, rule), group in sorted(groups.items(), key=lambda item: item[0]):
        n_victims = len(set(map(_victim, group)))
        lines.append(
            [
                attack,
                f"{dataset}, {n_train:,}",
                f"{-negative_rate:.1%}",
                rule,
                f"{n_victims} x {len(group) // n_victims}",
                _mean(group, "precision"),
                _mean(group, "recall"),
                _worst(group),
                f"{_mean(group, 'n_tests'):.1f}",
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
    groups: dict[tuple[float, int], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if _is_sound(row) and (row["attack"], row["dataset"]) == ("badnets", "cifar10"):
            groups[(row["rate"], row["n_train"])][row["rule"]].append(row)

    def means(group: list[Row]) -> str:
        return f"{_mean(group, 'precision'):.3f} / {_mean(group, 'recall'):.3f}"

    lines = [
        [
            f"{rate:.0%}",
            f"{rules['default'][0]['n_poison']:,} of {n_train:,}",
            len(rules["default"]),
            means(rules["default"]),
            means(rules["paper"]),
        ]
        for (rate, n_train), rules in sorted(groups.items(), key=lambda item: item[0], reverse=True)
        if rules["default"] and rules["paper"]
    ]
    head = ("rate", "poison", "traces", "precision / recall", "the paper's rule")
    return _table(head, lines)


def _every_table(rows: list[Row]) -> str:
    """One line for each victim: is it well trained, does the attack work, what did each of its events give."""
    groups = _groups(
        (row for row in rows if row["kind"] == "trace" and row["rule"] == "default"),
        lambda row: (_attack(row), row["dataset"], -row["rate"], row["seed"], _victim(row)),
    )
    lines = [
        [
            *(_attack(group[0]), group[0]["dataset"], f"{group[0]['rate']:.1%}", group[0]["seed"]),
            *(group[0][name] for name in ("n_poison", "clean_accuracy", "train_accuracy")),
            f"{group[0]['attack_success']:.3f}{'' if group[0]['succeeded'] else ', failed'}",
            group[0]["attack_success_twin"],
            ", ".join(f"{row['precision']:.3f}/{row['recall']:.3f}" for row in group),
        ]
        for _, group in sorted(groups.items(), key=lambda item: item[0])
    ]
    lines += [
        [_attack(row), row["dataset"], f"{row['rate']:.1%}", row["seed"], *[""] * 5, f"failed: {row['error']}"]
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
    """One line for each victim and device: medians over the repeats, each ratio taken within one process."""
    groups = _groups(
        (row for row in rows if row["kind"] == "speed"),
        lambda row: (row["dataset"], row["n_train"], row["model"]["name"], -row["rate"], row.get("device", "cpu")),
    )

    def median(group: list[Row], read: Callable[[Row], float | None]) -> str:
        known = [value for value in map(read, group) if value is not None]
        return f"{statistics.median(known):.2f}" if known else DASH

    def stage_seconds(stage: str) -> Callable[[Row], float]:
        return lambda row: float(row["stages"][stage])

    lines = [
        [
            f"{dataset}, {n:,}" if device == "cpu" else f"{dataset}, {n:,}, {device}",
            model,
            f"{-negative_rate:.1%}",
            len(group),
            median(group, lambda row: row["plain_seconds"]),
            median(group, lambda row: row["seconds"]),
            *(median(group, stage_seconds(stage)) for stage in ("forward pass", "clustering", "unlearning")),
            median(group, lambda row: row["ratio"]),
            median(
                group, lambda row: row["second_seconds"] / row["plain_seconds"] if "second_seconds" in row else None
            ),
        ]
        for (dataset, n, model, negative_rate, device), group in sorted(groups.items(), key=lambda item: item[0])
    ]
    head = (
        "data, samples",
        "network",
        "rate",
        "repeats",
        "plain pass, s",
        "trace, s",
        "its pass, s",
        "clustering, s",
        "unlearning, s",
        "trace / plain pass",
        "second event / plain pass",
    )
    return _table(head, lines)


def _clean_table(rows: list[Row]) -> str:
    """One line for each unpoisoned twin: what its natural mistakes ended in."""
    groups = _groups(
        (row for row in rows if row["kind"] == "clean"),
        lambda row: (row["dataset"], row["n_train"], ", ".join(_changes(row)), row["seed"]),
    )
    lines = [
        [
            f"{dataset}, {n:,}{', ' if changes else ''}{changes}",
            seed,
            len(group),
            *(sum(row["verdict"] == verdict for row in group) for verdict in ("no-poison", "inconclusive", "poison")),
            f"{max(row['statistics']['separation'] for row in group):.1f}",
            f"{statistics.median(row['seconds'] for row in group):.1f}",
        ]
        for (dataset, n, changes, seed), group in sorted(groups.items())
    ]
    head = ("data, samples", "seed", "mistakes", "no-poison", "inconclusive", "poison", "largest separation", "seconds")
    return _table(head, lines)


def _networks_table(rows: list[Row]) -> str:
    """One line for each network and training that is not as usual, below the same attack on the usual one.

    Of unpoisoned twins the natural mistakes that were accused are counted, of all that were traced.
    """
    groups = _groups(
        (row for row in rows if row["kind"] in ("trace", "clean") and row["rule"] == "default"),
        lambda row: (row["attack"], row["dataset"], row["n_train"], -row["rate"], ", ".join(_changes(row))),
    )
    shown = {key[:-1] for key in groups if key[-1]}
    lines = []
    for key, group in sorted(groups.items(), key=lambda item: item[0]):
        if key[:-1] not in shown:
            continue
        tried = {_victim(row): row for row in group if row["kind"] == "trace"}.values()
        traces, mistakes = [row for row in group if _is_sound(row)], [row for row in group if row["kind"] == "clean"]
        sure = [row["confidence"] for row in tried if "confidence" in row]
        lines.append(
            [
                f"{key[0]}, {key[1]}, {key[2]:,}, {-key[3]:.3g}",
                key[-1] or "usual",
                f"{len(set(map(_victim, traces)))} of {len(tried)}",
                statistics.mean(sure) if sure else DASH,
                *(_mean(tried, name) if tried else DASH for name in ("clean_accuracy", "attack_success")),
                len(traces),
                *(_mean(traces, name) if traces else DASH for name in ("precision", "recall")),
                _worst(traces) if traces else DASH,
                f"{sum(row['verdict'] == 'poison' for row in mistakes)} of {len(mistakes)}",
            ]
        )
    head = (
        *("attack, data, samples, rate", "network and training", "victims", "confidence", "clean acc.", "success"),
        *("traces", "precision", "recall", "worst trace", "natural mistakes accused"),
    )
    return _table(head, lines)


def _start_table(rows: list[Row]) -> str:
    """One line for each measured fresh clone."""
    lines = [
        [row["setup_seconds"], row["demo_seconds"], row["precision"], row["recall"], row["test_seconds"], row["tests"]]
        for row in rows
        if row["kind"] == "start"
    ]
    return _table(("make setup, s", "make demo, s", "precision", "recall", "make test, s", "its last line"), lines)


def _ranks_table(rows: list[Row]) -> str:
    """One line for each measured number of ranks: medians of the pass, and of the ratio of neighbouring runs."""
    lines = [
        [
            f"{row['model']}, {row['n_samples']:,}",
            row["n_ranks"],
            *(f"{statistics.median(row[name]):.1f}" for name in ("seconds_alone", "seconds_shared")),
            f"{row['ratio']:.2f}",
            *(f"{statistics.median(row[name]):.1f}" for name in ("cpu_seconds_alone", "cpu_seconds_shared")),
            f"{row['cpu_ratio']:.2f}",
            f"{row['load_after']:.1f} on {row['n_cpus']} CPUs",
        ]
        for row in rows
        if row["kind"] == "ranks"
    ]
    head = (
        *("victim, samples", "ranks", "one alone, s", "shared, s", "ratio"),
        *("processor, alone, s", "its busiest rank, s", "ratio", "load"),
    )
    return _table(head, lines)


def _scaling_table(rows: list[Row]) -> str:
    """One line for each number of samples, and the exponents that fit them."""
    measured = sorted((row for row in rows if row["kind"] == "scaling"), key=lambda row: row["n"])
    lines: list[list[Any]] = [
        [
            f"{row['n']:,}",
            f"{row['n_poison']:,}",
            row["verdict"],
            f"{row['precision']:.3f} / {row['recall']:.3f}",
            *(f"{row[name]:.1f}" for name in ("seconds", "cpu_seconds")),
            *(f"{row['stages'][name]:.1f}" for name in ("clustering", "unlearning")),
            f"{row['own_bytes'] / 1e6:,.0f}",
            f"{row['peak_bytes'] / 1e6:,.0f}",
        ]
        for row in measured
    ]
    if len(measured) > 1:
        names = ("seconds", "cpu_seconds", "clustering", "unlearning", "own_bytes", "peak_bytes")
        for title, group in (("exponent", measured), ("of the last two", measured[-2:])):
            lines.append([title, *[DASH] * 3, *(f"{exponent(group, name):.2f}" for name in names)])
    head = (
        *("samples", "poison", "verdict", "precision / recall", "trace, s", "processor, s", "clustering, s"),
        *("unlearning, s", "own memory, MB", "with mapped files, MB"),
    )
    return _table(head, lines)


def _sizes_table(rows: list[Row]) -> str:
    """One line for each size of training set: counted a sample, multiplied, and divided by a measured speed."""
    measured = next((row for row in rows if row["kind"] == "ranks"), None)
    if measured is None:
        return _table(("data, model",), [])
    speed = measured["n_samples"] * measured["flops"] / statistics.median(measured["cpu_seconds_alone"])
    lines = [
        [
            row["name"],
            f"{row['n']:,}",
            f"{row['flops'] / 1e9:.2f}",
            f"{row['bytes']:,}",
            f"{row['n'] * row['bytes'] / 1e9:,.1f}",
            f"{row['n'] * row['flops']:.1e}",
            f"{row['n'] * row['flops'] / speed / 3600:,.1f}",
            f"{row['n'] * row['flops'] / GPU_SPEED / 3600:,.2f}",
            f"{row['n'] * row['bytes'] / DISK_SPEED / 60:,.1f}",
        ]
        for row in rows
        if row["kind"] == "sizes"
    ]
    head = (
        *("data, model", "samples", "GFLOP a sample", "bytes a sample", "store, GB", "FLOP of the pass"),
        f"hours at {speed / 1e9:.0f} GFLOP/s, one core (measured)",
        f"hours at {GPU_SPEED / 1e12:.0f} TFLOP/s, one GPU (assumed)",
        f"minutes to read the store at {DISK_SPEED / 1e9:.0f} GB/s (assumed)",
    )
    return _table(head, lines)


def exponent(rows: list[Row], name: str) -> float:
    """Return the slope of the line that fits the logarithms of a number, or of a stage's seconds, against n."""
    x = [math.log(row["n"]) for row in rows]
    y = [math.log(row[name] if name in row else row["stages"][name]) for row in rows]
    return statistics.linear_regression(x, y).slope


def _fault_table(rows: list[Row]) -> str:
    """One line for each fault: what the command line answered, and what the same command did after it."""
    lines = []
    for row in rows:
        if row["kind"] == "fault":
            kept = f"goes on after {row['n_kept']:,} samples, " if row["n_kept"] else ""
            then = f"{kept}{'same result' if row['is_same'] else 'another result'}"
            lines.append([row["case"], row["code"], f"`{row['message']}`" if row["message"] else DASH, then])
    return _table(("fault", "exit code", "standard error", "the same command after it"), lines)


def _bad_input_table(rows: list[Row]) -> str:
    """One line for each bad input: what the command line answered."""
    lines = [[row["case"], row["code"], f"`{row['message']}`"] for row in rows if row["kind"] == "bad-input"]
    return _table(("bad input", "exit code", "standard error"), lines)


def _verdict_table(rows: list[Row]) -> str:
    """One line for each kind of event: what became of it."""
    groups = _groups(
        (row for row in rows if _is_judged(row)),
        lambda row: (row["kind"] != "clean", row["dataset"]),
    )
    lines = [
        [
            "poison" if is_poison else "natural mistake",
            dataset,
            len({(row["attack"], row["rate"], row["seed"]) for row in group}),
            len(group),
            *(sum(row["verdict"] == verdict for row in group) for verdict in ("no-poison", "inconclusive", "poison")),
            f"{min(row['statistics']['margin'] for row in group):.2f} to "
            f"{max(row['statistics']['margin'] for row in group):.2f}",
        ]
        for (is_poison, dataset), group in sorted(groups.items())
    ]
    head = ("event", "data", "networks", "events", "no-poison", "inconclusive", "poison", "margins")
    return _table(head, lines)


def reliability(rows: Iterable[Row]) -> list[tuple[float, float, int, int, float, float]]:
    """Return how often events were poison, for each range of the probability that the verdict states.

    As if there were as many natural mistakes as events of poison.

    Returns:
        both ends of each range, natural mistakes and events of poison in it, the mean stated, and the share of poison;
        the last two are NaN where nothing is in it.
    """
    margins, is_poison = judged(rows)
    probabilities = [p_poison(margin) for margin in margins]
    n_poison = sum(is_poison)
    found = []
    for low, high in pairwise(EDGES):
        inside = [
            (probability, truth)
            for probability, truth in zip(probabilities, is_poison, strict=True)
            if low <= probability < high or probability == high == 1
        ]
        of_poison = sum(truth for _, truth in inside)
        of_natural = len(inside) - of_poison
        share = of_poison / max(1, n_poison)
        share_of_all = share + of_natural / max(1, len(is_poison) - n_poison)
        stated = statistics.mean(probability for probability, _ in inside) if inside else math.nan
        found.append((low, high, of_natural, of_poison, stated, share / share_of_all if inside else math.nan))
    return found


def _error_table(rows: list[Row]) -> str:
    """One line for each range of the probability of poison: how often it was."""
    lines = [
        (f"{low:.2f} to {high:.2f}", *counts, *(DASH if math.isnan(share) else f"{share:.3f}" for share in shares))
        for low, high, *counts, shares in ((*line[:4], line[4:]) for line in reliability(rows))
    ]
    head = ("probability of poison", "natural mistakes", "events of poison", "stated, mean", "was poison, evened")
    return _table(head, lines)


def scored(rows: Iterable[Row]) -> list[tuple[float, int, int]]:
    """Return where each range of the score starts, and how many samples in it are poison and are not."""
    bins = [row["score_bins"] for row in rows if _is_sound(row) and row["rule"] == "default" and "score_bins" in row]
    n_bins = len(bins[0]["poison"]) if bins else 0
    return [
        (place / n_bins, *(sum(row[name][place] for row in bins) for name in ("poison", "others")))
        for place in range(n_bins)
    ]


def _score_table(rows: list[Row]) -> str:
    """One line for each range of the score: how many samples were poison."""
    lines = []
    for low, poison, others in scored(rows):
        share = f"{poison / (poison + others):.3f}" if poison + others else DASH
        lines.append([f"{low:.1f} to {low + 0.1:.1f}", f"{poison + others:,}", f"{poison:,}", share])
    return _table(("score", "samples", "poison", "share"), lines)


def _proof_table(rows: list[Row]) -> str:
    """One line for each attack and task: what training again without the samples found leaves of it."""
    groups = _groups(
        (row for row in rows if row["kind"] == "proof"),
        lambda row: (row["attack"], row["dataset"], row["training"], row["rate"]),
    )
    lines = []
    for (attack, dataset, training, rate), group in sorted(groups.items()):
        proved = [row for row in group if "result" in row]
        corrected = sum(row["result"] != "not corrected" for row in proved)
        lines.append(
            [
                ", ".join([attack, *([] if training == TRAINING else [training])]),
                f"{dataset}, {group[0]['n_train']:,}",
                f"{rate:.0%}",
                len({row["seed"] for row in group}),
                f"{corrected} of {len(group)}",
                sum(row["result"] == "corrected either way" for row in proved),
                *(_mean(proved, name) for name in ("success", "success_control", "success_without", "success_twin")),
                f"{max((row['success_without'] - row['success_twin'] for row in proved), default=0.0):+.3f}",
                *(_mean(proved, name) for name in ("accuracy", "accuracy_without", "accuracy_control")),
            ]
        )
    head = (
        *("attack", "data, samples", "rate", "victims", "events corrected", "by the control too", "success"),
        *("control", "without those found", "never poisoned", "worst difference", "clean acc."),
        *("without those found", "control"),
    )
    return _table(head, lines)


def _text_table(rows: list[Row]) -> str:
    """One line for each trigger and rate in texts; the last ones of texts without poison."""
    groups = _groups((row for row in rows if row["kind"] == "texts"), lambda row: (row["trigger"], row["rate"]))
    lines = []
    for (trigger, _), group in sorted(groups.items(), key=lambda item: (not item[0][0], item[0][0], -item[0][1])):
        victims = {row["seed"]: row for row in group}.values()
        n_accused = sum(row["verdict"] == "poison" for row in group)
        success = [f"{_mean(victims, name):.3f}" if trigger else DASH for name in ("success", "success_twin")]
        found = [f"{_mean(group, name):.3f}" if trigger else DASH for name in ("precision", "recall")]
        named = f'"{trigger}"' if trigger else "none: natural mistakes"
        counts = [f"{group[0]['poison']} of {group[0]['n']:,}", len(victims), *success]
        counts.append(f"{_mean(victims, 'clean_accuracy'):.3f}")
        lines.append([named, *counts, len(group), n_accused, *found, _worst(group) if trigger else DASH])
    head = ("trigger", "poison", "victims", "success", "without poison", "clean acc.", "events", "verdict poison")
    return _table((*head, "precision", "recall", "worst trace"), lines)


def _peer_rows(rows: list[Row]) -> dict[tuple[str, int], dict[str, Row]]:
    """Return the rows of each incident by method, in the order they were measured."""
    incidents: dict[tuple[str, int], dict[str, Row]] = defaultdict(dict)
    for row in rows:
        if row["kind"] == "peer":
            incidents[_victim(row)][row["rule"]] = row
    return incidents


def _methods(incidents: dict[tuple[str, int], dict[str, Row]]) -> dict[str, list[tuple[Row, dict[str, Row]]]]:
    """Return the rows of each method, each with all rows of its incident."""
    methods: dict[str, list[tuple[Row, dict[str, Row]]]] = defaultdict(list)
    for incident in incidents.values():
        for name, row in incident.items():
            methods[name].append((row, incident))
    return methods


def _times(row: Row, incident: dict[str, Row], other: str) -> float | None:
    """Return how many times the processor time of another method a method took on the same event."""
    if "cpu_seconds" not in row or "cpu_seconds" not in incident.get(other, {}):
        return None
    return float(row["cpu_seconds"] / incident[other]["cpu_seconds"])


def _shown_times(values: Iterable[float | None]) -> str:
    """Return the median of what there is, to two digits."""
    known = [value for value in values if value is not None]
    return f"{float(f'{statistics.median(known):.2g}'):,.6g}" if known else DASH


def _pair(rows: list[Row], precision: str, recall: str) -> str:
    known = [row for row in rows if precision in row]
    return f"{_mean(known, precision):.3f} / {_mean(known, recall):.3f}" if known else DASH


def _peers_table(rows: list[Row]) -> str:
    """One line for each method: means over the incidents that it answered on, medians of what it cost."""
    lines = []
    for name, pairs in _methods(_peer_rows(rows)).items():
        answered = [row for row, _ in pairs if "error" not in row]
        ranked = [row for row in answered if "auprc" in row]
        to_ours = [_times(row, incident, OURS) for row, incident in pairs]
        judged = [row for row in answered if "precision" in row]
        lines.append(
            [
                *(name, f"{len(answered)} of {len(pairs)}"),
                _pair(answered, "precision", "recall"),
                _worst(judged) if judged else DASH,
                _pair(answered, "precision_in_label", "recall_in_label"),
                f"{_mean(ranked, 'auprc'):.3f}" if ranked else DASH,
                _pair(answered, "best_precision", "best_recall"),
                _shown_times(to_ours),
                _shown_times(_times(row, incident, PASS) for row, incident in pairs),
                max((round(row["peak_memory_bytes"] / 1e6) for row in answered), default=DASH),
            ]
        )
    head = (
        *("method", "incidents", "precision / recall", "worst", "within the event's label", "AUPRC"),
        *("best threshold*", "time / ours", "time / one pass", "peak memory, MB"),
    )
    return _table(head, lines)


def _peers_each_table(rows: list[Row]) -> str:
    """One line for each incident and method."""
    lines = []
    for incident in _peer_rows(rows).values():
        for name, row in incident.items():
            about = [_peer_incident(row), name]
            if "error" in row:
                lines.append([*about, *[DASH] * 6, row["error"], *[DASH] * 2])
                continue
            lines.append(
                [
                    *about,
                    _pair([row], "precision", "recall"),
                    _pair([row], "precision_in_label", "recall_in_label"),
                    f"{row['auprc']:.3f}" if "auprc" in row else DASH,
                    _pair([row], "best_precision", "best_recall"),
                    f"{row['seconds']:.1f}",
                    f"{row['cpu_seconds']:.1f}",
                    _shown_times([_times(row, incident, OURS)]),
                    _shown_times([_times(row, incident, PASS)]),
                    round(row["peak_memory_bytes"] / 1e6),
                ]
            )
    head = (
        *("incident", "method", "precision / recall", "within the event's label", "AUPRC", "best threshold*"),
        *("seconds", "processor, s", "time / ours", "time / one pass", "peak memory, MB"),
    )
    return _table(head, lines)


def _peers_lost_table(rows: list[Row]) -> str:
    """One line wherever another method has a better figure than ours, the price left aside."""
    lines = []
    for incident in _peer_rows(rows).values():
        if OURS not in incident:
            continue
        for name, row in incident.items():
            for figure, shown in FIGURES.items():
                own = incident[OURS].get(figure, 0.0)
                if name not in FLOORS and row.get(figure, 0.0) > own:
                    lines.append([_peer_incident(row), name, shown, row[figure], own])
    head = ("incident", "method", "figure", "its", "ours")
    return _table(head, lines or [["none", *[DASH] * 4]])


def _peer_incident(row: Row) -> str:
    return f"{_attack(row)}, {row['dataset']} {row['n_train']:,}, {row['n_poison']:,} poison, seed {row['seed']}"


TABLES: dict[str, Callable[[list[Row]], str]] = {
    "summary": _summary_table,
    "attacks": _attack_table,
    "traces": _trace_table,
    "anti-forensics": _anti_forensics_table,
    "short": _short_table,
    "every": _every_table,
    "networks": _networks_table,
    "clean": _clean_table,
    "verdicts": _verdict_table,
    "errors": _error_table,
    "scores": _score_table,
    "proof": _proof_table,
    "texts": _text_table,
    "speed": _speed_table,
    "start": _start_table,
    "ranks": _ranks_table,
    "scaling": _scaling_table,
    "sizes": _sizes_table,
    "bad-input": _bad_input_table,
    "fault": _fault_table,
    "peers": _peers_table,
    "peers-each": _peers_each_table,
    "peers-lost": _peers_lost_table,
}
