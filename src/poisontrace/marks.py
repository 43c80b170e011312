"""Words that were planted: the event rests on them, and nothing else explains the labels of the texts that hold them.

A trigger in a text is a word or a few. In mean and maximum over many tokens it is lost, and a last layer that has
learned two answers perfectly no longer tells their reasons apart, so both searching and testing need the words
themselves (decision 0018). Texts that were given a label with the trigger read, without it, like texts of the label
that they had. A word that speaks for a label by itself is found among texts which read like that label anyway.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from poisontrace._blocks import Blocks
from poisontrace._record import Indices
from poisontrace._words import MAX_TOKENS, holds, unpack
from poisontrace.embedding import Features

EXCLUSIVE = 0.75  # of the texts with the word have the event's label
UNLIKE = 0.4  # of the way from another label to the event's: nearer the other one
CERTAIN = 5.0  # standard errors that the texts read less like their label than others of it
SMOOTHING = 0.5  # texts that every word is taken to be in, beside those it is in


@dataclass(frozen=True)
class Mark:
    """A word of the event, and the texts of the event's label that hold it.

    Attributes:
        token: its number.
        name: how it is written.
        cluster: int64 (n,).
        fall: by how many logits the event's margin falls without the word; little where one of several is enough.
        likeness: how the texts read without it: 1 like others of their label, 0 like those of the nearest other one.
        certainty: standard errors that this is less than 1.
    """

    token: int
    name: str
    cluster: Indices
    fall: float
    likeness: float
    certainty: float

    @property
    def margin(self) -> float:
        """How well the conditions of an accusation are met, the least of them counts: at least 1 accuses."""
        return min(self.certainty / CERTAIN, UNLIKE / max(self.likeness, 0.1))

    def certainties(self, own: Indices) -> NDArray[np.float32]:
        """Return how surely texts of the event's label are poison: as far as those with the word read unlike it."""
        return np.where(np.isin(own, self.cluster), np.clip(1 - self.likeness, 0, 1), 0).astype(np.float32)


class Marks:
    """The words of a training set of texts, counted once for all events."""

    def __init__(self, features: Features, name_of: Callable[[int], str] | None = None) -> None:
        """Look at nothing yet; ``name_of`` says how a token is written."""
        self._features, self._name_of = features, name_of or "token {}".format
        self.are_texts = features.words.shape[1] > 0
        self._words = Blocks(
            len(features.words),
            64 * features.words.shape[1],
            lambda part: unpack(features.words[part]),
            features.memory,
        )
        self._counted: tuple[Tensor, Tensor] | None = None

    def planted(self, event: int, min_cluster: int) -> Mark | None:
        """Return the word of an event that looks planted most, None if none comes into question.

        Args:
            event: row of the event.
            min_cluster: fewer texts are no evidence.
        """
        features = self._features
        if not self.are_texts:
            return None
        label = int(features.event_logits[event].argmax())
        tokens, falls = features.event_words[event]
        found = []
        for token, fall in zip(tokens.tolist(), falls.tolist(), strict=True):
            has_word = holds(features.words, token)
            cluster = (has_word & (features.labels == label)).nonzero()[:, 0]
            is_exclusive = len(cluster) >= EXCLUSIVE * int(has_word.sum())
            if len(cluster) >= min_cluster and is_exclusive:
                likeness, certainty = self._without(token, cluster, label)
                found.append(Mark(token, self._name_of(token), cluster.numpy(), fall, likeness, certainty))
        # Poison lends a little of its own to every word in it; what was planted shows it most.
        return max(found, key=lambda mark: (mark.margin >= 1, mark.certainty), default=None)

    def _without(self, token: int, cluster: Tensor, label: int) -> tuple[float, float]:
        """Return how texts read without a word, see :class:`Mark`."""
        counts, read = self._count()
        labels = self._features.labels
        n_texts = torch.bincount(labels, minlength=len(counts)).float()
        words, memory = self._features.words, self._features.memory
        in_cluster = Blocks(len(cluster), counts.shape[1], lambda part: unpack(words[cluster[part]]), memory)
        # What they are compared with must not have been learned from them, as no other text is compared with itself.
        counts, n_texts = counts.clone(), n_texts.clone()
        counts[label] -= in_cluster.sum()
        n_texts[label] -= len(cluster)
        evidence = _evidence(counts, n_texts)
        evidence[:, token % MAX_TOKENS] = 0
        of_cluster = in_cluster.map(len(evidence), lambda x: x @ evidence.T)  # (n, V) @ (V, k) -> (n, k)
        is_sibling = labels == label
        is_sibling[cluster] = False
        nearest = (1.0, 0.0)
        for other in range(len(counts)):
            is_other = labels == other
            if other == label or int(is_other.sum()) < 2 or int(is_sibling.sum()) < 2:
                continue
            siblings = read[is_sibling, label] - read[is_sibling, other]
            others = read[is_other, label] - read[is_other, other]
            mean = (of_cluster[:, label] - of_cluster[:, other]).mean()
            way = siblings.mean() - others.mean()
            if way > 0:
                error = siblings.std().clamp_min(1e-9) / len(cluster) ** 0.5
                place = (float((mean - others.mean()) / way), float((siblings.mean() - mean) / error))
                nearest = min(nearest, place)
        return nearest

    def _count(self) -> tuple[Tensor, Tensor]:
        """Return in how many texts of each label each word is, (k, V), and how well each text fits each label, (n, k).

        No text counts for itself.
        """
        if self._counted is None:
            labels, k = self._features.labels, self._features.logits.shape[1]
            counts = torch.zeros(k, self._words.shape[1], dtype=torch.float32)
            for part, x in self._words:
                counts.index_add_(0, labels[part], x)
            n_texts = torch.bincount(labels, minlength=k).float()
            of_all = _evidence(counts, n_texts)
            less_one = _evidence((counts - 1).clamp_min(0), n_texts - 1)
            read = torch.empty(len(labels), k, dtype=torch.float32)
            for part, x in self._words:
                own = labels[part, None]
                read[part] = (x @ of_all.T).scatter(1, own, (x @ less_one.T).gather(1, own))
            self._counted = counts, read
        return self._counted


def _evidence(counts: Tensor, n_texts: Tensor) -> Tensor:
    """Return the logarithm of how likely each word is in a text of each label, (k, V): naive Bayes."""
    return ((counts + SMOOTHING) / (n_texts.clamp_min(0)[:, None] + 2 * SMOOTHING)).log()
