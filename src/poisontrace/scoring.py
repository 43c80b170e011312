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
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from poisontrace._statistics import standardised_difference
from poisontrace.embedding import Features

AGREEMENT_WIDTH = 0.1  # of a coordinate's standard deviation: nearly the same value
MARK_SHARE = 0.1  # of a cluster, that agrees with the event at a coordinate where its label does not
# Standard deviations by which one kind must exceed the other: decisions 0006 to 0008.
LEANING_GAP, AGREEMENT_GAP, NOISE_GAP = 2.0, 5.0, 3.0


class View(ABC):
    """A set of samples in the coordinates of one question.

    Attributes:
        x: (n, d) coordinates.
    """

    x: Tensor

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
    """

    def __init__(self, layers: Sequence[Tensor], events: Sequence[Tensor]) -> None:
        """Take the coordinates at each layer, (n, d_l), and the event's, (d_l,)."""
        self.x = torch.cat([*layers], 1)
        self.by_layer = torch.stack(
            [functional.cosine_similarity(layer, event[None]) for layer, event in zip(layers, events, strict=True)]
        )
        self.likeness = self.by_layer.mean(0)
        self._layers, self._events = layers, events

    def gaps(self, is_first: Tensor) -> Tensor:
        """Return the gaps, the clusters' midpoint as the origin: the mean of the set is that of the larger cluster."""
        gaps = []
        for layer, event in zip(self._layers, self._events, strict=True):
            origin = (layer[is_first].mean(0) + layer[~is_first].mean(0)) / 2
            likeness = functional.cosine_similarity(layer - origin, (event - origin)[None])
            gaps.append(standardised_difference(likeness, is_first))
        return torch.stack(gaps) / LEANING_GAP


class Agreement(View):
    """Which samples agree with the event: coordinates where a sample has nearly the event's value.

    Attributes:
        likeness: (n,), the share of the event's saliency on such coordinates, in [0, 1].
    """

    def __init__(self, shares: Tensor) -> None:
        """Take each coordinate's part in the share, (n, d)."""
        self.x, self.likeness = shares, shares.sum(1)
        # The variance if every coordinate went its own way; a gap is measured in no less.
        self._chance = float(shares.var(0).sum())

    def gaps(self, is_first: Tensor) -> Tensor:
        """Return the one gap."""
        return standardised_difference(self.likeness, is_first, min_variance=self._chance)[None] / AGREEMENT_GAP


@dataclass(frozen=True)
class Conditioned:
    """A set of samples seen through one event: which lean its way, and which agree with it at one layer each."""

    leaning: Leaning
    agreements: tuple[Agreement, ...]


def standardise(activation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and standard deviation (d,) of rows (n, d), and what is constant; its deviation is given as 1."""
    mean, std = activation.mean(0), activation.std(0)
    is_constant = std <= 1e-6 * activation.abs().amax(0).clamp_min(1e-12)
    return mean, std.masked_fill(is_constant, 1), is_constant


class Unconditioned(View):
    """What samples are, whatever the event: all layers and the noise, standardised over the set."""

    def __init__(self, features: Features, indices: NDArray[np.int64]) -> None:
        """Take (n,) training samples, at least two."""
        rows = torch.from_numpy(indices)
        self._noise = features.noise[rows]
        layers = []
        for activation in (*(layer[rows] for layer in features.activations), self._noise):
            if activation.shape[1]:
                mean, std, is_constant = standardise(activation)
                # Each layer weighs the same, however wide it is.
                weight = (~is_constant).float() / (~is_constant).sum().clamp_min(1).sqrt()
                layers.append((activation - mean) / std * weight)
        self.x = torch.cat(layers, 1)

    def gaps(self, is_first: Tensor) -> Tensor:
        """Return the gaps in noise; 0 where there is none to be had."""
        gaps = [standardised_difference(noise, is_first) for noise in self._noise.T]
        return torch.stack(gaps or [torch.tensor(0.0)]) / NOISE_GAP


def condition(features: Features, event: int, indices: NDArray[np.int64]) -> Conditioned:
    """Return some training samples as one event weighs them.

    Args:
        features: what :func:`poisontrace.embedding.collect` gave.
        event: row of the event.
        indices: (n,) training samples, at least two.
    """
    rows = torch.from_numpy(indices)
    layers, events, agreements = [], [], []
    for activation, of_event, saliency, is_pooled in zip(
        features.activations, features.event_activations, features.saliency, features.is_pooled, strict=True
    ):
        own, seen_event = activation[rows], of_event[event]
        mean, std, is_constant = standardise(own)
        share = saliency[event].masked_fill(is_constant, 0)
        # Weights have mean 1 in each layer, so that no layer drowns the others by its width or its scale.
        weight = (share / share.mean().clamp_min(1e-30)).sqrt() / std
        layers.append((own - mean) * weight)
        events.append((seen_event - mean) * weight)
        if not is_pooled:
            # Equal values mean something only where a coordinate is one quantity, not a mean or maximum of many.
            distance = (own - seen_event) / (AGREEMENT_WIDTH * std)
            root = share.sqrt()  # flatter: one coordinate alone agrees by chance
            agreements.append(Agreement(root / root.sum().clamp_min(1e-30) * torch.exp(-distance.square() / 2)))
    return Conditioned(Leaning(layers, events), tuple(agreements))


def without_mark(
    features: Features,
    event: int,
    cluster: NDArray[np.int64],
    siblings: NDArray[np.int64],
    others: NDArray[np.int64],
) -> Tensor:
    """Return rows of the model's input, standardised, less the columns of the mark that a cluster shares with an event.

    A column is one of the mark if clearly more of the cluster than of its siblings has nearly the event's value there.

    Args:
        features: of a model whose first layer reads rows, not images or tokens.
        event: row of the event.
        cluster: (a,) training samples.
        siblings: (b,) the others of their label, two at least.
        others: (c,) what the cluster is to be compared with.

    Returns:
        (a + c, d), the cluster first; d may be 0.
    """
    x, of_event = features.activations[0], features.event_activations[0][event]
    _, std, _ = standardise(x[np.concatenate([cluster, siblings])])
    of_cluster, of_siblings = (
        ((x[rows] - of_event).abs() <= AGREEMENT_WIDTH * std).float().mean(0) for rows in (cluster, siblings)
    )
    rows = x[np.concatenate([cluster, others])]
    mean, std, is_constant = standardise(rows)
    kept: Tensor = ((rows - mean) / std)[:, ~is_constant & (of_cluster - of_siblings <= MARK_SHARE)]
    return kept
