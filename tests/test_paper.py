"""The published procedure, kept for comparison: deterministic by its seed, moved most by poison."""

import numpy as np
import pytest
import torch
from tasks import fitted_network, planted, planted_mlp
from torch import Tensor

from poisontrace import tracing
from poisontrace._rng import torch_generator
from poisontrace.data import ArraySet
from poisontrace.embedding import Features, collect
from poisontrace.incidents import Incident
from poisontrace.paper import unlearn_as_released
from poisontrace.tracing import Config, trace
from poisontrace.unlearning import Heads

TASK = planted()
EVENT_LABEL = torch.tensor([0])


@pytest.fixture(scope="module")
def features() -> Features:
    """What one pass over the planted task gives."""
    network = fitted_network(TASK, planted_mlp)
    return collect(network, ArraySet(TASK.x.numpy(), TASK.y.numpy()), [(TASK.event, 0)])


def _event_losses(features: Features, heads: Heads) -> list[float]:
    return heads.losses(features.event_activations[-1], EVENT_LABEL)[:, 0].tolist()


def test_the_released_procedure_depends_on_its_seed_alone(features: Features) -> None:
    """Same generator, same heads; another one, other heads."""

    def run(seed: int) -> Tensor:
        return unlearn_as_released(features, [TASK.poison], torch_generator(seed, "test/released")).weight

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


def test_the_released_procedure_moves_the_event_most_by_poison(features: Features) -> None:
    """Poison raises the event's loss, and by more than benign clusters do."""
    generator = torch_generator(0, "test/released")
    clusters = [TASK.poison, TASK.benign(0), TASK.benign(2)]

    poison, *benign = _event_losses(features, unlearn_as_released(features, clusters, generator))

    before = _event_losses(features, Heads(features.weight[None], features.bias[None]))[0]
    assert poison > before
    assert poison > max(benign)


def test_the_paper_s_rule_gives_a_trace(digits_incident: Incident) -> None:
    """Finite losses of the event, a tree, scores of zero and one, and the same again for the same seed."""
    data, events = (
        (digits_incident.x, digits_incident.y),
        [ArraySet(digits_incident.event_x, digits_incident.event_y)[0]],
    )

    one, other = (trace(digits_incident.model, data, events, rule="paper", seed=3) for _ in range(2))

    assert one.rule == "paper"
    assert one.clusters[0].losses is None
    assert all(np.isfinite([c.losses.event_before, c.losses.event_after]).all() for c in one.clusters if c.losses)
    assert set(np.unique(one.scores)) <= {0.0, 1.0}
    assert np.flatnonzero(one.scores).tolist() == one.poison.tolist()
    assert one.scores.tolist() == other.scores.tolist()
    assert [c.indices.tolist() for c in one.clusters] == [c.indices.tolist() for c in other.clusters]


def test_events_of_the_paper_s_rule_have_nothing_to_do_with_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a campaign of its own, and one that leads nowhere is not counted among those of another."""
    task = planted()
    monkeypatch.setattr(tracing, "_adopted", lambda *asked: pytest.fail("the default rule's"))
    ordinary = task.x[task.benign(0)[0]]

    result = trace(
        fitted_network(task, planted_mlp),
        (task.x.numpy(), task.y.numpy()),
        [(task.event, 0), (task.event, 0), (ordinary, 0)],
        rule="paper",
        config=Config(paper_rise=1e-5),
    )

    assert [finding.verdict for finding in result.findings][:2] == ["poison", "poison"]
    assert [campaign.events for campaign in result.campaigns][:2] == [(0,), (1,)]


def test_the_paper_s_rule_finds_planted_poison() -> None:
    """Where its threshold is passed it recurses and keeps at least the poison; leaves are decided."""
    task = planted()

    result = trace(
        fitted_network(task, planted_mlp),
        (task.x.numpy(), task.y.numpy()),
        [(task.event, 0)],
        rule="paper",
        config=Config(paper_rise=1e-5),
    )

    assert result.verdict == "poison"
    assert set(result.poison) >= set(task.poison)
    kept = [cluster.indices for cluster in result.clusters if cluster.decision == "responsible"]
    assert np.sort(np.concatenate(kept)).tolist() == result.poison.tolist()
