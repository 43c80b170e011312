"""Split one set of samples into two clusters, nothing else: two-means as in the paper, and its discriminative form.

Plain two-means follows the directions of largest variance, and poison at 1 % is not one of them: it finds two breeds of
dog. :func:`separate` learns the direction instead: starting from a few samples it asks which direction tells them from
the rest, moves every sample to the side it falls on, and repeats until nothing moves (discriminative clustering: Ding
and Li, *Adaptive dimension reduction using discriminant analysis and k-means clustering*, ICML 2007). Because each
sample is judged by a direction fitted without it, a set without structure cannot be made to look split (decision 0003).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from poisontrace.embedding import Embedding

N_FOLDS = 5
MAX_ROUNDS = 30
MAX_DIRECTIONS = 256  # principal directions kept before discriminating
RIDGE = 0.1  # of the mean variance, added to every direction


@dataclass(frozen=True)
class Split:
    """Two clusters of one set, and how far apart they are.

    Attributes:
        is_first: (n,) bool, the samples of the first cluster.
        score: (n,) position along the direction that tells the clusters apart; 0 is the second's mean, 1 the first's.
        separation: difference of the clusters' means over their pooled standard deviation, cross-fitted; at least 0.
    """

    is_first: Tensor
    score: Tensor
    separation: float


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


def principal(x: Tensor) -> Tensor:
    """Return the coordinates of rows (n, d) along their principal directions, at most ``MAX_DIRECTIONS`` of them."""
    x = x - x.mean(0)
    n, d = x.shape
    if d <= MAX_DIRECTIONS:
        return x
    if d <= n:
        values, vectors = torch.linalg.eigh(x.T @ x)
        return x @ vectors[:, -MAX_DIRECTIONS:]
    values, vectors = torch.linalg.eigh(x @ x.T)  # the smaller side: (n, n)
    kept = min(n, MAX_DIRECTIONS)
    return vectors[:, -kept:] * values[-kept:].clamp_min(0).sqrt()


def _discriminate(x: Tensor, is_first: Tensor) -> Tensor:
    """Return cross-fitted positions (n,) along the ridge discriminant of two clusters: 0 and 1 are their means.

    Each fifth of the samples is placed by the direction that the other four give.
    """
    n, d = x.shape
    fold = torch.empty(n, dtype=torch.long)
    for side in (is_first, ~is_first):  # the same share of each cluster in each fold
        fold[side] = torch.arange(int(side.sum())) % N_FOLDS
    score = torch.empty(n)
    sides = (~is_first, is_first)
    # Sums over each fold and cluster once; a direction is fitted on their totals less one fold.
    counts = torch.zeros(2, N_FOLDS)
    sums, grams = torch.zeros(2, N_FOLDS, d), torch.zeros(2, N_FOLDS, d, d)
    for side in (0, 1):
        for k in range(N_FOLDS):
            part = x[sides[side] & (fold == k)]
            counts[side, k], sums[side, k], grams[side, k] = len(part), part.sum(0), part.T @ part
    for k in range(N_FOLDS):
        count = counts.sum(1) - counts[:, k]
        mean = (sums.sum(1) - sums[:, k]) / count[:, None]  # (2, d)
        # Both clusters weigh the same however small one of them is.
        second_moment = ((grams.sum(1) - grams[:, k]) / count[:, None, None]).mean(0)
        centre = mean.mean(0)
        total = second_moment - centre.outer(centre)
        gap = mean[1] - mean[0]
        ridge = RIDGE * total.diagonal().mean().clamp_min(1e-12) * torch.eye(d)
        direction = torch.linalg.solve(total + ridge, gap)
        is_held_out = fold == k
        score[is_held_out] = (x[is_held_out] - mean[0]) @ direction / (gap @ direction).clamp_min(1e-12)
    return score


def separation(score: Tensor, is_first: Tensor) -> float:
    """Return the difference of two clusters' mean scores over their pooled standard deviation."""
    first, second = score[is_first], score[~is_first]
    if len(first) < 2 or len(second) < 2:
        return 0.0
    variance = (first.var() * len(first) + second.var() * len(second)) / len(score)
    return max(0.0, float((first.mean() - second.mean()) / variance.sqrt().clamp_min(1e-12)))


def separate(x: Tensor, start: Tensor) -> Split:
    """Split samples by the direction that tells a start cluster from the rest, repeated until nothing moves.

    Args:
        x: (n, d) coordinates, see :func:`principal`.
        start: (n,) bool, the first guess at the first cluster.

    Returns:
        the fixed point; a separation of 0 if a cluster shrank below ``N_FOLDS`` samples.
    """
    is_first, score = start, start.float()
    for _ in range(MAX_ROUNDS):
        if min(int(is_first.sum()), int((~is_first).sum())) < N_FOLDS:
            return Split(is_first, score, 0.0)
        score = _discriminate(x, is_first)
        moved = score > (score[is_first].mean() + score[~is_first].mean()) / 2
        if torch.equal(moved, is_first):
            break
        is_first = moved
    return Split(is_first, score, separation(score, is_first))
