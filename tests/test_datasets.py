"""Named data sets: what is read, what is downloaded, what is refused."""

import io
import re
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from hashlib import md5
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from poisontrace import datasets
from poisontrace._errors import InvalidInputError, StoreError
from poisontrace._rng import numpy_generator


def test_digits_are_split_by_position() -> None:
    """Every fifth sample is held out, and the 1,797 images use the whole range of uint8."""
    digits = datasets.load_dataset("digits")

    assert digits.x_train.shape == (1437, 8, 8, 1)
    assert digits.x_test.shape == (360, 8, 8, 1)
    assert digits.x_train.dtype == np.uint8
    assert (digits.x_train.min(), digits.x_train.max()) == (0, 255)
    assert digits.y_test[:2].tolist() == [0, 5]
    assert digits.classes == tuple("0123456789")


def test_a_subset_is_drawn_by_the_seed_in_the_original_order() -> None:
    """Same seed, same samples; test images stay whole."""
    digits = datasets.load_dataset("digits")

    one, same, other = digits.subset(100, 0), digits.subset(100, 0), digits.subset(100, 1)

    assert (one.x_train == same.x_train).all()
    assert (one.x_train != other.x_train).any()
    assert len(one.x_train) == len(one.y_train) == 100
    assert one.x_test is digits.x_test
    assert digits.subset(None, 0) is digits.subset(5000, 0) is digits


@pytest.mark.parametrize("n_train", [0, -5])
def test_an_empty_subset_is_refused(n_train: int) -> None:
    """The message names the way out."""
    with pytest.raises(InvalidInputError, match=r"'n_train' must be at least 1 .*Leave it out"):
        datasets.load_dataset("digits").subset(n_train, 0)


def test_wrong_labels_are_drawn_by_the_seed_and_never_right() -> None:
    """As many as asked for, of every class and into every other; test labels and inputs stay as they are."""
    digits = datasets.load_dataset("digits")

    noisy, same, other = (digits.mislabelled(0.3, seed) for seed in (0, 0, 1))

    is_wrong = noisy.y_train != digits.y_train
    assert is_wrong.sum() == round(0.3 * len(digits.y_train))
    assert (noisy.y_train == same.y_train).all() and (noisy.y_train != other.y_train).any()
    assert len(set(zip(digits.y_train[is_wrong].tolist(), noisy.y_train[is_wrong].tolist(), strict=True))) == 90
    assert noisy.x_train is digits.x_train and noisy.y_test is digits.y_test


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_of_wrong_labels_that_is_none_is_refused(share: float) -> None:
    """All of them would not be wrong at random."""
    with pytest.raises(InvalidInputError, match=r"'wrong_labels' must be a fraction in \[0, 1\) .*Leave it out"):
        datasets.load_dataset("digits").mislabelled(share, 0)


def test_an_unknown_data_set_is_refused_with_the_known_ones() -> None:
    """The message lists what there is."""
    with pytest.raises(
        InvalidInputError,
        match=r"'dataset' must be one of cifar10, cifar10n, cifar10n-worse, clamp, digits, .*, pe \(got 'svhn'\)",
    ):
        datasets.load_dataset("svhn")


def test_data_folders_follow_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A named folder is the only one searched."""
    monkeypatch.setenv("POISONTRACE_DATA", "elsewhere")
    assert datasets.data_folders() == [Path("elsewhere")]

    monkeypatch.delenv("POISONTRACE_DATA")
    assert datasets.data_folders() == [Path("data"), Path("../shared/data")]


# CIFAR-10

BATCHES = [f"cifar-10-batches-bin/{name}.bin" for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch")]


def _rows(seed: int, n: int = 2) -> NDArray[np.uint8]:
    rows = numpy_generator(seed, "test/cifar10").integers(0, 256, (n, 3073), dtype=np.uint8)
    rows[:, 0] = seed
    return rows


def _archive(members: dict[str, bytes], *links: tarfile.TarInfo) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for link in links:
            archive.addfile(link)
    return stream.getvalue()


def _members() -> dict[str, bytes]:
    return {name: _rows(seed).tobytes() for seed, name in enumerate(BATCHES)}


@pytest.fixture
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for data sets, a download cache of its own and no network."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("POISONTRACE_DATA", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "downloads"))
    monkeypatch.setattr("pooch.os_cache", lambda name: tmp_path / "downloads" / name)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("POISONTRACE_MIRROR", "http://127.0.0.1:9")  # the discard port: nothing answers
    return folder


class _Quiet(SimpleHTTPRequestHandler):
    """Serves files without a log."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def mirror(data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder served over HTTP locally as the mirror of downloads."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("POISONTRACE_MIRROR", f"http://127.0.0.1:{server.server_address[1]}/")
    yield folder
    server.shutdown()
    thread.join()
    server.server_close()


def _check_fake_cifar10(dataset: datasets.Dataset) -> None:
    assert dataset.y_train.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert dataset.y_test.tolist() == [5, 5]
    assert dataset.x_train.shape == (10, 32, 32, 3)
    assert dataset.x_train.dtype == np.uint8
    planes = _rows(3)[1, 1:].reshape(3, 32, 32)
    assert (dataset.x_train[7] == np.stack(list(planes), axis=2)).all()
    assert len(dataset.classes) == 10


def test_cifar10_is_downloaded_once(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The archive comes from the mirror, is checked, and is read from the cache the next time."""
    content = _archive(_members())
    (mirror / "cifar-10-binary.tar.gz").write_bytes(content)
    monkeypatch.setattr(datasets, "CIFAR10_MD5", md5(content).hexdigest())

    _check_fake_cifar10(datasets.load_dataset("cifar10"))

    (mirror / "cifar-10-binary.tar.gz").unlink()
    _check_fake_cifar10(datasets.load_dataset("cifar10"))


def test_a_download_with_a_wrong_checksum_is_refused(mirror: Path, tmp_path: Path) -> None:
    """A file that is not the official one is not kept."""
    (mirror / "cifar-10-binary.tar.gz").write_bytes(_archive(_members()))

    with pytest.raises(StoreError, match=r"'dataset' must be on disk or downloadable .*hash.*POISONTRACE_DATA"):
        datasets.load_dataset("cifar10")

    assert [path for path in (tmp_path / "downloads").rglob("*") if path.is_file()] == []


def test_a_mirror_without_the_file_is_named(mirror: Path) -> None:
    """A 404 tells where it was looked for and the way out."""
    with pytest.raises(StoreError, match=r"404.*127\.0\.0\.1.*cifar-10-binary\.tar\.gz\).*Put the file into a folder"):
        datasets.load_dataset("cifar10")


def test_an_unreachable_network_names_the_way_out(data_folder: Path) -> None:
    """Without a network the message says where to put the file."""
    with pytest.raises(
        StoreError, match=r"'dataset' must be on disk or downloadable .*name that folder in POISONTRACE_DATA"
    ):
        datasets.load_dataset("cifar10")


def test_an_archive_on_disk_needs_no_network(data_folder: Path) -> None:
    """The official file is found in the data folder."""
    (data_folder / "cifar-10-binary.tar.gz").write_bytes(_archive(_members()))

    _check_fake_cifar10(datasets.load_dataset("cifar10"))


def test_members_that_lead_elsewhere_are_harmless(data_folder: Path, tmp_path: Path) -> None:
    """Nothing is written, and no link is followed, whatever the names in the archive."""
    link = tarfile.TarInfo("cifar-10-batches-bin/readme.bin")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    members = {"../../escaped.bin": b"x", "/tmp/../escaped.bin": b"x", **_members()}
    (data_folder / "cifar-10-binary.tar.gz").write_bytes(_archive(members, link))
    before = sorted(tmp_path.rglob("*"))

    _check_fake_cifar10(datasets.load_dataset("cifar10"))

    assert sorted(tmp_path.rglob("*")) == before


def _without(name: str) -> bytes:
    return _archive({key: content for key, content in _members().items() if key != name})


def _with(name: str, content: bytes) -> bytes:
    return _archive({**_members(), name: content})


def _linked(kind: bytes, target: str) -> bytes:
    link = tarfile.TarInfo(BATCHES[0])
    link.type, link.linkname = kind, target
    return _archive({name: content for name, content in _members().items() if name != BATCHES[0]}, link)


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (_archive(_members())[:-4000], ""),
        (_archive(_members())[:40], ""),
        (b"<html>not found</html>", ""),
        (b"", ""),
        (_without(BATCHES[2]), "no readable data_batch_3.bin"),
        (_without(BATCHES[5]), "no readable test_batch.bin"),
        (_with(BATCHES[1], b"cut"), ""),
        (_with(BATCHES[1], bytes(10_001 * 3073)), "no readable data_batch_2.bin"),
        (_linked(tarfile.SYMTYPE, "/etc/passwd"), ""),
        (_linked(tarfile.DIRTYPE, ""), "no readable data_batch_1.bin"),
    ],
    ids=["cut-off", "head", "html", "empty", "no-batch", "no-test", "short-batch", "huge-batch", "link", "folder"],
)
def test_a_damaged_archive_is_refused(data_folder: Path, content: bytes, got: str) -> None:
    """Whatever is wrong with the file, the message names it and the way out."""
    (data_folder / "cifar-10-binary.tar.gz").write_bytes(content)

    with pytest.raises(
        StoreError, match=rf"'dataset' must be the whole binary version .*{re.escape(got)}.*Delete the file"
    ):
        datasets.load_dataset("cifar10")


def _sheet(side: int) -> NDArray[np.uint8]:
    stream = io.BytesIO()
    Image.new("RGB", (side, side)).save(stream, "png")
    return np.frombuffer(stream.getvalue(), np.uint8)


def test_sheets_of_another_size_are_refused(data_folder: Path) -> None:
    """Missing sheets, small ones and what is no image are named."""
    labels = {"y_train": np.zeros(5, np.uint8), "y_test": np.zeros(1, np.uint8)}
    small = {name: _sheet(32) for name in ("train_0", "train_1", "train_2", "train_3", "train_4", "test_0")}

    np.savez(data_folder / "cifar10.npz", **labels, test_0=small["test_0"])
    with pytest.raises(InvalidInputError, match=r"'dataset' must hold the arrays .*train_0"):
        datasets.load_dataset("cifar10")

    np.savez(data_folder / "cifar10.npz", **labels, **small)
    with pytest.raises(StoreError, match="'dataset' must be sheets of 100x100 tiles"):
        datasets.load_dataset("cifar10")

    np.savez(data_folder / "cifar10.npz", **labels, **{name: np.zeros(9, np.uint8) for name in small})
    with pytest.raises(StoreError, match="'dataset' must be sheets of 100x100 tiles"):
        datasets.load_dataset("cifar10")


@pytest.mark.skipif(datasets._find("cifar10.npz") is None, reason="CIFAR-10 is not on disk")
def test_the_sheets_on_disk_hold_the_official_split() -> None:
    """The real data set has 5,000 training and 1,000 test images a class and the known first labels."""
    dataset = datasets.load_dataset("cifar10")

    assert dataset.x_train.shape == (50_000, 32, 32, 3)
    assert dataset.x_test.shape == (10_000, 32, 32, 3)
    assert np.bincount(dataset.y_train).tolist() == [5000] * 10
    assert np.bincount(dataset.y_test).tolist() == [1000] * 10
    assert dataset.y_train[:5].tolist() == [6, 9, 9, 4, 1]
    assert dataset.x_train[0, 0, 0].tolist() == [59, 62, 63]


@pytest.mark.skipif(datasets._find("cifar10n_labels.npz") is None, reason="CIFAR-10N is not on disk")
@pytest.mark.parametrize(("name", "wrong"), [("cifar10n", 0.172), ("cifar10n-worse", 0.402)])
def test_labels_that_people_gave_are_wrong_as_often_as_published(name: str, wrong: float) -> None:
    """Of the training labels; images and test labels are those of CIFAR-10."""
    clean, noisy = datasets.load_dataset("cifar10"), datasets.load_dataset(name)

    assert (noisy.name, noisy.x_train.shape) == (name, clean.x_train.shape)
    assert np.array_equal(noisy.y_test, clean.y_test)
    assert float((noisy.y_train != clean.y_train).mean()) == pytest.approx(wrong, abs=0.001)


def test_noisy_labels_for_other_images_are_refused(data_folder: Path) -> None:
    """Their file repeats the official labels, which tells whether the order is the same."""
    sheets = dict.fromkeys((*(f"train_{batch}" for batch in range(5)), "test_0"), _sheet(3200))
    y = {"y_train": np.zeros(50_000, np.uint8), "y_test": np.zeros(10_000, np.uint8)}
    np.savez(data_folder / "cifar10.npz", **y, **sheets)
    np.savez(data_folder / "cifar10n_labels.npz", clean=y["y_train"] + 1, random_1=y["y_train"])

    with pytest.raises(StoreError, match="'dataset' must be labels of the 50,000 training images"):
        datasets.load_dataset("cifar10n")


# Rows of malware features

MALWARE_SETS = pytest.mark.parametrize("name", sorted(datasets.MALWARE_ROWS))


def _fake_rows(n: int = 12) -> dict[str, NDArray[Any]]:
    """Return n rows of distinct content, one column of which never varies, with labels in turn."""
    x = np.stack([np.full(n, 23117.0), 1e12 * np.arange(n), -1.0 * (np.arange(n) % 3)], 1)
    return {"X": x, "y": np.arange(n, dtype=np.uint8) % 2, "feature_names": np.array(["e_magic", "ImageBase", "tz"])}


@MALWARE_SETS
def test_every_fifth_distinct_row_is_held_out(name: str, data_folder: Path) -> None:
    """Features are float32 on a signed logarithmic scale, and a column of one value is left out with its name."""
    np.savez(data_folder / datasets.MALWARE_ROWS[name].file, **_fake_rows())

    dataset = datasets.load_dataset(name)

    assert dataset.name == name
    assert dataset.classes == ("benign", "malware")
    assert dataset.feature_names == ("ImageBase", "tz")
    assert dataset.x_train.dtype == dataset.x_test.dtype == np.float32
    assert dataset.y_train.dtype == dataset.y_test.dtype == np.int64
    assert dataset.x_test == pytest.approx(
        np.array([[0, 0], [np.log1p(5e12), -np.log(3)], [np.log1p(1e13), -np.log(2)]]), rel=1e-6
    )
    assert dataset.y_test.tolist() == [0, 1, 0]
    assert dataset.y_train.tolist() == [1, 0, 1, 0, 0, 1, 0, 1, 1]


@MALWARE_SETS
def test_equal_rows_count_once_and_contradictions_not_at_all(name: str, data_folder: Path) -> None:
    """The first of equal rows stays where it was; a row with both labels goes, all copies of it."""
    rows = _fake_rows(8)
    rows["X"] = rows["X"][[0, 1, 0, 2, 3, 3, 4, 1]]
    rows["y"] = np.array([0, 1, 0, 1, 0, 1, 0, 1])
    np.savez(data_folder / datasets.MALWARE_ROWS[name].file, **rows)

    dataset = datasets.load_dataset(name)

    whole = np.concatenate([dataset.x_test, dataset.x_train])
    assert whole[:, 0] == pytest.approx(np.log1p(1e12 * np.array([0, 1, 2, 4])), rel=1e-6)
    assert dataset.y_test.tolist() + dataset.y_train.tolist() == [0, 1, 1, 0]


@MALWARE_SETS
def test_rows_that_are_not_on_disk_are_named_with_their_source(name: str, data_folder: Path) -> None:
    """The message says which file is wanted, where its content comes from and where to put it."""
    with pytest.raises(
        StoreError,
        match=rf"got no {datasets.MALWARE_ROWS[name].file}, arrays X, y .*GitHub .*folder in POISONTRACE_DATA",
    ):
        datasets.load_dataset(name)


@pytest.mark.parametrize(
    "wrong",
    [
        {"y": np.zeros(5, np.uint8)},
        {"y": np.full(12, 2)},
        {"feature_names": np.array(["a"])},
        {"X": np.zeros((12, 3, 1))},
    ],
    ids=["rows", "labels", "names", "axes"],
)
def test_rows_that_do_not_fit_together_are_refused(data_folder: Path, wrong: dict[str, NDArray[Any]]) -> None:
    """Arrays of other shapes, and labels of other classes, are no such data set."""
    np.savez(data_folder / "clamp_pe.npz", **{**_fake_rows(), **wrong})

    with pytest.raises(StoreError, match=r"'dataset' must hold X \(n, d\).*in 'clamp_pe.npz'\)\. Get the file again"):
        datasets.load_dataset("clamp")


@pytest.mark.parametrize(
    ("name", "shapes", "benign"),
    [
        ("pe", ((13_136, 49), (3_285, 49)), 5624),
        ("clamp", ((4_139, 60), (1_035, 60)), 2488),
        ("pdf", ((13_774, 130), (3_444, 130)), 9991),
    ],
)
def test_the_rows_on_disk_are_distinct(name: str, shapes: tuple[Any, Any], benign: int) -> None:
    """The real sets: how many rows are left of each class, none of them twice and none in both parts."""
    if datasets._find(datasets.MALWARE_ROWS[name].file) is None:
        pytest.skip(f"{name} is not on disk")
    dataset = datasets.load_dataset(name)

    assert (dataset.x_train.shape, dataset.x_test.shape) == shapes
    assert len(dataset.feature_names) == shapes[0][1]
    assert int((dataset.y_train == 0).sum() + (dataset.y_test == 0).sum()) == benign
    whole = np.concatenate([dataset.x_train, dataset.x_test])
    assert len(np.unique(whole, axis=0)) == len(whole)
    assert np.isfinite(whole).all() and (np.abs(whole) < 40).all()


# MNIST and Fashion-MNIST


@pytest.mark.parametrize(("name", "file"), [("mnist", "mnist.npz"), ("fashion", "fashion_mnist.npz")])
def test_grey_images_come_in_their_order(data_folder: Path, name: str, file: str) -> None:
    """With an axis for the one channel, and names for the ten labels."""
    x, y = np.arange(4 * 28 * 28).reshape(4, 28, 28).astype(np.uint8), np.array([3, 0, 9, 1], np.uint8)
    np.savez(data_folder / file, X_train=x, y_train=y, X_test=x[:2], y_test=y[:2])

    grey = datasets.load_dataset(name)

    assert (grey.x_train[..., 0] == x).all() and grey.x_train.shape == (4, 28, 28, 1)
    assert grey.y_train.tolist() == [3, 0, 9, 1] and grey.y_train.dtype == np.int64
    assert grey.x_test.shape == (2, 28, 28, 1) and grey.y_test.tolist() == [3, 0]
    assert len(grey.classes) == 10


@pytest.mark.parametrize(
    ("change", "got"),
    [({"y_test": [0, 10]}, "from 0 to 9"), ({"X_train": [[[0.5]]]}, "28, 28"), ({"y_test": [0]}, "28")],
)
def test_other_arrays_are_no_grey_images(data_folder: Path, change: dict[str, Any], got: str) -> None:
    """Labels that do not exist, images of another size or type, labels that are missing."""
    x, y = np.zeros((2, 28, 28), np.uint8), np.zeros(2, np.uint8)
    arrays = {"X_train": x, "y_train": y, "X_test": x, "y_test": y, **change}
    np.savez(data_folder / "mnist.npz", **arrays)

    with pytest.raises(StoreError, match=f"'dataset' must be uint8 images .*{got}.*'mnist.npz'"):
        datasets.load_dataset("mnist")


# GTSRB


def _tiles(n: int, first: int = 0) -> NDArray[np.uint8]:
    """Return a sheet of 100 tiles a row, of which the first n are grey: first, first + 1, ...; the rest is black."""
    tiles = np.zeros((-(-n // 100) * 100, 32, 32, 3), np.uint8)
    tiles[:n] = (first + np.arange(n) % 200)[:, None, None, None]
    sheet = tiles.reshape(-1, 100, 32, 32, 3).swapaxes(1, 2).reshape(-1, 3200, 3)
    stream = io.BytesIO()
    Image.fromarray(sheet).save(stream, "png")
    return np.frombuffer(stream.getvalue(), np.uint8)


def test_signs_are_read_in_order_from_padded_sheets(data_folder: Path) -> None:
    """Row by row, with the labels beside them; the padding is dropped."""
    labels = {"y_train": np.arange(130, dtype=np.uint8) % 43, "y_test": np.array([7, 3], np.uint8)}
    np.savez(data_folder / "gtsrb32.npz", **labels, train_0=_tiles(130), test_0=_tiles(2, first=50))

    signs = datasets.load_dataset("gtsrb")

    assert signs.x_train.shape == (130, 32, 32, 3)
    assert (signs.x_train == np.arange(130)[:, None, None, None]).all()
    assert signs.y_train.tolist() == [number % 43 for number in range(130)]
    assert signs.x_test[:, 0, 0, 0].tolist() == [50, 51]
    assert signs.y_test.tolist() == [7, 3]
    assert len(signs.classes) == len(set(signs.classes)) == 43


def test_sheets_of_signs_that_do_not_fit_are_refused(data_folder: Path) -> None:
    """Too few tiles, a missing sheet and what is no image are named."""
    few = {"y_train": np.zeros(130, np.uint8), "y_test": np.zeros(2, np.uint8), "test_0": _tiles(2)}
    many = {**few, "y_train": np.zeros(10_001, np.uint8)}
    for arrays, got in (
        ({**few, "train_0": _tiles(90)}, "100 of 130 tiles of train"),
        ({**many, "train_0": _tiles(90)}, "train_1"),
        ({**few, "train_0": _sheet(64)}, ""),
        ({**few, "train_0": np.zeros(9, np.uint8)}, ""),
    ):
        np.savez(data_folder / "gtsrb32.npz", **arrays)
        with pytest.raises(StoreError, match=f"'dataset' must be sheets 100 tiles wide .*{got}.*'gtsrb32.npz'"):
            datasets.load_dataset("gtsrb")


@pytest.mark.parametrize(
    ("name", "file", "source"), [("gtsrb", "gtsrb32.npz", "ini.rub.de"), ("lfw", "lfw144.npz", "vis-www.cs.umass.edu")]
)
def test_a_missing_file_is_named_with_its_public_source(data_folder: Path, name: str, file: str, source: str) -> None:
    """What has no download here says where it is from and where to put it."""
    with pytest.raises(StoreError, match=rf"'dataset' must be on disk .*{file}.*data.*{source}.*POISONTRACE_DATA"):
        datasets.load_dataset(name)


@pytest.mark.skipif(datasets._find("gtsrb32.npz") is None, reason="GTSRB is not on disk")
def test_the_signs_on_disk_hold_the_official_split() -> None:
    """The real data set has the official numbers of images."""
    signs = datasets.load_dataset("gtsrb")

    assert signs.x_train.shape == (39_209, 32, 32, 3)
    assert signs.x_test.shape == (12_630, 32, 32, 3)
    assert np.bincount(signs.y_train)[:3].tolist() == [210, 2220, 2250]
    assert np.bincount(signs.y_test).min() == 60


# LFW


def _save_faces(folder: Path, counts: list[int], *, side: int = 144) -> None:
    """Save as many grey images of each person: 10 times its number, brightened by 1 for each further image."""
    people = np.repeat(np.arange(len(counts)), counts)
    position = np.concatenate([np.arange(count) for count in counts])
    files = []
    for person, place in zip(people, position, strict=True):
        stream = io.BytesIO()
        Image.new("L", (side, side), int(40 * person + place)).save(stream, "png")
        files.append(stream.getvalue())
    np.savez(
        folder / "lfw144.npz",
        data=np.frombuffer(b"".join(files), np.uint8),
        offsets=np.cumsum([0, *map(len, files)]),
        y=people.astype(np.uint8),
        identities=np.array([f"person {number}" for number in range(len(counts))]),
    )


def test_faces_are_split_by_person_and_position(data_folder: Path) -> None:
    """Every fifth image of a person with 20 is held out; the other people, numbered anew, are to pre-train on."""
    _save_faces(data_folder, [20, 10, 21, 19])

    faces = datasets.load_dataset("lfw")

    assert faces.classes == ("person 0", "person 2")
    assert faces.x_test[:, 0, 0, 0].tolist() == [0, 5, 10, 15, 80, 85, 90, 95, 100]
    assert faces.y_test.tolist() == [0] * 4 + [1] * 5
    assert faces.y_train.tolist() == [0] * 16 + [1] * 16
    assert faces.x_train.shape == (32, 48, 48, 3)
    assert faces.x_pretrain is not None and faces.y_pretrain is not None
    assert faces.y_pretrain.tolist() == [0] * 10 + [1] * 19
    assert faces.x_pretrain[[0, 10], 0, 0, 0].tolist() == [40, 120]


def test_a_subset_keeps_what_the_data_set_brings_to_pre_train_on(data_folder: Path) -> None:
    """Fewer faces to train on, all of the others for the extractor."""
    _save_faces(data_folder, [20, 10])
    faces = datasets.load_dataset("lfw")

    drawn = faces.subset(5, 0)

    assert len(drawn.x_train) == 5
    assert drawn.x_pretrain is faces.x_pretrain
    assert drawn.y_pretrain is faces.y_pretrain


def test_faces_that_do_not_fit_are_refused(data_folder: Path) -> None:
    """What is no image, cut off, or has no label is named."""
    _save_faces(data_folder, [20])
    arrays = dict(np.load(data_folder / "lfw144.npz"))
    for change, got in (
        ({"data": arrays["data"][:-60]}, ""),
        ({"data": np.zeros_like(arrays["data"])}, ""),
        ({"y": arrays["y"][:-1]}, "20 images and 19 labels"),
    ):
        np.savez(data_folder / "lfw144.npz", **{**arrays, **change})
        with pytest.raises(StoreError, match=f"'dataset' must be images of 144x144 .*{got}.*'lfw144.npz'"):
            datasets.load_dataset("lfw")


def test_faces_of_another_size_are_refused(data_folder: Path) -> None:
    """Eyes would lie elsewhere."""
    _save_faces(data_folder, [20], side=64)

    with pytest.raises(StoreError, match=r"'dataset' must be images of 144x144 .*one of 64x64"):
        datasets.load_dataset("lfw")


@pytest.mark.skipif(datasets._find("lfw144.npz") is None, reason="LFW is not on disk")
def test_the_faces_on_disk_hold_62_people_and_96_others() -> None:
    """The real data set; nobody is in both halves."""
    faces = datasets.load_dataset("lfw")

    assert faces.x_train.shape == (2392, 48, 48, 3)
    assert faces.x_test.shape == (631, 48, 48, 3)
    assert len(faces.classes) == 62
    assert faces.x_pretrain is not None and faces.y_pretrain is not None
    assert len(faces.x_pretrain) == 1301
    assert len(np.unique(faces.y_pretrain)) == 96
    assert np.bincount(faces.y_test).min() == 4
