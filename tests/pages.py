"""Rows of results for tests, and the page that is made from them."""

import json
from pathlib import Path
from typing import Any

from poisontrace import tables


def write_page(path: Path) -> Path:
    """Write a page with all marks, and words around them."""
    marks = "\n\n".join(f"{tables.MARK.format(name)}\n{tables.MARK.format(f'end {name}')}" for name in tables.TABLES)
    path.write_text(f"# Evidence\n\n{marks}\n\nThe end.\n")
    return path


def trace_row(**changes: Any) -> dict[str, Any]:
    """Return what the tables read of a trace's row; some changes concern the plan too."""
    numbers = {"clean_accuracy": 0.97, "train_accuracy": 1.0, "attack_success": 0.95, "attack_success_twin": 0.01}
    plan = {"attack": "badnets", "dataset": "digits", "rate": 0.05}
    row = {
        **{"kind": "trace", "rule": "default", "n_train": 1437, **plan, **numbers},
        **{"n_poison": 72, "seed": 0, "event": 0, "precision": 1.0, "recall": 1.0, "n_tests": 3, "seconds": 2.0},
        **{"succeeded": True, "plan": plan},
        **changes,
    }
    return {**row, "plan": {**row["plan"], **{name: row[name] for name in plan}}}


def page_of(folder: Path, rows: list[dict[str, Any]]) -> str:
    """Return the page that is made from some rows."""
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    readme = write_page(folder / "README.md")
    tables.write_tables(folder, readme)
    return readme.read_text()


def lines_of(page: str, name: str) -> list[str]:
    """Return the lines of one table of a page, without its head."""
    return page.split(f"generated: {name} -->\n")[1].split("\n<!--")[0].splitlines()[2:]
