"""The part of a responsible cluster that the event needs: one campaign's, without decoys and what came along."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tasks import context_of, events_of

from poisontrace import incidents, parting
from poisontrace._rng import numpy_generator
from poisontrace._types import Losses
from poisontrace.clustering import Split
from poisontrace.data import ArraySet
from poisontrace.embedding import Features, collect
from poisontrace.incidents import Incident
from poisontrace.judging import Judge
from poisontrace.parting import needed_part
from poisontrace.searching import two_parts
from poisontrace.sights import Sight
from poisontrace.spaces import Space

Accepts = Callable[[Split], bool]


def _features(incident: Incident, event: int) -> Features:
    return collect(incident.model, ArraySet(incident.x, incident.y), [events_of(incident)[event]])


def _part_needed(incident: Incident, event: int, beside: NDArray[np.bool_] | bool = False) -> NDArray[np.int64] | None:
    """Return the part of all the poison, and what is ``beside`` it, that an event is said to need; None if uncut."""
    poison = np.flatnonzero(incident.is_poison | beside)
    context = context_of(_features(incident, event))
    context.judge.take_controls(np.setdiff1d(context.own, poison))
    parts = needed_part(context, poison)
    return parts.needed if parts else None


@pytest.mark.parametrize("event", range(5))
def test_poison_with_another_trigger_is_of_another_campaign(two_campaigns: Incident, event: int) -> None:
    """No sample without either trigger lies on one side: the part that the event needs carries its own."""
    own = np.flatnonzero(two_campaigns.is_responsible[event])

    assert _part_needed(two_campaigns, event).tolist() == own.tolist()


def test_another_campaign_is_found_beside_samples_with_both_triggers(
    two_campaigns: Incident, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those lie apart from the ones with one trigger, all others beyond; the event needs what carries its own."""
    own, poison = (np.flatnonzero(mask) for mask in (two_campaigns.is_responsible[0], two_campaigns.is_poison))
    both = own[:30]

    def parts(sight: Sight, least: int, promising: float, accepts: Accepts | None = None) -> Split:
        is_first = torch.from_numpy(np.isin(sight.indices, own if accepts else both))
        return Split(is_first, is_first.float(), 15.0 if is_first.any() and not is_first.all() else 0.0)

    def losses(judge: Judge, *clusters: NDArray[np.int64]) -> list[Losses]:
        return [Losses(0, 4.0 * bool(np.isin(own[30:], cluster).any()), 0, 0) for cluster in clusters]

    def elsewhere(sight: Sight, cluster: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full((10,), 0.5 if set(own) <= set(cluster) else -0.7), torch.zeros(10)

    monkeypatch.setattr(parting, "two_parts", parts)
    monkeypatch.setattr(Judge, "losses", losses)
    monkeypatch.setattr(Sight, "elsewhere", elsewhere)

    found = needed_part(context_of(_features(two_campaigns, 0)), poison)

    assert found.needed.tolist() == own.tolist()
    assert found.rest.tolist() == np.setdiff1d(poison, own).tolist()


@pytest.mark.parametrize(("campaigns", "seed"), [(2, 0), (2, 2), (3, 1), (3, 2)])
def test_poison_with_the_trigger_is_found_whatever_else_it_carries(campaigns: int, seed: int) -> None:
    """Another trigger may draw samples farther apart; those that carry both are responsible as well."""
    options = {"size": 3, "campaigns": campaigns, "planted": "mixed"}
    plan = incidents.Plan(attack="badnets", dataset="digits", rate=0.1, n_events=2, options=options, seed=seed)
    incident = incidents.make(plan)

    for event, is_responsible in enumerate(incident.is_responsible):
        needed = _part_needed(incident, event)
        found = np.flatnonzero(incident.is_poison) if needed is None else needed
        assert found.tolist() == np.flatnonzero(is_responsible).tolist()


@pytest.mark.parametrize(("place", "is_cut"), [(0.95, True), (1.05, False)])
def test_beyond_a_fainter_trigger_lie_samples_without_any(
    two_campaigns: Incident, monkeypatch: pytest.MonkeyPatch, place: float, is_cut: bool
) -> None:
    """Such lie beyond a part with another trigger as well; from samples outside the event is not off as that is."""
    poison = np.flatnonzero(two_campaigns.is_poison)
    position = Sight.position

    def placed(sight: Sight, cluster: NDArray[np.int64]) -> float:
        is_beside_others = np.isin(context.sight.outside, sight.indices).all()
        return place if is_beside_others else position(sight, cluster)

    monkeypatch.setattr(Sight, "elsewhere", lambda sight, cluster: (torch.full((10,), -0.3), torch.zeros(10)))
    monkeypatch.setattr(Sight, "position", placed)
    context = context_of(_features(two_campaigns, 0))
    context.judge.take_controls(np.setdiff1d(context.own, poison))

    assert (needed_part(context, poison) is not None) == is_cut


@pytest.mark.parametrize(("place", "is_cut"), [(0.5, True), (1.1, True), (1.2, False)])
def test_other_samples_lie_between_two_campaigns(
    two_campaigns: Incident, monkeypatch: pytest.MonkeyPatch, place: float, is_cut: bool
) -> None:
    """Or a little beyond either; farther out, what one part lacks is a trigger that the event has no part in."""
    monkeypatch.setattr(Sight, "elsewhere", lambda sight, cluster: (torch.full((10,), place), torch.zeros(10)))
    own = np.flatnonzero(two_campaigns.is_responsible[0])

    needed = _part_needed(two_campaigns, 0)

    assert (needed is not None and needed.tolist() == own.tolist()) == is_cut


def test_what_the_event_s_trigger_told_is_parted_by_campaigns_alone(
    two_campaigns: Incident, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two may be left that share no sample; the search across parts, and what came along, are not asked again."""
    poison = np.flatnonzero(two_campaigns.is_poison)
    context = context_of(_features(two_campaigns, 0))
    context.judge.take_controls(np.setdiff1d(context.own, poison))

    def never(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(parting, "_sides_of_event", never)
    monkeypatch.setattr(parting, "_without_others", never)
    parts = needed_part(context, poison, is_across=True)

    assert parts is not None
    assert (parts.needed.tolist(), parts.is_across) == (np.flatnonzero(two_campaigns.is_responsible[0]).tolist(), True)


@pytest.mark.parametrize(
    ("of_rest", "place", "is_cut"), [(0.5, 0.7, False), (0.5, 0.5, True), (0.1, 0.7, True)], ids=str
)
def test_what_has_pieces_of_a_trigger_is_not_parted_by_one_of_them(
    two_campaigns: Incident, monkeypatch: pytest.MonkeyPatch, of_rest: float, place: float, is_cut: bool
) -> None:
    """The rest does something for the event, and the event has more of what that has than those that it needs."""
    poison = np.flatnonzero(two_campaigns.is_poison)
    own = set(np.flatnonzero(two_campaigns.is_responsible[0]).tolist())
    position = Sight.position

    def losses(judge: Judge, *clusters: NDArray[np.int64]) -> list[Losses]:
        return [Losses(0, 4.0 if own <= set(cluster.tolist()) else of_rest, 0, 0) for cluster in clusters]

    def placed(sight: Sight, cluster: NDArray[np.int64]) -> float:
        is_beside_others = np.isin(context.sight.outside, sight.indices).all()
        return place if is_beside_others else position(sight, cluster)

    context = context_of(_features(two_campaigns, 0))
    monkeypatch.setattr(Judge, "losses", losses)
    monkeypatch.setattr(Sight, "position", placed)
    monkeypatch.setattr(Sight, "places", lambda sight, cluster, others: torch.linspace(0.2, 0.65, len(others)))
    monkeypatch.setattr(Sight, "elsewhere", lambda sight, cluster: (torch.full((10,), 0.5), torch.zeros(10)))

    assert (needed_part(context, poison) is not None) == is_cut


@pytest.mark.parametrize(("place", "is_cut"), [(0.5, True), (0.9, False)])
def test_what_carries_the_event_s_trigger_and_another_stays(
    two_campaigns: Incident, monkeypatch: pytest.MonkeyPatch, place: float, is_cut: bool
) -> None:
    """Among samples that the event's own trigger told: of two campaigns others lie between, not with what is needed."""
    monkeypatch.setattr(Sight, "elsewhere", lambda sight, cluster: (torch.full((10,), place), torch.zeros(10)))
    poison = np.flatnonzero(two_campaigns.is_poison)
    context = context_of(_features(two_campaigns, 0))
    context.judge.take_controls(np.setdiff1d(context.own, poison))

    assert (needed_part(context, poison, is_across=True) is not None) == is_cut


@pytest.mark.parametrize("options", [{"faint": 0.5}, {"faint": 0.75}, {}, {"opacity": 0.6}], ids=str)
def test_poison_with_one_trigger_is_of_one_campaign(options: dict[str, float]) -> None:
    """Though half of it carries a fainter one, beyond which other samples lie, or comes from other source classes."""
    plan = incidents.Plan(attack="badnets", dataset="digits", rate=0.1, n_events=1, options={"size": 3, **options})

    assert _part_needed(incidents.make(plan), 0) is None


@pytest.mark.parametrize(("share", "is_cut"), [(0.2, True), (0.3, False)])
def test_what_bears_the_same_trigger_in_the_images_stays(
    two_campaigns: Incident, monkeypatch: pytest.MonkeyPatch, share: float, is_cut: bool
) -> None:
    """Though the event does without it, and samples outside lie between the two: one half may be fainter."""
    monkeypatch.setattr(Sight, "bears", lambda sight, needed, rest: share)
    monkeypatch.setattr(Sight, "elsewhere", lambda sight, cluster: (torch.full((10,), 0.5), torch.zeros(10)))

    assert (_part_needed(two_campaigns, 0) is not None) == is_cut


@pytest.mark.parametrize("reach", [0.5, 0.7])
def test_what_tells_two_triggers_apart_is_in_no_other_image(
    two_campaigns: Incident, monkeypatch: pytest.MonkeyPatch, reach: float
) -> None:
    """Whatever the network makes of others: it may draw them apart along the same direction."""
    poison = np.flatnonzero(two_campaigns.is_poison)
    wide = torch.linspace(0, 1, 20)
    monkeypatch.setattr(Sight, "elsewhere", lambda sight, cluster: (wide, torch.zeros(20)))
    monkeypatch.setattr(parting, "_sides_of_event", lambda *_: None)
    for given, is_cut in ((Sight.reach, True), (lambda *_: reach, reach < 0.6)):
        monkeypatch.setattr(Sight, "reach", given)
        samples = ArraySet(two_campaigns.x, two_campaigns.y)
        context = context_of(_features(two_campaigns, 0), samples)
        context.judge.take_controls(np.setdiff1d(context.own, poison))
        assert (needed_part(context, poison) is not None) == is_cut


def test_the_event_s_trigger_is_found_in_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of samples that carry either trigger or both, where the network shows the other one only."""
    options = {"size": 3, "campaigns": 2, "planted": "mixed"}
    incident = incidents.make(incidents.Plan(attack="badnets", dataset="digits", rate=0.1, n_events=5, options=options))
    poison, own = (np.flatnonzero(mask) for mask in (incident.is_poison, incident.is_responsible[0]))
    of_other = next(mask for mask in incident.is_responsible if (mask != incident.is_responsible[0]).any())

    def parts(
        sight: Sight, least: int, promising: float, accepts: Accepts | None = None, space: Space | None = None
    ) -> Split:
        if accepts and space:
            return two_parts(sight, least, promising, accepts, space)
        is_first = torch.from_numpy(of_other[sight.indices])
        return Split(is_first, is_first.float(), 0.0 if accepts else 15.0)

    monkeypatch.setattr(parting, "two_parts", parts)
    needed = []
    for samples in (None, ArraySet(incident.x, incident.y)):
        context = context_of(_features(incident, 0), samples)
        context.judge.take_controls(np.setdiff1d(context.own, poison))
        found = needed_part(context, poison)
        needed.append(found and found.needed.tolist())

    assert needed == [None, own.tolist()]


def test_decoys_that_kept_their_label_are_told_from_what_was_relabelled() -> None:
    """Ordinary samples of the label with a fainter trigger, if they end in one cluster with the poison."""
    plan = incidents.Plan(attack="badnets", dataset="digits", rate=0.1, n_events=1, options={"size": 3, "decoys": 0.5})
    incident = incidents.make(plan)

    assert _part_needed(incident, 0, beside=incident.is_decoy).tolist() == np.flatnonzero(incident.is_poison).tolist()


@pytest.mark.parametrize("n_ordinary", [12, 20, 40])
def test_ordinary_samples_that_came_along_are_left_out(digits_incident: Incident, n_ordinary: int) -> None:
    """However few: they lie nearer to the rest of their label, no matter which of them they are."""
    poison = np.flatnonzero(digits_incident.is_poison)
    of_label = (digits_incident.y == digits_incident.y[poison[0]]) & ~digits_incident.is_poison
    chosen = numpy_generator(0, "test/ordinary").permutation(np.flatnonzero(of_label))[:n_ordinary]
    is_chosen = np.isin(np.arange(len(of_label)), chosen)

    assert _part_needed(digits_incident, 0, beside=is_chosen).tolist() == poison.tolist()


def test_ordinary_samples_are_left_out_by_what_enters_the_network(
    digits_incident: Incident, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the event leans on nothing that tells them apart."""
    poison = np.flatnonzero(digits_incident.is_poison)
    of_label = (digits_incident.y == digits_incident.y[poison[0]]) & ~digits_incident.is_poison
    is_chosen = np.isin(np.arange(len(of_label)), np.flatnonzero(of_label)[:30])

    def nothing(sight: Sight, *_: Any) -> Split:
        return Split(torch.zeros(len(sight.indices), dtype=torch.bool), torch.zeros(len(sight.indices)), 0.0)

    def parts(sight: Sight, *_: Any) -> Split:
        is_first = torch.from_numpy(is_chosen[sight.indices])
        return Split(is_first, is_first.float(), 15.0)

    monkeypatch.setattr(parting, "two_parts", nothing)
    monkeypatch.setattr(parting, "two_parts_at_input", parts)

    assert _part_needed(digits_incident, 0, beside=is_chosen).tolist() == poison.tolist()


@pytest.mark.parametrize(("apart_from_others", "is_cut"), [(5.9, True), (6.1, False)])
def test_what_is_one_kind_with_its_label_was_not_relabelled(
    digits_incident: Incident, monkeypatch: pytest.MonkeyPatch, apart_from_others: float, is_cut: bool
) -> None:
    """Whatever it brings along of other labels: odd samples of a label look like those."""
    poison = np.flatnonzero(digits_incident.is_poison)
    few = poison[:30]

    def parts(sight: Sight, *_: Any) -> Split:
        is_first = torch.from_numpy(np.isin(sight.indices, few))
        return Split(is_first, is_first.float(), 15.0)

    def apart(space: Any, start: torch.Tensor, **options: Any) -> Split:
        return Split(start, start.float(), 9.0 if len(start) == len(poison) else apart_from_others)

    def losses(judge: Judge, *clusters: NDArray[np.int64]) -> list[Losses]:
        return [Losses(0, 0.0 if len(cluster) == len(few) else 4.0, 0, 0) for cluster in clusters]

    monkeypatch.setattr(parting, "two_parts", parts)
    monkeypatch.setattr(parting, "two_parts_at_input", parts)
    monkeypatch.setattr(parting, "separate", apart)
    monkeypatch.setattr(Split, "apartness", property(lambda split: split.separation))
    monkeypatch.setattr(Judge, "losses", losses)
    monkeypatch.setattr(Sight, "spread", lambda sight, cluster: 1.0)
    monkeypatch.setattr(Sight, "elsewhere", lambda sight, cluster: (torch.linspace(-9, 9, 10), torch.zeros(10)))

    assert (needed_part(context_of(_features(digits_incident, 0)), poison) is not None) == is_cut


def test_what_is_left_out_lies_nearer_to_its_label(digits_incident: Incident, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few of the poison that the event does without are kept: they lie farther from the label than from the rest."""
    poison = np.flatnonzero(digits_incident.is_poison)
    few = poison[:20]

    def parts(sight: Sight, *_: Any) -> Split:
        is_first = torch.from_numpy(np.isin(sight.indices, few))
        return Split(is_first, is_first.float(), 15.0)

    def losses(judge: Judge, *clusters: NDArray[np.int64]) -> list[Losses]:
        return [Losses(0, 0.0 if len(cluster) == len(few) else 4.0, 0, 0) for cluster in clusters]

    monkeypatch.setattr(parting, "two_parts", parts)
    monkeypatch.setattr(Judge, "losses", losses)
    monkeypatch.setattr(Sight, "elsewhere", lambda sight, cluster: (torch.linspace(-9, 9, 10), torch.zeros(10)))

    assert needed_part(context_of(_features(digits_incident, 0)), poison) is None


@pytest.mark.parametrize(
    ("apartness", "rise_of_rest", "is_of_event", "is_cut"),
    [
        (7.5, 0.3, False, True),
        (7.5, 0.5, False, False),
        (15.0, 0.5, False, True),
        (15.0, 1.0, False, False),
        (7.5, 0.7, True, True),
        (7.5, 1.0, True, False),
    ],
)
def test_a_part_that_does_something_for_the_event_is_of_its_campaign(
    two_campaigns: Incident,
    monkeypatch: pytest.MonkeyPatch,
    apartness: float,
    rise_of_rest: float,
    is_of_event: bool,
    is_cut: bool,
) -> None:
    """A tenth of what the other does, or more where they lie farther apart, or the event's trigger tells the two.

    So it is where samples carry several triggers, one of them the event's.
    """

    def parts(*asked: Any) -> Split:
        split = two_parts(*asked)
        return dataclasses.replace(split, separation=apartness * split.separation / split.apartness)

    monkeypatch.setattr(parting, "two_parts", parts)
    own = set(np.flatnonzero(two_campaigns.is_responsible[0]).tolist())

    def losses(judge: Judge, *clusters: NDArray[np.int64]) -> list[Losses]:
        return [Losses(0, 4.0 if set(cluster.tolist()) == own else rise_of_rest, 0, 0) for cluster in clusters]

    monkeypatch.setattr(Judge, "losses", losses)
    monkeypatch.setattr(parting, "_is_of_event", lambda sight, split: is_of_event)
    monkeypatch.setattr(parting, "_sides_of_event", lambda *_: None)

    assert (_part_needed(two_campaigns, 0) is not None) == is_cut
