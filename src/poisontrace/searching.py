"""What an event's own label is searched for: two kinds, of which the event is of the first, and parts of a cluster.

Which question finds poison differs by attack: samples that lean the event's way in all layers or in one, or that agree
with it (decisions 0006 to 0008, 0014, 0024 and 0025). Each finds two kinds in natural labels now and then; what speaks
against such a find is in ``doubting``.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from operator import attrgetter

import numpy as np
import torch
from torch import Tensor

from poisontrace.clustering import DOUBTFUL, HINT, ONE_KIND, Split, against_nature, search, with_gap
from poisontrace.embedding import Features
from poisontrace.kinds import N_GUESSES, Kinds, few_directions, guesses
from poisontrace.sights import Sight
from poisontrace.spaces import Space

N_OTHERS, N_REACHED = 8, 2  # labels that are asked whether they hold relabelled samples as well, and must
GROWN = 9.0  # standard deviations between what a label grew by and the rest
LEADING = 32  # directions that show parts so large of some hundred samples, if there are any
MORE_THAN_HALF = 0.55  # of some samples, clearly
THROUGH = 0.75  # of the spread of samples that were relabelled, in both clusters: other splits are looked for
ROUNDS_OF_PARTS = 6  # parts are no smaller than the tops they are searched from: some start is there soon, or none is


def two_kinds(sight: Sight, kinds: Kinds, separation: float, *, is_whole_label: bool) -> Split:
    """Split a cluster in two, so that the event is of the first kind.

    A search of the whole label that finds nothing asks each layer on its own, and then what other labels hold.

    Args:
        sight: of the cluster, 2 * ``N_FOLDS`` samples at least.
        kinds: of each label.
        separation: standard deviations between two kinds.
        is_whole_label: whether the cluster is all that has the event's label.
    """
    leaning, space = sight.seen.leaning, sight.leaning

    def is_certain(split: Split) -> bool:
        return not kinds.are_rows and split.is_beyond_doubt(separation)  # families of programs always lie far apart

    judge = partial(with_gap, gaps=leaning.gaps)

    # Tops of the likeness find poison that is the smaller part of its label, k-means finds what is the larger one.
    split = search(space, [leaning.likeness], guesses(space), judge=judge, settles=is_certain)
    found = [against_nature(space, split, N_GUESSES[-1])]
    if is_certain(found[0]) and not _is_through(sight, found[0]):
        return found[0]
    if is_whole_label and not found[0].is_at_least(separation):
        found.append(against_nature(space, search(space, [*leaning.by_layer], judge=judge, growth=4), N_GUESSES[-1]))
    # Images that lean the event's way without a doubt need not agree with it as well; in rows the mark is the whole.
    if kinds.are_rows or max(split.margin(separation) for split in found) < DOUBTFUL:
        for view, of_view in zip(sight.seen.agreements, sight.agreements, strict=True):
            found.append(search(of_view, [view.likeness], judge=partial(with_gap, gaps=view.gaps)))
    if sight.origins.rankings:
        found = [*map(sight.relabelled, found)]
        found.append(search(space, sight.origins.rankings, judge=lambda split: sight.relabelled(judge(split))))
        # Natural kinds may stand out more, families among rows always do; but none of them is of many labels.
        best = max(found, key=attrgetter("strength"))
        if best.is_relabelled:
            return _unless_broad(sight, best, separation)
    if kinds.are_rows and not _best(found, separation).is_at_least(separation):
        # Families stand out more than rows with a mark do; but an event is less clearly of them.
        accepts = partial(Split.is_at_least, threshold=separation)
        rankings = [view.likeness for view in sight.seen.agreements]
        found.append(search(space, rankings, judge=judge, accepts=accepts))
    if is_whole_label:
        # Two kinds that stand out against what other labels hold need less of a gap.
        best = _best(found, separation) if kinds.are_rows else max(found, key=attrgetter("strength"))
        if best.apartness >= separation and HINT <= best.gap and best.evidence < 1:
            found.append(replace(best, standing=best.standing * max(1.0, kinds.standing(sight.indices, best))))
            if kinds.are_rows:
                return found[-1]
        if not kinds.are_rows and not _best(found, separation).is_at_least(separation):

            def as_growth(split: Split) -> Split:
                return _grown(sight, kinds, judge(split))

            # A label that is too large holds what it grew by, even if the event is hardly less of the rest.
            found.append(search(space, [], _starts(space), judge=as_growth))
    return _best(found, separation)


def _grown(sight: Sight, kinds: Kinds, split: Split) -> Split:
    """Return a split as one of relabelled samples, if the label grew by one of its clusters, that as the first.

    Of two halves it may have grown by either; it did by the one that fewer samples outside are like (decision 0047).
    """
    first, second = (sight.indices[side.numpy()] for side in (split.is_first, ~split.is_first))
    if split.apartness < GROWN or not kinds.is_surplus(first):
        return split
    if kinds.is_surplus(second) and sight.share_elsewhere(second)[0] < sight.share_elsewhere(first)[0]:
        split = split.flipped()
    return replace(split, diversity=split.apartness / GROWN)


def _unless_broad(sight: Sight, split: Split, separation: float) -> Split:
    """Return a split by diversity, or as if that had not been asked: if its first cluster is merely broad by nature.

    A label may be, and is broader still beside samples of one other kind that were planted in it. Those are fewer, the
    event is clearly of them, and no trigger tells the others from samples outside.
    """
    by_event = replace(split.flipped(), diversity=0.0)
    first = sight.indices[split.is_first.numpy()]
    is_larger = len(first) > MORE_THAN_HALF * len(sight.indices)
    if is_larger and by_event.is_at_least(separation) and sight.told_from_others(first) < ONE_KIND:
        return by_event
    return split


def _is_through(sight: Sight, split: Split) -> bool:
    """Whether a split goes through samples that were relabelled: both clusters hold some, neither holds them all."""
    less, more = sorted(sight.origins.spread(side) for side in (split.is_first, ~split.is_first))
    return less >= THROUGH and more - less < 1


def _best(splits: Sequence[Split], separation: float) -> Split:
    """Return the strongest of the splits that are two kinds, or of all if none are."""
    return max(splits, key=lambda split: (split.is_at_least(separation), split.strength))


def two_parts(
    sight: Sight,
    least: int,
    promising: float,
    accepts: Callable[[Split], bool] = lambda split: False,
    space: Space | None = None,
) -> Split:
    """Return the best split of a cluster into parts, whichever the event is of; a separation of 0 if there is none.

    Source classes draw poison farther apart than one of several triggers may; but those are in samples outside as well,
    so it is looked for where samples outside vary least.

    Args:
        sight: of the cluster.
        least: samples of each part.
        promising: standard deviations that a first find must lie apart to be followed up.
        accepts: says which splits come before all others.
        space: coordinates of the cluster to look in; None for what it leans on.
    """
    space = space or sight.contrasted or sight.leaning
    return _parts(sight, space, least, promising, [*few_directions(space)], accepts)


def two_parts_at_input(sight: Sight, least: int, promising: float) -> Split:
    """Return the best split by what they agree on with the event where it first is not pooled; see two_parts.

    A trigger is the same there in all that carry it, and in no other sample.
    """
    space = sight.agreements[0]
    return _parts(sight, space, least, promising, _starts(space))


def two_parts_by_origin(sight: Sight, label: Sight, least: int, promising: float, enough: float) -> Split:
    """Return the best split that samples lead to which are of no other label, beside relabelled ones.

    Those lie nearest to the rest of their label, along what tells other labels apart.

    Args:
        sight: of the cluster.
        label: sight of the label that it is a part of; one layer at least must tell other labels apart.
        least: samples of each part.
        promising: standard deviations that a first find must lie apart to be followed up.
        enough: standard deviations apart that make parts, which come before all others, however few they are.
    """
    is_in = torch.from_numpy(np.isin(label.indices, sight.indices))
    nearness = [ranking[is_in] for ranking in label.origins.nearness(~is_in)]
    space = sight.leaning
    return _parts(sight, space, least, promising, [], lambda split: split.apartness >= enough, nearness)


def glance_at_parts(sight: Sight, least: int, promising: float) -> Split:
    """Return the best split that a few leading directions show, from fewer starts; for the arguments see two_parts."""
    space = Space(sight.leaning.x[:, -LEADING:])
    return _parts(sight, space, least, promising, [*guesses(space)])


def _starts(space: Space) -> list[Tensor]:
    """Return what k-means and a few leading directions suggest."""
    return [*guesses(space), *few_directions(space)]


def _parts(
    sight: Sight,
    space: Space,
    least: int,
    promising: float,
    starts: Sequence[Tensor],
    accepts: Callable[[Split], bool] = lambda split: False,
    rankings: Sequence[Tensor] = (),
) -> Split:
    # Which of them the event is of is for the unlearning to say, not for the likeness.
    return search(
        *(space, rankings or [sight.seen.leaning.likeness], starts),
        judge=lambda split: split if split.n_smaller >= least else replace(split, separation=0.0),
        accepts=accepts,
        smallest=least // 2,
        promising=promising,
        max_rounds=ROUNDS_OF_PARTS,
    )


def relabelled_elsewhere(features: Features, event: int, kinds: Kinds, separation: float) -> float:
    """Return how diverse a kind the same search finds in labels that the event was not given, if it finds one there.

    Who plants relabels for one label; wrong labels are in all of them. Asked are the labels nearest in size; the second
    one counts. 0 if there are too few.

    Returns:
        at least 1 if two others hold samples that were relabelled; the search ends there.
    """
    labels, label = features.labels.numpy(), int(features.event_logits[event].argmax())
    highest = [0.0] * N_REACHED
    for other in kinds.nearest(label)[:N_OTHERS]:
        sight = Sight(features, event, np.flatnonzero(labels == other))
        split = two_kinds(sight, kinds, separation, is_whole_label=True)
        diversity = split.diversity if split.is_at_least(separation) else 0.0
        highest = sorted([*highest, diversity])[-N_REACHED:]
        if highest[0] >= 1:
            break
    return highest[0]
