"""The part of a responsible cluster that the event needs: not what is another campaign's, decoys, or came along.

One cluster may hold the poison of several campaigns for one label, and ordinary samples of it besides (decisions 0024,
0026, 0029 and 0031).
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from poisontrace._record import Indices
from poisontrace._types import Losses
from poisontrace.clustering import N_FOLDS, Split, separate
from poisontrace.doubting import Case
from poisontrace.judging import CLEARLY
from poisontrace.origins import SOME_SIGN
from poisontrace.searching import glance_at_parts, two_parts, two_parts_at_input
from poisontrace.sights import Sight
from poisontrace.unlearning import spread

# Of a responsible cluster, to be taken for a campaign of its own, and times the separation of two kinds.
MIN_PART, APART = 0.2, 1.2
N_OF_PARTS = 400  # of its samples, that are looked at first
LESS_SIGN = 0.5  # times that of what the event needs: so much sign of having been relabelled is none
# Along what tells two campaigns apart: how far four in five of all other samples lie from each other, how far beyond
# either one they lie at most, and how far an event lies the way of the other campaign if it carries both triggers.
TOGETHER, BEYOND, OF_BOTH = 0.6, 0.2, 1 / 3


@dataclass(frozen=True)
class Parts:
    """Two parts of a responsible cluster, of which the event needs one.

    Attributes:
        needed: training samples that the event is owed to.
        rest: the others.
        of_needed, of_rest: what unlearning each did.
        reason: why they are two.
        whose: of whom the rest is.
        is_final: whether what is needed is not to be split further: samples with two triggers lie beside such with one.
    """

    needed: Indices
    rest: Indices
    of_needed: Losses
    of_rest: Losses
    reason: str
    whose: str
    is_final: bool = False


# A split, and its parts with what unlearning each did, that first which the event needs less.
Sides = tuple[Split, tuple[Indices, Losses], tuple[Indices, Losses]]


def needed_part(case: Case, cluster: Indices) -> Parts | None:
    """Return the part of a responsible cluster that the event needs and the rest, if that is of another campaign.

    Poison of several campaigns for one label is one kind beside ordinary samples; the event is owed to its own. Poison
    of one campaign splits as well, by source classes; but such parts lie less far apart. Rows need not be asked: those
    that share one mark and nothing else are of one campaign (decision 0024). Beside poison that was relabelled the rest
    may also be decoys: ordinary samples of the label that carry the trigger, if faintly. And it may be ordinary samples
    that came along, however few (decision 0031).
    """
    if case.kinds.are_rows:
        return None
    with case.clock.stage("clustering"):
        # Parts so large show in some of the samples as well, and most clusters have none.
        if len(cluster) > 2 * N_OF_PARTS:
            some = Sight(case.features, case.event, spread(cluster, N_OF_PARTS))
            promising = case.config.weak_separation
            few = glance_at_parts(some, round(MIN_PART * N_OF_PARTS), promising)
            if few.apartness < promising:
                return None
    sight = Sight(case.features, case.event, cluster)
    sides = _sides(case, sight, case.config.min_cluster)
    return _without_others(case, sight, sides) or (_part_within(case, sight, cluster, sides) if sides else None)


def _part_within(case: Case, sight: Sight, cluster: Indices, sides: Sides | None = None) -> Parts | None:
    """Split a part of a responsible cluster, and return the side of it that the event does without beside the rest.

    Args:
        case: of the event.
        sight: of the part.
        cluster: that it is a part of, or the same.
        sides: of the part that are known; too small a one is of no campaign.
    """
    part, is_whole = sight.indices, len(sight.indices) == len(cluster)
    least = max(case.config.min_cluster, round(MIN_PART * len(part)))
    if not sides or sides[0].n_smaller < least:
        sides = _sides(case, sight, least)
    if not sides:
        return None
    split, (rest, of_rest), (needed, of_needed) = sides
    if not is_whole:
        needed = np.setdiff1d(cluster, rest)
        of_needed, of_rest = case.judge.losses(needed, rest)
    if not _does_without(case, split, of_rest, of_needed):
        return None
    with case.clock.stage("clustering"):
        apart = f"{split.separation:.1f} standard deviations apart"
        if case.sight.spread(needed) >= 1 and case.sight.spread(rest) < SOME_SIGN:
            reason, whose = f"relabelled and not, {apart}", "decoys that kept their label"
            return Parts(needed, rest, of_needed, of_rest, reason, whose)
        others = sight.elsewhere(part[split.is_first.numpy()])[0]
        if not len(others):
            return None
        low, middle, high = others.quantile(torch.tensor([0.1, 0.5, 0.9]))
        # What tells two triggers apart is in no other sample: those lie together, and between the two. Source classes
        # draw them apart, and where one side carries more of a trigger, or more triggers, they lie beyond it.
        if high - low > TOGETHER:
            return None
        if -BEYOND < middle < 1 + BEYOND:
            if case.sight.position(rest) >= OF_BOTH:
                return None
            reason, whose = f"two campaigns, {apart}", "another campaign's"
            return Parts(needed, rest, of_needed, of_rest, reason, whose, is_final=not is_whole)
    # Samples with one trigger each, beside such that carry both.
    within = (_part_within(case, Sight(case.features, case.event, side), cluster) for side in (rest, needed))
    return next((parts for parts in within if parts), None) if is_whole else None


def _without_others(case: Case, sight: Sight, sides: Sides | None) -> Parts | None:
    """Return a responsible cluster without ordinary samples that came along, and those, if there are any.

    They lie farther from what the event needs than from the others of their label, and nobody relabelled them. Of
    poison each source class lies farther from those, for it has the trigger, and a part with a faint one is of many.
    """
    others = np.setdiff1d(case.own, sight.indices)
    if len(others) < N_FOLDS:
        return None

    def apartness(cluster: Indices, siblings: Indices, at_input: bool) -> NDArray[np.float64]:
        both = Sight(case.features, case.event, np.union1d(cluster, siblings))
        is_first = torch.from_numpy(np.isin(both.indices, cluster))
        spaces = (both.leaning, both.agreements[0]) if at_input else (both.leaning,)
        return np.array([separate(space, is_first, max_rounds=1).apartness for space in spaces])

    for at_input in (False, True):
        found = _sides(case, sight, case.config.min_cluster, at_input=True) if at_input else sides
        if not found:
            continue
        split, (rest, of_rest), (needed, of_needed) = found
        if not _does_without(case, split, of_rest, of_needed):
            continue
        with case.clock.stage("clustering"):
            from_needed, from_others = (apartness(rest, siblings, at_input) for siblings in (needed, others))
            # Whoever lies no farther from the rest of the label than one kind does was not relabelled.
            is_like_others = from_others[0] < case.config.separation
            is_like_others |= case.sight.spread(rest) < LESS_SIGN * case.sight.spread(needed)
            if not is_like_others or (from_needed <= from_others).any():
                continue
        reason = f"two kinds, {split.separation:.1f} standard deviations apart"
        return Parts(needed, rest, of_needed, of_rest, reason, "like others of its label")
    return None


def _sides(case: Case, sight: Sight, least: int, *, at_input: bool = False) -> Sides | None:
    """Return the parts of a cluster; None if there are none, that lie apart far enough.

    Args:
        case: of the event.
        sight: of the cluster.
        least: samples of each part.
        at_input: whether to look at what enters the network only.
    """
    enough = APART * case.config.separation
    with case.clock.stage("clustering"):
        if at_input:
            split = two_parts_at_input(sight, least, case.config.weak_separation)
        else:
            split = two_parts(sight, least, case.config.weak_separation, enough)
    sides = sight.indices[split.is_first.numpy()], sight.indices[~split.is_first.numpy()]
    if split.apartness < enough or min(map(len, sides)) < least:
        return None
    rest, needed = sorted(zip(sides, case.judge.losses(*sides), strict=True), key=lambda side: side[1].event_rise)
    return split, rest, needed


def _does_without(case: Case, split: Split, of_rest: Losses, of_needed: Losses) -> bool:
    """Whether the event needs one of two parts only.

    Of poison that carries several triggers each part does something for it; but parts that lie farther apart than they
    must are two the more surely, and a last layer that has learned both does not part them as well.
    """
    far = split.apartness / (APART * case.config.separation)
    return of_needed.event_rise >= max(case.config.event_rise, CLEARLY / far * of_rest.event_rise)
