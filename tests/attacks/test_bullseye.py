"""Bullseye Polytope: the budget, the bullseye, and that a victim falls for it while a no-op fails."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tasks import DIGITS_PLAN, toy_attack

from poisontrace import incidents
from poisontrace._errors import InvalidInputError, PoisontraceError
from poisontrace.attacks import BullseyePolytope
from poisontrace.attacks.targeted import Targeted
from poisontrace.data import to_inputs

SEEDS = range(5)


def test_no_pixel_leaves_the_budget() -> None:
    """The largest change is at most eps levels, and the poison uses it."""
    for eps in (4, 30):
        attack, x, y = toy_attack("bullseye", rate=0.1, eps=eps)

        poisoned = attack.poison(x, y)

        change = np.abs(poisoned.x.astype(int) - x)[poisoned.is_poison]
        assert change.max() <= eps
        assert change.max() >= eps // 2


@pytest.mark.parametrize(("layers", "blocks"), [(1, (-1,)), (3, (-1, -2, -3)), (99, (-1, -2))])
def test_the_poisons_surround_the_aim(layers: int, blocks: tuple[int, ...]) -> None:
    """The mean of their features comes much nearer to the aim's than that of the same images before, at each layer."""
    attack, x, y = toy_attack("bullseye", rate=0.1, eps=60, layers=layers)
    assert isinstance(attack, Targeted)
    poisoned = attack.poison(x, y)
    network = attack.ready().models[0]

    def distance(images: NDArray[Any], block: int) -> float:
        extractor = network[: len(network) - 1 + block + 1]
        with torch.no_grad():
            gap = extractor(to_inputs(images)).mean(0) - extractor(to_inputs(attack.ready().x))[0]
        return float(gap.norm())

    for block in blocks:
        most = 0.5 if block == -1 else 0.7
        assert distance(poisoned.x[poisoned.is_poison], block) < most * distance(x[poisoned.is_poison], block)


@dataclass(frozen=True, kw_only=True)
class _NoOp(BullseyePolytope):
    """Aims, but leaves the images as they are but for one level of one pixel."""

    def craft(self, x: NDArray[Any], y: NDArray[np.int64], chosen: NDArray[np.int64], target: int) -> NDArray[Any]:
        """Return hardly changed images."""
        images = x[chosen].copy()
        images[:, 0, 0] ^= 1
        return images


def _n_successes(attack: type[BullseyePolytope]) -> tuple[int, int]:
    """Return how often a transfer victim on digits, and its twin, read the aim as the target."""
    won = []
    for seed in SEEDS:
        plan = replace(DIGITS_PLAN, attack="bullseye", training="transfer", seed=seed, epochs=60)
        try:
            facts = incidents.make(plan, attack=attack(rate=0.05, seed=seed, eps=120)).facts
        except PoisontraceError:
            continue
        won.append((facts["attack_success"], facts["attack_success_twin"]))
    return sum(int(victim) for victim, _ in won), sum(int(twin) for _, twin in won)


def test_the_attack_really_works_and_a_no_op_does_not() -> None:
    """At least 3 of 5 victims fall, no twin does; images left as they are move nobody."""
    victims, twins = _n_successes(BullseyePolytope)
    assert victims >= 3
    assert twins == 0
    assert _n_successes(_NoOp) == (0, 0)


@pytest.mark.parametrize(
    ("option", "value", "rule"), [("steps", 0, "at least 1"), ("layers", 0, "at least 1"), ("lr", 0.0, "above 0")]
)
def test_options_that_leave_nothing_to_do_are_refused(option: str, value: float, rule: str) -> None:
    """The message names the option and the way out."""
    with pytest.raises(InvalidInputError, match=rf"'{option}' must be {rule} \(got {value}\)\. Leave it out"):
        BullseyePolytope(**{option: value})
