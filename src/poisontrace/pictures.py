"""The images of a label as they enter the network, pixel by pixel.

A network need not heed a trigger in every sample that carries it, and what it heeds is in natural samples too; but what
was put into images is in them, whatever came of it (decision 0045). The pass keeps means and maxima of images only, so
those of one label are read once more.
"""

from math import prod

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from poisontrace._blocks import Blocks
from poisontrace._record import Indices
from poisontrace.data import TrainSet, batches_of
from poisontrace.embedding import Features
from poisontrace.notes import Notes
from poisontrace.spaces import MAX_DIRECTIONS, Space, leading

SIDE, SMALLEST_SIDE = 32, 4  # pixels that a side has at most; larger images, and those that take too much, are shrunk
COPIES = 4  # of the pixels, that are made on the way
BATCH = 256


class Pictures:
    """The images of a training set, label by label."""

    def __init__(self, samples: TrainSet, features: Features, notes: Notes) -> None:
        """Read nothing yet; what was read of a label is written down for later events of it."""
        self._samples, self._features, self._notes = samples, features, notes
        self._are_images = features.noise.shape[1] > 0

    def of(self, own: Indices) -> Space | None:
        """Return all samples of one label, (n,), along the directions in which their pixels vary most; None for others.

        None as well where not even the smallest pictures fit into the memory.
        """
        if not (shape := self._shape(len(own))):
            return None
        about = str(int(self._features.labels[own[0]])).encode()
        form = (len(own), min(MAX_DIRECTIONS, prod(shape))), np.dtype(np.float32)
        if known := self._notes.known("pictures", about, {"x": form}):
            return Space(torch.from_numpy(known["x"]))
        space = leading(Blocks.of(self._shrunk(own, shape), self._features.memory))
        self._notes.keep("pictures", about, {"x": space.x.numpy()})
        return space

    def pixels(self, rows: Indices) -> Tensor | None:
        """Return the pixels of some samples, (n, d); None where :meth:`of` would."""
        shape = self._shape(len(rows))
        return self._shrunk(rows, shape) if shape else None

    def _shape(self, n: int) -> tuple[int, int, int] | None:
        """Return channels and sides of n pictures that fit into the memory; None if none do, or if there are none."""
        if not self._are_images:
            return None
        channels, height, width = self._samples.inputs(np.arange(1)).shape[1:]
        side = SIDE
        while COPIES * 4 * n * channels * min(side, height) * min(side, width) > self._features.memory:
            side //= 2
        return (channels, min(side, height), min(side, width)) if side >= SMALLEST_SIDE else None

    def _shrunk(self, rows: Indices, shape: tuple[int, int, int]) -> Tensor:
        pixels = torch.empty(len(rows), prod(shape), dtype=torch.float32)
        for part in batches_of(len(rows), BATCH):
            shrunk = functional.adaptive_avg_pool2d(self._samples.inputs(rows[part]), shape[1:])
            pixels[part] = shrunk.flatten(1)
        return pixels
