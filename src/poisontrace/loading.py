"""A user's own model: a factory that builds it and a file of weights. Nothing here unpickles.

The factory is the one place where code from the evidence runs; the command line says so before it does.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from poisontrace._errors import InvalidInputError, UnsupportedModelError
from poisontrace._validate import check_file

PRODUCTS = {
    "model": "the network",
    "data": "the training set",
    "events": "the list of pairs (x, wrong label)",
    "test": "the held-out samples",
    "attempts": "the list of pairs (x, wrong label)",
    "train_with": "the trained network",
}


def find_factory(spec: str, name: str = "model") -> tuple[Path | None, Callable[..., Any]]:
    """Import ``file.py:function`` or ``package.module:function``.

    Args:
        spec: what to import.
        name: the argument's name, for messages.

    Returns:
        the file, if it was named as one, and the factory.

    Raises:
        InvalidInputError: if the form is another one, or there is no such file, module or callable.
    """
    where, _, attribute = spec.rpartition(":")
    if not where or not attribute.isidentifier():
        raise InvalidInputError(
            f"'{name}' must be file.py:function or package.module:function (got {spec!r}). Name the file and the "
            f"function in it that returns {PRODUCTS[name]}."
        )
    path = None
    try:
        if where.endswith(".py"):
            path = check_file(Path(where), name)
            module_spec = importlib.util.spec_from_file_location(f"poisontrace_{name}_{path.stem}", path)
            assert module_spec is not None and module_spec.loader is not None
            module = importlib.util.module_from_spec(module_spec)
            sys.modules[module_spec.name] = module  # dataclasses and the like look their module up
            # The file may import its neighbours, as it could where it was written.
            with _importing_from(path.resolve().parent):
                module_spec.loader.exec_module(module)
        else:
            with _importing_from(Path.cwd()):  # an installed command does not look there by itself
                module = importlib.import_module(where)
    except InvalidInputError:
        raise
    except (Exception, SystemExit) as error:  # code from outside may raise anything
        raise InvalidInputError(
            f"'{name}' must be importable (got {type(error).__name__}: {_first_line(error)} in {where!r}). "
            "Check the code and the packages that it needs."
        ) from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise InvalidInputError(
            f"'{name}' must name a callable in {where!r} (got {attribute!r}). Name a function there that returns "
            f"{PRODUCTS[name]}."
        )
    return path, factory


def load_model(factory: Callable[[], Any], weights: Path | None) -> nn.Module:
    """Build a model and load its weights.

    Args:
        factory: called without arguments, returns the ``nn.Module``.
        weights: safetensors, or a state dict that ``torch.load(weights_only=True)`` reads; None keeps what the factory
            filled in.

    Returns:
        the model in eval mode on the CPU.

    Raises:
        InvalidInputError: if the factory fails, the file is missing, is pickled, or does not fit the model.
        UnsupportedModelError: if the factory returns something else than a module.
    """
    state = None if weights is None else read_state(weights)
    model = call(factory)
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(
            f"'model' must return a torch.nn.Module (got {type(model).__name__}). Name the function that builds it."
        )
    if state is None:
        return model.cpu().eval()
    expected = model.state_dict()
    problems = [f"missing {name!r}" for name in expected if name not in state]
    problems += [f"unexpected {name!r}" for name in state if name not in expected]
    problems += [
        f"{name!r} of shape {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and not is_lazy(tensor) and state[name].shape != tensor.shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InvalidInputError(
            f"'weights' must fit the model (got {', '.join(problems[:3])}{more}). Check the factory's settings."
        )
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise InvalidInputError(
                f"'weights' must hold finite numbers (got NaN or infinity in {name!r}). "
                "Name a checkpoint from before the training diverged."
            )
    model.load_state_dict(state)
    return model.cpu().eval()


def call(factory: Callable[[], Any], name: str = "model") -> Any:
    """Return what a factory makes.

    Raises:
        InvalidInputError: if it fails.
    """
    try:
        return factory()
    except (Exception, SystemExit) as error:  # code from outside may raise anything
        raise InvalidInputError(
            f"'{name}' must be a factory that works without arguments (got {type(error).__name__}: "
            f"{_first_line(error)}). Name a function that fills in the settings of the training."
        ) from error


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict from safetensors or from a file that ``torch.load`` reads without pickle.

    Raises:
        InvalidInputError: if the file is missing, damaged, or needs pickle.
    """
    check_file(path, "weights")
    if path.suffix == ".safetensors":
        try:
            state: Any = load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise InvalidInputError(
                f"'weights' must be a safetensors file (got {_first_line(error)} in {path.name!r}). "
                "Write or copy it again."
            ) from error
        return dict(state)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes from outside may raise anything
        raise InvalidInputError(
            f"'weights' must be safetensors or a plain state dict (got {path.name!r}, which is pickled or damaged; a "
            "pickle can run code when it is opened). Where it was trained, write it with "
            "safetensors.torch.save_file(model.state_dict(), path)."
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not state or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise InvalidInputError(
            f"'weights' must be a state dict of tensors (got {type(state).__name__} in {path.name!r}). "
            "Save model.state_dict() alone."
        )
    return state


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Let imports inside the block find what lies in ``folder``, and leave no bytecode among the evidence."""
    keep = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.dont_write_bytecode = keep
        if str(folder) in sys.path:  # the code may have changed it
            sys.path.remove(str(folder))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]
