"""Split one set of samples into two clusters, nothing else: two-means as in the paper, and its discriminative form.

Plain two-means follows the directions of largest variance, and poison at 1 % is not one of them: it finds two breeds of
dog. :func:`separate` learns the direction instead: starting from a few samples it asks which direction tells them from
the rest, moves every sample to the side it falls on, and repeats until nothing moves (discriminative clustering: Ding
and Li, *Adaptive dimension reduction using discriminant analysis and k-means clustering*, ICML 2007). Because each
sample is judged by a direction fitted without it, a set without structure cannot be made to look split (decision 0003).
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import blas, lapack
from torch import Tensor

from poisontrace._blocks import Blocks
from poisontrace._record import Indices
from poisontrace._rng import torch_generator
from poisontrace._statistics import standardised_difference
from poisontrace.embedding import Embedding

N_FOLDS = 5
MAX_ROUNDS = 12
# Rounds after which a search gives up what lies less far apart than this: halves of one normal crowd come to 2.6.
PATIENCE, ONE_CROWD = 4, 2.0
MAX_SWEEPS = 4
NEAR_SIZES = (1.1, 1.25, 1.5)
# Standard deviations between two clusters that are two kinds of samples, and up to which it may be one kind, halved.
TWO_KINDS, ONE_KIND = 6.0, 5.0
FOR_SURE = 1.5 * TWO_KINDS  # beyond which it says nothing more of samples that were relabelled
# Times that: the coordinates alone nearly say it. And the margin up to which an accusation needs more evidence.
FAR, DOUBTFUL = 2.0, 2.0
HINT = 0.3  # of the gap that it takes: enough to look closer
MAX_DIRECTIONS = 128  # principal directions kept before discriminating
RIDGE = 0.1  # of the mean variance, added to every direction
TINY = 1e-12
# Where memory is short (decision 0013): directions that are kept at least, and copies that are made of the rows in
# their new coordinates and of their second moments.
MIN_DIRECTIONS, SPACE_COPIES, GRAM_COPIES = 8, 6, 8
SPARE, SWEEPS_OF_BASIS = 32, 6  # of the basis that stands for second moments too large to hold


@dataclass(frozen=True)
class Split:
    """Two clusters of one set, and how far apart they are.

    Attributes:
        is_first: (n,) bool, the samples of the first cluster.
        score: (n,) position along the direction that tells the clusters apart; 0 is the second's mean, 1 the first's.
        separation: difference of the clusters' means over their pooled standard deviation, cross-fitted; at least 0.
        gap: the same difference in likeness to the event, at the layer where it is largest, in units of what it takes
            for the event to be of the first kind.
        standing: how far the clusters stand out against natural kinds, as a ratio; 1 if not asked.
        diversity: how much more diverse the first cluster is than the second, by what tells other labels apart, in
            units of what it takes for it to be of many of them (see :mod:`poisontrace.origins`); 0 if not asked.
    """

    is_first: Tensor
    score: Tensor
    separation: float
    gap: float = 1.0
    standing: float = 1.0
    diversity: float = 0.0

    @property
    def n_smaller(self) -> int:
        """Size of the smaller cluster."""
        n_first = int(self.is_first.sum())
        return min(n_first, len(self.is_first) - n_first)

    def flipped(self) -> "Split":
        """Return the same split with first and second exchanged."""
        return replace(self, is_first=~self.is_first, score=1 - self.score)

    @property
    def apartness(self) -> float:
        """The separation, less what few samples come to by chance: a few always look further apart than many."""
        return self.separation / (1 + 0.5 / math.sqrt(max(1, self.n_smaller)))

    @property
    def evidence(self) -> float:
        """How surely the event is of the first kind: at least 1 is enough.

        Labels hold natural kinds as well, two ways of writing a digit or two families of programs; an event has no part
        in most of them. Two kinds that stand out need less of a gap, and samples that were relabelled need none: those
        are no natural kind, and whether the event is owed to them is for the unlearning to say.
        """
        return max(self.gap * self.standing, self.diversity)

    def margin(self, threshold: float) -> float:
        """Return how well two conditions are met, the less of them counts: at least 1 is enough.

        The clusters lie ``threshold`` apart, and the event is of the first kind. A gap beyond what it takes makes up
        for less distance, its cube root: five samples never lie far apart for sure. So does diversity.
        """
        beyond = max(1.0, min(self.gap, self.evidence), self.diversity)
        return min(self.evidence, self.apartness * math.cbrt(beyond) / threshold)

    def is_at_least(self, threshold: float) -> bool:
        """Whether the clusters lie ``threshold`` apart, and the event is of the first kind."""
        return self.margin(threshold) >= 1

    def is_far(self, threshold: float) -> bool:
        """Whether the clusters lie ``FAR`` times ``threshold`` apart, whatever the event is of."""
        return self.apartness >= FAR * threshold

    def is_beyond_doubt(self, threshold: float) -> bool:
        """Whether the clusters lie very far apart, and the event is of the first kind without a doubt.

        Then no more than a few samples in a hundred of the second can be of the first.
        """
        return self.is_far(threshold) and self.margin(threshold) >= DOUBTFUL

    @property
    def prominence(self) -> float:
        """Separation times the root of the smaller size: how sure it is that there are two clusters."""
        return self.separation * math.sqrt(self.n_smaller)

    @property
    def is_relabelled(self) -> bool:
        """Whether the first cluster is of many other labels, and the second is not."""
        return self.diversity >= 1 and self.is_at_least(TWO_KINDS)

    @property
    def strength(self) -> tuple[int, float]:
        """What a search maximises: relabelled samples before two kinds, and those before one.

        Of two kinds it is the prominence, of one the apartness. Of relabelled samples it is prominence times diversity,
        the former as far as it takes to tell them for sure: a part of them may lie farther apart than all. The gap is
        no part of it beyond a hint: it alone would prefer a handful of extreme members to the whole cluster.
        """
        if self.is_relabelled:
            return 2, self.diversity * math.sqrt(self.n_smaller) * min(self.separation, FOR_SURE)
        if self.gap >= HINT and self.apartness >= TWO_KINDS:
            return 1, self.prominence
        return 0, self.apartness


def two_means(embedding: Embedding, *, max_rounds: int = 100) -> Tensor:
    """Split the rows of an embedding into two by k-means (Lloyd), without ever forming a row.

    Paper: section 4.2, with full instead of mini-batch updates and a fixed start instead of a random one: the row
    farthest from the mean, then the row farthest from that one.

    Args:
        embedding: n rows.
        max_rounds: upper limit; Lloyd stops by itself when no row changes sides.

    Returns:
        (n,) bool, which rows are in the first cluster; all False if the rows are all alike.
    """
    # Rows have length 1, so the nearest centroid c is the one with the largest <row, c> - |c|^2 / 2.
    first = int(embedding.similarity(embedding.mean()).argmin())
    second = int(embedding.similarity(embedding[torch.tensor([first])].mean()).argmin())
    centroids = [embedding[torch.tensor([row])].mean() for row in (first, second)]  # two of (k, d)
    is_first = torch.zeros(len(embedding), dtype=torch.bool)
    for _ in range(max_rounds):
        near, far = (embedding.similarity(c) - c.square().sum() / 2 for c in centroids)
        moved = near > far
        if torch.equal(moved, is_first) or moved.all() or not moved.any():
            return moved if moved.any() and not moved.all() else is_first
        is_first = moved
        centroids = [embedding[is_first].mean(), embedding[~is_first].mean()]
    return is_first


class _Sums(NamedTuple):
    """What means and second moments of rows are made of: their number, sums (d,) and products (d, d), not divided."""

    n: int
    rows: NDArray[Any]
    products: NDArray[Any]

    @classmethod
    def of(cls, x: NDArray[Any]) -> "_Sums":
        """Add up rows (n, d)."""
        x = np.ascontiguousarray(x)
        return cls(len(x), x.sum(0), x.T @ x)  # NumPy sees that the product is symmetric, and works out half of it

    def plus(self, other: "_Sums") -> "_Sums":
        """Return the sums of both."""
        return _Sums(self.n + other.n, self.rows + other.rows, self.products + other.products)

    def without(self, part: "_Sums") -> "_Sums":
        """Return the sums of the other rows."""
        return _Sums(self.n - part.n, self.rows - part.rows, self.products - part.products)


class Space:
    """Samples in the coordinates of a search, with the sums that all of its discriminants share.

    Attributes:
        x: (n, d).
    """

    def __init__(self, x: Tensor, origin: Tensor | None = None, basis: Tensor | None = None) -> None:
        """Take coordinates (n, d), and what made them of rows (n, w): what was taken off, (w,), and directions (w, d).

        Without those no other row can be placed among them.
        """
        self.x, self._origin, self._basis = x, origin, basis
        self._rows = np.ascontiguousarray(x.numpy(), np.float32)  # which discriminants add up in place
        self._folds = [np.ascontiguousarray(self._rows[k::N_FOLDS]) for k in range(N_FOLDS)]
        whole = _Sums.of(self._rows)
        self._but_fold = [whole.without(_Sums.of(fold)) for fold in self._folds]

    def discriminate(self, is_first: Tensor) -> Tensor:
        """Return cross-fitted positions (n,) along the ridge discriminant of two clusters: 0 and 1 are their means.

        Each fifth of the samples is placed by the direction that the other four give.

        Args:
            is_first: (n,) bool, ``N_FOLDS`` samples at least on each side.
        """
        directions, origins, smaller = self._directions(is_first)
        position = np.empty(len(self._rows), self._rows.dtype)
        for k, (direction, origin) in enumerate(zip(directions, origins, strict=True)):
            position[k::N_FOLDS] = self._folds[k] @ direction - origin
        x = self._rows[smaller]
        for k, (direction, origin) in enumerate(zip(directions, origins, strict=True)):
            position[smaller[k::N_FOLDS]] = x[k::N_FOLDS] @ direction - origin
        return torch.from_numpy(position)

    def place(self, others: Blocks, is_first: Tensor) -> Tensor:
        """Return positions (m,) of other rows (m, w) along the discriminant of two clusters, the mean over its folds.

        Args:
            others: rows of the form of those that the coordinates were made of.
            is_first: (n,) bool, ``N_FOLDS`` samples at least on each side.
        """
        assert self._origin is not None and self._basis is not None
        directions, origins, _ = self._directions(is_first)
        direction = self._basis @ torch.from_numpy(directions.mean(0))
        offset = self._origin @ direction + float(origins.mean())
        return others.map(1, lambda part: (part @ direction - offset)[:, None])[:, 0]

    def against(self, others: Blocks) -> "Space":
        """Return the samples along the directions in which they vary beside other rows, the most so last.

        What both hold, such as natural classes, varies in both, and what was added to some of the samples in these
        only. Contrastive principal components (Abid et al., *Exploring patterns enriched in a dataset with contrastive
        principal component analysis*, Nature Communications 2018), by the ratio of the variances.

        Args:
            others: rows of the form of those that the coordinates were made of, two at least.
        """
        assert self._origin is not None and self._basis is not None
        origin, basis = self._origin, self._basis
        usual = torch.cov(others.map(basis.shape[1], lambda part: (part - origin) @ basis).T)
        usual.diagonal().add_(RIDGE * usual.diagonal().mean().clamp_min(TINY))
        root = torch.linalg.cholesky(usual)
        within = torch.linalg.solve_triangular(root, torch.cov(self.x.T), upper=False)
        _, axes = _eigh(torch.linalg.solve_triangular(root, within.T, upper=False))
        return Space(self.x @ torch.linalg.solve_triangular(root.T, axes, upper=True))

    def _directions(self, is_first: Tensor) -> tuple[NDArray[Any], NDArray[Any], Indices]:
        """Return the discriminant that each fold's complement gives, (folds, d), its origin, and the smaller cluster.

        Of the smaller cluster each fold holds the same share: its rows are dealt in turn. The larger one keeps the
        folds of all samples, so that its sums are theirs less those of the smaller one: few terms where that is small.
        """
        mask = is_first.numpy()
        is_smaller = mask if 2 * np.count_nonzero(mask) <= len(mask) else ~mask
        rows = is_smaller.nonzero()[0]
        x = self._rows[rows]
        dealt = [_Sums.of(x[k::N_FOLDS]) for k in range(N_FOLDS)]
        whole = reduce(_Sums.plus, dealt)
        directions, origins = [], []
        for k, but_fold in enumerate(self._but_fold):
            usual = _Sums.of(x[rows % N_FOLDS == k])
            n_smaller, n_larger = whole.n - dealt[k].n, but_fold.n - whole.n + usual.n
            mean_smaller = (whole.rows - dealt[k].rows) / n_smaller
            mean_larger = (but_fold.rows - whole.rows + usual.rows) / n_larger
            # Both clusters weigh the same however small one of them is. Added up in place: most of what a small search
            # takes is the making of matrices, not what is done with them.
            of_smaller, of_larger = 1 / (2 * n_smaller), 1 / (2 * n_larger)
            within = but_fold.products * np.float32(of_larger)
            flat = within.reshape(-1)
            blas.saxpy(whole.products.reshape(-1), flat, a=of_smaller - of_larger)
            blas.saxpy(dealt[k].products.reshape(-1), flat, a=-of_smaller)
            blas.saxpy(usual.products.reshape(-1), flat, a=of_larger)
            centre = (mean_smaller + mean_larger) / 2
            blas.sger(-1, centre, centre, a=within.T, overwrite_a=1)  # symmetric, and Fortran's order is the other one
            diagonal = np.einsum("ii->i", within)  # a view
            diagonal += RIDGE * max(float(diagonal.mean()), TINY)
            start, end = (mean_larger, mean_smaller) if is_smaller is mask else (mean_smaller, mean_larger)
            direction = _solve(within, end - start)
            directions.append(direction / max(float((end - start) @ direction), TINY))
            origins.append(start @ directions[-1])
        return np.stack(directions), np.stack(origins), rows

    def plane(self, is_first: Tensor) -> Tensor:
        """Return samples in two dimensions, (n, 2), to be looked at.

        The first is :meth:`discriminate`; the second is the direction of largest variance that is left once the line
        between the clusters' means is taken out, in its standard deviations.

        Args:
            is_first: (n,) bool, ``N_FOLDS`` samples at least on each side, else the first is the membership.
        """
        is_known = min(int(is_first.sum()), int((~is_first).sum())) >= N_FOLDS
        position = self.discriminate(is_first) if is_known else is_first.float()
        x = self.x - self.x.mean(0)
        between = x[is_first].mean(0) - x[~is_first].mean(0) if is_first.any() and not is_first.all() else 0 * x[0]
        x = x - (x @ between)[:, None] * between / between.square().sum().clamp_min(TINY)
        direction = _eigh(x.T @ x)[1][:, -1]
        direction = direction * direction[direction.abs().argmax()].sign()  # of the two, always the same
        across = x @ direction
        return torch.stack([position, across / across.std().clamp_min(TINY)], 1)


def _solve(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Return the solution (d,) of a symmetric system (d, d), positive definite but for rounding."""
    _, x, info = lapack.sposv(a.T, b, lower=True)
    solution: NDArray[Any] = x if info == 0 else np.linalg.lstsq(a, b)[0]
    return solution


def principal(x: Blocks) -> Space:
    """Return rows (n, d) in their coordinates along their principal directions, at most ``MAX_DIRECTIONS`` of them.

    Fewer where not even those of so many rows fit into the memory.
    """
    n, d = x.shape
    limit = min(MAX_DIRECTIONS, max(MIN_DIRECTIONS, x.memory // (SPACE_COPIES * 4 * max(1, n))))
    mean = x.mean()
    if d <= limit:
        return Space(x.map(d, lambda part: part - mean), mean, torch.eye(d))
    if d > n and x.fits:  # the smaller side: (n, n)
        off = x.dense() - mean
        values, vectors = _eigh(off @ off.T)
        kept = min(n, limit)
        vectors, lengths = vectors[:, -kept:], values[-kept:].clamp_min(0).sqrt()
        # Directions that no sample leaves the mean in are none.
        inverse = torch.where(lengths > 1e-3 * lengths[-1:], 1 / lengths, 0)
        return Space(vectors * lengths, mean, off.T @ (vectors * inverse))
    if GRAM_COPIES * 4 * d * d <= x.memory:
        gram = np.zeros((d, d), np.float32)
        for _, part in x:
            apart = (part - mean).numpy()
            gram += apart.T @ apart  # as in _Sums
        _, vectors = _eigh(torch.from_numpy(gram))
    else:
        vectors = _leading(x, mean, limit)
    vectors = vectors[:, -limit:]
    return Space(x.map(vectors.shape[1], lambda part: (part - mean) @ vectors), mean, vectors)


def _leading(x: Blocks, mean: Tensor, k: int) -> Tensor:
    """Return about the k leading principal directions (d, k), ascending, of rows too wide for their second moments.

    Subspace iteration, a few steps of it: Halko, Martinsson and Tropp, *Finding structure with randomness*, SIAM Review
    2011. Leading directions are exact to single precision, the last ones are a mixture of those around them.
    """
    d = x.shape[1]
    basis = torch.randn(d, min(d, k + SPARE), generator=torch_generator(0, "principal"))
    for _ in range(SWEEPS_OF_BASIS):
        basis, _ = torch.linalg.qr(_second_moment(x, mean, basis))
    _, rotation = _eigh(basis.T @ _second_moment(x, mean, basis))
    return basis @ rotation[:, -k:]


def _second_moment(x: Blocks, mean: Tensor, basis: Tensor) -> Tensor:
    """Return the product of the rows' second moments with a basis (d, k)."""
    total = torch.zeros_like(basis)
    for _, part in x:
        off = part - mean
        total.addmm_(off.T, off @ basis)
    return total


def _eigh(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues, ascending, and eigenvectors of a symmetric matrix (d, d)."""
    try:
        values, vectors = torch.linalg.eigh(gram)
    except RuntimeError:  # LinAlgError; many rows alike: single precision does not always converge
        values, vectors = (part.to(gram.dtype) for part in torch.linalg.eigh(gram.double()))
    return values, vectors


def separate(space: Space, start: Tensor, *, max_rounds: int = MAX_ROUNDS, patience: int = MAX_ROUNDS) -> Split:
    """Split samples by the direction that tells a start cluster from the rest, repeated until nothing moves.

    Args:
        space: n samples, see :func:`principal`.
        start: (n,) bool, the first guess at the first cluster.
        max_rounds: upper limit.
        patience: rounds after which it is left as soon as the clusters lie less far apart than halves of one crowd.

    Returns:
        the fixed point, or where it was left; a separation of 0 if a cluster shrank below ``N_FOLDS`` samples.
    """
    is_first, score = start, start.float()
    for rounds in range(1, max_rounds + 1):
        if min(int(is_first.sum()), int((~is_first).sum())) < N_FOLDS:
            return Split(is_first, score, 0.0)
        score = space.discriminate(is_first)
        moved = score > (score[is_first].mean() + score[~is_first].mean()) / 2
        if torch.equal(moved, is_first):
            break
        leads_nowhere = rounds > patience and standardised_difference(score, is_first) < ONE_CROWD
        is_first = moved
        if leads_nowhere:
            break
    return Split(is_first, score, max(0.0, float(standardised_difference(score, is_first))))


def with_gap(split: Split, gaps: Callable[[Tensor], Tensor]) -> Split:
    """Return the split with its gap in likeness, the side that is more like the event as the first cluster.

    Args:
        split: of n samples.
        gaps: gives those of a cluster (n,) at each layer, see :meth:`poisontrace.scoring.View.gaps`.
    """
    if split.separation < ONE_KIND:
        return split  # the gap of one kind is nothing to ask for, and takes time
    by_layer = gaps(split.is_first)
    if by_layer.max() >= -by_layer.min():
        return replace(split, gap=float(by_layer.max()))
    return replace(split.flipped(), gap=float(-by_layer.min()))


def against_nature(space: Space, split: Split, k: int) -> Split:
    """Return the split with how far it stands out against the natural kinds within each of its clusters.

    That is the ratio of its prominence to that of the most prominent of those.

    Args:
        space: n samples.
        split: of them.
        k: clusters of the k-means that suggests the natural kinds.
    """
    if split.separation < ONE_KIND:
        return split
    sides = [Space(space.x[side]) for side in (split.is_first, ~split.is_first)]
    natural = max((separate(side, guess).prominence for side in sides for guess in k_means(side.x, k)), default=0.0)
    return replace(split, standing=split.prominence / max(natural, 1e-9))


def search(
    space: Space,
    rankings: Sequence[Tensor],
    starts: Iterable[Tensor] = (),
    *,
    judge: Callable[[Split], Split] = lambda split: split,
    accepts: Callable[[Split], bool] = lambda split: False,
    settles: Callable[[Split], bool] = lambda split: False,
    growth: int = 2,
    smallest: int = N_FOLDS,
    promising: float = 0.0,
    max_rounds: int = MAX_ROUNDS,
) -> Split:
    """Return the best split found from the tops of some rankings, then from the tops of the ranking it gives itself.

    A start that is too small or too mixed may end in a part of the true cluster; the direction that part gives ranks
    the rest of it first, so a second sweep over all sizes finds the whole.

    Args:
        space: n samples, at least ``2 * N_FOLDS``.
        rankings: (n,) each, largest first.
        starts: (n,) bool each, further first guesses; made only if they are asked for.
        judge: gives each split its gap, see :func:`with_gap`.
        accepts: says which splits come before all others, however much these stand out.
        settles: says of the best split that the rankings' tops lead to that none better need be looked for.
        growth: ratio of neighbouring sizes of the tops.
        smallest: size of the tops, ``N_FOLDS`` at least.
        promising: standard deviations that the best start must lie apart, or no second sweep follows.
        max_rounds: that each start is given, see :func:`separate`.
    """

    def worth(split: Split) -> tuple[bool, tuple[int, float]]:
        return accepts(split), split.strength

    judged: dict[tuple[bytes, float], Split] = {}

    def tried(start: Tensor) -> Split:
        split = separate(space, start, max_rounds=max_rounds, patience=PATIENCE)
        key = split.is_first.numpy().tobytes(), split.separation  # many starts end in the same clusters
        if key not in judged:
            judged[key] = judge(split)
        return judged[key]

    found = [tried(top) for ranking in rankings for top in _tops(ranking, growth, smallest)]
    if found and settles(best := max(found, key=worth)):
        return best
    best = max([*found, *map(tried, starts)], key=worth)
    for _ in range(MAX_SWEEPS if best.separation >= promising else 0):
        # Beside the coarse sizes, some just above the present one: most of a cluster ranks the rest right behind it.
        near = [round(best.n_smaller * factor) for factor in NEAR_SIZES]
        ranking = best.score if int(best.is_first.sum()) == best.n_smaller else -best.score
        tops = (*_tops(ranking, 2, smallest), *(_top(ranking, size) for size in near if size < len(ranking)))
        better = max(map(tried, tops), key=worth)
        if worth(better) <= worth(best):
            break
        best = better
    return best


def _tops(ranking: Tensor, growth: int, size: int) -> Iterator[Tensor]:
    """Yield the first ``size``, ``size`` * growth, ... up to half of the samples as masks."""
    while size <= len(ranking) // 2:
        yield _top(ranking, size)
        size *= growth


def _top(ranking: Tensor, size: int) -> Tensor:
    top = torch.zeros(len(ranking), dtype=torch.bool)
    top[ranking.argsort(descending=True)[:size]] = True
    return top


def k_means(x: Tensor, k: int) -> list[Tensor]:
    """Return the clusters of scikit-learn's k-means as masks (n,), at most k: starts that know nothing of the event."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    k = min(k, len(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer than k distinct rows: some masks stay empty
        assignment = torch.from_numpy(KMeans(k, n_init=1, random_state=0).fit_predict(x.numpy()))
    return [assignment == cluster for cluster in range(k)]


def posterior(space: Space, is_first: Tensor) -> Tensor:
    """Return each sample's probability of belonging to the first of two clusters, (n,) in [0, 1].

    Both clusters are taken as normal along their cross-fitted discriminant, with their own spread and size.

    Args:
        space: n samples.
        is_first: (n,) bool, both clusters with at least ``N_FOLDS`` samples, else the answer is the membership.
    """
    if min(int(is_first.sum()), int((~is_first).sum())) < N_FOLDS:
        return is_first.float()
    score = space.discriminate(is_first)
    log_odds = torch.zeros(len(score))
    for sign, side in ((1, is_first), (-1, ~is_first)):
        # A spread near zero would turn a sample just outside into an impossibility; 0.05 of the gap is our floor.
        std = score[side].std().clamp_min(0.05)
        # Beyond its mean a cluster has no rival, so the density does not fall off on the far side.
        off = (sign * (score[side].mean() - score)).clamp_min(0) / std
        log_odds += sign * (side.float().mean().log() - std.log() - off.square() / 2)
    return log_odds.sigmoid()
