"""Tables of cost: growth, sizes, ranks, and other methods."""

from pathlib import Path
from typing import Any

from pages import lines_of, page_of, trace_row


def test_growth_is_fitted_on_logarithms(tmp_path: Path) -> None:
    """Ten times the samples and twenty times the seconds: an exponent of 1.3; a line for each size and one for it."""
    row = {"kind": "scaling", "n_poison": 10, "verdict": "poison", "precision": 1.0, "recall": 1.0, "own_bytes": 1e9}
    rows = [
        {**row, "n": n, "seconds": s, "cpu_seconds": s, "peak_bytes": 2e9, "stages": {"clustering": s, "unlearning": s}}
        for n, s in ((1000, 1.0), (10_000, 20.0))
    ]

    page = page_of(tmp_path, rows[::-1])

    assert "| 1,000 | 10 | poison | 1.000 / 1.000 | 1.0 | 1.0 | 1.0 | 1.0 | 1,000 | 2,000 |" in page
    assert "| exponent | – | – | – | 1.30 | 1.30 | 1.30 | 1.30 | 0.00 | 0.00 |" in page


def test_sizes_are_counts_times_measured_speed(tmp_path: Path) -> None:
    """A thousand samples of 36 MFLOP in one second are 36 GFLOP/s; an hour and a half for 194.4 TFLOP at that."""
    rows = [
        {"kind": "sizes", "name": "Big", "n": 54_000, "flops": 3.6e9, "bytes": 20_000},
        {
            **{"kind": "ranks", "model": "m", "n_samples": 1000, "flops": 36e6, "n_ranks": 2, "n_cpus": 2},
            **{"load_after": 0.0, "ratio": 2.0, "cpu_ratio": 2.0, "seconds_alone": [1.0], "seconds_shared": [0.5]},
            **{"cpu_seconds_alone": [1.0], "cpu_seconds_shared": [0.5]},
        },
    ]

    page = page_of(tmp_path, rows)

    assert "| Big | 54,000 | 3.60 | 20,000 | 1.1 | 1.9e+14 | 1.5 | 0.00 | 0.0 |" in page
    assert "hours at 36 GFLOP/s, one core (measured)" in page


def test_ranks_are_shown_by_medians(tmp_path: Path) -> None:
    """Beside the ratio, what else the machine did."""
    row = {"kind": "ranks", "model": "resnet9", "n_samples": 100, "n_ranks": 2, "n_cpus": 2, "load_after": 1.5}
    row |= {"seconds_alone": [4.0, 2.0, 9.0], "seconds_shared": [2.0], "ratio": 2.0, "cpu_ratio": 1.9, "flops": 1}

    page = page_of(tmp_path, [{**row, "cpu_seconds_alone": [4.0], "cpu_seconds_shared": [2.1]}])

    assert "| resnet9, 100 | 2 | 4.0 | 2.0 | 2.00 | 4.0 | 2.1 | 1.90 | 1.5 on 2 CPUs |" in page


def peer_row(method: str, cpu_seconds: float, **changes: Any) -> dict[str, Any]:
    """Return what the tables read of another method's row."""
    row = trace_row(kind="peer", rule=method, cpu_seconds=cpu_seconds, peak_memory_bytes=250_400_000, **changes)
    return {name: value for name, value in row.items() if value is not None}


def test_other_methods_are_compared_on_the_same_events(tmp_path: Path) -> None:
    """Means over incidents, ratios within one incident, dashes for what a method does not give, errors in words."""
    near = {"precision_in_label": 0.5, "recall_in_label": 0.25}
    best = {"precision": None, "recall": None, "auprc": 0.75, "best_precision": 0.5, "best_recall": 1.0}
    rows = [
        peer_row("ours", 4.0, precision=0.9, auprc=0.5, best_precision=1.0, best_recall=1.0, **near),
        peer_row("set", 8.0, precision=0.5, recall=0.25, **near),
        peer_row("ranking", 1.0, **best),
        {**peer_row("slow", 0.0, precision=None, recall=None), "error": "took longer than 10 s"},
        peer_row("one forward pass", 2.0, precision=None, recall=None),
        peer_row("ours", 1.0, seed=1, precision=1.0, auprc=1.0, best_precision=1.0, best_recall=1.0, **near),
        peer_row("set", 1.0, seed=1, precision=1.0, recall=0.75, **near),
        peer_row("random", 1.0, seed=1, **{**best, "auprc": 1.5}),
    ]
    del rows[3]["cpu_seconds"]

    page = page_of(tmp_path, rows)

    near_words, incident = "0.500 / 0.250", "badnets, digits 1,437, 72 poison, seed"
    assert lines_of(page, "peers") == [
        f"| ours | 2 of 2 | 0.950 / 1.000 | 0.900 / 1.000 | {near_words} | 0.750 | 1.000 / 1.000 | 1 | 2 | 250 |",
        f"| set | 2 of 2 | 0.750 / 0.500 | 0.500 / 0.250 | {near_words} | – | – | 1.5 | 4 | 250 |",
        "| ranking | 1 of 1 | – | – | – | 0.750 | 0.500 / 1.000 | 0.25 | 0.5 | 250 |",
        "| slow | 0 of 1 | – | – | – | – | – | – | – | – |",
        "| one forward pass | 1 of 1 | – | – | – | – | – | 0.5 | 1 | 250 |",
        "| random | 1 of 1 | – | – | – | 1.500 | 0.500 / 1.000 | 1 | – | 250 |",
    ]
    each = lines_of(page, "peers-each")
    assert len(each) == 8
    assert each[2] == f"| {incident} 0 | ranking | – | – | 0.750 | 0.500 / 1.000 | 2.0 | 1.0 | 0.25 | 0.5 | 250 |"
    assert each[3] == f"| {incident} 0 | slow | – | – | – | – | – | – | took longer than 10 s | – | – |"
    assert lines_of(page, "peers-lost") == [f"| {incident} 0 | ranking | AUPRC | 0.750 | 0.500 |"]


def test_a_comparison_that_nothing_is_lost_in_says_so(tmp_path: Path) -> None:
    """An empty table would look forgotten."""
    page = page_of(tmp_path, [peer_row("ours", 1.0), peer_row("not compared yet", 1.0, seed=1)])

    assert lines_of(page, "peers-lost") == ["| none | – | – | – | – |"]
