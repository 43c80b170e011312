"""Several processes: the same case as one makes, and an end in one sentence when one of them dies."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file
from tasks import fitted_network, planted, planted_mlp
from typer.testing import CliRunner

from poisontrace import recording
from poisontrace._errors import RankError
from poisontrace.cli import app
from poisontrace.ranks import ALONE, DIED, Ranks, _talk, joined

# What the data do at sample 450 of 600, or 150, in one of the two ranks.
CODE = """
import os
import time
from pathlib import Path

import numpy as np
from torch import nn

HERE = Path(__file__).parent


class Slow:
    def __init__(self):
        with np.load(HERE / "train.npz") as arrays:
            self.x, self.y = arrays["x"], arrays["y"]

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        time.sleep(0.001)
        x = self.x[index].copy()
        if (HERE / f"kill {index}").exists():
            (HERE / f"kill {index}").unlink()
            os.kill(os.getpid(), 9)
        if (HERE / f"spoil {index}").exists():
            x[0] = np.nan
        return x, int(self.y[index])


def build():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
"""


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A planted task whose data are slow to read, and the arguments that trace it."""
    folder, task = tmp_path_factory.mktemp("evidence"), planted(n=600, n_poison=40)
    (folder / "code.py").write_text(CODE)
    save_file(fitted_network(task, planted_mlp).state_dict(), folder / "weights.safetensors")
    np.savez(folder / "train.npz", x=task.x.numpy(), y=task.y.numpy())
    np.savez(folder / "events.npz", x=task.event.numpy()[None], y=np.zeros(1, np.int64))
    files = {"model": "code.py:build", "weights": "weights.safetensors", "data": "code.py:Slow", "events": "events.npz"}
    options = [part for name, file in files.items() for part in (f"--{name}", f"{folder}/{file}")]
    return folder, ["trace", *options, "--batch-size", "20"]


@pytest.fixture(scope="module")
def alone(evidence: tuple[Path, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the case and the store that one process made."""
    folder = tmp_path_factory.mktemp("alone")
    arguments = [*evidence[1], "--out", str(folder / "case"), "--store", str(folder / "store")]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    return folder


def _two(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in two ranks of this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "-m", "poisontrace", *arguments], capture_output=True, text=True, env=environment, timeout=120
    )


def _assert_same_case(got: Path, want: Path) -> None:
    facts, others = (json.loads((case / "trace.json").read_text()) for case in (got, want))
    assert facts["verdict"] == others["verdict"] == "poison"
    assert (got / "poison.csv").read_bytes() == (want / "poison.csv").read_bytes()
    np.testing.assert_allclose(np.load(got / "scores.npy"), np.load(want / "scores.npy"), atol=1e-6)


def _columns(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.glob("*/*.npy")}


def test_two_ranks_make_the_case_that_one_makes(evidence: tuple[Path, list[str]], alone: Path, tmp_path: Path) -> None:
    """The store to the byte, the samples found, and their scores; only rank 0 speaks; one process takes it up."""
    out, store = tmp_path / "case", tmp_path / "store"

    done = _two(*evidence[1], "--out", str(out), "--store", str(store))

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("responsible ") == 1 and done.stderr.count("Plan: ") == 1
    _assert_same_case(out, alone / "case")
    assert _columns(store) == _columns(alone / "store")
    assert {path.name for path in store.glob("*/blocks*")} == {"blocks.jsonl", "blocks-1.jsonl"}
    again = [*evidence[1], "--out", str(tmp_path / "again"), "--store", str(store)]
    planned = CliRunner().invoke(app, [*again, "--dry-run", "--json"])
    assert json.loads(planned.stdout)["n_recorded"] == 600
    assert CliRunner().invoke(app, again).exit_code == 0
    assert {path.name for path in store.glob("*/blocks*")} == {"blocks.jsonl"}
    _assert_same_case(tmp_path / "again", alone / "case")


@pytest.mark.parametrize("at", [150, 450], ids=["rank 0", "rank 1"])
def test_a_rank_that_dies_ends_the_run_and_the_same_command_goes_on(
    at: int, evidence: tuple[Path, list[str]], alone: Path, tmp_path: Path
) -> None:
    """Kill -9 in the middle of the pass: exit code 1, one sentence, and what the other one did is kept.

    Where rank 0 died, one process goes on in place of two.
    """
    (evidence[0] / f"kill {at}").touch()
    arguments = [*evidence[1], "--out", str(tmp_path / "case")]

    died = _two(*arguments)

    assert died.returncode == 1
    assert [line for line in died.stderr.splitlines() if line.startswith("Error: ")] == [f"Error: {DIED}"]
    assert not (tmp_path / "case").exists()
    assert 0 < sum(map(recording.claimed, (tmp_path / ".case.partial").iterdir())) < 600
    if at == 150:
        assert CliRunner().invoke(app, arguments).exit_code == 0
    else:
        again = _two(*arguments)
        assert again.returncode == 0, again.stderr
    _assert_same_case(tmp_path / "case", alone / "case")
    assert not (tmp_path / ".case.partial").exists()


def test_bad_input_in_one_rank_is_said_once(evidence: tuple[Path, list[str]], tmp_path: Path) -> None:
    """In the words of a process that is alone; the other rank leaves quietly."""
    (evidence[0] / "spoil 450").touch()

    done = _two(*evidence[1], "--out", str(tmp_path / "case"))

    (evidence[0] / "spoil 450").unlink()
    assert done.returncode == 1
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert said == "Error: 'data' must hold finite numbers (got NaN or infinity in sample 450)."


@pytest.mark.parametrize(("n", "step", "size"), [(600, 20, 2), (7, 3, 2), (7, 3, 5), (1, 256, 3)])
def test_parts_are_whole_batches_and_make_up_all(n: int, step: int, size: int) -> None:
    """In order, none twice, and every rank starts where a batch of a process that is alone does."""
    parts = [Ranks(rank, size).part(n, step) for rank in range(size)]

    assert [row for part in parts for row in part] == list(range(n))
    assert all(part.start % step == 0 or not part for part in parts)
    assert parts[-1] == Ranks(0, size).part(n, step, size - 1)


def test_a_process_without_torchrun_is_alone() -> None:
    """It waits for nobody, and has all."""
    with joined() as ranks:
        assert ranks is ALONE and ranks.is_first
        ranks.wait()
        assert ranks.least(3) == 3
        assert ranks.part(5, 2) == range(5)


def test_a_closed_connection_is_one_sentence() -> None:
    """Whatever gloo says."""

    def closed() -> None:
        raise RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer")

    with pytest.raises(RankError, match=r"^Another process of this run ended .* goes on"):
        _talk(closed)
