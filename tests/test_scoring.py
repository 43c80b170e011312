"""Likeness to the event: coordinates weighed by what the model relied on."""

from dataclasses import replace

import numpy as np
import pytest
import reference
import torch
from reference import ATOL, RTOL
from tasks import fitted_network, planted, planted_mlp
from torch import Tensor

from poisontrace._rng import torch_generator
from poisontrace.data import ArraySet
from poisontrace.embedding import Features, collect
from poisontrace.scoring import (
    AGREEMENT_GAP,
    LEANING_GAP,
    NOISE_GAP,
    Unconditioned,
    condition,
    marked,
    sharing,
    without_mark,
)

ROWS = np.arange(1, 30, 2)


def _features(*, scale: float = 1.0, dead: int | None = None) -> Features:
    """Two layers at random, the first pooled; ``scale`` multiplies it, ``dead`` is a lifeless column of the second."""
    generator = torch_generator(0, "test/scoring")
    layers, events, saliency = [], [], []
    for width, factor in ((3, scale), (5, 1.0)):
        layers.append(torch.randn(30, width, generator=generator) * factor)
        events.append(torch.randn(2, width, generator=generator) * factor)
        saliency.append(torch.rand(2, width, generator=generator))
    if dead is not None:
        layers[1][:, dead] = 0.1
    nothing = torch.zeros(0)
    return Features(
        *(("0", "1"), tuple(layers), (True, False), nothing, nothing),
        torch.rand(30, 2, generator=generator),
        *(nothing, nothing),
        *(tuple(events), nothing, tuple(saliency)),
    )


def _close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got.double(), want.double(), rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("event", [0, 1])
def test_coordinates_and_cosines_equal_a_float64_twin(event: int) -> None:
    """Standardised over the set, weighted by saliency of mean 1 in each layer, layers side by side."""
    features = _features()

    seen = condition(features, event, ROWS)

    twins = [
        reference.condition(features.activations[layer], features.event_activations[layer][event], s[event], ROWS)
        for layer, s in enumerate(features.saliency)
    ]
    _close(seen.leaning.x.dense(), torch.cat([x for x, _ in twins], 1))
    for got, (_, want) in zip(seen.leaning.by_layer, twins, strict=True):
        _close(got, want)
    _close(seen.leaning.likeness, (twins[0][1] + twins[1][1]) / 2)


@pytest.mark.parametrize("event", [0, 1])
def test_agreement_equals_a_float64_twin(event: int) -> None:
    """One view for the layer that is not pooled; a gap is measured in no less than what would come of chance."""
    features = _features()

    (view,) = condition(features, event, ROWS).agreements

    layer, of_event, saliency = features.activations[1], features.event_activations[1], features.saliency[1]
    shares = reference.agree(layer, of_event[event], saliency[event], ROWS, width=0.1)
    _close(view.x.dense(), shares)
    _close(view.likeness, shares.sum(1))
    is_first = torch.arange(len(ROWS)) < 5
    pooled = (shares.sum(1)[:5].var() * 5 + shares.sum(1)[5:].var() * 10) / 15
    difference = shares.sum(1)[:5].mean() - shares.sum(1)[5:].mean()
    _close(view.gaps(is_first)[0], difference / max(pooled, shares.var(0).sum()).sqrt() / AGREEMENT_GAP)


@pytest.mark.parametrize("event", [0, 1])
def test_gaps_of_leaning_are_those_of_cosines_from_the_midpoint(event: int) -> None:
    """One sample at a time in float64, the clusters' midpoint as the origin; exchanged clusters change the sign."""
    features = _features()
    is_first = torch.arange(len(ROWS)) < 4

    gaps = condition(features, event, ROWS).leaning.gaps(is_first)

    for got, activation, of_event, saliency in zip(
        gaps, features.activations, features.event_activations, features.saliency, strict=True
    ):
        x, _ = reference.condition(activation, of_event[event], saliency[event], ROWS)
        stacked = torch.cat([activation[ROWS], of_event[event][None]])
        mean, std = activation[ROWS].double().mean(0), activation[ROWS].double().std(0)
        weight = (saliency[event].double() / saliency[event].double().mean()).sqrt() / std
        seen_event = (stacked[-1].double() - mean) * weight
        origin = (x[:4].mean(0) + x[4:].mean(0)) / 2
        cosines = torch.stack([(row - origin) @ (seen_event - origin) for row in x])
        cosines /= (x - origin).norm(dim=1) * (seen_event - origin).norm()
        pooled = (cosines[:4].var() * 4 + cosines[4:].var() * 11) / 15
        _close(got, (cosines[:4].mean() - cosines[4:].mean()) / pooled.sqrt() / LEANING_GAP)
    _close(condition(features, event, ROWS).leaning.gaps(~is_first), -gaps)


def test_without_an_event_layers_and_noise_weigh_the_same() -> None:
    """Standardised coordinates whose squares sum to n - 1 in each layer; the gap is that of the noise."""
    features = _features(dead=2)
    is_first = torch.arange(len(ROWS)) < 6
    features.noise[ROWS[:6], 1] += 5

    view = Unconditioned(features, ROWS)

    assert view.x.shape == (15, 3 + 5 + 2)
    assert not view.x.dense()[:, 3 + 2].any()
    for part in view.x.dense().split([3, 5, 2], 1):
        assert float(part.square().sum()) == pytest.approx(14, rel=1e-3)
    values = features.noise[ROWS, 1]
    pooled = (values[:6].var() * 6 + values[6:].var() * 9) / 15
    _close(view.gaps(is_first)[1], (values[:6].mean() - values[6:].mean()) / pooled.sqrt() / NOISE_GAP)


def test_rows_have_no_noise() -> None:
    """Nothing to tell kinds apart by."""
    features = replace(_features(), noise=torch.zeros(30, 0))

    view = Unconditioned(features, ROWS)

    assert view.x.shape == (15, 3 + 5)
    assert view.gaps(torch.arange(15) < 5).tolist() == [0.0]


def test_the_scale_of_a_layer_does_not_matter() -> None:
    """No layer drowns the others."""
    _close(
        condition(_features(), 0, ROWS).leaning.x.dense(), condition(_features(scale=1000), 0, ROWS).leaning.x.dense()
    )


def test_constant_coordinates_are_left_out() -> None:
    """A dead channel is zero for every sample, however far the event is from it."""
    seen = condition(_features(dead=2), 0, ROWS)

    assert not seen.leaning.x.dense()[:, 3 + 2].any()
    assert not seen.agreements[0].x.dense()[:, 2].any()
    assert bool(torch.isfinite(seen.leaning.x.dense()).all())


def test_without_any_living_coordinate_the_likeness_is_zero() -> None:
    """A layer that says nothing compares to nothing."""
    features = _features()
    for layer in features.activations:
        layer.fill_(3.0)

    seen = condition(features, 0, ROWS)

    assert not seen.leaning.x.dense().any()
    assert not seen.leaning.likeness.any()
    assert not seen.agreements[0].likeness.any()


def test_a_copy_of_the_event_is_most_like_it() -> None:
    """Its cosine is one at every layer, and it agrees in everything."""
    features = _features()
    for layer, of_event in zip(features.activations, features.event_activations, strict=True):
        layer[7] = of_event[1]

    seen = condition(features, 1, ROWS)

    assert ROWS[int(seen.leaning.likeness.argmax())] == 7
    _close(seen.leaning.likeness.max(), torch.tensor(1.0))
    assert ROWS[int(seen.agreements[0].likeness.argmax())] == 7
    _close(seen.agreements[0].likeness.max(), torch.tensor(1.0))


def test_poison_is_ranked_first_among_its_label() -> None:
    """On a planted task every poison sample is more like the event than every benign one of the label."""
    task = planted()
    model = fitted_network(task, planted_mlp)
    features = collect(model, ArraySet(task.x.numpy(), task.y.numpy()), [(task.event, 0)])
    own = np.flatnonzero(task.y.numpy() == 0)

    likeness = condition(features, 0, own).leaning.likeness.numpy()

    assert likeness[task.is_poison[own]].min() > likeness[~task.is_poison[own]].max()


def test_without_mark_leaves_out_what_a_cluster_shares_with_the_event() -> None:
    """Column 2 has the event's value in the whole cluster, column 4 is constant: neither is left, the rest is."""
    features = _features(dead=4)
    x, event = features.activations[1], features.event_activations[1][0]
    features = replace(features, activations=(x,), event_activations=(event[None],))
    cluster, siblings, others = np.arange(4), np.arange(4, 12), np.arange(12, 30)
    x[cluster, 2] = event[2]

    got = without_mark(features, marked(features, 0, cluster, siblings), cluster, others)

    rows = x[[*cluster, *others]].double().numpy()
    kept = []
    for column in range(5):
        width = 0.1 * x[:12, column].double().numpy().std(ddof=1)
        near = [
            np.mean([abs(float(x[row, column] - event[column])) <= width for row in part])
            for part in (cluster, siblings)
        ]
        if near[0] - near[1] <= 0.1 and column != 4:
            kept.append((rows[:, column] - rows[:, column].mean()) / rows[:, column].std(ddof=1))
    assert 1 <= len(kept) <= 3
    _close(got.dense(), torch.tensor(np.array(kept).T))


@pytest.mark.parametrize("seed", range(4))
def test_sets_with_columns_in_common_equal_those_of_a_twin(seed: int) -> None:
    """Marks of three and two columns, one row short of a column; a column alone, or what most rows have, is none."""
    generator = torch_generator(seed, "test/sharing")
    x, event = torch.randn(200, 12, generator=generator), torch.randn(1, 12, generator=generator)
    own = torch.randperm(200, generator=generator)[:120].sort().values
    marks = {(0, 3, 7): own[:20], (4, 9): own[20:50], (5,): own[50:70], (10, 11): own[:80]}
    for columns, rows in marks.items():
        event[0, list(columns)] = 4  # as hardly any row has
        x[rows[:, None], list(columns)] = event[0, list(columns)]
    x[own[0], 3] = 0
    features = replace(
        _features(),
        activations=(x,),
        event_activations=(event,),
        saliency=(torch.rand(1, 12, generator=generator),),
    )

    got = sharing(features, 0, own.numpy())

    sets = reference.sharing(x[own], event[0], features.saliency[0][0], width=0.1, alike=0.8, least=5)
    assert [rows.tolist() for rows in got] == [own[rows].tolist() for rows in sets]
    assert {tuple(rows.tolist()) for rows in got} >= {tuple(own[:20].tolist()), tuple(own[20:50].tolist())}
    assert max(map(len, got)) < 60


def test_columns_that_the_event_does_not_rest_on_make_no_set() -> None:
    """Whatever rows share there."""
    features = _features()
    x, event = features.activations[1], features.event_activations[1]
    x[:10, :3] = event[0, :3]
    without = replace(features, activations=(x,), event_activations=(event,), saliency=(torch.zeros(2, 5),))

    assert sharing(without, 0, np.arange(30)) == []
