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

import torch
from torch import Tensor

from poisontrace._statistics import standardised_difference
from poisontrace.embedding import Embedding
from poisontrace.spaces import N_FOLDS, Space

MAX_ROUNDS = 12
# Rounds after which a search gives up what lies less far apart than this: halves of one normal crowd come to 2.6.
PATIENCE, ONE_CROWD = 4, 2.0
MAX_SWEEPS = 4
NEAR_SIZES = (1.1, 1.25, 1.5)
# Standard deviations between two clusters that are two kinds of samples, and up to which it may be one kind, halved.
TWO_KINDS, ONE_KIND = 6.0, 5.0
# Beyond which neither says more of samples that were relabelled: the separation, and their diversity.
FOR_SURE, SURELY_DIVERSE = 1.5 * TWO_KINDS, 2.0
# Times that: the coordinates alone nearly say it. And the margin up to which an accusation needs more evidence.
FAR, DOUBTFUL = 2.0, 2.0
HINT = 0.3  # of the gap that it takes: enough to look closer


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
        """Return the same split with first and second exchanged, and the gap turned."""
        return replace(self, is_first=~self.is_first, score=1 - self.score, gap=-self.gap)

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
            sure = min(self.diversity, SURELY_DIVERSE) * min(self.separation, FOR_SURE)
            return 2, sure * math.sqrt(self.n_smaller)
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
        if _is_small(is_first):
            return Split(is_first, score, 0.0)
        score = space.discriminate(is_first)
        moved = score > (score[is_first].mean() + score[~is_first].mean()) / 2
        if torch.equal(moved, is_first):
            break
        leads_nowhere = rounds > patience and standardised_difference(score, is_first) < ONE_CROWD
        is_first = moved
        if leads_nowhere:
            break
    if _is_small(is_first):
        return Split(is_first, score, 0.0)
    return Split(is_first, score, max(0.0, float(standardised_difference(score, is_first))))


def _is_small(is_first: Tensor) -> bool:
    return min(int(is_first.sum()), int((~is_first).sum())) < N_FOLDS


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
    return replace(split, gap=float(by_layer.min())).flipped()


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
    """Yield the first ``size``, ``size`` * growth, ... up to half of the samples, and that half, as masks."""
    half = len(ranking) // 2
    while size < half:
        yield _top(ranking, size)
        size *= growth
    yield _top(ranking, half)


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
    log_odds = torch.zeros_like(score)
    for sign, side in ((1, is_first), (-1, ~is_first)):
        # A spread near zero would turn a sample just outside into an impossibility; 0.05 of the gap is our floor.
        std = score[side].std().clamp_min(0.05)
        # Beyond its mean a cluster has no rival, so the density does not fall off on the far side.
        off = (sign * (score[side].mean() - score)).clamp_min(0) / std
        log_odds += sign * (side.float().mean().log() - std.log() - off.square() / 2)
    return log_odds.sigmoid()
