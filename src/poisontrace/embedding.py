"""What each training sample does to each layer: one forward pass, rank-one gradients that are never written out.

The gradient of a loss with respect to the weights of a linear or convolutional layer is the product of what arrives
from above (the residual) and what arrives from below (the activation). For the last linear layer z = W h + b it is
exactly (p - target) (x) h, so one forward pass gives the embedding of Poison Forensics section 4.2 without a Jacobian.
The same pass hands over the inputs of a spread of earlier layers, pooled over space or tokens, because the footprint of
a trigger is in the middle of a network and that of a feature collision at its end (decision 0002).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from poisontrace._blocks import MEMORY, Blocks
from poisontrace._errors import (
    InvalidInputError,
    OutOfMemoryError,
    PoisontraceError,
    StoreError,
    UnsupportedModelError,
    is_out_of_memory,
)
from poisontrace._validate import check_label_range
from poisontrace._words import pack
from poisontrace.data import TrainSet
from poisontrace.ranks import ALONE, Ranks
from poisontrace.recording import WAY_OUT, Columns, Folder, Recording, claimed, identify

WORDS = 16  # that are left out of an event at a time
# Of the numbers that a network works with, and by how much what it makes of the same batch twice may differ: in other
# company, or with another number of threads, they round differently.
PRECISIONS = {"float32": 1e-3, "bfloat16": 1e-1, "float16": 1e-2}
MAX_LAYERS = 10  # enough to hold every layer of a ResNet-9; deeper networks are sampled evenly


@dataclass(frozen=True)
class Features:
    """All that the tracer knows of a model, a training set and its events after one pass.

    Attributes:
        layers: names of the layers whose inputs were kept, in the order they run; the last is the last linear layer.
        activations: one float32 (n, d_l) a layer: the layer's input, for images and tokens its mean and maximum.
        is_pooled: one a layer, whether its activations are such means and maxima.
        logits: float32 (n, k).
        labels: int64 (n,).
        weight, bias: the last linear layer, (k, d) and (k,).
        noise: float32 (n, 2 c) for images of c channels, else (n, 0), see :func:`noise`.
        event_activations, event_logits: the same for the m events.
        saliency: one (m, d_l) a layer: how much of the event's margin rests on each coordinate, in logits.
        words: int64 (n, v), which tokens each text holds, see :func:`poisontrace._words.pack`; (n, 0) if it reads none.
        event_words: one pair an event: the tokens it holds, (t,), and by how many logits each raises its margin, (t,).
        memory: bytes that what follows may take; the activations may be on the disk.
        caution: a sentence on what was wrong with the store, if anything was.
        folder: of the pass in the store, if there is one.
        ranks: that help with what follows.
    """

    layers: tuple[str, ...]
    activations: tuple[Tensor, ...]
    is_pooled: tuple[bool, ...]
    logits: Tensor
    labels: Tensor
    noise: Tensor
    weight: Tensor
    bias: Tensor
    event_activations: tuple[Tensor, ...]
    event_logits: Tensor
    saliency: tuple[Tensor, ...]
    words: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.int64))
    event_words: tuple[tuple[Tensor, Tensor], ...] = ()
    memory: int = MEMORY
    caution: str = ""
    folder: Path | None = None
    ranks: Ranks = ALONE

    @property
    def hidden(self) -> Tensor:
        """The input of the last linear layer, (n, d)."""
        return self.activations[-1]


@dataclass(frozen=True)
class Embedding:
    """Unit rows, one per sample, each a residual times activations: row i = residual_i (x) activation_i, never formed.

    With several layers a row is the layers' products side by side; the paper's embedding is the one-layer case.

    Attributes:
        residual: (n, k), rows of length 1.
        activation: (n, d), rows of length 1; several layers side by side.
    """

    residual: Tensor
    activation: Tensor

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.residual)

    def __getitem__(self, rows: Tensor) -> "Embedding":
        """Return the embedding of some rows."""
        return Embedding(self.residual[rows], self.activation[rows])

    def mean(self) -> Tensor:
        """Return the mean row as a (k, d) matrix."""
        return self.residual.T @ self.activation / len(self)  # (k, n) @ (n, d) -> (k, d)

    def similarity(self, centroid: Tensor) -> Tensor:
        """Return the inner product of each row with a (k, d) centroid, shape (n,)."""
        return ((self.residual @ centroid) * self.activation).sum(1)  # (n, k) @ (k, d) -> (n, d) -> (n,)

    def dense(self) -> Tensor:
        """Write all rows out, (n, k * d): only for tests and pictures."""
        return (self.residual[:, :, None] * self.activation[:, None, :]).flatten(1)


def residual(logits: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return the gradient of the cross-entropy with respect to the logits, (n, k).

    Args:
        logits: (n, k).
        labels: (n,) int64 for the label form, p - onehot(y); None for the paper's uniform target, p - 1/k.
    """
    p = logits.softmax(1)
    if labels is None:
        return p - 1 / logits.shape[1]
    return p - nn.functional.one_hot(labels, logits.shape[1])


def embed(layers: Sequence[Tensor], residual: Tensor) -> Embedding:
    """Return the embedding of samples by their effect on the weights of some layers.

    Paper: section 4.2; differs from it: all coordinates instead of at most 5,000 random ones, and any number of layers.

    Args:
        layers: one (n, d_l) a layer, the activations below it.
        residual: (n, k), see :func:`residual`.

    Returns:
        unit rows; each layer weighs the same.
    """
    # The L2 norm of a product is the product of the norms, so each factor is normalised on its own.
    unit = [nn.functional.normalize(layer, dim=1) for layer in layers]
    return Embedding(nn.functional.normalize(residual, dim=1), torch.cat(unit, 1) / len(unit) ** 0.5)


def pool(activation: Tensor, *, channels_last: bool) -> Tensor:
    """Return mean and maximum over space or tokens, (n, 2 c); activations of shape (n, c) are returned as they are."""
    if activation.ndim == 2:
        return activation
    flat = activation.flatten(1, -2).transpose(1, 2) if channels_last else activation.flatten(2)  # (n, c, positions)
    if not channels_last and activation.ndim == 4 and activation.is_contiguous(memory_format=torch.channels_last):
        # The same, without the detour that amax takes where a few channels lie side by side.
        most = nn.functional.max_pool2d(activation, activation.shape[2:]).flatten(1)
    else:
        most = flat.amax(2)
    return torch.cat([flat.mean(2), most], 1)


def noise(x: Tensor) -> Tensor:
    """Return how strong the noise in images (n, c, h, w) is, and how evenly it is spread: (n, 2 c); (n, 0) for others.

    Noise is what differs from the neighbours in both directions, by the mask of J. Immerkaer, *Fast noise variance
    estimation*, CVIU 1996, which is blind to edges and slopes. Poison that is made by changing each pixel a little has
    more of it than its label does (decision 0007).
    """
    if x.ndim != 4 or min(x.shape[2:]) < 3:
        return x.new_zeros(len(x), 0)
    rows = x[:, :, 2:] - 2 * x[:, :, 1:-1] + x[:, :, :-2]
    residual = (rows[..., 2:] - 2 * rows[..., 1:-1] + rows[..., :-2]).abs()
    # Beside the mean a mean of roots: many small residuals raise it more than a few large ones.
    return torch.cat([residual.mean((2, 3)), residual.sqrt().mean((2, 3))], 1)


@contextmanager
def _watching(modules: dict[str, nn.Module], watch: Callable[[str, nn.Module, Tensor, Any], None]) -> Iterator[None]:
    """Call ``watch(name, module, input, output)`` whenever one of the modules runs; hooks are removed afterwards."""
    with ExitStack() as stack:
        for name, module in modules.items():

            def hook(module: nn.Module, args: tuple[Any, ...], output: Any, name: str = name) -> None:
                if args and isinstance(args[0], Tensor) and args[0].ndim >= 2:
                    if args[0].is_floating_point() != isinstance(module, nn.Embedding):
                        watch(name, module, args[0], output)

            stack.callback(module.register_forward_hook(hook).remove)
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into eval mode inside the block and restore each one's own mode after it."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def run(model: nn.Module, x: Tensor, name: str) -> Tensor:
    """Return the logits of a batch, or say in one sentence what the model made of it."""
    try:
        logits = model(x.clone())  # a model may work in place on its input
    except MemoryError:
        raise
    except Exception as error:  # code from outside may raise anything
        if is_out_of_memory(error):
            raise MemoryError(str(error)) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidInputError(
            f"'{name}' must have the shape the model takes (got {tuple(x.shape)}: {reason}). "
            "uint8 images are fed as float32 (n, channels, height, width) in [0, 1], float arrays as they are."
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x) or logits.shape[1] < 2:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UnsupportedModelError(
            f"'model' must return logits of shape (n, classes), two classes or more (got {got}). "
            "Wrap it in a module that does."
        )
    return logits


def _check_finite(values: Tensor, what: str, first_row: int = 0) -> None:
    if not bool(torch.isfinite(values).all()):
        row = first_row + int((~torch.isfinite(values).all(1)).nonzero()[0])
        raise InvalidInputError(f"'weights' must give finite outputs (got NaN or infinity for {what} {row}).")


def find_layers(model: nn.Module, x: Tensor, last: str | None = None) -> tuple[str, ...]:
    """Return the names of the layers to watch, in the order they run; the last one is the last linear layer.

    Args:
        model: in eval mode.
        x: a few inputs, (b, ...); more than one, so that a layer fed by a constant is not taken for one of the batch.
        last: name of the last linear layer; None finds the one whose output is the model's output.

    Returns:
        at most ``MAX_LAYERS`` names, spread evenly, the first layer with weights and the last linear layer among them.

    Raises:
        UnsupportedModelError: if no linear layer, or more than one, ends in the model's output.
    """
    weighted: dict[str, nn.Module] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    }
    runs: list[tuple[str, Tensor, Tensor]] = []
    with torch.no_grad(), _watching(weighted, lambda name, _, below, out: runs.append((name, below, out.clone()))):
        output = run(model, x, "events")
    _check_finite(output, "event")

    def is_output(out: Any) -> bool:
        # log_softmax on top changes neither the probabilities nor the algebra, so it is accepted.
        same = isinstance(out, Tensor) and out.shape == output.shape
        return same and torch.allclose(out.log_softmax(1), output.log_softmax(1), atol=1e-4)

    linear = [(name, below, out) for name, below, out in runs if isinstance(weighted[name], nn.Linear)]
    found = list(dict.fromkeys(name for name, below, out in linear if below.ndim == 2 and is_output(out)))
    if last is not None:
        fits = (name for name, below, out in linear if below.ndim == 2 and out.shape == output.shape)
        found = [last] if last in fits else []
    if len(found) != 1:
        ran = ", ".join(repr(name) for name in (found or dict.fromkeys(name for name, _, _ in linear))) or "none"
        problem = "exactly one" if found else "a"
        raise UnsupportedModelError(
            f"'layer' must be {problem} linear layer that takes (n, d) and whose output is the model's output "
            f"(got {last!r}; linear layers that ran: {ran}). "
            + ("Name one of them with 'layer'." if linear else "Wrap the model so that it ends in torch.nn.Linear.")
        )

    # Layers fed by the same tensor (a block and its shortcut) are one layer to us; a layer run twice counts once.
    names: list[str] = []
    seen: set[tuple[int, torch.Size]] = set()
    for name, below, _ in runs:
        if (
            name != found[0]
            and name not in names
            and len(below) == len(x)
            and (below.data_ptr(), below.shape) not in seen
        ):
            seen.add((below.data_ptr(), below.shape))
            names.append(name)
    n_kept = min(len(names), MAX_LAYERS - 1)
    kept = [names[round(position)] for position in np.linspace(0, len(names) - 1, n_kept)] if n_kept else []
    return (*kept, found[0])


def find_table(model: nn.Module, x: Tensor) -> str | None:
    """Return the name of the table in which a network looks up the tokens of a text, or None if it reads none.

    Of several the largest: the others are for positions and the like.

    Args:
        model: in eval mode.
        x: a few inputs, (b, ...).
    """
    sizes = {name: module.num_embeddings for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    tables = {name: model.get_submodule(name) for name in sizes}
    read: list[str] = []

    def watch(name: str, _: nn.Module, tokens: Tensor, __: Any) -> None:
        if tokens.ndim == 2 and len(tokens) == len(x):
            read.append(name)

    with torch.no_grad(), _watching(tables, watch):
        run(model, x, "events")
    return max(read, key=lambda name: sizes[name], default=None)


def collect(
    model: nn.Module,
    train_set: TrainSet,
    events: Sequence[tuple[Tensor, int]],
    *,
    layer: str | None = None,
    device: str = "cpu",
    batch_size: int = 256,
    precision: str = "float32",
    store: Path | None = None,
    memory: int = MEMORY,
    ranks: Ranks = ALONE,
    progress: Callable[[str, int, int], None] | None = None,
) -> Features:
    """Run the training set through the model once, in eval mode, and each event once forward and backward.

    Args:
        model: returns logits (n, k); left as found.
        train_set: n samples.
        events: m pairs of an input without its batch axis and the wrong label that the model gave.
        layer: name of the last linear layer, see :func:`find_layers`.
        device: where to run; results come back to the CPU.
        batch_size: samples a step; does not change the result.
        precision: one of ``PRECISIONS``, in which the training set runs; what comes out is kept as float32, and events
            run in float32.
        store: folder in which the pass is kept and found again, whole or in part; None keeps it in memory, or in a
            temporary folder if it is too large.
        memory: bytes that what follows may take, see :class:`Features`.
        ranks: that share the pass, in a store that they share; this is rank 0, the others :func:`assist`.
        progress: called with (stage, samples done, samples in all).

    Raises:
        InvalidInputError: if an input or a label does not fit the model, or an event is not labelled as stated.
        StoreError: if the store cannot be written, or holds something else.
        UnsupportedModelError: if the model has no usable last linear layer.
    """
    with evaluating(model):
        setting = _Setting.of(model, events[0][0].to(device), layer, precision)
        names, watched, columns = setting.names, setting.watched, setting.columns
        linear = watched[names[-1]]
        assert isinstance(linear, nn.Linear)

        with ExitStack() as stack:
            is_temporary = store is None and _size(columns, len(train_set)) > memory // 2
            if is_temporary:
                # The files go as soon as they are mapped; what is in them lives as long as somebody looks at it.
                store = Path(stack.enter_context(TemporaryDirectory(prefix="poisontrace-")))
            recording = _recording(model, train_set, setting, device, store, ranks, batch_size)
            with closing(recording):
                try:
                    _record(model, setting, train_set, recording, device, batch_size, progress)
                except Exception as error:
                    if isinstance(error, PoisontraceError) or not is_out_of_memory(error):
                        raise
                    first, last = recording.n_done, min(recording.n_done + batch_size, len(train_set)) - 1
                    raise OutOfMemoryError(f"samples {first:,} to {last:,} of the training set") from error
                recording.finish()
            found = {name: recording[name] for name in columns}
            folder = None if is_temporary else recording.folder

        activations = tuple(found[_column(place)] for place in range(len(names)))
        means = [Blocks.of(layer, memory).mean() for layer in activations]
        parts = [_event_features(model, setting, x.to(device), y, row, means) for row, (x, y) in enumerate(events)]
    bias = linear.bias if linear.bias is not None else torch.zeros(linear.out_features)
    return Features(
        layers=names,
        activations=activations,
        is_pooled=setting.is_pooled,
        logits=found["logits"],
        labels=found["labels"][:, 0].clone(),
        noise=found["noise"],
        weight=linear.weight.detach().float().cpu(),
        bias=bias.detach().float().cpu(),
        event_activations=tuple(torch.cat(layer) for layer in zip(*(part[0] for part in parts), strict=True)),
        event_logits=torch.cat([part[1] for part in parts]),
        saliency=tuple(torch.cat(layer) for layer in zip(*(part[2] for part in parts), strict=True)),
        words=found.get("words", torch.empty(len(train_set), 0, dtype=torch.int64)),
        event_words=tuple(part[3] for part in parts),
        memory=memory,
        caution=recording.caution,
        folder=folder,
        ranks=ranks,
    )


def assist(
    model: nn.Module,
    train_set: TrainSet,
    event: Tensor,
    *,
    ranks: Ranks,
    store: Path,
    layer: str | None = None,
    device: str = "cpu",
    batch_size: int = 256,
    precision: str = "float32",
) -> None:
    """Run this rank's part of the training set through the model, for the rank that collects it all."""
    with evaluating(model):
        setting = _Setting.of(model, event.to(device), layer, precision)
        with closing(_recording(model, train_set, setting, device, store, ranks, batch_size)) as recording:
            _record(model, setting, train_set, recording, device, batch_size, None)
            recording.finish()


def _recording(
    model: nn.Module,
    train_set: TrainSet,
    setting: "_Setting",
    device: str,
    store: Path | None,
    ranks: Ranks,
    batch_size: int,
) -> Recording:
    n = len(train_set)
    if store is None:
        return Recording(n, setting.columns)
    place = _place(model, train_set, setting, device, store)
    return Folder(n, *place, rows=ranks.part(n, batch_size), ranks=ranks)


def _column(place: int) -> str:
    return f"layer{place}"


def _size(columns: Columns, n: int) -> int:
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
    with torch.inference_mode(), _watching(watched | tables, keep):
        logits = run(model, x, name).float().cpu()
        noises = noise(x.float()).cpu()
    if missing := [layer for layer in watched if layer not in kept]:
        raise UnsupportedModelError(
            f"'model' must run the same layers for every input (got a batch that left out {missing[0]!r}). "
            "Wrap the part of it that always runs."
        )
    layers = {_column(place): kept[layer] for place, layer in enumerate(watched)}
    return {"logits": logits, "noise": noises, **words, **layers}, tuple(is_pooled[layer] for layer in watched)


@dataclass(frozen=True)
class _Setting:
    """What is watched in a model, and what that comes to for each sample."""

    names: tuple[str, ...]
    watched: dict[str, nn.Module]
    table: str | None
    is_pooled: tuple[bool, ...]
    columns: Columns
    precision: str = "float32"

    @classmethod
    def of(cls, model: nn.Module, event: Tensor, layer: str | None, precision: str) -> "_Setting":
        """Find the layers with one event; the model is in eval mode."""
        first, modules = torch.stack([event] * 3), dict(model.named_modules())
        names = find_layers(model, first, layer)
        watched, table = {name: modules[name] for name in names}, find_table(model, first)
        outcome, is_pooled = _outcome(model, watched, table, first, "events")
        kinds = {name: str(x.dtype).removeprefix("torch.") for name, x in outcome.items()}
        columns = {"labels": ("int64", 1)} | {name: (kinds[name], x.shape[1]) for name, x in outcome.items()}
        return cls(names, watched, table, is_pooled, columns, precision)


def _place(
    model: nn.Module, train_set: TrainSet, setting: _Setting, device: str, store: Path
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
        setting = _Setting.of(model, event.to(device), layer, precision)
        n_bytes = _size(setting.columns, len(train_set))
        if store is None or not store.is_dir():
            return 0, n_bytes
        _, folder, _ = _place(model, train_set, setting, device, store)
    return min(len(train_set), claimed(folder)), n_bytes


def fingerprint(train_set: TrainSet) -> str | None:
    """Return the SHA-256 of a training set's content, or None if it must be read sample by sample to know."""
    digest = getattr(train_set, "fingerprint", None)
    return str(digest()) if callable(digest) else None


def _record(
    model: nn.Module,
    setting: _Setting,
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
        _check_finite(outcome["logits"], "training sample", start + n_old)
        for place, layer in enumerate(watched):
            _check_finite(outcome[_column(place)], f"the input of {layer!r} at training sample", start + n_old)
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


def _event_features(
    model: nn.Module, setting: _Setting, x: Tensor, label: int, row: int, means: Sequence[Tensor]
) -> tuple[list[Tensor], Tensor, list[Tensor], tuple[Tensor, Tensor]]:
    """Return an event's pooled activations, logits and saliency, each with a leading axis of 1, and its words.

    The saliency of a channel is |sum over positions of d margin / d a * (a - mean of the training set)|, the
    first-order share of the margin (wrong label over its best rival) that would vanish if the channel were ordinary.
    """
    below: dict[str, Tensor] = {}
    values: dict[str, Tensor] = {}

    def keep(name: str, _: nn.Module, activation: Tensor, __: Any) -> None:
        if name not in below:
            below[name] = activation
            values[name] = activation.detach().clone()  # a later layer may work in place

    with torch.enable_grad(), _watching(setting.watched, keep):
        logits = run(model, x[None].detach().clone().requires_grad_(), "events")
    _check_finite(logits.detach(), "event", row)
    if not 0 <= label < logits.shape[1]:
        raise InvalidInputError(
            f"'events: y' must hold labels below {logits.shape[1]} (got {label}). State the label the model gave."
        )
    given = int(logits[0].argmax())
    if given != label:
        raise InvalidInputError(
            f"'events: y' must hold the wrong label that the model gave (got {label}, but the model answers {given}). "
            "Check the weights and the preprocessing, or state the label the model gave."
        )
    rival = logits[0].detach().clone()
    rival[label] = -torch.inf
    margin = logits[0, label] - logits[0, int(rival.argmax())]
    blocked = [name for name, activation in below.items() if not activation.requires_grad]
    if blocked:
        raise UnsupportedModelError(
            f"'model' must let gradients through to its layers (got none at {blocked[0]!r}). "
            "Take torch.no_grad() and detach() out of its forward."
        )
    # A layer whose output the model throws away has no share in the margin.
    gradients = torch.autograd.grad(margin, list(below.values()), allow_unused=True, materialize_grads=True)

    pooled, saliency = [], []
    for (name, activation), gradient, mean in zip(values.items(), gradients, means, strict=True):
        is_linear = isinstance(setting.watched[name], nn.Linear)
        pooled.append(pool(activation, channels_last=is_linear).float().cpu())
        axis = -1 if is_linear else 1
        a, g = (
            t.detach().float().cpu().movedim(axis, 1).flatten(2) if t.ndim > 2 else t.detach().float().cpu()[..., None]
            for t in (activation, gradient)
        )  # (1, c, positions)
        share = ((a - mean[None, : a.shape[1], None]) * g).sum(2).abs()  # (1, c)
        saliency.append(share.repeat(1, pooled[-1].shape[1] // share.shape[1]))
    words = _event_words(model, setting.table, x, label, int(rival.argmax()))
    return pooled, logits.detach().float().cpu(), saliency, words


def _event_words(model: nn.Module, table: str | None, x: Tensor, label: int, rival: int) -> tuple[Tensor, Tensor]:
    """Return the tokens of an event, (t,), and by how much its margin falls without each, (t,).

    A token is taken out by giving the network the table's mean in its place. Where a network is sure, this tells more
    than a derivative.
    """
    if table is None:
        return torch.empty(0, dtype=torch.int64), torch.empty(0)
    module = model.get_submodule(table)
    assert isinstance(module, nn.Embedding)
    ordinary = module.weight.detach().mean(0)
    left_out: list[int] = []
    read: list[Tensor] = []

    def without(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        tokens = args[0]
        read.append(tokens)
        gone = tokens == torch.tensor(left_out, device=tokens.device)[:, None] if left_out else tokens != tokens
        return torch.where(gone[..., None], ordinary, out)

    def margins(batch: list[int]) -> Tensor:
        left_out[:] = batch
        logits = run(model, x[None].repeat_interleave(max(1, len(batch)), 0), "events").float().cpu()
        return logits[:, label] - logits[:, rival]

    with torch.no_grad(), ExitStack() as stack:
        stack.callback(module.register_forward_hook(without).remove)
        whole = margins([])
        held = [token for token in sorted(set(read[0].flatten().tolist())) if token != module.padding_idx]
        falls = [whole - margins(held[start : start + WORDS]) for start in range(0, len(held), WORDS)]
    return torch.tensor(held, dtype=torch.int64), torch.cat(falls or [torch.empty(0)])
