"""What a trace will take, said before it starts: samples, passes, time, memory, disk.

One small batch goes through the model as it will in the trace, so a model that does not fit its data is found out now.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from poisontrace._blocks import MEMORY
from poisontrace.data import TrainSet
from poisontrace.embedding import collect
from poisontrace.forward import recorded
from poisontrace.placing import placed, resolve
from poisontrace.tracing import check_options

N_PROBE = 64
# Seconds of clustering and unlearning an event, and for each sample of its label: about the median of the committed
# rows, on one thread (benchmarks/results).
SEARCH_SECONDS, SEARCH_SECONDS_A_SAMPLE = 2.0, 0.003
# At the peak of the search, for each byte that is kept of a sample; and for a batch on its way. Measured on CIFAR-10.
COPIES, BATCH_BYTES = 20, 200_000_000
REPORT_BYTES = 500_000


@dataclass(frozen=True)
class Forecast:
    """What a trace will take.

    Attributes:
        n_samples, n_events: what is given.
        n_passes: forward passes over the training set.
        n_layers: layers that are watched.
        pass_seconds, search_seconds: of the one pass, and of all searches together.
        memory_bytes: what is held of the training set at the peak, without the model and the data themselves.
        disk_bytes: of the case folder.
        n_recorded: samples of which the pass is in the store already.
        store_bytes: what the whole pass takes there.
    """

    n_samples: int
    n_events: int
    n_passes: int
    n_layers: int
    pass_seconds: float
    search_seconds: float
    memory_bytes: int
    disk_bytes: int
    n_recorded: int
    store_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)

    def rows(self) -> dict[str, str]:
        """Return what to tell a reader, by name."""
        events = "1 event" if self.n_events == 1 else f"{self.n_events:,} events"
        passes = "1 forward pass" if self.n_passes == 1 else f"{self.n_passes} forward passes"
        return {
            "samples": f"{self.n_samples:,} samples and {events}",
            "passes": f"{passes} through {self.n_layers} layers",
            "time": f"about {_time(self.pass_seconds)} for the pass and {_time(self.search_seconds)} for the search",
            "memory": f"about {_size(self.memory_bytes)} of memory beside model and data",
            "disk": f"{_size(self.disk_bytes)} on disk for the case",
            "store": f"{_size(self.store_bytes)} for the pass"
            + (f", of which {self.n_recorded:,} samples are there already" if self.n_recorded else ""),
        }


def _time(seconds: float) -> str:
    return f"{max(1, round(seconds))} s" if seconds < 100 else f"{round(seconds / 60):,} min"


def _size(n_bytes: int) -> str:
    return f"{max(1, round(n_bytes / 1e6)):,} MB" if n_bytes < 1e10 else f"{round(n_bytes / 1e9):,} GB"


class _First:
    """The first batch of a training set."""

    def __init__(self, train_set: TrainSet, n: int) -> None:
        self.x, self.y = next(iter(islice(train_set.batches(n), 1)))

    def __len__(self) -> int:
        return len(self.y)

    def batches(
        self, batch_size: int, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
        yield self.x, self.y

    def inputs(self, indices: NDArray[np.int64]) -> Tensor:
        return self.x[indices]


def forecast(
    model: nn.Module,
    train_set: TrainSet,
    events: Sequence[tuple[Tensor, int]],
    *,
    rule: str = "default",
    layer: str | None = None,
    device: str = "auto",
    batch_size: int = 256,
    precision: str = "float32",
    memory: int = MEMORY,
    store: Path | None = None,
) -> Forecast:
    """Say what a trace with these arguments, which are those of :func:`poisontrace.trace`, will take.

    Raises:
        InvalidInputError: if the events or the first batch do not fit the model.
        UnsupportedModelError: if the model has no usable last linear layer.
    """
    check_options(rule, batch_size, memory, precision)
    device = resolve(device)
    n = len(train_set)
    n_probe = min(N_PROBE, batch_size)
    with placed(model, device):
        features = collect(model, _First(train_set, n_probe), events, layer=layer, device=device, precision=precision)
        start = time.perf_counter()
        probe = _First(train_set, n_probe)
        collect(model, probe, events[:1], layer=layer, device=device, precision=precision)
        seconds = time.perf_counter() - start

    n_kept = sum(activation.shape[1] for activation in features.activations)
    n_kept += features.logits.shape[1] + features.noise.shape[1]
    labels = getattr(train_set, "y", None)
    n_alike = [n / features.logits.shape[1] if labels is None else int((labels == label).sum()) for _, label in events]
    exhibit = 4 * int(np.prod(events[0][0].shape))
    with placed(model, device):
        n_recorded, store_bytes = recorded(
            model, train_set, events[0][0], store, layer=layer, device=device, precision=precision
        )
    return Forecast(
        n_samples=n,
        n_events=len(events),
        n_passes=int(n_recorded < n),
        n_layers=len(features.layers),
        pass_seconds=seconds * (n - n_recorded) / len(probe),
        search_seconds=sum(SEARCH_SECONDS + SEARCH_SECONDS_A_SAMPLE * alike for alike in n_alike),
        memory_bytes=BATCH_BYTES + min(memory, COPIES * 4 * n * n_kept),
        disk_bytes=REPORT_BYTES + 4 * n + (48 + len(events)) * exhibit,
        n_recorded=n_recorded,
        store_bytes=store_bytes,
    )
