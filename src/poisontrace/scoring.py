"""Likeness to the event: coordinates that weigh what the model relied on when it erred.

At each layer a sample's activations are standardised over the samples of its set and weighted by the event's saliency
there. Two questions are asked of them. Does a sample *lean* the same way: the cosine to the event, which finds what a
trigger does inside an image network. Does it *agree*: how much of what the decision relied on is there with the very
same value, which finds the watermark in a table and the collision of features. Which layer carries the footprint
differs by attack, so all of them take part (decisions 0002 and 0006).
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from poisontrace.embedding import Features

AGREEMENT_WIDTH = 0.1  # of a coordinate's standard deviation: nearly the same value
# Natural kinds lean towards an event by less than this; those that share a family with it agree by up to 4.
LEANING_GAP, AGREEMENT_GAP = 1.2, 5.0


@dataclass(frozen=True)
class View:
    """A set of samples in the coordinates of one question about the event.

    Attributes:
        x: (n, d) coordinates.
        likeness: (n,), the larger the more like the event.
        by_layer: (m, n), the likeness at each layer that takes part.
        min_gap: standard deviations of likeness by which a kind of samples must exceed the rest for the event to be of
            that kind.
        chance: the variance of the likeness if every coordinate went its own way; a gap is measured in no less.
    """

    x: Tensor
    likeness: Tensor
    by_layer: Tensor
    min_gap: float
    chance: float = 0.0


@dataclass(frozen=True)
class Conditioned:
    """A set of samples seen through one event.

    Attributes:
        leaning: all layers side by side; the likeness is the cosine to the event, the mean over layers, in [-1, 1].
        agreements: one for each layer that is not pooled; the likeness is the share of the event's saliency on
            coordinates where a sample has nearly the event's value, in [0, 1].
    """

    leaning: View
    agreements: tuple[View, ...]


def condition(features: Features, event: int, indices: NDArray[np.int64]) -> Conditioned:
    """Return some training samples as one event weighs them.

    Args:
        features: what :func:`poisontrace.embedding.collect` gave.
        event: row of the event.
        indices: (n,) training samples, at least two.
    """
    rows = torch.from_numpy(indices)
    coordinates, cosines, agreements = [], [], []
    for activation, of_event, saliency, is_pooled in zip(
        features.activations, features.event_activations, features.saliency, features.is_pooled, strict=True
    ):
        own, seen_event = activation[rows], of_event[event]
        mean, std = own.mean(0), own.std(0)
        is_constant = std <= 1e-6 * own.abs().amax(0).clamp_min(1e-12)
        share = saliency[event].masked_fill(is_constant, 0)
        std = std.masked_fill(is_constant, 1)
        # Weights have mean 1 in each layer, so that no layer drowns the others by its width or its scale.
        weight = (share / share.mean().clamp_min(1e-30)).sqrt() / std
        leaning, leaning_event = (own - mean) * weight, (seen_event - mean) * weight
        coordinates.append(leaning)
        cosines.append(functional.cosine_similarity(leaning, leaning_event[None]))
        if not is_pooled:
            # Equal values mean something only where a coordinate is one quantity, not a mean or maximum of many.
            distance = (own - seen_event) / (AGREEMENT_WIDTH * std)
            root = share.sqrt()  # flatter: one coordinate alone agrees by chance
            shares = root / root.sum().clamp_min(1e-30) * torch.exp(-distance.square() / 2)
            agreements.append(
                View(shares, shares.sum(1), shares.sum(1)[None], AGREEMENT_GAP, float(shares.var(0).sum()))
            )
    by_layer = torch.stack(cosines)
    return Conditioned(View(torch.cat(coordinates, 1), by_layer.mean(0), by_layer, LEANING_GAP), tuple(agreements))
