"""What goes wrong around a trace: nothing is lost, nothing half-written, and one sentence says what to do."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from faults import FAULTS

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


@pytest.mark.parametrize("numbers", [(0, 10), pytest.param((), marks=pytest.mark.slow)], ids=["two", "all"])
def test_faults_lose_nothing(numbers: tuple[int, ...], tmp_path: Path) -> None:
    """The exit code as documented, one sentence, what was done is kept, and the same command ends the same."""
    for row in _run("faults.py", tmp_path, *numbers):
        if "skipped" in row:
            continue
        assert (row["again"], row["is_same"], row["hidden"]) == (0, True, []), row
        assert row["code"] in (0, 1, 2, 130, 137), row
        if row["code"] != 137:
            assert re.fullmatch(r"(Error|Warning): .+\.", row["message"]), row
        if "sample 12,345" in row["case"]:
            assert row["n_kept"] > 10_000 and row["left"] == [".case.partial"], row


def test_the_committed_faults_are_those_of_the_table() -> None:
    """Run benchmarks/faults.py after a change."""
    path = TESTS.parent / "benchmarks" / "results" / "faults.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]

    assert [row["case"] for row in rows] == list(FAULTS)
    assert all(row["is_same"] for row in rows)


@pytest.mark.slow
def test_memory_is_bounded_and_the_poison_found(tmp_path: Path) -> None:
    """A real limit, a few libraries' buffers above --memory, and features several times as large."""
    memory, above = 32 << 20, 64 << 20

    (row,) = _run("limited_memory.py", 18_000, memory, above)

    assert row["feature_bytes"] > 5 * (memory + above)
    assert (row["precision"], row["recall"]) == (1.0, 1.0)
