"""What an event sees is what working it out anew gives, and it is worked out once."""

from dataclasses import replace
from math import inf

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tasks import NATURAL, RELABELLED, relabelled_toy
from torch import nn

from poisontrace._blocks import Blocks
from poisontrace._rng import global_seed, numpy_generator
from poisontrace.clustering import TWO_KINDS, Split, separate
from poisontrace.data import ArraySet
from poisontrace.embedding import Features, collect
from poisontrace.notes import Notes
from poisontrace.origins import Origins
from poisontrace.pictures import Pictures
from poisontrace.scoring import Unconditioned, condition
from poisontrace.sights import Sight, Sights
from poisontrace.spaces import Space, principal


def _network(width: int, n_labels: int) -> nn.Sequential:
    """Return one of six inputs that nobody trained, the same each time."""
    with global_seed(0, "toy/network"):
        return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, n_labels))


def _collected(x: NDArray[np.float32], y: NDArray[np.int64], model: nn.Sequential) -> Features:
    """Return what a network makes of samples (n, 6) and labels (n,), the first one as the event."""
    event = torch.from_numpy(x[0])
    return collect(model, ArraySet(x, y), [(event, int(model(event[None]).argmax()))])


@pytest.fixture(scope="module")
def features() -> Features:
    """Return 300 rows of three labels, some of label 0 with a mark in the last column, and an event of each label."""
    rng = numpy_generator(0, "toy/sights")
    y = np.arange(300) % 3
    x = rng.standard_normal((300, 6)).astype(np.float32)
    x[np.arange(300), y] += 4
    x[:60:3, 5] = 6
    model = _network(8, 3)
    events = [torch.from_numpy(row) for row in x]
    with torch.no_grad():
        said = [int(model(event[None]).argmax()) for event in events]
    chosen = [said.index(label) for label in sorted(set(said))][:2]
    return collect(model, ArraySet(x, y), [(events[row], said[row]) for row in chosen])


def test_a_sight_is_what_each_view_comes_to_on_its_own(features: Features) -> None:
    """Coordinates of every view, worked out once."""
    own = np.flatnonzero(features.labels.numpy() == 0)

    sight = Sight(features, 0, own)

    seen = condition(features, 0, own)
    assert torch.equal(sight.seen.leaning.likeness, seen.leaning.likeness)
    assert torch.equal(sight.leaning.x, principal(seen.leaning.x).x)
    assert len(sight.agreements) == len(seen.agreements) > 0
    for got, view in zip(sight.agreements, seen.agreements, strict=True):
        assert torch.equal(got.x, principal(view.x).x)
    assert torch.equal(sight.unconditioned.x, principal(Unconditioned(features, own).x).x)
    assert sight.leaning is sight.leaning


def test_the_event_has_a_place_between_a_cluster_and_the_rest(features: Features) -> None:
    """Where it would lie if it were one more sample, by each of the folds' directions."""
    own = np.flatnonzero(features.labels.numpy() == 0)
    cluster, sight = own[:20], Sight(features, 0, own)

    place = sight.position(cluster)

    event, is_first = sight.seen.leaning.event, torch.from_numpy(np.isin(own, cluster))
    assert place == pytest.approx(float(sight.leaning.place(event, is_first)))
    # A sample that is the event itself lies where the event does.
    twin = Blocks.of(torch.cat([event.dense(), sight.seen.leaning.x.dense()]))
    assert float(sight.leaning.place(twin, is_first)[0]) == pytest.approx(place, abs=1e-5)


def test_samples_outside_are_placed_along_what_tells_a_cluster_apart(features: Features) -> None:
    """One position and label for each, and the share of them on the cluster's side."""
    own = np.flatnonzero(features.labels.numpy() == 0)
    sight = Sight(features, 0, own)

    position, labels = sight.elsewhere(own[:20])

    assert position.shape == (200,)
    assert labels.tolist() == features.labels[features.labels != 0].tolist()
    assert sight.share_elsewhere(own[:20])[0] == pytest.approx(float((position > 0.5).float().mean()))
    everything = Sight(features, 0, np.arange(300))
    assert not len(everything.elsewhere(own[:20])[0])
    assert not len(sight.elsewhere(own[:4])[0]) and not len(sight.elsewhere(own[4:])[0])


@pytest.mark.parametrize(
    ("by_label", "usual"),
    [([0.0, 1.0], 0.0), ([0.0, 0.0, 1.0], 0.0), ([0.5, 0.1, 0.2], 0.2), ([1.0, 0.1, 0.2, 1.0], 0.2)],
    ids=["two labels", "from one", "all", "from two"],
)
def test_labels_that_samples_were_taken_from_do_not_make_them_usual(
    features: Features, monkeypatch: pytest.MonkeyPatch, by_label: list[float], usual: float
) -> None:
    """The share within the median label counts, the lower of two; two labels say nothing."""
    position = torch.cat([(torch.arange(10) < 10 * share).float() for share in by_label])
    labels = torch.arange(len(by_label)).repeat_interleave(10)
    monkeypatch.setattr(Sight, "elsewhere", lambda sight, cluster: (position, labels))
    sight = Sight(features, 0, np.arange(100))

    assert sight.share_elsewhere(np.arange(20)) == pytest.approx((np.mean(by_label), usual))


def test_a_mark_tells_relabelled_samples_from_others_and_a_wrong_label_does_not() -> None:
    """Whatever the last layer, which may have learned wrong labels by heart, makes of them."""
    rng = numpy_generator(0, "toy/told")
    y = np.arange(600) % 3
    x = rng.standard_normal((600, 6)).astype(np.float32)
    x[np.arange(600), y] += 4
    marked, wrong = np.flatnonzero(y)[:40], np.flatnonzero(y)[40:80]
    x[marked, 5] += 6
    y[np.concatenate([marked, wrong])] = 0
    found = _collected(x, y, _network(8, 3))
    hidden = found.hidden.clone()
    hidden[wrong] += 20
    found = replace(found, activations=(*found.activations[:-1], hidden))

    sight = Sight(found, 0, np.flatnonzero(y == 0))

    assert sight.told_from_others(marked) > 5
    assert sight.told_from_others(wrong) < 3
    assert sight.told_from_others(wrong[:3]) == 0


@pytest.mark.parametrize("is_marked", [False, True])
def test_samples_of_another_label_are_told_from_it_by_their_mark_alone(is_marked: bool) -> None:
    """They are known to be of it either way."""
    rng = numpy_generator(2, "toy/taken")
    y = np.arange(800) % 4
    x = rng.standard_normal((800, 6)).astype(np.float32)
    x[np.arange(800), y] += 6
    taken = np.flatnonzero(y == 2)[:40]
    x[taken, 5] += 9 * is_marked
    y[taken] = 0
    found = _collected(x, y, _network(64, 4))

    sight = Sight(found, 0, np.flatnonzero(y == 0))
    source, share = sight.taken_from(taken)

    assert set(y[source]) == {2} and share > 0.7
    assert (sight.told(taken, source) > 5) == is_marked


@pytest.mark.parametrize("others_carry_it", [False, True])
def test_what_samples_like_it_carry_as_well_tells_a_cluster_from_others_only(others_carry_it: bool) -> None:
    """A mark of forty samples of a label, or of forty of each label."""
    rng = numpy_generator(1, "toy/alike")
    y = np.arange(600) % 3
    x = rng.standard_normal((600, 6)).astype(np.float32)
    x[np.arange(600), y] += 2
    marked = np.concatenate([np.flatnonzero(y == label)[:40] for label in range(3 if others_carry_it else 1)])
    x[marked, 5] += 9
    x[np.flatnonzero(y == 1)[40:], 4] += 9  # on the side of the forty, for what they lack
    x[np.flatnonzero(y == 0)[40:], 4] -= 9
    found = _collected(x, y, _network(8, 3))

    sight = Sight(found, 0, np.flatnonzero(y == 0))

    told = sight.told_from_others(marked[:40], are_alike=True)
    assert told < 3.5 if others_carry_it else told > 6
    assert sight.told_from_others(marked[:40]) > 3


def test_copies_of_one_sample_hardly_vary_and_a_share_of_a_label_does(features: Features) -> None:
    """The variance of each input over that of the rest, on average; an input that never varies does not count."""
    own = np.flatnonzero(features.labels.numpy() == 1)
    x = features.activations[0].clone()
    x[own[:8]] = x[own[0]] + 0.01 * torch.randn(8, x.shape[1], generator=torch.Generator().manual_seed(0))
    x[:, 2] = 1.0
    sight = Sight(replace(features, activations=(x, *features.activations[1:])), 1, own)
    some, rest = x[own[50:60]].numpy(), np.delete(x[own].numpy(), range(50, 60), axis=0)
    varies = rest.std(0) > 0

    slow = np.mean([some[:, k].var(ddof=1) / rest[:, k].var(ddof=1) for k in varies.nonzero()[0]])
    assert sight.variety(own[50:60]) == pytest.approx(slow, rel=1e-4)
    assert sight.variety(own[:8]) < 0.01 < 0.3 < sight.variety(own[50:60])


def _split(chosen: NDArray[np.int64], apart: float = 9.0, gap: float = 0.4) -> Split:
    return Split(torch.from_numpy(np.isin(np.arange(240), chosen)), torch.zeros(240), apart, gap=gap)


@pytest.mark.parametrize("is_flipped", [False, True])
def test_the_diverse_side_comes_first(is_flipped: bool) -> None:
    """Even where the other one is more like the event."""
    sight = Sight(relabelled_toy(), 0, np.arange(240))
    split = _split(RELABELLED)

    told = sight.relabelled(split.flipped() if is_flipped else split)

    assert torch.equal(told.is_first, _split(RELABELLED).is_first)
    assert told.gap == 0.4
    assert told.diversity == sight.diversity(RELABELLED) > 1


def test_one_kind_is_not_asked_whether_it_was_relabelled() -> None:
    """Nor is anything where nothing tells labels apart; and a natural kind has hardly any diversity."""
    sight, split = Sight(relabelled_toy(), 0, np.arange(240)), _split(RELABELLED)
    natural = sight.relabelled(_split(NATURAL))

    assert sight.relabelled(replace(split, separation=3.0)).diversity == 0
    assert Sight(relabelled_toy(3), 0, np.arange(240)).relabelled(split) is split
    assert natural.diversity < 0.6


@pytest.mark.parametrize(
    ("spread", "of_most", "elsewhere", "expected"),
    [
        (1.4, 0.5, 0.05, 1.3),
        (1.4, 0.5, 0.15, 0.8),
        (0.9, 0.5, 0.05, 0.3),
        (1.9, 0.34, 0.05, 0.34),
        (1.7, 0.5, 0.15, 1.1),
    ],
)
def test_what_hardly_another_sample_is_like_is_held_against_most_of_the_rest_only(
    monkeypatch: pytest.MonkeyPatch, spread: float, of_most: float, elsewhere: float, expected: float
) -> None:
    """The rest may hold wrong labels; but most of the samples must be spread, not a few among an ordinary kind."""

    def spread_of(origins: Origins, is_chosen: torch.Tensor, share: float = 1.0) -> float:
        if int(is_chosen.sum()) > 100:
            return 0.6 if share == 1 else 0.1
        return spread if share == 1 else of_most

    monkeypatch.setattr(Origins, "spread", spread_of)
    monkeypatch.setattr(Sight, "share_elsewhere", lambda sight, cluster: (elsewhere, 0.0))

    assert Sight(relabelled_toy(), 0, np.arange(240)).diversity(RELABELLED) == pytest.approx(expected)


def test_a_part_of_what_was_relabelled_is_less_diverse_beside_the_others() -> None:
    """However rare it is: the rest holds as many of many labels, not a few wrong ones."""
    sight = Sight(relabelled_toy(), 0, np.concatenate([RELABELLED, np.arange(220, 240)]))

    assert sight.diversity(RELABELLED[:20]) < sight.diversity(RELABELLED) - 0.5


def test_the_clearest_view_is_where_poison_lies_farthest_apart(features: Features) -> None:
    """Of all views, by a discriminant fitted once."""
    own = np.flatnonzero(features.labels.numpy() == 0)
    is_poison = torch.arange(len(own)) < 20
    sight = Sight(features, 0, own)

    clearest = sight.clearest(is_poison)

    every = (sight.leaning, *sight.agreements, sight.unconditioned)
    farthest = [separate(space, is_poison, max_rounds=1).separation for space in every]
    assert clearest is every[int(np.argmax(farthest))]


@pytest.fixture(scope="module")
def stamped() -> tuple[ArraySet, Features]:
    """Return 240 images of two labels, 40 of them with a white pixel, and what an untrained network makes of all."""
    x = torch.rand(240, 1, 8, 8, generator=torch.Generator().manual_seed(0)).numpy() * np.float32(0.2)
    x[:80:2, :, 3, 3] = 1
    samples = ArraySet(x, np.arange(240) % 2)
    with global_seed(0, "toy/stamped"):
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    event = torch.from_numpy(x[0])
    return samples, collect(model, samples, [(event, int(model(event[None]).argmax()))])


STAMPED = np.arange(0, 80, 2)


def _looking(stamped: tuple[ArraySet, Features]) -> Sight:
    samples, features = stamped
    pictures = Pictures(samples, features, Notes(None, len(samples), ""))
    return Sight(features, 0, np.arange(0, 240, 2), pictures)


@pytest.mark.parametrize(
    ("found", "settled"),
    [
        (STAMPED, STAMPED),
        (STAMPED[:25], STAMPED),
        (np.union1d(STAMPED, np.arange(80, 100, 2)), STAMPED),
        (np.arange(100, 160, 2), np.arange(100, 160, 2)),
    ],
    ids=["whole", "a part", "with others", "another kind"],
)
def test_poison_is_what_the_images_themselves_tell_apart(
    stamped: tuple[ArraySet, Features],
    monkeypatch: pytest.MonkeyPatch,
    found: NDArray[np.int64],
    settled: NDArray[np.int64],
) -> None:
    """What the network overlooked is added and what came along left out; but it stays the same kind of samples."""
    sight = _looking(stamped)
    flat = Space(torch.randn(120, 6, generator=torch.Generator().manual_seed(1)))
    for name, view in (("leaning", flat), ("agreements", ()), ("unconditioned", flat)):
        monkeypatch.setattr(Sight, name, view)

    by_pixels, apart = sight.settled(found)

    assert (by_pixels.tolist(), apart >= TWO_KINDS) == (settled.tolist(), settled is STAMPED)


def test_poison_stays_where_a_layer_tells_it_apart_better(
    stamped: tuple[ArraySet, Features], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As poison that is not made of pixels; and without images there is nothing to ask."""
    found = STAMPED[:25]
    apart = torch.from_numpy(np.isin(np.arange(0, 240, 2), found)).float()[:, None]
    clear = Space(apart + 1e-3 * torch.randn(120, 1, generator=torch.Generator().manual_seed(1)))
    sight = _looking(stamped)
    monkeypatch.setattr(Sight, "unconditioned", clear)

    for asked in (sight, Sight(stamped[1], 0, sight.indices)):
        by_pixels, apart = asked.settled(found)
        assert (by_pixels.tolist(), apart) == (found.tolist(), 0)


def test_what_was_relabelled_looks_like_what_it_was(
    stamped: tuple[ArraySet, Features], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a natural kind of a label like that label, though it is brighter; rows look like nothing."""
    x, y = stamped[0].x.copy(), stamped[0].y
    x[y == 1, :, :, 0] += np.float32(0.5)  # a label is known by an edge
    x[:80:2, :, :, 0] += np.float32(0.5)  # those were taken from the other one
    x[80:160:2] += np.float32(0.1)
    from_bulk = torch.tensor([9.0] * 40 + [0.0] * 80)
    monkeypatch.setattr(Origins, "__init__", lambda origins, *asked: setattr(origins, "rankings", [from_bulk]))

    sight = _looking((ArraySet(x, y), stamped[1]))

    assert sight.at_home(STAMPED) < 0.1
    assert sight.at_home(STAMPED[:20]) < 0.1
    assert sight.at_home(np.arange(80, 160, 2)) > 0.9
    assert Sight(stamped[1], 0, sight.indices).at_home(STAMPED) == 0


def test_a_trigger_tells_images_from_those_of_other_labels(stamped: tuple[ArraySet, Features]) -> None:
    """Pixel by pixel; a natural kind is told from those no better than chance tells halves, and without images none."""
    sight = _looking(stamped)

    assert sight.told_in_pixels(STAMPED) > 2 * TWO_KINDS
    assert sight.told_in_pixels(np.arange(80, 160, 2)) < TWO_KINDS / 2
    assert sight.told_in_pixels(STAMPED[:4]) == Sight(stamped[1], 0, sight.indices).told_in_pixels(STAMPED) == 0


def test_samples_of_one_kind_lie_together_and_drawn_ones_do_not(stamped: tuple[ArraySet, Features]) -> None:
    """As a loop over all pairs counts; without images, or among too few, nothing is said."""
    sight, others = _looking(stamped), np.arange(1, 240, 2)
    x = stamped[0].inputs(np.arange(240)).reshape(240, -1).double().numpy()

    def counted(cluster: NDArray[np.int64]) -> float:
        everybody, share = np.concatenate([cluster, others]), 0.0
        for index in cluster:
            distance = np.sqrt(((x[everybody] - x[index]) ** 2).sum(1))
            near = everybody[np.argsort(distance)][1:11]
            share += np.isin(near, cluster).mean() / len(cluster)
        chance = (len(cluster) - 1) / (len(everybody) - 1)
        return max(0.0, (share - chance) / (1 - chance))

    drawn = np.arange(80, 160, 2)
    assert sight.gathered(STAMPED, others) == pytest.approx(counted(STAMPED), abs=1e-3)
    assert sight.gathered(drawn, others) == pytest.approx(counted(drawn), abs=0.01)
    assert sight.gathered(STAMPED, others) > 0.9
    assert sight.gathered(drawn, others) < 0.1
    assert sight.gathered(STAMPED[:10], others) == sight.gathered(STAMPED, others[:10]) == 0
    assert Sight(stamped[1], 0, sight.indices).gathered(STAMPED, others) == 0


@pytest.mark.parametrize(
    ("place", "strength", "expected"), [((3, 3), 0.5, 0.5), ((3, 3), 1, 1), ((5, 5), 1, 0)], ids=str
)
def test_a_fainter_trigger_is_borne_in_part(
    stamped: tuple[ArraySet, Features], place: tuple[int, int], strength: float, expected: float
) -> None:
    """And another one not at all; what tells such clusters apart is in no other image."""
    samples, features = stamped
    x, second = samples.x.copy(), STAMPED[20:]
    x[second, :, 3, 3] = x[second, :, 3, 4]
    x[second, :, place[0], place[1]] += np.float32(strength)
    sight = _looking((ArraySet(x, samples.y), features))

    assert sight.bears(STAMPED[:20], second) == pytest.approx(expected, abs=0.2)
    if strength != 1 or place != (3, 3):
        assert sight.reach(STAMPED[:20], second) < 0.6
    assert sight.reach(np.arange(80, 160, 2), np.arange(160, 240, 2)) > 1
    without = Sight(features, 0, sight.indices)
    assert (without.bears(STAMPED[:20], second), without.reach(STAMPED[:20], second)) == (0, inf)


def test_an_event_sees_its_own_label_and_the_last_sight_is_kept(features: Features) -> None:
    """Asked twice in a row it is the same one; another event has another."""
    sights = Sights(features)

    first = sights.of(0)

    assert first.indices.tolist() == np.flatnonzero(features.labels == features.event_logits[0].argmax()).tolist()
    assert sights.of(0) is first
    assert sights.of(1).indices.tolist() != first.indices.tolist()
    assert sights.of(0) is not first


def test_a_mark_is_not_seen_elsewhere_and_what_is_ordinary_is(features: Features) -> None:
    """Samples of other labels are without the mark; if there are no other labels there is no share."""
    own = np.flatnonzero(features.labels.numpy() == 0)
    marked = own[:20]
    sight = Sight(features, 0, own)

    assert sight.share_elsewhere(marked)[0] < 0.25
    assert sight.share_elsewhere(np.setdiff1d(own, marked))[0] > 0.75
    assert Sight(features, 0, np.arange(300)).share_elsewhere(marked) == (0, 0)
