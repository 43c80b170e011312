"""Victims: cached by content, trained over when the cache is damaged, started from an extractor."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from poisontrace import train, victims
from poisontrace.datasets import load_dataset


def test_making_an_incident_leaves_the_random_state_alone() -> None:
    """Whether trained or read from the cache, the caller's generator stays."""
    digits, before = load_dataset("digits").subset(64, 0), torch.get_rng_state()
    arch, recipe = {"name": "small_cnn", "n_channels": 1, "width": 4}, train.Recipe(epochs=1, batch_size=32)

    for _ in range(2):
        victims.trained(digits.x_train, digits.y_train, arch, recipe, 0)

    assert torch.equal(before, torch.get_rng_state())


@pytest.fixture
def small_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of its own."""
    monkeypatch.setenv("POISONTRACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("damage", ["weights cut off", "seconds lost", "seconds damaged", "another network"])
def test_a_damaged_cache_is_trained_over(small_cache: Path, damage: str) -> None:
    """The victim is the same as if nothing had been cached."""
    digits = load_dataset("digits").subset(64, 0)
    arch, recipe = {"name": "small_cnn", "n_channels": 1, "width": 4}, train.Recipe(epochs=1, batch_size=32)
    good, _ = victims.trained(digits.x_train, digits.y_train, arch, recipe, 0)
    (weights,), (seconds,) = small_cache.glob("*.safetensors"), small_cache.glob("*.json")
    if damage == "weights cut off":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif damage == "seconds lost":
        seconds.unlink()
    elif damage == "seconds damaged":
        seconds.write_text("{}")
    else:
        save_file({"other": torch.zeros(1)}, weights)

    again, _ = victims.trained(digits.x_train, digits.y_train, arch, recipe, 0)

    assert all(torch.equal(value, again.state_dict()[key]) for key, value in good.state_dict().items())
    assert sorted(path.suffix for path in small_cache.iterdir()) == [".json", ".safetensors"]


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """POISONTRACE_CACHE wins; else the user's cache folder."""
    monkeypatch.setenv("POISONTRACE_CACHE", "somewhere")
    assert victims.cache_folder() == Path("somewhere")

    monkeypatch.delenv("POISONTRACE_CACHE")
    assert victims.cache_folder() == Path("~/.cache/poisontrace").expanduser()
