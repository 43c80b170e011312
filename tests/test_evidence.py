"""The evidence of a case: found where it is said to be, the same to the bit, and refused otherwise."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tasks import write_case
from torch import nn

from poisontrace import evidence, readers, store
from poisontrace._errors import InvalidInputError, UnsupportedModelError
from poisontrace._types import Finding, Trace
from poisontrace.data import ArraySet, to_inputs
from poisontrace.evidence import Probes
from poisontrace.incidents import Incident

NOTHING: dict[str, Any] = {"data": None, "events": None}


def _copy(digits_folder: Path, tmp_path: Path, name: str) -> Path:
    return Path(shutil.copy(digits_folder / name, tmp_path / f"moved-{name}"))


def _change(case: Path, **inputs: Any) -> None:
    """Change what a case says of its inputs."""
    content = json.loads((case / "trace.json").read_text())
    content["inputs"] |= inputs
    (case / "trace.json").write_text(json.dumps(content))


def test_a_case_leads_to_what_was_traced(digits_case: Path, digits_folder: Path, digits_incident: Incident) -> None:
    """Arrays, accused samples, and the SHA-256 of both files."""
    found = evidence.read(digits_case, NOTHING)

    assert found.poison.tolist() == np.flatnonzero(digits_incident.is_poison).tolist()
    assert found.train_set.x.tobytes() == digits_incident.x.tobytes()
    assert found.train_set.y.tolist() == digits_incident.y.tolist()
    assert found.events.x.tobytes() == digits_incident.event_x.tobytes()
    assert found.events.y.tolist() == digits_incident.event_y.tolist()
    assert found.name_of(3) == "3"
    assert found.inputs["data"]["sha256"] == store.sha256(digits_folder / "train.npz")


@pytest.mark.parametrize(("name", "file"), [("data", "train.npz"), ("events", "events.npz")])
def test_a_file_may_have_moved_but_not_changed(
    name: str, file: str, digits_case: Path, digits_folder: Path, tmp_path: Path
) -> None:
    """The new place is named by option; a byte more is refused, there as where the case says."""
    moved = _copy(digits_folder, tmp_path, file)
    sha256 = store.sha256(moved)
    _change(digits_case, **{name: {"path": str(tmp_path / "gone.npz"), "sha256": sha256}})

    with pytest.raises(InvalidInputError, match=rf"'{name}' must be an existing file .* present place with --{name}\."):
        evidence.read(digits_case, NOTHING)
    assert evidence.read(digits_case, {name: moved}).inputs[name] == {"path": str(moved), "sha256": sha256}

    moved.write_bytes(moved.read_bytes() + b"x")
    _change(digits_case, **{name: {"path": str(moved), "sha256": sha256}})
    for place in (None, moved):
        with pytest.raises(InvalidInputError, match=rf"'{name}' must be the file that was traced, .*{sha256[:16]}"):
            evidence.read(digits_case, {**NOTHING, name: place})


def test_what_is_neither_file_nor_folder_is_not_read(digits_case: Path, tmp_path: Path) -> None:
    """A device would be read for ever, a pipe waited for."""
    os.mkfifo(tmp_path / "pipe")

    for place in (os.devnull, str(tmp_path / "pipe")):
        _change(digits_case, data={"path": place, "sha256": "0"})
        for given in (None, place):
            with pytest.raises(InvalidInputError, match="'data' must be an existing file or folder"):
                evidence.read(digits_case, {**NOTHING, "data": given})


def test_a_case_that_names_no_files_needs_them_named(
    digits_incident: Incident, digits_folder: Path, tmp_path: Path
) -> None:
    """As after a trace from Python; there is nothing to check but the number of samples."""
    case = write_case(tmp_path / "case", digits_incident, None, np.arange(3))
    np.savez(tmp_path / "short.npz", x=digits_incident.x[:-1], y=digits_incident.y[:-1])
    places: dict[str, Any] = {"data": digits_folder / "train.npz", "events": digits_folder / "events.npz"}

    with pytest.raises(InvalidInputError, match="'data' must be named by the case or with --data"):
        evidence.read(case, NOTHING)
    assert evidence.read(case, places).poison.tolist() == [0, 1, 2]
    with pytest.raises(InvalidInputError, match="'data' must be the training set of the case"):
        evidence.read(case, {**places, "data": tmp_path / "short.npz"})


def test_one_image_is_read_with_the_label_that_the_case_keeps(
    digits_case: Path, digits_incident: Incident, tmp_path: Path
) -> None:
    """As after ``trace --event photo.png --label 3``."""
    Image.fromarray(digits_incident.event_x[0, :, :, 0]).save(tmp_path / "photo.png")
    path = tmp_path / "photo.png"
    _change(digits_case, events={"path": str(path), "sha256": store.sha256(path), "label": "3"})

    events = evidence.read(digits_case, NOTHING).events

    assert (events.x.tobytes(), events.y.tolist()) == (digits_incident.event_x[:1].tobytes(), [3])


DATA = """
import numpy as np


def train():
    with np.load({train!r}) as arrays:
        x, y = arrays["x"].astype(np.float32).transpose(0, 3, 1, 2) / 255, arrays["y"]
    return list(zip(x, y.tolist()))


def events():
    with np.load({events!r}) as arrays:
        x, y = arrays["x"].astype(np.float32).transpose(0, 3, 1, 2) / 255, arrays["y"]
    return list(zip(x, y.tolist()))
"""


def _factories(tmp_path: Path, digits_folder: Path) -> dict[str, Any]:
    """Write code that makes data and events, and return what a case keeps of it."""
    file = tmp_path / "mine.py"
    file.write_text(DATA.format(train=str(digits_folder / "train.npz"), events=str(digits_folder / "events.npz")))
    return {
        name: readers.describe(f"{file}:{function}", file)
        for name, function in (("data", "train"), ("events", "events"))
    }


def test_data_of_code_are_made_again(
    digits_case: Path, digits_folder: Path, digits_incident: Incident, tmp_path: Path
) -> None:
    """The code is announced, and must be what it was; samples are as the model takes them."""
    _change(digits_case, **_factories(tmp_path, digits_folder))
    announced: list[str] = []

    found = evidence.read(digits_case, NOTHING, announced.append)

    assert announced == [f"{tmp_path}/mine.py:train", f"{tmp_path}/mine.py:events"]
    assert torch.equal(torch.from_numpy(found.train_set.x), to_inputs(digits_incident.x))
    assert found.train_set.y.tolist() == digits_incident.y.tolist()
    assert torch.equal(torch.from_numpy(found.events.x), to_inputs(digits_incident.event_x))
    with (tmp_path / "mine.py").open("a") as file:
        file.write("# changed\n")
    with pytest.raises(InvalidInputError, match="'data' must be the file that was traced"):
        evidence.read(digits_case, NOTHING, announced.append)
    assert len(announced) == 2


def test_code_in_the_case_is_not_run(
    digits_case: Path, digits_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither as a file nor as a package that is looked for where the command runs; by name it is."""
    _change(digits_case, **_factories(digits_case, digits_folder))

    with pytest.raises(InvalidInputError, match=r"'data' must lie outside the case folder .*--data"):
        evidence.read(digits_case, NOTHING)
    named = {name: f"{digits_case}/mine.py:{what}" for name, what in (("data", "train"), ("events", "events"))}
    assert len(evidence.read(digits_case, named).events) == 5
    _change(digits_case, data={"path": "mine:train", "sha256": None})
    monkeypatch.chdir(digits_case)
    with pytest.raises(InvalidInputError, match=r"'data' must lie outside the case folder \(got 'mine'\)"):
        evidence.read(digits_case, NOTHING)
    monkeypatch.chdir(digits_case.parent)  # a folder is a package of those that lie in it
    _change(digits_case, data={"path": f"{digits_case.name}.mine:train", "sha256": None})
    with pytest.raises(InvalidInputError, match=r"'data' must lie outside the case folder \(got '.*mine'\)"):
        evidence.read(digits_case, NOTHING)


def test_a_folder_of_images_is_read_again(digits_case: Path, digits_incident: Incident, tmp_path: Path) -> None:
    """With its names in the order of the case; one pixel more or less is another folder."""
    x, y = digits_incident.x, digits_incident.y
    for row in range(len(x)):
        path = tmp_path / "train" / f"{'zyxwvutsrq'[y[row]]}" / f"{row:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[row, :, :, 0]).save(path)
    content = json.loads((digits_case / "trace.json").read_text())
    content["inputs"]["data"] = readers.describe(str(tmp_path / "train"), tmp_path / "train")
    (digits_case / "trace.json").write_text(json.dumps({**content, "classes": list("zyxwvutsrq")}))

    found = evidence.read(digits_case, NOTHING)

    assert found.train_set.y.tolist() == sorted(y, reverse=True)
    assert found.train_set.x[0].tobytes() == x[np.flatnonzero(y == 9)[0]].tobytes()
    Image.new("L", (8, 8)).save(path)
    with pytest.raises(InvalidInputError, match="'data' must be the file that was traced"):
        evidence.read(digits_case, NOTHING)


def test_rows_and_a_line_of_numbers_are_read_again(tmp_path: Path) -> None:
    """A table whose labels are in a column that was named, and an event that is no file."""
    lines = [f"{row}.5,{row % 2},{'ab'[row % 2]},u{row % 3}" for row in range(6)]
    table = tmp_path / "train.csv"
    table.write_text("\n".join(["u,v,kind,who", *lines]) + "\n")
    finding = Finding(1, 0.9, "poison", np.array([1]), {})
    trace = Trace(
        **{"verdict": "poison", "poison": np.array([1]), "scores": np.eye(6, dtype=np.float32)[1]},
        **{"labels": np.arange(6) % 2, "findings": (finding,), "clusters": (), "rule": "default", "config": {}},
        **{"seed": 0, "device": "cpu", "seconds": {}, "warnings": (), "exhibits": {}},
    )
    inputs = {
        "data": {**readers.describe(str(table), table), "label_column": "kind", "source_column": "who"},
        "events": {**readers.describe("1.5,0", None), "label": "b"},
    }
    case = trace.save(tmp_path / "case", context={"inputs": inputs, "classes": ["a", "b"]})

    found = evidence.read(case, {"test": table})

    assert found.train_set.x[2].tolist() == [2.5, 0] and found.train_set.y.tolist() == [0, 1] * 3
    assert (found.events.x.tolist(), found.events.y.tolist()) == ([[1.5, 0]], [1])
    assert found.test is not None and found.test.x.tolist() == found.train_set.x.tolist()
    assert found.inputs["data"]["label_column"] == "kind" and found.inputs["events"]["path"] == "1.5,0"


def test_a_case_without_poison_has_nothing_to_prove(
    digits_incident: Incident, digits_folder: Path, tmp_path: Path
) -> None:
    """It is said so; as it is if all samples are accused."""
    empty = write_case(tmp_path / "empty", digits_incident, digits_folder, np.array([], np.int64))
    full = write_case(tmp_path / "full", digits_incident, digits_folder, np.arange(len(digits_incident.y)))

    with pytest.raises(InvalidInputError, match=r"accuses samples \(got the verdict 'no-poison'\)\. No sample was"):
        evidence.read(empty, NOTHING)
    with pytest.raises(InvalidInputError, match="'case' must leave samples that are not accused"):
        evidence.read(full, NOTHING)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": 3}, "'case' must hold files as poisontrace wrote them"),
        ({"inputs": {"data": "x"}}, "'case' must hold files as poisontrace wrote them"),
        ({"inputs": {"data": {"path": 3, "sha256": 3}}}, "'data' must be named"),
        ({"inputs": {"data": {"path": "none", "sha256": 3}}}, "'data' must be an existing file"),
        ({"classes": None}, "'case' must hold files as poisontrace wrote them"),
        ({"classes": "01"}, "'case' must hold a trace.json as poisontrace wrote it"),
        ({"n_samples": "many"}, "'case' must hold scores.npy and poison.csv that fit"),
        ({"schema": 2}, "'case' must hold a trace.json of schema 1"),
    ],
)
def test_a_hostile_case_is_refused_in_one_sentence(change: dict[str, Any], message: str, digits_case: Path) -> None:
    """Whatever its JSON holds."""
    content = json.loads((digits_case / "trace.json").read_text())
    (digits_case / "trace.json").write_text(json.dumps({**content, **change}))

    with pytest.raises(InvalidInputError, match=message):
        evidence.read(digits_case, NOTHING)


def _rows(*rows: list[float], labels: list[int]) -> ArraySet:
    return ArraySet(np.array(rows, np.float32), np.array(labels))


def test_a_model_is_measured_as_by_hand() -> None:
    """The identity on two columns: answers, beliefs and shares follow from the rows."""
    probes = Probes(
        _rows([2, 0], [0, 1], labels=[0, 0]),
        _rows([1, 0], [0, 1], [0, 1], [0, 1], labels=[0, 1, 1, 0]),
        "",
        _rows([1, 0], [0, 1], labels=[0, 0]),
        "",
    )

    measured = probes.measure(nn.Identity().train())

    assert measured.answers == (0, 1)
    assert measured.probabilities == pytest.approx([np.exp(2) / (np.exp(2) + 1), 1 / (1 + np.e)])
    assert (measured.accuracy, measured.success) == (0.75, 0.5)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (nn.Linear(2, 1), UnsupportedModelError, "'model' must return logits"),
        (nn.Linear(3, 2), InvalidInputError, "'events' must have the shape the model takes"),
        (nn.Sequential(nn.Identity(), nn.Threshold(9, float("nan"))), InvalidInputError, "must get finite outputs"),
    ],
)
def test_a_model_that_gives_no_logits_is_refused(model: nn.Module, error: type[Exception], message: str) -> None:
    """The samples or the model are named."""
    rows = _rows([2, 0], labels=[0])

    with pytest.raises(error, match=message):
        Probes(rows, rows, "", rows, "").measure(model)


def test_an_event_s_label_must_be_one_of_the_model_s() -> None:
    """A recipe may build another number of outputs."""
    rows = _rows([2, 0], labels=[2])

    with pytest.raises(InvalidInputError, match="'events: y' must hold labels below 2"):
        Probes(rows, rows, "", rows, "").measure(nn.Identity())


def test_what_models_are_compared_on_is_said(digits_case: Path, digits_folder: Path) -> None:
    """Held-out samples and the attacker's inputs if they are given, else what the case has."""
    files = {name: digits_folder / f"{name}.npz" for name in ("test", "attempts")}
    case, judged = evidence.read(digits_case, NOTHING), evidence.read(digits_case, files)

    of_case, given = (evidence.probes(found, np.arange(7), "of the rest") for found in (case, judged))

    assert (of_case.clean_are, of_case.attempts_are) == ("7 of the rest", "5 events of the case")
    assert set(case.inputs) == {"data", "events"}
    assert of_case.attempts is case.events and len(of_case.clean) == 7
    assert (given.clean_are, given.attempts_are) == (
        "360 held-out samples",
        f"{len(given.attempts)} inputs of the attacker",
    )
    assert {name: judged.inputs[name]["sha256"] for name in files} == {
        name: store.sha256(file) for name, file in files.items()
    }


def test_samples_of_another_form_are_refused(digits_case: Path, tmp_path: Path) -> None:
    """As the events of a trace are."""
    np.savez(tmp_path / "test.npz", x=torch.zeros(2, 3).numpy(), y=np.zeros(2, int))

    with pytest.raises(InvalidInputError, match="'test' must have the form of 'data'"):
        evidence.read(digits_case, {"test": tmp_path / "test.npz"})
