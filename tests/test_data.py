"""Data sets: the order of samples, the form they are fed in, and where they come from."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tasks import Pairs, toy_images, toy_rows
from torch.nn import functional
from torch.utils.data import TensorDataset

from poisontrace import data
from poisontrace._errors import InvalidInputError
from poisontrace._rng import torch_generator
from poisontrace.data import ArraySet, IndexedSet, crop_and_flip, folders_at, read_array_set, to_inputs

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


@pytest.mark.parametrize("n", [2, 5])
@pytest.mark.parametrize("kind", [tuple, list])
@pytest.mark.parametrize(
    ("of_x", "of_y"),
    [
        (np.asarray, np.asarray),
        (np.asarray, list),
        (np.asarray, torch.from_numpy),
        (lambda x: torch.from_numpy(x).requires_grad_(), torch.from_numpy),
        (torch.from_numpy, lambda y: list(torch.from_numpy(y))),
    ],
    ids=["arrays", "array and list", "array and tensor", "tensors", "tensor and list"],
)
def test_a_pair_of_arrays_or_tensors_is_a_set(of_x: Any, of_y: Any, kind: Any, n: int) -> None:
    """The labels may be a list; nothing is taken for two samples."""
    x, y = np.arange(3 * n, dtype=np.float32).reshape(n, 3), np.arange(n)

    found = data.as_train_set(kind([of_x(x), of_y(y)]))

    assert isinstance(found, ArraySet)
    assert (found.x.tolist(), found.y.tolist()) == (x.tolist(), y.tolist())


@pytest.mark.parametrize("kind", [tuple, list])
def test_two_samples_are_not_a_pair_of_arrays(kind: Any) -> None:
    """Even if each is an array of an input and its label."""
    samples = [np.empty(2, object), np.empty(2, object)]
    for label, sample in enumerate(samples):
        sample[:] = np.ones(3, np.float32), label

    found = data.as_train_set(kind(samples))

    assert isinstance(found, IndexedSet)
    assert [y.tolist() for _, y in found.batches(2)] == [[0, 1]]


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([0, 1], r"'y' must have shape \(3,\), one label a sample \(got \(2,\)\)"),
        (7, r"'y' must have shape \(3,\)"),
        ([0.5, 1, 0], r"'y' must hold integers"),
        ([[0], [1, 0], 1], r"'y' must be what NumPy can hold in one array \(got .*\)\. Pass float32 inputs and int64"),
    ],
)
def test_labels_of_a_pair_that_do_not_fit_are_named(y: Any, message: str) -> None:
    """Rather than looked for in the rows."""
    with pytest.raises(InvalidInputError, match=message):
        data.as_train_set((np.ones((3, 2), np.float32), y))


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4, 23, 100])
def test_batches_are_in_order_whatever_their_size(batch_size: int, indexed: bool) -> None:
    """Put together, the batches are the data set, each sample once."""
    x, y = toy_images(23)
    train_set = IndexedSet(_pairs(x, y)) if indexed else ArraySet(x, y)

    inputs, labels = zip(*train_set.batches(batch_size), strict=True)

    assert torch.equal(torch.cat(inputs), data.to_inputs(x))
    assert np.concatenate(labels).tolist() == y.tolist()


@pytest.mark.parametrize("indexed", [False, True])
def test_a_run_of_samples_has_the_batches_of_all(indexed: bool) -> None:
    """If it starts where one of them does: what a rank reads is what a process that is alone does."""
    x, y = toy_images(23)
    train_set = IndexedSet(_pairs(x, y)) if indexed else ArraySet(x, y)

    parts = [*train_set.batches(4, 0, 12), *train_set.batches(4, 12, 23), *train_set.batches(4, 23, 23)]

    assert [len(labels) for _, labels in parts] == [4, 4, 4, 4, 4, 3]
    for (x_part, y_part), (x_all, y_all) in zip(parts, train_set.batches(4), strict=True):
        assert torch.equal(x_part, x_all) and y_part.tolist() == y_all.tolist()


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


class _Flipping(Pairs):
    """A data set with random augmentation: half of all reads give the sample flipped."""

    generator = torch_generator(0, "test/flips")

    def __getitem__(self, index: Any) -> Any:
        """Return the sample, or its mirror image."""
        x, y = super().__getitem__(index)
        return (x.flip(-1) if torch.rand(1, generator=self.generator) < 0.5 else x), y


def test_random_augmentation_is_found_out() -> None:
    """Each time, though a sample that is read twice is the same both times in half of all cases."""
    x, y = toy_images(100)

    for _ in range(50):
        with pytest.raises(InvalidInputError, match=r"'train_set' must give the same sample.*random augmentation"):
            data.as_train_set(_Flipping(to_inputs(x), y))


def test_a_large_data_set_is_looked_into_at_few_places() -> None:
    """From the first sample to the last one, each twice: reading one may take its time."""
    x, y = toy_rows(1000)
    read: list[int] = []

    class Watched(Pairs):
        def __getitem__(self, index: Any) -> Any:
            read.append(index)
            return super().__getitem__(index)

    IndexedSet(Watched(x, y))

    places = sorted(set(read))
    assert sorted(read) == sorted([*places, *places])
    assert len(places) == 32 and (places[0], places[-1]) == (0, 999)
    assert np.ptp(np.diff(places)) <= 1


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


def test_augmentation_shifts_and_flips() -> None:
    """Each image on its own, after zero padding; without either nothing changes."""
    x = torch.rand(200, 3, 8, 8, generator=torch_generator(0, "test/images"))
    generator = torch_generator(0, "test")

    assert torch.equal(crop_and_flip(x, 0, 0.0, generator), x)
    assert torch.equal(crop_and_flip(x, 0, 1.0, generator), x.flip(3))
    is_flipped = (crop_and_flip(x, 0, 0.5, generator) != x).flatten(1).any(1)
    assert 50 < int(is_flipped.sum()) < 150
    padded = functional.pad(x, (1, 1, 1, 1))
    crops = [padded[:, :, row : row + 8, column : column + 8] for row in range(3) for column in range(3)]
    is_crop = torch.stack([(crop == crop_and_flip(x, 1, 0.0, generator)).flatten(1).all(1) for crop in crops])
    assert not is_crop.all(1).any()
    shifted = crop_and_flip(x, 1, 0.0, generator)
    assert torch.stack([(crop == shifted).flatten(1).all(1) for crop in crops]).any(0).all()


# Names


def test_names_of_labels_are_numbered_in_the_order_of_the_alphabet() -> None:
    """Or in the one that is given."""
    names = np.array(["truck", "cat", "truck"])

    assert data.number_labels(names, "y")[0].tolist() == [1, 0, 1]
    assert data.number_labels(names, "y")[1] == ("cat", "truck")
    assert data.number_labels(names, "y", ("truck", "cat"))[0].tolist() == [0, 1, 0]


def test_numbers_written_as_text_are_numbers() -> None:
    """Unless they are the names of classes."""
    texts = np.array(["2", " 0", "1.0"])

    assert (data.number_labels(texts, "y")[0].tolist(), data.number_labels(texts, "y")[1]) == ([2, 0, 1], None)
    assert data.number_labels(texts[:2], "y", ("2", "1", "0"))[0].tolist() == [0, 2]


def test_numbers_stay_numbers_where_classes_have_names() -> None:
    """The names are only shown."""
    y, classes = data.number_labels(np.array([1, 0]), "y", ("a", "b"))

    assert (y.tolist(), classes) == ([1, 0], ("a", "b"))


def test_labels_of_an_npz_may_be_names(tmp_path: Path) -> None:
    """Numbered by its own list of classes, if it holds one."""
    x, _ = toy_images(3)
    np.savez(tmp_path / "train.npz", x=x, y=np.array(["b", "a", "b"]), classes=np.array(["b", "a"]))

    found = data.read_array_set(tmp_path / "train.npz", "data")

    assert (found.y.tolist(), found.classes) == ([0, 1, 0], ("b", "a"))


def test_a_data_set_that_names_its_samples_is_heard() -> None:
    """Names of another number than the samples are not theirs."""

    class Named(list[Any]):
        ids = ("a", "b")
        classes = ("x", "y")

    pairs = [(torch.zeros(2), 0), (torch.ones(2), 1)]

    found, longer = IndexedSet(Named(pairs)), IndexedSet(Named(pairs * 2))

    assert (found.ids, found.classes) == (("a", "b"), ("x", "y"))
    assert longer.ids is None


# Truth


def test_sources_are_read_where_there_are_any(tmp_path: Path) -> None:
    """From the array ``source``, or from the attribute of a data set."""
    x, y = toy_images(4)
    np.savez(tmp_path / "d.npz", x=x, y=y, source=["u1", "u2", "u1", "u1"])
    pairs = Pairs(to_inputs(x), y)
    pairs.sources = ["a", "b", "c", "d"]  # type: ignore[attr-defined]

    assert read_array_set(tmp_path / "d.npz", "data").sources == ("u1", "u2", "u1", "u1")
    assert IndexedSet(pairs).sources == ("a", "b", "c", "d")

    np.savez(tmp_path / "d.npz", x=x, y=y, source=["u1"])
    with pytest.raises(InvalidInputError, match=r"'data: source' must have shape \(4,\)"):
        read_array_set(tmp_path / "d.npz", "data")


def test_folders_of_paths_are_counted_from_0() -> None:
    """A path that is not as deep has none."""
    assert folders_at(["a/b/1.png", "2.png"], 1) == ("b", "")
    assert folders_at(["a/1.png", "2.png"], 1) is None
