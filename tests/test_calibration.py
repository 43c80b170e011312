"""From a margin to a probability: it grows, and says what the committed rows say."""

from pathlib import Path

import numpy as np
import pytest

from poisontrace import calibration, rows
from poisontrace._rng import numpy_generator

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def test_the_probability_grows_with_the_margin() -> None:
    """And stays between 0 and 1, for margins that no accusation has as well."""
    margins = [0.0, 1e-9, 0.1, 0.5, 0.9, 1.0, 1.2, 2.0, 10.0, 1e9, np.inf]
    found = [calibration.p_poison(margin) for margin in margins]

    assert found == sorted(found)
    assert 0 < found[0] == found[2] < 0.1
    assert 0.9 < found[-1] == found[-3] < 1


def test_a_fit_finds_the_odds_that_made_the_data() -> None:
    """Of 4,000 margins on both sides of 1; three times as many natural mistakes change nothing."""
    rng = numpy_generator(0, "toy/margins")
    margins = np.exp(rng.normal(0, 0.7, 4000))
    is_poison = rng.random(4000) < 1 / (1 + np.exp(1 - 4 * np.log(margins) - 2 * (margins >= 1)))
    few = np.flatnonzero(is_poison | (np.arange(4000) % 3 == 0))

    for chosen in (np.arange(4000), few):
        intercept, slope, step = calibration.fit(margins[chosen].tolist(), is_poison[chosen].tolist())

        assert (intercept, step) == pytest.approx((-1, 2), abs=0.3)
        assert slope == pytest.approx(4, rel=0.1)


def test_the_constants_are_those_of_the_committed_rows() -> None:
    """Natural mistakes, and events of attacks that worked."""
    measured = [row for path in sorted(RESULTS.glob("*.jsonl")) for row in rows.read_rows(path)]
    margins, is_poison = rows.judged(measured)

    assert min(sum(is_poison), len(is_poison) - sum(is_poison)) >= 40
    constants = calibration.INTERCEPT, calibration.SLOPE, calibration.STEP
    assert calibration.fit(margins, is_poison) == pytest.approx(constants, abs=0.01)
