"""Do several things at once that do not depend on each other, on as many threads as the caller lent.

NumPy, LAPACK and torch work without Python's lock, so the starts of a search run side by side. Each is done by one
thread alone, and results come in the order of what they are of: they are the same, to the byte, on any number of
threads. None waits for another but at the end, so that other work on the machine does no harm (decision 0005).
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

MAX_THREADS = 4  # more wait for Python's lock
_LENT = ContextVar("_LENT", default=1)


@contextmanager
def lent(n_threads: int) -> Iterator[None]:
    """Let :func:`abreast` use so many threads inside the block, ``MAX_THREADS`` at most."""
    token = _LENT.set(max(1, min(n_threads, MAX_THREADS)))
    try:
        yield
    finally:
        _LENT.reset(token)


def abreast(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield what a function makes of each item, in their order.

    Args:
        function: changes nothing that another call of it reads.
        items: what it is called with.
    """
    if _LENT.get() == 1:
        yield from map(function, items)
        return
    # New threads each time, which costs next to nothing: torch gives a thread of its own the number of threads that
    # were set when it began.
    with ThreadPoolExecutor(_LENT.get(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(function, items)
