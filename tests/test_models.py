"""Reference networks: shapes, normalisation, the last linear layer."""

from typing import Any

import pytest
import torch
from torch import nn

from poisontrace import models
from poisontrace._errors import InvalidInputError

CASES: list[tuple[str, dict[str, int], tuple[int, ...]]] = [
    ("resnet9", {"n_classes": 7, "n_channels": 3, "width": 4}, (2, 3, 32, 32)),
    ("small_cnn", {"n_classes": 7, "n_channels": 1, "width": 4}, (2, 1, 8, 8)),
    ("mlp", {"n_classes": 7, "n_features": 5, "width": 4}, (2, 5)),
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
        ("vgg", {}, r"'model' must be one of mlp, resnet9, small_cnn \(got 'vgg'\)"),
        ("mlp", {"n_channels": 3}, r"'model' must be one for this kind of data \(got 'mlp'.*n_features"),
        ("resnet9", {"n_features": 3}, r"'model' must be one for this kind of data \(got 'resnet9'.*n_features"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused(name: str, options: Any, message: str) -> None:
    """An unknown name and options of another kind of data are named."""
    with pytest.raises(InvalidInputError, match=message):
        models.build(name, **options)
