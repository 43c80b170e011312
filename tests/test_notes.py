"""Notes on events: read as they were written, or not at all."""

from pathlib import Path

import numpy as np
import pytest

from poisontrace._record import Tree
from poisontrace._types import Finding, Losses
from poisontrace.notes import Notes

N = 9
SCORES = np.linspace(0, 1, N, dtype=np.float32)
FOUND = Finding(2, 0.1 + 0.2, "poison", np.array([3, 4, 8]), {"separation": 1 / 3})


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


def test_without_a_folder_there_are_no_notes() -> None:
    """A pass in memory."""
    _notes(None).write(b"event", _tree(0), FOUND, SCORES)

    assert _notes(None).read(b"event", Tree(1, 0)) is None


@pytest.mark.parametrize("spoil", ["cut", "beyond", "facts", "empty"])
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
        arrays |= {"poison": np.array([N])} if spoil == "beyond" else {"facts": np.frombuffer(b"{}", np.uint8)}
        np.savez(path, **arrays)
    tree = Tree(1, 0)

    assert notes.read(b"event", tree) is None
    assert tree.clusters == []
