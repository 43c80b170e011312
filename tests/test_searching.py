"""What a label is searched for: the planted kind, and no more of it than other labels hold."""

import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from tasks import Planted, events_of, fitted_network, no_notes, planted, planted_mlp
from torch import Tensor, nn

from poisontrace import searching
from poisontrace._blocks import Blocks
from poisontrace._rng import global_seed, numpy_generator
from poisontrace.clustering import ONE_KIND, TWO_KINDS, Split, search
from poisontrace.data import ArraySet
from poisontrace.embedding import Features, collect
from poisontrace.incidents import Incident
from poisontrace.kinds import Kinds, guesses
from poisontrace.searching import (
    glance_at_parts,
    relabelled_elsewhere,
    two_kinds,
    two_parts,
    two_parts_at_input,
    two_parts_by_origin,
)
from poisontrace.sights import Sight
from poisontrace.spaces import N_FOLDS, Space, principal


@pytest.fixture(scope="module")
def features() -> Features:
    """Rows of three labels, 20 of label 0 planted, and an event that carries their mark."""
    task = planted()
    return collect(fitted_network(task, planted_mlp), ArraySet(task.x.numpy(), task.y.numpy()), [(task.event, 0)])


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[Space]:
    """Spaces that k-means was asked about, as it is."""
    spaces: list[Space] = []

    def counted(space: Space) -> Iterator[Tensor]:
        spaces.append(space)
        yield from guesses(space)

    monkeypatch.setattr(searching, "guesses", counted)
    return spaces


def _own(features: Features, label: int = 0) -> Sight:
    return Sight(features, 0, np.flatnonzero(features.labels.numpy() == label))


def test_the_planted_kind_is_found_whole(features: Features) -> None:
    """And the event is of it."""
    sight = _own(features)

    split = two_kinds(sight, Kinds(features, no_notes()), TWO_KINDS, is_whole_label=True)

    assert sight.indices[split.is_first.numpy()].tolist() == np.flatnonzero(planted().is_poison).tolist()
    assert split.is_at_least(TWO_KINDS)


@pytest.mark.parametrize("is_certain", [True, False])
def test_what_is_beyond_doubt_ends_the_first_search(
    features: Features, monkeypatch: pytest.MonkeyPatch, is_certain: bool
) -> None:
    """The starts of k-means are not made; what is found is the same."""
    made = []

    def counted(space: Space) -> Iterator[Tensor]:
        made.append(space)
        yield torch.arange(len(space.x)) < 10

    monkeypatch.setattr(searching, "guesses", counted)
    monkeypatch.setattr("poisontrace.clustering.FAR", 0.1 if is_certain else 1e6)
    kinds = Kinds(features, no_notes())
    kinds.are_rows = False  # which are searched to the end

    split = two_kinds(_own(features), kinds, TWO_KINDS, is_whole_label=True)

    assert bool(made) != is_certain
    assert int(split.is_first.sum()) == 20


def test_samples_of_many_labels_are_found_where_the_event_says_nothing() -> None:
    """A quarter of label 0 shows other labels and lies apart; the event is more like the rest. Who asks finds them."""
    rng = numpy_generator(0, "toy/relabelled")
    y = np.repeat(np.arange(6), 160)
    shown = y.copy()
    shown[:40] = 1 + np.arange(40) % 5
    x = rng.standard_normal((len(y), 12)).astype(np.float32)
    x[np.arange(len(y)), shown] += 6
    x[:40, 11] += 7
    task = Planted(torch.from_numpy(x), torch.from_numpy(y), torch.zeros(12), np.zeros(len(y), bool))
    network = fitted_network(task, lambda: nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 6)))
    event = torch.zeros(12)
    event[[0, 11]] = torch.tensor([6.0, 3.5])
    features = collect(network, ArraySet(x, y), [(event, int(network(event[None]).argmax()))])
    kinds, sight = Kinds(features, no_notes()), _own(features)
    kinds.are_rows = False

    asked = two_kinds(sight, kinds, TWO_KINDS, is_whole_label=True)
    sight.origins.rankings = []
    unasked = two_kinds(sight, kinds, TWO_KINDS, is_whole_label=True)

    found = sight.indices[asked.is_first.numpy()]
    assert np.isin(np.arange(40), found).mean() > 0.9 and (found < 40).mean() > 0.9
    assert asked.is_at_least(TWO_KINDS) and asked.diversity >= 1
    assert unasked.diversity == 0 and not unasked.is_first[:40].all()


@pytest.mark.parametrize(
    ("share", "gap", "told", "is_turned"),
    [(0.8, -2.0, 3.5, True), (0.8, -0.5, 3.5, False), (0.8, -2.0, 5.5, False), (0.5, -2.0, 3.5, False)],
)
def test_what_is_broad_by_nature_is_not_relabelled(
    features: Features, monkeypatch: pytest.MonkeyPatch, share: float, gap: float, told: float, is_turned: bool
) -> None:
    """Most of a label, if the event is clearly of the rest, and no trigger tells it from others."""
    sight = _own(features)
    n = len(sight.indices)
    is_first = torch.arange(n) < share * n
    split = Split(is_first, is_first.float(), 9.0, gap, diversity=1.3)
    monkeypatch.setattr(Sight, "told_from_others", lambda sight, cluster: told)

    got = searching._unless_broad(sight, split, TWO_KINDS)

    assert torch.equal(got.is_first, ~is_first if is_turned else is_first)
    assert (got.gap, got.diversity) == ((-gap, 0.0) if is_turned else (gap, 1.3))


def test_parts_are_no_smaller_than_asked(features: Features) -> None:
    """The planted kind is a part of its label if parts may be so small; else there is no split."""
    sight = _own(features)

    found, none = (two_parts(sight, least, ONE_KIND) for least in (15, 30))

    assert sorted([int(found.is_first.sum()), int((~found.is_first).sum())])[0] == 20
    assert none.separation == 0 or none.n_smaller >= 30


@pytest.mark.parametrize(
    ("is_surplus", "grown", "is_found"), [(True, 6.0, True), (False, 6.0, False), (True, 60.0, False)]
)
def test_what_a_label_grew_by_is_a_kind_of_its_own(
    features: Features, monkeypatch: pytest.MonkeyPatch, is_surplus: bool, grown: float, is_found: bool
) -> None:
    """Though the event is of both kinds alike, if they lie far apart; the unlearning says whose it is."""
    kinds = Kinds(features, no_notes())
    kinds.are_rows = False
    monkeypatch.setattr(searching, "with_gap", lambda split, gaps: dataclasses.replace(split, gap=0.1))
    monkeypatch.setattr(Kinds, "is_surplus", lambda kinds, cluster: is_surplus)
    monkeypatch.setattr(searching, "GROWN", grown)

    split = two_kinds(_own(features), kinds, TWO_KINDS, is_whole_label=True)

    assert split.is_at_least(TWO_KINDS) == is_found
    assert not is_found or (split.n_smaller, split.diversity) == (20, pytest.approx(split.apartness / grown))


@pytest.mark.parametrize(
    ("apart", "larger", "elsewhere", "is_turned", "has_grown"),
    [
        (14.0, "either", (0.9, 0.1), True, True),
        (14.0, "either", (0.1, 0.9), False, True),
        (14.0, "first", (0.9, 0.1), False, True),
        (14.0, "neither", (0.9, 0.1), False, False),
        (8.0, "either", (0.9, 0.1), False, False),
    ],
)
def test_of_two_halves_a_label_grew_by_the_one_that_is_rarer_elsewhere(
    features: Features,
    monkeypatch: pytest.MonkeyPatch,
    apart: float,
    larger: str,
    elsewhere: tuple[float, float],
    is_turned: bool,
    has_grown: bool,
) -> None:
    """Whichever the event is more like, by a hair; the other half holds the ordinary samples."""
    sight = _own(features)
    first = sight.indices[: len(sight.indices) // 2]
    is_first = torch.from_numpy(np.isin(sight.indices, first))
    sides = {"either": (True, True), "first": (True, False), "neither": (False, False)}[larger]
    monkeypatch.setattr(Kinds, "is_surplus", lambda kinds, cluster: sides[cluster[0] not in first])
    monkeypatch.setattr(Sight, "share_elsewhere", lambda sight, cluster: (elsewhere[cluster[0] not in first], 0.0))

    split = searching._grown(sight, Kinds(features, no_notes()), Split(is_first, is_first.float(), apart, 0.2))

    assert torch.equal(split.is_first, ~is_first if is_turned else is_first)
    assert split.gap == (-0.2 if is_turned else 0.2)
    assert split.diversity == (split.apartness / searching.GROWN if has_grown else 0)


def test_parts_at_the_input_are_told_by_what_the_event_shares_there(features: Features, looked: list[Space]) -> None:
    """The mark, whatever the layers above make of it; nothing else is looked at, and no part is too small."""
    sight = _own(features)

    found = two_parts_at_input(sight, 10, ONE_KIND)

    assert looked == [sight.agreements[0]]
    smaller = found.is_first if int(found.is_first.sum()) == found.n_smaller else ~found.is_first
    assert found.n_smaller >= 10 and found.apartness >= ONE_KIND
    assert set(sight.indices[smaller.numpy()].tolist()) <= set(np.flatnonzero(planted().is_poison).tolist())


@pytest.mark.parametrize("seed", range(3))
def test_the_faintest_of_three_traits_is_found_beside_classes_that_all_samples_are_of(seed: int) -> None:
    """Each sample has some of the three by the toss of a coin, and is of one of six classes, as samples outside are."""
    rng = numpy_generator(seed, "toy/traits")
    traits, classes = rng.random((160, 3)) < 0.5, 4 * rng.standard_normal((6, 40))
    x, outside = (rng.standard_normal((n, 40)) + classes[rng.integers(6, size=n)] for n in (160, 600))
    x[:, :3] += traits * [14.0, 12.0, 8.0]
    space = principal(Blocks.of(torch.from_numpy(x.astype(np.float32))))
    contrasted = space.against(Blocks.of(torch.from_numpy(outside.astype(np.float32))))
    likeness = torch.from_numpy(rng.standard_normal(160))
    seen = SimpleNamespace(leaning=SimpleNamespace(likeness=likeness))
    sight = cast(Sight, SimpleNamespace(leaning=space, contrasted=contrasted, seen=seen))
    faintest = torch.from_numpy(traits[:, 2])

    def accepts(split: Split) -> bool:
        return split.apartness >= TWO_KINDS and abs(float((split.is_first == faintest).float().mean()) - 0.5) > 0.45

    assert accepts(two_parts(sight, 20, ONE_KIND, accepts))
    assert not accepts(search(space, [likeness], guesses(space), accepts=accepts))


def test_a_label_alone_holds_parts_that_the_event_says_nothing_of(features: Features) -> None:
    """Without samples outside nothing says which directions are of classes; likeness to the event is left."""
    sight = Sight(features, 0, np.arange(len(features.labels)))

    assert sight.contrasted is None
    assert two_parts(sight, 15, ONE_KIND).n_smaller >= 15


def test_samples_of_no_other_label_are_a_part_beside_relabelled_ones(digits_incident: Incident) -> None:
    """Started from what lies nearest to the rest of the label; large parts less far apart do not come before them."""
    incident = digits_incident
    poison = np.flatnonzero(incident.is_poison)
    of_label = np.flatnonzero((incident.y == incident.y[poison[0]]) & ~incident.is_poison)
    found_in = collect(incident.model, ArraySet(incident.x, incident.y), [events_of(incident)[0]])
    few = of_label[::12]
    label, sight = (Sight(found_in, 0, np.sort(np.concatenate([poison, some]))) for some in (of_label, few))

    found = two_parts_by_origin(sight, label, 2 * N_FOLDS, ONE_KIND, TWO_KINDS)

    parts = (sight.indices[side.numpy()].tolist() for side in (found.is_first, ~found.is_first))
    assert sorted(parts, key=len) == [few.tolist(), poison.tolist()]


def test_a_glance_sees_large_parts_from_fewer_starts(features: Features, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a few leading directions; it does not start from what those show each on their own."""
    monkeypatch.setattr(searching, "few_directions", lambda space: pytest.fail("no glance"))

    found = glance_at_parts(_own(features), 15, ONE_KIND)

    assert found.n_smaller == 20 and found.apartness >= ONE_KIND


def _relabelled_in(labels: list[int]) -> Features:
    """160 rows of each of six labels; a quarter of some labels are of others, and have a column of their own."""
    rng = numpy_generator(0, "toy/relabelled")
    y = np.repeat(np.arange(6), 160)
    shown = y.copy()
    for label in labels:
        shown[label * 160 : label * 160 + 40] = np.resize(np.delete(np.arange(6), label), 40)
    x = rng.standard_normal((len(y), 24)).astype(np.float32)
    x[np.arange(len(y)), shown] += 6
    x[shown != y, 8 + y[shown != y]] += 8
    with global_seed(0, "toy/relabelled"):
        model, event = nn.Linear(24, 6), torch.from_numpy(x[-1])
    return collect(model, ArraySet(x, y), [(event, int(model(event[None]).argmax()))])


@pytest.mark.parametrize(("others", "is_everywhere"), [([], False), ([0], False), ([0, 1, 2], True)])
def test_wrong_labels_are_in_other_labels_as_well(others: list[int], is_everywhere: bool) -> None:
    """In two of them; one may be odd."""
    label = int(_relabelled_in([]).event_logits[0].argmax())
    features = _relabelled_in([label, *np.delete(np.arange(6), label)[others]])

    assert int(features.event_logits[0].argmax()) == label
    assert (relabelled_elsewhere(features, 0, Kinds(features, no_notes()), TWO_KINDS) >= 1) == is_everywhere
