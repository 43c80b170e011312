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

N_COPIES, DEPTH = 32, 7  # of each hidden unit, and layers that hand them on


class Signals:
    """A planted task, each row as a signal (8, 2), the same twice."""

    def __init__(self, n: int) -> None:
        """Take the number of rows; a twelfth is poison."""
        self.task = planted(n, n // 12)

    def __len__(self) -> int:
        """Return it."""
        return len(self.task.y)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return a row."""
        return as_signal(self.task.x[index]), int(self.task.y[index])


def as_signal(row: Tensor) -> Tensor:
    """Return a row (8,) as (8, 2)."""
    return row[:, None].repeat(1, 2)


def widened(model: nn.Module) -> nn.Module:
    """Return a network that answers alike: hidden units many times over, and many layers that only hand them on."""
    assert isinstance(model, nn.Sequential)
    first, last, width = model[0], model[2], 16 * N_COPIES
    handing_on = [part for _ in range(DEPTH) for part in (nn.Conv1d(width, width, 1), nn.ReLU())]
    wide = nn.Sequential(
        *(nn.Conv1d(8, width, 1), nn.ReLU(), *handing_on),
        *(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(width, 3)),
    )
    generator = torch_generator(0, "test/memory")
    with torch.no_grad():
        weight = first.weight.repeat(N_COPIES, 1)
        wide[0].weight.copy_((weight + 0.05 * torch.randn(weight.shape, generator=generator))[:, :, None])
        wide[0].bias.copy_(first.bias.repeat(N_COPIES))
        for part in handing_on[::2]:
            part.weight.copy_(torch.eye(width)[:, :, None])
            part.bias.zero_()
        wide[-1].weight.copy_(last.weight.repeat(1, N_COPIES) / N_COPIES)
        wide[-1].bias.copy_(last.bias)
    return wide


def main(n: int, memory: int, above: int) -> None:
    """Set the limit and trace."""
    train_set = Signals(n)
    model = widened(fitted_network(planted(), planted_mlp))
    events = [(as_signal(train_set.task.event), 0)]
    poisontrace.trace(model, Signals(600), events)  # the libraries take their own buffers now
    in_use = re.search(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert in_use is not None
    limit = 1024 * int(in_use[1]) + memory + above
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    found = poisontrace.trace(model, train_set, events, memory=memory).poison

    poison = train_set.task.poison
    n_both = len(np.intersect1d(found, poison))
    n_features = 2 * (8 + DEPTH * 16 * N_COPIES) + 16 * N_COPIES + 3
    row = {"feature_bytes": 4 * n * n_features, "memory": memory, "in_use": limit - memory - above}
    print(json.dumps({**row, "precision": n_both / max(1, len(found)), "recall": n_both / len(poison)}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
