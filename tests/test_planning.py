"""The plan before the work: what is counted, and that nothing is traced."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tasks import toy_images, toy_rows
from torch import nn

from poisontrace import planning
from poisontrace._errors import InvalidInputError
from poisontrace.data import ArraySet
from poisontrace.embedding import collect
from poisontrace.planning import Forecast, forecast


def _rows(n: int = 400) -> tuple[nn.Module, ArraySet, list[tuple[torch.Tensor, int]]]:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    train_set = ArraySet(*toy_rows(n))
    event, _ = train_set[0]
    return model, train_set, [(event, int(model(event[None]).argmax()))]


def test_what_is_given_is_counted() -> None:
    """Samples, events, layers, one pass."""
    found = forecast(*_rows())

    assert (found.n_samples, found.n_events, found.n_passes, found.n_layers) == (400, 1, 1, 2)


def test_memory_and_disk_grow_with_the_samples() -> None:
    """By what is kept of each: 4 + 3 activations and 2 logits of 4 bytes, several times; 4 bytes of scores."""
    small, large = forecast(*_rows(100)), forecast(*_rows(1100))

    assert large.memory_bytes - small.memory_bytes == planning.COPIES * 1000 * 9 * 4
    assert large.disk_bytes - small.disk_bytes == 4000


def test_only_the_first_batch_is_read() -> None:
    """However large the set."""
    model, train_set, events = _rows()
    seen: list[int] = []

    class Counting(ArraySet):
        def batches(self, batch_size: int):  # type: ignore[no-untyped-def]
            for x, y in super().batches(batch_size):
                seen.append(len(y))
                yield x, y

    forecast(model, Counting(train_set.x, train_set.y), events, batch_size=10)

    assert seen == [10, 10]


def test_events_that_do_not_fit_are_found_out() -> None:
    """Before the long work."""
    model, train_set, [(event, label)] = _rows()

    with pytest.raises(InvalidInputError, match="wrong label that the model gave"):
        forecast(model, train_set, [(event, 1 - label)])
    with pytest.raises(InvalidInputError, match="'batch_size' must be at least 1"):
        forecast(model, train_set, [(event, label)], batch_size=0)


def test_the_model_is_left_as_found() -> None:
    """Its mode, and the images' noise counts too."""
    x, y = toy_images(8)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).train()
    train_set = ArraySet(x, y)

    found = forecast(model, train_set, [(train_set[0][0], int(model(train_set[0][0][None]).argmax()))])

    assert model.training
    assert found.memory_bytes == planning.BATCH_BYTES + planning.COPIES * 8 * (64 + 4 + 2) * 4


def test_a_reader_is_told_in_words() -> None:
    """Seconds as minutes where they are many, bytes as megabytes."""
    found = Forecast(20_000, 2, 1, 9, 0.2, 300.4, 1_234_000_000, 600_000, 0, 0)

    assert list(found.rows().values()) == [
        "20,000 samples and 2 events",
        "1 forward pass through 9 layers",
        "about 1 s for the pass and 5 min for the search",
        "about 1,234 MB of memory beside model and data",
        "1 MB on disk for the case",
        "1 MB for the pass",
    ]
    assert found.as_dict()["n_samples"] == 20_000
    assert np.isfinite(found.pass_seconds)


def test_what_is_in_the_store_needs_no_pass(tmp_path: Path) -> None:
    """Samples recorded earlier are counted; a model that changed starts anew."""
    model, train_set, events = _rows()
    before = forecast(model, train_set, events, store=tmp_path)
    collect(model, train_set, events, store=tmp_path)

    after = forecast(model, train_set, events, store=tmp_path)

    # Eight bytes of label, four of each of 4 + 3 activations and 2 logits.
    assert before.store_bytes == after.store_bytes == 400 * (8 + 4 * 9)
    assert (before.n_recorded, before.n_passes) == (0, 1)
    assert (after.n_recorded, after.n_passes, after.pass_seconds) == (400, 0, 0.0)
    assert after.rows()["passes"] == "0 forward passes through 2 layers"
    assert "of which 400 samples are there already" in after.rows()["store"]
    with torch.no_grad():
        model[0].bias += 1e-3
    assert forecast(model, train_set, events, store=tmp_path).n_recorded == 0


def test_memory_is_no_more_than_allowed() -> None:
    """Beside one batch."""
    assert forecast(*_rows(), memory=1 << 24).memory_bytes <= planning.BATCH_BYTES + (1 << 24)
