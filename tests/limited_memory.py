"""Trace rows whose features are larger than the memory allowed, under a real limit: ``SAMPLES MEMORY ABOVE``.

Prints one line of JSON. The system refuses every allocation (RLIMIT_DATA) that goes beyond what the loaded libraries
and the model take by more than MEMORY and ABOVE bytes, the latter for buffers of the libraries and one batch.
"""

import json
import re
import resource
import sys
from pathlib import Path

import numpy as np
import sklearn.cluster  # noqa: F401  # loaded before the limit is set
import torch
from tasks import fitted_network, planted, planted_mlp
from torch import Tensor, nn

import poisontrace
from poisontrace._rng import torch_generator

N_COPIES = 64  # of each hidden unit


class Repeated:
    """The planted task many times over, each row with noise of its own, made when it is read."""

    def __init__(self, n: int) -> None:
        """Take the number of rows."""
        self.task, self.n = planted(), n

    def __len__(self) -> int:
        """Return it."""
        return self.n

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return a row of the task with a little noise."""
        row = index % len(self.task.y)
        noise = torch.randn(8, generator=torch_generator(index, "test/memory"))
        return self.task.x[row] + 0.1 * noise, int(self.task.y[row])


def widened(model: nn.Module) -> nn.Module:
    """Return a network that answers alike, each hidden unit there many times, each a little different."""
    assert isinstance(model, nn.Sequential)
    first, last = model[0], model[2]
    wide = nn.Sequential(nn.Linear(8, 16 * N_COPIES), nn.ReLU(), nn.Linear(16 * N_COPIES, 3))
    generator = torch_generator(0, "test/memory")
    with torch.no_grad():
        weight = first.weight.repeat(N_COPIES, 1)
        wide[0].weight.copy_(weight + 0.05 * torch.randn(weight.shape, generator=generator))
        wide[0].bias.copy_(first.bias.repeat(N_COPIES))
        wide[2].weight.copy_(last.weight.repeat(1, N_COPIES) / N_COPIES)
        wide[2].bias.copy_(last.bias)
    return wide


def main(n: int, memory: int, above: int) -> None:
    """Set the limit and trace."""
    train_set = Repeated(n)
    model = widened(fitted_network(train_set.task, planted_mlp))
    in_use = re.search(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert in_use is not None
    limit = 1024 * int(in_use[1]) + memory + above
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    found = poisontrace.trace(model, train_set, [(train_set.task.event, 0)], memory=memory).poison

    poison = np.flatnonzero(np.resize(train_set.task.is_poison, n))
    n_both = len(np.intersect1d(found, poison))
    widths = 8 + 16 * N_COPIES + 3
    row = {"feature_bytes": 4 * n * widths, "memory": memory, "limit": limit}
    print(json.dumps({**row, "precision": n_both / max(1, len(found)), "recall": n_both / len(poison)}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
