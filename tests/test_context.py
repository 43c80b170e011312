"""What one event is traced with."""

import numpy as np
import pytest
from tasks import context_of, events_of

from poisontrace.data import ArraySet
from poisontrace.embedding import collect
from poisontrace.incidents import Incident
from poisontrace.kinds import Kinds
from poisontrace.sights import Sight


def test_rows_of_many_labels_are_no_family(monkeypatch: pytest.MonkeyPatch, digits_incident: Incident) -> None:
    """However far they lie from others but for the mark; others of which that is true are one."""
    samples = ArraySet(digits_incident.x, digits_incident.y)
    context = context_of(collect(digits_incident.model, samples, [events_of(digits_incident)[0]]))
    chosen = np.flatnonzero(digits_incident.is_poison)
    context.kinds.are_rows = True
    monkeypatch.setattr(Kinds, "beyond_mark", lambda kinds, event, cluster, but: 2.0)

    for diversity, beyond in ((1.0, 0.0), (0.9, 2.0)):
        monkeypatch.setattr(Sight, "diversity", lambda sight, cluster, diversity=diversity: diversity)
        assert context.beyond_mark(chosen) == beyond
