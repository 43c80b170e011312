"""What a reader is shown: the certain, the doubtful and the nearest, and ordinary samples of the same labels."""

import dataclasses

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tasks import events_of

from poisontrace import exhibiting
from poisontrace._types import Finding
from poisontrace.data import ArraySet
from poisontrace.embedding import Features, collect
from poisontrace.exhibiting import exhibits_of, warnings_of
from poisontrace.incidents import Incident


@pytest.fixture(scope="module")
def features(digits_incident: Incident) -> Features:
    """What is known of the incident on digits and its first two events."""
    data = ArraySet(digits_incident.x, digits_incident.y)
    return collect(digits_incident.model, data, events_of(digits_incident)[:2])


def _shown(
    incident: Incident,
    features: Features,
    poison: NDArray[np.int64],
    seed: int = 0,
    suspects: NDArray[np.int64] | None = None,
) -> dict[str, NDArray]:
    """Return the exhibits of a trace whose scores rise with the index; nearest is the middle one."""
    scores = np.linspace(0, 1, len(incident.y)).astype(np.float32)
    nearest = np.full((2, 6), -1)
    nearest[0, : len(poison[:1])] = poison[len(poison) // 2 : len(poison) // 2 + 1]
    samples = ArraySet(incident.x, incident.y)
    suspects = poison[:0] if suspects is None else suspects
    return exhibits_of(samples, events_of(incident)[:2], features, poison, suspects, scores, nearest, seed)


def test_the_certain_the_doubtful_and_the_nearest_are_shown(
    digits_incident: Incident, features: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three in four of those that there is room for are the most certain ones, the rest the least certain."""
    monkeypatch.setattr(exhibiting, "N_SHOWN", 0)
    monkeypatch.setattr(exhibiting, "N_BENIGN", 8)
    poison = np.flatnonzero(digits_incident.is_poison)

    shown = _shown(digits_incident, features, poison)

    expected = [*poison[:2], poison[len(poison) // 2], *poison[-6:]]
    assert shown["poison_index"].tolist() == expected
    assert np.array_equal(shown["poison"], ArraySet(digits_incident.x, digits_incident.y).inputs(expected).numpy())


def test_ordinary_samples_are_of_the_same_label_and_drawn_by_the_seed(
    digits_incident: Incident, features: Features
) -> None:
    """None of them is responsible; another seed shows others."""
    poison = np.flatnonzero(digits_incident.is_poison)

    first, again, other = (_shown(digits_incident, features, poison, seed)["benign_index"] for seed in (0, 0, 1))

    assert first.tolist() == again.tolist() != other.tolist()
    assert len(first) == exhibiting.N_BENIGN
    assert not digits_incident.is_poison[first].any()
    assert set(digits_incident.y[first]) == {digits_incident.event_y[0]}


def test_suspects_are_shown_and_none_of_them_as_ordinary(
    digits_incident: Incident, features: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as there is room for, evenly spread."""
    monkeypatch.setattr(exhibiting, "N_SHOWN", 0)
    suspects = np.flatnonzero(digits_incident.y == digits_incident.event_y[0])[5:]

    shown = _shown(digits_incident, features, suspects[:0], suspects=suspects)

    assert len(shown["suspects_index"]) == exhibiting.N_BENIGN
    assert set(shown["suspects_index"]) < set(suspects)
    assert {shown["suspects_index"][0], shown["suspects_index"][-1]} == {suspects[0], suspects[-1]}
    samples = ArraySet(digits_incident.x, digits_incident.y)
    assert np.array_equal(shown["suspects"], samples.inputs(shown["suspects_index"]).numpy())
    assert not set(shown["benign_index"]) & set(suspects)


def test_of_no_poison_ordinary_samples_of_the_events_label_are_shown(
    digits_incident: Incident, features: Features
) -> None:
    """There is still something to look at."""
    shown = _shown(digits_incident, features, np.array([], np.int64))

    assert "poison" not in shown and len(shown["poison_index"]) == 0
    assert set(digits_incident.y[shown["benign_index"]]) == {digits_incident.event_y[0]}
    assert shown["events"].shape == (2, 1, 8, 8)


def test_a_reader_is_warned_of_what_weakens_the_result(features: Features) -> None:
    """A store that was not right, a loose fit, and a label that no sample carries; of nothing else."""
    known, unknown = (Finding(label, 1.0, "no-poison", np.array([], np.int64), {}) for label in (0, 99))
    loose = dataclasses.replace(features, caution="The store was cut short.", labels=torch.zeros_like(features.labels))

    assert list(warnings_of(features, [known])) == []
    store, fit, label = warnings_of(loose, [known, unknown])
    assert store == "The store was cut short."
    assert "The model answers the given label on only " in fit
    assert label == "No training sample carries label 99, which the model gave event 2."


def test_a_reader_is_told_of_poison_that_every_label_may_hold(features: Features) -> None:
    """Once, of all events for which it was found: not of what is rarer elsewhere, was not taken, or is none."""
    own = torch.nonzero(features.labels == 0)[:, 0].numpy()
    some, nothing = own[: len(own) // 10], own[:0]
    common, rare = {"taken": 1.0, "usual": 0.2}, {"taken": 1.0, "usual": 0.05}
    cases = ((some, common), (some, rare), (some, {"usual": 0.2}), (nothing, common), (some, common))
    found = [Finding(0, 1.0, "poison" if len(poison) else "inconclusive", poison, told) for poison, told in cases]

    (warning,) = warnings_of(features, found)

    assert "What was found for event 1, 5 was taken from one other label" in warning
