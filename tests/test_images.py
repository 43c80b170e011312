"""Images in a folder: what is read, in which order, and what of a hostile folder is refused."""

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tasks import toy_images

from poisontrace._errors import InvalidInputError
from poisontrace.data import ArraySet
from poisontrace.images import ImageSet, read_folder, read_image

NAMES = ("ape", "bee", "cow", "dog")


def write_folder(folder: Path, x: np.ndarray, y: np.ndarray, names: tuple[str, ...] = NAMES) -> Path:
    """Write uint8 images as one sub-folder a class of PNG files, numbered in the order of the array."""
    for row, (image, label) in enumerate(zip(x, y, strict=True)):
        (folder / names[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze()).save(folder / names[label] / f"{row:05d}.png")
    return folder


def bomb(width: int = 60_000, height: int = 60_000) -> bytes:
    """Return a small PNG whose header claims 3.6 billion pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


def forbid(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a folder refuse to say what is in it, as its rights do to everybody but root."""
    scandir = os.scandir

    def forbidden(path: Any = ".") -> Any:
        if os.fspath(path) == str(folder):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)


@pytest.mark.parametrize("n_channels", [1, 3])
def test_a_folder_gives_what_arrays_give(n_channels: int, tmp_path: Path) -> None:
    """Classes and files are sorted by name, and every pixel arrives."""
    x, y = toy_images(20, n_channels=n_channels)
    order = np.lexsort((np.arange(20), y))

    found = read_folder(write_folder(tmp_path, x, y), "data")

    assert (found.pixels(range(20)) == x[order]).all()
    assert found.y.tolist() == y[order].tolist()
    assert found.classes == NAMES
    assert found.ids[:2] == ("ape/00000.png", "ape/00004.png")
    reference = ArraySet(x[order], y[order])
    assert found.form == reference.form
    for (a, labels), (b, other_labels) in zip(found.batches(7), reference.batches(7), strict=True):
        assert torch.equal(a, b) and (labels == other_labels).all()
    assert torch.equal(found.inputs(np.array([19, 0])), reference.inputs(np.array([19, 0])))


def test_the_order_of_the_classes_can_be_stated(tmp_path: Path) -> None:
    """A model may have numbered them otherwise."""
    x, y = toy_images(8)

    found = read_folder(write_folder(tmp_path, x, y), "data", ("dog", "cow", "bee", "ape"))

    assert found.y.tolist() == [3, 3, 2, 2, 1, 1, 0, 0]


def test_a_class_that_is_not_stated_is_refused(tmp_path: Path) -> None:
    """Its number would be a guess."""
    with pytest.raises(InvalidInputError, match=r"'data' must be a class .*got 'dog'"):
        read_folder(write_folder(tmp_path, *toy_images(8)), "data", ("ape", "bee", "cow"))


def test_folders_named_by_numbers_are_sorted_as_names(tmp_path: Path) -> None:
    """As torchvision and datasets number them."""
    x, _ = toy_images(11)

    found = read_folder(write_folder(tmp_path, x, np.arange(11), tuple(map(str, range(11)))), "data")

    assert found.classes == ("0", "1", "10", "2", "3", "4", "5", "6", "7", "8", "9")
    assert found.y.tolist() == list(range(11))


def test_folders_of_events_are_numbers_where_the_data_name_no_classes(tmp_path: Path) -> None:
    """Whichever of them there are: the folder 7 alone holds label 7."""
    x, _ = toy_images(3)

    found = read_folder(write_folder(tmp_path, x, np.arange(3), ("10", "2", "7")), "events", ())

    assert found.y.tolist() == [10, 2, 7]


def test_hidden_and_other_files_are_left_out(tmp_path: Path) -> None:
    """What a desktop or an editor leaves behind is no sample."""
    write_folder(tmp_path, *toy_images(4))
    (tmp_path / "ape" / ".thumb.png").write_bytes(b"")
    (tmp_path / "ape" / "notes.txt").write_text("mine")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "empty").mkdir()

    found = read_folder(tmp_path, "data")

    assert len(found) == 4
    assert found.classes == (*NAMES, "empty")


def test_grey_and_coloured_images_become_coloured(tmp_path: Path) -> None:
    """Transparency is dropped."""
    write_folder(tmp_path, *toy_images(4))
    Image.new("RGBA", (8, 8), (1, 2, 3, 99)).save(tmp_path / "ape" / "00009.png")

    found = read_folder(tmp_path, "data")

    assert found.shape == (8, 8, 3)
    assert found.pixels([1])[0, 0, 0].tolist() == [1, 2, 3]


def test_bytes_are_images_too() -> None:
    """As a Parquet file holds them."""
    stream = io.BytesIO()
    Image.new("L", (3, 2), 7).save(stream, "PNG")

    found = ImageSet([stream.getvalue()], np.array([0]), ["0"], None, "data")

    assert found.pixels([0]).tolist() == np.full((1, 2, 3, 1), 7).tolist()


def _link_file(folder: Path) -> None:
    (folder / "ape" / "x.png").symlink_to(folder / "bee" / "00001.png")


def _link_folder(folder: Path) -> None:
    (folder / "out").symlink_to("/")


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "ape" / "x.png")


def _bomb(folder: Path) -> None:
    (folder / "ape" / "00000.png").write_bytes(bomb())


def _script(folder: Path) -> None:
    (folder / "ape" / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")


def _deep(folder: Path) -> None:
    Image.new("I;16", (8, 8)).save(folder / "ape" / "x.png")


def _larger(folder: Path) -> None:
    Image.new("L", (9, 8)).save(folder / "ape" / "x.png")


def _stray(folder: Path) -> None:
    Image.new("L", (8, 8)).save(folder / "x.png")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_link_file, r"plain files and folders \(got a link or device, 'ape/x.png'\)"),
        (_link_folder, r"plain files and folders \(got a link or device, 'out'\)"),
        (_pipe, r"plain files and folders \(got a link or device, 'ape/x.png'\)"),
        (_bomb, r"readable images .*'ape/00000.png': Image size \(3600000000 pixels\) exceeds limit"),
        (_script, r"readable images .*'ape/x.png': an image of another format"),
        (_deep, r"readable images .*'ape/x.png': 'I;16' pixels"),
        (_larger, r"one size \(got 8x8 pixels in 'ape/00000.png' and 9x8 in 'ape/x.png'\). Scale them"),
        (_stray, r"one folder a class .*'x.png' outside of a class"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_hostile_folder_is_refused(spoil: object, message: str, tmp_path: Path) -> None:
    """The file is named, and nothing outside of the folder is touched."""
    write_folder(tmp_path, *toy_images(4))
    spoil(tmp_path)  # type: ignore[operator]

    with pytest.raises(InvalidInputError, match=message):
        read_folder(tmp_path, "data")


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its images would be missing, and those after it have other numbers."""
    write_folder(tmp_path, *toy_images(4))
    forbid(tmp_path / "bee", monkeypatch)

    with pytest.raises(
        InvalidInputError, match=r"'data' must hold folders that can be read \(got .*denied.*bee'\)\. .*chmod -R u\+rX"
    ):
        read_folder(tmp_path, "data")


def test_an_image_cut_off_is_named_when_it_is_read(tmp_path: Path) -> None:
    """Its header is sound."""
    write_folder(tmp_path, *toy_images(4, side=40))
    path = tmp_path / "bee" / "00001.png"
    path.write_bytes(path.read_bytes()[:-800])
    found = read_folder(tmp_path, "data")

    with pytest.raises(InvalidInputError, match=r"'data' must be readable images .*'bee/00001.png'"):
        found.pixels([1])


def test_an_event_has_the_form_of_the_data(tmp_path: Path) -> None:
    """A grey photograph of coloured data becomes coloured."""
    x, y = toy_images(4, n_channels=3)
    Image.new("L", (8, 8), 5).save(tmp_path / "photo.png")

    event = read_image(tmp_path / "photo.png", 2, ArraySet(x, y))

    assert (event.form, event.y.tolist()) == (ArraySet(x, y).form, [2])
    assert event.x.tolist() == np.full((1, 8, 8, 3), 5).tolist()


def test_a_folder_below_the_class_is_the_source(tmp_path: Path) -> None:
    """Images right in the class have none; where no image has one, nothing is known."""
    x, y = toy_images(8)
    folder = write_folder(tmp_path / "data", x, y)
    assert read_folder(folder, "data").sources is None

    (folder / "ape" / "u17").mkdir()
    (folder / "ape" / "00000.png").rename(folder / "ape" / "u17" / "00000.png")
    found = read_folder(folder, "data")

    assert found.ids[:2] == ("ape/00004.png", "ape/u17/00000.png")
    assert found.sources == ("", "u17", *[""] * 6)
