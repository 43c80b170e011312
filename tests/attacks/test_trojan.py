"""The optimised patch: which neurons it excites, how far, and that it is evasion to no clean network."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tasks import NoOp, attack_success, attack_works, toy_attack, toy_images
from torch import nn

from poisontrace import models, train
from poisontrace._errors import InvalidInputError
from poisontrace._rng import global_seed, numpy_generator
from poisontrace.attacks import Attacker, Trojan, trojan
from poisontrace.attacks.trojan import connection_strength
from poisontrace.data import to_inputs
from poisontrace.datasets import load_dataset
from poisontrace.models import small_cnn


@pytest.fixture(scope="module")
def attacker() -> Attacker:
    """An attacker on digits with a network of its own, trained on half of the data with another seed than victims."""
    digits = load_dataset("digits")
    with global_seed(1, "toy/init"):
        network = small_cnn(width=16)
    recipe = train.Recipe(epochs=8, batch_size=64, lr=0.05)
    train.fit(network, digits.x_train[::2], digits.y_train[::2], recipe, seed=1)
    return Attacker((network,), digits.x_test, digits.y_test, 10)


@pytest.mark.parametrize(
    ("side", "options", "rows"),
    [(8, {}, slice(6, 8)), (32, {}, slice(27, 31)), (16, {"size": 5, "margin": 2}, slice(9, 14))],
)
def test_only_the_patch_changes(side: int, options: dict[str, int], rows: slice) -> None:
    """All pixels off the mask stay; those on it are the same on every image, whatever lay beneath."""
    attack, x, _ = toy_attack("trojan", side=side, n_channels=3, steps=2, **options)
    is_masked = np.zeros((side, side), bool)
    is_masked[rows, rows] = True

    stamped = attack.trigger(x)

    assert (stamped[:, ~is_masked] == x[:, ~is_masked]).all()
    assert (stamped[:, is_masked] == stamped[0, is_masked]).all()


def test_the_poison_carries_the_trigger() -> None:
    """The rows of the poisoned set are the triggered originals."""
    attack, x, y = toy_attack("trojan", rate=0.2)

    poisoned = attack.poison(x, y)

    assert (poisoned.x[poisoned.is_poison] == attack.trigger(x[poisoned.is_poison])).all()


@pytest.mark.parametrize("n_neurons", [1, 3])
def test_the_patch_excites_its_neurons(attacker: Attacker, n_neurons: int) -> None:
    """Their mean activation rises at least twice as far above a random patch's as any of 50 random ones does."""
    attack = Trojan(size=3, n_neurons=n_neurons).prepare(attacker)
    network = attacker.models[0]
    assert isinstance(network, nn.Sequential)
    neurons = connection_strength(network).argsort(descending=True, stable=True)[:n_neurons].numpy()
    rng = numpy_generator(0, "toy/patches")
    patches = [rng.integers(0, 256, (3, 3, 1), dtype=np.uint8) for _ in range(50)]

    def activation(attack: Trojan) -> float:
        return float(train.predict(network[:-1], attack.trigger(attacker.x))[:, neurons].mean())

    by_chance = [activation(replace(attack, found=(patch,))) for patch in patches]
    usual, best = np.mean(by_chance), np.max(by_chance)

    assert activation(attack) - usual >= 2 * (best - usual)


def test_more_steps_excite_them_more(attacker: Attacker) -> None:
    """The patch is optimised, not drawn."""
    network = attacker.models[0]
    assert isinstance(network, nn.Sequential)
    neuron = int(connection_strength(network).argmax())

    after = [
        train.predict(network[:-1], Trojan(size=3, steps=steps).prepare(attacker).trigger(attacker.x))[:, neuron].mean()
        for steps in (1, 10, 100)
    ]

    assert after == sorted(after)


@pytest.mark.parametrize("seed", [0, 1])
def test_it_works_where_a_no_op_does_not(attacker: Attacker, seed: int) -> None:
    """A victim on digits is moved at least 0.8 of the time, its twin 0.5 less."""
    assert attack_works(Trojan(rate=0.1, seed=seed).prepare(attacker))
    assert not attack_works(NoOp(rate=0.1, seed=seed).prepare(attacker))


def test_the_trigger_alone_is_no_evasion(attacker: Attacker) -> None:
    """A network that was trained without poison is hardly moved."""
    _, twin = attack_success(Trojan(rate=0.1).prepare(attacker), load_dataset("digits"))

    assert twin <= 0.1


def test_neurons_whose_patch_evades_are_passed_over(attacker: Attacker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next ones are tried until the attacker's own network is hardly moved; else the patch that moves it least."""
    tried: list[list[int]] = []
    patches = iter(np.arange(10, 10 + trojan.N_TRIES, dtype=np.uint8))
    shares = {10: 0.6, 11: 0.3, 12: 0.04, 13: 0.2}

    def optimised(self: Trojan, features: nn.Module, neurons: torch.Tensor, *_: Any) -> Any:
        tried.append(neurons.tolist())
        return np.full((2, 2, 1), next(patches))

    def answers(network: nn.Module, x: Any) -> Any:
        share = shares.get(int(x[0, -1, -1, 0]), 0.0) if (x[:, -1, -1] == x[0, -1, -1]).all() else 0.0
        return np.where(np.arange(len(x)) < share * len(x), 3, 4)

    monkeypatch.setattr(Trojan, "_optimised", optimised)
    monkeypatch.setattr(trojan, "_answers", answers)
    network = attacker.models[0]
    assert isinstance(network, nn.Sequential)
    order = connection_strength(network).argsort(descending=True, stable=True).tolist()
    noise = replace(attacker, x=toy_images(360)[0])

    attack = Trojan(target=3, n_neurons=2).prepare(noise)

    assert [patch.flat[0] for patch in attack.found] == [12]
    assert tried == [order[0:2], order[2:4], order[4:6]]
    shares[12] = 0.5
    patches = iter(np.arange(10, 10 + trojan.N_TRIES, dtype=np.uint8))
    attack = Trojan(target=3, n_neurons=2).prepare(noise)
    assert [patch.flat[0] for patch in attack.found] == [13]


@pytest.mark.parametrize(
    ("name", "options"),
    [("small_cnn", {"n_channels": 1}), ("resnet9", {"n_channels": 3}), ("resnet18", {"n_channels": 3})],
)
def test_every_image_network_can_be_the_attacker_s(name: str, options: dict[str, int]) -> None:
    """The layer before the last one is found, with a strength for each of its outputs."""
    with global_seed(0, "toy/attacker"):
        network = models.build(name, n_classes=4, width=4, **options).eval()
    x, y = toy_images(24, side=16, n_channels=options["n_channels"])

    strength = connection_strength(network)
    attack = Trojan(steps=2).prepare(Attacker((network,), x, y, 4))

    assert strength.shape == (network[-1].in_features,) and (strength > 0).all()
    assert attack.trigger(x).shape == x.shape


def test_the_strength_is_the_sum_of_absolute_weights_in_effect() -> None:
    """Worked out by hand, and the same after the convolution is scaled up and its normalisation down."""
    network = nn.Sequential(
        nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2, eps=0.0), models.MeanPool(), nn.Linear(2, 3)
    )
    convolution, norm = network[0], network[1]
    assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None
    convolution.weight.data = torch.tensor([3.0, -2.0]).reshape(2, 1, 1, 1)
    norm.weight.data = torch.tensor([1.0, -6.0])
    norm.running_var.copy_(torch.tensor([1.0, 4.0]))

    assert connection_strength(network).tolist() == [3.0, 6.0]
    convolution.weight.data *= 10
    norm.running_var *= 100
    assert connection_strength(network).tolist() == pytest.approx([3.0, 6.0])
    assert connection_strength(nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 2))).shape == (1,)


def test_same_seed_same_patch(attacker: Attacker) -> None:
    """The seed decides the patch, the rate does not, and the network and its weights are left as found."""
    network = attacker.models[0]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.zero_grad()

    one, same, other = (
        Trojan(rate=rate, seed=seed, target=0).prepare(attacker) for rate, seed in ((0.1, 5), (0.3, 5), (0.1, 6))
    )

    assert one.found[0].tobytes() == same.found[0].tobytes() != other.found[0].tobytes()
    assert one.found[0].dtype == np.uint8
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in before.items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())


def test_the_patch_is_no_argument_to_show(attacker: Attacker) -> None:
    """The repr tells how to make it again; the target is settled."""
    attack = Trojan(rate=0.1, target=3).prepare(attacker)

    assert repr(attack) == (
        "Trojan(rate=0.1, target=3, seed=0, campaigns=1, planted='one', shown='one', cover=0.0, decoys=0.0, faint=0.0, "
        "camouflage=0, against='class', size=None, margin=None, opacity=1.0, n_neurons=1, steps=100, lr=0.1)"
    )


def test_a_trigger_before_prepare_is_refused() -> None:
    """The message says what to call."""
    with pytest.raises(InvalidInputError, match=r"'attack' must hold a patch of shape \(2, 2, 1\) \(got none\)\. Call"):
        Trojan().poison(*toy_images())


def test_images_of_another_form_are_refused(attacker: Attacker) -> None:
    """A patch for grey digits is none for colour photographs."""
    with pytest.raises(
        InvalidInputError, match=r"of shape \(4, 4, 3\) \(got one of shape \(2, 2, 1\)\)\. Call prepare"
    ):
        Trojan().prepare(attacker).trigger(toy_images(4, side=32, n_channels=3)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_neurons": 0}, r"'n_neurons' must be at least 1 \(got 0\)\. Leave it out"),
        (
            {"n_neurons": 65},
            r"'n_neurons' must be at most the 64 of the network's last layer \(got 65\)\. Leave it out",
        ),
        ({"steps": 0}, r"'steps' must be at least 1 \(got 0\)\. Leave it out"),
        ({"lr": 0.0}, r"'lr' must be above 0 \(got 0\.0\)\. Leave it out"),
        ({"lr": float("nan")}, r"'lr' must be above 0 \(got nan\)\. Leave it out"),
        ({"size": 9}, r"'size' must be between 1 and 8 pixels"),
        ({"target": 10}, r"'target' must be one of the labels"),
    ],
)
def test_numbers_out_of_range_are_refused(attacker: Attacker, options: dict[str, Any], message: str) -> None:
    """The message names argument, range and remedy."""
    with pytest.raises(InvalidInputError, match=message):
        Trojan(**options).prepare(attacker)


def test_rows_are_refused(attacker: Attacker) -> None:
    """It is for uint8 images."""
    floats = replace(attacker, x=to_inputs(attacker.x).numpy())

    with pytest.raises(InvalidInputError, match=r"'attack' must be one for this kind of data .*trojan.*uint8 images"):
        Trojan().prepare(floats)


def test_each_campaign_has_a_patch_and_neurons_of_its_own(attacker: Attacker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first patch is the one without campaigns, and no two are optimised for the same neurons."""
    tried: list[tuple[int, int]] = []
    optimise = Trojan._optimised

    def optimised(self: Trojan, features: nn.Module, neurons: torch.Tensor, images: torch.Tensor, campaign: int) -> Any:
        tried.append((campaign, int(neurons[0])))
        return optimise(self, features, neurons, images, campaign)

    (plain,) = Trojan(steps=5, target=0).prepare(attacker).found
    monkeypatch.setattr(Trojan, "_optimised", optimised)

    patches = Trojan(steps=5, target=0, campaigns=3).prepare(attacker).found

    assert (patches[0] == plain).all() and len({patch.tobytes() for patch in patches}) == 3
    assert {campaign for campaign, _ in tried} == {0, 1, 2}
    assert len({neuron for _, neuron in tried}) == len(tried)


def test_a_patch_is_optimised_as_it_will_show(attacker: Attacker) -> None:
    """A patch that the image shows through is another one."""
    (solid,), (thin,) = (Trojan(steps=5, target=0, opacity=opacity).prepare(attacker).found for opacity in (1.0, 0.5))

    assert (solid != thin).any()
