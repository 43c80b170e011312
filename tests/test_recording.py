"""What a pass leaves: found again whole, in part, or not believed."""

import json
import os
import resource
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from poisontrace import recording
from poisontrace._errors import StoreError
from poisontrace._rng import torch_generator
from poisontrace.recording import Columns, Folder, Recording, claimed, identify

COLUMNS: Columns = {"labels": ("int64", 1), "layer0": ("float32", 3), "noise": ("float32", 0)}
N = 10
ROWS = {
    "labels": torch.arange(N)[:, None],
    "layer0": torch.randn(N, 3, generator=torch_generator(0, "test/recording")),
    "noise": torch.zeros(N, 0),
}
IDENTITY = {"model": "a"}


def _add(to: Recording, start: int, stop: int) -> None:
    to.add({name: column[start:stop] for name, column in ROWS.items()})


def _open(folder: Path, identity: dict[str, str] = IDENTITY, n: int = N, columns: Columns = COLUMNS) -> Folder:
    return Folder(n, columns, folder, identity)


def _written(folder: Path, *stops: int) -> Path:
    """Write rows up to the last stop, a signature at each."""
    for stop in stops:
        part = _open(folder)
        _add(part, part.n_done, stop)
        part.close()
    return folder


def _holds_all(of: Recording) -> bool:
    return of.n_done == N and all(torch.equal(of[name], column) for name, column in ROWS.items())


def test_what_is_added_is_there(tmp_path: Path) -> None:
    """In memory and on disk alike."""
    for made in (Recording(N, COLUMNS), _open(tmp_path / "deep" / "pass")):
        _add(made, 0, 4)
        _add(made, 4, N)
        assert _holds_all(made)
        made.close()
        assert _holds_all(made)
        assert (made.has("labels"), made.has("digest")) == (True, False)


def test_it_is_found_again_and_continued(tmp_path: Path) -> None:
    """Rows signed earlier count; the rest can be added."""
    _written(tmp_path / "pass", 4, 7)
    assert claimed(tmp_path / "pass") == 7

    again = _open(tmp_path / "pass")

    assert (again.n_done, again.caution) == (7, "")
    _add(again, 7, N)
    again.close()
    assert _holds_all(_open(tmp_path / "pass"))


def test_journals_of_several_ranks_are_one_pass(tmp_path: Path) -> None:
    """One process takes up what two wrote, as far as it goes on from the front, and signs all of it itself."""
    folder = tmp_path / "pass"
    _written(folder, 2, 4)
    second = Folder(N, COLUMNS, folder, IDENTITY, rows=range(6, N))
    _add(second, 6, N)
    second.close()
    lines = (folder / "blocks.jsonl").read_bytes().splitlines(keepends=True)
    assert lines == lines[-1:]  # a process whose rows these are not keeps no others
    (folder / "blocks-1.jsonl").write_bytes(lines[-1])
    (folder / "blocks.jsonl").unlink()
    _written(folder, 4)
    (folder / "blocks-1.jsonl").write_bytes(lines[-1])
    assert claimed(folder) == 8

    again = _open(folder)

    assert (again.n_done, again.caution) == (4, "")
    _add(again, 4, N)
    again.close()
    assert _holds_all(_open(folder))
    assert [path.name for path in folder.glob("blocks*")] == ["blocks.jsonl"]


def test_rows_of_all_ranks_are_found_by_one(tmp_path: Path) -> None:
    """A pass that is complete needs none of its rows worked out again, whoever wrote them."""
    folder = tmp_path / "pass"
    _written(folder, N)
    whole = (folder / "blocks.jsonl").read_text()
    parts = []
    for rows in (range(5), range(5, N)):
        (folder / "blocks.jsonl").unlink()
        part = Folder(N, COLUMNS, folder, IDENTITY, rows=rows)
        _add(part, rows.start, rows.stop)
        part.close()
        parts.append((folder / "blocks.jsonl").read_text())
    (folder / "blocks.jsonl").write_text(parts[0])
    (folder / "blocks-1.jsonl").write_text(parts[1] + whole)

    assert _holds_all(_open(folder))


def test_columns_can_be_read_by_numpy(tmp_path: Path) -> None:
    """Plain .npy files."""
    import numpy as np

    _written(tmp_path / "pass", N)

    assert np.array_equal(np.load(tmp_path / "pass" / "layer0.npy"), ROWS["layer0"].numpy())


def test_a_signature_is_set_after_some_seconds_or_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interruption costs no more than that."""
    monkeypatch.setattr(recording, "BLOCK_BYTES", 100)
    made = _open(tmp_path / "pass")
    assert claimed(tmp_path / "pass") == 0
    _add(made, 0, 2)  # 40 bytes
    assert claimed(tmp_path / "pass") == 0
    _add(made, 2, 6)
    assert claimed(tmp_path / "pass") == 6
    monkeypatch.setattr(recording, "BLOCK_SECONDS", 0.0)
    _add(made, 6, 7)
    assert claimed(tmp_path / "pass") == 7


def test_rows_that_were_not_signed_are_gone(tmp_path: Path) -> None:
    """As after a kill: nobody called close."""
    made = _open(tmp_path / "pass")
    _add(made, 0, 4)
    made._release()

    assert _open(tmp_path / "pass").n_done == 0


@pytest.mark.parametrize("cut", [1, 20, 90])
def test_a_signature_that_was_cut_off_does_not_count(tmp_path: Path, cut: int) -> None:
    """The rows before it do, without a word."""
    journal = _written(tmp_path / "pass", 4, 7) / "blocks.jsonl"
    journal.write_bytes(journal.read_bytes()[:-cut])

    again = _open(tmp_path / "pass")

    assert (again.n_done, again.caution) == (4, "")
    _add(again, 4, N)
    again.close()
    assert _holds_all(_open(tmp_path / "pass"))


@pytest.mark.parametrize("name", ["labels", "layer0"])
def test_changed_rows_are_not_believed(tmp_path: Path, name: str) -> None:
    """They and all that follow are worked out again, and the reader is told."""
    path = _written(tmp_path / "pass", 4, 7, N) / f"{name}.npy"
    content = bytearray(path.read_bytes())
    content[-1 - (N - 5) * (8 if name == "labels" else 12)] ^= 1  # in row 4
    path.write_bytes(content)

    again = _open(tmp_path / "pass")

    assert again.n_done == 4
    assert "samples 4 and following was not what was written" in again.caution


@pytest.mark.parametrize(
    "line",
    [
        '{"start": 0, "stop": 99, "sha256": "x"}',
        '{"start": 0, "stop": -1, "sha256": "x"}',
        '{"start": 0, "stop": 2.0, "sha256": "x"}',
        '{"start": 0, "stop": true, "sha256": "x"}',
        '{"start": 3, "stop": 4, "sha256": "x"}',
        "[]",
        "\x00",
    ],
)
def test_signatures_of_another_form_do_not_count(tmp_path: Path, line: str) -> None:
    """Whatever stands there, nothing is read beyond the files."""
    (_written(tmp_path / "pass", N) / "blocks.jsonl").write_text(line + "\n")

    assert _open(tmp_path / "pass").n_done == 0


def _shorten(folder: Path) -> None:
    path = folder / "layer0.npy"
    path.write_bytes(path.read_bytes()[:-1])


def _retype(folder: Path) -> None:
    path = folder / "layer0.npy"
    path.write_bytes(path.read_bytes().replace(b"<f4", b"<i4"))


def _link(folder: Path) -> None:
    (folder.parent / "victim").write_bytes((folder / "layer0.npy").read_bytes())
    (folder / "layer0.npy").unlink()
    (folder / "layer0.npy").symlink_to(folder.parent / "victim")


def _claim(folder: Path) -> None:
    about = json.loads((folder / "pass.json").read_text())
    (folder / "pass.json").write_text(json.dumps({**about, "n": 1 << 60}))


def _lead_away(folder: Path) -> None:
    (folder / "blocks.jsonl").rename(folder.parent / "victim")
    (folder / "blocks.jsonl").symlink_to(folder.parent / "victim")


def _wait(folder: Path) -> None:
    (folder / "blocks.jsonl").unlink()
    os.mkfifo(folder / "blocks.jsonl")


@pytest.mark.parametrize("spoil", [_shorten, _retype, _link, _claim, _lead_away, _wait])
def test_a_folder_that_we_would_not_have_written_is_refused(tmp_path: Path, spoil) -> None:  # type: ignore[no-untyped-def]
    """Sizes, heads, links and claims are checked before anything is read; the message says the way out."""
    spoil(_written(tmp_path / "pass", N))

    with pytest.raises(StoreError, match=r"'store' must .* (Remove that folder|name another one)"):
        _open(tmp_path / "pass")


def test_another_identity_is_refused(tmp_path: Path) -> None:
    """A folder is made for one model and one data set."""
    _written(tmp_path / "pass", N)

    with pytest.raises(StoreError, match=r"'store' must hold what one pass of this model over these data wrote"):
        _open(tmp_path / "pass", {"model": "b"})


def test_two_at_a_time_are_refused(tmp_path: Path) -> None:
    """The second one is told to wait."""
    first = _open(tmp_path / "pass")

    with pytest.raises(StoreError, match=r"'store' must be used by one trace .* in use by another process"):
        _open(tmp_path / "pass")

    _add(first, 0, N)
    first.close()
    assert _holds_all(_open(tmp_path / "pass"))


def test_nothing_recorded_leaves_nothing_behind(tmp_path: Path) -> None:
    """Nor the folders above that were made for it."""
    _open(tmp_path / "deep" / "pass").close()

    assert list(tmp_path.iterdir()) == []


def test_a_file_beyond_what_the_system_allows_is_one_sentence(tmp_path: Path) -> None:
    """A real limit of the size of files: said before the pass, and nothing is left."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        with pytest.raises(StoreError, match=r"'store' must be a folder on a disk .* has room .* Free some room"):
            Folder(1000, COLUMNS, tmp_path / "pass", IDENTITY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    assert list(tmp_path.iterdir()) == []


class _Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_a_model_is_known_by_weights_structure_and_source() -> None:
    """The same weights in another class are another model; buffers count as well."""
    linear, doubled = nn.Linear(3, 2), _Doubled(3, 2)
    doubled.load_state_dict(linear.state_dict())
    batch_norm, other = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    known = {identify(linear), identify(doubled), identify(batch_norm)}
    assert len(known) == 3
    assert identify(linear) == identify(linear)

    with torch.no_grad():
        linear.bias[0] += 1
    assert other.running_mean is not None
    other.running_mean += 1

    assert not {identify(linear), identify(other)} & known
