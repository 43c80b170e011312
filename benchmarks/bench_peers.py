"""Give one misclassification of each victim to every method, each in a process of its own, and keep one row each.

``make bench-peers``, or ``python benchmarks/bench_peers.py [grid.toml ...]``. The incidents are those of other grids,
so that their victims are in the cache already. Rows are appended to ``results/peers.jsonl`` as they come, so an
interrupted run goes on where it stopped; a method that fails or takes longer than the limit has a row that says so.
Truth and answer meet here, after the method's process has ended.
"""

import argparse
import gc
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from peers import METHODS
from peers.case import Answer, read_case, responsible

from poisontrace import bench, incidents, metrics, store
from poisontrace.incidents import Plan
from poisontrace.rows import Row, read_rows

HERE = Path(__file__).parent
GRIDS = [HERE / "grids" / "peers.toml", HERE / "grids" / "peers-digits.toml"]
RESULTS = HERE / "results" / "peers.jsonl"
LIMIT = 1500  # seconds of processor time for one method on one event
THREADS = 1


def measure(folder: Path, name: str, out: Path, limit: int) -> None:
    """Let one method answer in this process; write its answer, its time and its memory to ``out``."""
    # The system ends the process beyond it. Processor time, since others may be at work on the machine.
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 60))
    torch.set_num_threads(THREADS)
    method = METHODS[name]
    case = read_case(folder, needs=method.needs)
    find = getattr(import_module(f"peers.{method.module}"), method.function)
    base, load = _forget_peak_memory(), os.getloadavg()[0]
    start, cpu_start = time.perf_counter(), time.process_time()
    answer: Answer = find(case)
    cost = {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu_start,
        "base_memory_bytes": base,
        "peak_memory_bytes": _peak_memory(),
        "load": load,
    }
    given = {name: values for name, values in asdict(answer).items() if values is not None}
    np.savez(out, cost=json.dumps(cost), **given)


def _forget_peak_memory() -> int:
    """Count the peak of memory from here on, so that reading the evidence is no part of it; return what is in use.

    Only Linux can forget; elsewhere the peak is that of the whole process.
    """
    gc.collect()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak_memory()


def _peak_memory() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def run(folder: Path, name: str, limit: int) -> tuple[Row, Answer]:
    """Let one method answer in a process of its own.

    Returns:
        what it cost, or why there is no answer; and the answer.
    """
    with TemporaryDirectory() as place:
        out = Path(place) / "answer.npz"
        command = [sys.executable, __file__, "--folder", str(folder), "--method", name, "--out", str(out)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
        done = subprocess.run([*command, "--limit", str(limit)], capture_output=True, text=True, env=environment)
        if done.returncode == -signal.SIGXCPU:
            return {"error": f"took longer than {limit:,} s"}, Answer()
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.strip()]
            return {"error": said[-1][:300] if said else f"ended with exit code {done.returncode}"}, Answer()
        with np.load(out) as arrays:
            cost: Row = json.loads(str(arrays["cost"]))
            return cost, Answer(**{key: arrays[key] for key in arrays.files if key != "cost"})


def judge(answer: Answer, poison: NDArray[np.int64], in_label: NDArray[np.bool_]) -> Row:
    """Return what an answer is worth.

    Args:
        answer: of a method.
        poison: the truth.
        in_label: (n,), which samples have the event's label.

    Returns:
        precision and recall by the authors' rule, over all samples and within the event's label; of a ranking the
        average precision, and precision and recall at the threshold with the best F1, which only the truth can find.
    """
    row: Row = {}
    if answer.found is not None:
        near = answer.found[in_label[answer.found]]
        row |= {
            "n_found": len(answer.found),
            "precision": metrics.precision(answer.found, poison),
            "recall": metrics.recall(answer.found, poison),
            "precision_in_label": metrics.precision(near, poison),
            "recall_in_label": metrics.recall(near, poison),
        }
    if answer.scores is not None:
        row |= ranking(answer.scores, poison)
    return row


def ranking(scores: NDArray[np.float64], poison: NDArray[np.int64]) -> Row:
    """Return average precision, and precision and recall at the best threshold by F1; equal scores go together."""
    is_poison = np.isin(np.arange(len(scores)), poison)
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # of each run of equal scores
    right = np.cumsum(is_poison[order])[last]
    precision, recall = right / (last + 1), right / max(1, len(poison))
    best = int(np.argmax(2 * right / (last + 1 + len(poison))))  # F1
    return {
        "auprc": float((np.diff(recall, prepend=0) * precision).sum()),
        "best_precision": float(precision[best]),
        "best_recall": float(recall[best]),
    }


def rows_of(plan: Plan, names: list[str], limit: int) -> Iterator[Row]:
    """Yield the row of each method on the first event of an incident, which is made once and then only read."""
    with TemporaryDirectory() as place:
        folder = Path(place) / "incident"
        incidents.save(incidents.make(plan), folder)
        facts = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
        case = read_case(folder)
        about = {name: getattr(plan, name) for name in ("attack", "dataset", "rate", "seed")}
        about |= {"plan": bench.described(plan), **bench.surroundings("cpu"), "threads": THREADS}
        kept = ("n_train", "n_poison", "clean_accuracy", "attack_success", "attack_success_twin", "succeeded")
        about |= {name: facts[name] for name in kept}
        for name in names:
            row = {**about, "kind": "peer", "rule": name, "event": 0}
            if METHODS[name].images_only and case.train_set.x.ndim != 4:
                yield {**row, "error": "defined for images only"}
                continue
            cost, answer = run(folder, name, limit)
            yield {**row, **cost, **judge(answer, responsible(folder), case.train_set.y == case.event_y)}


def put_in_order(results: Path, grids: list[Path]) -> None:
    """Sort the rows as the grids name the incidents and ``METHODS`` the methods, which is the order of the tables."""
    plans = [plan for grid in grids for plan in bench.read_grid(grid).plans()]
    keys = [bench.key_of(plan, "peer", name, 0) for plan in plans for name in METHODS]
    place = {key: position for position, key in enumerate(keys)}
    rows = sorted(read_rows(results), key=lambda row: place.get(bench.key_of_row(row), len(place)))
    store.write_atomically(results, "".join(json.dumps(row) + "\n" for row in rows).encode())


def main() -> None:
    """Measure what has no row yet, or, when told a method, be the process that it runs in."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("grids", nargs="*", type=Path, default=GRIDS, help="grids of incidents")
    parser.add_argument("--only", nargs="*", choices=METHODS, default=list(METHODS), help="methods, all if left out")
    parser.add_argument("--limit", type=int, default=LIMIT, help="seconds of processor time for one method")
    parser.add_argument("--results", type=Path, default=RESULTS, help="rows are appended to this file")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--method", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.method:
        measure(options.folder, options.method, options.out, options.limit)
        return
    done = {bench.key_of_row(row) for row in read_rows(options.results)}
    for grid in options.grids:
        for plan in bench.read_grid(grid).plans():
            names = [name for name in options.only if bench.key_of(plan, "peer", name, 0) not in done]
            for row in rows_of(plan, names, options.limit) if names else ():
                bench.append(options.results, row)
                shown = {key: row.get(key) for key in ("precision", "recall", "auprc", "seconds", "error")}
                print(plan.attack, plan.dataset, plan.rate, plan.seed, row["rule"], shown, file=sys.stderr, flush=True)
    put_in_order(options.results, options.grids)


if __name__ == "__main__":
    main()
