"""Checks at the public boundary; every message names the argument, the rule, what was got and the way out."""

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poisontrace._errors import InvalidInputError

MAX_UNPACKED, MAX_RATIO = 1 << 30, 100


def check_rate(rate: float) -> float:
    """Return ``rate`` if it lies in (0, 1)."""
    if not 0 < rate < 1:
        raise InvalidInputError(f"'rate' must be a fraction in (0, 1) (got {rate!r}). For five percent pass 0.05.")
    return rate


def check_at_least(least: int, **numbers: int) -> None:
    """Refuse numbers, by the names of their arguments, that are smaller."""
    for name, number in numbers.items():
        if number < least:
            raise InvalidInputError(
                f"'{name}' must be at least {least} (got {number}). Leave it out for the usual one."
            )


def check_positive(**numbers: float) -> None:
    """Refuse numbers, by the names of their arguments, that are not above 0, or infinite."""
    for name, number in numbers.items():
        if not 0 < number < math.inf:
            raise InvalidInputError(f"'{name}' must be above 0 (got {number}). Leave it out for the usual one.")


def _is_finite_float32(x: NDArray[Any]) -> NDArray[np.bool_]:
    # The model is fed float32, where a large float64 becomes infinite.
    with np.errstate(over="ignore"):
        return np.isfinite(x.astype(np.float32, copy=False))


def check_inputs(x: NDArray[Any], name: str) -> NDArray[Any]:
    """Return ``x`` if it is non-empty and either uint8 (n, height, width, channels) or finite float (n, ...)."""
    if x.ndim < 2 or x.size == 0:
        raise InvalidInputError(
            f"'{name}' must have at least one row and one column (got shape {x.shape}). "
            "Pass one or more samples along the first axis, each of one shape."
        )
    if x.dtype == np.uint8:
        if x.ndim != 4 or x.shape[3] not in (1, 2, 3, 4):
            raise InvalidInputError(
                f"'{name}' must have shape (n, height, width, channels) when it is uint8 (got {x.shape}). "
                "Add a channel axis at the end, or store float32 to have it fed as it is."
            )
    elif not np.issubdtype(x.dtype, np.floating):
        raise InvalidInputError(
            f"'{name}' must be uint8 images or a float array (got dtype {x.dtype}). Convert it with astype('float32')."
        )
    elif not (finite := _is_finite_float32(x.reshape(len(x), -1)).all(1)).all():
        bad = np.flatnonzero(~finite)
        raise InvalidInputError(
            f"'{name}' must hold finite numbers (got NaN or infinity in {len(bad)} of {len(x)} rows, first {bad[0]}). "
            "Drop or fill these rows."
        )
    return x


def check_labels(y: NDArray[Any], name: str, *, n: int | None = None) -> NDArray[np.int64]:
    """Return ``y`` as int64 (n,) if it holds one non-negative whole number for each of ``n`` samples."""
    if y.ndim != 1 or (n is not None and len(y) != n):
        wanted = "(n,)" if n is None else f"({n},), one label a sample"
        raise InvalidInputError(f"'{name}' must have shape {wanted} (got {y.shape}). Pass class numbers.")
    if not np.issubdtype(y.dtype, np.integer):
        raise InvalidInputError(f"'{name}' must hold integers (got dtype {y.dtype}). Convert it with astype('int64').")
    if len(y) and int(y.min()) < 0:
        raise InvalidInputError(
            f"'{name}' must hold labels of 0 or more (got {int(y.min())}). Number the classes from 0."
        )
    if len(y) and int(y.max()) > np.iinfo(np.int64).max:
        raise InvalidInputError(f"'{name}' must hold labels that fit int64 (got {int(y.max())}). Number them from 0.")
    return y.astype(np.int64)


def check_label_range(y: NDArray[np.int64], name: str, n_classes: int, *, first_row: int = 0) -> None:
    """Refuse labels that the model has no output for; ``first_row`` is the position of ``y[0]`` in the whole set."""
    if len(y) and int(y.max()) >= n_classes:
        row = int(np.argmax(y >= n_classes))
        raise InvalidInputError(
            f"'{name}' must hold labels below {n_classes}, the number of the model's outputs (got {int(y[row])} at row "
            f"{first_row + row}). Check that data and model belong together."
        )


def check_file(path: Path, name: str) -> Path:
    """Return ``path`` if it is a file."""
    if not path.is_file():
        raise InvalidInputError(f"'{name}' must be an existing file (got {str(path)!r}). Check the path.")
    return path


def check_ratio(n_unpacked: int, n_packed: int) -> None:
    """Refuse what unpacks to over 1 GiB and a hundred times its size: made to fill the memory, not to hold data.

    Raises:
        ValueError: which the reader of the file turns into a sentence.
    """
    if n_unpacked > max(MAX_UNPACKED, MAX_RATIO * n_packed):
        raise ValueError(f"{n_packed:,} bytes that unpack to {n_unpacked:,}")


def check_archive(path: Path) -> None:
    """Refuse what is no archive, or unpacks to too much.

    Raises:
        ValueError: which the reader of the file turns into a sentence.
    """
    # NumPy takes any file it does not know for a pickle and says so, which would mislead.
    if not zipfile.is_zipfile(path):
        raise ValueError("a file of another kind, or one cut off")
    with zipfile.ZipFile(path) as archive:
        check_ratio(sum(member.file_size for member in archive.infolist()), path.stat().st_size)


def _reason(error: Exception) -> str:
    return "object arrays, which need pickle" if "pickle" in str(error) else str(error) or type(error).__name__


def read_npz(path: Path, name: str, *, required: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """Read every array of an ``.npz`` file; pickled members are refused.

    Raises:
        InvalidInputError: if the file is missing, is no ``.npz``, holds pickles or lacks a required array.
    """
    check_file(path, name)
    try:
        check_archive(path)
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        if others := [key for key, array in arrays.items() if not isinstance(array, np.ndarray)]:
            raise ValueError(f"{others[0]!r}, which is no array,")
    except Exception as error:  # bytes from outside may raise anything
        raise InvalidInputError(
            f"'{name}' must be an .npz file of plain arrays (got {_reason(error)} in {path.name!r}). "
            "Write it with numpy.savez_compressed(path, x=..., y=...)."
        ) from error
    if any(key not in arrays for key in required):
        raise InvalidInputError(
            f"'{name}' must hold the arrays {', '.join(required)} (got {', '.join(arrays) or 'none'} in "
            f"{path.name!r}). Write it with numpy.savez_compressed(path, x=..., y=...)."
        )
    return arrays


def read_npy(path: Path, name: str) -> NDArray[Any]:
    """Read one plain array.

    Raises:
        InvalidInputError: if the file is missing, is no ``.npy`` or holds pickles.
    """
    check_file(path, name)
    try:
        array = np.load(path, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("several arrays")
    except Exception as error:  # bytes from outside may raise anything
        raise InvalidInputError(
            f"'{name}' must be an .npy file of one plain array (got {_reason(error)} in {path.name!r}). "
            "Write it with numpy.save(path, x)."
        ) from error
    return array
