"""The nouns: frozen and documented."""

import dataclasses
import inspect

import numpy as np
import pytest

from poisontrace import _types

NOUNS = [
    noun for _, noun in inspect.getmembers(_types, dataclasses.is_dataclass) if noun.__module__ == "poisontrace._types"
]


@pytest.mark.parametrize("noun", NOUNS, ids=lambda noun: noun.__name__)
def test_a_noun_is_frozen_and_has_a_docstring(noun: type) -> None:
    """Evidence cannot be edited after the fact."""
    assert noun.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert noun.__doc__ and not noun.__doc__.startswith(f"{noun.__name__}(")


@pytest.mark.parametrize("noun", NOUNS, ids=lambda noun: noun.__name__)
def test_every_field_is_explained(noun: type) -> None:
    """The docstring names each field of its noun."""
    missing = [field.name for field in dataclasses.fields(noun) if field.name not in str(noun.__doc__)]

    assert missing == []


def test_a_trace_has_no_truth_field() -> None:
    """The tracer's result cannot carry ground truth."""
    names = {field.name for field in dataclasses.fields(_types.Trace)}

    assert not names & {"truth", "is_poison", "precision", "recall"}


def test_a_rise_is_after_minus_before() -> None:
    """The two rises of a test are differences of losses."""
    test = _types.Losses(event_before=0.5, event_after=2.0, control_before=0.25, control_after=0.5)

    assert (test.event_rise, test.control_rise) == (1.5, 0.25)


@pytest.mark.parametrize(
    ("verdict", "statistics", "error"),
    [
        ("poison", {"p_poison": 0.75}, 0.25),
        ("no-poison", {"p_poison": 0.75}, 0.75),
        ("inconclusive", {"p_poison": 0.75}, None),  # it claims nothing
        ("poison", {}, None),  # the paper's rule knows no probability
    ],
)
def test_the_error_is_that_of_the_verdict(
    verdict: _types.Verdict, statistics: dict[str, float], error: float | None
) -> None:
    """The probability of the other thing."""
    assert _types.Finding(0, 0.9, verdict, np.array([], np.int64), statistics).error == error


def test_suspects_are_whom_no_event_holds_responsible() -> None:
    """Of all events together, each once."""
    found = [([], [1, 4, 5]), ([4, 6], []), ([], [1, 7])]
    findings = [_types.Finding(0, 0.9, "poison", np.array(p, int), {}, np.array(s, int)) for p, s in found]

    assert _types.suspects_of(findings).tolist() == [1, 5, 7]
    assert _types.suspects_of([]).tolist() == []
