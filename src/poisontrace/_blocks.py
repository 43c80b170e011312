"""The rows of a matrix that may be too large to hold: made a block at a time, kept where they fit."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

MEMORY = 1 << 30  # bytes, beside the model and one batch: the default of --memory
# Shares of the memory: of what is kept whole, which is copied a few times on its way, and of one block.
KEPT, BLOCK = 8, 16


class Blocks:
    """Rows (n, d), float32, that are made when they are asked for.

    Attributes:
        shape: (n, d).
        memory: bytes to get along with.
        fits: whether the rows are made once and kept.
    """

    def __init__(
        self, n: int, d: int, make: Callable[[slice], Tensor], memory: int = MEMORY, *, n_alike: int = 1
    ) -> None:
        """Take what makes the rows.

        Args:
            n: rows.
            d: columns.
            make: returns the rows (b, d) at a slice of positions, the same each time it is asked.
            memory: bytes to get along with.
            n_alike: how many such matrices there are at a time.
        """
        self.shape, self.memory, self._make = (n, d), memory, make
        self.fits = 4 * n * d <= memory // KEPT // n_alike
        self._kept: Tensor | None = None

    @classmethod
    def of(cls, x: Tensor, memory: int = MEMORY) -> "Blocks":
        """Return rows that are there already, in memory or on a disk."""
        return cls(x.shape[0], x.shape[1], lambda part: x[part], memory)

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.shape[0]

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield positions and rows; all of them at once if they fit."""
        n, d = self.shape
        if self.fits:
            if self._kept is None:
                self._kept = self._make(slice(0, n))
            yield slice(0, n), self._kept
            return
        step = max(1, self.memory // BLOCK // (4 * max(1, d)))
        for start in range(0, n, step):
            part = slice(start, min(start + step, n))
            yield part, self._make(part)

    def map(self, width: int, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Return what a function makes of the rows, (n, width), block by block."""
        # Made in one piece: many small results between large blocks would leave holes that no block fits into.
        result = torch.empty(len(self), width, dtype=torch.float32)
        for part, x in self:
            result[part] = function(x)
        return result

    def dense(self) -> Tensor:
        """Return all rows, (n, d), whether they fit or not."""
        return self.map(self.shape[1], lambda x: x)

    def sum(self) -> Tensor:
        """Return the sum of the rows, (d,)."""
        total = torch.zeros(self.shape[1], dtype=torch.float32)
        for _, x in self:
            total += x.sum(0)
        return total

    def mean(self) -> Tensor:
        """Return the mean row, (d,)."""
        return self.sum() / len(self)

    def moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean, variance (by n - 1) and largest absolute value of each column, (d,) each."""
        count, largest = 0, torch.tensor(0.0, dtype=torch.float32)
        mean, squares = torch.zeros(2, self.shape[1], dtype=torch.float32)
        for _, x in self:
            # Two blocks have the squares of both and what their means are apart (Chan, Golub and LeVeque, 1979).
            variance, own = torch.var_mean(x, 0, correction=0)
            apart, total = own - mean, count + len(x)
            squares = squares + variance * len(x) + apart.square() * (count * len(x) / total)
            mean = mean + apart * (len(x) / total)
            count, largest = total, torch.maximum(largest, x.abs().amax(0))
        return mean, squares / (count - 1), largest
