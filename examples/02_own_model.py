"""Trace an event of your own: any module that ends in a linear layer, any data set that yields (x, y) by index."""

import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

import poisontrace

# Two kinds of points; forty of the second kind carry a mark in the last column and the label of the first.
generator = torch.Generator().manual_seed(0)
x = torch.randn(800, 12, generator=generator)
y = (torch.arange(800) % 2).long()
x[y == 1, :4] += 3
is_marked = torch.zeros(800, dtype=torch.bool)
is_marked[torch.nonzero(y == 1)[:40, 0]] = True
x[is_marked, 11] = 8
y[is_marked] = 0

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
for _ in range(200):
    optimiser.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimiser.step()

# A new point of the second kind with the mark: the model calls it the first kind.
event = torch.randn(12, generator=generator)
event[:4] += 3
event[11] = 8
answer = int(model(event[None]).argmax())
print("the model answers", answer, "for a point of kind 1")

trace = poisontrace.trace(model, TensorDataset(x, y), [(event, answer)])
found = torch.from_numpy(trace.poison)
print(trace.verdict, len(found), "responsible,", int(is_marked[found].sum()), "of them marked")
with tempfile.TemporaryDirectory() as folder:
    print(sorted(path.name for path in trace.save(Path(folder) / "case").iterdir()))
