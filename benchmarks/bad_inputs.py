"""Give the installed command every bad input of the tests' table and keep its answers as rows.

``.venv/bin/python benchmarks/bad_inputs.py`` takes a few minutes, most of them for importing torch; with ``--new`` it
asks only for what has no row yet. The rows go to ``results/bad-inputs.jsonl``; ``poisontrace bench --tables-only``
makes the table. Exit code 1 if any answer was not exit code 2, or anything was left behind on the disk.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from bad_inputs import BAD_INPUTS, snapshot, write_incident  # noqa: E402

COMMAND = Path(sys.executable).with_name("poisontrace")


def answer(name: str) -> tuple[dict[str, object], bool]:
    """Run one bad input in a folder of its own; return its row and whether the answer was as it must be."""
    with tempfile.TemporaryDirectory() as folder:
        write_incident(Path(folder))
        arguments = BAD_INPUTS[name](Path(folder))
        before = snapshot(Path(folder))
        done = subprocess.run(
            [COMMAND, *arguments],
            capture_output=True,
            text=True,
            cwd=folder,
            env={**os.environ, "POISONTRACE_CACHE": f"{folder}.cache"},
        )
        message = (done.stderr.splitlines() or [""])[-1].replace(folder, "...")
        is_right = (done.returncode, done.stdout, snapshot(Path(folder))) == (2, "", before)
        is_right = is_right and message.startswith("Error: ") and "Traceback" not in done.stderr
        return {"kind": "bad-input", "case": name, "code": done.returncode, "message": message}, is_right


def main() -> int:
    """Run the whole table and write the rows."""
    results = HERE / "results" / "bad-inputs.jsonl"
    known = {}
    if "--new" in sys.argv:
        known = {row["case"]: row for row in map(json.loads, results.read_text("utf-8").splitlines())}
    rows, wrong = [], []
    for name in BAD_INPUTS:
        row, is_right = (known[name], True) if name in known else answer(name)
        rows.append(row)
        wrong += [] if is_right else [name]
        print(f"{'ok   ' if is_right else 'WRONG'} {name}: {row['message']}", file=sys.stderr, flush=True)
    results.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} bad inputs, {len(wrong)} answered wrongly")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
