"""Look into a network while it runs: which layers to watch, what they are fed, and what is made of it.

The model is left as found: hooks are removed, modes restored, and a model that works in place gets a copy.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from poisontrace._errors import InvalidInputError, UnsupportedModelError, is_out_of_memory

MAX_LAYERS = 10  # enough to hold every layer of a ResNet-9; deeper networks are sampled evenly
LARGEST = 1e19  # activation; of what is larger, float32 holds no square, and so no variance
STEADY = 1e-2  # of the largest logit, and at least of 1: answers to one input differ by less, in any number format
ALIKE = 2e-2  # likewise, an output and what the last layer's weights make of its input


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
def watching(modules: dict[str, nn.Module], watch: Callable[[str, nn.Module, Tensor, Any], None]) -> Iterator[None]:
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


@contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """Let every parameter require gradients inside the block, and after it those that did before."""
    frozen = [
        parameter
        for parameter in model.parameters()
        if parameter.is_floating_point() and not parameter.requires_grad and not parameter.is_inference()
    ]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


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
        kinds = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
        if len(kinds) == 1 and torch.float32 not in kinds:
            kind = str(kinds.pop()).removeprefix("torch.")
            raise UnsupportedModelError(
                f"'model' must take float32 inputs (got parameters of {kind}: {reason}). Convert it with .float()."
            ) from error
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


def check_finite(values: Tensor, what: str, first_row: int = 0) -> None:
    """Refuse numbers that are not finite, or have no finite square, and name the first row (n, ...) that holds one."""
    is_fine = values.float().abs() <= LARGEST  # NaN is not
    if not bool(is_fine.all()):
        row = int((~is_fine.all(1)).nonzero()[0])
        got = "a number beyond 1e19" if bool(torch.isfinite(values[row]).all()) else "NaN or infinity"
        raise InvalidInputError(f"'weights' must give finite outputs (got {got} for {what} {first_row + row}).")


def check_steady(logits: Tensor) -> None:
    """Refuse logits (b, k) that differ though the inputs were the same."""
    off = float((logits - logits[:1]).abs().max())
    if off > STEADY * (1 + float(logits.abs().max())):
        raise UnsupportedModelError(
            f"'model' must give the same answer to the same input (got logits {off:.2g} apart). "
            "Switch off sampling and dropout in its forward."
        )


def check_head(layer: nn.Module, below: Tensor, output: Tensor, name: str) -> None:
    """Refuse a last layer whose weights do not make the model's output of what it was fed."""
    assert isinstance(layer, nn.Linear)
    off = float("inf")
    if below.shape == (len(output), layer.in_features):
        with torch.no_grad():
            bias = 0 if layer.bias is None else layer.bias.float()
            logits = below.float() @ layer.weight.float().T + bias  # (n, d) @ (d, k) -> (n, k)
        off = float((logits.log_softmax(1) - output.float().log_softmax(1)).abs().max())
    if off > ALIKE * (1 + float(output.abs().max())):
        raise UnsupportedModelError(
            "'model' must answer with the input of its last linear layer times its weights (got logits "
            f"{off:.2g} away from those of the first run of {name!r}). Run that layer once, and let it do nothing else."
        )


def find_layers(model: nn.Module, x: Tensor, last: str | None = None) -> tuple[str, ...]:
    """Return the names of the layers to watch, in the order they run; the last one is the last linear layer.

    Args:
        model: in eval mode.
        x: a few inputs, (b, ...); more than one, so that a layer fed by a constant is not taken for one of the batch.
        last: name of the last linear layer; None finds the one whose output is the model's output.

    Returns:
        at most ``MAX_LAYERS`` names, spread evenly, the first layer with weights and the last linear layer among them.

    Raises:
        UnsupportedModelError: if no linear layer, or more than one, ends in the model's output, or the model's answer
            to an input depends on the others.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise UnsupportedModelError(
                f"'model' must answer each input on its own (got {name!r}, a batch normalisation without running "
                "statistics). Build it with track_running_stats=True, and train it so."
            )
    weighted: dict[str, nn.Module] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    }
    runs: list[tuple[str, Tensor, Tensor]] = []
    with torch.no_grad(), watching(weighted, lambda name, _, below, out: runs.append((name, below, out.clone()))):
        output = run(model, x, "events")
    check_finite(output, "event")

    def is_output(out: Any) -> bool:
        # log_softmax on top changes neither the probabilities nor the algebra, so it is accepted.
        if not isinstance(out, Tensor) or out.shape != output.shape:
            return False
        tolerance = 1e-4 if out.dtype == output.dtype == torch.float32 else 2e-2  # rounded on the way from one to other
        return torch.allclose(out.float().log_softmax(1), output.float().log_softmax(1), atol=tolerance)

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

    if any(name == found[0] and is_output(out) for name, _, out in linear):  # else named, though the model goes on
        below = next(below for name, below, _ in linear if name == found[0])  # of the first run, as in the pass
        check_head(weighted[found[0]], below, output, found[0])

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

    with torch.no_grad(), watching(tables, watch):
        run(model, x, "events")
    return max(read, key=lambda name: sizes[name], default=None)
