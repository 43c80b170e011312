"""Likeness to the event: coordinates that weigh what the model relied on when it erred.

At each layer a sample's activations are standardised over the samples of its set and weighted by the event's saliency
there. The cosine to the event in these coordinates ranks poison first where plain distance sees only content; which
layer carries the footprint differs by attack, so all of them take part (decision 0002).
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from poisontrace.embedding import Features


@dataclass(frozen=True)
class Conditioned:
    """A set of samples seen through one event.

    Attributes:
        x: (n, d) coordinates, the layers side by side.
        by_layer: one (n,) a layer, the cosine to the event there, in [-1, 1].
    """

    x: Tensor
    by_layer: tuple[Tensor, ...]

    @property
    def likeness(self) -> Tensor:
        """Mean over the layers of the cosine to the event, (n,), in [-1, 1]."""
        return torch.stack(self.by_layer).mean(0)


def condition(features: Features, event: int, indices: NDArray[np.int64]) -> Conditioned:
    """Return the coordinates of some training samples as one event weighs them.

    Args:
        features: what :func:`poisontrace.embedding.collect` gave.
        event: row of the event.
        indices: (n,) training samples, at least two.
    """
    rows = torch.from_numpy(indices)
    coordinates, cosines = [], []
    for activation, of_event, saliency in zip(
        features.activations, features.event_activations, features.saliency, strict=True
    ):
        own = activation[rows]
        mean, std = own.mean(0), own.std(0)
        is_constant = std <= 1e-6 * own.abs().amax(0).clamp_min(1e-12)
        weight = saliency[event].masked_fill(is_constant, 0)
        # Weights have mean 1 in each layer, so that no layer drowns the others by its width or its scale.
        weight = (weight / weight.mean().clamp_min(1e-30)).sqrt() / std.masked_fill(is_constant, 1)
        seen, seen_event = (own - mean) * weight, (of_event[event] - mean) * weight
        coordinates.append(seen)
        cosines.append(functional.cosine_similarity(seen, seen_event[None]))
    return Conditioned(torch.cat(coordinates, 1), tuple(cosines))
