"""Time the pass of a trace in one process and in several, each with one thread, in turn.

``python benchmarks/measure_ranks.py`` takes minutes. The victim is a ResNet-9 with random weights on random images of
CIFAR-10's size: what they hold does not change what a pass takes. The one row goes to ``results/ranks.jsonl``;
``poisontrace bench --tables-only`` makes the table. A machine that does anything else besides makes the ratio of the
times smaller, not that of the processor's times: of one process, and of the busiest of several.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from poisontrace._rng import global_seed, numpy_generator
from poisontrace.data import ArraySet
from poisontrace.embedding import assist, collect
from poisontrace.models import resnet9
from poisontrace.ranks import joined

RESULT = Path(__file__).parent / "results" / "ranks.jsonl"


def time_pass(n: int, folder: Path) -> None:
    """Be one rank of a run; rank 0 prints the seconds of the pass, and the processor's of the busiest rank."""
    x = numpy_generator(0, "ranks/images").integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    train_set = ArraySet(x, np.arange(n) % 10)
    with global_seed(0, "ranks/network"):
        model = resnet9().eval()
    event = train_set[0][0]
    label = int(model(event[None]).argmax())
    with joined() as ranks:
        ranks.wait()
        start, cpu = time.perf_counter(), time.process_time()
        if ranks.is_first:
            collect(model, train_set, [(event, label)], store=folder / "store", ranks=ranks)
        else:
            assist(model, train_set, event, store=folder / "store", ranks=ranks)
        seconds = time.perf_counter() - start
        busiest = -ranks.least(-round(1e6 * (time.process_time() - cpu))) / 1e6
        if ranks.is_first:
            print(json.dumps([seconds, busiest]))


def seconds_of(n_ranks: int, n: int) -> tuple[float, float]:
    """Return what the pass took a run of some ranks, and the processor's time of the busiest one."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_ranks)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        script = [__file__, "--samples", str(n), "--folder", folder]
        done = subprocess.run([*command, *script], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    seconds, busiest = json.loads(done.stdout)
    return round(seconds, 3), round(busiest, 3)


def main() -> None:
    """Measure and write the row, or be one rank of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder:
        time_pass(arguments.samples, arguments.folder)
        return
    n = arguments.samples
    with FlopCounterMode(display=False) as counter:
        resnet9()(torch.zeros(1, 3, 32, 32))
    pairs = [(seconds_of(1, n), seconds_of(arguments.ranks, n)) for _ in range(arguments.repeats)]
    row = {
        "kind": "ranks",
        "model": "resnet9",
        "n_samples": n,
        "flops": counter.get_total_flops(),
        "n_ranks": arguments.ranks,
        "n_cpus": os.cpu_count(),
        "load_after": round(os.getloadavg()[0], 2),
        "seconds_alone": [alone[0] for alone, _ in pairs],
        "seconds_shared": [shared[0] for _, shared in pairs],
        "cpu_seconds_alone": [alone[1] for alone, _ in pairs],
        "cpu_seconds_shared": [shared[1] for _, shared in pairs],
        "ratio": round(statistics.median(alone[0] / shared[0] for alone, shared in pairs), 3),
        "cpu_ratio": round(statistics.median(alone[1] / shared[1] for alone, shared in pairs), 3),
    }
    RESULT.write_text(json.dumps(row) + "\n", encoding="utf-8")
    print(json.dumps(row))


if __name__ == "__main__":
    main()
