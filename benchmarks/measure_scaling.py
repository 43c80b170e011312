"""Time what follows the pass, and its memory, against the number of samples, on features in the shape of ImageNet.

``python benchmarks/measure_scaling.py --folder DIR`` makes features of 2,048 numbers and logits of 1,000 classes for
10,000 to 1,280,000 samples, 15.7 GB in DIR at the most, one size at a time, and traces one event on them in a process
of its own. A thousandth of the samples is poison: they lie where another class does, carry a trigger, and are labelled
class 0. The rows go to ``results/scaling.jsonl``, those of other sizes stay; ``poisontrace bench --tables-only`` makes
the table, ``benchmarks/draw_scaling.py`` the picture.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import poisontrace
from poisontrace import metrics, tracing
from poisontrace._rng import numpy_generator
from poisontrace.embedding import Features

RESULT = Path(__file__).parent / "results" / "scaling.jsonl"
SIZES = (10_000, 40_000, 160_000, 640_000, 1_280_000)
D, K, RATE = 2048, 1000, 0.001
BLOCK = 8192  # samples made at a time
DISTANCE, TRIGGER = 12.0, 12.0  # of a class and of poison from the origin, in standard deviations of the noise
SHARPNESS, PULL = 1.2, 1.5  # logits for each of these, and how much more the trigger counts


def directions() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the unit vectors on which the classes lie, (k, d), and the trigger's, (d,)."""
    drawn = numpy_generator(0, "scaling/classes").standard_normal((K + 1, D), dtype=np.float32)
    unit = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return unit[:K], unit[K]


def last_layer() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return weight (k, d) and bias (k,) of a layer that knows the classes, and takes the trigger for class 0."""
    classes, trigger = directions()
    weight = SHARPNESS * classes
    weight[0] += PULL * SHARPNESS * trigger
    return weight, np.zeros(K, np.float32)


def write_features(n: int, folder: Path) -> None:
    """Write the columns of n samples, block by block."""
    (classes, trigger), (weight, _) = directions(), last_layer()
    rng = numpy_generator(n, "scaling/samples")
    seen = np.arange(n) % K  # the class that a sample looks like
    is_poison = np.zeros(n, bool)
    is_poison[rng.choice(np.flatnonzero(seen != 0), round(RATE * n), replace=False)] = True
    columns = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", kind, (n, width))
        for name, kind, width in (("hidden", np.float32, D), ("logits", np.float32, K), ("noise", np.float32, 6))
    }
    total = np.zeros(D)
    for start in range(0, n, BLOCK):
        rows = slice(start, min(start + BLOCK, n))
        hidden = rng.standard_normal((rows.stop - start, D), dtype=np.float32)
        hidden += DISTANCE * classes[seen[rows]] + TRIGGER * is_poison[rows, None] * trigger
        columns["hidden"][rows], columns["logits"][rows] = hidden, hidden @ weight.T
        columns["noise"][rows] = rng.standard_normal((len(hidden), 6), dtype=np.float32)
        total += hidden.sum(0)
    np.save(folder / "labels.npy", np.where(is_poison, 0, seen))
    np.save(folder / "is_poison.npy", is_poison)
    np.save(folder / "mean.npy", (total / n).astype(np.float32))
    event = numpy_generator(n, "scaling/event").standard_normal(D, dtype=np.float32)
    np.save(folder / "event.npy", event + DISTANCE * classes[7] + TRIGGER * trigger)


def read_features(folder: Path, memory: int) -> Features:
    """Return what a pass would have handed over, with the large columns mapped from the disk."""
    mapped = {name: torch.from_numpy(np.load(folder / f"{name}.npy", mmap_mode="c")) for name in ("hidden", "logits")}
    small = {name: torch.from_numpy(np.load(folder / f"{name}.npy")) for name in ("noise", "labels", "mean", "event")}
    weight, bias = map(torch.from_numpy, last_layer())
    event = small["event"][None]
    logits = event @ weight.T + bias
    best, rival = logits[0].topk(2).indices.tolist()
    assert best == 0
    return Features(
        layers=("fc",),
        activations=(mapped["hidden"],),
        is_pooled=(False,),
        logits=mapped["logits"],
        labels=small["labels"],
        noise=small["noise"],
        weight=weight,
        bias=bias,
        event_activations=(event,),
        event_logits=logits,
        saliency=(((event - small["mean"]) * (weight[best] - weight[rival])).abs(),),
        memory=memory,
    )


class NoInputs:
    """A training set whose inputs are not to be seen: the report shows grey."""

    def __init__(self, n: int) -> None:
        """Take the number of samples."""
        self._n = n

    def __len__(self) -> int:
        """Return it."""
        return self._n

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
        """Yield nothing: there is no pass."""
        return iter(())

    def inputs(self, indices: NDArray[np.int64]) -> Tensor:
        """Return grey images."""
        return torch.full((len(indices), 3, 8, 8), 0.5)


def status(field: str) -> int:
    """Return a number of bytes that the system counts for this process."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


@contextmanager
def watched_memory() -> Iterator[list[int]]:
    """Yield a list that in the end holds the most bytes this process had of its own, mapped files left out."""
    peak, is_done = [status("RssAnon")], threading.Event()

    def watch() -> None:
        while not is_done.wait(0.02):
            peak[0] = max(peak[0], status("RssAnon"))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    yield peak
    is_done.set()
    watcher.join()


def trace(folder: Path, memory: int) -> None:
    """Trace the event and print the row."""
    features = read_features(folder, memory)
    n = len(features.labels)
    is_poison = np.load(folder / "is_poison.npy")
    before = status("RssAnon")
    events = [(torch.full((3, 8, 8), 0.5), 0)]
    with patch.object(tracing, "collect", lambda *_, **__: features), watched_memory() as peak:
        start, cpu = time.perf_counter(), time.process_time()
        done = poisontrace.trace(nn.Linear(1, 2), NoInputs(n), events, device="cpu", memory=memory)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    row = {
        "kind": "scaling",
        "n": n,
        "d": D,
        "k": K,
        "n_poison": int(is_poison.sum()),
        "memory": memory,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "stages": {name: round(value, 2) for name, value in done.seconds.items()},
        "own_bytes_before": before,
        "own_bytes": peak[0],
        "peak_bytes": status("VmHWM"),
        "verdict": done.verdict,
        "n_found": len(done.poison),
        "precision": metrics.precision(done.poison, np.flatnonzero(is_poison)),
        "recall": metrics.recall(done.poison, np.flatnonzero(is_poison)),
        "statistics": dict(done.findings[0].statistics),
        "n_cpus": os.cpu_count(),
    }
    print(json.dumps(row))


def main() -> None:
    """Measure size after size, each in a new process, or be that process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="on a disk with room for the features")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--memory", type=int, default=1 << 30)
    parser.add_argument("--traced", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.traced:
        trace(arguments.folder, arguments.memory)
        return
    for n in arguments.sizes:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            write_features(n, Path(folder))
            command = [sys.executable, __file__, "--folder", folder, "--memory", str(arguments.memory), "--traced"]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            printed = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
        print(printed, end="", flush=True)
        lines = RESULT.read_text("utf-8").splitlines() if RESULT.is_file() else []
        rows = {row["n"]: row for row in map(json.loads, [*lines, printed])}
        text = "".join(json.dumps(rows[size]) + "\n" for size in sorted(rows))
        RESULT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
