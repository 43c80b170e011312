"""The harness: a grid is checked before any work and traced once; rows are never lost or doubled."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bad_inputs import GRID, INCIDENT, grid_text
from tasks import DIGITS_PLAN

from poisontrace import Finding, Trace, bench, incidents, rows, train
from poisontrace._errors import InvalidInputError, PoisontraceError, StoreError

KEYS = {
    *("attack", "dataset", "rate", "seed", "n_train", "n_poison", "clean_accuracy", "train_accuracy", "attack_success"),
    *("attack_success_twin", "succeeded", "model", "versions", "threads", "device", "machine", "kind", "rule", "event"),
    *("confidence", "plan"),
}
TRACE_KEYS = {
    *(
        "verdict",
        "n_found",
        "n_responsible",
        "n_suspects",
        "n_suspects_right",
        "n_found_of_others",
        "n_found_decoys",
        "precision",
        "recall",
        "statistics",
        "score_bins",
        "n_tests",
        "seconds",
        "stages",
    ),
    *("peak_memory_bytes", "config"),
}
SPEED_KEYS = {"plain_seconds", "seconds", "ratio", "stages", "second_seconds"}
TINY = {**GRID, "n_events": 2, "rules": ["default", "paper"], "speed_repeats": 1}


def write_grid(path: Path, **changes: Any) -> Path:
    """Write the tiny grid, some of its keys changed."""
    path.write_text(grid_text({**TINY, **changes}))
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

    def count(*arguments: Any, rule: str = "default", **options: Any) -> Trace:
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
    plan = {"attack": "badnets", "dataset": "digits", "rate": 0.05}
    assert [(row["plan"], row["device"]) for row in rows] == [(plan, "cpu")] * 5
    assert (said[0], said[-1]) == (("tiny", 0, 1), ("tiny", 1, 1))
    assert (first, traced) == (["default", "default", "paper", "paper", "default", "default"], first)
    assert rows_of(results) == rows


def test_an_interrupted_run_goes_on(small: None, traced: list[str], tmp_path: Path) -> None:
    """A line that was cut off is measured again; the others are kept."""
    grid, results = write_grid(tmp_path / "tiny.toml", rules=["default"], speed_repeats=0), tmp_path / "results"
    bench.run(grid, results)
    whole = (results / "tiny.jsonl").read_text()
    kept, last = whole.splitlines()
    (results / "tiny.jsonl").write_text(f"{kept}\n{last[:100]}")
    traced.clear()

    assert rows.read_rows(results / "tiny.jsonl") == [json.loads(kept)]
    bench.run(grid, results)

    assert traced == ["default"]
    again = rows_of(results)
    assert again[0] == json.loads(kept)
    assert (again[1]["event"], again[1]["recall"]) == (1, json.loads(last)["recall"])


def test_an_older_row_is_not_measured_again(
    small: None, traced: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A field that a plan got later has its default in a row that lacks it."""
    grid = write_grid(tmp_path / "tiny.toml", rules=["default"], speed_repeats=0)
    bench.run(grid, tmp_path)
    rows = rows_of(tmp_path)
    for row in rows:
        del row["plan"]["rate"]
    (tmp_path / "tiny.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    bench.run(grid, tmp_path)

    assert rows_of(tmp_path) == rows


def test_every_incident_is_made_with_every_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed by seed, each with its own fields; one that stands there twice is made once."""
    made: list[incidents.Plan] = []

    def fail(plan: incidents.Plan, **_: object) -> None:
        made.append(plan)
        raise PoisontraceError("The attack failed.")

    monkeypatch.setattr(incidents, "make", fail)
    few = {**INCIDENT, "rate": 0.1, "n_train": 500, "target": 3}

    bench.run(write_grid(tmp_path / "tiny.toml", seeds=[1, 2], incidents=[INCIDENT, few, INCIDENT]), tmp_path)

    assert made == [incidents.Plan(**plan, seed=seed, n_events=2) for seed in (1, 2) for plan in (INCIDENT, few)]
    assert [row["plan"] for row in rows_of(tmp_path)] == [INCIDENT, few] * 2


def test_fewer_events_than_asked_for_are_no_failure(
    small: None, traced: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every event there is has its row."""
    make = incidents.make
    few = incidents.Plan(attack="badnets", dataset="digits", n_events=1)
    monkeypatch.setattr(incidents, "make", lambda plan, *, progress: make(few))

    bench.run(write_grid(tmp_path / "tiny.toml", rules=["default"], speed_repeats=0), tmp_path)

    assert traced == ["default"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Find nothing, at once."""
    finding = Finding(0, 0.5, "no-poison", np.array([], np.int64), {"separation": 1.5})
    nothing = SimpleNamespace(findings=(finding,), verdict="no-poison", poison=[], seconds={"clustering": 0.1})
    monkeypatch.setattr(bench.tracing, "trace", lambda *_, **__: nothing)


def test_natural_mistakes_of_the_twin_are_traced(
    small: None, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each error on clean test images counts once, the most confident one first; the twin is asked once."""
    asked, predict = [], train.predict
    grid = write_grid(tmp_path / "tiny.toml", rules=[], speed_repeats=0, natural_mistakes=100)
    monkeypatch.setattr(bench.train, "predict", lambda *arguments: asked.append(1) or predict(*arguments))
    make = incidents.make

    def make_unheard(*arguments: Any, **options: Any) -> incidents.Incident:
        incident = make(*arguments, **options)
        asked.clear()
        return incident

    monkeypatch.setattr(incidents, "make", make_unheard)

    bench.run(grid, tmp_path)

    rows = rows_of(tmp_path)
    assert [(row["kind"], row["event"]) for row in rows] == [("clean", event) for event in range(len(rows))]
    assert len(rows) > 1
    assert len({row["test_image"] for row in rows}) == len(rows)
    assert len(asked) == 1


def test_natural_mistakes_count_for_one_incident_of_each_data_set(
    small: None, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Incidents of one data set and size have the same twin; one whose attack failed has none."""
    make = incidents.make

    def make_most(plan: incidents.Plan, **options: Any) -> incidents.Incident:
        if plan.rate == 0.01:
            raise PoisontraceError("The attack failed.")
        return make(plan, **options)

    monkeypatch.setattr(incidents, "make", make_most)
    plans = [{**INCIDENT, "rate": 0.01}, INCIDENT, {**INCIDENT, "rate": 0.1}, {**INCIDENT, "n_train": 1000}]
    changes = {"rules": [], "speed_repeats": 0, "natural_mistakes": 1}

    for _ in range(2):
        bench.run(write_grid(tmp_path / "tiny.toml", incidents=plans, **changes), tmp_path)

    kinds = [(row["kind"], row["plan"]) for row in rows_of(tmp_path)]
    assert kinds == [("failed", plans[0]), ("clean", plans[1]), ("clean", plans[3])]


def test_a_failed_attack_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is listed, not dropped, and neither tried again nor written twice on the next run."""
    tried = []

    def fail(plan: incidents.Plan, **_: object) -> None:
        tried.append(plan.seed)
        raise PoisontraceError("The attack failed.")

    monkeypatch.setattr(incidents, "make", fail)
    grid = write_grid(tmp_path / "tiny.toml", seeds=[0, 1])
    for _ in range(2):
        bench.run(grid, tmp_path)

    assert tried == [0, 1]
    rows = rows_of(tmp_path)
    assert [(row["kind"], row["seed"], row["error"]) for row in rows] == [
        ("failed", seed, "The attack failed.") for seed in (0, 1)
    ]


def test_a_grid_for_a_gpu_trains_and_traces_there(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device goes to the victim's training and to the trace, and its name into the row."""
    devices, make, trace = [], incidents.make, bench.tracing.trace

    def make_here(plan: incidents.Plan, *, device: str, **options: Any) -> incidents.Incident:
        devices.append(device)
        return make(plan, **options)

    def trace_here(*arguments: Any, device: str, **options: Any) -> Trace:
        devices.append(device)
        return replace(trace(*arguments, device="cpu", **options), device=device)

    monkeypatch.setattr(incidents, "make", make_here)
    monkeypatch.setattr(bench.tracing, "trace", trace_here)
    monkeypatch.setattr(bench.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(bench.torch.cuda, "get_device_name", lambda: "Abacus 9")

    bench.run(write_grid(tmp_path / "tiny.toml", device="cuda", n_events=1, speed_repeats=0), tmp_path)

    assert devices == ["cuda"] * 3
    assert {(row["device"], row["machine"].split(", ")[1]) for row in rows_of(tmp_path)} == {("cuda", "Abacus 9")}


def test_a_gpu_that_is_not_there_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hours of training would come first."""
    monkeypatch.setattr(bench.torch.cuda, "is_available", lambda: False)

    with pytest.raises(InvalidInputError, match=r"'grid: device' must be usable here \(got 'cuda'\)\. Write \"cpu\""):
        bench.run(write_grid(tmp_path / "tiny.toml", device="cuda"), tmp_path / "results")

    assert not (tmp_path / "results").exists()


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
        ({"incidents": []}, r"'grid: incidents' must be a list of tables \[\[incidents\]\] \(got \[\]\)"),
        ({"incidents": ["badnets"]}, "'grid: incidents' must be a list of tables"),
        ({"seeds": [0.5]}, "'grid: seeds' must be a list of whole numbers"),
        ({"seeds": [True]}, "'grid: seeds' must be a list of whole numbers"),
        ({"seeds": None, "rules": None}, "'grid' must hold seeds, rules .*got n_events, speed_repeats, incidents"),
        ({"rules": ["best"]}, "'grid: rules' must be a list of default, paper"),
        ({"n_events": 0}, "'grid: n_events' must be at least 1"),
        ({"speed_repeats": -1}, "'grid: speed_repeats' must be at least 0"),
        ({"natural_mistakes": "all"}, "'grid: natural_mistakes' must be at least 0"),
        ({"device": "abacus"}, "'grid: device' must be one of cpu, cuda"),
        ({"sedes": [1]}, "'grid' must hold no other keys than .*got 'sedes'"),
    ],
    ids=str,
)
def test_a_grid_is_checked_before_any_work(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Names, numbers, and keys nobody reads."""
    with pytest.raises(InvalidInputError, match=message):
        bench.run(write_grid(tmp_path / "tiny.toml", **changes), tmp_path / "results")

    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attack": "siege"}, "'grid: attack' must be one of badnets"),
        ({"dataset": ["digits"]}, "'grid: dataset' must be one of "),
        ({"model": "oracle"}, "'grid: model' must be one of "),
        ({"rate": 1}, r"'grid: rate' must be a fraction in \(0, 1\) \(got 1\)"),
        ({"rate": [0.1]}, "'grid: rate' must be a fraction"),
        ({"n_train": 0}, "'grid: n_train' must be at least 1"),
        ({"width": 0.5}, "'grid: width' must be at least 1"),
        ({"epochs": True}, "'grid: epochs' must be at least 1"),
        ({"target": "3"}, "'grid: target' must be a whole number"),
        ({"target": True}, "'grid: target' must be a whole number"),
        ({"rates": [0.05]}, "'grid: incidents' must hold no other keys than attack, dataset, .*got 'rates'"),
        ({"seed": 1}, "'grid: incidents' must hold no other keys than .*got 'seed'"),
        ({"n_events": 1}, "'grid: incidents' must hold no other keys than .*got 'n_events'"),
    ],
    ids=str,
)
def test_each_incident_is_checked_before_any_work(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    """What may stand there are the fields of a plan, and the message says in which one it stands."""
    grid = write_grid(tmp_path / "tiny.toml", incidents=[INCIDENT, {**INCIDENT, **changes}])

    with pytest.raises(InvalidInputError, match=f"{message}.* in incident 2 of 'tiny.toml'"):
        bench.run(grid, tmp_path / "results")

    assert not (tmp_path / "results").exists()


@dataclass(frozen=True, kw_only=True)
class WiderPlan(incidents.Plan):
    """A plan with a field of each type."""

    kind: str = "usual"
    settings: dict[str, int] = field(default_factory=dict)
    share: float | None = None
    is_fast: bool = False


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("kind", 1, "a text"),
        ("settings", [1], "a table"),
        ("share", True, "a number"),
        ("is_fast", 1, "true or false"),
    ],
)
def test_the_annotation_of_a_field_is_its_rule(
    name: str, value: Any, rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan that gets another field needs no change here."""
    monkeypatch.setattr(bench, "Plan", WiderPlan)
    sound = {**INCIDENT, "kind": "other", "share": 1, "is_fast": True}

    plan = bench.read_grid(write_grid(tmp_path / "tiny.toml", incidents=[sound])).plans()[0]
    with pytest.raises(InvalidInputError, match=f"'grid: {name}' must be {rule} "):
        bench.read_grid(write_grid(tmp_path / "tiny.toml", incidents=[{**sound, name: value}]))

    assert plan == WiderPlan(**sound, seed=0, n_events=2)


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "benchmarks" / "grids").glob("*.toml")), ids=str)
def test_the_projects_grids_are_sound(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each can be run, where there is the device that it names."""
    monkeypatch.setattr(bench.torch.cuda, "is_available", lambda: True)

    assert bench.read_grid(path).plans()


def test_each_event_is_judged_by_its_own_truth(small: None, tmp_path: Path) -> None:
    """A row says how much was to be found, and what of the rest was another campaign's or a decoy."""
    plan = {**INCIDENT, "rate": 0.1, "options": {"campaigns": 2, "decoys": 0.1, "size": 3}}
    bench.run(
        write_grid(tmp_path / "tiny.toml", incidents=[plan], rules=["default"], speed_repeats=0, n_events=3), tmp_path
    )

    for row in rows_of(tmp_path):
        right = row["precision"] * row["n_found"]
        assert (row["n_poison"], row["n_responsible"]) == (144, 72)
        assert row["recall"] == pytest.approx(right / 72)
        assert right + row["n_found_of_others"] + row["n_found_decoys"] <= row["n_found"] + 1e-9
