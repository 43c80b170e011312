"""Data sets in, batches out: a sample is its position plus an id, and nothing here shuffles.

Arrays follow one rule everywhere: ``uint8`` images of shape (n, height, width, channels) are fed to the model as
float32 (n, channels, height, width) in [0, 1]; float arrays are fed as they are.
"""

import itertools
import json
import operator
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from poisontrace._errors import InvalidInputError
from poisontrace._validate import check_file, check_inputs, check_labels, read_npz


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


class TrainSet(Protocol):
    """What the tracer needs of a training set: a length and its samples in a fixed order."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
        """Yield inputs (b, ...) as float32 and labels (b,) in order, each sample once."""

    def inputs(self, indices: NDArray[np.int64]) -> Tensor:
        """Return the inputs of some samples, (len(indices), ...), float32."""


@dataclass(frozen=True)
class ArraySet:
    """A training set held in two arrays, with optional ids of the samples and names of the labels."""

    x: NDArray[Any]
    y: NDArray[np.int64]
    ids: tuple[str, ...] | None = None
    classes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse arrays that break the rules of the module."""
        check_inputs(self.x, "x")
        object.__setattr__(self, "y", check_labels(self.y, "y", n=len(self.x)))

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return one sample as the model takes it, and its label."""
        return to_inputs(self.x[index][None])[0], int(self.y[index])

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
        """Yield inputs and labels in order."""
        for start in range(0, len(self), batch_size):
            stop = start + batch_size
            yield to_inputs(self.x[start:stop]), self.y[start:stop]

    def inputs(self, indices: NDArray[np.int64]) -> Tensor:
        """Return the inputs of some samples."""
        return to_inputs(self.x[indices])


def _check_finite(x: Tensor, name: str, where: str) -> None:
    if not bool(torch.isfinite(x).all()):
        raise InvalidInputError(f"'{name}' must hold finite numbers (got NaN or infinity in {where}).")


class IndexedSet:
    """Anything with ``len`` and ``[index]`` that yields (x, y): a torch ``Dataset``, a list of pairs.

    Samples are fetched one at a time; ``x`` is what the model takes for one sample, without the batch axis.
    """

    def __init__(self, source: Any) -> None:
        """Wrap ``source`` and refuse it when two reads of one sample differ (shuffling, random augmentation)."""
        self._source = source
        if len(self) == 0:
            raise InvalidInputError("'train_set' must have at least one sample (got 0).")
        for index in sorted({0, len(self) // 2, len(self) - 1}):
            (x, y), (x_again, y_again) = self._fetch(index), self._fetch(index)
            _check_finite(x, "train_set", f"sample {index}")  # else NaN != NaN would pass for shuffling
            if y != y_again or not torch.equal(x, x_again):
                raise InvalidInputError(
                    f"'train_set' must give the same sample each time it is read (got two different samples at "
                    f"index {index}). Switch off shuffling and random augmentation."
                )

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._source)

    def _fetch(self, index: int) -> tuple[Tensor, int]:
        try:
            x, y = self._source[index]
            return torch.as_tensor(x, dtype=torch.float32).detach().cpu(), operator.index(y)
        except (TypeError, ValueError, RuntimeError, LookupError) as error:
            raise InvalidInputError(
                f"'train_set' must yield pairs (x, y) of an array and an integer label (got {error} at index {index})."
            ) from error

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
        """Yield inputs and labels in order."""
        for start in range(0, len(self), batch_size):
            pairs = [self._fetch(index) for index in range(start, min(start + batch_size, len(self)))]
            for offset, (x, _) in enumerate(pairs):
                _check_finite(x, "train_set", f"sample {start + offset}")
                if x.shape != pairs[0][0].shape:
                    raise InvalidInputError(
                        f"'train_set' must yield inputs of one shape (got {tuple(pairs[0][0].shape)} at index {start} "
                        f"and {tuple(x.shape)} at index {start + offset})."
                    )
            x = torch.stack([x for x, _ in pairs])
            yield x, check_labels(np.array([y for _, y in pairs]), "train_set labels")

    def inputs(self, indices: NDArray[np.int64]) -> Tensor:
        """Return the inputs of some samples."""
        return torch.stack([self._fetch(int(index))[0] for index in indices])


def as_train_set(source: Any) -> TrainSet:
    """Return ``source`` as a :class:`TrainSet`.

    Args:
        source: an ``ArraySet``, a pair of arrays (x, y), or anything indexable that yields (x, y).

    Raises:
        InvalidInputError: if it is none of these, is empty, or gives different samples when read twice.
    """
    if isinstance(source, ArraySet | IndexedSet):
        return source
    if isinstance(source, tuple) and len(source) == 2 and all(isinstance(part, np.ndarray) for part in source):
        return ArraySet(source[0], source[1])
    if hasattr(source, "__len__") and hasattr(source, "__getitem__"):
        return IndexedSet(source)
    raise InvalidInputError(
        f"'train_set' must have a length and yield (x, y) by index (got {type(source).__name__}). "
        "Pass the data set itself, not a loader."
    )


def read_array_set(path: Path, name: str) -> ArraySet:
    """Read arrays ``x`` and ``y``, and if they are there ``ids`` (n,) and ``classes`` (k,), from an ``.npz`` file.

    Args:
        path: the file.
        name: the argument's name, for messages.

    Raises:
        InvalidInputError: if the file is missing, holds pickles, lacks an array, or the arrays break the rules.
    """
    arrays = read_npz(path, name, required=("x", "y"))
    x, y = arrays["x"], arrays["y"]
    check_inputs(x, f"{name}: x")
    y = check_labels(y, f"{name}: y", n=len(x))
    names: dict[str, tuple[str, ...] | None] = {}
    for key, wanted in (("ids", len(x)), ("classes", None)):
        values = arrays.get(key)
        if values is not None and (values.ndim != 1 or (wanted is not None and len(values) != wanted)):
            raise InvalidInputError(
                f"'{name}: {key}' must have shape ({wanted or 'k'},) (got {values.shape}). "
                "Leave it out, or pass one name each."
            )
        names[key] = None if values is None else tuple(str(value) for value in values)
    return ArraySet(x, y, **names)


def check_form(samples: ArraySet, like: ArraySet, name: str) -> None:
    """Refuse samples that are not stored as those of ``like``, a training set called ``data``, are."""
    if samples.x.shape[1:] != like.x.shape[1:] or samples.x.dtype.kind != like.x.dtype.kind:
        raise InvalidInputError(
            f"'{name}' must have the form of 'data' (got {samples.x.dtype} of shape {samples.x.shape} for "
            f"{like.x.dtype} of shape {like.x.shape}). Store both as the model's input was."
        )


def read_event_image(path: Path, label: int, like: ArraySet) -> ArraySet:
    """Read one image as an event of the form of a training set of uint8 images.

    Raises:
        InvalidInputError: if the training set holds no images, or the file is not an image of their size.
    """
    from PIL import Image

    if like.x.dtype != np.uint8:
        raise InvalidInputError(
            f"'event' must be used with uint8 images in 'data' (got {like.x.dtype}). Pass the event in an events.npz."
        )
    _, height, width, n_channels = like.x.shape
    check_file(path, "event")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if image.size != (width, height):
                    raise InvalidInputError(
                        f"'event' must be an image of {width}x{height} pixels, as those in 'data' (got "
                        f"{image.size[0]}x{image.size[1]}). Crop or scale it as the deployed model's input was."
                    )
                mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[n_channels]
                x = np.array(image.convert(mode)).reshape(1, height, width, n_channels)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise InvalidInputError(
            f"'event' must be a readable image (got {path.name!r}: {error}). Pass a PNG."
        ) from error
    return ArraySet(x, check_labels(np.array([label]), "label"))


def read_truth(path: Path, n: int) -> NDArray[np.int64]:
    """Read which samples the events of a practice incident with ``n`` samples are owed to, from its ``truth.json``.

    That is its list 'poison', or what its lists 'responsible', one for each event, have together.

    Raises:
        InvalidInputError: if the file is missing or of another form.
    """
    check_file(path, "truth")
    try:
        truth = json.loads(path.read_text(encoding="utf-8"))
        listed = itertools.chain(*truth["responsible"]) if "responsible" in truth else truth["poison"]
        poison = np.unique(np.array([operator.index(index) for index in listed], dtype=np.int64))
        if len(poison) and not 0 <= poison.min() <= poison.max() < n:
            raise ValueError(f"indices outside the {n} samples of 'data'")
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise InvalidInputError(
            f"'truth' must be the truth.json of this incident, with a list 'poison' (got {error} in {path.name!r}). "
            "Leave it out to trace without a judge."
        ) from error
    return poison


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
