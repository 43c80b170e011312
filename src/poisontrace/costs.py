"""Tables of what a trace costs: time, memory and growth, and how other methods do on the same events."""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from poisontrace.rows import DASH, Row, as_table, attack_of, grouped, mean_of, victim_of, worst_of

GPU_SPEED, DISK_SPEED = 5e13, 1e9  # operations and bytes a second that nobody measured here; the table says so
# Methods of the comparison with others that its tables name: ours, the measure of cost, and what no method can lose to.
OURS, PASS = "ours", "one forward pass"
FLOORS = ("random", "oracle", PASS)
FIGURES = {"precision": "precision", "recall": "recall", "auprc": "AUPRC"}


def speed_table(rows: list[Row]) -> str:
    """One line for each victim and device: medians over the repeats, each ratio taken within one process."""
    groups = grouped(
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
    return as_table(head, lines)


def start_table(rows: list[Row]) -> str:
    """One line for each measured fresh clone."""
    lines = [
        [row["setup_seconds"], row["demo_seconds"], row["precision"], row["recall"], row["test_seconds"], row["tests"]]
        for row in rows
        if row["kind"] == "start"
    ]
    return as_table(("make setup, s", "make demo, s", "precision", "recall", "make test, s", "its last line"), lines)


def ranks_table(rows: list[Row]) -> str:
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
    return as_table(head, lines)


def scaling_table(rows: list[Row]) -> str:
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
    return as_table(head, lines)


def sizes_table(rows: list[Row]) -> str:
    """One line for each size of training set: counted a sample, multiplied, and divided by a measured speed."""
    measured = next((row for row in rows if row["kind"] == "ranks"), None)
    if measured is None:
        return as_table(("data, model",), [])
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
    return as_table(head, lines)


def exponent(rows: list[Row], name: str) -> float:
    """Return the slope of the line that fits the logarithms of a number, or of a stage's seconds, against n."""
    x = [math.log(row["n"]) for row in rows]
    y = [math.log(row[name] if name in row else row["stages"][name]) for row in rows]
    return statistics.linear_regression(x, y).slope


def _peer_rows(rows: list[Row]) -> dict[tuple[str, int], dict[str, Row]]:
    """Return the rows of each incident by method, in the order they were measured."""
    incidents: dict[tuple[str, int], dict[str, Row]] = defaultdict(dict)
    for row in rows:
        if row["kind"] == "peer":
            incidents[victim_of(row)][row["rule"]] = row
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
    return f"{mean_of(known, precision):.3f} / {mean_of(known, recall):.3f}" if known else DASH


def peers_table(rows: list[Row]) -> str:
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
                worst_of(judged) if judged else DASH,
                _pair(answered, "precision_in_label", "recall_in_label"),
                f"{mean_of(ranked, 'auprc'):.3f}" if ranked else DASH,
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
    return as_table(head, lines)


def peers_each_table(rows: list[Row]) -> str:
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
    return as_table(head, lines)


def peers_lost_table(rows: list[Row]) -> str:
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
    return as_table(head, lines or [["none", *[DASH] * 4]])


def _peer_incident(row: Row) -> str:
    return f"{attack_of(row)}, {row['dataset']} {row['n_train']:,}, {row['n_poison']:,} poison, seed {row['seed']}"
