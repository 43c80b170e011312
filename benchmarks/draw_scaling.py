"""Draw time and memory against the number of samples, both in powers of ten, for ``docs/scaling.md``.

``python benchmarks/draw_scaling.py`` reads ``results/scaling.jsonl`` and writes ``docs/images/scaling.svg``.
"""

from pathlib import Path

import matplotlib

from poisontrace.costs import exponent
from poisontrace.rows import read_rows

matplotlib.use("svg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Draw the two curves, and what growth in proportion would look like."""
    rows = read_rows(ROOT / "benchmarks" / "results" / "scaling.jsonl")
    sizes = [row["n"] for row in rows]
    plt.rcParams |= {"svg.hashsalt": "scaling", "svg.fonttype": "none", "font.family": "sans-serif"}
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for panel, title, names in (
        (panels[0], "seconds of the processor", {"cpu_seconds": "search and unlearning"}),
        (panels[1], "MB", {"own_bytes": "own memory", "peak_bytes": "with mapped files"}),
    ):
        for name, label in names.items():
            values = [row[name] / (1e6 if name.endswith("bytes") else 1) for row in rows]
            panel.loglog(sizes, values, "o-", label=f"{label}, exponent {exponent(rows, name):.2f}")
        first = next(iter(names))
        scale = (rows[0][first] / (1e6 if first.endswith("bytes") else 1)) / sizes[0]
        panel.loglog(sizes, [scale * size for size in sizes], ":", color="grey", label="in proportion to the samples")
        panel.set_xlabel("samples")
        panel.set_ylabel(title)
        panel.grid(alpha=0.3)
        panel.legend(frameon=False)
    path = ROOT / "docs" / "images" / "scaling.svg"
    figure.savefig(path, metadata={"Date": None})
    print(path)


if __name__ == "__main__":
    main()
