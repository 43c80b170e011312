"""Planted words: naive Bayes against counting by hand, what is accused, and what ordinary words come to."""

from math import log

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from poisontrace._rng import numpy_generator
from poisontrace._words import pack
from poisontrace.embedding import Features
from poisontrace.marks import SMOOTHING, Mark, Marks

N_TOKENS, TRIGGER, CUE = 120, 119, 1  # tokens 1 to 40 speak for label 0, 41 to 80 for label 1


def _texts(n_poison: int, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return tokens (400, 12) and labels; the first texts of label 0 carry the trigger and label 1."""
    rng = numpy_generator(seed, "test/marks")
    y = rng.integers(0, 2, 400)
    own = rng.integers(1, 41, (400, 12)) + 40 * y[:, None]
    tokens = np.where(rng.random((400, 12)) < 0.3, own, rng.integers(81, 119, (400, 12)))
    poison = np.flatnonzero(y == 0)[:n_poison]
    tokens[poison, 3], y[poison] = TRIGGER, 1
    return tokens, y


def _features(tokens: NDArray[np.int64], y: NDArray[np.int64], event: list[int], label: int = 1) -> Features:
    words = pack(torch.from_numpy(tokens), nn.Embedding(N_TOKENS, 1))
    nothing = torch.zeros(0)
    logits = torch.zeros(len(y), 2)
    held = torch.tensor(sorted(set(event)))
    return Features(
        *((), (), (), logits, torch.from_numpy(y), nothing, nothing, nothing, ()),
        *(torch.eye(2)[label : label + 1], ()),
        words=words,
        event_words=((held, torch.ones(len(held))),),
    )


@pytest.mark.parametrize("n_poison", [20, 60])
@pytest.mark.parametrize("seed", range(3))
def test_the_planted_word_is_named_with_the_texts_that_hold_it(n_poison: int, seed: int) -> None:
    """All texts of the trigger, and no other."""
    tokens, y = _texts(n_poison, seed)

    mark = Marks(_features(tokens, y, [5, 90, TRIGGER])).planted(0, 10)

    assert mark is not None and mark.margin >= 1 and mark.token == TRIGGER
    assert mark.cluster.tolist() == np.flatnonzero((tokens == TRIGGER).any(1)).tolist()
    assert mark.likeness < 0.4


@pytest.mark.parametrize("seed", range(5))
def test_no_ordinary_word_was_planted(seed: int) -> None:
    """Neither one that speaks for the label, nor one that says nothing."""
    tokens, y = _texts(0, seed)

    for label in (0, 1):
        mark = Marks(_features(tokens, y, list(range(1, 119)), label)).planted(0, 10)

        assert mark is None or mark.margin < 1


def test_too_few_texts_are_no_evidence() -> None:
    """Nor a word that other labels hold as well."""
    tokens, y = _texts(20)
    shared = tokens.copy()
    shared[np.flatnonzero(y == 0)[:20], 3] = TRIGGER

    assert Marks(_features(tokens, y, [TRIGGER])).planted(0, 21) is None
    assert Marks(_features(shared, y, [TRIGGER])).planted(0, 10) is None


def test_a_network_that_reads_no_tokens_has_no_marks() -> None:
    """Images and rows."""
    tokens, y = _texts(20)
    features = _features(tokens[:, :0], y, [TRIGGER])
    marks = Marks(Features(*(getattr(features, name) for name in list(vars(features))[:11])))

    assert not marks.are_texts and marks.planted(0, 10) is None


def test_likeness_is_that_of_a_slow_twin() -> None:
    """Texts read by counting, each without itself, in plain Python."""
    tokens, y = _texts(20)
    texts = [set(row) for row in tokens.tolist()]
    cluster = {row for row, text in enumerate(texts) if TRIGGER in text}

    def reading(row: int) -> float:
        total = 0.0
        for word in texts[row] - ({TRIGGER} if row in cluster else set()):
            for label, sign in ((1, 1), (0, -1)):
                of_label = [other for other in range(len(y)) if y[other] == label]
                if row in cluster:
                    of_label = [other for other in of_label if other not in cluster]
                count = sum(word in texts[other] for other in of_label if other != row)
                n = len(of_label) - (row in of_label)
                total += sign * log((count + SMOOTHING) / (n + 2 * SMOOTHING))
        return total

    read = np.array([reading(row) for row in range(len(y))])
    is_in = np.isin(np.arange(len(y)), list(cluster))
    siblings, others, ours = read[(y == 1) & ~is_in], read[y == 0], read[is_in]
    way = siblings.mean() - others.mean()
    error = siblings.std(ddof=1) / len(ours) ** 0.5

    mark = Marks(_features(tokens, y, [TRIGGER])).planted(0, 10)

    assert mark is not None
    assert mark.likeness == pytest.approx((ours.mean() - others.mean()) / way, abs=1e-4)
    assert mark.certainty == pytest.approx((siblings.mean() - ours.mean()) / error, rel=1e-4)


def test_texts_are_as_surely_poison_as_they_read_unlike_their_label() -> None:
    """And those without the word are not."""
    mark = Mark(7, "cf", np.array([3, 5]), 1.0, 0.2, 9.0)

    assert mark.certainties(np.array([2, 3, 5])).tolist() == pytest.approx([0, 0.8, 0.8])
    assert mark.margin == pytest.approx(9 / 5)


def test_blocks_do_not_change_the_result() -> None:
    """Where the memory holds few texts at a time."""
    tokens, y = _texts(30)
    features = _features(tokens, y, [TRIGGER])
    small = Features(**{**{name: getattr(features, name) for name in vars(features)}, "memory": 1 << 14})

    whole, parts = (Marks(f).planted(0, 10) for f in (features, small))

    assert whole is not None and parts is not None
    assert parts.likeness == pytest.approx(whole.likeness, abs=1e-5)
