"""Rows in blocks: the same whether they fit or not."""

import pytest
import torch
from reference import ATOL, RTOL
from torch import Tensor

from poisontrace._blocks import BLOCK, KEPT, Blocks
from poisontrace._rng import torch_generator

X = torch.randn(50, 7, generator=torch_generator(0, "test/blocks")) * torch.arange(1.0, 8) + 3
ROW = 4 * 7  # bytes


def _small(rows: int, asked: list[slice] | None = None) -> Blocks:
    """Return X in a memory that takes blocks of so many rows."""

    def make(part: slice) -> Tensor:
        if asked is not None:
            asked.append(part)
        return X[part]

    return Blocks(*X.shape, make, memory=BLOCK * ROW * rows)


@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_blocks_are_the_rows(rows: int) -> None:
    """In order, each once, as often as they are asked for."""
    blocks = _small(rows)

    for _ in range(2):
        assert torch.equal(torch.cat([x for _, x in blocks]), X)
        assert torch.equal(torch.cat([X[part] for part, _ in blocks]), X)
    assert torch.equal(blocks.dense(), X)
    assert len(blocks) == 50


def test_no_block_exceeds_its_share() -> None:
    """A BLOCK-th of the memory; and what fits is made once."""
    asked: list[slice] = []
    assert max(len(x) for _, x in _small(3)) == 3

    blocks = _small(1000, asked)
    blocks.sum(), blocks.mean()

    assert asked == [slice(0, 50)]
    assert blocks.fits and not _small(3).fits
    assert Blocks(*X.shape, lambda part: X[part], KEPT * 50 * ROW).fits
    assert not Blocks(*X.shape, lambda part: X[part], KEPT * 50 * ROW - 1).fits


@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_sums_and_moments_equal_those_in_float64(rows: int) -> None:
    """Whatever the blocks."""
    blocks, x = _small(rows), X.double()

    mean, variance, largest = blocks.moments()

    for got, want in (
        (blocks.sum(), x.sum(0)),
        (blocks.mean(), x.mean(0)),
        (mean, x.mean(0)),
        (variance, x.var(0)),
        (largest, x.abs().amax(0)),
    ):
        torch.testing.assert_close(got.double(), want, rtol=RTOL, atol=ATOL)
