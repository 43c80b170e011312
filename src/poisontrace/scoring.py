"""Likeness to the event: coordinates that weigh what the model relied on when it erred.

At each layer a sample's activations are standardised over the samples of its set and weighted by the event's saliency
there. Two questions are asked of them. Does a sample *lean* the same way: the cosine to the event, which finds what a
trigger does inside an image network. Does it *agree*: how much of what the decision relied on is there with the very
same value, which finds the watermark in a table and the collision of features. Which layer carries the footprint
differs by attack, so all of them take part (decisions 0002 and 0006). Poison that resembles the event at no layer may
still stand out by what it is: :class:`Unconditioned` looks at all layers and the noise of images, and asks no event
(decision 0007).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from poisontrace._blocks import Blocks
from poisontrace._statistics import standardised_difference
from poisontrace.embedding import Features

AGREEMENT_WIDTH = 0.1  # of a coordinate's standard deviation: nearly the same value
UNLIKE = 6.0  # such widths: no agreement at all
# Of the rows that have nearly the event's value in either of two columns, those that do in both, for columns of one
# mark; how many columns, the most salient ones, are looked at, and the fewest rows that are a set.
ALIKE, N_COLUMNS, MIN_ROWS = 0.8, 512, 5
MARK_SHARE = 0.1  # of a cluster, that agrees with the event at a coordinate where its label does not
# Standard deviations by which one kind must exceed the other: decisions 0006 to 0008.
LEANING_GAP, AGREEMENT_GAP, NOISE_GAP = 2.0, 5.0, 3.0
TINY = 1e-8  # a length below which there is no direction


class View(ABC):
    """A set of samples in the coordinates of one question.

    Attributes:
        x: (n, d) coordinates, made in blocks.
    """

    x: Blocks

    @abstractmethod
    def gaps(self, is_first: Tensor) -> Tensor:
        """Return by how much more one cluster has of what is asked for than the other, in one or more respects, (m,).

        In units of what it takes to accuse the first cluster.

        Args:
            is_first: (n,) bool, two samples at least on each side.
        """


class Leaning(View):
    """Which samples lean the way the event does: activations standardised over the set, weighted by its saliency.

    Attributes:
        by_layer: (m, n), the cosine to the event at each layer, in [-1, 1].
        likeness: (n,), the mean over layers.
        event: (1, d), the event in these coordinates.
    """

    def __init__(self, x: Blocks, event: Tensor, widths: Sequence[int], others: Callable[[Tensor], Blocks]) -> None:
        """Take the coordinates of the layers side by side, (n, d), the event's, (d,), and the layers' widths.

        ``others`` makes the coordinates of any rows of the training set, as if they were of the set.
        """
        self.x, self._event, self.others = x, event, others
        self.event = Blocks.of(event[None])
        layer_of = torch.arange(len(widths)).repeat_interleave(torch.tensor(widths))
        self._is_in = functional.one_hot(layer_of, len(widths)).float()  # (d, m)
        # Squared lengths (n, m) and the sum of all rows, for any origin to come.
        self._squares = x.map(len(widths), lambda part: part.square() @ self._is_in)
        self._sum = x.sum()
        self.by_layer = self._cosines(torch.zeros_like(event))
        self.likeness = self.by_layer.mean(0)

    def _cosines(self, origin: Tensor) -> Tensor:
        """Return the cosine of each sample to the event at each layer, seen from an origin (d,), as (m, n)."""
        towards, m = self._event - origin, self._is_in.shape[1]
        directions = torch.cat([self._is_in * towards[:, None], self._is_in * origin[:, None]], 1)  # (d, 2 m)
        products = self.x.map(2 * m, lambda part: part @ directions)  # (n, d) @ (d, 2 m) -> (n, 2 m)
        dot = products[:, :m] - (origin * towards) @ self._is_in
        # |x - o|^2 = |x|^2 - 2 x o + |o|^2, so that no row is moved.
        lengths = (self._squares - 2 * products[:, m:] + origin.square() @ self._is_in).clamp_min(0).sqrt()
        scale = lengths.clamp_min(TINY) * (towards.square() @ self._is_in).sqrt().clamp_min(TINY)
        return (dot / scale).T.contiguous()

    def gaps(self, is_first: Tensor) -> Tensor:
        """Return the gaps, the clusters' midpoint as the origin: the mean of the set is that of the larger cluster."""
        n_first = int(is_first.sum())
        is_smaller = is_first if 2 * n_first <= len(is_first) else ~is_first
        of_smaller = torch.zeros_like(self._sum)
        for where, part in self.x:
            of_smaller += part[is_smaller[where]].sum(0)
        n_smaller = min(n_first, len(is_first) - n_first)
        origin = (of_smaller / n_smaller + (self._sum - of_smaller) / (len(is_first) - n_smaller)) / 2
        gaps = [standardised_difference(likeness, is_first) for likeness in self._cosines(origin)]
        return torch.stack(gaps) / LEANING_GAP


class Agreement(View):
    """Which samples agree with the event: coordinates where a sample has nearly the event's value.

    Attributes:
        likeness: (n,), the share of the event's saliency on such coordinates, in [0, 1].
    """

    def __init__(self, shares: Blocks) -> None:
        """Take each coordinate's part in the share, (n, d)."""
        self.x, self.likeness = shares, shares.map(1, lambda part: part.sum(1, keepdim=True))[:, 0]
        # The variance if every coordinate went its own way; a gap is measured in no less.
        self._chance = float(shares.moments()[1].sum())

    def gaps(self, is_first: Tensor) -> Tensor:
        """Return the one gap."""
        return standardised_difference(self.likeness, is_first, min_variance=self._chance)[None] / AGREEMENT_GAP


@dataclass(frozen=True)
class Conditioned:
    """A set of samples seen through one event: which lean its way, and which agree with it at one layer each."""

    leaning: Leaning
    agreements: tuple[Agreement, ...]


def standardise(activation: Blocks) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and standard deviation (d,) of rows (n, d), and what is constant; its deviation is given as 1."""
    mean, variance, largest = activation.moments()
    std = variance.sqrt()
    is_constant = std <= 1e-6 * largest.clamp_min(1e-12)
    return mean, std.masked_fill(is_constant, 1), is_constant


def layer_at(activation: Tensor, rows: Tensor, memory: int) -> Blocks:
    """Return some rows of a layer's activations."""
    return Blocks(len(rows), activation.shape[1], lambda part: activation[rows[part]], memory)


class Unconditioned(View):
    """What samples are, whatever the event: all layers and the noise, standardised over the set."""

    def __init__(self, features: Features, indices: NDArray[np.int64]) -> None:
        """Take (n,) training samples, at least two."""
        rows = torch.from_numpy(indices)
        self._noise = features.noise[rows]
        layers = []
        for activation in (*features.activations, features.noise):
            if activation.shape[1]:
                mean, std, is_constant = standardise(layer_at(activation, rows, features.memory))
                # Each layer weighs the same, however wide it is.
                weight = (~is_constant).float() / (~is_constant).sum().clamp_min(1).sqrt()
                layers.append((activation, mean, std, weight))

        def make(part: slice) -> Tensor:
            return torch.cat([(layer[rows[part]] - mean) / std * weight for layer, mean, std, weight in layers], 1)

        self.x = Blocks(len(rows), sum(len(mean) for _, mean, _, _ in layers), make, features.memory)

    def gaps(self, is_first: Tensor) -> Tensor:
        """Return the gaps in noise; 0 where there is none to be had."""
        gaps = [standardised_difference(noise, is_first) for noise in self._noise.T]
        return torch.stack(gaps or [torch.tensor(0.0, dtype=torch.float32)]) / NOISE_GAP


def condition(features: Features, event: int, indices: NDArray[np.int64]) -> Conditioned:
    """Return some training samples as one event weighs them.

    Args:
        features: what :func:`poisontrace.embedding.collect` gave.
        event: row of the event.
        indices: (n,) training samples, at least two.
    """
    rows = torch.from_numpy(indices)
    memory, n_views = features.memory, 1 + features.is_pooled.count(False)
    layers, events, agreements = [], [], []
    for activation, of_event, saliency, is_pooled in zip(
        features.activations, features.event_activations, features.saliency, features.is_pooled, strict=True
    ):
        mean, std, is_constant = standardise(layer_at(activation, rows, memory))
        share = saliency[event].masked_fill(is_constant, 0)
        # Weights have mean 1 in each layer, so that no layer drowns the others by its width or its scale.
        weight = (share / share.mean().clamp_min(1e-30)).sqrt() / std
        layers.append((activation, mean, weight))
        events.append((of_event[event] - mean) * weight)
        if not is_pooled:
            # Equal values mean something only where a coordinate is one quantity, not a mean or maximum of many.
            agreements.append(Agreement(_shares(activation, rows, of_event[event], share, std, memory, n_views)))

    widths = [len(mean) for _, mean, _ in layers]

    def coordinates(rows: Tensor) -> Blocks:
        def make(part: slice) -> Tensor:
            return torch.cat([(layer[rows[part]] - mean) * weight for layer, mean, weight in layers], 1)

        return Blocks(len(rows), sum(widths), make, memory, n_alike=n_views)

    leaning = Leaning(coordinates(rows), torch.cat(events), widths, coordinates)
    return Conditioned(leaning, tuple(agreements))


def _shares(
    activation: Tensor, rows: Tensor, event: Tensor, share: Tensor, std: Tensor, memory: int, n_views: int
) -> Blocks:
    """Return each coordinate's part in how much samples agree with the event at one layer, (n, d)."""
    root = share.sqrt()  # flatter: one coordinate alone agrees by chance
    root = root / root.sum().clamp_min(1e-30)

    def make(part: slice) -> Tensor:
        distance = (activation[rows[part]] - event) / (AGREEMENT_WIDTH * std)
        # Numbers next to nothing would take a processor several times as long as nothing.
        return root * torch.exp(-distance.square() / 2).masked_fill(distance.abs() > UNLIKE, 0)

    return Blocks(len(rows), activation.shape[1], make, memory, n_alike=n_views)


def marked(features: Features, event: int, cluster: NDArray[np.int64], siblings: NDArray[np.int64]) -> Tensor:
    """Return the columns (d,) bool of the model's input that are of the mark which a cluster shares with an event.

    Clearly more of the cluster than of its siblings has nearly the event's value there.

    Args:
        features: of a model whose first layer reads rows, not images or tokens.
        event: row of the event.
        cluster: (a,) training samples.
        siblings: (b,) the others of their label, two at least.
    """
    of_cluster, of_siblings = _near(features, event, cluster, siblings)
    return of_cluster.mean() - of_siblings.mean() > MARK_SHARE


def sharing(features: Features, event: int, own: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return the sets of rows of a label that have the same few columns in common with an event (decision 0032).

    Nearly the same rows have nearly the event's value in each column of a mark; by nature columns go their own ways,
    or much more than a mark goes with them.

    Args:
        features: of a model whose first layer reads rows, not images or tokens.
        event: row of the event.
        own: (n,) training samples of the label that the event was given, two at least.

    Returns:
        sets of rows, the one first whose columns the event rests on most; sets may have rows in common.
    """
    saliency = features.saliency[0][event]
    salient = saliency.argsort(descending=True)[: min(N_COLUMNS, int((saliency > 0).sum()))]
    near, _ = _near(features, event, own, own[:0])
    both = torch.zeros(len(salient), len(salient), dtype=torch.float32)
    for _, x in near:
        both += x[:, salient].T @ x[:, salient]
    n_near = both.diagonal()
    is_alike = both >= ALIKE * (n_near[:, None] + n_near - both)
    left = (n_near >= MIN_ROWS) & (n_near <= len(own) / 2)
    found = []
    for place in range(len(salient)):  # salient columns first
        of_mark = is_alike[place] & left
        if left[place] and int(of_mark.sum()) > 1:
            found.append(own[(_part_of(near, salient[of_mark]) >= 0.5).numpy()])
        left &= ~of_mark
    return found


def _part_of(near: Blocks, columns: Tensor) -> Tensor:
    """Return of how many of some columns, as a share, each row has nearly the event's value, (n,)."""
    return near.map(1, lambda x: x[:, columns].mean(1, keepdim=True))[:, 0]


def _near(features: Features, event: int, cluster: NDArray[np.int64], siblings: NDArray[np.int64]) -> list[Blocks]:
    """Return where a cluster, (a, d), and its siblings, (b, d), have nearly the event's value: 1, and 0 elsewhere."""
    x, of_event, memory = features.activations[0], features.event_activations[0][event], features.memory
    _, std, _ = standardise(layer_at(x, torch.from_numpy(np.concatenate([cluster, siblings])), memory))

    def near(samples: NDArray[np.int64]) -> Blocks:
        rows = torch.from_numpy(samples)

        def make(part: slice) -> Tensor:
            return ((x[rows[part]] - of_event).abs() <= AGREEMENT_WIDTH * std).float()

        return Blocks(len(rows), len(std), make, memory)

    return [near(cluster), near(siblings)]


def without_mark(
    features: Features, is_marked: Tensor, cluster: NDArray[np.int64], others: NDArray[np.int64]
) -> Blocks:
    """Return rows of the model's input, standardised, less the columns of the mark that a cluster shares with an event.

    Args:
        features: of a model whose first layer reads rows, not images or tokens.
        is_marked: (d,) bool, the columns of the mark, see :func:`marked`.
        cluster: (a,) training samples.
        others: (c,) what the cluster is to be compared with.

    Returns:
        (a + c, d), the cluster first; d may be 0.
    """
    x = features.activations[0]
    both = np.concatenate([cluster, others])
    mean, spread, is_constant = standardise(layer_at(x, torch.from_numpy(both), features.memory))
    is_kept = ~is_constant & ~is_marked
    rows = torch.from_numpy(both)

    def make(part: slice) -> Tensor:
        kept: Tensor = ((x[rows[part]] - mean) / spread)[:, is_kept]
        return kept

    return Blocks(len(rows), int(is_kept.sum()), make, features.memory)
