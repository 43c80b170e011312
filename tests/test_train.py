"""Victim training: reproducible, effective and without traces on the caller."""

from typing import Any

import numpy as np
import pytest
import torch
from tasks import toy_images, toy_rows
from torch import Tensor, nn
from torch.nn import functional

from poisontrace import models, train
from poisontrace._errors import InvalidInputError
from poisontrace._rng import global_seed
from poisontrace.data import to_inputs

RECIPE = train.Recipe(epochs=2, batch_size=16, lr=0.05, shift=1, flip=True)


def _model() -> nn.Module:
    with global_seed(0, "test/init"):
        return models.small_cnn(4, width=4)


def _fitted(seed: int) -> dict[str, Tensor]:
    model = _model()
    train.fit(model, *toy_images(), RECIPE, seed=seed)
    return model.state_dict()


def test_the_same_seed_gives_the_same_weights() -> None:
    """Every tensor of the state is equal to the bit."""
    one, other = _fitted(0), _fitted(0)

    assert all(torch.equal(one[key], other[key]) for key in one)


def test_another_seed_gives_other_weights() -> None:
    """The seed decides the order of samples and the augmentation."""
    one, other = _fitted(0), _fitted(1)

    assert not torch.equal(one["5.weight"], other["5.weight"])


def test_training_lowers_the_loss() -> None:
    """Separable rows are learnt."""
    x, y = toy_rows()
    with global_seed(0, "test/init"):
        model = models.mlp(2, n_features=4, width=8)
    before = functional.cross_entropy(torch.from_numpy(train.predict(model, x)), torch.from_numpy(y))

    seconds = train.fit(model, x, y, train.Recipe(epochs=10, batch_size=16), seed=0)

    after = functional.cross_entropy(torch.from_numpy(train.predict(model, x)), torch.from_numpy(y))
    assert after < before / 10
    assert train.accuracy(model, x, y) == 1.0
    assert seconds > 0


def test_smooth_labels_make_a_network_less_sure() -> None:
    """The rows are as separable as before; what it says of them is less extreme."""
    x, y = toy_rows()
    sure = []
    for smoothing in (0.0, 0.4):
        with global_seed(0, "test/init"):
            model = models.mlp(2, n_features=4, width=8)
        train.fit(model, x, y, train.Recipe(epochs=10, batch_size=16, smoothing=smoothing), seed=0)
        assert train.accuracy(model, x, y) == 1.0
        sure.append(train.confidence(model, x))

    assert sure[0] > 0.95
    assert sure[1] < 0.85  # of two labels, 0.4 / 2 is asked for the other one


def test_the_model_is_left_in_eval_mode_on_the_cpu() -> None:
    """Every module is in eval mode, and every tensor is contiguous on the CPU."""
    model = _model()

    train.fit(model, *toy_images(), RECIPE, seed=0)

    assert not any(module.training for module in model.modules())
    assert all(value.device.type == "cpu" and value.is_contiguous() for value in model.state_dict().values())


def test_the_normalisation_is_fitted_to_the_training_set() -> None:
    """The statistics are those of the inputs as the model takes them."""
    x, y = toy_images()
    model = models.small_cnn(4, width=4)

    train.fit(model, x, y, RECIPE, seed=0)

    torch.testing.assert_close(model[0].mean, to_inputs(x).mean((0, 2, 3)))


def test_the_caller_keeps_random_state_and_arrays() -> None:
    """Training draws from its own generators and writes to no input."""
    x, y = toy_images()
    x_before, y_before, model, before = x.copy(), y.copy(), _model(), torch.get_rng_state()

    train.fit(model, x, y, RECIPE, seed=0)

    assert torch.equal(before, torch.get_rng_state())
    assert (x == x_before).all()
    assert (y == y_before).all()


def test_progress_counts_every_step() -> None:
    """The callback hears each step of all, the last one included."""
    heard: list[tuple[str, int, int]] = []

    train.fit(_model(), *toy_images(), RECIPE, seed=0, progress=lambda *step: heard.append(step))

    assert heard == [("train", step, 4) for step in range(1, 5)]


def test_a_set_smaller_than_a_batch_is_trained_on() -> None:
    """One short batch is better than none."""
    heard: list[int] = []
    recipe = train.Recipe(epochs=3, batch_size=64)

    train.fit(_model(), *toy_images(12), recipe, seed=0, progress=lambda stage, step, n: heard.append(step))

    assert heard == [1, 2, 3]


@pytest.mark.parametrize("options", [{"epochs": 0}, {"batch_size": 1}, {"lr": 0.0}])
def test_a_recipe_that_trains_nothing_is_refused(options: Any) -> None:
    """The message states the rule."""
    with pytest.raises(InvalidInputError, match="'recipe' must have epochs >= 1, batch_size >= 2 and lr > 0"):
        train.Recipe(**options)


def test_predictions_do_not_depend_on_the_batch_size() -> None:
    """Logits come in the order of the inputs, whatever the batches."""
    x, _ = toy_images()
    model = _model()

    whole = train.predict(model, x)

    assert whole.shape == (40, 4)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(train.predict(model, x, batch_size=7), whole, rtol=1e-5, atol=1e-6)
