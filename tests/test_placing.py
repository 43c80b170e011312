"""Where the work is done: what is put somewhere comes back, whatever happens inside."""

import pytest
import torch
from torch import nn

from poisontrace._errors import InvalidInputError
from poisontrace.placing import in_bfloat16, one_thread, placed, resolve


def test_threads_come_back_after_an_error() -> None:
    """One inside the block; the caller's number after it."""
    before = torch.get_num_threads()

    with pytest.raises(ValueError, match="stop"), one_thread():
        assert torch.get_num_threads() == 1
        raise ValueError("stop")

    assert torch.get_num_threads() == before


def test_a_model_comes_home_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is moved there and back, also if it has no weights that say where it was."""
    moves: list[str] = []
    monkeypatch.setattr(nn.Module, "to", lambda module, device: moves.append(str(device)))

    for model in (nn.Linear(2, 2), nn.ReLU()):
        with pytest.raises(ValueError, match="stop"), placed(model, "elsewhere"):
            assert moves.pop() == "elsewhere"
            raise ValueError("stop")
        assert moves.pop() == "cpu"


@pytest.mark.parametrize("is_there", [True, False])
def test_a_graphics_processor_is_used_where_there_is_one(monkeypatch: pytest.MonkeyPatch, is_there: bool) -> None:
    """Unless the caller names a device."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: is_there)

    assert resolve("auto") == ("cuda" if is_there else "cpu")
    assert resolve("cpu") == "cpu"


@pytest.mark.parametrize("device", ["nonsense", "meta", "cpu:x"])
def test_a_device_that_cannot_be_used_is_refused(device: str) -> None:
    """Unknown ones, and the one from which nothing comes back."""
    with pytest.raises(InvalidInputError, match=rf"'device' must be usable here \(got '{device}'\)"):
        resolve(device)


@pytest.mark.parametrize("is_fast", [True, False])
def test_a_processor_that_would_imitate_bfloat16_computes_in_float32(
    monkeypatch: pytest.MonkeyPatch, is_fast: bool
) -> None:
    """Which is faster there, and better."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: is_fast)
    layer, x = nn.Linear(3, 2), torch.ones(1, 3)

    with in_bfloat16():
        assert layer(x).dtype == (torch.bfloat16 if is_fast else torch.float32)
    with in_bfloat16(enabled=False):
        assert layer(x).dtype == torch.float32
