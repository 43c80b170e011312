"""Several processes, one trace: each runs a part of the training set, the first one decides, the others help it.

``torchrun`` starts the processes, called ranks, and ends all of them when one dies; ``torch.distributed`` carries what
they tell each other: gloo for what lies on the CPU, and nccl for what lies on a GPU. Only rank 0 searches, writes the
case and speaks, so that nothing depends on two machines rounding alike (decision 0016).
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

from poisontrace._errors import RankError

# Ranks wait for the slowest one as long as it lives; one that dies is noticed at once, by its connection.
PATIENCE = timedelta(days=7)
DIED = (
    "Another process of this run ended before its work was done. Give the same command again: it goes on from what is "
    "written down."
)


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, seen from one of them; one that is alone has nobody to talk to.

    Attributes:
        rank: the position of this one.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that decides, writes and speaks."""
        return self.rank == 0

    def part(self, n: int, step: int, rank: int | None = None) -> range:
        """Return which of n samples a rank runs, this one if none is named: whole batches of ``step``, in one run.

        The batches are then those of a process that is alone, and so are their results, to the bit.
        """
        rank, n_batches = self.rank if rank is None else rank, -(-n // step)
        start, stop = (min(n, step * (n_batches * position // self.size)) for position in (rank, rank + 1))
        return range(start, stop)

    def wait(self) -> None:
        """Go on when every rank has come here.

        Raises:
            RankError: if one died; so do all methods below.
        """
        if self.size > 1:
            _talk(dist.barrier)

    def least(self, number: int) -> int:
        """Return the least of the numbers that the ranks name."""
        if self.size == 1:
            return number
        numbers = torch.tensor([number])
        _talk(lambda: dist.all_reduce(numbers, op=dist.ReduceOp.MIN))
        return int(numbers[0])

    def sum(self, *tensors: Tensor) -> None:
        """Put the sum over all ranks into each tensor, the same bits everywhere."""
        for tensor in tensors if self.size > 1 else ():
            _talk(partial(dist.all_reduce, tensor))

    def tell(self, tensor: Tensor) -> Tensor:
        """Overwrite a tensor with what rank 0 has in it; return it."""
        if self.size > 1:
            _talk(lambda: dist.broadcast(tensor, src=0))
        return tensor

    def send(self, tensor: Tensor, rank: int) -> None:
        """Send a tensor to one rank, which must :meth:`receive` one of its shape."""
        _talk(lambda: dist.send(tensor.contiguous(), rank))

    def receive(self, tensor: Tensor) -> Tensor:
        """Overwrite a tensor with the one that rank 0 sent; return it."""
        _talk(lambda: dist.recv(tensor, 0))
        return tensor


ALONE = Ranks()


def _talk(call: Callable[[], Any]) -> None:
    try:
        call()
    except RuntimeError as error:  # gloo and nccl say in many ways that a connection was closed
        raise RankError(DIED) from error


@contextmanager
def joined() -> Iterator[Ranks]:
    """Yield the ranks that ``torchrun`` started, seen from this one; :data:`ALONE` without it.

    When a block ends in an error on some rank, the first one to know of it raises it; the others leave quietly, with
    exit code 1. ``torchrun`` tells the others by SIGTERM.
    """
    if not dist.is_available() or not dist.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
        yield ALONE
        return
    shared, rank, size = next(rendezvous("env://", timeout=PATIENCE))
    before = signal.signal(signal.SIGTERM, _end)
    try:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        dist.init_process_group(store=shared, rank=rank, world_size=size, timeout=PATIENCE)
        yield Ranks(rank, size)
        dist.destroy_process_group()
    except (Exception, KeyboardInterrupt, _Ended) as error:
        if not _is_first_to_fail(shared):
            raise SystemExit(1) from error
        if isinstance(error, _Ended):
            raise RankError(DIED) from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


class _Ended(BaseException):
    """torchrun ends this rank; no Exception, for code that handles those of the user's code would take it for one."""


def _end(*_: Any) -> None:
    raise _Ended


def _is_first_to_fail(shared: Any) -> bool:
    try:
        return bool(shared.add("poisontrace/failed", 1) == 1)
    except RuntimeError:  # it lay with a machine that is gone
        return True
