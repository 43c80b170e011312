"""The pass: what it keeps, that it goes on where it was cut short, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
import torch
from networks import TOKENS, Reader, answer, made, mlp, noisy
from torch import Tensor, nn

from poisontrace._errors import InvalidInputError, StoreError, UnsupportedModelError
from poisontrace._rng import global_seed
from poisontrace._words import unpack
from poisontrace.data import ArraySet, as_train_set
from poisontrace.embedding import Features, collect
from poisontrace.forward import recorded


class _Source:
    """Samples of a user's own, which may change."""

    def __init__(self, x: Tensor, y: list[int]) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index], self.y[index]


def _stored(source: _Source, model: nn.Module, store: Path) -> Features:
    event = torch.ones(4)
    return collect(model, as_train_set(source), [(event, answer(model, event))], batch_size=2, store=store)


def test_samples_that_changed_since_the_store_was_written_are_named(tmp_path: Path) -> None:
    """A data set of the user's own is read again and compared, sample by sample; labels count as well."""
    model, source = made(mlp), _Source(noisy(7, 4), [0, 1, 2, 0, 1, 2, 0])
    before = _stored(source, model, tmp_path)
    after = _stored(source, model, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(before.activations, after.activations, strict=True))

    source.x[5, 0] += 1
    with pytest.raises(InvalidInputError, match=r"'train_set' must be the same each time .* another sample 5 than"):
        _stored(source, model, tmp_path)
    source.x[5, 0] -= 1
    source.y[4] = 0
    with pytest.raises(InvalidInputError, match=r"another sample 4 than"):
        _stored(source, model, tmp_path)


def test_a_pass_of_another_precision_is_another_pass(tmp_path: Path) -> None:
    """Each has its place in the store and is found again; what is kept is float32, and the event is untouched."""
    model, data = made(mlp), ArraySet(noisy(300, 4).numpy(), np.zeros(300, int))
    events = [(torch.ones(4), answer(model, torch.ones(4)))]
    full, half, again = (
        collect(model, data, events, store=tmp_path, precision=precision)
        for precision in ("float32", "bfloat16", "bfloat16")
    )
    assert len(list(tmp_path.iterdir())) == 2
    assert full.folder != half.folder == again.folder
    assert torch.equal(half.hidden, again.hidden)
    assert half.hidden.dtype == torch.float32
    assert not torch.equal(full.hidden, half.hidden)
    torch.testing.assert_close(full.hidden, half.hidden, rtol=2e-2, atol=2e-2)
    assert torch.equal(full.event_logits, half.event_logits)
    counts = [recorded(model, data, events[0][0], tmp_path, precision=p)[0] for p in ("float32", "bfloat16", "float16")]
    assert counts == [300, 300, 0]


def test_a_pass_that_was_cut_short_goes_on(tmp_path: Path) -> None:
    """What a failing data set gave before it failed is not run again, and the result is that of one go."""
    model, source = made(mlp), _Source(noisy(7, 4), [0, 1, 2, 0, 1, 2, 0])
    whole = _stored(source, model, tmp_path / "whole")
    rows = source.x

    class Failing(_Source):
        n_read = 0

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            self.n_read += index == 5
            if self.n_read > 2:  # not yet where it is looked for random augmentation
                raise OSError("the disk is gone")
            return rows[index], self.y[index]

    with pytest.raises(InvalidInputError, match=r"'train_set' must yield pairs .*the disk is gone at index 5\)"):
        _stored(Failing(rows, source.y), model, tmp_path / "part")
    sizes: list[int] = []
    hook = model.register_forward_hook(lambda _, args, __: sizes.append(len(args[0])))

    continued = _stored(source, model, tmp_path / "part")

    hook.remove()
    # Three events to find the layers, twice; the first batch as a check; what was missing; the event.
    assert sizes[-4:] == [2, 2, 1, 1]
    assert all(torch.equal(a, b) for a, b in zip(whole.activations, continued.activations, strict=True))
    assert torch.equal(whole.logits, continued.logits)


def test_a_model_that_changed_where_nobody_sees_it_is_found_out(tmp_path: Path) -> None:
    """The first batch is compared with what the store holds."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.scale = nn.Linear(4, 3), 1.0

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x * self.scale)

    model, source = made(Scaled), _Source(noisy(7, 4), [0, 1, 2, 0, 1, 2, 0])
    _stored(source, model, tmp_path)
    model.scale = 3.0

    with pytest.raises(StoreError, match=r"'store' must hold what this model makes of these data"):
        _stored(source, model, tmp_path)


@pytest.mark.parametrize(("claimed", "got"), [(5, "more"), (9, "7")])
def test_a_set_of_another_length_than_it_says_is_refused(claimed: int, got: str) -> None:
    """More or fewer samples than promised would be misnumbered."""
    train_set = ArraySet(noisy(7, 4).numpy(), np.zeros(7, int))

    class Batches:
        def __len__(self) -> int:
            return claimed

        def batches(self, batch_size: int):  # type: ignore[no-untyped-def]
            return train_set.batches(batch_size)

        inputs = train_set.inputs

    model = made(mlp)
    with pytest.raises(InvalidInputError, match=rf"'train_set' must yield as many samples .*\({claimed}; got {got}"):
        collect(model, Batches(), [(torch.ones(4), answer(model, torch.ones(4)))])


def test_a_layer_that_some_inputs_skip_is_refused() -> None:
    """Its rows would belong to other samples."""

    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x) if x.sum() > 0 else x)

    x = torch.cat([torch.ones(2, 4), -torch.ones(2, 4)])
    with pytest.raises(UnsupportedModelError, match=r"'model' must run the same layers .* left out 'body'"):
        model = made(Sometimes)
        train_set = ArraySet(x.numpy(), np.zeros(4, int))
        collect(model, train_set, [(x[0], answer(model, x[0]))], batch_size=2)


def test_a_model_that_throws_dice_is_refused() -> None:
    """Dropout that does not ask for the mode, for one; without it the same network is accepted."""

    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.p = mlp(), 0.5

        def forward(self, x: Tensor) -> Tensor:
            return self.net(nn.functional.dropout(x, self.p))

    model, x = made(Dropping), noisy(5, 4)
    train_set = ArraySet(x.numpy(), np.zeros(5, int))
    message = r"'model' must give the same answer .* apart\)\. Switch off sampling and dropout"
    with global_seed(0, "test/dice"), pytest.raises(UnsupportedModelError, match=message):
        collect(model, train_set, [(x[0], 0)])
    model.p = 0.0
    collect(model, train_set, [(x[0], answer(model, x[0]))])


def test_a_layer_that_runs_twice_counts_once() -> None:
    """Its first run is what is kept."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(self.body(x)))

    model, x = made(Twice), noisy(5, 4)

    features = collect(model, ArraySet(x.numpy(), np.zeros(5, int)), [(x[0], answer(model, x[0]))], batch_size=2)

    assert features.layers == ("body", "head")
    assert torch.equal(features.activations[0], x)


def test_the_pass_keeps_which_words_each_text_holds(tmp_path: Path) -> None:
    """With a store and without one; padding is no word."""
    model, x = made(Reader), np.array(TOKENS, np.float32)
    event = torch.tensor(TOKENS[1]).float(), int(model(torch.tensor(TOKENS[1])[None]).argmax())

    for store in (None, tmp_path):
        found = collect(model, ArraySet(x, np.array([0, 1, 2, 0])), [event], store=store)

        assert [set(row.nonzero()[:, 0].tolist()) for row in unpack(found.words)] == [set(t) - {0} for t in TOKENS]
