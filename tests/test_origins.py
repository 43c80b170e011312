"""Relabelled samples are known by what they bring along of other labels, whatever else they have in common."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.spatial.distance import pdist
from tasks import NATURAL, RELABELLED, WIDTH, relabelled_toy

from poisontrace._rng import numpy_generator, torch_generator
from poisontrace.origins import DIVERSE, MAX_SAMPLES, RIDGE, Origins, _discriminants, taken_from


def _mask(chosen: NDArray[np.int64]) -> torch.Tensor:
    return torch.from_numpy(np.isin(np.arange(240), chosen))


def _diversity(origins: Origins, is_chosen: torch.Tensor) -> float:
    """How much more widely some samples are spread than the rest of the label."""
    return origins.spread(is_chosen) - origins.spread(~is_chosen)


@pytest.fixture(scope="module")
def origins() -> Origins:
    """Of label 0, beside five others."""
    return Origins(relabelled_toy(), np.arange(240))


def test_the_textbook_says_the_same(origins: Origins) -> None:
    """Fisher's discriminants as the generalised eigenvectors of the scatter between labels and that within them."""
    x, y = (part.double().numpy() for part in (relabelled_toy().activations[0], relabelled_toy().labels))
    spread = np.linspace(0, 239, MAX_SAMPLES).round().astype(int)
    half, rest = ([x[y == label][spread][first::2] for label in range(1, 6)] for first in (0, 1))
    scale = np.concatenate(half).std(0, ddof=1)
    means = np.stack([part.mean(0) for part in half]) / scale
    within = np.mean([np.cov((part / scale).T) for part in half], 0)
    within += RIDGE * np.trace(within) / WIDTH * np.eye(WIDTH)
    _, vectors = eigh(np.cov(means.T), within)
    along = vectors[:, -4:] / scale[:, None]

    def variance(rows: NDArray[np.float64]) -> float:
        """All of it, less that along the first principal component."""
        centred = rows @ along - (rows @ along).mean(0)
        return float((centred**2).sum() - np.linalg.norm(centred, 2) ** 2) / (len(rows) - 1)

    of_label, of_all = np.mean([variance(part) for part in rest]), variance(np.concatenate(rest))
    for chosen in (RELABELLED, NATURAL):
        sides = x[chosen], np.delete(x[:240], chosen, 0)
        first, second = (max(0.0, (variance(side) - of_label) / of_all) / DIVERSE for side in sides)
        assert _diversity(origins, _mask(chosen)) == pytest.approx(first - second, rel=1e-3, abs=1e-4)


def test_what_was_relabelled_is_diverse_and_a_natural_kind_is_not(origins: Origins) -> None:
    """Nor is all the rest of the label, or a handful of samples."""
    assert _diversity(origins, _mask(RELABELLED)) > 2
    assert _diversity(origins, _mask(NATURAL)) < 0.5
    assert _diversity(origins, ~_mask(RELABELLED)) == -_diversity(origins, _mask(RELABELLED))
    assert _diversity(origins, _mask(RELABELLED[:4])) <= 0


def test_samples_that_are_of_their_label_more_or_less_are_not_diverse() -> None:
    """They differ a lot, but in one direction: no matter how much, they do not read like many labels."""
    features = relabelled_toy()
    strength = torch.from_numpy(numpy_generator(0, "toy/strength").uniform(-6, 6, 60).astype(np.float32))
    towards_others = torch.ones(5) / 5**0.5
    features.activations[0][torch.from_numpy(NATURAL), 1:6] += strength[:, None] * towards_others
    origins = Origins(features, np.arange(240))

    assert _diversity(origins, _mask(NATURAL)) < 0.5
    assert _diversity(origins, _mask(RELABELLED)) > 2


@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_what_they_have_in_common_does_not_count(origins: Origins, shift: float) -> None:
    """A trigger moves all of them alike, by nothing or by a lot."""
    moved = Origins(relabelled_toy(shift=shift), np.arange(240))

    assert _diversity(moved, _mask(RELABELLED)) == pytest.approx(_diversity(origins, _mask(RELABELLED)), rel=0.01)


def test_relabelled_samples_lie_farthest_from_the_bulk_of_their_label(origins: Origins) -> None:
    """Though the other kind is moved as far as they are, by what no other label has."""
    (ranking,) = origins.rankings

    farthest = set(ranking.argsort(descending=True)[:60].tolist())
    assert len(farthest & set(RELABELLED.tolist())) >= 50
    assert len(farthest & set(NATURAL.tolist())) <= 5


def test_samples_of_no_other_label_lie_nearest_to_the_rest_of_their_own(origins: Origins) -> None:
    """However few they are beside relabelled ones: the mean of the rest says where, not the bulk of all."""
    few, rest = np.arange(60, 65), np.arange(65, 240)

    (nearness,) = origins.nearness(_mask(rest))

    mine = np.concatenate([RELABELLED, few])
    nearest = mine[nearness[torch.from_numpy(mine)].argsort(descending=True)[:5].numpy()]
    assert float(nearness.max()) <= 0
    assert len(set(nearest.tolist()) & set(few.tolist())) >= 4


@pytest.mark.parametrize(
    ("n_labels", "blur", "memory"),
    [(3, 1, 1 << 30), (6, 20, 1 << 30), (6, 1, 1 << 14)],
    ids=["labels", "blur", "memory"],
)
def test_where_nothing_tells_labels_apart_it_says_nothing(n_labels: int, blur: float, memory: int) -> None:
    """Two other labels are too few, labels that overlap are one, and few samples would say anything."""
    origins = Origins(relabelled_toy(n_labels, blur=blur, memory=memory), np.arange(240))

    assert origins.rankings == []
    assert _diversity(origins, _mask(RELABELLED)) == 0


@pytest.mark.parametrize("n_columns", [0, 1])
def test_a_layer_that_hardly_says_anything_is_left_out(n_columns: int) -> None:
    """One in which all samples are the same, as behind units that are dead, and one of a single unit."""
    features = relabelled_toy()
    x = torch.zeros(len(features.labels), WIDTH)
    if n_columns:
        x = features.activations[0][:, :1].clone()

    origins = Origins(replace(features, activations=(features.activations[0], x)), np.arange(240))

    assert origins.rankings == []
    assert origins.spread(_mask(RELABELLED)) == 0


def test_most_of_an_ordinary_kind_are_not_spread_whatever_a_few_are() -> None:
    """A few wrong labels make it wide; of samples that were relabelled most are spread."""
    wrong = np.arange(60, 70)
    origins = Origins(relabelled_toy(wrong=wrong), np.arange(240))
    kind, relabelled = _mask(NATURAL), _mask(RELABELLED)

    assert origins.spread(kind) > 3 * origins.spread(_mask(np.setdiff1d(NATURAL, wrong)))
    assert origins.spread(kind, 0.7) < 0.1
    assert origins.spread(relabelled, 0.7) > 0.3
    assert origins.spread(relabelled, 1.0) == origins.spread(relabelled) > 1


@pytest.mark.parametrize(("n", "width"), [(20, 150), (60, 150)])
def test_directions_of_few_samples_are_found_in_their_span(n: int, width: int) -> None:
    """As among all coordinates, of which there may be thousands."""
    samples = [torch.randn(n, width, generator=torch_generator(k, "test/origins")) + k for k in range(4)]
    means = torch.stack([x.mean(0) for x in samples]).double()
    within = torch.stack([torch.cov(x.T).double() for x in samples]).mean(0)
    within += RIDGE * within.diagonal().mean() * torch.eye(width, dtype=torch.float64)
    _, vectors = eigh(torch.cov(means.T).numpy(), within.numpy())
    x = torch.randn(50, width, generator=torch_generator(9, "test/origins"))

    got, expected = (x @ _discriminants(samples)).numpy(), x.double().numpy() @ vectors[:, -3:]

    # The same up to a rotation: distances between samples are.
    assert pdist(got) == pytest.approx(pdist(expected), rel=1e-3)


def test_a_small_memory_takes_fewer_samples() -> None:
    """And comes to much the same answer."""
    origins = Origins(relabelled_toy(memory=40 * 8 * 4 * WIDTH * 5), np.arange(240))

    assert _diversity(origins, _mask(RELABELLED)) > 1.5
    assert _diversity(origins, _mask(NATURAL)) < 0.6


def test_two_diverse_sides_say_nothing() -> None:
    """Relabelled samples are in both, so the split is not between them and others; or a label is broad by nature."""
    only = Origins(relabelled_toy(), RELABELLED)

    assert abs(_diversity(only, torch.arange(60) < 30)) < 0.5


def test_the_more_of_the_relabelled_samples_are_on_one_side_the_more_it_says(origins: Origins) -> None:
    """Half of them, with a few others or without; then all."""
    mixed, half, whole = (
        _diversity(origins, _mask(np.concatenate([RELABELLED[:n], NATURAL[:m]])))
        for n, m in ((30, 10), (30, 0), (60, 0))
    )

    assert mixed < half < whole


@pytest.mark.parametrize(("n_sources", "least", "most"), [(1, 0.9, 1.1), (2, 0.4, 0.6), (5, 0.1, 0.3)])
def test_what_was_taken_from_one_label_lies_where_that_label_does(n_sources: int, least: float, most: float) -> None:
    """Whatever else it has in common; from several labels it is of none of them as a whole."""
    features = relabelled_toy(n_sources=n_sources)
    rest, outside = np.arange(60, 240), np.arange(240, 1440)

    label, share = taken_from(features, RELABELLED, rest, outside)

    assert label == 1 or n_sources > 1
    assert least <= share <= most


def test_a_natural_kind_was_not_taken() -> None:
    """Nor does anybody know where a layer tells no labels apart, or there are too few of them."""
    rest, outside = np.setdiff1d(np.arange(240), NATURAL), np.arange(240, 1440)

    assert taken_from(relabelled_toy(), NATURAL, rest, outside)[1] < 0.3
    assert taken_from(relabelled_toy(blur=50.0), NATURAL, rest, outside) == (-1, 0.0)
    assert taken_from(relabelled_toy(3), NATURAL, rest, np.arange(240, 720)) == (-1, 0.0)
    assert taken_from(relabelled_toy(), NATURAL, rest[:5], outside) == (-1, 0.0)
    assert taken_from(relabelled_toy(memory=9 * 8 * 4 * WIDTH * 6), NATURAL, rest, outside) == (-1, 0.0)
