"""Plots of the report as inline SVG: the same bytes for the same numbers, in colours that the page's style decides."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Matplotlib wants colours; the style sheet replaces these two, for light and for dark.
OTHERS, RESPONSIBLE = "#010203", "#010204"
MAX_POINTS = 2000  # of each kind on a map: more only cover each other


def histogram(scores: NDArray[Any], poison: NDArray[np.int64]) -> str:
    """Return the distribution of scores (n,), those of the responsible samples apart."""
    with _figure(4.6, 2.2) as (axes, svg):
        is_poison = np.zeros(len(scores), bool)
        is_poison[poison] = True
        axes.hist(
            [scores[~is_poison], scores[is_poison]],
            bins=np.linspace(0, 1, 26).tolist(),
            color=[OTHERS, RESPONSIBLE],
            label=["other samples", "responsible"],
        )
        axes.set(yscale="log", xlim=(0, 1), ylim=(0.6, None), xlabel="confidence that a sample is responsible")
        axes.set_ylabel("samples (log scale)")
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.minorticks_off()
        if is_poison.any():
            axes.legend(frameon=False, loc="upper center")
    return svg[0]


def plane(points: NDArray[Any], is_poison: NDArray[np.bool_]) -> str:
    """Return samples in two dimensions (n, 2), the responsible ones marked; of many, an even spread."""
    with _figure(4.6, 3.2) as (axes, svg):
        for kind, colour, marker, label in (
            (~is_poison, OTHERS, "o", "other samples"),
            (is_poison, RESPONSIBLE, "D", "responsible"),  # another shape, for eyes and prints without colours
        ):
            rows = np.flatnonzero(kind)
            rows = (
                rows[np.linspace(0, len(rows) - 1, MAX_POINTS).round().astype(int)] if len(rows) > MAX_POINTS else rows
            )
            axes.plot(*points[rows].T, marker, color=colour, label=label, markersize=2.6, alpha=0.6, markeredgewidth=0)
        axes.set(xlabel="from other samples, at 0, to responsible ones, at 1", ylabel="what else varies most")
        axes.margins(0.04, 0.06)
        axes.legend(frameon=False, loc="upper center", ncols=2, bbox_to_anchor=(0.5, 1.13))
    return svg[0]


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Any, list[str]]]:
    """Yield the axes of a figure and a list that holds its SVG when the block has ended."""
    import matplotlib
    from matplotlib.figure import Figure

    svg: list[str] = []
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # the reader's own style must not change the evidence
        matplotlib.rcParams.update({"svg.hashsalt": "poisontrace", "svg.fonttype": "none", "font.size": 8})
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        yield axes, svg
        axes.spines[["top", "right"]].set_visible(False)
        stream = io.StringIO()
        figure.savefig(
            stream, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    text = stream.getvalue()
    text = text[text.index("<svg") :].replace(OTHERS, "var(--control)").replace(RESPONSIBLE, "var(--event)")
    svg.append(text.replace("#000000", "currentColor"))
