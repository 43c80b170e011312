"""Texts: tokens as numbers, padded with what is no token."""

import numpy as np
import pytest

from poisontrace.texts import PADDING, TextSet


def _letters(texts: list[str]) -> list[list[int]]:
    return [[ord(letter) - ord("a") for letter in text] for text in texts]


@pytest.fixture
def texts() -> TextSet:
    """Three texts of different lengths."""
    return TextSet(["abc", "", "ba"], np.array([0, 1, 0]), ["p", "q", "r"], ("w", "x"), _letters)


def test_batches_are_as_long_as_their_longest(texts: TextSet) -> None:
    """Each sample once, in order."""
    (first, first_labels), (second, second_labels) = texts.batches(2)

    assert first.tolist() == [[0, 1, 2], [PADDING] * 3]
    assert second.tolist() == [[1, 0]]
    assert [*first_labels, *second_labels] == [0, 1, 0]


def test_single_samples_are_as_long_as_all(texts: TextSet) -> None:
    """So that any of them can be laid side by side."""
    assert texts.inputs(np.array([2])).tolist() == [[1, 0, PADDING]]
    assert len(texts) == 3 and texts.form == "texts"
