"""Plots: the same bytes for the same numbers, in the colours of the page."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from poisontrace.plots import MAX_POINTS, OTHERS, RESPONSIBLE, histogram, plane

SCORES = np.linspace(0, 1, 50)
POISON = np.arange(40, 50)
POINTS = np.random.default_rng(0).standard_normal((50, 2))


@pytest.mark.parametrize(
    "draw",
    [lambda: histogram(SCORES, POISON), lambda: plane(POINTS, np.isin(np.arange(50), POISON))],
    ids=["histogram", "plane"],
)
def test_a_plot_is_the_same_each_time(draw: object) -> None:
    """Well-formed SVG without a date, whose colours the style sheet decides."""
    assert callable(draw)
    svg = draw()

    assert svg == draw()
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert OTHERS not in svg and RESPONSIBLE not in svg and "#000000" not in svg
    assert {"var(--control)", "var(--event)"} <= set(re.findall(r"var\(--\w+\)", svg))
    assert "<script" not in svg and "<dc:date>" not in svg


def test_a_reader_s_style_changes_nothing() -> None:
    """The evidence looks alike everywhere, and the style is left as it was."""
    import matplotlib

    before = histogram(SCORES, POISON)
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        assert histogram(SCORES, POISON) == before
        assert matplotlib.rcParams["font.size"] == 30


def test_of_many_points_an_even_spread_is_drawn() -> None:
    """All of the rarer kind, and as many of the other as fit."""
    n = 3 * MAX_POINTS
    points = np.stack([np.linspace(0, 1, n), np.zeros(n)], 1)

    svg = plane(points, np.arange(n) < 7)

    # One use of the marker for each point, and one in the legend.
    uses = [len(re.findall("<use", group)) for group in re.split(r'<g id="line2d_\d+">', svg)]
    assert MAX_POINTS in uses and 7 in uses


def test_a_map_without_others_is_drawn() -> None:
    """A label may hold nothing else."""
    assert "<svg" in plane(POINTS, np.ones(50, bool))
