"""One forward pass over the training set: what is watched of each sample, and recorded while the pass runs.

A pass that was cut short goes on where it was; one that is recorded already is read, not run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from poisontrace._errors import InvalidInputError, StoreError, UnsupportedModelError
from poisontrace._validate import check_label_range
from poisontrace._words import pack
from poisontrace.data import TrainSet
from poisontrace.ranks import Ranks
from poisontrace.recording import WAY_OUT, Columns, Folder, Recording, claimed, identify
from poisontrace.watching import (
    check_finite,
    check_steady,
    evaluating,
    find_layers,
    find_table,
    noise,
    pool,
    run,
    watching,
)

# Number formats of the pass, and how much two runs on the same samples may differ in each: in another batch, or with
# another number of threads, numbers round differently.
PRECISIONS = {"float32": 1e-3, "bfloat16": 1e-1, "float16": 1e-2}


def column_of(place: int) -> str:
    """Return the name of the column that holds the input of the watched layer at a place."""
    return f"layer{place}"


def size_of(columns: Columns, n: int) -> int:
    """Return how many bytes n rows of all columns take."""
    return n * sum(width * np.dtype(kind).itemsize for kind, width in columns.values())


def _outcome(
    model: nn.Module, watched: dict[str, nn.Module], table: str | None, x: Tensor, name: str
) -> tuple[dict[str, Tensor], tuple[bool, ...]]:
    """Return what one batch comes to, (b, width) a column, and which layers were pooled."""
    kept: dict[str, Tensor] = {}
    is_pooled: dict[str, bool] = {}
    words: dict[str, Tensor] = {}

    def keep(layer: str, module: nn.Module, below: Tensor, _: Any) -> None:
        if isinstance(module, nn.Embedding):
            words.setdefault("words", pack(below, module))
        elif layer not in kept:  # a layer that runs twice in one pass: the first run counts
            is_pooled[layer] = below.ndim > 2
            kept[layer] = pool(below, channels_last=isinstance(module, nn.Linear)).float().cpu()

    tables = {} if table is None else {table: model.get_submodule(table)}
    with torch.inference_mode(), watching(watched | tables, keep):
        logits = run(model, x, name).float().cpu()
        noises = noise(x.float()).cpu()
    if missing := [layer for layer in watched if layer not in kept]:
        raise UnsupportedModelError(
            f"'model' must run the same layers for every input (got a batch that left out {missing[0]!r}). "
            "Wrap the part of it that always runs."
        )
    layers = {column_of(place): kept[layer] for place, layer in enumerate(watched)}
    return {"logits": logits, "noise": noises, **words, **layers}, tuple(is_pooled[layer] for layer in watched)


@dataclass(frozen=True)
class Setting:
    """What is watched in a model, and what that comes to for each sample."""

    names: tuple[str, ...]
    watched: dict[str, nn.Module]
    table: str | None
    is_pooled: tuple[bool, ...]
    columns: Columns
    precision: str = "float32"

    @classmethod
    def of(cls, model: nn.Module, event: Tensor, layer: str | None, precision: str) -> "Setting":
        """Find the layers with one event; the model is in eval mode."""
        first, modules = torch.stack([event] * 3), dict(model.named_modules())
        names = find_layers(model, first, layer)
        watched, table = {name: modules[name] for name in names}, find_table(model, first)
        outcome, is_pooled = _outcome(model, watched, table, first, "events")
        check_steady(outcome["logits"])
        kinds = {name: str(x.dtype).removeprefix("torch.") for name, x in outcome.items()}
        columns = {"labels": ("int64", 1)} | {name: (kinds[name], x.shape[1]) for name, x in outcome.items()}
        return cls(names, watched, table, is_pooled, columns, precision)


def recording_of(
    model: nn.Module,
    train_set: TrainSet,
    setting: Setting,
    device: str,
    store: Path | None,
    ranks: Ranks,
    batch_size: int,
) -> Recording:
    """Return where the pass is recorded: in memory, or in a folder of the store, this rank's rows of it."""
    n = len(train_set)
    if store is None:
        return Recording(n, setting.columns)
    place = _place(model, train_set, setting, device, store)
    return Folder(n, *place, rows=ranks.part(n, batch_size), ranks=ranks)


def _place(
    model: nn.Module, train_set: TrainSet, setting: Setting, device: str, store: Path
) -> tuple[Columns, Path, dict[str, Any]]:
    """Return the columns, the folder and the identity of the pass of a model over its data in a store."""
    content, columns = fingerprint(train_set), setting.columns
    if content is None:  # then every sample is compared when it is read again
        columns = {**columns, "digest": ("int64", 1)}
    kind = torch.device(device).type
    identity = {"model": identify(model), "data": content, "layers": list(setting.names), "device": kind}
    if setting.precision != "float32":
        identity["precision"] = setting.precision
    key = blake2b(repr((len(train_set), columns, identity)).encode(), digest_size=8).hexdigest()
    return columns, store / key, identity


def recorded(
    model: nn.Module,
    train_set: TrainSet,
    event: Tensor,
    store: Path | None,
    *,
    layer: str | None = None,
    device: str = "cpu",
    precision: str = "float32",
) -> tuple[int, int]:
    """Return how many samples of a pass are in a store, by its own word, and how many bytes all of them take."""
    with evaluating(model):
        setting = Setting.of(model, event.to(device), layer, precision)
        n_bytes = size_of(setting.columns, len(train_set))
        if store is None or not store.is_dir():
            return 0, n_bytes
        _, folder, _ = _place(model, train_set, setting, device, store)
    return min(len(train_set), claimed(folder)), n_bytes


def fingerprint(train_set: TrainSet) -> str | None:
    """Return the SHA-256 of a training set's content, or None if it must be read sample by sample to know."""
    digest = getattr(train_set, "fingerprint", None)
    return str(digest()) if callable(digest) else None


def record(
    model: nn.Module,
    setting: Setting,
    train_set: TrainSet,
    recording: Recording,
    device: str,
    batch_size: int,
    progress: Callable[[str, int, int], None] | None,
) -> None:
    """Run what is not recorded yet through the model, in order, and record it."""
    watched, table, columns = setting.watched, setting.table, setting.columns
    rows, n_before = recording.rows, recording.n_done
    n, n_read, tolerance = rows.stop, rows.start, PRECISIONS[setting.precision]

    def outcome_of(x: Tensor) -> dict[str, Tensor]:
        with torch.autocast(
            torch.device(device).type, getattr(torch, setting.precision), enabled=setting.precision != "float32"
        ):
            return _outcome(model, watched, table, x.to(device), "data")[0]

    is_all = len(rows) == len(train_set)
    for x, y in train_set.batches(batch_size) if is_all else train_set.batches(batch_size, rows.start, rows.stop):
        start, n_read = n_read, n_read + len(y)
        if n_read > n:
            break
        digests = _digests(x, y) if recording.has("digest") else None
        n_old = max(0, min(len(y), n_before - start))
        if n_old and digests is not None:
            _check_same(digests[:n_old], recording["digest"][start : start + n_old], start)
        if n_old and start == rows.start:
            # Whatever a store cannot know of a model shows in what it makes of the first batch.
            outcome = outcome_of(x[:n_old])
            held = {name: recording[name][start : start + n_old] for name in outcome}
            if not all(torch.allclose(x, held[name], rtol=tolerance, atol=tolerance) for name, x in outcome.items()):
                raise StoreError(
                    "'store' must hold what this model makes of these data (got other outputs for the first samples; "
                    f"something changed that the weights do not show). {WAY_OUT}"
                )
        if n_old == len(y):
            if digests is None and n_before == n:
                n_read = n
                break
            continue
        labels = y[n_old:]
        outcome = outcome_of(x[n_old:])
        check_label_range(labels, "data: y", outcome["logits"].shape[1], first_row=start + n_old)
        for name, values in outcome.items():
            if values.shape[1] != columns[name][1]:
                raise InvalidInputError(
                    f"'events' must have the form of 'data' (got a width of {columns[name][1]} for "
                    f"{values.shape[1]} at training sample {start + n_old}). Store both as the model's input was."
                )
        check_finite(outcome["logits"], "training sample", start + n_old)
        for place, layer in enumerate(watched):
            check_finite(outcome[column_of(place)], f"the input of {layer!r} at training sample", start + n_old)
        outcome["labels"] = torch.from_numpy(labels.astype(np.int64, copy=False))[:, None]
        if digests is not None:
            outcome["digest"] = digests[n_old:]
        recording.add(outcome)
        if progress:
            progress("forward pass", n_read - rows.start, len(rows))
    if n_read != n:
        raise InvalidInputError(
            f"'train_set' must yield as many samples as its length ({n}; got {'more' if n_read > n else n_read}). "
            "Drop what wraps or filters it."
        )
    if progress and n_before == n:
        progress("forward pass", len(rows), len(rows))


def _digests(x: Tensor, y: NDArray[np.int64]) -> Tensor:
    """Return a fingerprint of each sample and its label, int64 (b, 1)."""
    rows = [
        blake2b(row.tobytes() + str(int(label)).encode(), digest_size=8).digest()
        for row, label in zip(x.numpy(), y, strict=True)
    ]
    return torch.from_numpy(np.frombuffer(b"".join(rows), np.int64).copy())[:, None]


def _check_same(digests: Tensor, recorded: Tensor, first_row: int) -> None:
    changed = (digests != recorded)[:, 0].nonzero()[:, 0]
    if len(changed):
        raise InvalidInputError(
            f"'train_set' must be the same each time it is read (got another sample {first_row + int(changed[0])} than "
            f"when the store was written). Undo the change, or remove the store to begin anew."
        )
