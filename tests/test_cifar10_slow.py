"""A real victim on real photographs, end to end: minutes of work, so only ``make test-slow`` runs it."""

import numpy as np
import pytest

from poisontrace import incidents, metrics, tracing
from poisontrace.data import ArraySet
from poisontrace.datasets import data_folders


@pytest.mark.slow
def test_badnets_on_cifar10_is_traced_from_each_single_event() -> None:
    """Two hundred poisoned photographs among five thousand are found from any one misclassified photograph."""
    if not any((folder / "cifar10.npz").is_file() for folder in data_folders()):
        pytest.skip("cifar10.npz is not on disk; POISONTRACE_DATA names its folder")
    plan = incidents.Plan(attack="badnets", dataset="cifar10", rate=0.04, seed=11, n_train=5000, n_events=3)
    incident = incidents.make(plan)
    poison = np.flatnonzero(incident.is_poison)
    events = ArraySet(incident.event_x, incident.event_y)

    assert incident.facts["succeeded"]
    for event in range(len(events)):
        trace = tracing.trace(incident.model, ArraySet(incident.x, incident.y), [events[event]])
        assert trace.verdict == "poison"
        assert metrics.precision(trace.poison, poison) >= 0.95
        assert metrics.recall(trace.poison, poison) >= 0.95
