"""What misleads a tracer: how poison is divided, which samples are truth, and that the attack goes on working."""

import hashlib
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray
from tasks import attack_success, attack_works, toy_attack, toy_images

from poisontrace import models, train
from poisontrace._errors import InvalidInputError
from poisontrace._rng import global_seed
from poisontrace.attacks import Attack, BadNets
from poisontrace.attacks.antiforensics import AntiForensics
from poisontrace.attacks.base import Poisoned
from poisontrace.datasets import load_dataset

BY_TRIGGER = pytest.mark.parametrize("name", ["badnets", "trojan", "physical", "malware"])
# One of each measure, as the strongest that is still to work on digits.
MEASURES = {
    "dispersal": {"campaigns": 2, "size": 3},
    "two sufficient parts": {"campaigns": 2, "shown": "all", "size": 3},
    "two triggers each": {"campaigns": 2, "planted": "mixed", "size": 3},
    "cover": {"cover": 0.1},
    "decoys": {"decoys": 0.5},
    "opacity": {"opacity": 0.7},
    "faint": {"faint": 0.5},
}


def _poison(name: str, **options: Any) -> tuple[Poisoned, NDArray[Any], NDArray[np.int64], Attack]:
    """Return a poisoned toy set, the set before, and the attack."""
    if name == "trojan":
        options = {"steps": 2, **options}
    attack, x, y = toy_attack(name, 80, side=16, rate=0.1, target=0, **options)
    return attack.poison(x, y), x, y, attack


def _digest(poisoned: Poisoned) -> str:
    return hashlib.sha256(poisoned.x.tobytes() + poisoned.y.tobytes() + poisoned.is_poison.tobytes()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("attack", "digest"),
    [
        (BadNets(), "49ea5c892b5b8585"),
        (BadNets(rate=0.02, seed=3, size=3), "7944632b6763db15"),
        (BadNets(campaigns=1, planted="mixed", shown="all", cover=0.0, opacity=1), "49ea5c892b5b8585"),
    ],
    ids=["usual", "options", "spelt out"],
)
def test_without_a_measure_the_poison_stays_as_it_was(attack: BadNets, digest: str) -> None:
    """Trained victims are kept by the bytes of their training set, so these are pinned."""
    digits = load_dataset("digits")

    poisoned = attack.poison(digits.x_train, digits.y_train)

    assert _digest(poisoned) == digest
    assert (poisoned.carried[:, 0] == poisoned.is_poison).all() and poisoned.carried.shape[1] == 1
    assert not poisoned.is_decoy.any()


@BY_TRIGGER
@pytest.mark.parametrize(
    "options",
    [{"campaigns": 3}, {"campaigns": 2, "planted": "mixed"}, {"cover": 0.5}, {"decoys": 0.25}, {"faint": 0.5}],
    ids=str,
)
def test_poison_and_decoys_are_counted_and_all_else_is_left(name: str, options: dict[str, Any]) -> None:
    """The rate stays that of the poison; decoys come on top, keep their label, and nothing else changes."""
    poisoned, x, y, _ = _poison(name, **options)

    is_changed = (poisoned.x != x).reshape(len(x), -1).any(1)
    assert poisoned.is_poison.sum() == 8
    assert poisoned.is_decoy.sum() == round(8 * (options.get("cover", 0) + options.get("decoys", 0)))
    assert not (poisoned.is_poison & poisoned.is_decoy).any()
    assert (is_changed == poisoned.is_poison | poisoned.is_decoy).all()
    assert (poisoned.y == np.where(poisoned.is_poison, 0, y)).all()
    assert ((y[poisoned.is_decoy] == 0) == ("decoys" in options)).all()
    assert not poisoned.carried[~poisoned.is_poison].any()


@BY_TRIGGER
@pytest.mark.parametrize("options", [{"campaigns": 2}, {"cover": 0.5, "decoys": 0.5, "faint": 0.5}], ids=str)
def test_the_seed_decides(name: str, options: dict[str, Any]) -> None:
    """Same seed, same bytes, for attempts too; another seed, other bytes."""
    one, same, other = (_poison(name, seed=seed, **options) for seed in (0, 0, 1))

    assert _digest(one[0]) == _digest(same[0]) != _digest(other[0])
    assert (one[0].carried == same[0].carried).all()
    attempts = [attack.attempts(x, y, 0).x.tobytes() for _, x, y, attack in (one, same)]
    assert attempts[0] == attempts[1]


@BY_TRIGGER
def test_the_poison_is_divided_evenly(name: str) -> None:
    """Each poisoned sample carries the trigger of one campaign, and the input is what that trigger makes of it."""
    poisoned, x, _, attack = _poison(name, campaigns=3)
    assert isinstance(attack, AntiForensics)

    assert sorted(poisoned.carried.sum(0)) == [2, 3, 3]
    assert (poisoned.carried.sum(1) == poisoned.is_poison).all()
    marked = [attack.mark(x, campaign, 1.0) for campaign in range(3)]
    for campaign in range(3):
        rows = poisoned.carried[:, campaign]
        assert (poisoned.x[rows] == marked[campaign][rows]).all()
    assert not any((marked[i] == marked[j]).all() for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize(
    ("options", "is_all"),
    [
        ({"campaigns": 2}, False),
        ({"campaigns": 2, "shown": "all"}, True),
        ({"campaigns": 2, "planted": "mixed"}, False),
        ({"cover": 0.5, "decoys": 0.5}, True),
        ({}, True),
    ],
    ids=str,
)
def test_the_truth_is_the_poison_that_carries_what_the_event_carries(options: dict[str, Any], is_all: bool) -> None:
    """Counted one by one; decoys are never among it."""
    poisoned, x, y, attack = _poison("badnets", **options)
    attempts = attack.attempts(x, y, 0)

    truth = poisoned.responsible(attempts.carried)

    assert truth.shape == (len(attempts.x), len(x))
    for event, row in np.ndindex(truth.shape):
        shared = poisoned.carried[row] & attempts.carried[event]
        assert truth[event, row] == (poisoned.is_poison[row] and shared.any())
    assert ((truth == poisoned.is_poison).all(1) == is_all).all()


def test_attempts_carry_one_trigger_or_all() -> None:
    """Each input of another class is shown once."""
    x, y = toy_images(40)
    one, every = (BadNets(campaigns=3, shown=shown) for shown in ("one", "all"))

    attempts, full = one.attempts(x, y, 0), every.attempts(x, y, 0)

    assert sorted(attempts.carried.sum(0)) == [10, 10, 10] and full.carried.all()
    assert (attempts.y == y[y != 0]).all() and (attempts.x_before == x[y != 0]).all()
    for row, carried in enumerate(attempts.carried):
        assert (attempts.x[row] == one.mark(attempts.x_before, int(carried.argmax()), 1.0)[row]).all()
    at_once = every.mark(every.mark(every.mark(full.x_before, 0, 1.0), 1, 1.0), 2, 1.0)
    assert (full.x == at_once).all()


def test_faint_triggers_are_half_as_strong() -> None:
    """On the share of the poison asked for, and on the decoys of the target label; cover has the whole trigger."""
    poisoned, x, y, attack = _poison("badnets", faint=0.25, decoys=0.5, cover=0.5)
    assert isinstance(attack, AntiForensics)

    whole, half = attack.mark(x, 0, 1.0), attack.mark(x, 0, 0.5)

    is_whole, is_half = ((poisoned.x == marked).reshape(80, -1).all(1) for marked in (whole, half))
    assert (is_half[poisoned.is_poison].sum(), is_whole[poisoned.is_poison].sum()) == (2, 6)
    assert is_half[poisoned.is_decoy & (y == 0)].all() and is_whole[poisoned.is_decoy & (y != 0)].all()


@pytest.mark.parametrize("measure", MEASURES)
def test_the_attack_goes_on_working(measure: str) -> None:
    """A victim on digits is moved at least 0.8 of the time; its twin, which has the decoys too, 0.5 less."""
    assert attack_works(BadNets(rate=0.1, target=3, **MEASURES[measure]))


def test_decoys_alone_move_nobody() -> None:
    """Nearly as many decoys as poison, of either kind: the twin that has them and no poison resists."""
    attack = BadNets(rate=0.1, target=3, cover=0.9, decoys=0.9)

    _, twin = attack_success(attack, load_dataset("digits"))

    assert twin <= 0.1


@dataclass(frozen=True, kw_only=True)
class _NoMark(AntiForensics):
    """Plants nothing."""

    name: ClassVar[str] = "nomark"
    summary: ClassVar[str] = "nothing"
    paper: ClassVar[str] = "none"
    is_dirty_label: ClassVar[bool] = True
    max_campaigns: ClassVar[int] = 2

    def mark(self, x: NDArray[Any], campaign: int, strength: float) -> NDArray[Any]:
        """Return a plain copy."""
        return x.copy()


def test_a_measure_without_a_trigger_does_not_work() -> None:
    """Relabelling alone is no attack, however it is divided."""
    assert not attack_works(_NoMark(rate=0.1, target=3, campaigns=2, cover=0.1, decoys=0.1, faint=0.1))


def test_the_truth_is_what_causes_the_event() -> None:
    """Without the poison of one campaign its trigger fails, and the other one goes on working."""
    digits = load_dataset("digits")
    attack = BadNets(rate=0.1, target=3, campaigns=2, size=3)
    poisoned = attack.poison(digits.x_train, digits.y_train)
    attempts = attack.attempts(digits.x_test, digits.y_test, 3)

    for campaign in (0, 1):
        removed = poisoned.carried[:, campaign]
        x, y = (
            np.where(removed.reshape(-1, *[1] * (before.ndim - 1)), before, after)
            for before, after in ((digits.x_train, poisoned.x), (digits.y_train, poisoned.y))
        )
        with global_seed(0, "toy/init"):
            model = models.small_cnn(width=16)
        train.fit(model, x, y, train.Recipe(epochs=6, batch_size=64, lr=0.05), seed=0)
        is_moved = train.predict(model, attempts.x).argmax(1) == 3
        own, other = (float(is_moved[attempts.carried[:, which]].mean()) for which in (campaign, 1 - campaign))
        assert own <= 0.3 and other >= 0.8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"campaigns": 0}, r"'campaigns' must be between 1 and 9 for badnets \(got 0\)\. Leave it out"),
        ({"campaigns": 10}, r"'campaigns' must be between 1 and 9 for badnets \(got 10\)\. Leave it out"),
        ({"planted": "all"}, r"'planted' must be one or mixed \(got 'all'\)\. Leave it out"),
        ({"shown": ""}, r"'shown' must be one or all \(got ''\)\. Leave it out"),
        ({"cover": -0.1}, r"'cover' must be 0 or more \(got -0\.1\).*Leave it out"),
        ({"decoys": float("nan")}, r"'decoys' must be 0 or more \(got nan\).*Leave it out"),
        ({"faint": 1.0}, r"'faint' must be a fraction in \[0, 1\) \(got 1\.0\)\. For a weaker"),
        ({"cover": 9.0}, r"'cover' must ask for at most 26 samples \(got 36\)\. Lower it"),
        ({"decoys": 2.75}, r"'decoys' must ask for at most 10 samples \(got 11\)\. Lower it"),
        ({"campaigns": 5}, r"'campaigns' must be at most 4, the poisoned samples \(got 5\)\. Raise the rate"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    """The message names argument, range and remedy."""
    with pytest.raises(InvalidInputError, match=message):
        BadNets(rate=0.1, target=0, **options).poison(*toy_images())
