"""Programs of torch.export: the same answers, and layers that can be watched."""

from typing import Any

import pytest
import torch
from tasks import toy_images
from torch import nn

from poisontrace import models
from poisontrace._errors import UnsupportedModelError
from poisontrace.data import to_inputs
from poisontrace.exported import as_module
from poisontrace.watching import find_layers


def _export(model: nn.Module, x: torch.Tensor) -> Any:
    batch = {0: torch.export.Dim("n", min=1, max=4096)}
    return torch.export.export(model.eval(), (x[:3],), dynamic_shapes=(batch,))


def test_a_program_gets_its_layers_back() -> None:
    """As many as the network has, with the same answers and gradients."""
    torch.manual_seed(0)
    x = to_inputs(toy_images(9, n_channels=3)[0])
    model = models.resnet9(4, width=4).eval()

    found = as_module(_export(model, x)).eval()

    assert torch.allclose(found(x), model(x), atol=1e-5)
    assert len(find_layers(found, x)) == len(find_layers(model, x))
    a = x.clone().requires_grad_()
    found(a).sum().backward()
    assert a.grad is not None and found.get_submodule(find_layers(found, x)[-1]).weight.grad is not None


def test_rows_and_settings_of_convolutions_survive() -> None:
    """Strides, groups, a layer without bias."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2, bias=False), nn.Flatten(), nn.Linear(24, 3, bias=False)
    )
    x = torch.randn(5, 4, 8)

    assert torch.allclose(as_module(_export(model, x))(x), model(x), atol=1e-6)


def test_a_program_without_layers_is_refused() -> None:
    """There is nothing to watch."""
    with pytest.raises(UnsupportedModelError, match="'model' must hold linear maps or convolutions"):
        as_module(_export(nn.ReLU(), torch.zeros(3, 2)))
