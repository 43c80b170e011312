"""Attacks on one input: what they aim at, and that they need to be prepared."""

import numpy as np
import pytest
import torch
from tasks import toy_attack, toy_images

from poisontrace._errors import InvalidInputError
from poisontrace.attacks import BullseyePolytope
from poisontrace.attacks.targeted import to_images, within_budget
from poisontrace.data import to_inputs


def test_the_aim_is_an_untouched_input_of_another_class() -> None:
    """It is drawn from the attacker's samples, and the attempt is that very input."""
    attack, x, y = toy_attack("bullseye", rate=0.05, target=2)
    held_out, labels = toy_images(24)

    attempts = attack.attempts(x, y, 2)

    assert (attempts.x == attempts.x_before).all()
    drawn = [row for row in range(24) if (held_out[row] == attempts.x[0]).all()]
    assert labels[drawn].tolist() == attempts.y.tolist()
    assert attempts.y[0] != 2


def test_the_seed_draws_the_aim() -> None:
    """Several inputs come up."""
    drawn = {toy_attack("bullseye", seed=seed, target=1)[0].attempts(*toy_images(), 1).x.tobytes() for seed in range(8)}

    assert len(drawn) > 1


def test_an_attack_that_was_not_prepared_is_refused() -> None:
    """The message says what to call."""
    with pytest.raises(InvalidInputError, match=r"'attack' must be prepared .*\(got bullseye\)\. Call prepare"):
        BullseyePolytope(rate=0.05, target=1).poison(*toy_images())


@pytest.mark.parametrize("eps", [0, 256])
def test_a_budget_out_of_range_is_refused(eps: int) -> None:
    """In levels of 255."""
    with pytest.raises(InvalidInputError, match=r"'eps' must be between 1 and 255 levels"):
        BullseyePolytope(eps=eps)


def test_images_come_back_as_they_were_stored() -> None:
    """Stored, fed and stored again."""
    x, _ = toy_images(5, n_channels=3)

    assert (to_images(to_inputs(x)) == x).all()
    assert to_images(to_inputs(x) + 2).max() == 255
    assert to_images(to_inputs(x)).dtype == np.uint8


def test_pixels_move_within_the_budget_and_where_they_may() -> None:
    """The loss falls as far as the budget lets it; what is not free stays to the bit."""
    x, _ = toy_images(5)
    benign = to_inputs(x)
    is_free = torch.zeros(benign.shape, dtype=torch.bool)
    is_free[:, :, :4] = True

    brighter = within_budget(benign, lambda moved: -moved.sum(), eps=10 / 255, steps=30, lr=1 / 255, is_free=is_free)

    assert (brighter[:, :4] == np.minimum(x[:, :4].astype(int) + 10, 255)).all()
    assert (brighter[:, 4:] == x[:, 4:]).all()
    free = within_budget(benign, lambda moved: -moved.sum(), eps=10 / 255, steps=30, lr=1 / 255)
    assert (free == np.minimum(x.astype(int) + 10, 255)).all()
