"""What is asked again once the tree is done: of what lies far apart, of what was accused, and of several marks."""

import dataclasses

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tasks import Planted, context_of, events_of, fitted_network, planted_marks
from torch import nn

from poisontrace import hearing
from poisontrace._record import Tree
from poisontrace._types import Losses
from poisontrace.clustering import Split
from poisontrace.context import Context
from poisontrace.data import ArraySet
from poisontrace.embedding import collect
from poisontrace.hearing import Course, challenge, follow_marks, hear_noise, hear_whispers
from poisontrace.incidents import Incident
from poisontrace.judging import Judge, Suspect
from poisontrace.kinds import Kinds
from poisontrace.sights import Sight


@pytest.fixture(scope="module")
def two_marks() -> tuple[Planted, Context]:
    """Rows with one of two marks each, and the context of an event that carries both."""
    task = planted_marks(2)
    network = fitted_network(task, lambda: nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2)))
    return task, context_of(collect(network, ArraySet(task.x.numpy(), task.y.numpy()), [(task.event, 0)]))


def _begun(context: Context, first: NDArray[np.int64], *, accuses: bool) -> tuple[Context, Course]:
    """Return the context with a tree of two leaves, of which the first is accused or let go and the rest let go."""
    context = dataclasses.replace(context, tree=Tree(0, 0))
    rest = np.setdiff1d(context.own, first)
    is_first = torch.from_numpy(np.isin(context.own, first))
    of_first, of_rest = context.judge.losses(first, rest)
    root = context.tree.add(None, context.own, None, "split", "by a twin")
    suspect = Suspect(root, first, of_first, of_rest, len(rest), Split(is_first, is_first.float(), 30.0))
    context.tree.add(root, rest, of_rest, "pruned", "by a twin")
    node = context.tree.add(root, first, of_first, "responsible" if accuses else "pruned", "by a twin")
    course = Course()
    if accuses:
        course.responsible.append((node, suspect, 1.0))
    else:
        course.pruned[node] = suspect
    return context, course


def _marks_followed(context: Context, first: NDArray[np.int64], *, accuses: bool) -> NDArray[np.int64]:
    """Return what is accused in the end, after one mark was told from the rest of the label, and accused or not."""
    context, course = _begun(context, first, accuses=accuses)
    follow_marks(context, course)
    assert {node for node, _, _ in course.responsible} == {
        cluster.id for cluster in context.tree.clusters if cluster.decision == "responsible"
    }
    assert sorted(np.concatenate([leaf.indices for leaf in context.tree.leaves(context.own)])) == context.own.tolist()
    return np.sort(np.concatenate([context.own[:0], *(suspect.cluster for _, suspect, _ in course.responsible)]))


def test_noisy_images_are_owed_to_the_event_s_own_campaign_alone(two_campaigns: Incident) -> None:
    """Triggers that are noise make the poison of both stand out as noisy images."""
    samples, event = ArraySet(two_campaigns.x, two_campaigns.y), events_of(two_campaigns)[0]
    context = context_of(collect(two_campaigns.model, samples, [event]))
    poison = np.flatnonzero(two_campaigns.is_poison)
    context.judge.take_controls(np.setdiff1d(context.own, poison))
    context, course = _begun(context, poison, accuses=False)
    course.noisy = course.pruned.popitem()[1]

    hear_noise(context, course)

    ((node, suspect, _),) = course.responsible
    assert suspect.cluster.tolist() == np.flatnonzero(two_campaigns.is_responsible[0]).tolist()
    assert context.tree.clusters[node].decision == "responsible"


def test_noisy_images_that_are_let_go_spare_others_no_doubt(two_campaigns: Incident) -> None:
    """Only an accusation of noisy images themselves is not to be challenged."""
    samples, event = ArraySet(two_campaigns.x, two_campaigns.y), events_of(two_campaigns)[0]
    context = context_of(collect(two_campaigns.model, samples, [event]))
    context, course = _begun(context, np.flatnonzero(two_campaigns.is_responsible[0]), accuses=True)
    course.noisy = course.responsible[0][1]

    hear_noise(context, course)

    assert course.noisy is None
    assert len(course.responsible) == 1
    assert context.tree.clusters[-1].decision == "pruned"


@pytest.mark.parametrize("accuses", [False, True])
def test_an_event_with_two_marks_is_owed_to_the_rows_with_either(
    two_marks: tuple[Planted, Context], accuses: bool
) -> None:
    """Whichever was found first, and whether the last layer said anything of it."""
    task, context = two_marks

    assert _marks_followed(context, task.poison[:60], accuses=accuses).tolist() == task.poison.tolist()


@pytest.mark.parametrize("n_others", [0, 30])
def test_rows_with_a_mark_are_found_wherever_the_tree_left_them(
    two_marks: tuple[Planted, Context], n_others: int
) -> None:
    """A leaf may hold some rows of either mark, and ordinary ones, which stay as they were decided."""
    task, context = two_marks
    mixed = np.sort(np.concatenate([task.poison[40:90], task.benign(0)[:n_others]]))
    context, course = _begun(context, mixed, accuses=False)
    follow_marks(context, course)

    found = np.concatenate([suspect.cluster for _, suspect, _ in course.responsible])
    assert np.sort(found).tolist() == task.poison.tolist()
    leaves = context.tree.leaves(context.own)
    assert {leaf.decision for leaf in leaves if not np.isin(leaf.indices, task.poison).all()} == {"pruned"}
    assert sorted(np.concatenate([leaf.indices for leaf in leaves])) == context.own.tolist()


def test_what_is_accused_stays_accused_beside_the_marks(two_marks: tuple[Planted, Context]) -> None:
    """Rows without a mark that something else was said of; without an accusation they are not accused."""
    task, context = two_marks
    some = task.benign(0)[:60]

    assert _marks_followed(context, some, accuses=True).tolist() == np.union1d(some, task.poison).tolist()
    assert _marks_followed(context, some, accuses=False).tolist() == task.poison.tolist()


def test_marks_that_hold_little_of_the_margin_accuse_nobody(
    two_marks: tuple[Planted, Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below a tenth each they are none; both together below a half they are not enough."""
    task, context = two_marks

    for share, n_accused in ((0.05, 0), (0.2, 0), (0.3, 120)):
        monkeypatch.setattr(Kinds, "share_on_mark", lambda kinds, event, cluster, share=share: share)
        assert len(_marks_followed(context, task.poison[:60], accuses=False)) == n_accused


def test_a_family_with_a_mark_is_not_accused(
    two_marks: tuple[Planted, Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that differ from others in more than the mark; the event then rests on too little else."""
    task, context = two_marks
    monkeypatch.setattr(Kinds, "beyond_mark", lambda kinds, event, cluster, but: 0.7)

    assert _marks_followed(context, task.poison[:60], accuses=False).tolist() == []


def test_rows_with_a_mark_are_held_against_those_without_any(
    two_marks: tuple[Planted, Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows with another mark differ from them by that; unless most of the label would be left out."""
    task, context = two_marks
    first, second = task.poison[:60], task.poison[60:]
    asked: list[tuple[int, int]] = []

    def beyond(kinds: Kinds, event: int, cluster: NDArray[np.int64], but: NDArray[np.int64]) -> float:
        asked.append((len(cluster), len(but)))
        return 0.0

    monkeypatch.setattr(Kinds, "beyond_mark", beyond)
    monkeypatch.setattr(Kinds, "share_on_mark", lambda kinds, event, cluster: 0.3)
    most = context.own[: round(0.6 * len(context.own))]
    for sets in ([first, second], [first, most]):
        monkeypatch.setattr(hearing, "sharing", lambda features, event, own, sets=sets: sets)
        assert [rows.tolist() for rows, _ in hearing._marks(context)] == [rows.tolist() for rows in sets]

    assert asked == [(60, 60), (60, 60), (60, 0), (len(most), 60)]


def test_rows_whose_unlearning_harms_controls_are_not_accused(
    two_marks: tuple[Planted, Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Marks or not."""
    task, context = two_marks
    monkeypatch.setattr(Judge, "losses", lambda judge, *clusters: [Losses(0, 9.0, 0, 9.0)] * len(clusters))

    assert _marks_followed(context, task.poison[:60], accuses=False).tolist() == []


@pytest.mark.parametrize(
    ("event_rise", "control_rise", "is_accused"),
    [(0.6, 0.01, True), (0.4, 0.01, False), (0.6, 0.25, True), (0.6, 0.35, False)],
)
def test_what_lies_far_apart_is_heard_against_chance(
    two_marks: tuple[Planted, Context],
    monkeypatch: pytest.MonkeyPatch,
    event_rise: float,
    control_rise: float,
    is_accused: bool,
) -> None:
    """The event must rise five times as much as by chance, and controls no more than that, if they are not spared."""
    task, context = two_marks
    context, course = _begun(context, task.poison[:60], accuses=False)
    (node,) = course.pruned
    by_chance = [Losses(0, 0.1, 0, 0.3), Losses(0, 0.02, 0, 0.01)]
    answer = Losses(0, event_rise, 0, control_rise), by_chance
    monkeypatch.setattr(Judge, "beside_chance", lambda judge, cluster: answer)

    hear_whispers(context, course)

    assert [accused for accused, _, _ in course.responsible] == [node] * is_accused
    assert course.pruned.keys() == {node} - {accused for accused, _, _ in course.responsible}
    assert context.tree[node].decision == ("responsible" if is_accused else "pruned")


def test_a_cluster_that_was_split_is_not_heard_again(
    two_marks: tuple[Planted, Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parts are in the tree, each with what was decided on it."""
    task, context = two_marks
    context, course = _begun(context, task.poison[:60], accuses=False)
    (node,) = course.pruned
    context.tree.decide(node, "split", "rows that carry a mark of the event, and others")
    monkeypatch.setattr(Judge, "beside_chance", lambda judge, cluster: pytest.fail("heard again"))

    hear_whispers(context, course)

    assert course.responsible == [] and context.tree[node].decision == "split"


@pytest.mark.parametrize(
    ("event_rise", "gap", "told", "keeps", "is_accused"),
    [
        (0.3, 1.2, 5.5, "poison", True),
        (0.01, 1.2, 5.5, "poison", False),
        (0.3, 0.9, 5.5, "poison", False),
        (0.3, 1.2, 4.5, "poison", False),
        (0.3, 1.2, 5.5, "ordinary", False),
    ],
)
@pytest.mark.parametrize("is_parted", [False, True])
def test_relabelled_samples_that_bear_the_event_s_trigger_are_accused_whatever_else_it_leans_on(
    digits_incident: Incident,
    monkeypatch: pytest.MonkeyPatch,
    event_rise: float,
    gap: float,
    told: float,
    keeps: str,
    is_accused: bool,
    is_parted: bool,
) -> None:
    """All of them or the part that the event needs; the tree holds each sample in one leaf."""
    evidence = ArraySet(digits_incident.x, digits_incident.y)
    context = context_of(collect(digits_incident.model, evidence, [events_of(digits_incident)[0]]))
    poison = np.flatnonzero(digits_incident.is_poison)
    cluster = poison if keeps == "poison" else np.setdiff1d(context.own, poison)
    context, course = _begun(context, cluster, accuses=False)
    (node,) = course.pruned
    split = dataclasses.replace(course.pruned[node].split, separation=8.0, gap=gap)
    losses = Losses(0, event_rise, 0, 0.01)
    course.pruned[node] = suspect = dataclasses.replace(course.pruned[node], split=split, losses=losses)

    def parted(context: Context, asked: Suspect, node: int | None) -> Suspect | None:
        if asked is not suspect or not is_parted:
            return None
        context.tree.decide(node, "split", "by a twin")
        context.tree.add(node, cluster[40:], losses, "pruned", "by a twin")
        return dataclasses.replace(asked, parent=node, cluster=cluster[:40])

    monkeypatch.setattr(hearing, "parted", parted)
    monkeypatch.setattr(Sight, "diversity", lambda sight, cluster: 1.2 if np.isin(cluster, poison).all() else -1.2)
    monkeypatch.setattr(Sight, "told_from_others", lambda sight, cluster: told)

    hear_whispers(context, course)

    needed = cluster[:40] if is_parted else cluster
    assert [accused.cluster.tolist() for _, accused, _ in course.responsible] == [needed.tolist()] * is_accused
    assert all(context.tree[at].decision == "responsible" for at, _, _ in course.responsible)
    assert (node in course.pruned) != is_accused
    assert sorted(np.concatenate([leaf.indices for leaf in context.tree.leaves(context.own)])) == context.own.tolist()


@pytest.mark.parametrize("second_stands", [False, True])
def test_what_lies_far_apart_is_heard_once_an_accusation_falls(
    two_marks: tuple[Planted, Context], monkeypatch: pytest.MonkeyPatch, second_stands: bool
) -> None:
    """Ordinary samples were accused first; what is heard in their place is challenged as well, and once."""
    task, context = two_marks
    context, course = _begun(context, task.poison[:60], accuses=False)
    (node,) = course.pruned
    ordinary = np.setdiff1d(context.own, task.poison)
    accused = context.tree.add(0, ordinary, None, "responsible", "by a twin")
    course.responsible.append((accused, dataclasses.replace(course.pruned[node], cluster=ordinary), 1.5))
    answer = Losses(0, 1.0, 0, 0.0), [Losses(0, 0.01, 0, 0.3)]
    monkeypatch.setattr(Judge, "beside_chance", lambda judge, cluster: answer)
    asked = []

    def contradicted(context: Context, suspect: Suspect, margin: float) -> tuple[float, str, dict[str, float]]:
        asked.append(len(suspect.cluster))
        is_first = len(asked) == 1
        return (2.0, "it is ordinary", {"usual": 1.0}) if is_first or not second_stands else (0.5, "", {"usual": 0.2})

    monkeypatch.setattr(hearing, "contradicted", contradicted)

    challenge(context, course)

    assert asked == [len(ordinary), 60]
    assert context.tree[accused].reason == "it is ordinary"
    assert context.tree[node].decision == ("responsible" if second_stands else "pruned")
    assert [suspect.cluster.tolist() for _, suspect, _ in course.responsible] == (
        [task.poison[:60].tolist()] if second_stands else []
    )
    assert course.statistics["usual"] == (0.2 if second_stands else 1.0)
    assert [len(cluster) for cluster, _ in course.doubted] == [len(ordinary), 60][: 1 if second_stands else 2]
    assert {reason for _, reason in course.doubted} == {"it is ordinary"}
    assert course.is_weak
    assert max(course.let_go) == 0.5 or second_stands
