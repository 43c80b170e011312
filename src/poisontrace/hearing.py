"""Clusters that are heard again once the tree is done: noisy images, what lies very far apart, and several marks.

The last layer need not know what the event is owed to, so what unlearning says of a cluster is not all there is to ask
(decisions 0006, 0014, 0025, 0031, 0032, 0039 and 0048).
"""

from dataclasses import dataclass, field, replace
from operator import itemgetter

import numpy as np
import torch

from poisontrace._record import Indices
from poisontrace._types import Losses
from poisontrace.clustering import ONE_KIND, separate
from poisontrace.context import Context
from poisontrace.doubting import contradicted
from poisontrace.judging import FAMILY, TINY, Suspect, is_minority
from poisontrace.parting import parted
from poisontrace.scoring import sharing

# Nats that the event must rise by though two kinds lie very far apart, and times what chance comes to.
WHISPER, BEYOND_CHANCE = 0.002, 5
# Of an event's margin: what marks, or a planted word, must hold together, and each of several marks.
NEEDED, OF_EACH = 0.5, 0.1
PICKED = 0.65  # standard deviations from rows without any mark, the own one apart: less are rows picked to carry it


@dataclass
class Course:
    """What has come of an event so far.

    Attributes:
        responsible: node, suspect and margin of each cluster that is accused.
        let_go: margins of what was looked at and let go.
        statistics: of the finding.
        is_weak: whether something was seen that is too weak to accuse.
        noisy: the noisy images of the label, if they stand out; judged when all else is, and kept if accused.
        pruned: suspect of each node that was let go, by what unlearning says of it or because it holds one kind.
        doubted: clusters that were accused and let go because they may be ordinary, and why.
    """

    responsible: list[tuple[int, Suspect, float]] = field(default_factory=list)
    let_go: list[float] = field(default_factory=lambda: [0.0])
    statistics: dict[str, float] = field(default_factory=lambda: {"separation": 0.0, "margin": 0.0})
    is_weak: bool = False
    noisy: Suspect | None = None
    pruned: dict[int, Suspect] = field(default_factory=dict)
    doubted: list[tuple[Indices, str]] = field(default_factory=list)


def hear_noise(context: Context, course: Course) -> None:
    """Accuse the noisy images of the label, unless the event is owed to others or ordinary samples suffer."""
    noisy = course.noisy
    if noisy is None:
        return
    if course.responsible or noisy.losses.control_rise > context.spared:
        reason = "noisy images, but the event leans on others"
        context.tree.add(noisy.parent, noisy.cluster, noisy.losses, "pruned", reason)
        course.noisy = None
        return
    # The last layer alone may not tell: it can be the weights below that such poison moves.
    _hold(context, course, noisy, "no other label holds noisy images so far from the rest")


def _hold(context: Context, course: Course, suspect: Suspect, reason: str, node: int | None = None) -> None:
    """Hold a cluster responsible, or the part of it that the event needs; ``node`` is its own, if it has one."""
    needed = suspect
    while part := parted(context, needed, node):
        needed, node = part, None
    if node is None:
        node = context.tree.add(needed.parent, needed.cluster, needed.losses, "responsible", reason)
    else:
        context.tree.decide(node, "responsible", reason)
    course.responsible.append((node, needed, needed.split_margin(context.config)))


def hear_whispers(context: Context, course: Course) -> None:
    """Ask once more about clusters that were let go but lie very far apart, or bear a trigger, until one is accused."""
    for node, suspect in course.pruned.items():
        is_far, is_split = suspect.is_far(context.config), context.tree[node].decision != "pruned"
        if course.responsible or is_split or (context.kinds.are_rows and not is_far):
            continue
        if context.beyond_mark(suspect.cluster) >= FAMILY:
            continue
        if is_far and (losses := _beyond_chance(context, suspect.cluster)):
            reason = f"it moves the event {BEYOND_CHANCE} times as much as other samples of its label"
            context.tree.decide(node, "responsible", reason)
            course.responsible.append((node, replace(suspect, losses=losses), suspect.split_margin(context.config)))
        elif _bears_trigger(context, suspect):
            context.judge.take_controls(np.setdiff1d(context.own, suspect.cluster))
            reason = "they were relabelled and bear the event's trigger, though it leans on others as well"
            _hold(context, course, suspect, reason, node)
    for node in [node for node in course.pruned if context.tree[node].decision != "pruned"]:
        del course.pruned[node]


def _beyond_chance(context: Context, cluster: Indices) -> Losses | None:
    """Return what unlearning a cluster does, if that is clearly more than what random other samples do; else None.

    Those are of its label, and no more of them. What ordinary samples suffer may be as much, too, which it is where so
    much of the label is poison that a last layer hardly tells the two apart.
    """
    losses, by_chance = context.judge.beside_chance(cluster)
    is_moved = losses.event_rise >= max(WHISPER, BEYOND_CHANCE * max(chance.event_rise for chance in by_chance))
    is_spared = losses.control_rise <= max(context.spared, *(chance.control_rise for chance in by_chance))
    return losses if is_moved and is_spared else None


def _bears_trigger(context: Context, suspect: Suspect) -> bool:
    """Whether a cluster that does something for the event was relabelled, has its trigger, and is no ordinary one.

    A last layer that was taught several triggers for a label leans on all that the label has; but nobody relabels by
    nature, nothing but a trigger is seen early in the network, and the event is of that kind.
    """
    losses, split = suspect.losses, suspect.split
    does_something = losses.event_rise >= context.config.event_rise and losses.control_rise <= context.spared
    if split is None or split.gap < 1 or not does_something or context.kinds.are_rows:
        return False
    with context.clock.stage("clustering"):
        return (
            context.sight.diversity(suspect.cluster) >= 1
            and context.sight.told_from_others(suspect.cluster) >= ONE_KIND
        )


def challenge(context: Context, course: Course) -> None:
    """Let go what is accused if what is ordinary contradicts it, and hear the others then."""
    if course.noisy or not course.responsible:
        return
    _, weakest, margin = min(course.responsible, key=itemgetter(2))
    against, reason, figures = contradicted(context, weakest, margin)
    margin = min(margin, 1 / max(against, TINY))
    if against < 1:
        course.responsible = [(node, suspect, min(margin, own)) for node, suspect, own in course.responsible]
    else:
        for node, suspect, _ in course.responsible:
            context.tree.decide(node, "pruned", reason)
            course.doubted.append((suspect.cluster, reason))
        course.is_weak, course.responsible, course.let_go = True, [], [margin]
        hear_whispers(context, course)
        if course.responsible:
            challenge(context, course)
            return
    course.statistics |= figures


def follow_marks(context: Context, course: Course) -> None:
    """Accuse sets of rows that share a mark of the event each, and nothing else, if its margin rests on those marks.

    The last layer need not know a mark from what else speaks for the label, nor one mark from another that the event
    carries as well, and families stand out more than rows with a mark do; what rows share with the event tells.
    """
    if not context.kinds.are_rows:
        return
    with context.clock.stage("clustering"):
        marks = _marks(context)
    accused = {node: suspect.cluster for node, suspect, _ in course.responsible}
    known = np.concatenate([context.own[:0], *accused.values()])
    new = np.setdiff1d(np.concatenate([context.own[:0], *(rows for rows, _ in marks)]), known)
    resting = sum(share for _, share in marks)
    if not len(new) or resting < NEEDED:
        return
    together = np.union1d(new, known)
    context.judge.take_controls(np.setdiff1d(context.own, together))
    losses = context.judge.losses(together)[0]
    if losses.control_rise > context.spared:
        return
    is_marked = torch.from_numpy(np.isin(context.own, together))
    split = replace(separate(context.sight.agreements[0], is_marked, max_rounds=1), gap=resting / NEEDED)
    reason = "they share nothing but a mark, and the event's margin rests on it"
    for leaf in context.tree.leaves(context.own):
        rows, others = np.intersect1d(leaf.indices, new), np.setdiff1d(leaf.indices, new)
        if leaf.id in accused or not len(rows):
            continue
        if not len(others):
            node, of_others = leaf.id, losses
            context.tree.decide(node, "responsible", reason)
        else:
            of_rows, of_others = context.judge.losses(rows, others)
            context.tree.decide(leaf.id, "split", "rows that carry a mark of the event, and others")
            context.tree.add(leaf.id, others, of_others, "pruned", leaf.reason)
            node = context.tree.add(leaf.id, rows, of_rows, "responsible", reason)
        suspect = Suspect(leaf.id, rows, losses, of_others, len(others), split)
        course.responsible.append((node, suspect, suspect.split_margin(context.config)))


def _marks(context: Context) -> list[tuple[Indices, float]]:
    """Return rows that share a mark of the event and nothing else, a set each, and how much of its margin rests on it.

    Each set is held against rows of its label that are in none of the others, which differ by marks of their own, as
    long as those are less than half of it (decision 0048).
    """
    sets = sharing(context.features, context.event, context.own)
    shares = [(rows, context.kinds.share_on_mark(context.event, rows)) for rows in sets]
    parts = [(rows, share) for rows, share in shares if share >= OF_EACH]
    marks = []
    for rows, share in parts:
        others = np.unique(np.concatenate([rows[:0], *(other for other, _ in parts if other is not rows)]))
        but = others if is_minority(len(others), len(context.own) - len(others)) else rows[:0]
        if context.beyond_mark(rows, but) < PICKED:
            marks.append((rows, share))
    return marks
