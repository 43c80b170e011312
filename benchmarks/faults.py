"""Let every fault of the tests' table happen and keep what came of it as rows.

``.venv/bin/python benchmarks/faults.py`` takes a minute or two. The rows go to ``results/faults.jsonl``; ``poisontrace
bench --tables-only`` makes the table. Run it as root, or the faults that need a file system of their own are left out
and the rows stay as they were. Exit code 1 if any fault lost or changed anything.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    """Run the whole table and write the rows."""
    with tempfile.TemporaryDirectory() as folder:
        script = HERE.parent / "tests" / "faults.py"
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # processes that fork must not have others
        command = [sys.executable, str(script), f"{folder}/faults"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=one_thread)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    if skipped := [row["case"] for row in rows if "skipped" in row]:
        print(f"Left out, run as root: {', '.join(skipped)}", file=sys.stderr)
        return 1
    kept = ("kind", "case", "code", "message", "n_kept", "is_same")
    lines = [json.dumps({key: row[key] for key in kept}) + "\n" for row in rows]
    (HERE / "results" / "faults.jsonl").write_text("".join(lines), encoding="utf-8")
    wrong = [row["case"] for row in rows if not row["is_same"] or row["hidden"]]
    print(f"{len(rows)} faults, {len(wrong)} of them lost or changed something: {', '.join(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
