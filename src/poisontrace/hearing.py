"""Clusters that are heard again once the tree is done: noisy images, what lies very far apart, and several marks.

The last layer need not know what the event is owed to, so what unlearning says of a cluster is not all there is to ask
(decisions 0006, 0014, 0025, 0030 and 0031).
"""

from dataclasses import dataclass, field, replace
from operator import itemgetter

import numpy as np

from poisontrace._record import Indices
from poisontrace._types import Cluster
from poisontrace.clustering import Split
from poisontrace.doubting import Case, contradicted
from poisontrace.judging import FAMILY, TINY, Suspect, is_minority
from poisontrace.searching import two_kinds
from poisontrace.sights import Sight

# Nats that the event must rise by though two kinds lie very far apart, and times what chance comes to.
WHISPER, BEYOND_CHANCE = 0.002, 5
# Of an event's margin: what marks, or a planted word, must hold together, and each of several marks.
NEEDED, A_PART = 0.5, 0.1
MAX_ASIDE = 3  # families of rows, while a mark is looked for


@dataclass
class Course:
    """What has come of an event so far.

    Attributes:
        responsible: node, suspect and margin of each cluster that is accused.
        let_go: margins of what was looked at and let go.
        statistics: of the finding.
        is_weak: whether something was seen that is too weak to accuse.
        noisy: the noisy images of the label, if they stand out; judged when all else is.
        pruned: suspect of each node that was let go, by what unlearning says of it or because it holds one kind.
    """

    responsible: list[tuple[int, Suspect, float]] = field(default_factory=list)
    let_go: list[float] = field(default_factory=lambda: [0.0])
    statistics: dict[str, float] = field(default_factory=lambda: {"separation": 0.0, "margin": 0.0})
    is_weak: bool = False
    noisy: Suspect | None = None
    pruned: dict[int, Suspect] = field(default_factory=dict)


def hear_noise(case: Case, course: Course) -> None:
    """Accuse the noisy images of the label, unless the event is owed to others or ordinary samples suffer."""
    noisy = course.noisy
    if noisy is None:
        return
    if course.responsible or noisy.losses.control_rise > case.spared:
        reason = "noisy images, but the event leans on others"
        case.tree.add(noisy.parent, noisy.cluster, noisy.losses, "pruned", reason)
        return
    # The last layer alone may not tell: it can be the weights below that such poison moves.
    reason = "no other label holds noisy images so far from the rest"
    node = case.tree.add(noisy.parent, noisy.cluster, noisy.losses, "responsible", reason)
    course.responsible.append((node, noisy, noisy.apart(case.config)))


def hear_whispers(case: Case, course: Course) -> None:
    """Ask once more about clusters that lie very far apart but were let go, until one is accused.

    Random samples of the label, no more of them, say what chance comes to: how much the event rises, and how much
    others suffer, which they may where so much of the label is poison that a last layer hardly tells the two apart.
    """
    for node, suspect in course.pruned.items():
        if not suspect.is_far(case.config) or course.responsible or case.beyond_mark(suspect.cluster) >= FAMILY:
            continue
        losses, by_chance = case.judge.beside_chance(suspect.cluster)
        is_moved = losses.event_rise >= max(WHISPER, BEYOND_CHANCE * max(chance.event_rise for chance in by_chance))
        if is_moved and losses.control_rise <= max(case.spared, *(chance.control_rise for chance in by_chance)):
            reason = f"it moves the event {BEYOND_CHANCE} times as much as other samples of its label"
            case.tree.decide(node, "responsible", reason)
            course.responsible.append((node, replace(suspect, losses=losses), suspect.apart(case.config)))
    for node, _, _ in course.responsible:
        course.pruned.pop(node, None)


def challenge(case: Case, course: Course) -> None:
    """Let go what is accused if what is ordinary contradicts it, and hear the others then."""
    if course.noisy or not course.responsible:
        return
    _, weakest, margin = min(course.responsible, key=itemgetter(2))
    against, reason, figures = contradicted(case, weakest, margin)
    margin = min(margin, 1 / max(against, TINY))
    if against < 1:
        course.responsible = [(node, suspect, min(margin, own)) for node, suspect, own in course.responsible]
    else:
        for node, _, _ in course.responsible:
            case.tree.decide(node, "pruned", reason)
        course.is_weak, course.responsible, course.let_go = True, [], [margin]
        hear_whispers(case, course)
        if course.responsible:
            challenge(case, course)
            return
    course.statistics |= figures


def follow_marks(case: Case, course: Course) -> None:
    """Accuse sets of rows that share a mark of the event each, and nothing else, if its margin rests on those marks.

    The last layer need not know a mark from what else speaks for the label, nor one mark from another that the event
    carries as well; where the margin rests tells.
    """
    if not case.kinds.are_rows:
        return
    accused = {node: suspect for node, suspect, _ in course.responsible}
    asked = course.pruned | accused
    shares = {node: _share_on_mark(case, suspect.cluster) for node, suspect in asked.items()}
    marked = {node: suspect for node, suspect in asked.items() if shares[node]}
    resting = sum(shares.values())
    rests = [leaf for leaf in case.tree.leaves(case.own) if leaf.id not in accused | marked] if marked else []
    for rest in rests:  # which grows: beside two marks there may be a third
        if resting <= 1 - A_PART and (found := _split_off_mark(case, rest, asked.get(rest.id))):
            node, remaining, suspect, share = found
            rests.append(remaining)
            marked[node], resting = suspect, resting + share
    new = [node for node in marked if node not in accused]
    if not new or (not accused and resting < NEEDED):
        return
    together = np.unique(np.concatenate([suspect.cluster for suspect in (accused | marked).values()]))
    case.judge.take_controls(np.setdiff1d(case.own, together))
    losses = case.judge.losses(together)[0]
    for node in new if losses.control_rise <= case.spared else []:
        case.tree.decide(node, "responsible", "they share nothing but a mark, and the event's margin rests on it")
        suspect = replace(marked[node], losses=losses)
        course.responsible.append((node, suspect, suspect.apart(case.config)))


def _share_on_mark(case: Case, cluster: Indices) -> float:
    """Return how much of the event's margin rests on the mark of rows; 0 if that is no part, or they share more."""
    share = case.kinds.share_on_mark(case.event, cluster)  # asked first, for how they differ from others takes longer
    return share if share >= A_PART and case.beyond_mark(cluster) < FAMILY else 0.0


def _split_off_mark(case: Case, leaf: Cluster, suspect: Suspect | None) -> tuple[int, Cluster, Suspect, float] | None:
    """Split rows that share a mark of the event off a leaf of the tree; None if there are none.

    Args:
        case: of the event.
        leaf: of its tree.
        suspect: that the leaf was judged as, if it was.

    Returns:
        their node, what remains, they, and how much of the event's margin rests on the mark, as a share.
    """
    tree, rows = case.tree, leaf.indices
    if len(rows) < case.config.min_cluster or not (found := _marked(case, rows, suspect.split if suspect else None)):
        return None
    split, cluster, share = found
    others = np.setdiff1d(rows, cluster)
    losses, of_others = case.judge.losses(cluster, others)
    tree.decide(leaf.id, "split", "rows that carry a mark of the event, and others")
    remaining = tree.add(leaf.id, others, of_others, "pruned", leaf.reason)
    node = tree.add(leaf.id, cluster, losses, "pruned", leaf.reason)
    return node, tree[remaining], Suspect(leaf.id, cluster, losses, of_others, len(others), split), share


def _marked(case: Case, rows: Indices, split: Split | None) -> tuple[Split, Indices, float] | None:
    """Find those of some rows that carry a mark of the event; None if there are none.

    Args:
        case: of the event.
        rows: to look at.
        split: that parted them from others, if one did.

    Returns:
        what parts them from others, they, and how much of the event's margin rests on the mark, as a share.
    """
    if split:  # off with them may have come a dozen others, that look alike to the model
        cluster = case.kinds.carriers(case.event, rows)
        if len(cluster) < len(rows) and (share := _share_on_mark(case, cluster)):
            return split, cluster, share
    for _ in range(1 + MAX_ASIDE):
        if len(rows) < case.config.min_cluster:
            return None
        with case.clock.stage("clustering"):
            sight = Sight(case.features, case.event, rows)
            split = two_kinds(sight, case.kinds, case.config.separation, is_whole_label=False)
            kind = rows[split.is_first.numpy()]
            cluster = case.kinds.carriers(case.event, kind)
        if not split.is_at_least(case.config.separation):
            return None
        if share := _share_on_mark(case, cluster):
            return split, cluster, share
        if not is_minority(len(kind), len(rows) - len(kind)):
            return None
        rows = np.setdiff1d(rows, kind)  # a family of others, which stand out more than rows with a mark do
    return None
