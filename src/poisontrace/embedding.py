"""What each training sample does to each layer: one forward pass, rank-one gradients that are never written out.

The gradient of a loss with respect to the weights of a linear or convolutional layer is the product of what arrives
from above (the residual) and what arrives from below (the activation). For the last linear layer z = W h + b it is
exactly (p - target) (x) h, so one forward pass gives the embedding of Poison Forensics section 4.2 without a Jacobian.
The same pass hands over the inputs of a spread of earlier layers, pooled over space or tokens, because the footprint of
a trigger is in the middle of a network and that of a feature collision at its end (decision 0002).
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from poisontrace._blocks import MEMORY, Blocks
from poisontrace._errors import (
    InvalidInputError,
    OutOfMemoryError,
    PoisontraceError,
    UnsupportedModelError,
    is_out_of_memory,
)
from poisontrace.data import TrainSet
from poisontrace.forward import Setting, column_of, record, recording_of, size_of
from poisontrace.ranks import ALONE, Ranks
from poisontrace.watching import check_finite, differentiable, evaluating, pool, run, watching

WORDS = 16  # that are left out of an event at a time


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
        noise: float32 (n, 2 c) for images of c channels, else (n, 0), see :func:`poisontrace.watching.noise`.
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
        layer: name of the last linear layer, see :func:`poisontrace.watching.find_layers`.
        device: where to run; results come back to the CPU.
        batch_size: samples a step; does not change the result.
        precision: one of ``forward.PRECISIONS``, in which the training set runs; what comes out is kept as float32, and
            events run in float32.
        store: folder in which the pass is kept and found again, whole or in part; None keeps it in memory, or in a
            temporary folder if it is too large.
        memory: bytes that what follows may take, see :class:`Features`.
        ranks: that share the pass, in a store that they share; this is rank 0, the others :func:`assist`.
        progress: called with (stage, samples done, samples in all).

    Raises:
        InvalidInputError: if an input or a label does not fit the model, or an event is not labelled as stated (which
            shows before the pass).
        StoreError: if the store cannot be written, or holds something else.
        UnsupportedModelError: if the model has no usable last linear layer.
    """
    with evaluating(model):
        setting = Setting.of(model, events[0][0].to(device), layer, precision)
        names, watched, columns = setting.names, setting.watched, setting.columns
        linear = watched[names[-1]]
        assert isinstance(linear, nn.Linear)
        with differentiable(model):
            for row, (x, y) in enumerate(events):  # before the pass, which may take hours
                _event_logits(model, x.to(device), y, row)

        with ExitStack() as stack:
            is_temporary = store is None and size_of(columns, len(train_set)) > memory // 2
            if is_temporary:
                # The files go as soon as they are mapped; what is in them lives as long as somebody looks at it.
                store = Path(stack.enter_context(TemporaryDirectory(prefix="poisontrace-")))
            recording = recording_of(model, train_set, setting, device, store, ranks, batch_size)
            with closing(recording):
                try:
                    record(model, setting, train_set, recording, device, batch_size, progress)
                except Exception as error:
                    if isinstance(error, PoisontraceError) or not is_out_of_memory(error):
                        raise
                    first, last = recording.n_done, min(recording.n_done + batch_size, len(train_set)) - 1
                    raise OutOfMemoryError(f"samples {first:,} to {last:,} of the training set") from error
                recording.finish()
            found = {name: recording[name] for name in columns}
            folder = None if is_temporary else recording.folder

        activations = tuple(found[column_of(place)] for place in range(len(names)))
        means = [Blocks.of(layer, memory).mean() for layer in activations]
        with differentiable(model):  # what looks up tokens has no other way to a gradient
            parts = [_event_features(model, setting, x.to(device), y, row, means) for row, (x, y) in enumerate(events)]
    bias = linear.bias if linear.bias is not None else torch.zeros(linear.out_features, dtype=torch.float32)
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
        setting = Setting.of(model, event.to(device), layer, precision)
        with closing(recording_of(model, train_set, setting, device, store, ranks, batch_size)) as recording:
            record(model, setting, train_set, recording, device, batch_size, None)
            recording.finish()


@torch.enable_grad()  # networks may take another way without
def _event_logits(model: nn.Module, x: Tensor, label: int, row: int) -> Tensor:
    """Return the logits of an event, (1, k), or refuse it if they are not what was stated."""
    logits = run(model, x[None].detach().clone().requires_grad_(), "events")
    check_finite(logits.detach(), "event", row)
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
    return logits


def _event_features(
    model: nn.Module, setting: Setting, x: Tensor, label: int, row: int, means: Sequence[Tensor]
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

    with watching(setting.watched, keep):
        logits = _event_logits(model, x, label, row)
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
        check_finite(pooled[-1], f"the input of {name!r} at event", row)
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
        return torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float32)
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
    return torch.tensor(held, dtype=torch.int64), torch.cat(falls or [torch.empty(0, dtype=torch.float32)])
