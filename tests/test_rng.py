"""One seed, named generators."""

import numpy as np
import pytest
import torch

from poisontrace import _rng


def test_a_seed_and_a_name_always_give_the_same_number() -> None:
    """The derivation is fixed: old results stay reproducible."""
    assert _rng.derive(0, "events") == 8890301757128520082
    assert 0 <= _rng.derive(-5, "") < 2**63


def test_names_and_seeds_give_different_streams() -> None:
    """No two stages share their numbers."""
    drawn = {_rng.derive(seed, name) for seed in range(20) for name in ("a", "b", "0/a")}

    assert len(drawn) == 60


def test_generators_repeat_themselves() -> None:
    """Same seed and name, same numbers, in NumPy and torch."""
    assert _rng.numpy_generator(1, "a").random(3).tolist() == _rng.numpy_generator(1, "a").random(3).tolist()
    assert torch.equal(
        torch.rand(3, generator=_rng.torch_generator(1, "a")), torch.rand(3, generator=_rng.torch_generator(1, "a"))
    )


def test_the_global_seed_holds_inside_the_block_only() -> None:
    """Inside, numbers repeat; outside, the caller's state is as it was."""
    before = torch.get_rng_state()

    with _rng.global_seed(3, "init"):
        one = torch.rand(4)
    with _rng.global_seed(3, "init"):
        other = torch.rand(4)

    assert torch.equal(one, other)
    assert torch.equal(before, torch.get_rng_state())


def test_an_error_in_the_block_restores_the_state_too() -> None:
    """The caller's state survives a failure."""
    before = torch.get_rng_state()

    with pytest.raises(ZeroDivisionError), _rng.global_seed(3, "init"):
        torch.rand(4)
        _ = 1 / 0

    assert torch.equal(before, torch.get_rng_state())


def test_generators_leave_the_global_states_alone() -> None:
    """Named generators touch neither NumPy's nor torch's global state."""
    before_torch, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()

    _rng.numpy_generator(0, "a").random(5)
    torch.rand(5, generator=_rng.torch_generator(0, "a"))

    assert torch.equal(before_torch, torch.get_rng_state())
    assert (before_numpy == np.random.get_state()[1]).all()
