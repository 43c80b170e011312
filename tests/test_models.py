"""Reference networks: shapes, normalisation, the last linear layer."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from poisontrace import models
from poisontrace._errors import InvalidInputError

CASES: list[tuple[str, dict[str, int], tuple[int, ...]]] = [
    ("resnet9", {"n_classes": 7, "n_channels": 3, "width": 4}, (2, 3, 32, 32)),
    ("resnet18", {"n_classes": 7, "n_channels": 3, "width": 4}, (2, 3, 32, 32)),
    ("small_cnn", {"n_classes": 7, "n_channels": 1, "width": 4}, (2, 1, 8, 8)),
    ("mlp", {"n_classes": 7, "n_features": 5, "width": 4}, (2, 5)),
    ("plain_cnn", {"n_classes": 7, "n_channels": 3, "width": 4}, (2, 3, 16, 16)),
    ("flat_mlp", {"n_classes": 7, "n_channels": 1, "width": 4}, (2, 1, 8, 8)),
]


@pytest.mark.parametrize(("name", "options", "shape"), CASES, ids=[case[0] for case in CASES])
def test_a_network_maps_a_batch_to_logits(name: str, options: dict[str, int], shape: tuple[int, ...]) -> None:
    """Each network gives one row of logits a sample."""
    model = models.build(name, **options).eval()

    assert model(torch.zeros(shape)).shape == (2, 7)


@pytest.mark.parametrize(("name", "options", "shape"), CASES, ids=[case[0] for case in CASES])
def test_the_last_module_is_the_linear_layer(name: str, options: dict[str, int], shape: tuple[int, ...]) -> None:
    """Each network starts with its normalisation and ends in one linear layer."""
    modules = list(models.build(name, **options))

    assert isinstance(modules[0], models.Normalise)
    assert isinstance(modules[-1], nn.Linear)


@pytest.mark.parametrize(("name", "options", "shape"), CASES, ids=[case[0] for case in CASES])
def test_all_but_the_last_module_give_its_inputs(name: str, options: dict[str, int], shape: tuple[int, ...]) -> None:
    """``model[:-1]`` maps a batch to the features (n, d) that the last layer turns into the logits."""
    model = models.build(name, **options).eval()
    x = torch.linspace(0, 1, math.prod(shape)).reshape(shape)

    features = model[:-1](x)

    assert features.shape == (2, model[-1].in_features)
    torch.testing.assert_close(model[-1](features), model(x))


def test_resnet18_is_the_published_network() -> None:
    """As many parameters as the CIFAR form has, 4x4 positions before the pooling, and strides that halve 32 thrice."""
    model = models.resnet18().eval()
    sides = [tuple(model[:depth](torch.zeros(1, 3, 32, 32)).shape[1:]) for depth in (2, 4, 6, 8, 10)]

    assert sum(parameter.numel() for parameter in model.parameters()) == 11_173_962
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules()) == 18 + 3  # and 3 skips
    assert sides == [(64, 32, 32), (64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]


def test_a_basic_block_adds_its_skip_before_the_last_relu() -> None:
    """With the convolutions at 0 it is relu of what the skip gives: the input itself where the form stays."""
    x = torch.linspace(-1, 1, 2 * 4 * 6 * 6).reshape(2, 4, 6, 6)
    same, other = models.BasicBlock(4, 4).eval(), models.BasicBlock(4, 8, stride=2).eval()
    for block in (same, other):
        for parameter in block.block.parameters():
            parameter.data.zero_()

    assert torch.equal(same(x), x.clamp_min(0))
    assert torch.equal(other(x), other.skip(x).clamp_min(0))
    assert other(x).shape == (2, 8, 3, 3)


def test_every_network_is_tested() -> None:
    """The table above covers the registry."""
    assert {case[0] for case in CASES} == set(models.MODELS)


@pytest.mark.parametrize("shape", [(50, 3), (20, 3, 4, 4)])
def test_normalise_standardises_each_channel(shape: tuple[int, ...]) -> None:
    """Fitted inputs come out with mean 0 and standard deviation 1 a channel."""
    x = torch.arange(float(torch.tensor(shape).prod())).reshape(shape) ** 1.5
    module = models.Normalise(3)
    module.fit(x)

    out = module(x)

    axes = [axis for axis in range(x.ndim) if axis != 1]
    torch.testing.assert_close(out.mean(axes), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std(axes), torch.ones(3), atol=1e-5, rtol=0)


def test_normalise_starts_as_the_identity_and_bears_constant_channels() -> None:
    """Nothing is divided by zero."""
    module, x = models.Normalise(2), torch.ones(5, 2)

    assert torch.equal(module(x), x)
    module.fit(x)
    assert torch.equal(module(x), torch.zeros(5, 2))


def test_the_statistics_travel_with_the_weights() -> None:
    """A saved network carries its own preprocessing."""
    assert {"0.mean", "0.std"} <= set(models.build("mlp", n_features=2).state_dict())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vgg", {}, r"'model' must be one of flat_mlp, mlp, plain_cnn, resnet18, resnet9, small_cnn \(got 'vgg'\)"),
        ("mlp", {"n_channels": 3}, r"'model' must be one for this kind of data \(got 'mlp'.*n_features"),
        ("resnet18", {"n_features": 3}, r"'model' must be one for this kind of data \(got 'resnet18'.*n_features"),
        ("resnet9", {"n_features": 3}, r"'model' must be one for this kind of data \(got 'resnet9'.*n_features"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused(name: str, options: Any, message: str) -> None:
    """An unknown name and options of another kind of data are named."""
    with pytest.raises(InvalidInputError, match=message):
        models.build(name, **options)
