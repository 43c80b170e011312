"""Texts as a training set: tokens as numbers, padded at the end with a number that is no token."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from poisontrace.data import batches_of, digest_of

Tokenize = Callable[[list[str]], list[list[int]]]

PADDING = -1.0
CAUTION = (
    "In texts only planted words are found, rare ones in samples that were given another label: no poison found says "
    "nothing of a trigger in the style, or of samples that kept their label."
)


class TextSet:
    """A training set of texts: each sample is the numbers of its tokens as float32, which holds them exactly.

    Attributes:
        texts: as they were read.
        ids: a name for each.
        classes: names of the labels.
        columns: the column of the texts.
        sources: where each came from, if that is known.
    """

    form = "texts"

    def __init__(
        self,
        texts: Sequence[str],
        y: NDArray[np.int64],
        ids: Sequence[str],
        classes: Sequence[str] | None,
        tokenize: Tokenize,
        columns: Sequence[str] = ("text",),
        sources: Sequence[str] | None = None,
    ) -> None:
        """Turn every text into tokens."""
        self.texts, self.y = list(texts), y
        self.ids, self.classes = tuple(ids), None if classes is None else tuple(classes)
        self.columns = tuple(columns)
        self.sources = None if sources is None else tuple(sources)
        self._name_of: Callable[[int], str] | None = getattr(tokenize, "name_of", None)
        self._tokens = [np.array(tokens, np.float32) for tokens in tokenize(self.texts)]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._tokens)

    def name_of(self, token: int) -> str:
        """Return how a token is written, in quotes."""
        return f"token {token}" if self._name_of is None else f"“{self._name_of(token)}”"

    def batches(
        self, batch_size: int, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
        """Yield inputs, as long as the longest of a batch, and labels of a run of samples in order."""
        for rows in batches_of(len(self), batch_size, start, stop):
            yield _padded(self._tokens[rows]), self.y[rows]

    def inputs(self, indices: NDArray[np.int64]) -> Tensor:
        """Return the inputs of some samples, as long as the longest of all."""
        longest = max(len(tokens) for tokens in self._tokens)
        return _padded([self._tokens[int(index)] for index in indices], longest)

    def fingerprint(self) -> str:
        """Return the SHA-256 of the tokens and labels."""
        return digest_of(self.y, np.array([len(tokens) for tokens in self._tokens]), *self._tokens)


def _padded(tokens: Sequence[NDArray[np.float32]], longest: int = 1) -> Tensor:
    x = np.full((len(tokens), max([longest, *map(len, tokens)])), PADDING, np.float32)
    for row, numbers in enumerate(tokens):
        x[row, : len(numbers)] = numbers
    return torch.from_numpy(x)
