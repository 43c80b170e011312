"""Where the work is done: on which device, on how many threads, and in which numbers."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits
from torch import nn

from poisontrace._errors import InvalidInputError


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread inside the block: its many small products lose more to waiting for others than they gain.

    On a busy machine the difference is fiftyfold.
    """
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(n_threads)


def resolve(device: str) -> str:
    """Return the device that is meant, or refuse one that cannot be used here."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device).cpu()  # "meta" has no way back
    except (RuntimeError, AssertionError, ImportError) as error:
        raise InvalidInputError(f"'device' must be usable here (got {device!r}). Pass 'cpu' or 'auto'.") from error
    return device


def in_bfloat16(device: str = "cpu", *, enabled: bool = True) -> torch.autocast:
    """Return a context in which a network runs in bfloat16, but in float32 where the processor only imitates that.

    An imitation takes ten times as long as float32, which is the better of the two anyway.
    """
    kind = device.split(":")[0]
    has_library = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    # oneDNN alone knows; torch.cpu asks for one family of instructions, but there are others that do as well.
    is_fast = kind != "cpu" or (has_library and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=enabled and is_fast)


@contextmanager
def placed(model: nn.Module, device: str) -> Iterator[None]:
    """Have the model on ``device`` inside the block and back where it was after it."""
    home = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    try:
        model.to(device)
        yield
    finally:
        model.to(home)
