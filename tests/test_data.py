"""Data sets: the order of samples, the form they are fed in, and where they come from."""

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
import torch
from numpy.typing import NDArray
from PIL import Image
from tasks import Pairs, toy_images, toy_rows
from torch.utils.data import TensorDataset

from poisontrace import data
from poisontrace._errors import InvalidInputError, StoreError
from poisontrace._rng import numpy_generator
from poisontrace.data import ArraySet, IndexedSet

# Inputs


def test_images_become_float32_channels_first_in_the_unit_interval() -> None:
    """Pixel (row, column) of channel c lands at [c, row, column], divided by 255."""
    x = np.zeros((2, 3, 4, 2), np.uint8)
    x[1, 2, 3, 1] = 255
    x[0, 1, 0, 0] = 51

    inputs = data.to_inputs(x)

    assert inputs.dtype == torch.float32
    assert inputs.shape == (2, 2, 3, 4)
    assert inputs[1, 1, 2, 3] == 1
    assert inputs[0, 0, 1, 0] == pytest.approx(0.2)
    assert inputs.sum() == pytest.approx(1.2)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_are_fed_as_they_are(dtype: Any) -> None:
    """Float arrays keep shape and values and become float32."""
    x = np.array([[[-3.5, 0.25]], [[2.0, 300.0]]], dtype)

    inputs = data.to_inputs(x)

    assert inputs.dtype == torch.float32
    assert inputs.tolist() == x.tolist()


def test_feeding_leaves_the_stored_array_alone() -> None:
    """Dividing by 255 happens on a copy."""
    x, _ = toy_images(3)
    before = x.copy()

    data.to_inputs(x)

    assert (x == before).all()


# Training sets


def _pairs(x: NDArray[Any], y: NDArray[Any]) -> list[tuple[Any, Any]]:
    return list(zip(data.to_inputs(x), y, strict=True))


@pytest.mark.parametrize("make", [toy_images, toy_rows], ids=["images", "rows"])
@pytest.mark.parametrize("form", ["TensorDataset", "list", "user class", "pair of arrays", "IndexedSet"])
def test_every_form_of_a_training_set_gives_the_same_batches(make: Any, form: str) -> None:
    """A torch data set, a list of pairs and arrays are one and the same to the tracer."""
    x, y = make(23)
    inputs = data.to_inputs(x)
    source = {
        "TensorDataset": TensorDataset(inputs, torch.from_numpy(y)),
        "list": _pairs(x, y),
        "user class": Pairs(inputs, y.tolist()),
        "pair of arrays": (x, y),
        "IndexedSet": IndexedSet(_pairs(x, y)),
    }[form]

    train_set, reference = data.as_train_set(source), ArraySet(x, y)

    assert len(train_set) == len(reference) == 23
    for (one, labels), (other, other_labels) in zip(train_set.batches(5), reference.batches(5), strict=True):
        assert torch.equal(one, other)
        assert labels.tolist() == other_labels.tolist()
        assert labels.dtype == np.int64
    chosen = np.array([7, 0, 22])
    assert torch.equal(train_set.inputs(chosen), reference.inputs(chosen))
    assert torch.equal(train_set.inputs(chosen), inputs[chosen])


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4, 23, 100])
def test_batches_are_in_order_whatever_their_size(batch_size: int, indexed: bool) -> None:
    """Put together, the batches are the data set, each sample once."""
    x, y = toy_images(23)
    train_set = IndexedSet(_pairs(x, y)) if indexed else ArraySet(x, y)

    inputs, labels = zip(*train_set.batches(batch_size), strict=True)

    assert torch.equal(torch.cat(inputs), data.to_inputs(x))
    assert np.concatenate(labels).tolist() == y.tolist()


def test_an_array_set_gives_single_samples_as_the_model_takes_them() -> None:
    """Indexing gives the input without its batch axis and the label."""
    x, y = toy_images(5)

    sample, label = ArraySet(x, y)[3]

    assert torch.equal(sample, data.to_inputs(x)[3])
    assert (label, type(label)) == (3, int)


def test_a_set_of_ours_is_taken_as_it_is() -> None:
    """Nothing is wrapped twice."""
    train_set = ArraySet(*toy_images(5))

    assert data.as_train_set(train_set) is train_set


class _Shuffling(Pairs):
    """A data set that gives another sample each time, as with random augmentation."""

    reads = 0

    def __getitem__(self, index: Any) -> Any:
        """Return the next sample, whatever was asked for."""
        self.reads += 1
        return super().__getitem__((index + self.reads) % len(self))


def test_a_shuffling_data_set_is_refused() -> None:
    """Positions that mean nothing cannot be traced; the message names the way out."""
    with pytest.raises(InvalidInputError, match=r"'train_set' must give the same sample.*Switch off shuffling"):
        data.as_train_set(_Shuffling(*toy_rows(9)))


def test_a_data_set_with_changing_labels_is_refused() -> None:
    """Labels count as well as inputs."""
    with pytest.raises(InvalidInputError, match="'train_set' must give the same sample"):
        data.as_train_set(_Shuffling(np.ones((9, 2)), np.arange(9)))


@pytest.mark.parametrize("bad", [0, 2, 8])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_named_with_its_row(bad: int, value: float) -> None:
    """The first bad row is found in arrays and in indexed sets."""
    x, y = toy_rows(9)
    x[bad, 1] = value

    with pytest.raises(InvalidInputError, match=rf"'x' must hold finite numbers .*first {bad}\)"):
        ArraySet(x, y)
    with pytest.raises(InvalidInputError, match=rf"'train_set' must hold finite numbers .*in sample {bad}\)"):
        list(data.as_train_set(_pairs(x, y)).batches(4))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "'train_set' must have at least one sample"),
        (iter([(1, 2)]), "'train_set' must have a length and yield .*Pass the data set itself, not a loader"),
        ([1, 2], "'train_set' must yield pairs"),
        ([("cat", 1)], "'train_set' must yield pairs .*at index 0"),
        ([([1.0], 1.5)], "'train_set' must yield pairs .*integer"),
        ([([1.0], torch.ones(2))], "'train_set' must yield pairs .*integer"),
        ({"x": [1.0]}, "'train_set' must yield pairs"),
        ([([1.0], -1)], "'train_set labels' must hold labels of 0 or more"),
        (
            [([1.0], 0), ([1.0, 2.0], 0)],
            r"'train_set' must yield inputs of one shape \(got \(1,\) at index 0 and \(2,\)",
        ),
    ],
)
def test_a_source_of_another_kind_is_refused(source: Any, message: str) -> None:
    """Each message names the argument and the rule."""
    with pytest.raises(InvalidInputError, match=message):
        list(data.as_train_set(source).batches(4))


def test_arrays_are_read_from_a_file(tmp_path: Path) -> None:
    """What was saved comes back, labels as int64."""
    x, y = toy_images(6)
    np.savez_compressed(tmp_path / "train.npz", x=x, y=y.astype(np.uint8))

    train_set = data.read_array_set(tmp_path / "train.npz", "data")

    assert (train_set.x == x).all()
    assert train_set.y.dtype == np.int64
    assert train_set.y.tolist() == y.tolist()


def test_arrays_in_a_file_that_break_a_rule_are_named(tmp_path: Path) -> None:
    """The message names the option and the array."""
    np.savez(tmp_path / "train.npz", x=np.ones((3, 2)), y=np.ones(2, int))

    with pytest.raises(InvalidInputError, match=r"'data: y' must have shape \(3,\)"):
        data.read_array_set(tmp_path / "train.npz", "data")


# Events


def test_events_are_pairs_or_an_array_set() -> None:
    """Both forms give the same list."""
    x, y = toy_images(3)

    listed, stored = data.as_events(_pairs(x, y)), data.as_events(ArraySet(x, y))

    assert [label for _, label in listed] == [label for _, label in stored] == [0, 1, 2]
    assert all(torch.equal(one, other) for (one, _), (other, _) in zip(listed, stored, strict=True))


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([], r"'events' must have at least one row \(got 0\)\. Pass inputs the model misclassifies"),
        (np.ones((2, 2)), r"'events' must be a list of pairs \(x, y_wrong\) \(got ndarray\)"),
        ("events.npz", "'events' must be a list of pairs"),
        (3, "'events' must be a list of pairs"),
        ([([1.0], 0), ([1.0],)], r"'events' must be a list of pairs .*at row 1\)"),
        ([([1.0], 0.5)], r"'events' must be a list of pairs .*at row 0\)"),
        ([([1.0], 0), ([float("nan")], 0)], r"'events' must hold finite numbers .*row 1\)"),
    ],
)
def test_events_that_break_a_rule_are_refused(events: Any, message: str) -> None:
    """Each message names the argument, the rule and the row."""
    with pytest.raises(InvalidInputError, match=message):
        data.as_events(events)


# Named data sets


def test_digits_are_split_by_position() -> None:
    """Every fifth sample is held out, and the 1,797 images use the whole range of uint8."""
    digits = data.load_dataset("digits")

    assert digits.x_train.shape == (1437, 8, 8, 1)
    assert digits.x_test.shape == (360, 8, 8, 1)
    assert digits.x_train.dtype == np.uint8
    assert (digits.x_train.min(), digits.x_train.max()) == (0, 255)
    assert digits.y_test[:2].tolist() == [0, 5]
    assert digits.classes == tuple("0123456789")


def test_a_subset_is_drawn_by_the_seed_in_the_original_order() -> None:
    """Same seed, same samples; test images stay whole."""
    digits = data.load_dataset("digits")

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
        data.load_dataset("digits").subset(n_train, 0)


def test_an_unknown_data_set_is_refused_with_the_known_ones() -> None:
    """The message lists what there is."""
    with pytest.raises(InvalidInputError, match=r"'dataset' must be one of cifar10, digits \(got 'mnist'\)"):
        data.load_dataset("mnist")


def test_data_folders_follow_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A named folder is the only one searched."""
    monkeypatch.setenv("POISONTRACE_DATA", "elsewhere")
    assert data.data_folders() == [Path("elsewhere")]

    monkeypatch.delenv("POISONTRACE_DATA")
    assert data.data_folders() == [Path("data"), Path("../shared/data")]


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


def _check_fake_cifar10(dataset: data.Dataset) -> None:
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
    monkeypatch.setattr(data, "CIFAR10_MD5", md5(content).hexdigest())

    _check_fake_cifar10(data.load_dataset("cifar10"))

    (mirror / "cifar-10-binary.tar.gz").unlink()
    _check_fake_cifar10(data.load_dataset("cifar10"))


def test_a_download_with_a_wrong_checksum_is_refused(mirror: Path, tmp_path: Path) -> None:
    """A file that is not the official one is not kept."""
    (mirror / "cifar-10-binary.tar.gz").write_bytes(_archive(_members()))

    with pytest.raises(StoreError, match=r"'dataset' must be on disk or downloadable .*hash.*POISONTRACE_DATA"):
        data.load_dataset("cifar10")

    assert [path for path in (tmp_path / "downloads").rglob("*") if path.is_file()] == []


def test_a_mirror_without_the_file_is_named(mirror: Path) -> None:
    """A 404 tells where it was looked for and the way out."""
    with pytest.raises(StoreError, match=r"404.*127\.0\.0\.1.*cifar-10-binary\.tar\.gz\).*Put the file into a folder"):
        data.load_dataset("cifar10")


def test_an_unreachable_network_names_the_way_out(data_folder: Path) -> None:
    """Without a network the message says where to put the file."""
    with pytest.raises(
        StoreError, match=r"'dataset' must be on disk or downloadable .*name that folder in POISONTRACE_DATA"
    ):
        data.load_dataset("cifar10")


def test_an_archive_on_disk_needs_no_network(data_folder: Path) -> None:
    """The official file is found in the data folder."""
    (data_folder / "cifar-10-binary.tar.gz").write_bytes(_archive(_members()))

    _check_fake_cifar10(data.load_dataset("cifar10"))


def test_members_that_lead_elsewhere_are_harmless(data_folder: Path, tmp_path: Path) -> None:
    """Nothing is written, and no link is followed, whatever the names in the archive."""
    link = tarfile.TarInfo("cifar-10-batches-bin/readme.bin")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    members = {"../../escaped.bin": b"x", "/tmp/../escaped.bin": b"x", **_members()}
    (data_folder / "cifar-10-binary.tar.gz").write_bytes(_archive(members, link))
    before = sorted(tmp_path.rglob("*"))

    _check_fake_cifar10(data.load_dataset("cifar10"))

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
        data.load_dataset("cifar10")


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
        data.load_dataset("cifar10")

    np.savez(data_folder / "cifar10.npz", **labels, **small)
    with pytest.raises(StoreError, match="'dataset' must be sheets of 100x100 tiles"):
        data.load_dataset("cifar10")

    np.savez(data_folder / "cifar10.npz", **labels, **{name: np.zeros(9, np.uint8) for name in small})
    with pytest.raises(StoreError, match="'dataset' must be sheets of 100x100 tiles"):
        data.load_dataset("cifar10")


@pytest.mark.skipif(data._find("cifar10.npz") is None, reason="CIFAR-10 is not on disk")
def test_the_sheets_on_disk_hold_the_official_split() -> None:
    """The real data set has 5,000 training and 1,000 test images a class and the known first labels."""
    dataset = data.load_dataset("cifar10")

    assert dataset.x_train.shape == (50_000, 32, 32, 3)
    assert dataset.x_test.shape == (10_000, 32, 32, 3)
    assert np.bincount(dataset.y_train).tolist() == [5000] * 10
    assert np.bincount(dataset.y_test).tolist() == [1000] * 10
    assert dataset.y_train[:5].tolist() == [6, 9, 9, 4, 1]
    assert dataset.x_train[0, 0, 0].tolist() == [59, 62, 63]
