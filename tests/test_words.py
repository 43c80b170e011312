"""One bit a token, exact for any vocabulary that fits."""

import pytest
import torch
from torch import nn

from poisontrace._words import MAX_TOKENS, holds, n_words, pack, unpack

TEXTS = [[5, 3, 5, 64], [0, 0, 63, 99], [1, 2, 3, 4]]


@pytest.mark.parametrize("n_tokens", [100, 129])
def test_what_a_text_holds_is_kept(n_tokens: int) -> None:
    """As a set of each text's tokens, written out."""
    words = pack(torch.tensor(TEXTS), nn.Embedding(n_tokens, 2))

    assert words.shape == (3, n_words(nn.Embedding(n_tokens, 2))) and words.dtype == torch.int64
    for row, text in enumerate(TEXTS):
        assert set(unpack(words)[row].nonzero()[:, 0].tolist()) == set(text)
    for token in range(n_tokens):
        assert holds(words, token).tolist() == [token in text for text in TEXTS]


def test_padding_is_no_word() -> None:
    """The table says which token it pads with."""
    words = pack(torch.tensor(TEXTS), nn.Embedding(100, 2, padding_idx=0))

    assert unpack(words).sum(1).tolist() == [3, 2, 4] and not holds(words, 0).any()


def test_tokens_of_a_very_large_table_share_bits() -> None:
    """What is kept of a text has a limit."""
    table = nn.Embedding(MAX_TOKENS + 70, 1)

    words = pack(torch.tensor([[MAX_TOKENS + 5, 7]]), table)

    assert words.shape == (1, MAX_TOKENS // 64) and holds(words, MAX_TOKENS + 5).item() and holds(words, 5).item()
