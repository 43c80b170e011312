"""The only judge of a trace: how a finding compares with the truth, as fractions in [0, 1] of sets of indices."""

import itertools
import json
import operator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from poisontrace._errors import InvalidInputError
from poisontrace._validate import check_file


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


def _n_common(one: NDArray[np.int64], other: NDArray[np.int64]) -> int:
    return len(np.intersect1d(one, other))


def precision(found: NDArray[np.int64], poison: NDArray[np.int64]) -> float:
    """Return the fraction of found samples that are poison.

    An empty finding is right (1.0) when there is no poison, and earns nothing (0.0) when there is.

    Example:
        >>> precision(np.array([1, 2, 3, 4]), np.array([2, 3, 4, 9]))
        0.75
        >>> nothing = np.array([], np.int64)
        >>> precision(nothing, nothing), precision(nothing, np.array([2]))
        (1.0, 0.0)
    """
    n_found = len(np.unique(found))
    if n_found == 0:
        return 1.0 if len(poison) == 0 else 0.0
    return _n_common(found, poison) / n_found


def recall(found: NDArray[np.int64], poison: NDArray[np.int64]) -> float:
    """Return the fraction of poison that was found; 1.0 when there is none to find.

    Example:
        >>> recall(np.array([2, 3]), np.array([2, 3, 4, 9]))
        0.5
        >>> recall(np.array([2]), np.array([], np.int64))
        1.0
    """
    n_poison = len(np.unique(poison))
    return _n_common(found, poison) / n_poison if n_poison else 1.0


def false_positive_rate(found: NDArray[np.int64], poison: NDArray[np.int64], n: int) -> float:
    """Return the fraction of the benign samples, among ``n`` in all, that were found; 0.0 when none is benign.

    Example:
        >>> false_positive_rate(np.array([1, 2, 3]), np.array([2, 3]), 12)
        0.1
    """
    n_benign = n - len(np.unique(poison))
    return len(np.setdiff1d(found, poison)) / n_benign if n_benign else 0.0
