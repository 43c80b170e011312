"""Draw the poison of each attack beside its clean original, for ``docs/attacks.md``.

``python benchmarks/draw_attacks.py`` writes ``docs/images/attacks/<name>.png``: originals above, poison below.
The attackers' own networks are trained if they are not in the cache yet, which takes minutes each on CIFAR-10.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from poisontrace import incidents
from poisontrace.incidents import Plan

PLANS = {
    "badnets": Plan(attack="badnets", dataset="cifar10"),
    "trojan": Plan(attack="trojan", dataset="cifar10"),
    "physical-signs": Plan(attack="physical", dataset="gtsrb"),
    "physical-faces": Plan(attack="physical", dataset="lfw", training="finetune", options={"item": "glasses"}),
    "bullseye": Plan(attack="bullseye", dataset="cifar10", rate=0.01, training="transfer"),
    "witches": Plan(attack="witches", dataset="cifar10"),
}
N_PAIRS, WIDTH, GAP = 5, 160, 4  # images in a row, screen pixels of each, white pixels between


def pairs(plan: Plan) -> NDArray[Any]:
    """Return the first poisoned images of a plan below their originals, (2, n, height, width, channels)."""
    benign = incidents.benign_dataset(plan)
    poisoned = incidents.prepared_attack(plan).poison(benign.x_train, benign.y_train)
    first = np.flatnonzero(poisoned.is_poison)[:N_PAIRS]
    return np.stack([benign.x_train[first], poisoned.x[first]])


def draw(images: NDArray[Any]) -> Image.Image:
    """Return images (rows, n, height, width, channels) as one picture, every pixel a square."""
    n_rows, n = images.shape[:2]
    sheet = Image.new("RGB", (n * (WIDTH + GAP) - GAP, n_rows * (WIDTH + GAP) - GAP), "white")
    for row, column in np.ndindex(n_rows, n):
        tile = Image.fromarray(images[row, column]).resize((WIDTH, WIDTH), Image.Resampling.NEAREST)
        sheet.paste(tile, (column * (WIDTH + GAP), row * (WIDTH + GAP)))
    return sheet


if __name__ == "__main__":
    folder = Path(__file__).parents[1] / "docs" / "images" / "attacks"
    folder.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or PLANS:
        draw(pairs(PLANS[name])).quantize(128).save(folder / f"{name}.png", optimize=True)
        print(folder / f"{name}.png")
