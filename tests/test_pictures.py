"""The images of a label, pixel by pixel: read once, shrunk to what fits, and nothing where there are no images."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tasks import no_notes, toy_images, toy_rows
from torch import Tensor, nn
from torch.nn import functional

from poisontrace.data import ArraySet
from poisontrace.embedding import Features, collect
from poisontrace.notes import Notes
from poisontrace.pictures import COPIES, SIDE, SMALLEST_SIDE, Pictures
from poisontrace.spaces import MAX_DIRECTIONS


def _collected(samples: ArraySet) -> Features:
    """Return what an untrained network makes of samples."""
    x = samples.inputs(np.arange(1))
    model = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 4))
    return collect(model, samples, [(x[0], int(model(x).argmax()))])


@pytest.fixture(scope="module")
def images() -> ArraySet:
    """Return 40 noise images of eight pixels a side."""
    return ArraySet(*toy_images())


@pytest.fixture(scope="module")
def features(images: ArraySet) -> Features:
    """Return what the pass gives."""
    return _collected(images)


def _distances(x: Tensor) -> Tensor:
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")


def test_small_images_are_as_far_apart_as_their_pixels(images: ArraySet, features: Features) -> None:
    """No direction is left out of so few."""
    own = np.flatnonzero(images.y == 1)

    space = Pictures(images, features, no_notes()).of(own)

    assert space is not None
    torch.testing.assert_close(_distances(space.x), _distances(images.inputs(own).flatten(1)), rtol=1e-3, atol=1e-3)


def test_large_images_are_shrunk() -> None:
    """To means of their pixels, of which the directions that vary most are kept."""
    own, n = np.arange(0, 600, 2), 2 * SIDE
    x = torch.randn(600, 1, n, n, generator=torch.Generator().manual_seed(0)).numpy()
    x[::4, :, :8, :8] += 2
    samples = ArraySet(x, np.arange(600) % 2)

    space = Pictures(samples, _collected(samples), no_notes()).of(own)

    assert space is not None
    assert space.x.shape == (300, MAX_DIRECTIONS)
    shrunk = functional.avg_pool2d(samples.inputs(own), 2).flatten(1)
    leading = torch.linalg.svd(shrunk - shrunk.mean(0), full_matrices=False)
    expected = leading.U[:, 0] * leading.S[0]
    assert float(space.x[:, -1] @ expected / expected.square().sum()) ** 2 == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(("share", "n_pixels"), [(1, 64), (0.9, 16), (0.2, None)])
def test_what_does_not_fit_is_shrunk_further_or_left_out(
    images: ArraySet, features: Features, share: float, n_pixels: int | None
) -> None:
    """By half a side each time, down to the smallest one."""
    own = np.flatnonzero(images.y == 1)
    scarce = replace(features, memory=int(share * COPIES * 4 * len(own) * 64))

    space = Pictures(images, scarce, no_notes()).of(own)

    assert SMALLEST_SIDE**2 == 16
    assert (None if space is None else space.x.shape[1]) == n_pixels


def test_rows_are_no_pictures() -> None:
    """They have marks instead."""
    samples = ArraySet(*toy_rows())

    assert Pictures(samples, _collected(samples), no_notes()).of(np.arange(10)) is None


def test_a_label_is_read_once_for_all_events_on_a_store(
    images: ArraySet, features: Features, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one finds it in the notes."""
    own, notes = np.flatnonzero(images.y == 1), Notes(tmp_path, len(images), "")
    first = Pictures(images, features, notes).of(own)
    n_read, inputs = [], ArraySet.inputs

    def counted(samples: ArraySet, indices: NDArray[np.int64]) -> Tensor:
        n_read.append(len(indices))
        return inputs(samples, indices)

    monkeypatch.setattr(ArraySet, "inputs", counted)
    again = Pictures(images, features, notes).of(own)

    assert first is not None
    assert again is not None
    assert sum(n_read) == 1  # for its shape
    assert torch.equal(first.x, again.x)
