"""The comparison with other methods: fair processes, rows that say what happened, and figures that are right."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from poisontrace import bench
from poisontrace._rng import numpy_generator
from poisontrace.incidents import Incident, Plan

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import bench_peers
from peers import METHODS
from peers.case import Answer

GRID = """
seeds = [0]
n_events = 1
rules = []

[[incidents]]
attack = "badnets"
dataset = "{}"
"""


def rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_are_put_in_the_order_of_the_tables(tmp_path: Path) -> None:
    """Incidents as the grid has them, methods as METHODS has them, whatever was measured first."""
    (tmp_path / "tiny.toml").write_text(GRID.format("digits").replace("[0]", "[4, 1]"))
    plan = {"attack": "badnets", "dataset": "digits", "rate": 0.05}
    results = tmp_path / "results.jsonl"
    written = [(seed, name) for name in ("oracle", "ours") for seed in (1, 4)]
    lines = [{"kind": "peer", "plan": plan, "seed": seed, "rule": name, "event": 0} for seed, name in written]
    results.write_text("".join(json.dumps(line) + "\n" for line in lines))

    bench_peers.put_in_order(results, [tmp_path / "tiny.toml"])

    assert [(row["seed"], row["rule"]) for row in rows(results)] == [
        *((4, "ours"), (4, "oracle")),
        *((1, "ours"), (1, "oracle")),
    ]


@pytest.fixture
def small(digits_incident: Incident, monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """The incident of the other tests, whatever the plan; the plans that were asked for."""
    made: list[Plan] = []
    monkeypatch.setattr(bench_peers.incidents, "make", lambda plan: made.append(plan) or digits_incident)
    return made


def measure(monkeypatch: pytest.MonkeyPatch, folder: Path, *options: str, dataset: str = "digits") -> Path:
    """Run the script within this process; return its rows' file."""
    (folder / "tiny.toml").write_text(GRID.format(dataset))
    results = folder / "results.jsonl"
    arguments = ["bench_peers.py", str(folder / "tiny.toml"), "--results", str(results), *options]
    monkeypatch.setattr(sys, "argv", arguments)
    bench_peers.main()
    return results


@pytest.mark.parametrize("seed", range(5))
def test_a_ranking_is_judged_as_scikit_learn_does(seed: int) -> None:
    """Average precision with equal scores, and the best of all thresholds by F1."""
    random = numpy_generator(seed, "test/ranking")
    scores, poison = random.integers(0, 8, 40).astype(np.float64), np.sort(random.permutation(40)[:9])
    truth = np.isin(np.arange(40), poison)

    row = bench_peers.ranking(scores, poison)

    def f1(found: NDArray[np.bool_]) -> float:
        return float(2 * (found & truth).sum() / (found.sum() + truth.sum()))

    best = max((scores >= threshold for threshold in np.unique(scores)), key=f1)
    assert row["auprc"] == pytest.approx(average_precision_score(truth, scores))
    precision, recall = row["best_precision"], row["best_recall"]
    assert 2 * precision * recall / (precision + recall) == pytest.approx(f1(best))


def test_an_answer_is_judged_over_all_samples_and_within_the_label() -> None:
    """A set has no average precision, a ranking no precision of its own."""
    poison, in_label = np.array([0, 1, 2]), np.arange(8) < 4

    of_set = bench_peers.judge(Answer(np.array([1, 2, 3, 6])), poison, in_label)
    of_ranking = bench_peers.judge(Answer(scores=np.arange(8.0)), poison, in_label)

    assert of_set == {
        "n_found": 4,
        "precision": 0.5,
        "recall": pytest.approx(2 / 3),
        "precision_in_label": pytest.approx(2 / 3),
        "recall_in_label": pytest.approx(2 / 3),
    }
    assert set(of_ranking) == {"auprc", "best_precision", "best_recall"}
    assert bench_peers.judge(Answer(), poison, in_label) == {}


def test_a_method_answers_from_a_process_of_its_own(
    small: list[Plan], digits_incident: Incident, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its row has the truth's verdict and what it cost; the second run finds nothing left to do."""
    first = measure(monkeypatch, tmp_path, "--only", "oracle")
    before = first.read_bytes()
    again = measure(monkeypatch, tmp_path, "--only", "oracle")

    (row,) = rows(first)
    assert len(small) == 1  # the second run needs no incident
    assert again.read_bytes() == before
    assert (row["kind"], row["rule"], row["event"], row["threads"]) == ("peer", "oracle", 0, bench_peers.THREADS)
    assert (row["precision"], row["recall"], row["auprc"]) == (1.0, 1.0, 1.0)
    assert row["n_found"] == digits_incident.is_poison.sum()
    assert row["plan"] == {"attack": "badnets", "dataset": "digits", "rate": 0.05}
    assert 0 < row["seconds"] and 0 < row["base_memory_bytes"] <= row["peak_memory_bytes"]


def test_what_takes_too_long_has_a_row_too(small: list[Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is stopped, and its row says why it is empty."""
    (row,) = rows(measure(monkeypatch, tmp_path, "--only", "ours", "--limit", "1"))

    assert row["error"] == "took longer than 1 s"
    assert "precision" not in row and "seconds" not in row


def test_what_fails_says_why(small: list[Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last line of what it wrote, and the next method still has its turn."""
    broken = tmp_path / "broken.py"
    broken.write_text("import sys\nsys.exit('no such luck\\n')\n")
    monkeypatch.setattr(bench_peers, "__file__", str(broken))

    written = rows(measure(monkeypatch, tmp_path, "--only", "random", "oracle"))

    assert [(row["rule"], row["error"]) for row in written] == [("random", "no such luck"), ("oracle", "no such luck")]


def test_who_needs_images_is_not_given_rows(small: list[Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the row says so."""
    sound = bench_peers.read_case

    def as_rows(*arguments: Any, **options: Any) -> Any:
        case = sound(*arguments, **options)
        object.__setattr__(case.train_set, "x", case.train_set.x.reshape(len(case.train_set), -1))
        return case

    monkeypatch.setattr(bench_peers, "read_case", as_rows)
    names = [name for name, method in METHODS.items() if method.images_only]

    written = rows(measure(monkeypatch, tmp_path, "--only", *names))

    assert [row["error"] for row in written] == ["defined for images only"] * len(names)


def test_the_committed_rows_are_of_the_committed_grids() -> None:
    """Nothing else is in the tables, and nothing twice."""
    plans = [plan for grid in bench_peers.GRIDS for plan in bench.read_grid(grid).plans()]
    keys = [bench.key_of_row(row) for row in rows(bench_peers.RESULTS)]
    known = {bench.key_of(plan, "peer", name, 0) for plan in plans for name in METHODS}

    assert len(set(keys)) == len(keys)
    assert set(keys) <= known
