"""Draw the poison of each attack beside its clean original, for ``docs/attacks.md``.

``python benchmarks/draw_attacks.py`` writes ``docs/images/attacks/<name>.png``: originals above, poison below. For
``anti-forensics-<data>`` it is one original, and what each measure makes of it.
The attackers' own networks are trained if they are not in the cache yet, which takes minutes each on CIFAR-10.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from poisontrace import incidents
from poisontrace.attacks.antiforensics import AntiForensics
from poisontrace.incidents import Plan

PLANS = {
    "badnets": Plan(attack="badnets", dataset="cifar10"),
    "trojan": Plan(attack="trojan", dataset="cifar10"),
    "physical-signs": Plan(attack="physical", dataset="gtsrb"),
    "physical-faces": Plan(attack="physical", dataset="lfw", training="finetune", options={"item": "glasses"}),
    "bullseye": Plan(attack="bullseye", dataset="cifar10", rate=0.01, training="transfer"),
    "witches": Plan(attack="witches", dataset="cifar10"),
}
# What is done to one image: plain, another campaign, two at once, weak, faint, and camouflage against class and tracer.
MEASURES: tuple[dict[str, Any], ...] = (
    {},
    {"campaigns": 2},
    {"campaigns": 2, "shown": "all"},
    {"opacity": 0.4},
    {"camouflage": 16},
    {"camouflage": 16, "against": "tracer"},
)
MEASURED = {
    "anti-forensics-digits": Plan(attack="badnets", dataset="digits", rate=0.1, options={"size": 3}),
    "anti-forensics-cifar10": Plan(attack="badnets", dataset="cifar10"),
}
N_PAIRS, WIDTH, GAP = 5, 160, 4  # images in a row, screen pixels of each, white pixels between


def pairs(plan: Plan) -> NDArray[Any]:
    """Return the first poisoned images of a plan below their originals, (2, n, height, width, channels)."""
    benign = incidents.benign_dataset(plan)
    poisoned = incidents.prepared_attack(plan).poison(benign.x_train, benign.y_train)
    first = np.flatnonzero(poisoned.is_poison)[:N_PAIRS]
    return np.stack([benign.x_train[first], poisoned.x[first]])


def measured(plan: Plan, measures: tuple[dict[str, Any], ...] = MEASURES) -> NDArray[Any]:
    """Return one poisoned image before and after each measure, (1, n, height, width, channels)."""
    benign = incidents.benign_dataset(plan)
    shown = []
    for options in measures:
        attack = incidents.prepared_attack(replace(plan, options={**plan.options, **options}))
        assert isinstance(attack, AntiForensics)
        poisoned = attack.poison(benign.x_train, benign.y_train)
        if not shown:
            row = int(np.flatnonzero(poisoned.is_poison)[0])  # the measures below poison the same samples
            shown.append(benign.x_train[row])
        carried = np.arange(attack.campaigns)[None] == attack.campaigns - 1
        if attack.shown == "all":
            carried = np.ones_like(carried)
        is_moved = attack.campaigns > 1  # which campaign a sample is of is drawn, so it is marked here
        shown.append(attack.carry(benign.x_train[[row]], carried)[0] if is_moved else poisoned.x[row])
    return np.stack(shown)[None]


def draw(images: NDArray[Any]) -> Image.Image:
    """Return images (rows, n, height, width, channels) as one picture, every pixel a square."""
    n_rows, n = images.shape[:2]
    images = np.broadcast_to(images, (*images.shape[:4], 3))
    sheet = Image.new("RGB", (n * (WIDTH + GAP) - GAP, n_rows * (WIDTH + GAP) - GAP), "white")
    for row, column in np.ndindex(n_rows, n):
        tile = Image.fromarray(images[row, column]).resize((WIDTH, WIDTH), Image.Resampling.NEAREST)
        sheet.paste(tile, (column * (WIDTH + GAP), row * (WIDTH + GAP)))
    return sheet


if __name__ == "__main__":
    folder = Path(__file__).parents[1] / "docs" / "images" / "attacks"
    folder.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or [*PLANS, *MEASURED]:
        images = pairs(PLANS[name]) if name in PLANS else measured(MEASURED[name])
        draw(images).quantize(128).save(folder / f"{name}.png", optimize=True)
        print(folder / f"{name}.png")
