"""The part of a responsible cluster that the event needs: not what is another campaign's, decoys, or came along.

One cluster may hold the poison of several campaigns for one label, and ordinary samples of it besides (decisions 0024,
0026, 0029, 0031, 0033, 0037, 0039, 0041 and 0049).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from poisontrace._blocks import Blocks
from poisontrace._record import Indices, evenly
from poisontrace._types import Losses
from poisontrace.clustering import Split, separate
from poisontrace.context import Context
from poisontrace.judging import CLEARLY, Suspect
from poisontrace.origins import SOME_SIGN
from poisontrace.searching import glance_at_parts, two_parts, two_parts_at_input, two_parts_by_origin
from poisontrace.sights import Sight
from poisontrace.spaces import N_FOLDS, Space, leading

# Of a responsible cluster, to be taken for a campaign of its own, and times the separation of two kinds.
MIN_PART, APART = 0.2, 1.2
N_OF_PARTS = 400  # of its samples, that are looked at first
LESS_SIGN = 0.5  # times that of what the event needs: so much sign of having been relabelled is none
# Along what tells two campaigns apart: how far four in five of all other samples lie from each other, and how far
# beyond the event's own they lie at most.
TOGETHER, BEYOND = 0.6, 0.15
# How far the event lies from samples outside, on the way to a part, together with how far those lie beyond that part,
# if it carries that part's trigger as well: 1.4 and more; 1.26 at most if it does not.
CARRIED = 1.3
# Of what the needed part does for the event: the rest does something. And of how far the needed part lies on that way.
SOMETHING, FARTHEST = 0.05, 0.9
CLEARER = CLEARLY / 2  # times what the rest does, where the event's own trigger tells it from what the event needs
BORNE = 0.25  # of what the needed part has in its pixels: of its own trigger 0.38 and more, of another 0.12 at most
HALFWAY, BETWEEN = 0.5, 0.75  # of the way from one part to another, and up to which samples outside lie between the two


@dataclass(frozen=True)
class Parts:
    """Two parts of a responsible cluster, of which the event needs one.

    Attributes:
        needed: training samples that the event is owed to.
        rest: the others.
        of_needed, of_rest: what unlearning each did.
        reason: why they are two.
        whose: of whom the rest is.
        is_across: whether the event's own trigger told them apart, across the parts that further triggers make.
    """

    needed: Indices
    rest: Indices
    of_needed: Losses
    of_rest: Losses
    reason: str
    whose: str
    is_across: bool = False


# A split, whose first side is needed, and its parts with what unlearning each did, that first which is needed less.
Sides = tuple[Split, tuple[Indices, Losses], tuple[Indices, Losses]]


def parted(context: Context, suspect: Suspect, node: int | None = None) -> Suspect | None:
    """Return the part of a responsible cluster that the event needs, with both noted in the tree; None if it is all.

    Args:
        context: of the event.
        suspect: the cluster.
        node: of the cluster, if it is in the tree already.
    """
    if not context.may_split(suspect):
        return None
    parts = needed_part(context, suspect.cluster, is_across=suspect.is_across)
    if parts is None:
        return None
    if node is None:
        node = context.tree.add(suspect.parent, suspect.cluster, suspect.losses, "split", parts.reason)
    else:
        context.tree.decide(node, "split", parts.reason)
    context.tree.add(node, parts.rest, parts.of_rest, "pruned", f"the event does without it: {parts.whose}")
    of_needed, of_rest = parts.of_needed, parts.of_rest
    return Suspect(node, parts.needed, of_needed, of_rest, len(parts.rest), suspect.split, parts.is_across)


def needed_part(context: Context, cluster: Indices, *, is_across: bool = False) -> Parts | None:
    """Return the part of a responsible cluster that the event needs and the rest, if that is of another campaign.

    Poison of several campaigns for one label is one kind beside ordinary samples; the event is owed to its own. Poison
    of one campaign splits as well, by source classes; but such parts lie less far apart. Rows need not be asked: those
    that share one mark and nothing else are of one campaign (decision 0024). The rest may also be ordinary samples that
    came along, however few, decoys with a faint trigger among them (decisions 0031, 0033 and 0041).

    Args:
        context: of the event.
        cluster: training samples.
        is_across: whether the event's own trigger told them from others already; further ones part them no more, but
            campaigns that share no sample do (decision 0037).
    """
    if context.kinds.are_rows:
        return None
    with context.clock.stage("clustering"):
        # Parts so large show in some of the samples as well, and most clusters have none.
        if len(cluster) > 2 * N_OF_PARTS:
            some = Sight(context.features, context.event, evenly(cluster, N_OF_PARTS))
            promising = context.config.weak_separation
            few = glance_at_parts(some, round(MIN_PART * N_OF_PARTS), promising)
            if few.apartness < promising:
                return None
    sight = Sight(context.features, context.event, cluster)
    sides = _sides(context, sight, context.config.min_cluster)
    parts = None if is_across else _without_others(context, sight, sides)
    return parts or (_without_campaigns(context, sight, sides, is_across=is_across) if sides else None)


def _without_campaigns(context: Context, sight: Sight, sides: Sides, *, is_across: bool) -> Parts | None:
    """Return the side of a responsible cluster that the event needs, if it does without the other one.

    Args:
        context: of the event.
        sight: of the cluster.
        sides: of it that are known; too small a one is of no campaign.
        is_across: see :func:`needed_part`.
    """
    least = max(context.config.min_cluster, round(MIN_PART * len(sight.indices)))
    known = sides if sides[0].n_smaller >= least else _sides(context, sight, least)
    if not known:
        return None
    own = None if is_across else _sides_of_event(context, sight, known)
    split, (rest, of_rest), (needed, of_needed) = own or known
    if not _does_without(
        context, split, of_rest, of_needed, by=CLEARER if own or _is_of_event(sight, split) else CLEARLY
    ):
        return None
    with context.clock.stage("clustering"):
        apart = f"{split.separation:.1f} standard deviations apart"
        others = sight.elsewhere(needed)[0]
        if not len(others):
            return None
        low, middle, high = others.quantile(others.new_tensor([0.1, 0.5, 0.9]))
        # What tells two triggers apart is in no other sample: those lie together, and between the two. Source classes
        # draw them apart, and where one side carries more of a trigger, or more triggers, they lie beyond it.
        is_of_trigger = own is not None or high - low <= TOGETHER or context.sight.reach(needed, rest) <= TOGETHER
        if is_across and middle > BETWEEN:
            return None  # both carry the event's trigger, and the rest another one besides
        if not is_of_trigger or middle >= 1 + BEYOND or _carries(context, rest, max(0.0, -float(middle))):
            return None
        if of_rest.event_rise >= SOMETHING * of_needed.event_rise and _has_more(context, needed, rest):
            return None
        # A network may be taught by one half alone of what bears the same trigger, whole and faint; the images show it.
        if context.sight.bears(needed, rest) >= BORNE:
            return None
    reason, whose = f"two campaigns, {apart}", "another campaign's"
    return Parts(needed, rest, of_needed, of_rest, reason, whose, is_across=is_across or own is not None)


def _without_others(context: Context, sight: Sight, sides: Sides | None) -> Parts | None:
    """Return a responsible cluster without ordinary samples that came along, and those, if there are any.

    They lie farther from what the event needs than from the others of their label, and nobody relabelled them. Of
    poison each source class lies farther from those, for it has the trigger, and a part with a faint one is of many.
    """
    others = np.setdiff1d(context.own, sight.indices)
    if len(others) < N_FOLDS:
        return None

    def apartness(cluster: Indices, siblings: Indices, at_input: bool) -> NDArray[np.float64]:
        both = Sight(context.features, context.event, np.union1d(cluster, siblings))
        is_first = torch.from_numpy(np.isin(both.indices, cluster))
        spaces = (both.leaning, both.agreements[0]) if at_input else (both.leaning,)
        return np.array([separate(space, is_first, max_rounds=1).apartness for space in spaces])

    few = context.config.min_cluster
    looks: list[tuple[Callable[[], Sides | None], bool]] = [
        (lambda: sides, False),
        (lambda: _sides(context, sight, few, partial(two_parts_at_input, sight)), True),
    ]
    if context.sight.spread(sight.indices) >= SOME_SIGN:
        # Beside relabelled samples such that are of no other label stand out, even if they are fewer.
        by_origin = partial(two_parts_by_origin, sight, context.sight, enough=APART * context.config.separation)
        looks.append((lambda: _sides(context, sight, 2 * N_FOLDS, by_origin), False))
    for look, at_input in looks:
        if not (found := look()):
            continue
        split, (rest, of_rest), (needed, of_needed) = found
        if not _does_without(context, split, of_rest, of_needed):
            continue
        with context.clock.stage("clustering"):
            from_needed, from_others = (apartness(rest, siblings, at_input) for siblings in (needed, others))
            # Whoever lies no farther from the rest of the label than one kind does was not relabelled.
            is_like_others = from_others[0] < context.config.separation
            is_like_others |= context.sight.spread(rest) < LESS_SIGN * context.sight.spread(needed)
            if not is_like_others or (from_needed <= from_others).any():
                continue
        reason = f"two kinds, {split.separation:.1f} standard deviations apart"
        return Parts(needed, rest, of_needed, of_rest, reason, "like others of its label")
    return None


def _is_of_event(sight: Sight, split: Split) -> bool:
    """Whether the event and samples outside lie on different sides of what tells two parts apart.

    They do if that is the event's trigger; of another one neither has anything.
    """
    first = sight.indices[split.is_first.numpy()]
    others = sight.elsewhere(first)[0]
    return len(others) > 0 and (float(others.median()) > HALFWAY) != (sight.position(first) > HALFWAY)


def _sides(
    context: Context, sight: Sight, least: int, find: Callable[[int, float], Split] | None = None
) -> Sides | None:
    """Return the parts of a cluster; None if there are none, that lie apart far enough.

    Args:
        context: of the event.
        sight: of the cluster.
        least: samples of each part.
        find: the search, given ``least`` and the standard deviations that are promising; None for ``two_parts``.
    """
    enough, promising = APART * context.config.separation, context.config.weak_separation
    with context.clock.stage("clustering"):
        split = find(least, promising) if find else two_parts(sight, least, promising)
    return _unlearned(context, sight, split) if split.apartness >= enough and split.n_smaller >= least else None


def _sides_of_event(context: Context, sight: Sight, known: Sides) -> Sides | None:
    """Return the parts that the event's trigger tells apart; None if it tells those that are known, or no others.

    Where another trigger draws samples farther apart, what the event needs has some of both parts known: what carries
    both triggers, and what carries its own alone.

    Args:
        context: of the event.
        sight: of the cluster.
        known: its parts that lie farthest apart.
    """

    def accepts(split: Split) -> bool:
        return split.apartness >= context.config.separation and _is_of_event(sight, split)

    with context.clock.stage("clustering"):
        if _is_of_event(sight, known[0]):
            return None
        least, promising = context.config.min_cluster, context.config.weak_separation
        split = two_parts(sight, least, promising, accepts)
        if not accepts(split) and (pictured := _pictured(context, sight)):
            split = two_parts(sight, least, promising, accepts, pictured)
        if not accepts(split):
            return None
    _, (_, of_rest), (needed, of_needed) = sides = _unlearned(context, sight, split)
    crosses = all(np.isin(part, needed).mean() > MIN_PART for part, _ in known[1:])
    return sides if crosses and _does_without(context, split, of_rest, of_needed, by=CLEARER) else None


def _pictured(context: Context, sight: Sight) -> Space | None:
    """Return a cluster's pixels along the directions in which those of other labels vary least; None if it has none."""
    pixels = context.sight.pixels(sight.indices, context.sight.outside)
    if pixels is None or len(context.sight.outside) < N_FOLDS:
        return None
    own, outside = (Blocks.of(part, context.features.memory) for part in pixels)
    return leading(own).against(outside)


def _unlearned(context: Context, sight: Sight, split: Split) -> Sides:
    """Return the parts of a cluster with what unlearning each did; the needed one is the first side of the split."""
    sides = sight.indices[split.is_first.numpy()], sight.indices[~split.is_first.numpy()]
    first, second = zip(sides, context.judge.losses(*sides), strict=True)
    if first[1].event_rise < second[1].event_rise:
        return split.flipped(), first, second
    return split, second, first


def _carries(context: Context, rest: Indices, beyond: float) -> bool:
    """Whether the event carries the trigger of the rest of a cluster as well, if that has a fainter one.

    Along what tells the rest from samples outside the event lies as far as it does, or farther: where it carries both
    triggers or a stronger one. The fainter the one of the rest is, the farther samples outside lie beyond it.
    """
    place = _beside_outside(context, rest).position(rest)
    return place + beyond > CARRIED


def _has_more(context: Context, needed: Indices, rest: Indices) -> bool:
    """Whether the event has more of what tells the rest of a cluster from samples outside than what it needs has.

    So it is where each sample carries some pieces of a trigger and the event carries all.
    """
    both = _beside_outside(context, rest)
    return both.position(rest) > float(both.places(rest, needed).quantile(FARTHEST))


def _beside_outside(context: Context, cluster: Indices) -> Sight:
    """Return what the event sees of a cluster and of samples outside the label."""
    return Sight(context.features, context.event, np.union1d(cluster, context.sight.outside))


def _does_without(context: Context, split: Split, of_rest: Losses, of_needed: Losses, *, by: float = CLEARLY) -> bool:
    """Whether the event needs one of two parts only, which does ``by`` times as much for it as the other.

    Of poison that carries several triggers each part does something for it; but parts that lie farther apart than they
    must are two the more surely, and a last layer that has learned both does not part them as well.
    """
    far = split.apartness / (APART * context.config.separation)
    return of_needed.event_rise >= max(context.config.event_rise, by / far * of_rest.event_rise)
