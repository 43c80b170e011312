"""Trace, kill the process with -9 at random moments, give the same command again, and compare: ``FOLDER MOMENTS SEED``.

Each trace is a process of its own, forked from this one, which has loaded the package and nothing else. One line of
JSON for each moment goes to stdout: where the work was when it was killed, and whether the case that came of it in the
end is the one of a trace that nobody disturbed, times aside.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
from safetensors.torch import save_file
from tasks import fitted_network, planted, planted_mlp
from typer.testing import CliRunner

from poisontrace import recording, report
from poisontrace._rng import numpy_generator
from poisontrace.cli import app

CODE = """
import time
from pathlib import Path

import numpy as np
from torch import nn


class Slow:
    def __init__(self):
        with np.load(Path(__file__).with_name("train.npz")) as arrays:
            self.x, self.y = arrays["x"], arrays["y"]

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        time.sleep(0.001)
        return self.x[index], int(self.y[index])


def build():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
"""


def write_evidence(folder: Path) -> list[str]:
    """Write a planted task whose data are slow to read; return the arguments that trace it."""
    folder.mkdir(parents=True)
    task = planted(n=600, n_poison=40)
    (folder / "code.py").write_text(CODE)
    save_file(fitted_network(task, planted_mlp).state_dict(), folder / "weights.safetensors")
    np.savez(folder / "train.npz", x=task.x.numpy(), y=task.y.numpy())
    events = task.event.numpy() + 0.1 * np.arange(4, dtype=np.float32)[:, None]
    np.savez(folder / "events.npz", x=events, y=np.zeros(4, np.int64))
    files = {"model": "code.py:build", "weights": "weights.safetensors", "data": "code.py:Slow", "events": "events.npz"}
    options = [part for name, file in files.items() for part in (f"--{name}", f"{folder}/{file}")]
    return ["trace", *options, "--batch-size", "20"]


def start(arguments: list[str]) -> int:
    """Trace in a process of its own; return its id."""
    child = os.fork()
    if child == 0:
        recording.BLOCK_SECONDS = 0.05  # or so short a pass would be signed once
        os._exit(CliRunner().invoke(app, arguments).exit_code)
    return child


def finish(child: int) -> int:
    """Wait for a process; return its exit code, negative if a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def content(case: Path) -> dict[str, bytes]:
    """Return the files of a case by name, with all times made the same."""
    facts = json.loads((case / "trace.json").read_text())
    (case / "trace.json").write_text(json.dumps({**facts, "created": "", "seconds": {}, "command": ""}))
    (case / "report.html").write_text(report.render(case))
    return {path.name: path.read_bytes() for path in case.iterdir()}


def progress_of(folder: Path) -> str:
    """Return how far the work had come."""
    if (folder / "case").exists():
        return "done"
    notes = len(list(folder.glob(".case.partial/*/event-*.npz")))
    rows = sum(recording.claimed(path) for path in folder.glob(".case.partial/*"))
    return f"{notes} events searched" if notes else f"{rows} samples recorded"


def main(folder: Path, n_moments: int, seed: int) -> None:
    """Kill and resume."""
    arguments = write_evidence(folder / "evidence")
    began = time.perf_counter()
    assert finish(start([*arguments, "--out", str(folder / "case")])) == 0
    whole = time.perf_counter() - began
    want = content(folder / "case")

    # One moment in each equal part of the time, so that all stages have their share.
    parts = numpy_generator(seed, "test/kill").uniform(size=n_moments) + np.arange(n_moments)
    for number, moment in enumerate(parts / n_moments * whole):
        place = folder / str(number)
        place.mkdir()
        child = start([*arguments, "--out", str(place / "case")])
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
        code, was = finish(child), progress_of(place)
        again = 0 if was == "done" else finish(start([*arguments, "--out", str(place / "case")]))
        got = content(place / "case") if again == 0 else {}
        left = sorted(path.name for path in place.iterdir())
        row = {"seconds": round(float(moment), 3), "killed": code == -9, "was": was, "again": again}
        print(json.dumps({**row, "is_same": got == want, "left": left}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
