"""Victims: networks trained from scratch or by transfer, each cached on disk by the content it was trained on."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from poisontrace import models, store, train
from poisontrace._errors import StoreError
from poisontrace._rng import global_seed

Progress = Callable[[str, int, int], None]


def cache_folder() -> Path:
    """Return the folder for trained victims: ``POISONTRACE_CACHE``, else ``~/.cache/poisontrace``."""
    return Path(os.environ.get("POISONTRACE_CACHE", "~/.cache/poisontrace")).expanduser()


def trained(
    x: NDArray[Any],
    y: NDArray[np.int64],
    arch: dict[str, Any],
    recipe: train.Recipe,
    seed: int,
    *,
    extractor: nn.Sequential | None = None,
    is_frozen: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
) -> tuple[nn.Sequential, float]:
    """Train a network, or load it if the same one was trained before; return it with the seconds its training took.

    Args:
        x: inputs as stored, (n, ...).
        y: labels, (n,).
        arch: name and options of ``models.build``.
        recipe: optimiser settings and augmentation.
        seed: of the initial weights, the order and the augmentation.
        extractor: a trained network of the same architecture, but for its last layer, to start from.
        is_frozen: train the last layer alone, on what the extractor says.
        device: where to train.
        progress: called with (stage, steps done, steps in all).

    Raises:
        StoreError: if the cache cannot be written.
    """
    described = json.dumps([arch, asdict(recipe), seed, str(x.dtype), x.shape], sort_keys=True)
    content = hashlib.sha256(described.encode() + np.ascontiguousarray(x).tobytes() + y.tobytes())
    if extractor is not None:
        content.update(b"frozen" if is_frozen else b"fine-tuned")
        for tensor in extractor[:-1].state_dict().values():
            content.update(tensor.numpy().tobytes())
    if device != "cpu":
        content.update(device.encode())
    digest = content.hexdigest()[:24]
    weights, seconds = cache_folder() / f"{digest}.safetensors", cache_folder() / f"{digest}.json"
    with global_seed(seed, "victim/init"):
        model, cached = models.build(**arch), models.build(**arch)
    try:
        cached.load_state_dict(load_file(weights))
        return cached.eval(), float(json.loads(seconds.read_text())["seconds"])
    except (FileNotFoundError, SafetensorError, ValueError, KeyError, RuntimeError):
        pass  # not trained yet, a write that was cut off, or a network that has changed since
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"The cache of trained victims must be a folder that can be written (got {error}). "
            "Name another one in POISONTRACE_CACHE."
        ) from error
    if extractor is not None:
        model[:-1].load_state_dict(extractor[:-1].state_dict())
    if is_frozen:
        model.eval()
        hidden = train.predict(model[:-1], x)
        taken = train.fit(model[-1], hidden, y, recipe, seed=seed, device=device, progress=progress)
    else:
        taken = train.fit(
            model, x, y, recipe, seed=seed, device=device, progress=progress, is_pretrained=extractor is not None
        )
    store.write_atomically(seconds, json.dumps({"seconds": taken, "described": described}).encode())
    partial = weights.with_suffix(f".{os.getpid()}.partial")
    save_file(model.state_dict(), partial)
    partial.replace(weights)
    return model, taken
