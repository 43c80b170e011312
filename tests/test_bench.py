"""The harness: a grid is traced once, rows are never lost or doubled, and tables say what the rows say."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bad_inputs import GRID
from tasks import DIGITS_PLAN

from poisontrace import Finding, Trace, bench, incidents, train
from poisontrace._errors import InvalidInputError, PoisontraceError, StoreError

KEYS = {
    *("attack", "dataset", "rate", "seed", "n_train", "n_poison", "clean_accuracy", "train_accuracy", "attack_success"),
    *("attack_success_twin", "succeeded", "model", "versions", "threads", "kind", "rule", "event"),
}
TRACE_KEYS = {
    *("verdict", "n_found", "precision", "recall", "statistics", "n_tests", "seconds", "stages"),
    *("peak_memory_bytes", "device", "config"),
}
SPEED_KEYS = {"plain_seconds", "seconds", "ratio", "stages"}
TINY = {**GRID, "n_events": 2, "rules": ["default", "paper"], "speed_repeats": 1}


def write_grid(path: Path, **changes: Any) -> Path:
    """Write the tiny grid, some of its keys changed."""
    grid = {**TINY, **changes}
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in grid.items()))
    return path


def write_page(path: Path) -> Path:
    """Write a page with all marks, and words around them."""
    marks = "\n\n".join(f"{bench.MARK.format(name)}\n{bench.MARK.format(f'end {name}')}" for name in bench.TABLES)
    path.write_text(f"# Evidence\n\n{marks}\n\nThe end.\n")
    return path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train victims as small as those of the other tests."""
    recipe = train.Recipe(epochs=DIGITS_PLAN.epochs or 0, batch_size=64, lr=0.05)
    task = incidents.Task(model="small_cnn", width=DIGITS_PLAN.width or 0, recipes={"scratch": recipe})
    monkeypatch.setitem(incidents.TASKS, "digits", task)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The rule of every trace that is made."""
    rules, trace = [], bench.tracing.trace

    def count(*arguments: Any, rule: str, **options: Any) -> Trace:
        rules.append(rule)
        return trace(*arguments, rule=rule, **options)

    monkeypatch.setattr(bench.tracing, "trace", count)
    return rules


def rows_of(results: Path) -> list[dict[str, Any]]:
    """Read the rows of the tiny grid."""
    return [json.loads(line) for line in (results / "tiny.jsonl").read_text().splitlines()]


def test_a_grid_is_traced_once(small: None, traced: list[str], tmp_path: Path) -> None:
    """One row for each rule and event and each repeat of the speed, with all keys; a second run adds nothing."""
    grid, results = write_grid(tmp_path / "tiny.toml"), tmp_path / "results"
    said: list[tuple[str, int, int]] = []

    bench.run(grid, results, progress=lambda *now: said.append(now))
    rows = rows_of(results)
    first = list(traced)
    bench.run(grid, results)

    asked = [("trace", "default", 0), ("trace", "default", 1), ("trace", "paper", 0), ("trace", "paper", 1)]
    assert [(row["kind"], row["rule"], row["event"]) for row in rows] == [*asked, ("speed", "default", 0)]
    assert all(row.keys() == KEYS | (TRACE_KEYS if row["kind"] == "trace" else SPEED_KEYS) for row in rows)
    assert min(row["precision"] for row in rows[:2]) > 0.9 and min(row["recall"] for row in rows[:2]) > 0.9
    assert said[-1] == ("tiny", 1, 1)
    assert (first, traced) == (["default", "default", "paper", "paper", "default"], first)
    assert rows_of(results) == rows


def test_an_interrupted_run_goes_on(small: None, traced: list[str], tmp_path: Path) -> None:
    """A line that was cut off is measured again; the others are kept."""
    grid, results = write_grid(tmp_path / "tiny.toml", rules=["default"], speed_repeats=0), tmp_path / "results"
    bench.run(grid, results)
    whole = (results / "tiny.jsonl").read_text()
    kept, last = whole.splitlines()
    (results / "tiny.jsonl").write_text(f"{kept}\n{last[:100]}")
    traced.clear()

    assert bench.read_rows(results / "tiny.jsonl") == [json.loads(kept)]
    bench.run(grid, results)

    assert traced == ["default"]
    again = rows_of(results)
    assert again[0] == json.loads(kept)
    assert (again[1]["event"], again[1]["recall"]) == (1, json.loads(last)["recall"])


def test_fewer_events_than_asked_for_are_no_failure(
    small: None, traced: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every event there is has its row."""
    make = incidents.make
    few = incidents.Plan(attack="badnets", dataset="digits", n_events=1)
    monkeypatch.setattr(incidents, "make", lambda plan, *, progress: make(few))

    bench.run(write_grid(tmp_path / "tiny.toml", rules=["default"], speed_repeats=0), tmp_path)

    assert traced == ["default"]


def test_natural_mistakes_of_the_twin_are_traced(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each error on clean test images counts once, the most confident one first; there are no more rows."""
    finding = Finding(0, 0.5, "no-poison", np.array([], np.int64), {"separation": 1.5})
    quick = SimpleNamespace(findings=(finding,), verdict="no-poison", poison=[], seconds={"clustering": 0.1})
    monkeypatch.setattr(bench.tracing, "trace", lambda *_, **__: quick)
    grid = write_grid(tmp_path / "tiny.toml", rules=[], speed_repeats=0, natural_mistakes=100)

    bench.run(grid, tmp_path)
    bench.write_tables(tmp_path, write_page(tmp_path / "README.md"))

    rows = rows_of(tmp_path)
    assert [(row["kind"], row["event"]) for row in rows] == [("clean", event) for event in range(len(rows))]
    images = [row["test_image"] for row in rows]
    n = len(rows)
    assert n > 1
    assert len(set(images)) == n
    assert f"| digits, 1,437 | 0 | {n} | {n} | 0 | 0 | 1.5 | 0.1 |\n" in (tmp_path / "README.md").read_text()


def test_a_failed_attack_is_one_row_and_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is listed, not dropped, and neither tried again nor written twice on the next run."""
    tried = []

    def fail(plan: incidents.Plan, **_: object) -> None:
        tried.append(plan.seed)
        raise PoisontraceError("The attack failed: a | b.")

    monkeypatch.setattr(incidents, "make", fail)
    grid = write_grid(tmp_path / "tiny.toml", seeds=[0, 1])
    for _ in range(2):
        bench.run(grid, tmp_path)
        bench.write_tables(tmp_path, write_page(tmp_path / "README.md"))

    assert tried == [0, 1]
    assert [(row["kind"], row["seed"]) for row in rows_of(tmp_path)] == [("failed", 0), ("failed", 1)]
    page = (tmp_path / "README.md").read_text()
    assert page.count("failed: The attack failed: a \\| b. |\n") == 2


@pytest.mark.parametrize("error", [StoreError("no data"), InvalidInputError("bad rate")], ids=repr)
def test_what_is_not_the_attacks_fault_is_raised(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A data set that is not there leaves no row that says the attack failed."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(incidents, "make", fail)

    with pytest.raises(type(error), match=str(error)):
        bench.run(write_grid(tmp_path / "tiny.toml"), tmp_path)

    assert not (tmp_path / "tiny.jsonl").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attack": "siege"}, "'grid: attack' must be one of badnets"),
        ({"dataset": ["digits"]}, "'grid: dataset' must be one of "),
        ({"rates": []}, r"'grid: rates' must be a list of fractions in \(0, 1\) \(got \[\]\)"),
        ({"rates": [1]}, "'grid: rates' must be a list of fractions"),
        ({"rates": 0.1}, "'grid: rates' must be a list of fractions"),
        ({"seeds": [0.5]}, "'grid: seeds' must be a list of whole numbers"),
        ({"seeds": [True]}, "'grid: seeds' must be a list of whole numbers"),
        ({"rules": ["best"]}, "'grid: rules' must be a list of default, paper"),
        ({"n_events": 0}, "'grid: n_events' must be at least 1"),
        ({"n_train": 0}, "'grid: n_train' must be at least 1"),
        ({"speed_repeats": -1}, "'grid: speed_repeats' must be at least 0"),
        ({"natural_mistakes": "all"}, "'grid: natural_mistakes' must be at least 0"),
        ({"sedes": [1]}, "'grid' must hold no other keys than .*got 'sedes'"),
    ],
    ids=str,
)
def test_a_grid_is_checked_before_any_work(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Names, numbers, and keys nobody reads."""
    with pytest.raises(InvalidInputError, match=message):
        bench.run(write_grid(tmp_path / "tiny.toml", **changes), tmp_path / "results")

    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "benchmarks" / "grids").glob("*.toml")), ids=str)
def test_the_projects_grids_are_sound(path: Path) -> None:
    """Each can be run."""
    assert bench.read_grid(path)["seeds"]


def test_rows_that_are_damaged_are_not_passed_over(tmp_path: Path) -> None:
    """Only the last line may be cut off; a broken one before it would be lost in silence."""
    (tmp_path / "tiny.jsonl").write_text('{"kind": "start"}\n{"kin\n{"kind": "start"}\n')

    with pytest.raises(InvalidInputError, match=r"'results' must hold one JSON row a line .*line 2 of 'tiny\.jsonl'"):
        bench.read_rows(tmp_path / "tiny.jsonl")


def trace_row(**changes: Any) -> dict[str, Any]:
    """Return what the tables read of a trace's row."""
    numbers = {"clean_accuracy": 0.97, "train_accuracy": 1.0, "attack_success": 0.95, "attack_success_twin": 0.01}
    named = {"kind": "trace", "attack": "badnets", "dataset": "digits", "rule": "default", "n_train": 1437}
    return {
        **named,
        **numbers,
        **{"n_poison": 72, "rate": 0.05, "seed": 0, "event": 0, "precision": 1.0, "recall": 1.0, "n_tests": 3},
        **changes,
    }


def test_tables_are_made_from_the_rows(tmp_path: Path) -> None:
    """Means, the worst trace, medians; what stands around the marks stays; doing it twice changes nothing."""
    stages = {"forward pass": 0.2, "clustering": 0.1, "unlearning": 0.3}
    speeds = [
        {**trace_row(), "kind": "speed", "plain_seconds": 0.1, "seconds": ratio / 10, "ratio": ratio, "stages": stages}
        for ratio in (2.0, 9.0, 3.0)
    ]
    start = {"setup_seconds": 61.5, "demo_seconds": 9.0, "precision": 1.0, "recall": 0.99, "test_seconds": 40.0}
    rows = [
        trace_row(),
        trace_row(event=1, precision=0.5, recall=0.75),
        trace_row(seed=1),
        trace_row(seed=1, event=1),
        *speeds,
        {"kind": "start", **start, "tests": "700 passed in 40.00s"},
        {"kind": "bad-input", "case": "rate 1", "code": 2, "message": "Error: 'rate' must be a fraction."},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    readme = write_page(tmp_path / "README.md")

    bench.write_tables(tmp_path, readme)
    page = readme.read_text()
    bench.write_tables(tmp_path, readme)

    assert readme.read_text() == page
    assert page.startswith("# Evidence\n\n") and page.endswith("\n\nThe end.\n")
    for line in (
        "| badnets | digits, 1,437 | 5.0% | default | 2 x 2 | 0.875 | 0.938 | 0.500 / 0.750 | 3.0 |",
        "| badnets | digits | 5.0% | 0 | 72 | 0.970 | 1.000 | 0.950 | 0.010 | 1.000/1.000, 0.500/0.750 |",
        "| badnets | digits | 5.0% | 1 | 72 | 0.970 | 1.000 | 0.950 | 0.010 | 1.000/1.000, 1.000/1.000 |",
        "| digits, 1,437 | 5.0% | 3 | 0.10 | 0.30 | 0.20 | 0.10 | 0.30 | 3.00 |",
        "| 61.500 | 9.000 | 1.000 | 0.990 | 40.000 | 700 passed in 40.00s |",
        "| rate 1 | 2 | `Error: 'rate' must be a fraction.` |",
    ):
        assert f"{line}\n" in page


@pytest.mark.parametrize("name", bench.TABLES)
def test_a_page_without_its_marks_is_refused(name: str, tmp_path: Path) -> None:
    """A mark that is missing, or the end before the start; the page stays as it was."""
    readme = write_page(tmp_path / "README.md")
    sound = readme.read_text()
    start, end = bench.MARK.format(name), bench.MARK.format(f"end {name}")

    swapped = sound.replace(start, "?").replace(end, start).replace("?", end)
    for broken in (sound.replace(start, ""), sound.replace(end, ""), swapped):
        readme.write_text(broken)
        with pytest.raises(InvalidInputError, match=f"'readme' must hold marks like {start} and {end}"):
            bench.write_tables(tmp_path, readme)
        assert readme.read_text() == broken


def test_a_mark_quoted_in_a_table_is_no_mark(tmp_path: Path) -> None:
    """The table of bad input quotes messages that name marks; wherever it stands, the other tables stay whole."""
    message = f"Error: 'readme' must hold the marks {' and '.join(map(bench.MARK.format, ('traces', 'end traces')))}."
    row = {"kind": "bad-input", "case": "a page without marks", "code": 2, "message": message}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    readme = write_page(tmp_path / "README.md")
    blocks = readme.read_text().split("\n\n")
    readme.write_text("\n\n".join(reversed(blocks)))

    for _ in range(2):
        bench.write_tables(tmp_path, readme)

    page = readme.read_text()
    assert page.count(message) == 1
    assert page.count("| precision | recall | worst trace |") == 1


def test_a_page_may_hold_some_tables_only(tmp_path: Path) -> None:
    """The README shows a few."""
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- generated: start -->\nold\n<!-- generated: end start -->\nb")

    bench.write_tables(tmp_path, readme)

    assert re.fullmatch(r"a\n<!-- \S+ start -->\n\| make .*\n\| --- .*\n<!-- .* -->\nb", readme.read_text())


def test_a_page_without_any_mark_is_refused(tmp_path: Path) -> None:
    """It is another page than the one meant."""
    (tmp_path / "README.md").write_text("words")

    with pytest.raises(InvalidInputError, match=r"'readme' must hold marks like .*README\.md'\)\. Add both"):
        bench.write_tables(tmp_path, tmp_path / "README.md")
