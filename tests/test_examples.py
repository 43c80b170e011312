"""The examples are run as a user would run them."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_ends_in_a_poison_verdict(example: Path) -> None:
    """Every example runs to its end and finds the poison it planted."""
    done = subprocess.run([sys.executable, str(example)], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert "poison" in done.stdout
