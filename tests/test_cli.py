"""The command line: what it answers to sound and to bad input, on which stream, and what it leaves behind."""

import re
from pathlib import Path

import pytest
from bad_inputs import BAD_INPUTS, snapshot, write_incident
from typer.testing import CliRunner

from poisontrace.cli import app

run = CliRunner().invoke


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input_is_one_sentence_and_exit_code_2(name: str, tmp_path: Path) -> None:
    """The last line of stderr names the argument, the rule and the way out; stdout and the disk stay as they were."""
    write_incident(tmp_path)
    arguments = BAD_INPUTS[name](tmp_path)
    before = snapshot(tmp_path)

    done = run(app, arguments)

    *progress, message = done.stderr.removesuffix("\n").split("\n")
    assert (done.exit_code, done.stdout) == (2, "")
    assert re.fullmatch(
        r"Error: '[a-z_: -]+' must .+ \(got .+\)\. [A-Za-z].+\.|Error: '[a-z_]+' must be one of .+", message
    )
    assert not any(line.startswith("Error") or "Traceback" in line for line in progress)
    assert all(character.isprintable() or character == "\n" for character in done.stderr)
    assert snapshot(tmp_path) == before
