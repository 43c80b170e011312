"""Other methods: each computes what its paper says, and is told no more truth than its authors ask for."""

import dataclasses
import gc
import sys
from collections import Counter
from copy import deepcopy
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from reference import ATOL, RTOL, last_layer_gradients
from scipy.ndimage import gaussian_filter1d
from torch import nn
from torch.nn import functional

import poisontrace
from poisontrace._rng import numpy_generator
from poisontrace.data import ArraySet
from poisontrace.incidents import Incident
from poisontrace.train import Recipe

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from peers import METHODS, floors, gradients, nearest, published
from peers.case import Answer, Case, read_case, responsible


@pytest.fixture
def case(digits_folder: Path) -> Case:
    """BadNets on digits, as a method is given it; a new network for each test, since methods may change theirs."""
    return read_case(digits_folder)


@pytest.fixture
def few(case: Case) -> Case:
    """Its first 70 samples, more than a chunk."""
    return replace(case, train_set=ArraySet(case.train_set.x[:70], case.train_set.y[:70]))


@pytest.fixture
def influence(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module on kronfluence, which is installed by make setup; it collects garbage often, which takes seconds."""
    pytest.importorskip("kronfluence")
    monkeypatch.setattr(gc, "collect", lambda *_: 0)
    return import_module("peers.influence")


def looped(case: Case) -> tuple[list[list[torch.Tensor]], list[torch.Tensor]]:
    """Return the gradient of each sample's loss and of the event's, a backward pass each."""

    def gradient(x: torch.Tensor, y: int) -> list[torch.Tensor]:
        loss = functional.cross_entropy(case.model(x[None]), torch.tensor([y]))
        return list(torch.autograd.grad(loss, list(case.model.parameters())))

    samples = [gradient(*case.train_set[row]) for row in range(len(case.train_set))]
    return samples, gradient(case.event_x, case.event_y)


def test_every_method_is_there() -> None:
    """Each name stands for a function of a case."""
    for method in METHODS.values():
        if method.module != "influence":
            assert callable(getattr(import_module(f"peers.{method.module}"), method.function))


def test_a_method_sees_no_truth_that_it_does_not_need(
    case: Case, digits_folder: Path, digits_incident: Incident, tmp_path: Path
) -> None:
    """Where the truth is missing a case can still be read; who needs the rate gets that of the event's label."""
    for path in digits_folder.iterdir():
        if path.name not in ("truth.json", "attempts.npz"):
            (tmp_path / path.name).symlink_to(path)
    blind = read_case(tmp_path)
    told = read_case(digits_folder, needs="rate")
    poison = np.flatnonzero(digits_incident.is_poison)

    assert len(blind.poison) == 0 and np.isnan(blind.rate)
    assert len(told.poison) == 0
    assert told.rate == len(poison) / (digits_incident.y == told.event_y).sum()
    assert read_case(digits_folder, needs="truth").poison.tolist() == responsible(digits_folder).tolist()
    assert responsible(digits_folder).tolist() == poison.tolist()
    with pytest.raises(FileNotFoundError):
        read_case(tmp_path, needs="truth")


def test_influence_by_gradients_is_that_of_a_loop(few: Case) -> None:
    """Products and cosines with the event's gradient, over all layers, the last one, and layer by layer."""
    samples, event = looped(few)

    def products(of: slice) -> list[float]:
        return [float(sum((a * b).sum() for a, b in zip(s[of], event[of], strict=True))) for s in samples]

    def cosines(of: slice) -> list[float]:
        own = torch.cat([g.flatten() for g in event[of]])
        return [float(functional.cosine_similarity(torch.cat([g.flatten() for g in s[of]]), own, 0)) for s in samples]

    all_layers, last = slice(None), slice(-2, None)
    by_layer = np.sum([cosines(slice(place, place + 1)) for place in range(len(event))], 0)
    for find, expected in (
        (gradients.find_product, products(all_layers)),
        (gradients.find_last_product, products(last)),
        (gradients.find_cosine, cosines(all_layers)),
        (gradients.find_last_cosine, cosines(last)),
        (gradients.find_cosine_by_layer, by_layer),
    ):
        np.testing.assert_allclose(find(few).scores, expected, RTOL, ATOL)


def test_the_nearest_come_first(few: Case) -> None:
    """By L2 distance of normalised features, and samples of another label after all of the event's."""

    def features(x: torch.Tensor) -> torch.Tensor:
        hidden = few.model[:-1](x[None])[0].detach()
        return hidden / hidden.norm()

    def key(row: int) -> tuple[bool, float]:
        x, y = few.train_set[row]
        return y != few.event_y, float((features(x) - features(few.event_x)).norm())

    scores = nearest.find(few).scores

    assert scores is not None
    assert np.argsort(-scores).tolist() == sorted(range(70), key=key)


def test_the_published_embedding_is_that_of_a_loop(few: Case) -> None:
    """The gradient towards the uniform label, one sample at a time, rows of length 1."""
    embedding = published.embed(few)
    head = few.model[-1]
    hidden = few.model[:-1](torch.stack([few.train_set[row][0] for row in range(70)]))
    expected = last_layer_gradients(head.weight.detach(), head.bias.detach(), hidden.detach(), [None] * 70)
    kept = published.numpy_generator(0, "peers/published/coordinates").permutation(expected.shape[1])

    np.testing.assert_allclose(embedding, functional.normalize(expected, dim=1)[:, kept], RTOL, ATOL)


def test_the_published_embedding_keeps_5000_coordinates() -> None:
    """As the release does where the last layer has more."""
    model = nn.Sequential(nn.Identity(), nn.Linear(100, 60))
    x = np.ones((3, 100), np.float32)
    case = Case(model, ArraySet(x, np.arange(3)), torch.ones(100), 0, Recipe())

    assert published.embed(case).shape == (3, 5000)


def test_a_step_of_the_published_unlearning_is_the_formula(few: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of cluster and rest, only known samples of the cluster, 128 times the loss, clipped, Nesterov."""
    monkeypatch.setattr(published, "MIN_STEPS", published.LOOKS)
    monkeypatch.setattr(published, "KEPT", -1.0)
    monkeypatch.setattr(published, "FORGOTTEN", 2.0)  # so the first look ends it
    cluster, rest = np.arange(30), np.arange(30, 70)
    head = few.model[-1]
    before = head.weight.detach().clone()

    after = published.unlearn(few, cluster)[-1].weight

    def logits(rows: np.ndarray) -> torch.Tensor:
        return few.model(torch.stack([few.train_set[int(row)][0] for row in rows]))

    known = [row for row in cluster if int(logits(np.array([row])).argmax()) == few.train_set.y[row]]
    uniform = -logits(np.array(known)).log_softmax(1).mean(1).mean()
    kept = functional.cross_entropy(logits(rest), torch.from_numpy(few.train_set.y[rest]))
    (gradient,) = torch.autograd.grad(128 * (uniform + kept), head.weight)
    expected = before - 0.004 * 1.9 * gradient.clamp(-0.05, 0.05)  # the first step of momentum 0.9
    torch.testing.assert_close(after, expected, rtol=RTOL, atol=ATOL)
    torch.testing.assert_close(head.weight, before)


def test_published_unlearning_goes_on_where_a_cluster_is_used_up(few: Case) -> None:
    """Batches begin anew, each sample once in a round, and flip only if the victim's training did."""
    batches = published._batches(few, np.arange(70), torch.Generator())
    rounds = [next(batches) for _ in range(2)]
    flipped = next(published._batches(replace(few, recipe=Recipe(flip=True)), np.arange(70), torch.Generator()))

    for x, y in rounds:
        assert torch.equal(x, torch.stack([few.train_set[row][0] for row in range(70)]))
        assert y.tolist() == few.train_set.y.tolist()
    is_flipped = (flipped[0] == rounds[0][0].flip(3)).flatten(1).all(1)
    assert 10 < is_flipped.sum() < 60


@pytest.mark.parametrize(
    ("guilty", "expected"),
    [
        ("poison", [5, 6, 7]),  # one of two is guilty at each level, down to a cluster that cannot be split
        ("none", []),
        ("all", list(range(8))),  # both guilty: stop and keep both
    ],
)
def test_the_published_recursion(guilty: str, expected: list[int], case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prune the innocent, recurse into the guilty, keep both where both are."""
    poison = {5, 6, 7}
    blames = {"poison": poison.intersection, "none": lambda _: (), "all": lambda _: (1,)}[guilty]
    monkeypatch.setattr(published, "embed", lambda _: np.array([[0.0], [0], [0], [0], [1], [2], [2], [2]], np.float32))
    monkeypatch.setattr(published, "unlearn", lambda _, cluster: cluster)
    monkeypatch.setattr(
        published, "_event_loss", lambda _, cluster: float(isinstance(cluster, np.ndarray) and len(blames(cluster)) > 0)
    )
    eight = replace(case, train_set=ArraySet(case.train_set.x[:8], case.train_set.y[:8]))

    found = published.find(eight).found

    assert found is not None
    assert found.tolist() == expected


def test_the_published_procedure_runs_as_a_whole(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """And ends in indices; fewer steps here, for time."""
    monkeypatch.setattr(published, "MIN_STEPS", 20)
    rows = np.arange(0, len(case.train_set), 6)
    answer = published.find(replace(case, train_set=ArraySet(case.train_set.x[rows], case.train_set.y[rows])))

    assert answer.found is not None
    assert answer.found.dtype == np.int64 and set(answer.found) <= set(range(len(rows)))


@pytest.mark.filterwarnings("ignore")  # of ART's own making
def test_activation_clustering_accuses_the_smaller_cluster_of_each_label(case: Case) -> None:
    """Never more than half of a label, and nothing of the last layer: a head of noise changes nothing."""
    filters = import_module("peers.art_filters")
    found = filters.find_by_activations(case).found
    nn.init.zeros_(case.model[-1].weight)

    labels, sizes = case.train_set.y, Counter(case.train_set.y.tolist())
    assert all(0 < n <= sizes[label] / 2 for label, n in Counter(labels[found].tolist()).items())
    assert len(set(labels[found].tolist())) == len(sizes)
    assert filters.find_by_activations(case).found.tolist() == found.tolist()


@pytest.mark.filterwarnings("ignore")
def test_spectral_signatures_are_the_first_singular_vector_of_each_label(digits_folder: Path) -> None:
    """The samples with the largest share in it, 1.5 times the rate, with their shares as scores."""
    case = read_case(digits_folder, needs="rate")
    answer = import_module("peers.art_filters").find_by_spectrum(case)

    with torch.no_grad():
        hidden = case.model[:-1](torch.stack([case.train_set[row][0] for row in range(len(case.train_set))])).numpy()
    for label in range(10):
        rows = np.flatnonzero(case.train_set.y == label)
        centred = hidden[rows] - hidden[rows].mean(0)
        shares = np.abs(hidden[rows] @ np.linalg.svd(centred, full_matrices=False)[2][0])
        accused = rows[shares >= np.quantile(shares, 1 - 1.5 * case.rate)]
        assert np.intersect1d(answer.found, rows).tolist() == accused.tolist()
        np.testing.assert_allclose(answer.scores[accused], shares[np.isin(rows, accused)], rtol=1e-3)
    assert answer.scores[np.setdiff1d(np.arange(len(case.train_set)), answer.found)].max() == 0


@pytest.fixture
def rows() -> Case:
    """Forty rows, one linear layer and an event: small enough to write EK-FAC out."""
    random = numpy_generator(0, "test/peers")
    model = nn.Sequential(nn.Identity(), nn.Linear(5, 3))
    for parameter in model.parameters():
        parameter.data = torch.from_numpy(random.standard_normal(parameter.shape)).float()
    x = random.standard_normal((40, 5)).astype(np.float32)
    return Case(model, ArraySet(x, np.arange(40) % 3), torch.from_numpy(x[7]), 2, Recipe())


@pytest.mark.filterwarnings("ignore")  # of kronfluence's and its libraries' making
def test_influence_is_ek_fac_written_out(rows: Case, influence: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kronecker factors, second moments in their eigenbasis, and the margin's gradient; labels drawn in turn here."""
    drawn = np.arange(40) % 3
    monkeypatch.setattr(torch, "multinomial", lambda p, _: torch.from_numpy(drawn[: len(p)])[:, None])
    weight, bias = (p.detach().double().numpy() for p in rows.model.parameters())
    inputs = np.hstack([rows.train_set.x.astype(np.float64), np.ones((40, 1))])
    logits = inputs @ np.hstack([weight, bias[:, None]]).T
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    pseudo, true = p - np.eye(3)[drawn], p - np.eye(3)[rows.train_set.y]
    left, right = np.linalg.eigh(pseudo.T @ pseudo)[1], np.linalg.eigh(inputs.T @ inputs)[1]
    moments = np.mean([(left.T @ np.outer(g, a) @ right) ** 2 for g, a in zip(pseudo, inputs, strict=True)], 0)
    others = p[7] * (np.arange(3) != 2) / (1 - p[7, 2])  # the event is row 7
    query = left.T @ np.outer(others - np.eye(3)[2], inputs[7]) @ right / (moments + 1e-8)
    expected = [np.sum((left @ query @ right.T) * np.outer(g, a)) for g, a in zip(true, inputs, strict=True)]

    np.testing.assert_allclose(influence.find(rows).scores, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_influences_on_several_queries_are_those_on_each(rows: Case, influence: ModuleType) -> None:
    """Asking for all at once is only faster; kronfluence rewires the network that it is given."""
    x, labels = torch.from_numpy(rows.train_set.x[3:5]), torch.tensor([2, 0])
    both = influence.influences(replace(rows, model=deepcopy(rows.model)), x, labels)

    for place in range(2):
        only = slice(place, place + 1)
        alone = influence.influences(replace(rows, model=deepcopy(rows.model)), x[only], labels[only])
        np.testing.assert_allclose(alone[0], both[place], rtol=1e-3, atol=1e-3 * np.abs(both).max())


def test_who_loses_influence_in_all_but_two_changes_is_accused(
    case: Case, influence: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """50, 48 and 47 losses of 50; equal numbers are ordered by how much is lost."""
    n_losses = np.array([50, 48, 47, 50, 0])
    size = np.array([1.0, 1, 1, 2, 1])
    after = np.where(np.arange(50)[:, None] < n_losses, -size, size)
    monkeypatch.setattr(influence, "influences", lambda *_: np.vstack([np.zeros(5), after]))

    answer = influence.find_by_change(case)

    assert answer.found.tolist() == [0, 1, 3]
    assert np.argsort(-answer.scores).tolist() == [3, 0, 1, 2, 4]


@pytest.mark.parametrize("n_channels", [1, 3])
def test_changes_are_images_with_other_labels(n_channels: int, case: Case, influence: ModuleType) -> None:
    """Fifty, none of them the event itself, all of its form; the same ones again for the same seed."""
    event = torch.rand(n_channels, 12, 12, generator=torch.Generator().manual_seed(0))
    case = replace(case, event_x=event)

    images, labels = influence.changes(case)
    again, _ = influence.changes(case)
    other, _ = influence.changes(replace(case, seed=1))

    assert images.shape == (50, n_channels, 12, 12)
    assert case.event_y not in labels.tolist() and len(set(labels.tolist())) > 5
    assert bool(torch.isfinite(images).all())
    assert not any(torch.equal(image, event) for image in images)
    assert torch.equal(images, again) and not torch.equal(images, other)


def test_transformations_do_what_they_are_called(influence: ModuleType) -> None:
    """Blur against SciPy; turning the hue leaves grey alone, and by a third of the circle red becomes green."""
    x = torch.rand(3, 20, 24, generator=torch.Generator().manual_seed(0))
    grey, red = torch.full((3, 2, 2), 0.4), torch.zeros(3, 2, 2)
    red[0] = 1

    blurred = x.numpy()
    for axis in (2, 1):
        blurred = gaussian_filter1d(blurred, 2.0, axis, mode="mirror")
    np.testing.assert_allclose(influence._gaussian(x, 2.0, 2.0), blurred, RTOL, ATOL)
    torch.testing.assert_close(influence._turn_hue(grey, 0.07), grey)
    torch.testing.assert_close(influence._turn_hue(red, 1 / 3), red.roll(1, 0))


def test_floors(case: Case, digits_folder: Path) -> None:
    """Chance is chance, the truth is right, and a forward pass says nothing."""
    told = read_case(digits_folder, needs="truth")
    scores = floors.find_at_random(case).scores

    assert scores is not None and len(set(scores)) == len(case.train_set)
    assert floors.find_the_truth(told).found is told.poison
    assert dataclasses.asdict(floors.run_once(case)) == dataclasses.asdict(Answer())


def test_ours_is_the_default_rule(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but model, data and the one event, on the CPU as all others."""
    given: dict[str, Any] = {}

    def trace(*arguments: Any, **options: Any) -> Any:
        given.update(arguments=arguments, options=options)
        return SimpleNamespace(poison=np.array([3]), scores=np.array([0.5], np.float32))

    monkeypatch.setattr(poisontrace, "trace", trace)

    answer = import_module("peers.ours").find(case)

    assert given["arguments"] == (case.model, case.train_set, [(case.event_x, case.event_y)])
    assert given["options"] == {"device": "cpu"}
    assert answer.found is not None and answer.found.tolist() == [3]
    assert answer.scores is not None and answer.scores.tolist() == [0.5]
