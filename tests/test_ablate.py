"""Leaving out one rule at a time: each rule is where it is said to be, and comes back."""

import sys
from pathlib import Path

import pytest

from poisontrace import bench, parting
from poisontrace.incidents import Incident

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import ablate


def test_a_rule_that_is_left_out_is_left_out_inside_the_block_only() -> None:
    """Whatever it is: a function, a method, or what is worked out once."""
    known = [vars(owner)[name] for rule in ablate.RULES for owner, name in rule.places]

    with ablate.patched(ablate.RULES, lambda rule, function: lambda *_, **__: rule.name):
        assert parting._carries() == "an event that carries both triggers"
        assert ablate.Kinds.standing() == "kinds held against those of other labels"
        assert ablate.Sight(None, 0, None).contrasted == "coordinates beside samples outside"

    assert [vars(owner)[name] for rule in ablate.RULES for owner, name in rule.places] == known


def test_a_trace_is_repeated_without_rules_that_said_something(
    two_campaigns: Incident, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the one that parts campaigns the poison of both is accused; without a silent one nothing changes."""
    names = ("parts of other campaigns", "marks of rows")
    monkeypatch.setattr(ablate, "RULES", tuple(rule for rule in ablate.RULES if rule.name in names))

    with_all, without = ablate.ablated(bench.Subject(two_campaigns, "cpu"), "poison", 0)

    assert (with_all["rule"], without["rule"]) == ("", "parts of other campaigns")
    assert with_all["precision"] == with_all["recall"] == without["recall"] == 1
    assert without["precision"] == pytest.approx(0.5, abs=0.05)
