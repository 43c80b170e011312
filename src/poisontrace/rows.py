"""Rows of results, one measurement each: how they are read, what counts among them, and how they are shown.

A results file holds one JSON row a line.
"""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from poisontrace._errors import InvalidInputError
from poisontrace.calibration import p_poison

Row = dict[str, Any]
Groups = dict[tuple[Any, ...], list[Row]]

# How a victim was trained whose row does not say it, and what a plan may change about it and the network.
TRAINING = "scratch"
CHANGES = ("wrong_labels", "model", "width", "epochs", "weight_decay", "smoothing")
# Options of attacks that are there to mislead a tracer, and what they are for; of several the first one counts.
MEASURES = {
    "shown": "framing",
    "planted": "framing",
    "decoys": "framing",
    "campaigns": "dispersal",
    "all_to_all": "dispersal",
    "camouflage": "camouflage",
    "against": "camouflage",
    "cover": "camouflage",
    "opacity": "dilution",
    "faint": "dilution",
}
EDGES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)  # of the probability of poison
# Of the attempts, from which on an attack still works in spite of what its measure costs, and at most of those on a
# network that never saw the poison.
STILL_WORKS, MAX_SUCCESS_OF_TWIN = 0.5, 0.1
DASH = "–"  # for what nobody measured


def read_rows(path: Path) -> list[Row]:
    """Read the rows of one results file; a last line that was cut off is dropped.

    Raises:
        InvalidInputError: if another line is no row.
    """
    if not path.is_file():
        return []
    rows = []
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or "kind" not in row:
                raise ValueError("another thing")
            rows.append(row)
        except ValueError as error:
            if number < len(lines):
                raise InvalidInputError(
                    f"'results' must hold one JSON row a line (got another thing in line {number} of {path.name!r}). "
                    "Remove the line to have it measured again."
                ) from error
    return rows


def grouped(rows: Iterable[Row], key: Callable[[Row], tuple[Any, ...]]) -> Groups:
    """Return the rows of each value of a key, in the order they came."""
    groups: Groups = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups


def training_of(row: Row) -> str:
    """Return how a row's victim was trained, and what is not as usual about it."""
    plan = row["plan"]
    return ", ".join([plan.get("training", TRAINING), *changes_of(row)])


def changes_of(row: Row) -> list[str]:
    """Return what is not as usual about a row's network and its training."""
    named = {name: row["plan"][name] for name in CHANGES if name in row["plan"]}
    return [str(value) if name == "model" else f"{name.replace('_', ' ')} {value}" for name, value in named.items()]


def measure_of(row: Row) -> str:
    """Return what misleads a tracer in a row's attack; empty if nothing does."""
    return next((MEASURES[name] for name in measures_of(row)), "")


def attack_of(row: Row) -> str:
    """Return a row's attack with all that is not as usual about it."""
    training = row["plan"].get("training", TRAINING)
    unusual = [*([] if training == TRAINING else [training]), *changes_of(row)]
    return ", ".join([row["attack"], *unusual, *(f"{name} {value}" for name, value in measures_of(row).items())])


def measures_of(row: Row) -> dict[str, Any]:
    """Return the options by which a row's attack misleads a tracer."""
    options = row.get("plan", {}).get("options", {})
    return {name: options[name] for name in MEASURES if name in options}


def victim_of(row: Row) -> tuple[str, int]:
    """Return what tells victims apart; a row may be older than some fields of a plan."""
    return json.dumps({"training": TRAINING, "options": {}, **row["plan"]}, sort_keys=True), row["seed"]


def unique(rows: Iterable[Row]) -> list[Row]:
    """Return the rows without those that several grids asked for."""
    kept: dict[Any, Row] = {}
    for position, row in enumerate(rows):
        key = (victim_of(row), row["kind"], row["rule"], row["event"]) if "plan" in row else position
        kept.setdefault(key, row)
    return list(kept.values())


def is_sound(row: Row) -> bool:
    """Tell whether a row is a trace of a victim on which the attack succeeded; no other counts in a mean."""
    return bool(row["kind"] == "trace" and row["succeeded"])


def still_works(row: Row) -> bool:
    """Tell whether a row is a trace of a victim on which a measure leaves the attack half of its attempts or more."""
    if row["kind"] != "trace":
        return False
    return bool(row["attack_success"] >= STILL_WORKS and row["attack_success_twin"] <= MAX_SUCCESS_OF_TWIN)


def is_judged(row: Row) -> bool:
    """Whether a row says how well the conditions of an accusation were met, and the truth is beyond dispute."""
    if row["kind"] not in ("clean", "trace") or row["rule"] != "default" or "margin" not in row.get("statistics", {}):
        return False
    return row["kind"] == "clean" or (row["succeeded"] and not measures_of(row))


def judged(rows: Iterable[Row]) -> tuple[list[float], list[bool]]:
    """Return the margin of each event that the default rule traced, and whether it was due to poison.

    Natural mistakes of networks trained without poison, and events of attacks that worked, without measures against
    tracing; rows of before there were margins are left out.
    """
    chosen = [row for row in unique(rows) if is_judged(row)]
    return [row["statistics"]["margin"] for row in chosen], [row["kind"] == "trace" for row in chosen]


def mean_of(rows: Iterable[Row], name: str) -> float:
    """Return the mean of one figure."""
    return float(statistics.mean(row[name] for row in rows))


def worst_of(rows: list[Row]) -> str:
    """Return precision and recall of the worst trace."""
    worst = min(rows, key=lambda row: (min(row["precision"], row["recall"]), row["precision"] + row["recall"]))
    return f"{worst['precision']:.3f} / {worst['recall']:.3f}"


def planted_share(row: Row) -> float:
    """Return the fraction of what a trace found that is poison, be it another campaign's; what is left is innocent."""
    return float(row["precision"] + row.get("n_found_of_others", 0) / max(1, row.get("n_found", 0)))


def task_of(row: Row) -> str:
    """Return what a measure is added to: the rest of the plan."""
    plan = {"training": TRAINING, "options": {}, **row["plan"]}
    options = {name: value for name, value in plan["options"].items() if name not in MEASURES}
    return json.dumps({**plan, "options": options}, sort_keys=True)


def reliability(rows: Iterable[Row]) -> list[tuple[float, float, int, int, float, float]]:
    """Return how often events were poison, for each range of the probability that the verdict states.

    As if there were as many natural mistakes as events of poison.

    Returns:
        both ends of each range, natural mistakes and events of poison in it, the mean stated, and the share of poison;
        the last two are NaN where nothing is in it.
    """
    margins, is_poison = judged(rows)
    probabilities = [p_poison(margin) for margin in margins]
    n_poison = sum(is_poison)
    found = []
    for low, high in pairwise(EDGES):
        inside = [
            (probability, truth)
            for probability, truth in zip(probabilities, is_poison, strict=True)
            if low <= probability < high or probability == high == 1
        ]
        of_poison = sum(truth for _, truth in inside)
        of_natural = len(inside) - of_poison
        share = of_poison / max(1, n_poison)
        share_of_all = share + of_natural / max(1, len(is_poison) - n_poison)
        stated = statistics.mean(probability for probability, _ in inside) if inside else math.nan
        found.append((low, high, of_natural, of_poison, stated, share / share_of_all if inside else math.nan))
    return found


def scored(rows: Iterable[Row]) -> list[tuple[float, int, int]]:
    """Return where each range of the score starts, and how many samples in it are poison and are not."""
    bins = [row["score_bins"] for row in rows if is_sound(row) and row["rule"] == "default" and "score_bins" in row]
    n_bins = len(bins[0]["poison"]) if bins else 0
    return [
        (place / n_bins, *(sum(row[name][place] for row in bins) for name in ("poison", "others")))
        for place in range(n_bins)
    ]


def as_table(head: Iterable[str], lines: Iterable[Iterable[Any]]) -> str:
    """Return a table in Markdown; fractions have three digits."""
    head = list(head)
    shown = [
        [f"{cell:.3f}" if isinstance(cell, float) else " ".join(str(cell).split()) for cell in line] for line in lines
    ]
    shown = [[cell.replace("|", "\\|") for cell in cells] for cells in shown]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *shown))
