"""What samples of a label bring along of other labels: samples that were relabelled still hold what tells those apart.

Whatever a trigger does to an image, what it showed before is still in it, in the middle of the network at least. So
samples that come from many labels are spread, along the directions that tell other labels apart, about as widely as
those labels are; a natural kind of a label is no wider there than any label, or in one direction only. That takes no
event, and no part of what the samples have in common counts. Samples that kept their label, or come from one or two,
are not spread so: it says nothing of those (decisions 0027 and 0028).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor

from poisontrace._blocks import Blocks
from poisontrace._record import Indices, evenly
from poisontrace.embedding import Features
from poisontrace.scoring import layer_at, standardise
from poisontrace.spaces import N_FOLDS

# Other labels that say what tells labels apart, the largest first, samples of each, and how many of both it takes.
MAX_LABELS, MAX_SAMPLES, MIN_LABELS, MIN_SAMPLES = 40, 100, 3, 20
TELLING = 1.6  # times the variance within labels that samples of all of them have, where a layer tells them apart
DIVERSE = 0.3  # of the variance of all other labels: natural kinds come to 0.2
SOME_SIGN = 0.5  # times that: below it nothing speaks for having been relabelled
COPIES = 8  # of the samples at one layer that are made on the way
N_OF_LABEL, N_ASKED = 10, 400  # samples that stand for a label at least, and for a cluster at most
# Shares of samples whose label a layer tells: of all, to be asked where others are from; and of a label, at least.
TOLD, MOSTLY = 0.5, 2 / 3
RIDGE = 0.1  # of the mean variance, added to every direction
TINY = 1e-12
ROUNDS = 10  # that look for the bulk of some samples


@dataclass(frozen=True)
class _View:
    """Samples of a label along what tells other labels apart at one layer.

    Attributes:
        x: (n, p).
        within: variance of a label, of samples that had no part in choosing the directions, see :func:`_variance`.
        total: that of all other labels together.
    """

    x: Tensor
    within: float
    total: float


class Origins:
    """The samples of one label along what tells other labels apart, at each layer that does so.

    Attributes:
        rankings: (n,) a layer, how far each sample lies from the bulk of its label.
    """

    def __init__(self, features: Features, own: Indices) -> None:
        """Take training samples of one label, (n,)."""
        labels = features.labels.numpy()
        sizes = np.bincount(labels, minlength=features.logits.shape[1])
        sizes[labels[own]] = 0
        largest = np.argsort(-sizes, kind="stable")[:MAX_LABELS]
        others = [np.flatnonzero(labels == other) for other in largest if sizes[other] >= MIN_SAMPLES]
        self._views = []
        if len(others) >= MIN_LABELS:
            # Not the input itself, where a label may be broader than others by nature, unless there is nothing else.
            layers = features.activations[1:] or features.activations
            views = (_view(activation, own, others, features.memory) for activation in layers)
            self._views = [view for view in views if view and 0 < view.total >= TELLING * view.within]
        self.rankings = [_from_bulk(view.x) for view in self._views]

    def nearness(self, is_chosen: Tensor) -> list[Tensor]:
        """Return how near each sample lies to the mean of some, (n,) a layer, 0 at most.

        Args:
            is_chosen: (n,) bool, one sample at least; best such that nobody relabelled.
        """
        return [-(view.x - view.x[is_chosen].mean(0)).square().sum(1) for view in self._views]

    def spread(self, is_chosen: Tensor, share: float = 1.0) -> float:
        """Return how widely some samples are spread, beside all other labels together, in units of ``DIVERSE``.

        A label may be broad by nature, but then all of it is; and a part of it that holds some of the relabelled
        samples is spread no more than the part that holds the others. So it says something beside the rest only.

        Args:
            is_chosen: (n,) bool.
            share: of them that counts, those that lie closest together; a few far away make any kind wide.

        Returns:
            that of the layer where it is largest, 0 for no more than a label is; 0 for fewer than ``N_FOLDS`` samples
            as well, or if no layer tells labels apart.
        """
        if int(is_chosen.sum()) < N_FOLDS:
            return 0.0
        chosen = ((view, _bulk(view.x[is_chosen], share)) for view in self._views)
        return max([0.0, *((_variance(x) - view.within) / view.total for view, x in chosen)]) / DIVERSE


def taken_from(features: Features, cluster: Indices, rest: Indices, outside: Indices) -> tuple[int, float]:
    """Return which one other label some samples of a label were taken from, if they were, and how clearly.

    In the middle of the network they still lie where that label does, though the last layers have learned otherwise. A
    natural kind of a label may be like another one, but lies with its own somewhere between (decision 0034).

    Args:
        features: of the training set.
        cluster: training samples of a label, that are asked about.
        rest: the others of it.
        outside: of all other labels.

    Returns:
        the label, and how much more often they lie nearest to it than to the rest of their own, beside how often its
        own samples do, where that is largest, of layers that tell labels apart; -1 and 0 if there is no such layer, or
        too few samples.
    """
    labels = features.labels.numpy()
    others = (outside[labels[outside] == label] for label in np.unique(labels[outside]))
    known = [own for own in (rest, *others) if len(own) >= N_OF_LABEL]
    if len(rest) < N_OF_LABEL or len(known) <= MIN_LABELS:
        return -1, 0.0
    found = (-1, 0.0)
    for activation in features.activations[1:] or features.activations:
        n_samples = _n_samples(activation, len(known), features.memory)
        if n_samples < N_OF_LABEL:
            continue
        samples = [activation[torch.from_numpy(evenly(own, n_samples))] for own in known]
        along = _telling(samples)
        means = torch.stack([along(x[::2]).mean(0) for x in samples])

        def shares(x: Tensor, along: _Along = along, means: Tensor = means) -> Tensor:
            return torch.bincount(torch.cdist(along(x), means).argmin(1), minlength=len(means)).float() / len(x)

        of_own = torch.stack([shares(x[1::2])[k] for k, x in enumerate(samples)])
        if of_own.mean() >= TOLD:
            at_home, *elsewhere = shares(activation[torch.from_numpy(evenly(cluster, N_ASKED))])
            of_cluster = (torch.stack(elsewhere) - at_home) / of_own[1:].clamp_min(MOSTLY)
            best = int(of_cluster.argmax())
            found = max(found, (int(labels[known[best + 1][0]]), float(of_cluster[best])), key=itemgetter(1))
    return found


def _view(activation: Tensor, own: Indices, others: Sequence[Indices], memory: int) -> _View | None:
    """Return the label's samples along the discriminants of other labels at one layer; None if there is none."""
    n_samples = _n_samples(activation, len(others), memory)
    if n_samples < MIN_SAMPLES:
        return None
    chosen = [activation[torch.from_numpy(evenly(other, n_samples))] for other in others]
    along = _telling(chosen)
    rest = [along(x[1::2]) for x in chosen]
    within, total = sum(map(_variance, rest)) / len(rest), _variance(torch.cat(rest))
    x = layer_at(activation, torch.from_numpy(own), memory).map(along.directions.shape[1], along)
    return _View(x, within, total)


def _n_samples(activation: Tensor, n_labels: int, memory: int) -> int:
    """Return how many samples of each label may be looked at, at one layer."""
    return min(MAX_SAMPLES, memory // (COPIES * 4 * activation.shape[1] * n_labels))


@dataclass(frozen=True)
class _Along:
    """Places rows (n, d) along directions (d, p), (n, p)."""

    mean: Tensor
    directions: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self.mean) @ self.directions


def _telling(samples: Sequence[Tensor]) -> _Along:
    """Return the directions that tell labels apart; every second sample chooses them, the others may say what they do.

    Args:
        samples: (m_i, d) of each label.
    """
    mean, std, is_constant = standardise(Blocks.of(torch.cat([x[::2] for x in samples])))
    weight = (~is_constant).float() / std
    return _Along(mean, _discriminants([(x[::2] - mean) * weight for x in samples]) * weight[:, None])


def _variance(x: Tensor) -> float:
    """Return the variance of rows (n, p) over all directions but the one along which it is largest.

    Samples differ by how strongly they are of their label, which is one direction; many labels lie apart in many.
    """
    return float(torch.linalg.eigvalsh(torch.cov(x.T).reshape(x.shape[1], -1))[:-1].sum())


def _discriminants(samples: Sequence[Tensor]) -> Tensor:
    """Return the directions (d, p) that tell sets of samples (m_i, d) apart, along which each has unit variance.

    Fisher's discriminants, p one less than there are sets, or d if that is less.
    """
    n_columns, rows = samples[0].shape[1], torch.cat(list(samples))
    basis = None
    if n_columns > len(rows):  # what they differ in lies in their span, which is smaller
        basis = torch.linalg.qr((rows - rows.mean(0)).T).Q
        samples = [x @ basis for x in samples]
    means = torch.stack([x.mean(0) for x in samples])
    within = sum((torch.cov(x.T) for x in samples), means.new_zeros(means.shape[1], means.shape[1])) / len(samples)
    share = len(within) / n_columns  # of the directions, over all of which the variance is a mean
    within.diagonal().add_(RIDGE * (share * within.diagonal().mean()).clamp_min(TINY))
    root = torch.linalg.cholesky(within)
    between = torch.linalg.solve_triangular(root, (means - means.mean(0)).T, upper=False)
    axes = torch.linalg.svd(between, full_matrices=False).U[:, : len(samples) - 1]
    directions: Tensor = torch.linalg.solve_triangular(root.T, axes, upper=True)
    return directions if basis is None else basis @ directions


def _from_bulk(x: Tensor) -> Tensor:
    """Return how far rows (n, p) lie from the mean of the half that lies closest together, squared, (n,)."""
    return (x - _bulk(x, 0.5).mean(0)).square().sum(1)


def _bulk(x: Tensor, share: float) -> Tensor:
    """Return the share of rows (n, p) that lies closest together."""
    if share == 1:
        return x
    bulk, centre = x, x.median(0).values
    for _ in range(ROUNDS):
        bulk = x[(x - centre).square().sum(1).argsort()[: max(1, int(share * len(x)))]]
        centre = bulk.mean(0)
    return bulk
