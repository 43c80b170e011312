"""Files and folders: whole or not at all."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from test_images import forbid

from poisontrace import store
from poisontrace._errors import InvalidInputError, StoreError


def test_the_digest_is_the_sha256_of_the_bytes(tmp_path: Path) -> None:
    """The file's digest equals that of its content."""
    (tmp_path / "a").write_bytes(b"poison")

    assert store.sha256(tmp_path / "a") == hashlib.sha256(b"poison").hexdigest()


def test_a_file_is_written_over_an_old_one(tmp_path: Path) -> None:
    """The new content replaces the old, and no other file appears."""
    path = tmp_path / "a.json"
    path.write_bytes(b"old")

    store.write_atomically(path, b"new")

    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_under_the_temporary_name_is_not_followed(tmp_path: Path) -> None:
    """A folder from elsewhere may hold one that leads to a file of the user."""
    mine = tmp_path / "mine"
    mine.write_bytes(b"mine")
    (tmp_path / f".a.json.{os.getpid()}.partial").symlink_to(mine)

    store.write_atomically(tmp_path / "a.json", b"new")

    assert mine.read_bytes() == b"mine"
    assert (tmp_path / "a.json").read_bytes() == b"new" and not (tmp_path / "a.json").is_symlink()


@pytest.mark.parametrize(("failure", "raised"), [(OSError(28, "disk full"), StoreError), (KeyboardInterrupt(), None)])
def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException, raised: type[Exception] | None
) -> None:
    """A full disk or an interrupt leaves the old content and no partial file."""
    path = tmp_path / "a.json"
    path.write_bytes(b"old")

    def fail(_: int) -> None:
        raise failure

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(
        raised or KeyboardInterrupt, match=r"'a\.json' must be writable .*disk full" if raised else None
    ):
        store.write_atomically(path, b"new")

    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_in_a_missing_folder_is_refused(tmp_path: Path) -> None:
    """The message names the file."""
    with pytest.raises(StoreError, match=r"'a\.json' must be writable"):
        store.write_atomically(tmp_path / "missing" / "a.json", b"")


def test_a_new_folder_appears_when_its_block_ends(tmp_path: Path) -> None:
    """Nothing is at the final place before the end, all of it after, and parents are made."""
    folder = tmp_path / "deep" / "case"

    with store.new_folder(folder, "out") as partial:
        (partial / "a").write_text("1")
        assert not folder.exists()

    assert [path.name for path in folder.iterdir()] == ["a"]
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("failure", [ZeroDivisionError(), KeyboardInterrupt()])
def test_a_block_that_fails_leaves_nothing(tmp_path: Path, failure: BaseException) -> None:
    """The failure comes through as it is, and no file stays behind."""
    with pytest.raises(type(failure)), store.new_folder(tmp_path / "case", "out") as partial:
        (partial / "a").write_text("1")
        raise failure

    assert list(tmp_path.iterdir()) == []


def test_an_operating_system_error_in_the_block_names_the_argument(tmp_path: Path) -> None:
    """A full disk becomes a StoreError on the argument."""
    with (
        pytest.raises(StoreError, match=r"'out' must be a folder that can be written .*disk full"),
        store.new_folder(tmp_path / "case", "out"),
    ):
        raise OSError(28, "disk full")


def test_an_error_of_ours_in_the_block_is_not_wrapped(tmp_path: Path) -> None:
    """The block's own message is not buried in another."""
    with pytest.raises(StoreError, match=r"^mine$"), store.new_folder(tmp_path / "case", "out"):
        raise StoreError("mine")


def test_an_empty_folder_may_be_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An existing empty folder is taken, by any of its names."""
    (tmp_path / "case").mkdir()
    (tmp_path / "link").symlink_to("case")
    monkeypatch.chdir(tmp_path / "case")

    with store.new_folder(Path("."), "out") as partial:
        (partial / "a").write_text("1")

    assert (tmp_path / "link" / "a").read_text() == "1"


def test_a_link_to_an_empty_folder_stays_a_link(tmp_path: Path) -> None:
    """The folder at its end is filled."""
    (tmp_path / "case").mkdir()
    (tmp_path / "link").symlink_to("case")

    with store.new_folder(tmp_path / "link", "out") as partial:
        (partial / "a").write_text("1")

    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "case" / "a").read_text() == "1"


def test_a_folder_with_anything_in_it_is_refused(tmp_path: Path) -> None:
    """The block is not entered and what was there stays."""
    (tmp_path / "a").write_text("1")

    with (
        pytest.raises(InvalidInputError, match=r"'out' must be a new or empty folder .*Name another one"),
        store.new_folder(tmp_path, "out"),
    ):
        pytest.fail("entered")

    assert (tmp_path / "a").read_text() == "1"


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    """A file, or a device, at the place of the folder is refused."""
    (tmp_path / "a").write_text("1")

    for path in (tmp_path / "a", Path(os.devnull)):
        with pytest.raises(InvalidInputError, match="'out' must be a new or empty folder"):
            store.check_new_folder(path, "out")


def test_a_folder_filled_meanwhile_is_kept(tmp_path: Path) -> None:
    """What another process wrote during the block is never overwritten."""
    folder = tmp_path / "case"

    with pytest.raises(StoreError, match="'out' must be a folder"), store.new_folder(folder, "out") as partial:
        (partial / "a").write_text("ours")
        folder.mkdir()
        (folder / "a").write_text("theirs")

    assert (folder / "a").read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_leftover_of_a_killed_process_is_no_obstacle(tmp_path: Path) -> None:
    """Process numbers repeat; an old partial folder is replaced, not published."""
    leftover = tmp_path / f".case.{os.getpid()}.new"
    leftover.mkdir()
    (leftover / "old").write_text("1")

    with store.new_folder(tmp_path / "case", "out") as partial:
        (partial / "new").write_text("1")

    assert [path.name for path in (tmp_path / "case").iterdir()] == ["new"]


def test_the_hash_of_a_folder_is_that_of_the_list_of_its_files(tmp_path: Path) -> None:
    """As find, sort and sha256sum write it."""
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x").write_bytes(b"1")
    (tmp_path / "a").write_bytes(b"2")
    listing = f"{hashlib.sha256(b'2').hexdigest()}  a\n{hashlib.sha256(b'1').hexdigest()}  b/x\n"

    assert store.sha256(tmp_path) == hashlib.sha256(listing.encode()).hexdigest()


def test_a_folder_with_one_that_cannot_be_read_has_no_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be that of the files that are seen."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "x").write_bytes(b"1")
    forbid(tmp_path / "a" / "b", monkeypatch)

    with pytest.raises(PermissionError, match=r"denied: '.*/a/b'$"):
        store.sha256(tmp_path)


def test_files_are_written_together_or_not_at_all(tmp_path: Path) -> None:
    """If the second cannot be written, the first is as it was."""
    store.write_together(tmp_path, {"a": b"1", "b": b"2"})
    (tmp_path / "c").mkdir()

    with pytest.raises(StoreError, match="'b/c' must be writable"):
        store.write_together(tmp_path, {"a": b"new", "b/c": b"new"})

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == {"a": b"1", "b": b"2"}


def test_an_array_becomes_the_content_of_its_file(tmp_path: Path) -> None:
    """As numpy.save writes it."""
    (tmp_path / "x.npy").write_bytes(store.npy(np.arange(3, dtype=np.float32)))

    assert np.load(tmp_path / "x.npy").tolist() == [0, 1, 2]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    """A new folder clears away the halves of processes that are gone, and of nobody else."""
    gone, running, other = (tmp_path / f".case.{number}.new" for number in (1 << 40, os.getppid(), "kept"))
    kept = store.partial_folder(tmp_path / f"case.{1 << 40}")  # what another case goes on from
    for folder in (gone, running, other, kept):
        folder.mkdir()

    with store.new_folder(tmp_path / "case", "out"):
        pass

    assert not gone.exists()
    assert running.exists() and other.exists() and kept.exists()


def test_removing_follows_no_link(tmp_path: Path) -> None:
    """What is elsewhere stays."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "mine")

    store.remove(tmp_path / "link")
    store.remove(tmp_path / "missing")

    assert (tmp_path / "mine").is_dir()
