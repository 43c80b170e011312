"""Rows without meaning: a cloud, and a second, small one in it."""

import torch
from torch import Tensor

from poisontrace._rng import torch_generator


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Independent normal numbers."""
    return torch.randn(shape, generator=torch_generator(seed, "test/noise"), dtype=dtype)


def planted(n: int = 400, n_planted: int = 12, *, seed: int = 0, gap: float = 14.0) -> tuple[Tensor, Tensor]:
    """A cloud of rows and the mask of a second, small one in it."""
    x = noise(n, 10, seed=seed)
    is_planted = torch.zeros(n, dtype=torch.bool)
    is_planted[torch.randperm(n, generator=torch_generator(seed, "test/planted"))[:n_planted]] = True
    x[is_planted, 3] += gap
    return x, is_planted


def first(mask: Tensor, size: int) -> Tensor:
    """Return the first members of a mask, as one."""
    start = torch.zeros_like(mask)
    start[mask.nonzero()[:size, 0]] = True
    return start
