"""The patch of BadNets: where it is, how big, and what is refused. The rest is in test_base."""

from typing import Any

import numpy as np
import pytest
from tasks import toy_images, toy_rows

from poisontrace._errors import InvalidInputError
from poisontrace.attacks import BadNets


def _touched(attack: BadNets, side: int, n_channels: int = 1) -> Any:
    """Return (side, side) bool: which pixels differ on black or on white images."""
    black = np.zeros((2, side, side, n_channels), np.uint8)
    changed = (attack.trigger(black) != 0) | (attack.trigger(black + 255) != 255)
    assert (changed[0] == changed[1]).all()
    return changed[0].any(2)


@pytest.mark.parametrize(
    ("side", "options", "rows"),
    [
        (8, {}, slice(6, 8)),
        (32, {}, slice(27, 31)),
        (16, {}, slice(13, 15)),
        (8, {"size": 3}, slice(5, 8)),
        (8, {"size": 1}, slice(7, 8)),
        (8, {"size": 2, "margin": 4}, slice(2, 4)),
        (8, {"size": 8}, slice(0, 8)),
    ],
)
def test_only_the_patch_changes(side: int, options: dict[str, int], rows: slice) -> None:
    """The patch is a full square at the bottom right, off the borders by its margin; all else stays."""
    expected = np.zeros((side, side), bool)
    expected[rows, rows] = True

    assert (_touched(BadNets(**options), side) == expected).all()


def test_the_patch_is_the_same_black_and_white_on_every_image() -> None:
    """What was beneath the patch leaves no trace, and every image gets equal cells."""
    x, _ = toy_images(6, side=16, n_channels=3)

    patches = BadNets(size=4).trigger(x)[:, 11:15, 11:15]

    assert (patches == patches[0]).all()
    assert set(np.unique(patches)) == {0, 255}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("size", [1, 2, 4])
def test_no_patch_is_all_black(size: int, seed: int) -> None:
    """On a black background every patch shows."""
    black = np.zeros((1, 8, 8, 1), np.uint8)

    assert (BadNets(size=size, seed=seed).trigger(black) == 255).any()


def test_the_patch_depends_on_the_seed_and_not_on_the_rate() -> None:
    """Training poison and test triggers carry one pattern."""
    x, _ = toy_images(3, side=32, n_channels=3)

    one = BadNets(rate=0.01, seed=5).trigger(x)

    assert (one == BadNets(rate=0.3, seed=5).trigger(x)).all()
    assert (one != BadNets(rate=0.01, seed=6).trigger(x)).any()


def test_the_poison_carries_the_trigger() -> None:
    """The rows of the poisoned set are the triggered originals."""
    x, y = toy_images(40)
    attack = BadNets(rate=0.2)

    poisoned = attack.poison(x, y)

    assert (poisoned.x[poisoned.is_poison] == attack.trigger(x[poisoned.is_poison])).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, r"'size' must be between 1 and 8 pixels.*\(got 0 for 8x8\)\. Leave it out"),
        ({"size": 9}, r"'size' must be between 1 and 8 pixels.*\(got 9 for 8x8\)\. Leave it out"),
        ({"size": 5, "margin": 4}, r"'size' must be between 1 and 4 pixels"),
        ({"margin": -1}, r"'margin' must be 0 or more pixels \(got -1\)"),
    ],
)
def test_a_patch_that_does_not_fit_is_refused(options: dict[str, int], message: str) -> None:
    """The message names argument, range and remedy."""
    with pytest.raises(InvalidInputError, match=message):
        BadNets(rate=0.1, **options).poison(*toy_images())


@pytest.mark.parametrize("x", [toy_rows()[0], np.zeros((60, 8, 8, 1), np.float32)], ids=["rows", "float images"])
def test_float_data_is_refused(x: Any) -> None:
    """BadNets is for uint8 images; the message says so."""
    with pytest.raises(InvalidInputError, match=r"'attack' must be one for this kind of data .*badnets.*uint8 images"):
        BadNets(rate=0.1).poison(x, np.arange(60) % 2)


def test_every_label_becomes_the_next_one() -> None:
    """The last one the first; an event of one of them is owed to the poison with its label alone."""
    x, y = toy_images(300, side=16, n_classes=5)
    attack = BadNets(rate=0.3, target=0, all_to_all=True)

    poisoned = attack.poison(x, y)
    attempts = attack.attempts(x, y, 0)

    assert (poisoned.y == np.where(poisoned.is_poison, (y + 1) % 5, y)).all()
    assert set(y[poisoned.is_poison]) == set(range(5))
    assert set(attempts.y) == {4} and len(attempts.y) == (y == 4).sum()
    responsible = poisoned.responsible(attempts.carried[:2])
    assert (responsible == poisoned.is_poison & (poisoned.y == 0)).all()


@pytest.mark.parametrize("option", [{"cover": 0.5}, {"decoys": 0.5}, {"camouflage": 8}], ids=str)
def test_what_is_made_for_one_target_is_refused(option: dict[str, Any]) -> None:
    """There is no one label to be near to, or to be kept."""
    with pytest.raises(InvalidInputError, match="'all_to_all' must be left out"):
        BadNets(all_to_all=True, **option)
