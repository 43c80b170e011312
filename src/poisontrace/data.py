"""Data sets in, batches out: a sample is its position plus an id, and nothing here shuffles.

Arrays follow one rule everywhere: ``uint8`` images of shape (n, height, width, channels) are fed to the model as
float32 (n, channels, height, width) in [0, 1]; float arrays are fed as they are.
"""

import difflib
import hashlib
import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from poisontrace._errors import InvalidInputError, OutOfMemoryError, is_out_of_memory
from poisontrace._validate import check_inputs, check_labels, read_npz

N_READ_TWICE = 32  # samples that show whether a set augments at random; one alone hides a flip in half of all cases


def to_inputs(x: NDArray[Any]) -> Tensor:
    """Turn stored samples into what the model takes.

    Args:
        x: uint8 (n, height, width, channels) or float (n, ...).

    Returns:
        float32; images become (n, channels, height, width) in [0, 1], float arrays keep their shape.
    """
    if x.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(x)).permute(0, 3, 1, 2).to(torch.float32).div_(255)
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))


def crop_and_flip(x: Tensor, shift: int, flip: float, generator: torch.Generator) -> Tensor:
    """Augment each image on its own: a random crop after zero padding, then a left-right flip; differentiable in ``x``.

    Args:
        x: (n, channels, height, width).
        shift: pixels of padding on each side; 0 crops nothing.
        flip: chance of a flip; 0 flips nothing.
        generator: of the random numbers; what is switched off draws none.
    """
    n, _, height, width = x.shape
    if shift:
        padded = functional.pad(x, (shift,) * 4)
        rows = torch.randint(2 * shift + 1, (n, 1), generator=generator) + torch.arange(height)
        columns = torch.randint(2 * shift + 1, (n, 1), generator=generator) + torch.arange(width)
        x = padded[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if flip:
        is_flipped = torch.rand(n, generator=generator) < flip
        x = torch.where(is_flipped[:, None, None, None], x.flip(3), x)
    return x


def digest_of(*arrays: NDArray[Any]) -> str:
    """Return one SHA-256 of some arrays: their types, shapes and content."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}\n".encode())
        for start in range(0, len(array), 4096):
            digest.update(np.ascontiguousarray(array[start : start + 4096]).data)
    return digest.hexdigest()


class TrainSet(Protocol):
    """What the tracer needs of a training set: a length and its samples in a fixed order.

    One that knows its content without decoding it also has a method ``fingerprint()``, which returns a SHA-256.
    """

    def __len__(self) -> int:
        """Return the number of samples."""

    def batches(
        self, batch_size: int, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
        """Yield inputs (b, ...) as float32 and labels (b,) of a run of samples, or all, in order, each sample once."""

    def inputs(self, indices: NDArray[np.int64]) -> Tensor:
        """Return the inputs of some samples, (len(indices), ...), float32."""


def batches_of(n: int, batch_size: int, start: int = 0, stop: int | None = None) -> Iterator[slice]:
    """Yield the positions of each batch of a run of n samples, of all of them by default."""
    stop = n if stop is None else min(n, stop)
    for first in range(start, stop, batch_size):
        yield slice(first, min(first + batch_size, stop))


@dataclass(frozen=True)
class ArraySet:
    """A training set held in two arrays, with optional ids and sources of the samples, names of labels and columns."""

    x: NDArray[Any]
    y: NDArray[np.int64]
    ids: tuple[str, ...] | None = None
    classes: tuple[str, ...] | None = None
    columns: tuple[str, ...] | None = None
    sources: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse arrays that break the rules of the module."""
        check_inputs(self.x, "x")
        object.__setattr__(self, "y", check_labels(self.y, "y", n=len(self.x)))

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.x)

    @property
    def form(self) -> str:
        """What one sample is; events must be the same."""
        return f"{'uint8' if self.x.dtype == np.uint8 else 'float'} arrays of shape {self.x.shape[1:]}"

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return one sample as the model takes it, and its label."""
        return to_inputs(self.x[index][None])[0], int(self.y[index])

    def batches(
        self, batch_size: int, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
        """Yield inputs and labels of a run of samples in order."""
        for rows in batches_of(len(self), batch_size, start, stop):
            yield to_inputs(self.x[rows]), self.y[rows]

    def inputs(self, indices: NDArray[np.int64]) -> Tensor:
        """Return the inputs of some samples."""
        return to_inputs(self.x[indices])

    def fingerprint(self) -> str:
        """Return the SHA-256 of samples and labels."""
        return digest_of(self.x, self.y)


def _check_finite(x: Tensor, name: str, where: str) -> None:
    if not bool(torch.isfinite(x).all()):
        raise InvalidInputError(f"'{name}' must hold finite numbers (got NaN or infinity in {where}).")


class IndexedSet:
    """Anything with ``len`` and ``[index]`` that yields (x, y): a torch ``Dataset``, a list of pairs.

    Samples are fetched one at a time; ``x`` is what the model takes for one sample, without the batch axis. ``ids``,
    ``classes`` and ``sources`` are its own, if it has them; the ``samples`` of a torchvision folder name its files.
    """

    def __init__(self, source: Any, name: str = "train_set") -> None:
        """Wrap ``source`` and refuse it when two reads of one sample differ (shuffling, random augmentation).

        Args:
            source: the samples.
            name: the argument's name, for messages.

        Raises:
            InvalidInputError: if it is empty, yields no pairs (x, y), or gives different samples when read twice.
            OutOfMemoryError: if memory runs out when a sample is read.
        """
        self._source, self._name = source, name
        self.ids = _names(getattr(source, "ids", None) or _paths(getattr(source, "samples", None)), len(self))
        self.classes = _names(getattr(source, "classes", None))
        self.sources = _names(getattr(source, "sources", None), len(self))
        if len(self) == 0:
            raise InvalidInputError(f"'{self._name}' must have at least one sample (got 0).")
        places = np.linspace(0, len(self) - 1, min(len(self), N_READ_TWICE)).astype(np.int64).tolist()
        # The first sweep goes backwards: two alike would agree where a set counts its reads and begins again.
        before = {index: self._fetch(index) for index in reversed(places)}
        for index in places:
            (x, y), (x_again, y_again) = before[index], self._fetch(index)
            _check_finite(x, self._name, f"sample {index}")  # else NaN != NaN would pass for shuffling
            if y != y_again or not torch.equal(x, x_again):
                raise InvalidInputError(
                    f"'{self._name}' must give the same sample each time it is read (got two different samples at "
                    f"index {index}). Switch off shuffling and random augmentation."
                )

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._source)

    def _fetch(self, index: int) -> tuple[Tensor, int]:
        try:
            x, y = self._source[index]
            return torch.as_tensor(x, dtype=torch.float32).detach().cpu(), operator.index(y)
        except Exception as error:  # code from outside may raise anything
            if is_out_of_memory(error):
                raise OutOfMemoryError(f"sample {index:,} of '{self._name}'") from error
            raise InvalidInputError(
                f"'{self._name}' must yield pairs (x, y) of an array and an integer label (got {error} at index "
                f"{index})."
            ) from error

    def batches(
        self, batch_size: int, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
        """Yield inputs and labels of a run of samples in order."""
        for rows in batches_of(len(self), batch_size, start, stop):
            pairs = [self._fetch(index) for index in range(rows.start, rows.stop)]
            for offset, (x, _) in enumerate(pairs):
                _check_finite(x, self._name, f"sample {rows.start + offset}")
                if x.shape != pairs[0][0].shape:
                    raise InvalidInputError(
                        f"'{self._name}' must yield inputs of one shape (got {tuple(pairs[0][0].shape)} at index "
                        f"{rows.start} and {tuple(x.shape)} at index {rows.start + offset})."
                    )
            x = torch.stack([x for x, _ in pairs])
            yield x, check_labels(np.array([y for _, y in pairs]), f"{self._name} labels")

    def inputs(self, indices: NDArray[np.int64]) -> Tensor:
        """Return the inputs of some samples."""
        return torch.stack([self._fetch(int(index))[0] for index in indices])


def _names(values: Any, n: int | None = None) -> tuple[str, ...] | None:
    """Return an attribute of a data set from outside as names, or None if it is something else."""
    if not isinstance(values, list | tuple | np.ndarray) or (n is not None and len(values) != n):
        return None
    return tuple(str(value) for value in values)


def folders_at(paths: Sequence[str], level: int) -> tuple[str, ...] | None:
    """Return the folder at a level of each path, counted from 0 and empty where there is none; None if all are."""
    found = tuple((path.split("/")[level:-1] or [""])[0] for path in paths)
    return found if any(found) else None


def _paths(samples: Any) -> list[str] | None:
    """Return the files of a torchvision folder, whose ``samples`` are pairs (path, label)."""
    if isinstance(samples, list) and all(
        isinstance(pair, tuple) and pair and isinstance(pair[0], str) for pair in samples
    ):
        return [pair[0] for pair in samples]
    return None


def _is_sample(part: Any) -> bool:
    """Return whether this is an input and its label, and not an array of inputs or of labels."""
    try:
        _, y = part
        operator.index(y)
    except Exception:  # what comes from outside may raise anything
        return False
    return True


def _as_array(part: Any, name: str) -> NDArray[Any]:
    try:
        return part.detach().cpu().numpy() if isinstance(part, Tensor) else np.asarray(part)
    except Exception as error:  # what comes from outside may raise anything
        raise InvalidInputError(
            f"'{name}' must be what NumPy can hold in one array (got {error}). Pass float32 inputs and int64 labels."
        ) from error


def as_train_set(source: Any, name: str = "train_set") -> TrainSet:
    """Return ``source`` as a :class:`TrainSet`.

    Args:
        source: an ``ArraySet``, a pair of arrays or tensors (x, y), of which y may be a list, or anything indexable
            that yields (x, y).
        name: the argument's name, for messages.

    Raises:
        InvalidInputError: if it is none of these, is empty, or gives different samples when read twice.
    """
    if hasattr(source, "batches") and hasattr(source, "inputs"):
        train_set: TrainSet = source
        return train_set
    if isinstance(source, tuple | list) and len(source) == 2 and isinstance(source[0], np.ndarray | Tensor):
        if not all(map(_is_sample, source)):
            return ArraySet(_as_array(source[0], "x"), _as_array(source[1], "y"))
    if hasattr(source, "__len__") and hasattr(source, "__getitem__"):
        return IndexedSet(source, name)
    raise InvalidInputError(
        f"'{name}' must have a length and yield (x, y) by index (got {type(source).__name__}). "
        "Pass the data set itself, not a loader."
    )


def read_array_set(path: Path, name: str, classes: Sequence[str] | None = None) -> ArraySet:
    """Read ``x`` and ``y``, and if they are there ``ids`` (n,), ``source`` (n,) and ``classes`` (k,), from an ``.npz``.

    Args:
        path: the file.
        name: the argument's name, for messages.
        classes: names of the labels in the order of the model's outputs, before those in the file.

    Raises:
        InvalidInputError: if the file is missing, holds pickles, lacks an array, or the arrays break the rules.
    """
    arrays = read_npz(path, name, required=("x", "y"))
    x, y = arrays["x"], arrays["y"]
    check_inputs(x, f"{name}: x")
    names: dict[str, tuple[str, ...] | None] = {}
    for key, wanted in (("ids", len(x)), ("source", len(x)), ("classes", None)):
        values = arrays.get(key)
        if values is not None and (values.ndim != 1 or (wanted is not None and len(values) != wanted)):
            raise InvalidInputError(
                f"'{name}: {key}' must have shape ({wanted or 'k'},) (got {values.shape}). "
                "Leave it out, or pass one name each."
            )
        names[key] = None if values is None else tuple(str(value) for value in values)
    y, known = number_labels(y, f"{name}: y", names["classes"] if classes is None else classes, n=len(x))
    return ArraySet(x, y, names["ids"], known, sources=names["source"])


def number_labels(
    labels: NDArray[Any], name: str, classes: Sequence[str] | None = None, *, n: int | None = None
) -> tuple[NDArray[np.int64], tuple[str, ...] | None]:
    """Return labels as numbers, and the names of the classes if there are any.

    Args:
        labels: whole numbers, or names (n,).
        name: the argument's name, for messages.
        classes: names in the order of the model's outputs; None sorts the names that occur.
        n: how many labels there must be.

    Raises:
        InvalidInputError: if a label is neither a whole number of 0 or more nor a known name.
    """
    known = None if classes is None else tuple(str(value) for value in classes)
    if labels.dtype.kind not in "UT" or labels.ndim != 1:
        return check_labels(labels, name, n=n), known
    texts = [str(label).strip() for label in labels]
    if "" in texts:
        raise InvalidInputError(
            f"'{name}' must hold a label in each row (got none in row {texts.index('')}). Drop or label it."
        )
    if known is None:
        if all(_is_number(text) for text in set(texts)):
            numbers = np.array([float(text) for text in texts])
            if (numbers % 1).any():
                raise InvalidInputError(
                    f"'{name}' must hold whole numbers or names (got {numbers[numbers % 1 != 0][0]!r}). "
                    "Name the column of labels with --label-column."
                )
            return check_labels(numbers.astype(np.int64), name, n=n), None
        known = tuple(sorted(set(texts)))
    numbers_of = {text: find_label(text, known, name) for text in dict.fromkeys(texts)}
    return check_labels(np.array([numbers_of[text] for text in texts]), name, n=n), known


def find_label(label: str, classes: Sequence[str] | None, name: str = "label") -> int:
    """Return the number of a label that is given by its name or its number.

    Raises:
        InvalidInputError: if it is neither, or a number that no array of labels holds.
    """
    if classes and label in classes:
        return list(classes).index(label)
    folded = [known.casefold() for known in classes or ()]
    if folded.count(label.casefold()) == 1:
        return folded.index(label.casefold())
    if label.isdecimal():
        if len(label) > 18:  # labels are int64
            raise InvalidInputError(
                f"'{name}' must be a number of at most 18 digits (got {label[:30]!r}). Pass the number of a class."
            )
        return int(label)
    if not classes:
        raise InvalidInputError(
            f"'{name}' must be a whole number of 0 or more (got {label!r}, and 'data' names no classes). "
            "Pass the number, or the names with --classes."
        )
    near = difflib.get_close_matches(label, classes, n=1)
    shown = ", ".join(map(repr, classes[:10])) + (", ..." if len(classes) > 10 else "")
    raise InvalidInputError(
        f"'{name}' must be a class of 'data' (got {label!r}). Pass "
        + (f"{near[0]!r}, if you meant that." if near else f"one of {shown}.")
    )


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def as_events(events: Sequence[tuple[Any, int]] | ArraySet) -> list[tuple[Tensor, int]]:
    """Return events as a list of (input without the batch axis, wrong label the model gave).

    Raises:
        InvalidInputError: if there is no event or one is not such a pair of finite numbers and a label.
    """
    if isinstance(events, ArraySet):
        events = [events[index] for index in range(len(events))]
    if isinstance(events, Tensor | np.ndarray | str) or not hasattr(events, "__len__"):
        raise InvalidInputError(f"'events' must be a list of pairs (x, y_wrong) (got {type(events).__name__}).")
    if len(events) == 0:
        raise InvalidInputError("'events' must have at least one row (got 0). Pass inputs the model misclassifies.")
    pairs: list[tuple[Tensor, int]] = []
    for position, pair in enumerate(events):
        try:
            x, y = pair
            x, y = torch.as_tensor(x, dtype=torch.float32).detach().cpu(), operator.index(y)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InvalidInputError(
                f"'events' must be a list of pairs (x, y_wrong) (got {error} at row {position})."
            ) from error
        _check_finite(x, "events", f"row {position}")
        if pairs and x.shape != pairs[0][0].shape:
            raise InvalidInputError(
                f"'events' must hold inputs of one shape (got {tuple(pairs[0][0].shape)} at row 0 and {tuple(x.shape)} "
                f"at row {position}). Trace them one by one."
            )
        pairs.append((x, y))
    return pairs
