"""Tables from rows: what ``bench`` measured, between the marks of a page.

Every number of a table comes from the rows alone.
"""

import math
import re
import statistics
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from poisontrace import costs, store
from poisontrace._errors import InvalidInputError
from poisontrace._validate import check_file
from poisontrace.rows import (
    DASH,
    TRAINING,
    Row,
    as_table,
    attack_of,
    changes_of,
    grouped,
    is_judged,
    is_sound,
    mean_of,
    measure_of,
    measures_of,
    planted_share,
    read_rows,
    reliability,
    scored,
    still_works,
    task_of,
    training_of,
    unique,
    victim_of,
    worst_of,
)

MARK = "<!-- generated: {} -->"
# Precision / recall for each attack in the table of main results of Shan et al., "Poison Forensics", USENIX Security
# 2022. Empty so far: we know the bound over all attacks only, above 0.984 / 0.968, and a bound is no attack's figure.
REPORTED: dict[str, str] = {}
FLOOR = (0.984, 0.968)
NAMES_OF_COST = (
    "attack_success",
    "attack_success_twin",
    "clean_accuracy",
)  # what a measure may cost
# Tables that show attacks with these options too; the others are about attacks as published.
WITH_MEASURES = ("anti-forensics", "every", "ablation")
ASKED = ("poison", "mistake")  # what rows of an ablation are traces of
ALIKE = 0.01  # of precision and recall together: no trace is better or worse by less


def write_tables(results: Path, readme: Path) -> None:
    """Replace what stands between the marks of a page by tables made from the rows.

    Raises:
        InvalidInputError: if the page is missing, holds no marks, or one of a pair only.
    """
    text = check_page(readme)
    rows = unique(row for path in sorted(results.glob("*.jsonl")) for row in read_rows(path))
    plain = [row for row in rows if not measures_of(row)]
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


def _summary_table(rows: list[Row]) -> str:
    """One line for each attack, over all its data sets, and whether it reaches what the paper claims for all six.

    Training labels that were made wrong at random, which the paper has not, are a line of their own.
    """

    def named(row: Row) -> tuple[str]:
        return (row["attack"] + (", wrong labels" if row["plan"].get("wrong_labels") else ""),)

    groups = grouped((row for row in rows if is_sound(row) and row["rule"] == "default"), named)
    lines = []
    for (attack,), group in sorted(groups.items(), key=lambda item: item[0]):
        means = mean_of(group, "precision"), mean_of(group, "recall")
        reaches = all(mean >= least for mean, least in zip(means, FLOOR, strict=True))
        n_victims = len(set(map(victim_of, group)))
        lines.append([attack, n_victims, len(group), *means, worst_of(group), "yes" if reaches else "no"])
    head = (
        "attack",
        "victims",
        "traces",
        "precision",
        "recall",
        "worst trace",
        "at least {:.3f} / {:.3f}".format(*FLOOR),
    )
    return as_table(head, lines)


def _attack_table(rows: list[Row]) -> str:
    """One line for each attack, data set, size, rate and training: means over the victims that it succeeded on."""
    groups = grouped(
        (row for row in rows if row["kind"] == "failed" or (row["kind"] == "trace" and row["rule"] == "default")),
        lambda row: (row["attack"], row["dataset"], row["plan"].get("n_train") or 0, -row["rate"], training_of(row)),
    )
    head = (
        *("attack", "data, samples, training", "poison", "victims", "success", "without poison", "clean acc."),
        *("traces", "precision", "recall", "worst trace", "seconds", "the paper's"),
    )
    return as_table(head, (_attack_line(group) for _, group in sorted(groups.items(), key=lambda item: item[0])))


def _attack_line(group: list[Row], counts: Callable[[Row], bool] = is_sound) -> list[Any]:
    """Return the cells of one attack, with a dash for each number that no victim gave whose traces count."""
    first = next((row for row in group if row["kind"] == "trace"), group[0])
    traces = [row for row in group if counts(row)]
    victims = {victim_of(row): row for row in traces}.values()
    n_train, rate = first.get("n_train", first["plan"].get("n_train")), f"{100 * first['rate']:.3g}%"
    task = [
        first["attack"],
        ", ".join([first["dataset"], *([f"{n_train:,}"] if n_train else []), training_of(first)]),
        f"{first['n_poison']:,} ({rate})" if "n_poison" in first else rate,
        f"{len(victims)} of {len(set(map(victim_of, group)))}",
    ]
    reported = REPORTED.get(first["attack"], DASH)
    if not traces:
        return [*task, *[DASH] * 3, 0, *[DASH] * 4, reported]
    return [
        *task,
        *(mean_of(victims, name) for name in ("attack_success", "attack_success_twin", "clean_accuracy")),
        len(traces),
        *(mean_of(traces, name) for name in ("precision", "recall")),
        worst_of(traces),
        f"{statistics.median(row['seconds'] for row in traces):.1f}",
        reported,
    ]


def _anti_forensics_table(rows: list[Row]) -> str:
    """One line for each measure and strength, below the same attack without any.

    Success is the mean over all victims, those on which the attack failed among them: it is the price of the measure.
    Traces count where at least half of the attempts succeed.
    """
    groups = grouped(
        (row for row in rows if row["kind"] == "failed" or (row["kind"] == "trace" and row["rule"] == "default")),
        lambda row: (task_of(row), measure_of(row), tuple(measures_of(row).items())),
    )
    tasks = {task for task, _, strength in groups if strength}
    lines = []
    for (task, measure, strength), group in sorted(groups.items(), key=lambda item: item[0]):
        if task in tasks:
            _, data, poison, victims, _, _, _, *numbers, _, _ = _attack_line(group, still_works)
            tried = {victim_of(row): row for row in group if row["kind"] == "trace"}.values()
            cost = [mean_of(tried, name) if tried else DASH for name in NAMES_OF_COST]
            attack = f"{group[0]['attack']}, {data.removesuffix(f', {TRAINING}')}"
            named = ", ".join(f"`{name}` {value}" for name, value in strength)
            traces = [row for row in group if still_works(row)]
            planted = statistics.mean(map(planted_share, traces)) if traces else DASH
            lines.append([attack, measure or DASH, named or DASH, poison, victims, *cost, *numbers, planted])
    head = (
        *("attack, data, samples", "measure", "strength", "poison", "victims", "success", "without poison"),
        *("clean acc.", "traces", "precision", "recall", "worst trace", "precision, any campaign"),
    )
    return as_table(head, lines)


def _trace_table(rows: list[Row]) -> str:
    """One line for each attack, data set, rate and rule: means over seeds and events, and the worst trace."""
    groups = grouped(
        filter(is_sound, rows),
        lambda row: (attack_of(row), row["dataset"], row["n_train"], -row["rate"], row["rule"]),
    )
    lines = []
    for (attack, dataset, n_train, negative_rate, rule), group in sorted(groups.items(), key=lambda item: item[0]):
        n_victims = len(set(map(victim_of, group)))
        lines.append(
            [
                attack,
                f"{dataset}, {n_train:,}",
                f"{-negative_rate:.1%}",
                rule,
                f"{n_victims} x {len(group) // n_victims}",
                mean_of(group, "precision"),
                mean_of(group, "recall"),
                worst_of(group),
                f"{mean_of(group, 'n_tests'):.1f}",
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
    return as_table(head, lines)


def _short_table(rows: list[Row]) -> str:
    """One line for each rate of BadNets on CIFAR-10, the two rules side by side."""
    groups: dict[tuple[float, int], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if is_sound(row) and (row["attack"], row["dataset"]) == ("badnets", "cifar10"):
            groups[(row["rate"], row["n_train"])][row["rule"]].append(row)

    def means(group: list[Row]) -> str:
        return f"{mean_of(group, 'precision'):.3f} / {mean_of(group, 'recall'):.3f}"

    lines = [
        [
            f"{100 * rate:.3g}%",
            f"{rules['default'][0]['n_poison']:,} of {n_train:,}",
            len(rules["default"]),
            means(rules["default"]),
            means(rules["paper"]),
        ]
        for (rate, n_train), rules in sorted(groups.items(), key=lambda item: item[0], reverse=True)
        if rules["default"] and rules["paper"]
    ]
    head = ("rate", "poison", "traces", "precision / recall", "the paper's rule")
    return as_table(head, lines)


def _every_table(rows: list[Row]) -> str:
    """One line for each victim: is it well trained, does the attack work, what did each of its events give."""
    groups = grouped(
        (row for row in rows if row["kind"] == "trace" and row["rule"] == "default"),
        lambda row: (attack_of(row), row["dataset"], -row["rate"], row["seed"], victim_of(row)),
    )
    lines = [
        [
            *(attack_of(group[0]), group[0]["dataset"], f"{group[0]['rate']:.1%}", group[0]["seed"]),
            *(group[0][name] for name in ("n_poison", "clean_accuracy", "train_accuracy")),
            f"{group[0]['attack_success']:.3f}{'' if group[0]['succeeded'] else ', failed'}",
            group[0]["attack_success_twin"],
            ", ".join(f"{row['precision']:.3f}/{row['recall']:.3f}" for row in group),
        ]
        for _, group in sorted(groups.items(), key=lambda item: item[0])
    ]
    lines += [
        [attack_of(row), row["dataset"], f"{row['rate']:.1%}", row["seed"], *[""] * 5, f"failed: {row['error']}"]
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
    return as_table(head, lines)


def _clean_table(rows: list[Row]) -> str:
    """One line for each unpoisoned twin: what its natural mistakes ended in."""
    groups = grouped(
        (row for row in rows if row["kind"] == "clean"),
        lambda row: (row["dataset"], row["n_train"], ", ".join(changes_of(row)), row["seed"]),
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
    return as_table(head, lines)


def _networks_table(rows: list[Row]) -> str:
    """One line for each network and training that is not as usual, below the same attack on the usual one.

    Of unpoisoned twins the natural mistakes that were accused are counted, of all that were traced.
    """
    groups = grouped(
        (row for row in rows if row["kind"] in ("trace", "clean") and row["rule"] == "default"),
        lambda row: ((row["attack"], row["dataset"], row["n_train"], -row["rate"]), ", ".join(changes_of(row))),
    )
    shown = {task for task, changes in groups if changes}
    lines = []
    for (task, changes), group in sorted(groups.items(), key=lambda item: item[0]):
        if task not in shown:
            continue
        attack, dataset, n_train, negative_rate = task
        tried = {victim_of(row): row for row in group if row["kind"] == "trace"}.values()
        traces, mistakes = [row for row in group if is_sound(row)], [row for row in group if row["kind"] == "clean"]
        sure = [row["confidence"] for row in tried if "confidence" in row]
        lines.append(
            [
                f"{attack}, {dataset}, {n_train:,}, {-negative_rate:.3g}",
                changes or "usual",
                f"{len(set(map(victim_of, traces)))} of {len(tried)}",
                statistics.mean(sure) if sure else DASH,
                *(mean_of(tried, name) if tried else DASH for name in ("clean_accuracy", "attack_success")),
                len(traces),
                *(mean_of(traces, name) if traces else DASH for name in ("precision", "recall")),
                worst_of(traces) if traces else DASH,
                f"{sum(row['verdict'] == 'poison' for row in mistakes)} of {len(mistakes)}",
            ]
        )
    head = (
        *("attack, data, samples, rate", "network and training", "victims", "confidence", "clean acc.", "success"),
        *("traces", "precision", "recall", "worst trace", "natural mistakes accused"),
    )
    return as_table(head, lines)


def _fault_table(rows: list[Row]) -> str:
    """One line for each fault: what the command line answered, and what the same command did after it."""
    lines = []
    for row in rows:
        if row["kind"] == "fault":
            kept = f"goes on after {row['n_kept']:,} samples, " if row["n_kept"] else ""
            then = f"{kept}{'same result' if row['is_same'] else 'another result'}"
            lines.append([row["case"], row["code"], f"`{row['message']}`" if row["message"] else DASH, then])
    return as_table(("fault", "exit code", "standard error", "the same command after it"), lines)


def _bad_input_table(rows: list[Row]) -> str:
    """One line for each bad input: what the command line answered."""
    lines = [[row["case"], row["code"], f"`{row['message']}`"] for row in rows if row["kind"] == "bad-input"]
    return as_table(("bad input", "exit code", "standard error"), lines)


def _verdict_table(rows: list[Row]) -> str:
    """One line for each kind of event: what became of it."""
    groups = grouped(
        (row for row in rows if is_judged(row)),
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
    return as_table(head, lines)


def _error_table(rows: list[Row]) -> str:
    """One line for each range of the probability of poison: how often it was."""
    lines = [
        (f"{low:.2f} to {high:.2f}", *counts, *(DASH if math.isnan(share) else f"{share:.3f}" for share in shares))
        for low, high, *counts, shares in ((*line[:4], line[4:]) for line in reliability(rows))
    ]
    head = ("probability of poison", "natural mistakes", "events of poison", "stated, mean", "was poison, evened")
    return as_table(head, lines)


def _score_table(rows: list[Row]) -> str:
    """One line for each range of the score: how many samples were poison."""
    lines = []
    for low, poison, others in scored(rows):
        share = f"{poison / (poison + others):.3f}" if poison + others else DASH
        lines.append([f"{low:.1f} to {low + 0.1:.1f}", f"{poison + others:,}", f"{poison:,}", share])
    return as_table(("score", "samples", "poison", "share"), lines)


def _proof_table(rows: list[Row]) -> str:
    """One line for each attack and task: what training again without the samples found leaves of it."""
    groups = grouped(
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
                f"{100 * rate:.3g}%",
                len({row["seed"] for row in group}),
                f"{corrected} of {len(group)}",
                sum(row["result"] == "corrected either way" for row in proved),
                *(mean_of(proved, name) for name in ("success", "success_control", "success_without", "success_twin")),
                f"{max((row['success_without'] - row['success_twin'] for row in proved), default=0.0):+.3f}",
                *(mean_of(proved, name) for name in ("accuracy", "accuracy_without", "accuracy_control")),
            ]
        )
    head = (
        *("attack", "data, samples", "rate", "victims", "events corrected", "by the control too", "success"),
        *("control", "without those found", "never poisoned", "worst difference", "clean acc."),
        *("without those found", "control"),
    )
    return as_table(head, lines)


def _ablation_table(rows: list[Row]) -> str:
    """One line for each rule of the method: what becomes of traces without it, and of natural mistakes."""

    def worth(row: Row) -> float:
        if row["kind"] == "ablation, mistake":
            return float(row["verdict"] != "poison")
        return float(row["precision"] + row["recall"]) if row["n_found"] else 0.0

    ablated = [row for row in rows if row["kind"].startswith("ablation")]
    groups = grouped(ablated, lambda row: (row["rule"], *(row["decisions"] or [0])))
    known = {(row["kind"], victim_of(row), row["event"]): worth(row) for row in ablated if not row["rule"]}
    lines = []
    for (rule, *decisions), group in sorted(groups.items(), key=lambda item: item[0][1:]):
        cells: list[Any] = [rule or "all rules", ", ".join(f"{number:04d}" for number in decisions) if rule else DASH]
        of_poison, of_mistakes = ([row for row in group if row["kind"] == f"ablation, {asked}"] for asked in ASKED)
        working = [row for row in of_poison if row["succeeded"]]
        failing = [row for row in of_poison if not row["succeeded"]]
        for traces in (working, failing, of_mistakes):
            change = [worth(row) - known[row["kind"], victim_of(row), row["event"]] for row in traces]
            cells.append(len(traces))
            cells += [sum(by < -ALIKE for by in change), sum(by > ALIKE for by in change)] if rule else [DASH, DASH]
        lines.append(cells)
    head = ("without", "decisions", "traces", "worse", "better", "of attacks that fail", "worse", "better")
    return as_table((*head, "natural mistakes", "accused", "let go"), lines)


def _text_table(rows: list[Row]) -> str:
    """One line for each trigger and rate in texts; the last ones of texts without poison."""
    groups = grouped((row for row in rows if row["kind"] == "texts"), lambda row: (row["trigger"], row["rate"]))
    lines = []
    for (trigger, _), group in sorted(groups.items(), key=lambda item: (not item[0][0], item[0][0], -item[0][1])):
        victims = {row["seed"]: row for row in group}.values()
        n_accused = sum(row["verdict"] == "poison" for row in group)
        success = [f"{mean_of(victims, name):.3f}" if trigger else DASH for name in ("success", "success_twin")]
        found = [f"{mean_of(group, name):.3f}" if trigger else DASH for name in ("precision", "recall")]
        named = f'"{trigger}"' if trigger else "none: natural mistakes"
        counts = [f"{group[0]['poison']} of {group[0]['n']:,}", len(victims), *success]
        counts.append(f"{mean_of(victims, 'clean_accuracy'):.3f}")
        lines.append([named, *counts, len(group), n_accused, *found, worst_of(group) if trigger else DASH])
    head = ("trigger", "poison", "victims", "success", "without poison", "clean acc.", "events", "verdict poison")
    return as_table((*head, "precision", "recall", "worst trace"), lines)


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
    "ablation": _ablation_table,
    "speed": costs.speed_table,
    "start": costs.start_table,
    "ranks": costs.ranks_table,
    "scaling": costs.scaling_table,
    "sizes": costs.sizes_table,
    "bad-input": _bad_input_table,
    "fault": _fault_table,
    "peers": costs.peers_table,
    "peers-each": costs.peers_each_table,
    "peers-lost": costs.peers_lost_table,
}
