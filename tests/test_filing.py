"""The files of a case: schema, strict JSON, cells that a spreadsheet may open."""

import json
import os
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cases import CONTEXT, make_suspecting_trace, make_trace, read_csv

from poisontrace import _types as types
from poisontrace import filing
from poisontrace._errors import StoreError
from poisontrace.report import save_case

KEYS = {
    *("schema", "tool", "created", "verdict", "summary", "n_samples", "n_classes", "n_poison", "rule", "seed"),
    "n_suspects",
    *(
        "device",
        "config",
        "versions",
        "events",
        "campaigns",
        "clusters",
        "seconds",
        "warnings",
        "inputs",
        "command",
        "classes",
    ),
}
CLUSTER_KEYS = {
    *("id", "parent", "event", "n", "labels", "decision", "reason"),
    *("event_before", "event_after", "control_before", "control_after"),
}


def test_save_writes_the_files_of_a_case(tmp_path: Path) -> None:
    """Trace.save returns a folder with exactly the files of a case."""
    case = make_trace().save(tmp_path / "case", context=CONTEXT)
    assert sorted(path.name for path in case.iterdir()) == [
        "coordinates.npz",
        "exhibits.npz",
        "poison.csv",
        "report.html",
        "scores.npy",
        "trace.json",
    ]
    assert list(tmp_path.iterdir()) == [case]


def test_trace_json_holds_the_schema(tmp_path: Path) -> None:
    """trace.json has the keys of schema 1, and each cluster its label counts and losses."""
    case = json.loads((save_case(make_trace(), tmp_path / "case", CONTEXT) / "trace.json").read_text("utf-8"))
    assert case.keys() == KEYS
    assert case["versions"].keys() == {"python", "torch", "numpy", "poisontrace", "platform"}
    assert [cluster.keys() for cluster in case["clusters"]] == [CLUSTER_KEYS] * 3
    assert (case["schema"], case["n_samples"], case["n_classes"], case["n_poison"]) == (1, 120, 3, 10)
    assert case["events"][0] == {
        "label": 1,
        "label_name": "dog",
        "probability": 0.987,
        "verdict": "poison",
        "n_poison": 10,
        "error": None,
        "statistics": {"event_rise": 9.49},
        "n_suspects": 0,
        "doubt": "",
    }
    root, responsible, _ = case["clusters"]
    assert (root["event_before"], root["parent"]) == (None, None)
    assert (responsible["labels"], responsible["event_after"]) == ({"1": 10}, 9.5)
    assert case["config"] == {"batch_size": 64, "layers": ["a", "b"]}


def test_summary_states_the_verdict_with_numbers(tmp_path: Path) -> None:
    """The summary is one sentence that says how many samples did what to which event."""
    case = json.loads((save_case(make_trace(), tmp_path / "case", CONTEXT) / "trace.json").read_text("utf-8"))
    assert case["summary"] == (
        "10 of 120 training samples (8.3%) are responsible for the event, which the model labelled “dog” with 98.7% "
        "confidence."
    )


def test_json_is_strict(tmp_path: Path) -> None:
    """Numbers that are not finite are written as null, and the page still renders."""
    trace = make_trace()
    clusters = (
        *trace.clusters[:2],
        replace(trace.clusters[2], losses=types.Losses(0.1, float("inf"), 0.1, float("nan"))),
    )
    finding = replace(trace.findings[0], statistics={"gap": float("nan")})
    folder = save_case(replace(trace, clusters=clusters, findings=(finding,)), tmp_path / "case", {})
    text = (folder / "trace.json").read_text("utf-8")
    assert not re.search(r"\b(NaN|Infinity)\b", text)
    case = json.loads(text)
    assert case["clusters"][2]["event_after"] is None
    assert case["events"][0]["statistics"] == {"gap": None}


def test_poison_csv_has_one_row_per_responsible_sample(tmp_path: Path) -> None:
    """poison.csv lists index, id, label and score with four decimals, by ascending index."""
    trace = replace(make_trace(), poison=np.array([2, 5, 40]))
    rows = read_csv(save_case(trace, tmp_path / "case", {}))
    assert rows == [
        ["index", "id", "label", "score"],
        ["2", "2", "1", "0.9500"],
        ["5", "5", "1", "0.9500"],
        ["40", "40", str(trace.labels[40]), f"{trace.scores[40]:.4f}"],
    ]


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("+cmd|calc", "'+cmd|calc"),
        ("-x", "'-x"),
        ("\tx", "'\tx"),
        ("\r=x", "'\r=x"),
        ("a\r=x", "a\r=x"),
        ("-12.5", "-12.5"),
        ("+7", "+7"),
        ("'quoted'", "''quoted'"),
        ("it's", "it's"),
        ('a,"b"\nc', 'a,"b"\nc'),
        ("a;=x", "a;'=x"),
        ("a;'=x", "a;''=x"),
        ("\t=x\t-1", "'\t'=x\t'-1"),
        ("a;b", "a;b"),
        ("café \udcff", "café \\udcff"),
    ],
)
def test_ids_cannot_become_formulas(tmp_path: Path, name: str, cell: str) -> None:
    """An id that a spreadsheet would run gets an apostrophe; a plain number and odd text stay as they are."""
    ids = (name, *(f"file{index}.png" for index in range(1, 120)))
    rows = read_csv(save_case(make_trace(ids=ids), tmp_path / "case", {}))
    assert rows[1] == ["0", cell, "1", "0.9500"]
    assert rows[2][1] == "file1.png"
    assert filing.read_case(tmp_path / "case")[1][0].id == filing.plain(name)


@pytest.mark.parametrize(("verdict", "expected"), [("poison", 0.01), ("no-poison", 0.3), ("inconclusive", None)])
def test_no_poison_is_as_sure_as_the_least_sure_event(verdict: str, expected: float | None) -> None:
    """And poison as the surest one; of other verdicts nobody knows."""
    errors = [None] if verdict == "inconclusive" else [0.3, 0.01, None]
    events = [{"verdict": verdict, "error": error} for error in errors] + [{"verdict": "else", "error": 0.5}]

    assert filing.chance_of_error({"verdict": verdict, "events": events}) == expected


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    """Before it does."""
    case = save_case(make_trace(), tmp_path / "case", {})
    with zipfile.ZipFile(case / "exhibits.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x", "w") as stream:
        for _ in range(1100):
            stream.write(bytes(1 << 20))

    with pytest.raises(StoreError, match="that unpack to"):
        filing.read_arrays(case, "exhibits.npz")


def test_scores_are_float32(tmp_path: Path) -> None:
    """scores.npy holds one float32 for each training sample."""
    trace = make_trace()
    scores = np.load(save_case(trace, tmp_path / "case", {}) / "scores.npy")
    assert (scores.dtype, scores.shape) == (np.float32, (120,))
    np.testing.assert_array_equal(trace.scores, scores)


@pytest.mark.parametrize("name", ["trace.json", "poison.csv"])
def test_what_is_no_file_is_not_read(name: str, tmp_path: Path) -> None:
    """A pipe would be waited for, and a link to a device read for ever."""
    folder = save_case(make_trace(), tmp_path / "case", {})
    for spoil in (os.mkfifo, lambda path: path.symlink_to(os.devnull)):
        (folder / name).unlink()
        spoil(folder / name)

        with pytest.raises(StoreError, match=rf"'case' must be a folder with a readable {name} \(got no plain file\)"):
            filing.read_case(folder)


def test_suspects_have_a_file_of_their_own(tmp_path: Path) -> None:
    """In the form of poison.csv; a case without any has none, and one with a broken file is refused."""
    assert filing.read_suspects(save_case(make_trace(), tmp_path / "without", CONTEXT)) == {}

    folder = save_case(make_suspecting_trace(), tmp_path / "with", CONTEXT)

    case = json.loads((folder / "trace.json").read_text())
    assert (case["n_suspects"], case["events"][0]["n_suspects"], case["n_poison"]) == (10, 10, 0)
    assert case["events"][0]["doubt"] == "they look ordinary"
    assert case["summary"].endswith("Forgetting 10 samples undoes it, but they may be ordinary.")
    assert filing.read_suspects(folder) == {index: filing.Row(str(index), 1) for index in range(10)}
    assert read_csv(folder) == [["index", "id", "label", "score"]]
    (folder / "suspects.csv").write_text("index\n0\n")
    with pytest.raises(StoreError, match=r"readable suspects\.csv"):
        filing.read_suspects(folder)
