"""One integer seed becomes independent, named sources of randomness.

This is the only file of the package that makes randomness. Same seed and same name: same numbers.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive(seed: int, name: str) -> int:
    """Return a 63-bit integer that depends on ``seed`` and ``name`` alone."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def numpy_generator(seed: int, name: str) -> np.random.Generator:
    """Return a NumPy generator of its own for the stage called ``name``."""
    return np.random.default_rng(derive(seed, name))


def torch_generator(seed: int, name: str) -> torch.Generator:
    """Return a CPU torch generator of its own for the stage called ``name``."""
    return torch.Generator().manual_seed(derive(seed, name))


@contextmanager
def global_seed(seed: int, name: str) -> Iterator[None]:
    """Seed torch's global generator inside the block and restore its state after it.

    Needed only where torch offers no generator argument: the default initialisation of modules, dropout.
    """
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive(seed, name))
        yield
