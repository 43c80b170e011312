"""The coordinates of a set of samples in which it is split: principal directions, and the discriminants of clusters.

A discriminant is cross-fitted: each sample is placed by a direction fitted without it (decision 0003).
"""

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

N_FOLDS = 5
MAX_DIRECTIONS = 128  # principal directions kept before discriminating
RIDGE = 0.1  # of the mean variance, added to every direction
TINY = 1e-12
# Where memory is short (decision 0013): directions that are kept at least, and copies that are made of the rows in
# their new coordinates and of their second moments.
MIN_DIRECTIONS, SPACE_COPIES, GRAM_COPIES = 8, 6, 8
MAX_KNOWN = 1 << 24  # bytes of positions that are kept
SPARE, SWEEPS_OF_BASIS = 32, 6  # of the basis that stands for second moments too large to hold


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
        self._known: dict[bytes, Tensor] = {}  # positions by cluster: a fifth of the starts of a search run into others

    def discriminate(self, is_first: Tensor) -> Tensor:
        """Return cross-fitted positions (n,) along the ridge discriminant of two clusters: 0 and 1 are their means.

        Each fifth of the samples is placed by the direction that the other four give.

        Args:
            is_first: (n,) bool, ``N_FOLDS`` samples at least on each side.
        """
        cluster = is_first.numpy().tobytes()
        if (known := self._known.get(cluster)) is not None:
            return known
        directions, origins, smaller = self._directions(is_first)
        position = np.empty(len(self._rows), self._rows.dtype)
        for k, (direction, origin) in enumerate(zip(directions, origins, strict=True)):
            position[k::N_FOLDS] = self._folds[k] @ direction - origin
        x = self._rows[smaller]
        for k, (direction, origin) in enumerate(zip(directions, origins, strict=True)):
            position[smaller[k::N_FOLDS]] = x[k::N_FOLDS] @ direction - origin
        found = torch.from_numpy(position)
        if len(self._known) * (len(cluster) + position.nbytes) < MAX_KNOWN:
            self._known[cluster] = found
        return found

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
    return _along(x, mean, vectors)


def leading(x: Blocks) -> Space:
    """Return rows (n, d) along about their leading principal directions, ``MAX_DIRECTIONS`` or d, in a few sweeps."""
    mean = x.mean()
    vectors = _leading(x, mean, min(MAX_DIRECTIONS, x.shape[1]))
    return _along(x, mean, vectors)


def _along(x: Blocks, mean: Tensor, directions: Tensor) -> Space:
    """Return rows (n, d) less their mean (d,) along directions (d, w)."""
    return Space(x.map(directions.shape[1], lambda part: (part - mean) @ directions), mean, directions)


def _leading(x: Blocks, mean: Tensor, k: int) -> Tensor:
    """Return about the k leading principal directions (d, k), ascending, of rows too wide for their second moments.

    Subspace iteration, a few steps of it: Halko, Martinsson and Tropp, *Finding structure with randomness*, SIAM Review
    2011. Leading directions are exact to single precision, the last ones are a mixture of those around them.
    """
    d = x.shape[1]
    basis = torch.randn(d, min(d, k + SPARE), generator=torch_generator(0, "principal"), dtype=torch.float32)
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
