"""Plain training of a victim, for attacks and benchmarks; the tracer itself never trains a network."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from poisontrace._errors import InvalidInputError
from poisontrace._rng import torch_generator
from poisontrace.data import crop_and_flip, to_inputs
from poisontrace.models import Normalise
from poisontrace.placing import in_bfloat16


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a victim is trained: SGD with Nesterov momentum under a one-cycle learning rate."""

    epochs: int = 16
    batch_size: int = 128
    lr: float = 0.1  # peak of the cycle
    weight_decay: float = 5e-4
    shift: int = 0  # random crops after zero padding by this many pixels
    flip: bool = False  # random left-right flips
    smoothing: float = 0.0  # of labels: the share of the loss that asks for all labels alike

    def __post_init__(self) -> None:
        """Refuse a recipe that trains nothing."""
        if self.epochs < 1 or self.batch_size < 2 or self.lr <= 0:
            raise InvalidInputError(f"'recipe' must have epochs >= 1, batch_size >= 2 and lr > 0 (got {self}).")
        if self.weight_decay < 0:
            raise InvalidInputError(f"'weight_decay' must be at least 0 (got {self.weight_decay}). Leave it out.")
        if not 0 <= self.smoothing < 1:
            raise InvalidInputError(f"'smoothing' must be a fraction in [0, 1) (got {self.smoothing}). Leave it out.")


def fit(
    model: nn.Module,
    x: NDArray[Any],
    y: NDArray[np.int64],
    recipe: Recipe,
    *,
    seed: int,
    is_pretrained: bool = False,
    device: str = "cpu",
    progress: Callable[[str, int, int], None] | None = None,
) -> float:
    """Train ``model`` in place and leave it in eval mode on the CPU.

    Args:
        model: network; any ``models.Normalise`` in it is fitted here, unless it is pre-trained.
        x: inputs as stored, (n, ...); see ``data.to_inputs``.
        y: labels, (n,).
        recipe: optimiser settings and augmentation.
        is_pretrained: keep the statistics of ``Normalise`` as they are.
        seed: order of samples and augmentation.
        device: where to train.
        progress: called with (stage, steps done, steps in all).

    Returns:
        seconds of wall time.
    """
    start = time.perf_counter()
    inputs, labels = to_inputs(x), torch.from_numpy(y)
    is_image = inputs.ndim == 4
    for module in model.modules():
        if isinstance(module, Normalise) and not is_pretrained:
            module.fit(inputs)
    # torch's stubs lack this form of Module.to.
    model.to(device, memory_format=torch.channels_last if is_image else torch.preserve_format)  # type: ignore[call-overload]
    model.train()
    optimiser = torch.optim.SGD(
        model.parameters(), lr=recipe.lr, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay
    )
    # The last incomplete batch of an epoch is dropped: batch normalisation over a few samples is noise.
    steps_per_epoch = max(1, len(x) // recipe.batch_size)
    n_steps = recipe.epochs * steps_per_epoch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.lr, total_steps=n_steps + 1)
    order, augmentation = torch_generator(seed, "fit/order"), torch_generator(seed, "fit/augmentation")

    step = 0
    for _ in range(recipe.epochs):
        shuffled = torch.randperm(len(x), generator=order)
        for batch in torch.split(shuffled[: steps_per_epoch * recipe.batch_size], recipe.batch_size):
            x_batch = inputs[batch]
            if is_image:
                x_batch = crop_and_flip(x_batch, recipe.shift, 0.5 * recipe.flip, augmentation)
                x_batch = x_batch.contiguous(memory_format=torch.channels_last)
            with in_bfloat16(device, enabled=is_image):
                logits = model(x_batch.to(device))
            loss = functional.cross_entropy(logits.float(), labels[batch].to(device), label_smoothing=recipe.smoothing)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            step += 1
            if progress:
                progress("train", step, n_steps)
    model.to("cpu", memory_format=torch.contiguous_format if is_image else torch.preserve_format)  # type: ignore[call-overload]
    model.eval()
    return time.perf_counter() - start


@torch.no_grad()
def predict(model: nn.Module, x: NDArray[Any], *, batch_size: int = 500) -> NDArray[np.float32]:
    """Return the logits (n, k) of inputs as stored, in eval mode."""
    model.eval()
    parts = [model(to_inputs(x[start : start + batch_size])) for start in range(0, len(x), batch_size)]
    logits: NDArray[np.float32] = torch.cat(parts).float().numpy()
    return logits


def accuracy(model: nn.Module, x: NDArray[Any], y: NDArray[np.int64]) -> float:
    """Return the fraction in [0, 1] of inputs whose largest logit is at their label."""
    return float((predict(model, x).argmax(1) == y).mean())


def confidence(model: nn.Module, x: NDArray[Any]) -> float:
    """Return the mean over inputs as stored of the largest probability, in [0, 1]."""
    return float(torch.from_numpy(predict(model, x)).softmax(1).amax(1).mean())
