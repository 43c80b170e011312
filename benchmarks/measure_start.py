"""Clone the repository into a new folder and time what a newcomer does first: make setup, make demo, make test.

``.venv/bin/python benchmarks/measure_start.py`` takes as long as these do. Only what is committed is cloned;
data sets are found through ``POISONTRACE_DATA``. The one row goes to ``results/start.jsonl``; ``poisontrace bench
--tables-only`` makes the table.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "start.jsonl"


def make(target: str, folder: Path, environment: dict[str, str]) -> tuple[float, str]:
    """Run a target of the Makefile; return its seconds and what it printed, which is also shown as it comes."""
    print(f"make {target}", file=sys.stderr, flush=True)
    start = time.perf_counter()
    process = subprocess.Popen(
        ["make", target], cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    printed = []
    assert process.stdout is not None
    for line in process.stdout:
        printed.append(line)
        print(f"    {line}", end="", file=sys.stderr, flush=True)
    if process.wait() != 0:
        sys.exit(f"make {target} failed with exit code {process.returncode}; {RESULT.name} is left as it was.")
    return time.perf_counter() - start, "".join(printed)


def main() -> None:
    """Clone, measure and write the row."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "poisontrace"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
        # The victims of the demo are to be trained, and our own package and virtual environment must not help.
        hidden = ("PYTHONPATH", "VIRTUAL_ENV", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        environment["POISONTRACE_CACHE"] = str(Path(temporary) / "cache")
        if "POISONTRACE_DATA" in environment:  # the clone lies elsewhere, so a relative path would lead nowhere
            environment["POISONTRACE_DATA"] = str(Path(environment["POISONTRACE_DATA"]).resolve())

        setup_seconds, _ = make("setup", folder, environment)
        demo_seconds, _ = make("demo", folder, environment)
        truth = json.loads((folder / "demo" / "case" / "trace.json").read_text(encoding="utf-8"))["truth"]
        test_seconds, printed = make("test", folder, environment)
    row = {
        "kind": "start",
        "setup_seconds": round(setup_seconds, 1),
        "demo_seconds": round(demo_seconds, 1),
        "precision": truth["precision"],
        "recall": truth["recall"],
        "test_seconds": round(test_seconds, 1),
        # "700 passed, 3 deselected in 40.00s"
        "tests": next(line for line in reversed(printed.splitlines()) if " in " in line).strip("= "),
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(row) + "\n", encoding="utf-8")
    print(json.dumps(row))


if __name__ == "__main__":
    main()
