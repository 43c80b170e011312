"""What goes wrong around a trace: nothing is lost, nothing half-written, and one sentence says what to do."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent


def _run(script: str, *arguments: object) -> list[dict[str, Any]]:
    """Run a script of this folder with one thread; return the lines of JSON that it writes."""
    command = [sys.executable, str(TESTS / script), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("n", [3, pytest.param(25, marks=pytest.mark.slow)])
def test_a_killed_trace_goes_on_and_ends_the_same(n: int, tmp_path: Path) -> None:
    """Kill -9 at random moments of a real process; the same command then gives the same case, byte for byte."""
    rows = _run("kill_at_random.py", tmp_path, n, 0)

    assert len(rows) == n
    for row in rows:
        assert (row["again"], row["is_same"]) == (0, True), row
        assert row["was"] == "done" or row["left"] == ["case"], row
    # Some while the samples were run, some while the events were searched.
    assert any("samples" in row["was"] for row in rows)
    assert n < 25 or any("events" in row["was"] for row in rows)


@pytest.mark.slow
def test_memory_is_bounded_and_the_poison_found(tmp_path: Path) -> None:
    """A real limit, a few libraries' buffers above --memory, and features several times as large."""
    (row,) = _run("limited_memory.py", 30_000, 16 << 20, 16 << 20)

    assert row["feature_bytes"] > 7 * row["memory"]
    assert (row["precision"], row["recall"]) == (1.0, 1.0)
