"""Two clusters of one set: the same answers as dense k-means and a slow discriminant, and none where there is none."""

from dataclasses import replace

import pytest
import reference
import scipy.linalg
import torch
from reference import ATOL, RTOL
from torch import Tensor

from poisontrace import clustering
from poisontrace._blocks import Blocks
from poisontrace._rng import torch_generator
from poisontrace.clustering import (
    FOR_SURE,
    MAX_DIRECTIONS,
    N_FOLDS,
    TWO_KINDS,
    Space,
    Split,
    against_nature,
    k_means,
    posterior,
    principal,
    search,
    separate,
    two_means,
    with_gap,
)
from poisontrace.embedding import Embedding, embed, residual


def _noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch_generator(seed, "test/noise"), dtype=dtype)


def _gradients(n: int = 60, *, seed: int = 0) -> Embedding:
    """Two classes that a toy model tells apart, in float64."""
    hidden = _noise(n, 5, seed=seed, dtype=torch.float64)
    hidden[::3, 0] += 3
    return embed([hidden], residual(hidden @ _noise(5, 4, seed=seed + 100, dtype=torch.float64)))


def _planted(n: int = 400, n_planted: int = 12, *, seed: int = 0, gap: float = 14.0) -> tuple[Tensor, Tensor]:
    """A cloud of rows and the mask of a second, small one in it."""
    x = _noise(n, 10, seed=seed)
    is_planted = torch.zeros(n, dtype=torch.bool)
    is_planted[torch.randperm(n, generator=torch_generator(seed, "test/planted"))[:n_planted]] = True
    x[is_planted, 3] += gap
    return x, is_planted


def _first(mask: Tensor, size: int) -> Tensor:
    start = torch.zeros_like(mask)
    start[mask.nonzero()[:size, 0]] = True
    return start


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


def test_few_coordinates_are_only_centred() -> None:
    """Up to ``MAX_DIRECTIONS`` there is nothing to leave out."""
    x = _noise(20, MAX_DIRECTIONS) + 5

    torch.testing.assert_close(principal(Blocks.of(x)).x, x - x.mean(0))


@pytest.mark.parametrize("shape", [(60, 200), (300, 200)], ids=["fewer rows", "fewer coordinates"])
def test_principal_keeps_inner_products_of_rows_of_low_rank(shape: tuple[int, int]) -> None:
    """Nothing is lost where all variance fits into the directions kept."""
    x = _noise(shape[0], 20) @ _noise(20, shape[1], seed=1) / 10
    off = (x - x.mean(0)).double()

    kept = principal(Blocks.of(x)).x

    assert kept.shape == (shape[0], min(shape[0], MAX_DIRECTIONS))
    torch.testing.assert_close((kept @ kept.T).double(), off @ off.T, rtol=1e-3, atol=1e-2)


def test_principal_finds_the_same_directions_from_either_side() -> None:
    """Rows or coordinates, whichever are fewer: the same coordinates up to sign as a singular value decomposition."""
    tall = _noise(200, 150) * torch.linspace(0.1, 5, 150)
    wide = torch.cat([tall, torch.zeros(200, 100)], 1)  # the same rows, now with fewer rows than coordinates
    off = (tall - tall.mean(0)).double()
    u, s, _ = torch.linalg.svd(off, full_matrices=False)
    expected = (u * s)[:, :MAX_DIRECTIONS].flip(1).abs()

    for x in (tall, wide):
        torch.testing.assert_close(principal(Blocks.of(x)).x.abs().double(), expected, rtol=1e-2, atol=2e-2)


def test_principal_goes_on_in_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where single precision does not converge: the same coordinates up to sign."""
    x = _noise(300, 200) * torch.linspace(0.1, 5, 200)
    expected, eigh = principal(Blocks.of(x)).x, torch.linalg.eigh

    def stubborn(gram: Tensor) -> tuple[Tensor, Tensor]:
        if gram.dtype == torch.float32:
            raise RuntimeError("did not converge")
        return eigh(gram)

    monkeypatch.setattr(torch.linalg, "eigh", stubborn)

    got = principal(Blocks.of(x)).x

    assert got.dtype == torch.float32
    torch.testing.assert_close(got.abs(), expected.abs(), rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize("memory", [8 * 4 * 200 * 200, 8 * 4 * 200 * 200 - 1], ids=["second moments", "iteration"])
def test_principal_in_blocks_is_principal(memory: int) -> None:
    """Rows that do not fit, and second moments that do not: the same inner products where the variance is leading."""
    x = _noise(3000, 10) @ _noise(10, 200, seed=1) / 10 + 0.01 * _noise(3000, 200, seed=2)
    blocks = Blocks.of(x, memory)
    assert not blocks.fits

    kept, whole = principal(blocks).x, principal(Blocks.of(x)).x

    assert kept.shape[1] == min(MAX_DIRECTIONS, memory // (clustering.SPACE_COPIES * 4 * 3000))
    rows = torch.arange(0, 3000, 30)
    torch.testing.assert_close(kept[rows] @ kept[rows].T, whole[rows] @ whole[rows].T, rtol=1e-2, atol=0.1)


@pytest.mark.parametrize(
    "shape", [(300, 40), (300, 200), (60, 200)], ids=["all directions", "leading ones", "fewer rows than coordinates"]
)
def test_other_rows_are_placed_as_if_they_were_of_the_set(shape: tuple[int, int]) -> None:
    """Rows of the set lie where their coordinates say, by the mean of the folds' discriminants, and so does a mean."""
    x = _noise(*shape)
    is_first = torch.arange(len(x)) < 20
    x[is_first, 0] += 8
    space = principal(Blocks.of(x))
    directions, origins, _ = space._directions(is_first)

    placed = space.place(Blocks.of(torch.cat([x, x.mean(0)[None]])), is_first)

    expected = (space.x @ torch.from_numpy(directions).T - torch.from_numpy(origins)).mean(1)
    torch.testing.assert_close(placed[:-1], expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(placed[-1], expected.mean(), rtol=1e-3, atol=1e-3)


def test_variance_against_other_rows_equals_a_slow_twin() -> None:
    """Along each direction other rows have unit variance but for the ridge, and the set its ratio, ascending."""
    x, others = _noise(300, 6), _noise(500, 6, seed=1) * torch.tensor([9.0, 5.0, 1, 1, 1, 1])
    x = x * torch.tensor([8.0, 5.0, 1, 1, 1, 3])
    usual = torch.cov(others.T)
    ridge = clustering.RIDGE * usual.diagonal().mean() * torch.eye(6)
    ratios = scipy.linalg.eigh(torch.cov(x.T).numpy(), (usual + ridge).numpy(), eigvals_only=True)

    contrasted = principal(Blocks.of(x)).against(Blocks.of(others))

    torch.testing.assert_close(torch.cov(contrasted.x.T), torch.diag(torch.from_numpy(ratios)), rtol=1e-3, atol=1e-3)
    last = torch.corrcoef(torch.stack([contrasted.x[:, -1], x[:, -1]]))
    assert abs(last[0, 1]) > 0.95  # what others do not vary in, though they vary more in all else


@pytest.mark.parametrize(("n", "n_first"), [(40, 5), (61, 30), (61, 50)])
def test_discriminant_equals_a_slow_twin(n: int, n_first: int) -> None:
    """Sums over folds give what a refit of each fold with an explicit covariance gives."""
    x = _noise(n, 6)
    is_first = torch.arange(n) % n < n_first
    x[is_first] += 1

    got = Space(x).discriminate(is_first)

    expected = reference.discriminate(x, is_first, n_folds=N_FOLDS, ridge=clustering.RIDGE)
    torch.testing.assert_close(got.double(), expected, rtol=10 * RTOL, atol=10 * ATOL)


@pytest.mark.parametrize("seed", range(4))
def test_separate_finds_three_percent_from_five_of_them(seed: int) -> None:
    """Five right starts grow into exactly the planted cluster."""
    x, is_planted = _planted(seed=seed)

    split = separate(Space(x), _first(is_planted, 5))

    assert torch.equal(split.is_first, is_planted)
    assert split.n_smaller == 12
    assert split.is_at_least(TWO_KINDS)
    assert float(split.score[is_planted].mean()) == pytest.approx(1, abs=0.1)
    assert float(split.score[~is_planted].mean()) == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("seed", range(4))
def test_one_cloud_is_never_two_kinds(seed: int) -> None:
    """Whatever the start, a Gaussian cloud stays below the bar."""
    x = _noise(200, 20, seed=seed)
    rankings = [x[:, 0], x.norm(dim=1), -x.norm(dim=1), _noise(200, seed=seed + 50)]
    starts = [*k_means(x, 8), *(ranking.argsort().argsort() < size for ranking in rankings for size in (5, 20, 80))]

    assert max(separate(Space(x), start).separation for start in starts) < TWO_KINDS
    assert not search(Space(x), rankings, k_means(x, 8)).is_at_least(TWO_KINDS)


def test_a_cluster_that_shrinks_away_is_no_split() -> None:
    """Below ``N_FOLDS`` samples nothing can be cross-fitted."""
    x, is_planted = _planted()

    assert separate(Space(x), _first(is_planted, N_FOLDS - 1)).separation == 0.0


def test_k_means_has_no_more_clusters_than_samples() -> None:
    """What is left beside a large cluster may be a handful."""
    masks = k_means(_noise(5, 3), 8)

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
    assert half.margin(6) == 0.5
    assert half.strength == near.strength == (0, near.apartness)


def test_kinds_within_a_kind_are_held_against_it() -> None:
    """A planted kind among noise stands out; one cluster of three alike does not."""
    x, is_planted = _planted(n_planted=40)
    split = Split(is_planted, x[:, 3], 14.0)
    three = _noise(300, 10)
    three[:100, 0] += 14
    three[100:200, 1] += 14
    one_of_three = separate(Space(three), torch.arange(300) < 100)

    assert against_nature(Space(x), split, 8).standing > 2
    assert against_nature(Space(three), one_of_three, 8).standing < 1
    assert against_nature(Space(x), Split(is_planted, x[:, 3], 4.0), 8).standing == 1


@pytest.mark.parametrize("seed", range(4))
def test_search_finds_the_whole_cluster_from_a_mixed_ranking(seed: int) -> None:
    """A ranking with almost as many others as planted samples among its first forty is enough."""
    x, is_planted = _planted(n_planted=40, seed=seed)
    ranking = _noise(400, seed=seed + 10) + 1.5 * is_planted
    top = ranking.argsort(descending=True)[:40]
    assert float(is_planted[top].float().mean()) < 0.6

    assert torch.equal(search(Space(x), [ranking]).is_first, is_planted)


def test_search_finds_what_is_most_of_the_set() -> None:
    """The few that are left over are found from a part of them, whichever side the ranking prefers."""
    x, is_planted = _planted(n_planted=40)
    ranking = -x[:, 3] + _noise(400, seed=5)

    found = search(Space(x), [ranking], [_first(is_planted, 12)]).is_first

    assert torch.equal(found, is_planted) or torch.equal(found, ~is_planted)


def test_search_takes_further_starts() -> None:
    """Where the ranking is blind, a start that knows nothing of it decides."""
    x, is_planted = _planted(n_planted=40)

    assert torch.equal(search(Space(x), [_noise(400, seed=3)], [_first(is_planted, 20)]).is_first, is_planted)


def test_search_prefers_what_is_accepted_to_what_stands_out() -> None:
    """A large kind that lies far apart is left for a smaller one that is accepted, if there is one."""
    x, is_planted = _planted(n_planted=40)
    is_large = torch.arange(400) >= 250
    x[is_large, 7] += 40
    starts = [_first(is_planted, 20), is_large]

    assert torch.equal(search(Space(x), [], starts).is_first, is_large)
    found = search(Space(x), [], starts, accepts=lambda split: split.n_smaller == 40)

    assert torch.equal(found.is_first, is_planted)


def test_search_follows_a_permutation() -> None:
    """The order of the samples does not matter."""
    x, _ = _planted(n_planted=40)
    ranking = x[:, 3] + _noise(400, seed=4) * 5
    order = torch.randperm(400, generator=torch_generator(0, "test/order"))

    assert torch.equal(search(Space(x[order]), [ranking[order]]).is_first, search(Space(x), [ranking]).is_first[order])


def test_k_means_gives_a_partition() -> None:
    """Each sample is in one cluster, twice the same."""
    x = _noise(50, 3)

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
    x, is_planted = _planted(n_planted=40)

    certainty = posterior(Space(x), is_planted)

    assert 0 <= float(certainty.min()) <= float(certainty.max()) <= 1
    assert float(certainty[is_planted].min()) > 0.99
    assert float(certainty[~is_planted].max()) < 0.01


def test_posterior_doubts_a_stray_member() -> None:
    """A sample put into the wrong cluster is judged by its own place."""
    x, is_planted = _planted(n_planted=40)
    stray = int((~is_planted).nonzero()[0])
    is_first = is_planted.clone()
    is_first[stray] = True

    assert float(posterior(Space(x), is_first)[stray]) < 0.5


def test_posterior_of_a_handful_is_their_membership() -> None:
    """Fewer than ``N_FOLDS`` samples cannot be cross-fitted."""
    x, is_planted = _planted(n_planted=3)

    assert torch.equal(posterior(Space(x), is_planted), is_planted.float())


def test_a_plane_shows_two_kinds_apart() -> None:
    """One beside the other, whatever varies most lies across; the same bytes every time."""
    x, is_planted = _planted()
    space = Space(x)

    plane = space.plane(is_planted)

    assert torch.equal(plane[:, 0], space.discriminate(is_planted))
    assert float(plane[is_planted, 0].mean()) == pytest.approx(1, abs=0.1)
    assert abs(float(plane[is_planted, 1].mean() - plane[~is_planted, 1].mean())) < 0.2
    assert float(plane[:, 1].std()) == pytest.approx(1, abs=1e-3)
    assert torch.equal(space.plane(is_planted), plane)


@pytest.mark.parametrize("n_first", [0, 2, 400])
def test_a_plane_of_too_few_is_their_membership(n_first: int) -> None:
    """As is the posterior."""
    x, _ = _planted()
    is_first = _first(torch.ones(400, dtype=torch.bool), n_first)

    assert torch.equal(Space(x).plane(is_first)[:, 0], is_first.float())
