"""``python -m poisontrace`` is the command."""

import subprocess
import sys


def test_the_module_is_the_command() -> None:
    """It answers as the command does, exit code included."""
    done = subprocess.run([sys.executable, "-m", "poisontrace", "list"], capture_output=True, text=True, check=True)
    wrong = subprocess.run([sys.executable, "-m", "poisontrace", "trce"], capture_output=True, text=True, check=False)

    assert "badnets" in done.stdout
    assert wrong.returncode == 2
