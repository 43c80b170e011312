"""Notes on events: read as they were written, or not at all."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from poisontrace._record import Tree
from poisontrace._types import Finding, Losses
from poisontrace.notes import Notes

N = 9
SCORES = np.linspace(0, 1, N, dtype=np.float32)
FOUND = Finding(2, 0.1 + 0.2, "poison", np.array([3, 4, 8]), {"separation": 1 / 3}, np.array([2, 5]), "a\nb")


def _tree(first_id: int) -> Tree:
    tree = Tree(1, first_id)
    root = tree.add(None, np.arange(N), None, "split", "all")
    tree.add(root, np.array([], np.int64), Losses(0.1, 0.2, 0.3, float("inf")), "pruned", "none")
    tree.add(root, FOUND.poison, Losses(1 / 3, 2.0, 3.0, 4.0), "responsible", "a\nb")
    return tree


def _notes(folder: Path | None, options: str = "") -> Notes:
    return Notes(folder, N, options)


def test_a_note_is_read_as_it_was_written(tmp_path: Path) -> None:
    """To the bit, with the ids that the clusters have now."""
    _notes(tmp_path).write(b"event", _tree(5), FOUND, SCORES)
    tree, want = Tree(1, 7), _tree(7)

    known = _notes(tmp_path).read(b"event", tree)

    assert known is not None
    finding, scores = known
    assert np.array_equal(scores, SCORES)
    assert repr(finding) == repr(FOUND)
    assert np.array_equal(finding.poison, FOUND.poison)
    assert np.array_equal(finding.suspects, FOUND.suspects)
    assert repr(tree.clusters) == repr(want.clusters)
    for got, cluster in zip(tree.clusters, want.clusters, strict=True):
        assert np.array_equal(got.indices, cluster.indices)
        assert got.indices.dtype == np.int64


def test_another_event_or_other_options_have_another_note(tmp_path: Path) -> None:
    """A note is named after all that it depends on."""
    _notes(tmp_path).write(b"event", _tree(0), FOUND, SCORES)

    assert _notes(tmp_path).read(b"other", Tree(1, 0)) is None
    assert _notes(tmp_path, "seed 1").read(b"event", Tree(1, 0)) is None
    assert Notes(tmp_path, N + 1, "").read(b"event", Tree(1, 0)) is None


def test_without_a_folder_a_trace_knows_of_labels_alone() -> None:
    """Of a pass in memory; the next trace knows nothing."""
    notes, x = _notes(None), np.arange(6, dtype=np.float32)
    notes.write(b"event", _tree(0), FOUND, SCORES)
    notes.keep("label", b"3", {"x": x})

    assert notes.read(b"event", Tree(1, 0)) is None
    known = notes.known("label", b"3", {"x": (x.shape, x.dtype)})
    assert known is not None and (known["x"] == x).all()
    assert notes.known("label", b"3", {"x": ((7,), x.dtype)}) is None
    assert notes.known("label", b"4", {"x": None}) is _notes(None).known("label", b"3", {"x": None}) is None


def _spoiled(spoil: str, facts: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """Return arrays of a note that nobody wrote."""
    if spoil == "beyond":
        return {"poison": np.array([N])}
    if spoil == "beyond and back":
        return {"poison": np.array([1, N, -N + 1])}
    facts |= {"statistics": {"statistics": []}, "verdict": {"verdict": "guilty"}}.get(spoil, {})
    if spoil == "decision":
        facts["clusters"][0]["decision"] = "let go"
    return {"facts": np.frombuffer(json.dumps({} if spoil == "facts" else facts).encode(), np.uint8)}


@pytest.mark.parametrize(
    "spoil", ["cut", "empty", "beyond", "beyond and back", "facts", "statistics", "verdict", "decision"]
)
def test_a_note_that_is_not_sound_is_no_note(tmp_path: Path, spoil: str) -> None:
    """The search is done again."""
    notes = _notes(tmp_path)
    notes.write(b"event", _tree(0), FOUND, SCORES)
    (path,) = tmp_path.iterdir()
    if spoil == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    elif spoil == "empty":
        path.write_bytes(b"")
    else:
        with np.load(path) as archive:
            arrays = dict(archive)
        np.savez(path, **arrays | _spoiled(spoil, json.loads(arrays["facts"].tobytes())))
    tree = Tree(1, 0)

    assert notes.read(b"event", tree) is None
    assert tree.clusters == []
