"""Camouflage: the budget, the trigger that stays, and what the poison comes to look like."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tasks import attack_success, toy_attack, toy_images
from torch import nn

from poisontrace import models, scoring, train
from poisontrace._errors import InvalidInputError
from poisontrace._rng import global_seed
from poisontrace.attacks import Attack, Attacker, BadNets
from poisontrace.attacks.base import Poisoned
from poisontrace.attacks.camouflage import Likeness
from poisontrace.data import ArraySet, to_inputs
from poisontrace.datasets import load_dataset
from poisontrace.embedding import collect

DIGITS = load_dataset("digits")


def _trained(x: NDArray[Any], y: NDArray[np.int64]) -> nn.Sequential:
    """Return a network of the attacker's."""
    with global_seed(1, "toy/init"):
        network = models.small_cnn(width=16)
    train.fit(network, x, y, train.Recipe(epochs=4, batch_size=64, lr=0.05), seed=1)
    return network


def _rehearsed(attack: Attack) -> nn.Sequential:
    poisoned = attack.poison(DIGITS.x_train, DIGITS.y_train)
    return _trained(poisoned.x, poisoned.y)


@pytest.fixture(scope="module")
def attacker() -> Attacker:
    """An attacker on digits, who can rehearse."""
    network = _trained(DIGITS.x_train, DIGITS.y_train)
    return Attacker((network,), DIGITS.x_test, DIGITS.y_test, 10, rehearse=_rehearsed)


def _poison(name: str, **options: Any) -> tuple[Poisoned, NDArray[Any]]:
    """Return a poisoned toy set, and the set before."""
    if name == "trojan":
        options = {"steps": 2, **options}
    attack, x, y = toy_attack(name, 80, side=16, rate=0.1, target=0, **options)
    return attack.poison(x, y), x


@pytest.mark.parametrize(("name", "levels"), [("badnets", 8), ("badnets", 40), ("trojan", 16), ("physical", 16)])
def test_camouflage_keeps_the_trigger_and_the_budget(name: str, levels: int) -> None:
    """Pixels of the trigger stay; the others move by the budget at most."""
    plain, x = _poison(name)
    hidden, _ = _poison(name, camouflage=levels)
    rows = plain.is_poison

    assert (hidden.is_poison == rows).all() and (hidden.x[~rows] == x[~rows]).all()
    moved = np.abs(hidden.x[rows].astype(int) - plain.x[rows])
    is_trigger = plain.x[rows] != x[rows]
    assert 0 < moved.max() <= levels
    assert not moved[is_trigger].any()


def test_camouflage_brings_the_features_of_the_target_label(attacker: Attacker) -> None:
    """To the attacker's network the poison comes nearer to the label's mean, and is taken for it more and more."""
    (network,) = attacker.models
    distances, shares = [], []
    for levels in (0, 16, 64):
        poisoned = BadNets(target=3, camouflage=levels).prepare(attacker).poison(DIGITS.x_train, DIGITS.y_train)
        with torch.no_grad():
            benign = network[:-1](to_inputs(DIGITS.x_train[DIGITS.y_train == 3])).mean(0)
            hidden = network[:-1](to_inputs(poisoned.x[poisoned.is_poison]))
            distances.append(float((hidden - benign).norm(dim=1).mean()))
            shares.append(float((network[-1](hidden).argmax(1) == 3).float().mean()))

    assert distances[0] > distances[1] > distances[2]
    assert shares[0] < shares[1] < 0.5 < shares[2]


def test_camouflage_against_the_tracer_lowers_its_score(attacker: Attacker) -> None:
    """In a rehearsed victim the poison is less and less like an event of the attacker's test inputs."""
    plain = BadNets(rate=0.1, target=3, size=3)
    network = _rehearsed(plain)
    event = plain.attempts(DIGITS.x_test, DIGITS.y_test, 3).x[:20]
    event = event[train.predict(network, event).argmax(1) == 3][:1]
    scores = []
    for levels in (0, 16, 64):
        attack = BadNets(rate=0.1, target=3, size=3, camouflage=levels, against="tracer").prepare(attacker)
        poisoned = attack.poison(DIGITS.x_train, DIGITS.y_train)
        features = collect(network, ArraySet(poisoned.x, poisoned.y), [(to_inputs(event)[0], 3)])
        of_target = np.flatnonzero(poisoned.y == 3)
        leaning = scoring.condition(features, 0, of_target).leaning.likeness
        scores.append(float(leaning[torch.from_numpy(poisoned.is_poison[of_target])].mean()))

    assert scores[0] > scores[1] > scores[2]
    assert scores[0] - scores[2] > 0.1


def test_likeness_is_the_tracer_s(attacker: Attacker) -> None:
    """It ranks samples of the target label nearly as ``scoring`` does, poison before benign ones."""
    attack = BadNets(rate=0.1, target=3, size=3)
    poisoned, network = attack.poison(DIGITS.x_train, DIGITS.y_train), _rehearsed(attack)
    event = attack.attempts(DIGITS.x_test, DIGITS.y_test, 3).x[:20]
    event = event[train.predict(network, event).argmax(1) == 3][:1]
    of_target = np.flatnonzero(poisoned.y == 3)
    samples = to_inputs(poisoned.x[of_target])

    features = collect(network, ArraySet(poisoned.x, poisoned.y), [(to_inputs(event)[0], 3)])
    theirs = scoring.condition(features, 0, of_target).leaning.likeness.numpy()
    ours = Likeness(network, samples, to_inputs(event), 3)(samples).detach().numpy()

    assert np.corrcoef(ours, theirs)[0, 1] > 0.8
    is_poison = poisoned.is_poison[of_target]
    assert np.median(ours[is_poison]) > np.median(ours[~is_poison]) + 0.2


@pytest.mark.parametrize("against", ["class", "tracer"])
def test_the_attack_goes_on_working(against: str, attacker: Attacker) -> None:
    """A victim on digits is moved at least 0.8 of the time, its twin 0.5 less."""
    attack = BadNets(rate=0.1, target=3, size=3, camouflage=16, against=against).prepare(attacker)

    victim, twin = attack_success(attack, DIGITS)

    assert victim >= 0.8 and victim - twin >= 0.5


def test_camouflage_before_prepare_is_refused() -> None:
    """The message says what to call."""
    with pytest.raises(InvalidInputError, match=r"'attack' must be prepared .*\(got badnets\)\. Call prepare"):
        BadNets(camouflage=8).poison(*toy_images())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"camouflage": 256}, r"'camouflage' must be between 0 and 255 levels \(got 256\)\. Leave it out"),
        ({"camouflage": -1}, r"'camouflage' must be between 0 and 255 levels \(got -1\)\. Leave it out"),
        ({"against": "all"}, r"'against' must be class or tracer \(got 'all'\)\. Leave it out"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    """The message names argument, range and remedy."""
    with pytest.raises(InvalidInputError, match=message):
        BadNets(**options)


def test_an_attacker_who_cannot_rehearse_is_refused() -> None:
    """The message says what would do."""
    x, y = toy_images(24)

    with pytest.raises(InvalidInputError, match=r"'against' must be class for .*\(got 'tracer'\)\. Give it a way"):
        BadNets(camouflage=8, against="tracer").prepare(Attacker((), x, y, 4))


def test_a_network_is_asked_for_only_where_it_is_used() -> None:
    """A plain patch trains none of the attacker's, and one against the tracer no clean one."""
    attacks = (BadNets(), BadNets(camouflage=8), BadNets(camouflage=8, against="tracer"))

    assert [attack.n_networks for attack in attacks] == [0, 1, 0]
