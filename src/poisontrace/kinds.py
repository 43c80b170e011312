"""The kinds of samples that each label holds, whatever the event: what natural ones come to in this training set.

Labels hold natural kinds as well, two ways of writing a digit or two families of programs. Poison must stand out
against them: by how far it lies apart, by its noise, or, among rows, by having nothing in common but a mark (decisions
0007 to 0009).
"""

from collections.abc import Iterator
from math import inf
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from poisontrace._record import Indices
from poisontrace._statistics import standardised_difference
from poisontrace.clustering import TWO_KINDS, Split, k_means, separate, with_gap
from poisontrace.embedding import Features
from poisontrace.notes import Form, Notes
from poisontrace.scoring import Unconditioned, marked, without_mark
from poisontrace.spaces import N_FOLDS, Space, principal

# How many other labels say what natural kinds come to, the largest first, and by how much poison must exceed them.
MAX_OTHERS, STANDS_OUT = 10, 1.2
MIN_OTHERS = 3  # fewer say nothing
FEW_DIRECTIONS = (4, 6, 12)
N_GUESSES = (2, 4, 8)  # clusters of k-means, which knows nothing of the event


def guesses(space: Space) -> Iterator[Tensor]:
    """Yield the clusters (n,) of every k-means that suggests kinds: starts that know nothing of the event."""
    for k in N_GUESSES:
        yield from k_means(space.x, k)


def few_directions(space: Space) -> Iterator[Tensor]:
    """Yield kinds (n,) that show in a few leading directions, each of which weighs the same: further starts.

    With about as many directions as samples every start is nearly where it stays; among a few it finds what parts them.
    """
    for n_directions in FEW_DIRECTIONS:
        leading = space.x[:, -n_directions:]  # the last ones have the largest variance
        few = Space(leading / leading.std(0).clamp_min(1e-12))
        for guess in guesses(few):
            yield separate(few, guess).is_first


class Kinds:
    """The kinds of samples that each label holds, whatever the event; worked out once for all events on a store."""

    def __init__(
        self, features: Features, notes: Notes, *, separation: float = TWO_KINDS, min_cluster: int = 20
    ) -> None:
        """Look at nothing yet; for the thresholds see ``tracing.Config``, for what they change ``notes``' options."""
        self._features, self._notes = features, notes
        self._separation, self._min_cluster = separation, min_cluster
        self._labels = features.labels.numpy()
        self._sizes = np.bincount(self._labels, minlength=features.logits.shape[1])
        self._found: dict[int, Split] = {}
        self.are_rows = not (features.is_pooled[0] or features.noise.shape[1])  # neither images nor tokens

    def of(self, label: int) -> Split:
        """Return the most prominent of the splits of a label that k-means suggests, the noisier kind first."""
        if label not in self._found:
            own = np.flatnonzero(self._labels == label)
            self._found[label] = self._noted(label, len(own)) or self._worked_out(label, own)
        return self._found[label]

    def _worked_out(self, label: int, own: Indices) -> Split:
        view = Unconditioned(self._features, own)
        space = principal(view.x)
        splits = [separate(space, guess) for guess in guesses(space)]
        split = with_gap(max(splits, key=lambda split: split.strength), view.gaps)
        figures = np.array([split.separation, split.gap, split.standing])
        content = {"is_first": split.is_first.numpy(), "score": split.score.numpy(), "figures": figures}
        self._notes.keep("label", str(label).encode(), content)
        return split

    def _noted(self, label: int, n: int) -> Split | None:
        """Return the split that an earlier trace wrote down, if it did, of n samples."""
        forms: dict[str, Form | None] = {
            "is_first": ((n,), np.dtype(bool)),
            "score": ((n,), np.dtype(np.float32)),
            "figures": ((3,), np.dtype(np.float64)),
        }
        note = self._notes.known("label", str(label).encode(), forms)
        if note is None:
            return None
        is_first, score, figures = (note[name] for name in forms)
        return Split(torch.from_numpy(is_first), torch.from_numpy(score), *figures.tolist())

    def natural(self, label: int) -> list[Split]:
        """Return the kinds of the largest other labels: what natural ones come to in this training set."""
        return [self.of(other) for other in self._others(label, -self._sizes)[:MAX_OTHERS]]

    def nearest(self, label: int) -> list[int]:
        """Return the other labels that can be split, the most like a label in size first.

        A few samples, and a few tracks of a film, always look further apart than many.
        """
        return self._others(label, np.abs(np.log(np.maximum(self._sizes, 1) / max(1, self._sizes[label]))))

    def _others(self, label: int, order: NDArray[Any]) -> list[int]:
        splittable = self._sizes >= self._min_cluster
        return [other for other in order.argsort(kind="stable").tolist() if other != label and splittable[other]]

    def smallest_beside(self, cluster: Indices) -> int:
        """Return how many samples the smallest label holds beside that of a cluster; 0 if there is no other."""
        return int(min(self._sizes_beside(cluster), default=0))

    def is_surplus(self, cluster: Indices) -> bool:
        """Whether a label is larger than any other by more than those differ, and would not be so without the cluster.

        Who relabels makes one label grow. Sizes that differ by nature say nothing, nor do fewer than ``MIN_OTHERS``.
        """
        size, others = self._sizes[self._labels[cluster[0]]], self._sizes_beside(cluster)
        if len(others) < MIN_OTHERS:
            return False
        differ, left = others.max() - others.min(), size - len(cluster)
        usual = (size + others.sum()) / (1 + len(others))  # what each would hold if nobody had relabelled
        return bool(size - others.max() > differ and others.min() <= left <= usual + differ)

    def _sizes_beside(self, cluster: Indices) -> NDArray[np.int64]:
        sizes = np.delete(self._sizes, self._labels[cluster[0]])
        return sizes[sizes > 0]

    def hidden(self, label: int) -> Split | None:
        """Return the split of a label into noisy images and others, if no other label holds two kinds as far apart.

        Poison made from images of its own label, each pixel changed a little, need not resemble the event in any layer.
        """
        if not self._features.noise.shape[1]:
            return None
        split = self.of(label)
        if split.n_smaller < self._min_cluster or not split.is_at_least(self._separation):
            return None
        natural = max((kinds.prominence for kinds in self.natural(label)), default=0.0)
        return split if split.prominence >= STANDS_OUT * natural else None

    def standing(self, cluster: Indices, split: Split) -> float:
        """Return how far two kinds of one label lie apart, over the farthest that other labels hold.

        1 if there are hardly any other labels.
        """
        natural = [kinds.apartness for kinds in self.natural(int(self._labels[cluster[0]]))]
        if len(natural) < MIN_OTHERS:
            return 1.0
        space = principal(Unconditioned(self._features, cluster).x)
        return separate(space, split.is_first, max_rounds=1).apartness / max(natural)

    def share_on_mark(self, event: int, cluster: Indices) -> float:
        """Return how much of an event's margin rests on the mark that it shares with a cluster of rows, as a share.

        To first order, of the columns of the model's input; 0 for images.
        """
        if not self.are_rows:
            return 0.0
        siblings = self._siblings(cluster)
        saliency = self._features.saliency[0][event]
        of_mark = saliency[marked(self._features, event, cluster, siblings)].sum()
        return float(of_mark / saliency.sum().clamp_min(1e-30))

    def beyond_mark(self, event: int, cluster: Indices, but: Indices | None = None) -> float:
        """Return how far a cluster of rows lies from others, in standard deviations, but for the mark; 0 for images.

        A mark is planted in rows like any: without it, they are like the rest of their label, or of another label if
        they were relabelled. A family of programs is a kind of its own in all that it is (decision 0009). ``but`` are
        rows that it is not held against.
        """
        if not self.are_rows:
            return 0.0
        features, label, siblings = self._features, self._labels[cluster[0]], self._siblings(cluster)
        if min(len(siblings), len(cluster)) < N_FOLDS:
            return 0.0
        is_marked = marked(features, event, cluster, siblings)
        if but is not None and len(others := np.setdiff1d(siblings, but)) >= N_FOLDS:
            siblings = others
        rest = [np.flatnonzero(self._labels == other) for other in np.unique(self._labels) if other != label]
        distances = []
        for others in (siblings, *rest):
            if len(others) >= N_FOLDS:
                x = without_mark(features, is_marked, cluster, others)
                is_first = torch.arange(len(x)) < len(cluster)
                if not x.shape[1]:
                    return inf  # copies of the event: nothing is left that could show that they were picked
                distances.append(float(standardised_difference(principal(x).discriminate(is_first), is_first)))
        return min(distances, default=0.0)

    def _siblings(self, cluster: Indices) -> Indices:
        """Return the other samples of its label."""
        return np.setdiff1d(np.flatnonzero(self._labels == self._labels[cluster[0]]), cluster)
