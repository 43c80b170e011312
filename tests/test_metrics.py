"""Precision, recall and false positive rate against set arithmetic."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from poisontrace._errors import InvalidInputError
from poisontrace.metrics import false_positive_rate, precision, read_truth, recall

EMPTY = np.array([], np.int64)


@pytest.mark.parametrize("seed", range(5))
def test_the_metrics_equal_their_definitions_on_sets(seed: int) -> None:
    """Counting with Python sets gives the same fractions."""
    rng = np.random.default_rng(seed)
    found, poison = (rng.choice(50, size, replace=False) for size in (12, 20))
    true_positives = len(set(found.tolist()) & set(poison.tolist()))

    assert precision(found, poison) == true_positives / 12
    assert recall(found, poison) == true_positives / 20
    assert false_positive_rate(found, poison, 50) == (12 - true_positives) / 30


def test_an_exact_finding_is_perfect() -> None:
    """Everything found and nothing else, in any order."""
    found, poison = np.array([9, 2, 5]), np.array([2, 5, 9])

    assert (precision(found, poison), recall(found, poison), false_positive_rate(found, poison, 10)) == (1.0, 1.0, 0.0)


def test_an_empty_finding_earns_nothing_where_there_is_poison() -> None:
    """Silence is no success."""
    assert (precision(EMPTY, np.array([1])), recall(EMPTY, np.array([1]))) == (0.0, 0.0)


def test_an_empty_finding_is_right_where_there_is_none() -> None:
    """Without poison, nothing found is the one right answer."""
    assert (precision(EMPTY, EMPTY), recall(EMPTY, EMPTY), false_positive_rate(EMPTY, EMPTY, 5)) == (1.0, 1.0, 0.0)


def test_a_claim_on_a_clean_set_is_all_wrong() -> None:
    """Without poison, precision of a claim is 0 and only the claim counts as false positives."""
    assert (precision(np.array([3]), EMPTY), false_positive_rate(np.array([3]), EMPTY, 4)) == (0.0, 0.25)


def test_a_set_of_nothing_but_poison_has_no_false_positives() -> None:
    """Without benign samples none can be flagged."""
    assert false_positive_rate(np.arange(3), np.arange(3), 3) == 0.0


def test_an_index_counts_once() -> None:
    """Repeated indices change nothing."""
    assert precision(np.array([1, 1, 2]), np.array([1, 1])) == 0.5
    assert recall(np.array([1, 1]), np.array([1, 1, 2])) == 0.5


@pytest.mark.parametrize(
    ("truth", "poison"),
    [
        ({"poison": [1, 4, 7]}, [1, 4, 7]),
        ({"poison": [1, 4, 7], "decoys": [2]}, [1, 4, 7]),
        ({"poison": [1, 4, 7], "responsible": [[1, 4], [1]]}, [1, 4]),
    ],
)
def test_the_truth_is_what_the_events_are_owed_to(truth: dict[str, Any], poison: list[int], tmp_path: Path) -> None:
    """Poison of a campaign that no event belongs to is none of it, and decoys never are."""
    (tmp_path / "truth.json").write_text(json.dumps(truth))

    assert read_truth(tmp_path / "truth.json", 8).tolist() == poison


@pytest.mark.parametrize("truth", [{"poison": [8]}, {"poison": [1], "responsible": [8]}, {"responsible": [[-1]]}, []])
def test_a_truth_of_another_form_is_refused(truth: Any, tmp_path: Path) -> None:
    """The message says what to do without it."""
    (tmp_path / "truth.json").write_text(json.dumps(truth))

    with pytest.raises(InvalidInputError, match=r"'truth' must be the truth\.json of this incident.*Leave it out"):
        read_truth(tmp_path / "truth.json", 8)
