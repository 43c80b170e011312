"""Rows of results: reading them, and what misleads a tracer."""

from pathlib import Path

import pytest

from poisontrace import rows
from poisontrace._errors import InvalidInputError
from poisontrace.attacks.antiforensics import AntiForensics
from poisontrace.attacks.camouflage import Camouflage


def test_rows_that_are_damaged_are_not_passed_over(tmp_path: Path) -> None:
    """Only the last line may be cut off; a broken one before it would be lost in silence."""
    (tmp_path / "tiny.jsonl").write_text('{"kind": "start"}\n{"kin\n{"kind": "start"}\n')

    with pytest.raises(InvalidInputError, match=r"'results' must hold one JSON row a line .*line 2 of 'tiny\.jsonl'"):
        rows.read_rows(tmp_path / "tiny.jsonl")


def test_every_option_that_misleads_is_known_to_the_tables() -> None:
    """Else its rows would pass for those of an attack as published; so would a weak trigger, or no one target."""
    options = {*AntiForensics.options(), *Camouflage.options(), "opacity", "all_to_all"}

    assert set(rows.MEASURES) == options
