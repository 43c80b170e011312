"""Two clusters of one set: the same answers as dense k-means and a slow discriminant, and none where there is none."""

from dataclasses import replace

import pytest
import reference
import torch
from clouds import first, noise, planted

from poisontrace import clustering
from poisontrace._rng import torch_generator
from poisontrace.clustering import (
    FOR_SURE,
    SURELY_DIVERSE,
    TWO_KINDS,
    Split,
    against_nature,
    k_means,
    posterior,
    search,
    separate,
    two_means,
    with_gap,
)
from poisontrace.embedding import Embedding, embed, residual
from poisontrace.spaces import N_FOLDS, Space


def _gradients(n: int = 60, *, seed: int = 0) -> Embedding:
    """Two classes that a toy model tells apart, in float64."""
    hidden = noise(n, 5, seed=seed, dtype=torch.float64)
    hidden[::3, 0] += 3
    return embed([hidden], residual(hidden @ noise(5, 4, seed=seed + 100, dtype=torch.float64)))


@pytest.mark.parametrize("seed", range(5))
def test_two_means_equals_dense_k_means(seed: int) -> None:
    """The same clusters as scikit-learn's Lloyd on the written-out gradients from the same two rows."""
    embedding = _gradients(seed=seed)

    assert two_means(embedding).tolist() == reference.two_means(embedding.dense()).tolist()


def test_two_means_follows_a_permutation() -> None:
    """The order of the rows does not matter."""
    embedding = _gradients()
    order = torch.randperm(60, generator=torch_generator(0, "test/order"))

    assert torch.equal(two_means(embedding[order]), two_means(embedding)[order])


def test_two_means_of_rows_all_alike_is_one_cluster() -> None:
    """Nothing to split: all False."""
    alike = Embedding(torch.eye(3)[[0] * 8], torch.eye(4)[[1] * 8])

    assert not two_means(alike).any()


def test_two_means_stops_at_its_limit() -> None:
    """One round assigns by the two starting rows and ends."""
    embedding = _gradients()
    rows = embedding.dense()
    first = int((rows @ rows.mean(0)).argmin())
    second = int((rows @ rows[first]).argmin())

    assert torch.equal(two_means(embedding, max_rounds=1), rows @ rows[first] > rows @ rows[second])


@pytest.mark.parametrize("seed", range(4))
def test_separate_finds_three_percent_from_five_of_them(seed: int) -> None:
    """Five right starts grow into exactly the planted cluster."""
    x, is_planted = planted(seed=seed)

    split = separate(Space(x), first(is_planted, 5))

    assert torch.equal(split.is_first, is_planted)
    assert split.n_smaller == 12
    assert split.is_at_least(TWO_KINDS)
    assert float(split.score[is_planted].mean()) == pytest.approx(1, abs=0.1)
    assert float(split.score[~is_planted].mean()) == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("seed", range(4))
def test_one_cloud_is_never_two_kinds(seed: int) -> None:
    """Whatever the start, a Gaussian cloud stays below the bar."""
    x = noise(200, 20, seed=seed)
    rankings = [x[:, 0], x.norm(dim=1), -x.norm(dim=1), noise(200, seed=seed + 50)]
    starts = [*k_means(x, 8), *(ranking.argsort().argsort() < size for ranking in rankings for size in (5, 20, 80))]

    assert max(separate(Space(x), start).separation for start in starts) < TWO_KINDS
    assert not search(Space(x), rankings, k_means(x, 8)).is_at_least(TWO_KINDS)


def test_a_cluster_that_shrinks_away_is_no_split() -> None:
    """Below ``N_FOLDS`` samples nothing can be cross-fitted."""
    x, is_planted = planted()

    assert separate(Space(x), first(is_planted, N_FOLDS - 1)).separation == 0.0


@pytest.mark.parametrize("max_rounds", [1, 2, 12])
def test_a_cluster_that_shrinks_in_the_last_round_is_none_either(max_rounds: int) -> None:
    """Two far away, that four of the crowd came with, would look very far apart."""
    x = noise(200, 6)
    x[:2] += 40

    assert separate(Space(x), torch.arange(200) < 6, max_rounds=max_rounds).separation == 0.0


def test_k_means_has_no_more_clusters_than_samples() -> None:
    """What is left beside a large cluster may be a handful."""
    masks = k_means(noise(5, 3), 8)

    assert len(masks) == 5
    assert torch.stack(masks).sum(0).tolist() == [1] * 5


def test_more_is_asked_of_fewer_samples() -> None:
    """Four samples have to lie a quarter as far apart again."""
    few = Split(torch.arange(20) < 4, torch.zeros(20), 7.4)
    many = Split(torch.arange(200) < 100, torch.zeros(200), 6.4, gap=2.0)

    assert few.apartness == pytest.approx(7.4 / 1.25)
    assert not few.is_at_least(6)
    assert Split(few.is_first, few.score, 7.5).is_at_least(6)
    assert many.is_at_least(6)
    assert many.prominence == pytest.approx(64)
    assert many.strength == (True, pytest.approx(64))
    assert few.strength == (False, few.apartness)


def test_an_event_of_another_kind_makes_no_two_kinds() -> None:
    """However far apart, if the event is hardly more like one than like the other; without a hint not even a guess."""
    apart = Split(torch.arange(200) < 100, torch.zeros(200), 20.0, gap=0.9)

    assert not apart.is_at_least(6)
    assert apart.strength == (True, apart.prominence)
    assert Split(apart.is_first, apart.score, 20.0, gap=0.2).strength == (False, apart.apartness)


def test_the_gap_is_the_largest_and_turns_the_split_to_the_event() -> None:
    """The second respect says that the last two are like the event; one kind is not asked."""
    split = Split(torch.tensor([True, True, False, False]), torch.tensor([1.0, 0.9, 0.1, 0.0]), 7.0)

    seen = with_gap(split, lambda is_first: torch.tensor([0.5, -1.5]))

    assert seen.is_first.tolist() == [False, False, True, True]
    assert seen.score.tolist() == pytest.approx([0.0, 0.1, 0.9, 1.0])
    assert (seen.gap, seen.separation) == (1.5, 7.0)
    kept = with_gap(split, lambda is_first: torch.tensor([1.6, -1.5]))
    assert (kept.gap, kept.is_first.tolist()) == (pytest.approx(1.6), split.is_first.tolist())
    assert with_gap(Split(split.is_first, split.score, 4.0), lambda is_first: torch.zeros(1)).gap == 1


def test_a_wide_gap_makes_up_for_less_distance() -> None:
    """Its cube root counts, if the split stands out as well; a small distance needs no gap to be refused."""
    near = Split(torch.arange(200) < 100, torch.zeros(200), 4.8 * 1.05)

    assert near.apartness == pytest.approx(4.8)
    assert not near.is_at_least(6)
    assert not replace(near, gap=1.9).is_at_least(6)
    assert replace(near, gap=2.0).is_at_least(6)
    assert not replace(near, gap=2.0, standing=0.9).is_at_least(6)
    assert not replace(near, gap=1.9, standing=9.0).is_at_least(6)


def test_kinds_that_stand_out_need_less_of_a_gap() -> None:
    """What counts is their product."""
    apart = Split(torch.arange(200) < 100, torch.zeros(200), 20.0, gap=0.5)

    assert apart.evidence == 0.5
    assert not replace(apart, standing=1.9).is_at_least(6)
    assert replace(apart, standing=2.0).is_at_least(6)


def test_samples_that_were_relabelled_need_no_gap() -> None:
    """Diversity takes its place, and makes up for less distance as a wide gap does; half of it does neither."""
    near = Split(torch.arange(200) < 100, torch.zeros(200), 5.5, gap=-0.1)
    diverse, half = (replace(near, diversity=diversity) for diversity in (2.0, 0.5))

    assert diverse.evidence == 2
    assert diverse.margin(6) == pytest.approx(near.apartness * 2 ** (1 / 3) / 6)
    assert diverse.is_at_least(6)
    assert diverse.strength == (2, 2 * near.prominence) > replace(near, separation=99.0, gap=9.0).strength
    assert replace(diverse, separation=99.0).strength == replace(diverse, separation=FOR_SURE).strength
    assert replace(diverse, diversity=9.0).strength == replace(diverse, diversity=SURELY_DIVERSE).strength
    assert half.margin(6) == 0.5
    assert half.strength == near.strength == (0, near.apartness)


def test_kinds_within_a_kind_are_held_against_it() -> None:
    """A planted kind among noise stands out; one cluster of three alike does not."""
    x, is_planted = planted(n_planted=40)
    split = Split(is_planted, x[:, 3], 14.0)
    three = noise(300, 10)
    three[:100, 0] += 14
    three[100:200, 1] += 14
    one_of_three = separate(Space(three), torch.arange(300) < 100)

    assert against_nature(Space(x), split, 8).standing > 2
    assert against_nature(Space(three), one_of_three, 8).standing < 1
    assert against_nature(Space(x), Split(is_planted, x[:, 3], 4.0), 8).standing == 1


@pytest.mark.parametrize("seed", range(4))
def test_search_finds_the_whole_cluster_from_a_mixed_ranking(seed: int) -> None:
    """A ranking with almost as many others as planted samples among its first forty is enough."""
    x, is_planted = planted(n_planted=40, seed=seed)
    ranking = noise(400, seed=seed + 10) + 1.5 * is_planted
    top = ranking.argsort(descending=True)[:40]
    assert float(is_planted[top].float().mean()) < 0.6

    assert torch.equal(search(Space(x), [ranking]).is_first, is_planted)


def test_search_finds_what_is_most_of_the_set() -> None:
    """The few that are left over are found from a part of them, whichever side the ranking prefers."""
    x, is_planted = planted(n_planted=40)
    ranking = -x[:, 3] + noise(400, seed=5)

    found = search(Space(x), [ranking], [first(is_planted, 12)]).is_first

    assert torch.equal(found, is_planted) or torch.equal(found, ~is_planted)


def test_search_takes_further_starts() -> None:
    """Where the ranking is blind, a start that knows nothing of it decides."""
    x, is_planted = planted(n_planted=40)

    assert torch.equal(search(Space(x), [noise(400, seed=3)], [first(is_planted, 20)]).is_first, is_planted)


@pytest.mark.parametrize(("n", "sizes"), [(277, [5, 10, 20, 40, 80, 138]), (160, [5, 10, 20, 40, 80]), (10, [5])])
def test_tops_grow_up_to_half_of_the_samples(n: int, sizes: list[int]) -> None:
    """That half is one of them, whatever the size they have grown to before: half of a label may be poison."""
    ranking = noise(n)

    tops = list(clustering._tops(ranking, 2, 5))

    assert [int(top.sum()) for top in tops] == sizes
    assert all(ranking[top].min() >= ranking[~top].max() for top in tops)


def test_search_prefers_what_is_accepted_to_what_stands_out() -> None:
    """A large kind that lies far apart is left for a smaller one that is accepted, if there is one."""
    x, is_planted = planted(n_planted=40)
    is_large = torch.arange(400) >= 250
    x[is_large, 7] += 40
    starts = [first(is_planted, 20), is_large]

    assert torch.equal(search(Space(x), [], starts).is_first, is_large)
    found = search(Space(x), [], starts, accepts=lambda split: split.n_smaller == 40)

    assert torch.equal(found.is_first, is_planted)


def test_search_follows_a_permutation() -> None:
    """The order of the samples does not matter."""
    x, _ = planted(n_planted=40)
    ranking = x[:, 3] + noise(400, seed=4) * 5
    order = torch.randperm(400, generator=torch_generator(0, "test/order"))

    assert torch.equal(search(Space(x[order]), [ranking[order]]).is_first, search(Space(x), [ranking]).is_first[order])


def test_k_means_gives_a_partition() -> None:
    """Each sample is in one cluster, twice the same."""
    x = noise(50, 3)

    clusters = torch.stack(k_means(x, 4))

    assert clusters.sum(0).tolist() == [1] * 50
    assert torch.equal(torch.stack(k_means(x, 4)), clusters)


def test_k_means_of_few_distinct_rows_is_silent() -> None:
    """Fewer kinds of rows than clusters: some stay empty, nothing is said."""
    clusters = torch.stack(k_means(torch.eye(3)[torch.arange(30) % 3], 8))

    assert clusters.sum(0).tolist() == [1] * 30
    assert int((clusters.sum(1) > 0).sum()) == 3


def test_posterior_is_sure_of_planted_clusters() -> None:
    """In [0, 1], near one inside and near zero outside."""
    x, is_planted = planted(n_planted=40)

    certainty = posterior(Space(x), is_planted)

    assert 0 <= float(certainty.min()) <= float(certainty.max()) <= 1
    assert float(certainty[is_planted].min()) > 0.99
    assert float(certainty[~is_planted].max()) < 0.01


def test_posterior_doubts_a_stray_member() -> None:
    """A sample put into the wrong cluster is judged by its own place."""
    x, is_planted = planted(n_planted=40)
    stray = int((~is_planted).nonzero()[0])
    is_first = is_planted.clone()
    is_first[stray] = True

    assert float(posterior(Space(x), is_first)[stray]) < 0.5


def test_posterior_of_a_handful_is_their_membership() -> None:
    """Fewer than ``N_FOLDS`` samples cannot be cross-fitted."""
    x, is_planted = planted(n_planted=3)

    assert torch.equal(posterior(Space(x), is_planted), is_planted.float())
