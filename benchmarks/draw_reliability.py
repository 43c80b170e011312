"""Draw what was stated against what was so: the probability of poison of each event, and the score of each sample.

``python benchmarks/draw_reliability.py`` reads all rows and writes ``docs/images/reliability.svg``.
"""

import math
from pathlib import Path

import matplotlib

from poisontrace.rows import read_rows, reliability, scored

matplotlib.use("svg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Draw both, with how many stand behind each point."""
    rows = [row for path in sorted((ROOT / "benchmarks" / "results").glob("*.jsonl")) for row in read_rows(path)]
    plt.rcParams |= {"svg.hashsalt": "reliability", "svg.fonttype": "none", "font.family": "sans-serif"}
    figure, panels = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
    events = [
        (stated, share, of_natural + of_poison)
        for _, _, of_natural, of_poison, stated, share in reliability(rows)
        if not math.isnan(share)
    ]
    samples = [
        (low + 0.05, poison / (poison + others), poison + others)
        for low, poison, others in scored(rows)
        if poison + others
    ]
    for panel, title, points in (
        (panels[0], "stated probability that an event is of poison", events),
        (panels[1], "score of a sample", samples),
    ):
        panel.plot([0, 1], [0, 1], ":", color="grey", label="as stated")
        panel.plot(*zip(*((x, y) for x, y, _ in points), strict=True), "o-", label="was poison")
        for x, y, n in points:
            # Above the point, or below where that would leave the panel.
            panel.annotate(
                f"{n:,}", (x, y), (0, -14 if y > 0.9 else 7), textcoords="offset points", ha="center", fontsize=7
            )
        panel.set(xlabel=title, ylabel="share that was poison")
        panel.set(xlim=(-0.06, 1.06), ylim=(-0.06, 1.06))
        panel.grid(alpha=0.3)
        panel.legend(frameon=False, loc="center right")
    path = ROOT / "docs" / "images" / "reliability.svg"
    figure.savefig(path, metadata={"Date": None})
    print(path)


if __name__ == "__main__":
    main()
