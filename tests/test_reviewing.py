"""Review: what people decide is kept, what they decide teaches, and a file of another case is refused."""

import csv
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import CONTEXT, HOSTILE, make_suspecting_trace, make_trace

from poisontrace import _types as types
from poisontrace import filing, report, store
from poisontrace._errors import InvalidInputError, StoreError
from poisontrace.reviewing import review

N = 120


def write_case(folder: Path, **changes: Any) -> Path:
    """Write a case that accuses 0..29, of which 20..29 lie much nearer to the others than 0..19 do."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, 4)).astype(np.float32) * 0.5
    x[:20, 0] += 8
    x[20:30, 0] += 1
    found = np.arange(30)
    scores = np.where(np.arange(N) < 30, 0.9, 0.1).astype(np.float32)
    trace = make_trace(
        n=N,
        poison=found,
        scores=scores,
        labels=np.ones(N, np.int64),
        findings=(types.Finding(1, 0.9, "poison", found, {}),) * 2,
        campaigns=(types.Campaign(1, (0, 1), found),),
        coordinates=(types.Coordinates(np.arange(N), x, x[:, :2]),),
        sources=tuple(f"u{row // 40}" for row in range(N)),
        clusters=tuple(replace(cluster, event=0) for cluster in make_trace().clusters),
        **changes,
    )
    return report.save_case(trace, folder, CONTEXT)


def decide(folder: Path, *, confirmed: Any = (), cleared: Any = (), **changes: Any) -> Path:
    """Write a file of decisions such as the report downloads."""
    created = json.loads((folder / "trace.json").read_text())["created"]
    made = [(index, "confirmed") for index in confirmed] + [(index, "cleared") for index in cleared]
    content = {
        "schema": 1,
        "case": {"created": created},
        "decisions": [{"index": i, "id": str(i), "decision": d, "when": "2026-01-02T03:04:05Z"} for i, d in made],
        **changes,
    }
    path = folder.parent / f"decisions{len(list(folder.parent.glob('decisions*')))}.json"
    path.write_text(json.dumps(content))
    return path


def indices(case: Path) -> list[int]:
    """Return who is accused in poison.csv."""
    with (case / "poison.csv").open(newline="") as stream:
        return [int(row["index"]) for row in csv.DictReader(stream)]


def test_decisions_are_final_and_teach(tmp_path: Path) -> None:
    """Clearing most of those that do not fit lets the others go; the rest stay, and every file of the case says so."""
    case = write_case(tmp_path / "case")
    decisions = decide(case, confirmed=[0, 50], cleared=range(20, 26))

    done = review(case, decisions)

    assert done.confirmed.tolist() == [0, 50] and done.cleared.tolist() == list(range(20, 26))
    assert done.let_go.tolist() == list(range(26, 30))
    assert done.poison.tolist() == indices(case) == [*range(20), 50]
    scores = np.load(case / "scores.npy")
    assert (scores[[0, 50]] == 1).all() and (scores[20:26] == 0).all() and (scores[26:30] < 0.5).all()
    assert (scores[np.array(indices(case))] >= 0.5).all() and scores.dtype == np.float32
    content = json.loads((case / "trace.json").read_text())
    assert (content["verdict"], content["n_poison"]) == ("poison", 21)
    assert content["summary"].startswith("21 of 120 training samples")
    assert [event["n_poison"] for event in content["events"]] == [21, 21]
    assert content["campaigns"][0]["n_poison"] == 21
    assert content["sources"]["largest"][:2] == [
        {"source": "u0", "n": 40, "n_poison": 20},
        {"source": "u1", "n": 40, "n_poison": 1},
    ]
    (log,) = content["reviews"]
    assert log["sha256"] == hashlib.sha256(decisions.read_bytes()).hexdigest()
    assert (log["n_poison_before"], log["n_poison"], log["let_go"]) == (30, 21, [26, 27, 28, 29])
    assert content["decisions"][0] == {"index": 0, "decision": "confirmed", "when": "2026-01-02T03:04:05Z"}
    page = (case / "report.html").read_text()
    assert done.summary in page and page == report.render(case)


def test_what_is_not_decided_on_moves_as_the_posterior_does(tmp_path: Path) -> None:
    """Confirming what was found changes nothing else."""
    case = write_case(tmp_path / "case")
    before = np.load(case / "scores.npy")

    done = review(case, decide(case, confirmed=[3]))

    after = np.load(case / "scores.npy")
    assert done.poison.tolist() == list(range(30)) and len(done.let_go) == 0
    assert after[3] == 1
    np.testing.assert_array_equal(np.delete(after, 3), np.delete(before, 3))


@pytest.mark.parametrize("cleared", [range(0, 20, 3), range(20, 24)], ids=str)
def test_samples_cleared_here_and_there_take_no_others_along(cleared: range, tmp_path: Path) -> None:
    """Poison stays where the decisions are wrong, and four of them teach less than five."""
    case = write_case(tmp_path / "case")

    done = review(case, decide(case, cleared=cleared))

    assert set(range(20)) - set(cleared) <= set(done.poison.tolist())
    assert len(cleared) > 4 or len(done.let_go) < 6


def test_confirmed_samples_stay_whatever_lies_near_them(tmp_path: Path) -> None:
    """Also if all of their neighbours were cleared."""
    case = write_case(tmp_path / "case")

    done = review(case, decide(case, confirmed=[29, 60], cleared=range(20, 27)))

    assert done.let_go.tolist() == [27, 28] and done.poison.tolist() == [*range(20), 29, 60]


def test_later_decisions_win_and_the_order_of_files_does_not_matter(tmp_path: Path) -> None:
    """A mistake is taken back by another decision; the case is then as if it had never been made."""
    cases = [write_case(tmp_path / name) for name in "ab"]
    first, second = decide(cases[0], cleared=range(20, 26)), decide(cases[0], cleared=[1], confirmed=range(20, 30))
    for path in (first, second):
        review(cases[0], path)
    review(cases[1], decide(cases[1], cleared=[1], confirmed=range(20, 30)))

    assert indices(cases[0]) == indices(cases[1]) == [0, *range(2, 30)]
    np.testing.assert_array_equal(*(np.load(case / "scores.npy") for case in cases))
    assert len(json.loads((cases[0] / "trace.json").read_text())["reviews"]) == 2


def test_a_case_of_which_all_are_cleared_accuses_nobody(tmp_path: Path) -> None:
    """Its verdict is inconclusive, and the decisions can be taken back."""
    case = write_case(tmp_path / "case")

    done = review(case, decide(case, cleared=range(30)))

    assert (done.verdict, indices(case)) == ("inconclusive", [])
    assert "Reviewers cleared every sample" in (case / "report.html").read_text()
    assert review(case, decide(case, confirmed=[4])).poison.tolist() == [4]


@pytest.mark.parametrize("name", ["-file.png", "=1+1", "@scope/x", "'quoted", "a\udc80.png"])
def test_an_id_of_any_form_can_be_decided_on(tmp_path: Path, name: str) -> None:
    """The page names it as poison.csv does, without the quote that keeps a spreadsheet from running it."""
    case = write_case(tmp_path / "case", ids=(name, *map(str, range(1, N))))
    marks = [{"index": 0, "id": filing.read_case(case)[1][0].id, "decision": "cleared", "when": None}]

    done = review(case, decide(case, decisions=marks))

    assert done.cleared.tolist() == [0]


def test_campaigns_are_judged_each_on_its_own(tmp_path: Path) -> None:
    """Decisions on one leave the other alone, whether they clear or confirm."""
    x = np.random.default_rng(0).standard_normal((N, 3)).astype(np.float32)
    x[:10, 0] += 9
    x[10:20, 1] += 9
    seen = types.Coordinates(np.arange(N), x, x[:, :2])
    campaigns = (types.Campaign(1, (0,), np.arange(10)), types.Campaign(1, (1,), np.arange(10, 20)))
    findings = tuple(types.Finding(1, 0.9, "poison", campaign.poison, {}) for campaign in campaigns)
    trace = make_trace(
        n=N,
        labels=np.ones(N, np.int64),
        poison=np.arange(20),
        scores=np.where(np.arange(N) < 20, 0.8, 0.2).astype(np.float32),
        findings=findings,
        campaigns=campaigns,
        coordinates=(seen, seen),
    )
    case = report.save_case(trace, tmp_path / "case", CONTEXT)

    review(case, decide(case, confirmed=range(3)))
    content = json.loads((case / "trace.json").read_text())
    assert [campaign["n_poison"] for campaign in content["campaigns"]] == [10, 10]
    assert np.load(case / "scores.npy")[:3].tolist() == [1, 1, 1]
    review(case, decide(case, cleared=range(10)))

    content = json.loads((case / "trace.json").read_text())
    assert [event["verdict"] for event in content["events"]] == ["inconclusive", "poison"]
    assert indices(case) == list(range(10, 20))
    np.testing.assert_allclose(np.load(case / "scores.npy")[10:20], 0.8)


@pytest.mark.parametrize("campaigns", [(), (types.Campaign(1, (0,), np.arange(10)),)], ids=["none", "one"])
def test_a_case_without_coordinates_is_changed_where_it_is_decided(campaigns: Any, tmp_path: Path) -> None:
    """As after the published rule, or of an earlier version; and decisions are taken back there too."""
    case = report.save_case(make_trace(campaigns=campaigns), tmp_path / "case", CONTEXT)
    if not campaigns:
        (case / "coordinates.npz").unlink()

    done = review(case, decide(case, confirmed=[1], cleared=[2]))

    assert done.poison.tolist() == [0, 1, *range(3, 10)] and len(done.let_go) == 0
    assert np.load(case / "scores.npy")[:3].tolist() == [np.float32(0.95), 1, 0]
    assert json.loads((case / "trace.json").read_text())["events"][0]["n_poison"] == 9
    assert review(case, decide(case, confirmed=[2])).poison.tolist() == list(range(10))


def test_what_was_added_before_is_said_to_be_outdated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proof was about the samples as they were then."""
    from cases import added

    case = write_case(tmp_path / "case")
    report.add(case, "verify", added())
    content = json.loads((case / "verify.json").read_text())
    (case / "verify.json").write_text(json.dumps(content | {"created": "2020-01-01T00:00:00+00:00"}))
    assert "before the last review" not in report.render(case)

    review(case, decide(case, cleared=[1]))

    assert "before the last review" in (case / "report.html").read_text()


def test_a_review_that_fails_leaves_the_case_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is half written."""
    case = write_case(tmp_path / "case")
    before = {path.name: path.read_bytes() for path in case.iterdir()}

    def full(_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(store.os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        review(case, decide(case, cleared=[1]))

    assert {path.name: path.read_bytes() for path in case.iterdir()} == before


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "Expecting property name"),
        ("[]", "must be a file of decisions on this case"),
        ("[" * 100_000, "must be a file of decisions on this case"),
        ({"decisions": [{"index": 200, "decision": "cleared"}]}, "sample 200, which has not the label of any event"),
        ({"decisions": [{"index": True, "decision": "cleared"}]}, "which is no decision"),
        ({"decisions": [{"index": 1, "decision": "burnt"}]}, "which is no decision"),
        ({"decisions": [{"index": 1, "decision": "cleared", "when": 3}]}, "which is no decision"),
        ({"decisions": [{"index": 1, "decision": "cleared"}] * 2}, "two decisions on sample 1"),
        ({"decisions": [{"index": 1, "id": "x.png", "decision": "cleared"}]}, "the id 'x.png' for sample 1"),
        ({"decisions": []}, "must hold one decision at least"),
        ({"case": {"created": "2020-01-01"}, "decisions": []}, "must be about this case, made at"),
        ({"case": {}}, "got no 'created'"),
    ],
    ids=str,
)
def test_a_file_of_another_form_is_refused(content: Any, reason: str, tmp_path: Path) -> None:
    """In one sentence, and the case is as it was."""
    case = write_case(tmp_path / "case")
    before = {path.name: path.read_bytes() for path in case.iterdir()}
    path = decide(case, **content) if isinstance(content, dict) else case.parent / "decisions.json"
    if isinstance(content, str):
        path.write_text(content)

    with pytest.raises(InvalidInputError, match=r"'decisions' must") as caught:
        review(case, path)

    assert reason in str(caught.value)
    assert {path.name: path.read_bytes() for path in case.iterdir()} == before


def test_hostile_decisions_stay_text(tmp_path: Path) -> None:
    """The name and the dates of the file reach the page escaped."""
    case = write_case(tmp_path / "case")
    path = decide(case, decisions=[{"index": 1, "decision": "cleared", "when": HOSTILE}])

    review(case, path.rename(path.with_name("<b id=evil>.json")))

    page = (case / "report.html").read_text()
    assert HOSTILE not in page and "<b id=evil>" not in page and "&lt;b id=evil&gt;" in page


def test_suspects_are_responsible_once_a_person_says_so(tmp_path: Path) -> None:
    """And only those: a suspect without a decision, or a cleared one, stays what it was."""
    case = report.save_case(make_suspecting_trace(), tmp_path / "case", CONTEXT)

    done = review(case, decide(case, confirmed=range(6), cleared=[7]))

    assert (done.verdict, done.poison.tolist(), indices(case)) == ("poison", list(range(6)), list(range(6)))
    scores, content = np.load(case / "scores.npy"), json.loads((case / "trace.json").read_text())
    assert (scores[:6] == 1).all() and (scores[6:10] < 0.5).all() and scores[7] == 0
    assert (content["events"][0]["verdict"], content["events"][0]["n_poison"]) == ("poison", 6)
    assert content["summary"].startswith("6 of 120 training samples")
    page = (case / "report.html").read_text()
    assert page == report.render(case)
    items = json.loads(page.split('id="data">')[1].split("</script>")[0])["items"]
    assert [item["is_responsible"] for item in items] == [True] * 6 + [False] * 4
    again = review(case, decide(case, cleared=range(6)))
    assert (again.verdict, again.poison.tolist(), indices(case)) == ("inconclusive", [], [])
    assert review(case, decide(case, confirmed=[9])).poison.tolist() == [9]


def test_a_case_that_accused_nobody_cannot_be_reviewed(tmp_path: Path) -> None:
    """There is nobody to decide on."""
    from cases import make_empty_trace

    case = report.save_case(make_empty_trace(), tmp_path / "case", CONTEXT)

    with pytest.raises(InvalidInputError, match="'case' must be one that accuses samples"):
        review(case, decide(case, cleared=[1]))


@pytest.mark.parametrize("name", ["found_0", "x_0", "ids_0", "index_0", "scores", "source"])
@pytest.mark.parametrize(
    "array",
    [np.array([["a", "b"]]), np.array([10**6]), np.full((N, 4), np.nan), np.array(3.0)],
    ids=["words", "beyond", "not a number", "no axis"],
)
def test_broken_coordinates_are_refused(name: str, array: Any, tmp_path: Path) -> None:
    """Whatever another program wrote there; the case is as it was."""
    case = write_case(tmp_path / "case")
    arrays = filing.read_arrays(case, "coordinates.npz")
    np.savez(case / "coordinates.npz", **{**arrays, name: array})
    before = {path.name: path.read_bytes() for path in case.iterdir()}

    with pytest.raises(InvalidInputError, match="'case' must hold"):
        review(case, decide(case, cleared=range(1, 7)))

    assert {path.name: path.read_bytes() for path in case.iterdir()} == before
