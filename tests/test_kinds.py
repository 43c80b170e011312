"""Kinds within labels: poison stands out against them, natural ones do not, and rows must share a mark and no more."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tasks import Planted, fitted_network, no_notes, noisy_features
from torch import nn

from poisontrace._rng import numpy_generator
from poisontrace.clustering import Split
from poisontrace.data import ArraySet
from poisontrace.embedding import Features, collect
from poisontrace.kinds import Kinds
from poisontrace.notes import Notes


@pytest.mark.parametrize(
    ("in_each", "n_labels", "least", "most"), [(False, 4, 1.5, 9), (True, 4, 0.8, 1.2), (False, 3, 1, 1)]
)
def test_kinds_stand_out_only_if_no_other_label_holds_the_like(
    in_each: bool, n_labels: int, least: float, most: float
) -> None:
    """A quarter of label 0 lies apart, or of each label; two other labels say nothing."""
    rng = numpy_generator(0, "toy/kinds")
    y = np.arange(200 * n_labels) % n_labels
    x = rng.standard_normal((len(y), 8)).astype(np.float32) * 0.5
    x[np.arange(len(y)), y] += 4
    is_apart = np.arange(len(y)) // n_labels % 4 == 0
    x[is_apart & (in_each | (y == 0)), 4] += 5
    task = Planted(torch.from_numpy(x), torch.from_numpy(y), torch.zeros(8), np.zeros(len(y), bool))
    network = fitted_network(task, lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, n_labels)))
    features = collect(network, ArraySet(x, y), [(torch.from_numpy(x[0]), 0)])
    own = np.flatnonzero(y == 0)
    split = Split(torch.from_numpy(is_apart[own]), torch.zeros(200), 12.0)

    assert least <= Kinds(features, no_notes()).standing(own, split) <= most


def _rows_with_a_kind(kind: str) -> tuple[Features, NDArray[np.int64]]:
    """Return 400 rows of two labels, and forty of the first: marked, relabelled and marked, a family, or copies."""
    rng = numpy_generator(0, "toy/rows")
    y = np.arange(400) // 200
    x = rng.standard_normal((400, 8)).astype(np.float32)
    x[:, 0] += 4 * y
    chosen = np.arange(40)
    if kind == "relabelled":
        x[chosen, 0] += 4
    if kind == "family":
        x[chosen, 2:6] += 2 * rng.standard_normal(4)
    x[chosen, 7] = 5
    if kind == "copies":
        x[chosen] = [4, 0, 0, 0, 0, 0, 0, 5]
    model = nn.Linear(8, 2)
    with torch.no_grad():
        model.weight.zero_()
        model.weight[0, 7], model.bias[0] = 1.0, 1.0
    event = torch.tensor([4.0, 0, 0, 0, 0, 0, 0, 5])
    return collect(model, ArraySet(x, y), [(event, 0)]), chosen


@pytest.mark.parametrize(
    ("kind", "least", "most"),
    [("marked", -0.5, 0.5), ("relabelled", -0.5, 0.5), ("family", 1.5, 9), ("copies", np.inf, np.inf)],
)
def test_a_family_of_rows_differs_from_others_in_more_than_a_mark(kind: str, least: float, most: float) -> None:
    """Rows picked to carry a mark are like the rest of their label, or of the label they were taken from."""
    features, chosen = _rows_with_a_kind(kind)

    assert least <= Kinds(features, no_notes()).beyond_mark(0, chosen) <= most


def test_rows_with_another_mark_make_no_family_of_those_that_lack_it() -> None:
    """If those are left out; they are nearly half of the rest of the label."""
    features, chosen = _rows_with_a_kind("marked")
    activations = features.activations[0].clone()
    other = np.arange(50, 120)
    activations[torch.from_numpy(other), 2:7] = 6.0
    kinds = Kinds(replace(features, activations=(activations, *features.activations[1:])), no_notes())

    assert kinds.beyond_mark(0, chosen, other) < 0.5 < kinds.beyond_mark(0, chosen)


@pytest.mark.parametrize(
    ("sizes", "n_chosen", "is_surplus"),
    [
        ((200, 100, 95, 105), 100, True),
        ((200, 100, 95, 105), 110, False),  # fewer would be left than any label has
        ((200, 100, 95, 105), 60, False),  # the label would still be the largest by far
        ((110, 100, 95, 105), 15, False),  # no larger than labels differ
        ((200, 100, 20, 150), 60, False),
        ((200, 100, 100), 100, False),  # two others say nothing
    ],
)
def test_who_relabels_makes_one_label_grow(sizes: tuple[int, ...], n_chosen: int, is_surplus: bool) -> None:
    """By as much as it holds of the chosen."""
    x, y = np.ones((sum(sizes), 2), np.float32), np.repeat(np.arange(len(sizes)), sizes)
    network = nn.Linear(2, len(sizes))
    label = int(network(torch.ones(1, 2)).argmax())
    features = collect(network, ArraySet(x, y), [(torch.ones(2), label)])

    assert Kinds(features, no_notes()).is_surplus(np.arange(n_chosen)) == is_surplus


def test_images_are_asked_for_no_mark() -> None:
    """Their columns are not quantities of their own."""
    kinds = Kinds(noisy_features(n_noisy=40), no_notes())

    assert kinds.beyond_mark(0, np.arange(40)) == 0
    assert kinds.share_on_mark(0, np.arange(40)) == 0


def test_an_event_rests_on_a_mark_by_as_much_as_the_model_reads_there() -> None:
    """All of the margin comes from the marked column, of which rows without the mark know nothing."""
    features, chosen = _rows_with_a_kind("marked")
    kinds, label = Kinds(features, no_notes()), int(features.labels[chosen[0]])
    unmarked = np.setdiff1d(np.flatnonzero(features.labels.numpy() == label), chosen)[:40]

    assert kinds.share_on_mark(0, chosen) == pytest.approx(1.0)
    assert kinds.share_on_mark(0, unmarked) == pytest.approx(0.0)


@pytest.mark.parametrize("spoil", ["", "shorter", "dtype"])
def test_what_a_label_holds_is_written_down_with_the_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    """A second trace reads it, to the bit; a note of other samples is none."""
    features, notes = noisy_features(n_noisy=40), Notes(tmp_path, 0, "")
    want = Kinds(features, notes).of(0)
    (path,) = tmp_path.iterdir()
    if spoil:
        with np.load(path) as archive:
            arrays = dict(archive)
        score = arrays["score"]
        np.savez(path, **arrays | {"score": score[:-1] if spoil == "shorter" else score.astype(np.float64)})
    else:
        monkeypatch.setattr("poisontrace.kinds.principal", None)

    found = Kinds(features, Notes(tmp_path, 0, "")).of(0)

    assert torch.equal(found.is_first, want.is_first)
    assert torch.equal(found.score, want.score)
    assert (found.separation, found.gap, found.standing) == (want.separation, want.gap, want.standing)
