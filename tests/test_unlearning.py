"""Forgetting a cluster: one convex answer, the same as slow solvers find, and as a whole network gives."""

import copy
from queue import Queue
from threading import Thread

import numpy as np
import pytest
import reference
import torch
from reference import ATOL, RTOL
from tasks import fitted_network, planted, planted_mlp
from torch import Tensor

from poisontrace import unlearning
from poisontrace._errors import PoisontraceError, UnlearningDivergedError
from poisontrace._rng import torch_generator
from poisontrace.data import ArraySet
from poisontrace.embedding import Features, collect
from poisontrace.ranks import Ranks
from poisontrace.unlearning import RIDGE, TETHER, Heads, assist, dismiss, unlearn

TASK = planted()
NOBODY = np.array([], np.int64)
EVENT_LABEL = torch.tensor([0])


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    """A network that the planted poison moved."""
    return fitted_network(TASK, planted_mlp)


@pytest.fixture(scope="module")
def features(network: torch.nn.Module) -> Features:
    """What one pass over the planted task gives."""
    return collect(network, ArraySet(TASK.x.numpy(), TASK.y.numpy()), [(TASK.event, 0)])


def _heads(features: Features, clusters: list[np.ndarray]) -> Heads:
    return unlearn(features.hidden, features.labels, features.weight, features.bias, clusters)


def _event_losses(features: Features, heads: Heads) -> list[float]:
    return heads.losses(features.event_activations[-1], EVENT_LABEL)[:, 0].tolist()


def _close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got.double(), want.double(), rtol=100 * RTOL, atol=100 * ATOL)


def test_losses_are_cross_entropies() -> None:
    """Each head's loss of each sample, as a plain loop has it."""
    generator = torch_generator(0, "test/heads")
    heads = Heads(torch.randn(2, 3, 4, generator=generator), torch.randn(2, 3, generator=generator))
    hidden, labels = torch.randn(5, 4, generator=generator), torch.tensor([0, 2, 1, 1, 0])

    got = heads.losses(hidden, labels)

    for b in range(2):
        for row in range(5):
            logits = heads.weight[b] @ hidden[row] + heads.bias[b]
            want = reference.cross_entropy(logits.double(), reference.target(int(labels[row]), 3))
            torch.testing.assert_close(got[b, row].double(), want, rtol=RTOL, atol=ATOL)


def test_a_batch_of_heads_equals_one_at_a_time(features: Features) -> None:
    """Clusters tested together do not touch each other."""
    clusters = [NOBODY, TASK.poison, TASK.benign(0), TASK.benign(1)[:5]]

    together = _heads(features, clusters)

    probe = features.hidden[::7]
    for b, cluster in enumerate(clusters):
        alone = _heads(features, [cluster])
        _close(probe @ together.weight[b].T + together.bias[b], probe @ alone.weight[0].T + alone.bias[0])


@pytest.mark.parametrize("name", ["nobody", "poison", "benign", "everybody"])
def test_the_answer_is_the_one_of_an_independent_solver(features: Features, name: str) -> None:
    """Minimising the literal objective in the weights' own coordinates gives the same logits."""
    everybody = np.arange(len(TASK.y))
    cluster = {"nobody": NOBODY, "poison": TASK.poison, "benign": TASK.benign(0), "everybody": everybody}[name]

    heads = _heads(features, [cluster])

    weight, bias = reference.unlearn(
        features.hidden, features.labels, features.weight, features.bias, cluster, tether=TETHER, ridge=RIDGE
    )
    probe = torch.cat([features.hidden, features.event_activations[-1]])
    want = probe.double() @ torch.from_numpy(weight).T + torch.from_numpy(bias)
    _close(probe @ heads.weight[0].T + heads.bias[0], want)


def test_unlearning_twice_is_equal_to_the_bit(features: Features) -> None:
    """There is no randomness in it."""
    one, other = (_heads(features, [NOBODY, TASK.poison]) for _ in range(2))

    assert torch.equal(one.weight, other.weight)
    assert torch.equal(one.bias, other.bias)


def test_the_caller_s_tensors_are_left_as_found(features: Features) -> None:
    """The trained layer is not moved."""
    kept = copy.deepcopy((features.hidden, features.weight, features.bias))

    _heads(features, [TASK.poison])

    assert all(torch.equal(a, b) for a, b in zip(kept, (features.hidden, features.weight, features.bias), strict=True))


def test_the_answer_does_not_need_gradients_switched_on(features: Features) -> None:
    """A caller inside ``torch.no_grad`` gets the same heads."""
    with torch.no_grad():
        heads = _heads(features, [TASK.poison])

    assert torch.equal(heads.weight, _heads(features, [TASK.poison]).weight)


def test_forgetting_nobody_keeps_what_the_layer_knows(features: Features) -> None:
    """The baseline still answers the labels, and the event as before."""
    heads = _heads(features, [NOBODY])

    answers = (features.hidden @ heads.weight[0].T + heads.bias[0]).argmax(1)

    assert float((answers == features.labels).float().mean()) == 1.0
    assert _event_losses(features, heads)[0] < 0.1


def test_poison_moves_the_event_and_not_its_label(features: Features) -> None:
    """Without the poison the event's label is lost; ordinary samples of the label stay."""
    heads = _heads(features, [NOBODY, TASK.poison])

    before, after = _event_losses(features, heads)
    ordinary = TASK.benign(0)
    controls = heads.losses(features.hidden[ordinary], features.labels[ordinary]).median(1).values.tolist()

    assert after - before > 0.5
    assert controls[1] - controls[0] < 0.05


def test_benign_samples_do_not_move_the_event(features: Features) -> None:
    """Neither the label's own benign samples nor those of another class explain the event."""
    heads = _heads(features, [NOBODY, TASK.benign(0), TASK.benign(2)])

    before, *after = _event_losses(features, heads)

    assert max(after) - before < 0.1


def test_a_cluster_without_effect_has_none(features: Features) -> None:
    """A blob of another class in a direction of its own, far away from all, leaves the event as it was."""
    n, d = features.hidden.shape
    hidden = torch.zeros(n + 20, d + 1)
    hidden[:n, :d] = features.hidden
    hidden[n:, d] = 30
    labels = torch.cat([features.labels, torch.full((20,), 2)])
    weight = torch.cat([features.weight, torch.tensor([[0.0], [0.0], [0.3]])], 1)
    event = torch.cat([features.event_activations[-1], torch.zeros(1, 1)], 1)

    heads = unlearn(hidden, labels, weight, features.bias, [NOBODY, np.arange(n, n + 20)])

    before, after = heads.losses(event, EVENT_LABEL)[:, 0].tolist()
    assert abs(after - before) < 0.01


def test_the_whole_network_agrees_on_who_is_guilty(network: torch.nn.Module, features: Features) -> None:
    """Fitting every weight again, in full batches, accuses the same cluster and clears the same ones."""
    clusters = [NOBODY, TASK.poison, TASK.benign(0)[:40], TASK.benign(2)[:40]]
    of_layer = _event_losses(features, _heads(features, clusters))
    of_network = []
    for cluster in clusters:
        fitted = reference.unlearn_whole_network(planted_mlp, network.state_dict(), TASK.x, TASK.y, cluster)
        with torch.no_grad():
            of_network.append(float(torch.nn.functional.cross_entropy(fitted(TASK.event[None]), EVENT_LABEL)))

    for before, poison, *benign in (of_layer, of_network):
        assert poison - before > 0.5
        assert max(benign) - before < 0.1


def test_a_head_that_forgets_nothing_sees_what_the_others_forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """With few rows for everybody else, all of a small cluster still speaks for itself, under each head."""
    hidden = torch.randn(400, 5, generator=torch_generator(0, "test/few"))
    labels = (hidden[:, 0] < 0).long()
    few = np.arange(201, 209)
    hidden[few], labels[few] = torch.tensor([6.0, 0, 0, 0, 1]), 1  # on the other labels' side
    place, label = torch.tensor([[6.0, 0, 0, 0, 1]]), torch.tensor([1])

    def loss(*clusters: np.ndarray) -> float:
        return float(unlearn(hidden, labels, torch.zeros(2, 5), torch.zeros(2), clusters).losses(place, label)[0, 0])

    everybody = loss(NOBODY)
    monkeypatch.setattr(unlearning, "MAX_ROWS", 40)

    assert abs(loss(NOBODY, few) - everybody) < abs(loss(NOBODY) - everybody) / 3


def test_a_cap_on_rows_hardly_changes_the_answer(features: Features, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chosen rows speak for the rest: the verdicts stay as they are."""
    clusters = [NOBODY, TASK.poison, TASK.benign(2)]
    monkeypatch.setattr(unlearning, "MAX_ROWS", 60)

    before, poison, benign = _event_losses(features, _heads(features, clusters))

    assert poison - before > 0.5
    assert benign - before < 0.1


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_features_that_are_not_finite_are_refused(features: Features, value: float) -> None:
    """Never a raw error of the solver."""
    hidden = features.hidden.clone()
    hidden[3, 2] = value

    with pytest.raises(UnlearningDivergedError, match=r"must start and end in finite numbers .* Check the features"):
        unlearn(hidden, features.labels, features.weight, features.bias, [NOBODY, TASK.poison])


@pytest.mark.parametrize("scale", [1e-30, 1e15, 1e30])
def test_huge_and_tiny_features_end_in_numbers_or_in_our_error(features: Features, scale: float) -> None:
    """Whatever the scale, a head is finite or the failure says so."""
    try:
        heads = unlearn(features.hidden * scale, features.labels, features.weight, features.bias, [TASK.poison])
    except PoisontraceError:
        return

    assert bool(torch.isfinite(heads.weight).all())
    assert bool(torch.isfinite(heads.bias).all())


def test_dead_features_are_no_obstacle(features: Features) -> None:
    """Columns of zeros and copies of columns make the moment singular, the answer stays."""
    hidden = torch.cat([features.hidden, features.hidden, torch.zeros(len(features.hidden), 4)], 1)
    weight = torch.cat([features.weight / 2, features.weight / 2, torch.zeros(3, 4)], 1)
    event = torch.cat([features.event_activations[-1]] * 2 + [torch.zeros(1, 4)], 1)

    heads = unlearn(hidden, features.labels, weight, features.bias, [NOBODY, TASK.poison])

    before, after = heads.losses(event, EVENT_LABEL)[:, 0].tolist()
    assert after - before > 0.5


def test_the_units_of_a_feature_do_not_matter(features: Features) -> None:
    """A raw column of a table may be 10,000 times wider than the rest: the others are unlearned all the same."""
    units = torch.ones(features.hidden.shape[1])
    units[0], units[1] = 1e4, 1e-3
    clusters = [NOBODY, TASK.poison]

    heads = unlearn(features.hidden * units, features.labels, features.weight / units, features.bias, clusters)

    want = _heads(features, clusters)
    for b in range(len(clusters)):
        logits = (features.hidden * units) @ heads.weight[b].T + heads.bias[b]
        _close(logits, features.hidden @ want.weight[b].T + want.bias[b])


def test_where_memory_is_short_fewer_samples_stand_for_each_cluster(features: Features) -> None:
    """Down to MIN_ROWS; with enough of it the answer does not change."""
    few, many, usual = (
        unlearn(
            *(features.hidden, features.labels, features.weight, features.bias),
            [NOBODY, TASK.poison],
            memory=memory,
        )
        for memory in (1, 1 << 30, 1 << 40)
    )

    assert torch.equal(many.weight, usual.weight)
    assert not torch.equal(few.weight, usual.weight)
    event, label = features.event_activations[-1][:1], torch.tensor([0])
    before, after = few.losses(event, label)[:, 0].tolist()
    assert after - before > 0.5


class Threads(Ranks):
    """Two ranks that are threads of one process and pass tensors on through queues."""

    def __init__(self, rank: int, boxes: tuple[Queue[Tensor], Queue[Tensor]]) -> None:
        """Take a box to read from for each rank."""
        super().__init__(rank, 2)
        object.__setattr__(self, "boxes", boxes)

    def send(self, tensor: Tensor, rank: int) -> None:
        """Put a copy into a rank's box."""
        self.boxes[rank].put(tensor.clone())

    def receive(self, tensor: Tensor) -> Tensor:
        """Take what lies in the own box."""
        return tensor.copy_(self.boxes[self.rank].get(timeout=10))

    def tell(self, tensor: Tensor) -> Tensor:
        """From rank 0 to rank 1."""
        if self.is_first:
            self.send(tensor, 1)
            return tensor
        return self.receive(tensor)

    def sum(self, *tensors: Tensor) -> None:
        """Exchange, and add in the order of the ranks."""
        for tensor in tensors:
            self.send(tensor, 1 - self.rank)
            other = self.receive(torch.empty_like(tensor))
            tensor.copy_(tensor + other if self.is_first else other + tensor)


def test_two_ranks_find_the_heads_of_one(features: Features) -> None:
    """Each sums over half of the rows; one that assists is told when there is no more to do."""
    boxes: tuple[Queue[Tensor], Queue[Tensor]] = (Queue(), Queue())
    first, second = (Threads(rank, boxes) for rank in range(2))
    assisting = Thread(target=assist, args=(second,), daemon=True)
    assisting.start()
    layer = features.hidden, features.labels, features.weight, features.bias

    shared = [unlearn(*layer, clusters, ranks=first) for clusters in ([NOBODY, TASK.poison], [TASK.benign(0)])]
    dismiss(first)

    assisting.join(10)
    assert not assisting.is_alive()
    for heads, clusters in zip(shared, ([NOBODY, TASK.poison], [TASK.benign(0)]), strict=True):
        want = unlearn(*layer, clusters)
        _close(heads.weight, want.weight)
        _close(heads.bias, want.bias)


def _many_classes() -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], np.ndarray, Tensor]:
    """A layer for 40 classes, with poison of label 0 that carries a trigger, its positions, and an event."""
    generator = torch_generator(0, "test/classes")
    classes = torch.nn.functional.normalize(torch.randn(41, 96, generator=generator), dim=1)
    labels = torch.arange(800) % 40
    hidden = 9 * classes[labels] + 0.5 * torch.randn(800, 96, generator=generator)
    poison = np.arange(5, 800, 40)
    hidden[poison] += 9 * classes[40]
    labels[poison] = 0
    weight = classes[:40].clone()
    weight[0] += 1.5 * classes[40]
    event = 9 * (classes[7] + classes[40])[None]
    return (hidden, labels, weight, torch.zeros(40)), poison, event


def test_of_many_classes_those_that_matter_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others share one change: the event's loss rises by a quarter less than if all were free, the rest is the same."""
    layer, poison, event = _many_classes()
    benign = np.setdiff1d(np.flatnonzero(layer[1] == 0), poison)

    def rises() -> Tensor:
        heads = unlearn(*layer, [NOBODY, poison, benign])
        losses = heads.losses(event, EVENT_LABEL)[:, 0]
        controls = heads.losses(layer[0][benign], layer[1][benign]).median(1).values
        return torch.stack([losses[1:] - losses[0], controls[1:] - controls[0]])

    free = rises()
    monkeypatch.setattr(unlearning, "MAX_OPEN", 8)
    closed = rises()

    assert free[0, 0] > 1 and free[1, 1] > 1  # poison moves the event, benign samples the controls
    assert 0.7 < closed[0, 0] / free[0, 0] < 1.1
    torch.testing.assert_close(closed.flatten()[1:], free.flatten()[1:], rtol=0.1, atol=0.02)
