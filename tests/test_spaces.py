"""Coordinates and discriminants: those that slow twins give, whatever the memory."""

import pytest
import reference
import scipy.linalg
import torch
from clouds import first, noise, planted
from reference import ATOL, RTOL
from torch import Tensor

from poisontrace import spaces
from poisontrace._blocks import Blocks
from poisontrace.spaces import MAX_DIRECTIONS, N_FOLDS, Space, principal


def test_few_coordinates_are_turned_to_their_principal_directions() -> None:
    """Nothing is left out, distances stay, and the order of the neurons does not matter: the last varies most."""
    x = noise(200, MAX_DIRECTIONS) * torch.linspace(1, 3, MAX_DIRECTIONS) + 5
    other_order = torch.randperm(MAX_DIRECTIONS, generator=torch.Generator().manual_seed(0))

    turned = principal(Blocks.of(x)).x

    torch.testing.assert_close(turned @ turned.T, (x - x.mean(0)) @ (x - x.mean(0)).T, rtol=1e-3, atol=0.1)
    assert (turned.var(0).diff() > -1e-3).all()
    torch.testing.assert_close(principal(Blocks.of(x[:, other_order])).x.abs(), turned.abs(), rtol=0, atol=1e-2)


@pytest.mark.parametrize("shape", [(60, 200), (300, 200)], ids=["fewer rows", "fewer coordinates"])
def test_principal_keeps_inner_products_of_rows_of_low_rank(shape: tuple[int, int]) -> None:
    """Nothing is lost where all variance fits into the directions kept."""
    x = noise(shape[0], 20) @ noise(20, shape[1], seed=1) / 10
    off = (x - x.mean(0)).double()

    kept = principal(Blocks.of(x)).x

    assert kept.shape == (shape[0], min(shape[0], MAX_DIRECTIONS))
    torch.testing.assert_close((kept @ kept.T).double(), off @ off.T, rtol=1e-3, atol=1e-2)


def test_principal_finds_the_same_directions_from_either_side() -> None:
    """Rows or coordinates, whichever are fewer: the same coordinates up to sign as a singular value decomposition."""
    tall = noise(200, 150) * torch.linspace(0.1, 5, 150)
    wide = torch.cat([tall, torch.zeros(200, 100)], 1)  # the same rows, now with fewer rows than coordinates
    off = (tall - tall.mean(0)).double()
    u, s, _ = torch.linalg.svd(off, full_matrices=False)
    expected = (u * s)[:, :MAX_DIRECTIONS].flip(1).abs()

    for x in (tall, wide):
        torch.testing.assert_close(principal(Blocks.of(x)).x.abs().double(), expected, rtol=1e-2, atol=2e-2)


def test_principal_goes_on_in_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where single precision does not converge: the same coordinates up to sign."""
    x = noise(300, 200) * torch.linspace(0.1, 5, 200)
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
    x = noise(3000, 10) @ noise(10, 200, seed=1) / 10 + 0.01 * noise(3000, 200, seed=2)
    blocks = Blocks.of(x, memory)
    assert not blocks.fits

    kept, whole = principal(blocks).x, principal(Blocks.of(x)).x

    assert kept.shape[1] == min(MAX_DIRECTIONS, memory // (spaces.SPACE_COPIES * 4 * 3000))
    rows = torch.arange(0, 3000, 30)
    torch.testing.assert_close(kept[rows] @ kept[rows].T, whole[rows] @ whole[rows].T, rtol=1e-2, atol=0.1)


@pytest.mark.parametrize(
    "shape", [(300, 40), (300, 200), (60, 200)], ids=["all directions", "leading ones", "fewer rows than coordinates"]
)
def test_other_rows_are_placed_as_if_they_were_of_the_set(shape: tuple[int, int]) -> None:
    """Rows of the set lie where their coordinates say, by the mean of the folds' discriminants, and so does a mean."""
    x = noise(*shape)
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
    x, others = noise(300, 6), noise(500, 6, seed=1) * torch.tensor([9.0, 5.0, 1, 1, 1, 1])
    x = x * torch.tensor([8.0, 5.0, 1, 1, 1, 3])
    usual = torch.cov(others.T)
    ridge = spaces.RIDGE * usual.diagonal().mean() * torch.eye(6)
    ratios = scipy.linalg.eigh(torch.cov(x.T).numpy(), (usual + ridge).numpy(), eigvals_only=True)

    contrasted = principal(Blocks.of(x)).against(Blocks.of(others))

    torch.testing.assert_close(torch.cov(contrasted.x.T), torch.diag(torch.from_numpy(ratios)), rtol=1e-3, atol=1e-3)
    last = torch.corrcoef(torch.stack([contrasted.x[:, -1], x[:, -1]]))
    assert abs(last[0, 1]) > 0.95  # what others do not vary in, though they vary more in all else


@pytest.mark.parametrize(("n", "n_first"), [(40, 5), (61, 30), (61, 50)])
def test_discriminant_equals_a_slow_twin(n: int, n_first: int) -> None:
    """Sums over folds give what a refit of each fold with an explicit covariance gives."""
    x = noise(n, 6)
    is_first = torch.arange(n) % n < n_first
    x[is_first] += 1

    got = Space(x).discriminate(is_first)

    expected = reference.discriminate(x, is_first, n_folds=N_FOLDS, ridge=spaces.RIDGE)
    torch.testing.assert_close(got.double(), expected, rtol=10 * RTOL, atol=10 * ATOL)


def test_a_discriminant_that_was_asked_for_before_is_not_worked_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as there is room for it."""
    space = Space(noise(40, 6))
    one, other = torch.arange(40) < 15, torch.arange(40) < 20
    first = space.discriminate(one)
    monkeypatch.setattr(spaces, "MAX_KNOWN", 0)
    second = space.discriminate(other)

    assert space.discriminate(one.clone()) is first
    assert space.discriminate(other) is not second and torch.equal(space.discriminate(other), second)


def test_a_plane_shows_two_kinds_apart() -> None:
    """One beside the other, whatever varies most lies across; the same bytes every time."""
    x, is_planted = planted()
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
    x, _ = planted()
    is_first = first(torch.ones(400, dtype=torch.bool), n_first)

    assert torch.equal(Space(x).plane(is_first)[:, 0], is_first.float())
