"""What is printed: text from the evidence as text, on one line, and events numbered as readers count them."""

import json
from pathlib import Path

import pytest

from poisontrace.screen import new_console, one_line, plain, print_added, print_rows


def test_text_from_the_evidence_steers_no_terminal() -> None:
    """Neither by escape codes and line breaks nor by markup."""
    assert one_line("a\x1b[31mb\nc\u202ed") == "a?[31mb?c?d"
    assert plain("[bold]cat[/bold]\n") == "(bold)cat(/bold)?"


def test_rows_stand_in_one_column(capsys: pytest.CaptureFixture[str]) -> None:
    """Long values stay on one line, and colons are no emoji."""
    print_rows(new_console(), {"a": "/x/:cat:/" + 100 * "y", "long name": "2"})

    assert capsys.readouterr().out.splitlines() == ["a          /x/:cat:/" + 100 * "y", "long name  2"]


def test_events_of_a_case_are_numbered_from_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in the report and in the table of the trace."""
    answer = {"label_name": "cat", "probability": 0.75}
    event = {"label_name": "dog", "before": answer, "after": answer, "result": "corrected"}
    figures = {"accuracy": 0.9, "success": 0.5}
    added = {"events": [event, event], "accuracy_on": "10 samples", "success_on": "2 events"}
    content = {**added, "before": figures, "after": figures}
    (tmp_path / "repair.json").write_text(json.dumps(content), encoding="utf-8")

    print_added(tmp_path, "repair", as_json=False, rows={"result": "corrected"})

    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["1", "2"]
