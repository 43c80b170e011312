"""What every registered attack keeps to, and what the base refuses."""

import inspect
from dataclasses import FrozenInstanceError, dataclass, fields
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tasks import NoOp, attack_success, attack_works, toy_attack, toy_images

from poisontrace._errors import InvalidInputError
from poisontrace.attacks import ATTACKS, Attack
from poisontrace.datasets import load_dataset

EVERY_ATTACK = pytest.mark.parametrize("name", sorted(ATTACKS))


@EVERY_ATTACK
def test_an_attack_describes_itself(name: str) -> None:
    """The registry's name, a summary and a paper."""
    attack = ATTACKS[name]

    assert attack.name == name
    assert attack.summary and attack.paper
    assert isinstance(attack.is_dirty_label, bool)


@EVERY_ATTACK
def test_the_options_are_the_arguments_of_its_own(name: str) -> None:
    """Neither what every attack has nor what is worked out in between, but all else, and each can be left out."""
    options = ATTACKS[name].options()

    assert {f.name for f in fields(ATTACKS[name]) if f.compare} == {"rate", "target", "seed", *options}
    assert all(f"{option}=" in repr(ATTACKS[name]()) for option in options)


@EVERY_ATTACK
def test_every_option_is_an_argument(name: str) -> None:
    """What ``prepare`` works out is none, and cannot be asked for."""
    arguments = inspect.signature(ATTACKS[name]).parameters

    assert not set(ATTACKS[name].options()) - set(arguments)


@EVERY_ATTACK
@pytest.mark.parametrize(("n", "rate"), [(40, 0.05), (101, 0.1), (60, 0.125)])
def test_the_poison_count_is_the_rounded_rate(name: str, n: int, rate: float) -> None:
    """Exactly round(rate * n) samples are poison."""
    attack, x, y = toy_attack(name, n, rate=rate)

    poisoned = attack.poison(x, y)

    assert poisoned.is_poison.dtype == bool
    assert poisoned.is_poison.sum() == round(rate * n)


@EVERY_ATTACK
def test_benign_rows_are_bit_identical(name: str) -> None:
    """Only poison differs, in inputs and in labels; the mask is the difference."""
    attack, x, y = toy_attack(name, rate=0.1)
    x_before, y_before = x.copy(), y.copy()

    poisoned = attack.poison(x, y)

    benign = ~poisoned.is_poison
    assert poisoned.x[benign].tobytes() == x[benign].tobytes()
    assert poisoned.y[benign].tolist() == y[benign].tolist()
    assert ((poisoned.x != x).reshape(80, -1).any(1) == poisoned.is_poison).all()
    assert (x == x_before).all() and (y == y_before).all()


@EVERY_ATTACK
def test_labels_change_only_to_the_target(name: str) -> None:
    """Dirty-label poison comes from other classes, clean-label poison from the target's; all of it ends as target."""
    attack, x, y = toy_attack(name, rate=0.1, target=0)

    poisoned = attack.poison(x, y)

    assert poisoned.target == 0
    assert (poisoned.y[poisoned.is_poison] == 0).all()
    assert ((y[poisoned.is_poison] != 0) == attack.is_dirty_label).all()
    assert poisoned.y.dtype == np.int64


@EVERY_ATTACK
@pytest.mark.parametrize("n_channels", [1, 3])
def test_form_and_type_are_kept(name: str, n_channels: int) -> None:
    """Poisoned inputs have the dtype and the shape of the benign ones."""
    attack, x, y = toy_attack(name, 40, side=16, n_channels=n_channels, rate=0.1, seed=2)  # which finds an aim

    poisoned = attack.poison(x, y)

    assert poisoned.x.dtype == x.dtype
    assert poisoned.x.shape == x.shape


@EVERY_ATTACK
def test_the_seed_decides_everything(name: str) -> None:
    """Same seed, same bytes; another seed, other bytes."""
    one, same, other = (
        attack.poison(x, y) for attack, x, y in (toy_attack(name, rate=0.1, seed=seed) for seed in (0, 0, 1))
    )

    assert one.x.tobytes() == same.x.tobytes()
    assert (one.y.tolist(), one.target) == (same.y.tolist(), same.target)
    assert one.x.tobytes() != other.x.tobytes()
    assert (one.is_poison != other.is_poison).any()


@EVERY_ATTACK
def test_attempts_work_on_a_copy(name: str) -> None:
    """The inputs given stay as they were."""
    attack, x, y = toy_attack(name)
    before = x.copy()

    attempts = attack.attempts(x, y, target=0)

    assert (x == before).all()
    assert len(attempts.x) == len(attempts.y) == len(attempts.x_before)
    assert 0 not in attempts.y


def test_an_attack_that_does_nothing_does_not_work() -> None:
    """The check that an attack works cannot be passed by relabelling alone."""
    assert not attack_works(NoOp(rate=0.1))


def test_the_attack_really_works() -> None:
    """A victim on digits is moved, its twin without poison is not."""
    assert attack_works(ATTACKS["badnets"](rate=0.1))


def test_the_twin_is_not_moved_by_the_trigger_alone() -> None:
    """Without poison the trigger of BadNets is one odd corner and no more."""
    victim, twin = attack_success(ATTACKS["badnets"](rate=0.1), load_dataset("digits"))

    assert victim >= 0.8
    assert twin <= 0.2


@pytest.mark.parametrize("rate", [0.0, 1.0, 5])
def test_a_bad_rate_is_refused(rate: float) -> None:
    """The message names argument and remedy."""
    with pytest.raises(InvalidInputError, match=r"'rate' must be a fraction in \(0, 1\).*For five percent pass 0\.05"):
        NoOp(rate=rate)


@pytest.mark.parametrize(("rate", "asked"), [(0.001, "is 0"), (0.9, "is 36")])
def test_a_rate_for_no_or_too_many_samples_is_refused(rate: float, asked: str) -> None:
    """The message says how many there are to choose from."""
    with pytest.raises(
        InvalidInputError, match=rf"'rate' must ask for between 1 and 30 of 40 samples \(got .*{asked}\)"
    ):
        NoOp(rate=rate, target=0).poison(*toy_images(40))


def test_a_target_that_is_no_label_is_refused() -> None:
    """The message lists the labels."""
    with pytest.raises(InvalidInputError, match=r"'target' must be one of the labels \[0, 1, 2, 3\] \(got 7\)"):
        NoOp(target=7).poison(*toy_images())


def test_a_target_left_out_is_drawn_from_the_labels() -> None:
    """The seed decides, and only labels that occur are drawn."""
    y = np.array([3, 8, 8, 3])

    drawn = {NoOp(seed=seed).target_of(y) for seed in range(20)}

    assert drawn == {3, 8}
    assert all(type(target) is int for target in drawn)


def test_labels_that_do_not_fit_the_inputs_are_refused() -> None:
    """One label a sample."""
    x, y = toy_images(40)

    with pytest.raises(InvalidInputError, match=r"'y' must have shape \(40,\)"):
        NoOp().poison(x, y[:-1])


@dataclass(frozen=True, kw_only=True)
class _Widening(NoOp):
    """Returns floats, which would be cut back to uint8 without a word."""

    def trigger(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return floats beyond 255."""
        return x + 300.0


@dataclass(frozen=True, kw_only=True)
class _Dropping(NoOp):
    """Loses all samples but one, which would be spread over all."""

    def trigger(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return the first sample."""
        return x[:1].copy()


@pytest.mark.parametrize("attack", [_Widening(rate=0.1), _Dropping(rate=0.1)], ids=["dtype", "shape"])
def test_a_trigger_that_changes_dtype_or_shape_is_refused(attack: Attack) -> None:
    """An author's slip cannot pass as an attack."""
    with pytest.raises(
        InvalidInputError, match=r"'trigger' must return an array like its input, uint8 of shape \(4, 8"
    ):
        attack.poison(*toy_images(40))


def test_clean_label_attacks_poison_the_target_class_only() -> None:
    """Without dirty labels no label changes at all."""

    @dataclass(frozen=True, kw_only=True)
    class CleanLabel(NoOp):
        is_dirty_label = False

    x, y = toy_images(40)

    poisoned = CleanLabel(rate=0.1, target=3).poison(x, y)

    assert poisoned.y.tolist() == y.tolist()
    assert (y[poisoned.is_poison] == 3).all()
    assert poisoned.is_poison.sum() == 4


def test_an_attack_is_frozen_and_shows_its_arguments() -> None:
    """The repr tells how to make it again."""
    attack = ATTACKS["badnets"](rate=0.1, seed=3)

    with pytest.raises(FrozenInstanceError):
        attack.rate = 0.2  # type: ignore[misc]
    assert repr(attack) == (
        "BadNets(rate=0.1, target=None, seed=3, campaigns=1, planted='one', shown='one', cover=0.0, decoys=0.0, "
        "faint=0.0, camouflage=0, against='class', size=None, margin=None, opacity=1.0, all_to_all=False)"
    )
