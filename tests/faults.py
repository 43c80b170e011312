"""Every fault around a trace that we know, made to happen: ``FOLDER [NUMBER...]``, one line of JSON each on stdout.

Each fault happens to a process of its own, forked from this one. It is real: a signal, a limit that the system keeps,
a full or read-only file system (which only root can mount; without root a folder's rights take its place), code of the
user's that raises. After it the same command is given without the fault, and its case compared with an undisturbed one.
"""

import fcntl
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from kill_at_random import content, finish
from safetensors.torch import save_file
from tasks import fitted_network, planted, planted_mlp

from poisontrace import recording
from poisontrace.cli import app

N, AT = 13_000, 12_345
CODE = """
import json
import os
import signal
from pathlib import Path

import numpy as np
from torch import nn

HERE = Path(__file__).parent


class Data:
    def __init__(self):
        with np.load(HERE / "train.npz") as arrays:
            self.x, self.y = arrays["x"], arrays["y"]
        self.fault, self.n_read = json.loads((HERE / "fault.json").read_text()), 0

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        self.n_read += 1
        x, fault = self.x[index].copy(), self.fault.get("does")
        if fault == "shuffles":
            x += self.n_read
        if index == self.fault.get("at"):
            if fault == "raises":
                raise RuntimeError("no such sample")
            if fault == "is gone":
                raise OSError(5, "Input/output error")
            if fault == "kills":
                os.kill(os.getpid(), self.fault["signal"])
            if fault == "holds":
                x[0] = self.fault["value"]
            if fault == "eats":
                self.eaten = np.ones(1 << 30)
        return x, int(self.y[index])


def build():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
"""


def write_evidence(folder: Path) -> list[str]:
    """Write a planted task read by code of the user's; return the arguments that trace it."""
    folder.mkdir(parents=True)
    task = planted(n=N, n_poison=200)
    (folder / "code.py").write_text(CODE)
    save_file(fitted_network(task, planted_mlp).state_dict(), folder / "weights.safetensors")
    np.savez(folder / "train.npz", x=task.x.numpy(), y=task.y.numpy())
    np.savez(folder / "events.npz", x=task.event.numpy()[None], y=np.zeros(1, np.int64))
    set_fault(folder)
    files = {"model": "code.py:build", "weights": "weights.safetensors", "data": "code.py:Data", "events": "events.npz"}
    return ["trace", *(part for name, file in files.items() for part in (f"--{name}", f"{folder}/{file}"))]


def set_fault(evidence: Path, **fault: Any) -> None:
    """Say what the user's code does wrong; nothing sets it right."""
    (evidence / "fault.json").write_text(json.dumps(fault))


def run(arguments: list[str], log: Path, limits: dict[int, int]) -> int:
    """Run the command in a process of its own, under limits of the system; return its exit code as a shell has it."""
    child = os.fork()
    if child == 0:
        code: Any = 1
        with log.open("wb") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
            recording.BLOCK_SECONDS = 0.05  # or so short a pass would be signed once
            signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background a shell has it ignored
            for limit, value in limits.items():
                resource.setrlimit(limit, (value, value))
            try:
                app(arguments)
            except SystemExit as end:
                code = end.code
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code or 0)
    code = finish(child)
    return 128 - code if code < 0 else code


def in_use() -> int:
    """Return how many bytes of data this process has, which a child starts with."""
    found = re.search(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found[1]) if found else 0


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """Yield a file system of its own; raises OSError where that is not allowed."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False)
    if done.returncode:
        raise OSError("only root can mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=False)


def _full(place: Path) -> Any:
    return mounted(place / "full", "size=1m")


@contextmanager
def _read_only(place: Path) -> Iterator[Path]:
    if os.geteuid() == 0:
        with mounted(place / "fixed", "ro") as folder:
            yield folder
    else:
        (place / "fixed").mkdir(mode=0o500)
        yield place / "fixed"


@contextmanager
def _held(place: Path) -> Iterator[Path]:
    """Yield a store whose only pass another process is writing."""
    (folder,) = (place / "store").iterdir()
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield place / "store"


@contextmanager
def _spoilt(place: Path) -> Iterator[Path]:
    """Yield a store in which one bit of one sample was changed."""
    (folder,) = (place / "store").iterdir()
    for note in folder.glob("event-*"):
        note.unlink()
    path = folder / "layer0.npy"
    changed = bytearray(path.read_bytes())
    changed[-1 - 32 * (N - AT)] ^= 1
    path.write_bytes(changed)
    yield place / "store"


# What the user's code does at which sample; limits of the system; where the case or the store is to go.
FAULTS: dict[str, dict[str, Any]] = {
    "Ctrl-C at sample 12,345": {"does": "kills", "at": AT, "signal": 2},
    "kill -9 at sample 12,345": {"does": "kills", "at": AT, "signal": 9},
    "a data set that raises at sample 12,345": {"does": "raises", "at": AT},
    "a disk that fails at sample 12,345": {"does": "is gone", "at": AT},
    "out of memory at sample 12,345": {"does": "eats", "at": AT, "memory": 200 << 20},
    "NaN in sample 12,345": {"does": "holds", "at": AT, "value": float("nan")},
    "features that overflow at sample 12,345": {"does": "holds", "at": AT, "value": 3e38},
    "a data set that shuffles": {"does": "shuffles"},
    "a sample that changes between two runs": {"does": "kills", "at": AT, "signal": 2, "changes": 5},
    "files that may not be so large": {"file": 100_000},
    "a full disk": {"out": _full},
    "a read-only folder for the case": {"out": _read_only},
    "a read-only folder for the store": {"store": _read_only},
    "a store that another process writes": {"before": True, "store": _held},
    "a store that was changed": {"before": True, "store": _spoilt},
}


def happen(name: str, place: Path, evidence: Path, arguments: list[str], want: dict[str, bytes]) -> dict[str, Any]:
    """Let one fault happen, and give the same command without it; return the row."""
    fault = dict(FAULTS[name])
    place.mkdir()
    out, log = place / "case", place / "log"
    if fault.pop("before", False):
        assert run([*arguments, "--out", str(place / "first"), "--store", str(place / "store")], log, {}) == 0
    where: dict[str, Callable[[Path], Any]] = {key: fault.pop(key) for key in ("out", "store") if key in fault}
    limits = {resource.RLIMIT_FSIZE: fault.pop("file")} if "file" in fault else {}
    if "memory" in fault:
        limits[resource.RLIMIT_DATA] = in_use() + fault.pop("memory")
    changes = fault.pop("changes", None)
    set_fault(evidence, **fault)
    more = ["--out", str(out)]
    try:
        if where:
            ((key, made),) = where.items()
            with made(place) as folder:
                more = ["--out", str(folder / "case")] if key == "out" else [*more, "--store", str(folder)]
                code = run([*arguments, *more], log, limits)
        else:
            code = run([*arguments, *more], log, limits)
        if changes is not None:
            set_fault(evidence, does="holds", at=changes, value=1.5)
            code = run([*arguments, *more], log, limits)
    except OSError as error:
        return {"kind": "fault", "case": name, "skipped": str(error)}
    said = [line for line in log.read_text().splitlines() if line.startswith(("Error: ", "Warning: "))]
    left = sorted(path.name for path in place.iterdir() if path.name.startswith((".", "case")))
    n_kept = sum(recording.claimed(path) for path in place.glob(".case.partial/*"))

    set_fault(evidence)
    again = 0 if out.is_dir() else run([*arguments, "--out", str(out)], place / "again", {})
    row = {"kind": "fault", "case": name, "code": code, "message": (said or [""])[-1].replace(str(place), "...")}
    got = content(out) if again == 0 else {}
    if "Warning" in row["message"]:  # which the case holds as well
        got, want = ({name: files.get(name, b"") for name in ("poison.csv", "scores.npy")} for files in (got, want))
    is_same = got == want
    hidden = [path.name for path in place.iterdir() if path.name.startswith(".")]
    return {**row, "left": left, "n_kept": n_kept, "again": again, "is_same": is_same, "hidden": hidden}


def main(folder: Path, numbers: list[int]) -> None:
    """Let some faults happen, all of them if none is named."""
    evidence = folder / "evidence"
    arguments = write_evidence(evidence)
    assert run([*arguments, "--out", str(folder / "case")], folder / "log", {}) == 0
    want = content(folder / "case")
    for number, name in enumerate(FAULTS):
        if numbers and number not in numbers:
            continue
        print(json.dumps(happen(name, folder / str(number), evidence, arguments, want)), flush=True)
        with suppress(OSError):
            shutil.rmtree(folder / str(number))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(number) for number in sys.argv[2:]])
