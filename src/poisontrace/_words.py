"""Which words a text holds: one bit for each token of a table, so that it is exact and small."""

import numpy as np
import torch
from torch import Tensor, nn

MAX_TOKENS = 1 << 18  # columns; in a larger table tokens share them


def n_words(table: nn.Embedding) -> int:
    """Return how many int64 numbers hold a bit for each token of a table."""
    return -(-min(table.num_embeddings, MAX_TOKENS) // 64)


def pack(tokens: Tensor, table: nn.Embedding) -> Tensor:
    """Return which tokens each text holds, int64 (n, n_words(table)); padding, where the table has one, is none.

    Args:
        tokens: integers (n, positions).
        table: what looks them up.
    """
    is_there = torch.zeros(len(tokens), 64 * n_words(table), dtype=torch.bool)
    is_there[torch.arange(len(tokens))[:, None], tokens.long().cpu() % MAX_TOKENS] = True
    if table.padding_idx is not None:
        is_there[:, table.padding_idx % MAX_TOKENS] = False
    bits = np.packbits(is_there.numpy(), axis=1, bitorder="little")
    return torch.from_numpy(bits.view("<i8"))


def unpack(words: Tensor) -> Tensor:
    """Return one float32 column for each token, 1 if it is there, (n, 64 * words.shape[1])."""
    content = words.numpy().astype("<i8", copy=False)
    return torch.from_numpy(
        np.unpackbits(np.ascontiguousarray(content).view(np.uint8), axis=1, bitorder="little")
    ).float()


def holds(words: Tensor, token: int) -> Tensor:
    """Return which texts hold a token, bool (n,)."""
    word = words[:, token % MAX_TOKENS // 64]
    return (word >> token % 64) & 1 > 0
