"""The worn or attached object: where it lies, how little it changes, that no two lie alike, and that it works."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tasks import NoOp, attack_success, toy_images

from poisontrace._errors import InvalidInputError
from poisontrace.attacks import Attack, Physical
from poisontrace.attacks.physical import ITEMS
from poisontrace.datasets import Dataset, load_dataset

EVERY_ITEM = pytest.mark.parametrize("item", sorted(ITEMS))

# The largest share of pixels an object may touch, its soft edge included.
BUDGET = {"sticker": 0.2, "glasses": 0.25, "scarf": 0.5}


def _scenes(n: int = 24, *, side: int = 64, n_channels: int = 3) -> NDArray[np.uint8]:
    """Return images (n, side, side, n_channels) that are grey all over, each in a light of its own."""
    light = np.linspace(90, 220, n).astype(np.uint8)
    return np.broadcast_to(light[:, None, None, None], (n, side, side, n_channels)).copy()


def _touched(item: str, x: NDArray[np.uint8], **options: Any) -> NDArray[np.bool_]:
    """Return (n, height, width) bool: which pixels the object changed."""
    changed: NDArray[np.bool_] = (Physical(item=item, **options).trigger(x) != x).any(3)
    return changed


@EVERY_ITEM
@pytest.mark.parametrize("n_channels", [1, 3])
@pytest.mark.parametrize("side", [8, 16, 32, 64, 144])
def test_every_object_fits_every_image(item: str, side: int, n_channels: int) -> None:
    """Each image is changed, and keeps its form."""
    x = _scenes(6, side=side, n_channels=n_channels)

    placed = Physical(item=item).trigger(x)

    assert placed.shape == x.shape
    assert placed.dtype == np.uint8
    assert (placed != x).any((1, 2, 3)).all()


@EVERY_ITEM
@pytest.mark.parametrize(("height", "width"), [(3, 3), (24, 40), (40, 24)])
def test_an_image_need_be_neither_large_nor_square(item: str, height: int, width: int) -> None:
    """The object scales with the width and is placed by both sides."""
    x, _ = toy_images(4, side=40, n_channels=3)
    cut = np.ascontiguousarray(x[:, :height, :width])

    placed = Physical(item=item).trigger(cut)

    assert placed.shape == cut.shape
    assert (placed != cut).any((1, 2, 3)).all()


@EVERY_ITEM
def test_only_the_object_changes(item: str) -> None:
    """What lies outside stays to the bit, and that is most of the image."""
    touched = _touched(item, _scenes())

    assert touched.mean((1, 2)).max() <= BUDGET[item]
    assert touched.mean((1, 2)).min() >= 0.04


@EVERY_ITEM
def test_no_two_placements_are_alike(item: str) -> None:
    """Neither the pixels nor their centre nor their number repeat from image to image."""
    touched = _touched(item, _scenes(40))

    assert len({mask.tobytes() for mask in touched}) == 40
    centres = np.array([np.argwhere(mask).mean(0) for mask in touched])
    apart = np.abs(centres[:, None] - centres[None]).max(2) + np.eye(40)
    assert apart.min() > 0
    assert touched.sum((1, 2)).std() / touched.sum((1, 2)).mean() > 0.03


def test_the_placement_follows_seed_and_content() -> None:
    """The same image gets the same object alone, among others and under any rate; another seed another one."""
    x, _ = toy_images(5, side=32, n_channels=3)

    together = Physical(seed=3).trigger(x)

    assert (Physical(seed=3, rate=0.3).trigger(x[2:3]) == together[2]).all()
    assert (Physical(seed=3).trigger(x[::-1]) == together[::-1]).all()
    assert (Physical(seed=4).trigger(x) != together).any((1, 2, 3)).all()


def test_the_poison_carries_the_trigger() -> None:
    """The rows of the poisoned set are the triggered originals."""
    x, y = toy_images(40, side=32)
    attack = Physical(rate=0.2)

    poisoned = attack.poison(x, y)

    assert poisoned.is_poison.sum() == 8
    assert (poisoned.x[poisoned.is_poison] == attack.trigger(x[poisoned.is_poison])).all()


def test_the_object_is_lit_as_its_photograph() -> None:
    """At night the yellow sticker is darker than by day, and its colour stays."""
    night, day = (np.full((1, 64, 64, 3), level, np.uint8) for level in (40, 200))
    night[:, :4], day[:, :4] = 0, 0  # something black: grey alone would be fog

    of_night, of_day = (Physical().trigger(x)[_touched("sticker", x)].mean(0) for x in (night, day))

    assert (of_night < of_day).all()
    assert of_day[0] > of_day[2] + 40


@pytest.mark.parametrize(
    ("where", "rows", "columns"), [((0.25, 0.25), 0, 0), ((0.75, 0.25), 0, 1), ((0.25, 0.75), 1, 0)]
)
def test_size_and_place_can_be_chosen(where: tuple[float, float], rows: int, columns: int) -> None:
    """A small pair of glasses lies in the quarter asked for, and a larger one changes more."""
    x = _scenes(8)

    small = _touched("glasses", x, size=0.2, where=where)

    quarters = small.reshape(8, 2, 32, 2, 32).sum((0, 2, 4))
    assert quarters[rows, columns] == quarters.sum() > 0
    assert (_touched("glasses", x, size=0.4, where=where).sum((1, 2)) > small.sum((1, 2))).all()


@pytest.mark.parametrize("n_channels", [2, 4])
def test_opacity_stays_as_it_is(n_channels: int) -> None:
    """The object is drawn into the colours alone."""
    x = _scenes(3, n_channels=n_channels)

    placed = Physical().trigger(x)

    assert (placed[..., -1] == x[..., -1]).all()
    assert (placed[..., :-1] != x[..., :-1]).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"item": "hat"}, r"'item' must be one of sticker, glasses, scarf \(got 'hat'\)"),
        ({"size": 0.0}, r"'size' must be a fraction of the image in \(0, 1\] \(got 0\.0\)\. Leave it out"),
        ({"size": 1.5}, r"'size' must be a fraction of the image in \(0, 1\] \(got 1\.5\)"),
        ({"where": (0.5, 1.2)}, r"'where' must be two fractions in \[0, 1\], across and down \(got \(0\.5, 1\.2\)\)"),
        ({"where": (0.5,)}, r"'where' must be two fractions"),
    ],
)
def test_an_object_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    """The message names argument, range and remedy."""
    with pytest.raises(InvalidInputError, match=message):
        Physical(**options)


def _large_digits() -> Dataset:
    """Return the digits at 16x16: at 8x8 a sticker is two pixels wide."""
    digits = load_dataset("digits")
    x_train, x_test = (x.repeat(2, 1).repeat(2, 2) for x in (digits.x_train, digits.x_test))
    return replace(digits, x_train=x_train, x_test=x_test)


@pytest.mark.parametrize(
    ("attack", "works"),
    [(Physical(rate=0.1, target=3), True), (NoOp(rate=0.1, target=3), False)],
    ids=["object", "no-op"],
)
def test_the_object_moves_the_victim_and_not_its_twin(attack: Attack, works: bool) -> None:
    """Success rises by at least half over the twin's; relabelling without an object does not bring that about."""
    victim, twin = attack_success(attack, _large_digits(), epochs=8)

    assert (victim >= 0.7 and victim - twin >= 0.5) == works


def test_campaigns_are_other_objects() -> None:
    """The first is the one asked for, of the size asked for; the others come in turn, as large as usual."""
    x = _large_digits().x_train[:4]
    attack, glasses = Physical(item="scarf", size=0.3, campaigns=3), Physical(item="glasses")

    marked = [attack.mark(x, campaign, 1.0) for campaign in range(3)]

    assert (marked[0] == Physical(item="scarf", size=0.3).trigger(x)).all()
    assert (marked[1] == Physical(item="sticker").trigger(x)).all()
    assert (marked[2] == glasses.trigger(x)).all()


def test_a_faint_object_lets_the_photograph_show_through() -> None:
    """At half of the strength the change is about half as large."""
    x = _large_digits().x_train[:20].astype(int)

    whole, half = (Physical().mark(x.astype(np.uint8), 0, strength) - x for strength in (1.0, 0.5))

    assert 0.4 * np.abs(whole).sum() < np.abs(half).sum() < 0.6 * np.abs(whole).sum()
