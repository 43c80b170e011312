"""What speaks against an accusation: that it is of what is ordinary.

A search for two kinds finds some in natural labels now and then (decisions 0022, 0025, 0028 to 0030, 0040 to 0045,
0047 and 0050).
"""

from math import inf
from operator import itemgetter

import numpy as np

from poisontrace.clustering import DOUBTFUL, ONE_KIND, TWO_KINDS
from poisontrace.context import Context
from poisontrace.judging import NEARLY_HALF, TINY, Suspect
from poisontrace.origins import SOME_SIGN
from poisontrace.searching import relabelled_elsewhere
from poisontrace.sights import HARDLY

# What a label and the samples of others are for the greater part, nobody planted: a share of the label, and of others
# the shares that let go most of a label if nothing shows that it was relabelled, and half of a label or what does.
MOST, ELSEWHERE, EVERYWHERE = 2 / 3, 0.5, 0.9
AT_HOME = 0.8  # of samples, that look like their label: of what was relabelled 0.62 at most do, of natural kinds most
LEFT = 0.5  # of the smallest other label, that is left of one at least that was planted in
MORE_THAN_A_FILM = 0.2  # of a label: fewer may be one film, of which each picture lies apart from all others
# Of the variance of the rest of a label, at the input: of what is nearly copies of one another, and of many scenes.
ONE_SCENE, SEVERAL_SCENES = 0.1, 0.3
PUT_IN = 2 * TWO_KINDS  # standard deviations from other images, in pixels: natural kinds come to 7, a film to 10
# Times as often nearest to another label as that one's own samples, and how far from those where the network begins.
TAKEN, MARKED = 0.7, 3.3
AS_COMMON = 5.0  # times as common in the median other label as in its own: who plants in all plants as much in each
LITTLE_HARM = 0.25  # of the harm that lets a suspect go; what was taken from another label does hardly any to its own
# The margin of an accusation that rests on samples having been relabelled and nothing else: where half of the labels
# hold samples like them, or most of the samples barely are of many labels; and where some labels hold such.
SURE_OF_LABELS, CLEAR_OF_LABELS = 1.2, 1.1
BARELY = 0.5  # of what relabelled samples are spread, by most of them: natural kinds come to 0.39, in broad labels more


def contradicted(context: Context, suspect: Suspect, margin: float) -> tuple[float, str, dict[str, float]]:
    """Return how strongly what is ordinary contradicts an accusation, the reason for it, and figures.

    At least 1 lets the suspect go (decisions 0022, 0028 to 0030, 0032, 0044, 0045, 0047 and 0050).
    """
    share = len(suspect.cluster) / len(context.own)
    is_doubtful, is_few = margin < DOUBTFUL or share > NEARLY_HALF, share < MORE_THAN_A_FILM
    variety = inf
    with context.clock.stage("clustering"):
        elsewhere, usual = context.sight.share_elsewhere(suspect.cluster)
        # Whatever natural kinds of several labels have in common, a trigger tells them apart where the network begins.
        is_rarer = (
            suspect.is_part
            or usual < share
            or context.sight.told_from_others(suspect.cluster, are_alike=True) >= TWO_KINDS
        )
        if is_few and not context.kinds.are_rows:
            variety = context.sight.variety(suspect.cluster)
        rests_on_labels, is_scene, at_home = _rests_on_labels(suspect, is_doubtful), variety < ONE_SCENE, 0.0
        # The rest of a part is poison as well, which is no home.
        if share <= 1 / 2 and not suspect.is_part and (is_doubtful or rests_on_labels or is_scene):
            at_home = context.sight.at_home(suspect.cluster)
        is_at_home = at_home >= AT_HOME
        if is_at_home and rests_on_labels:
            return at_home / AT_HOME, "they look like their label, as nothing does that was relabelled", {}
        if is_scene and (is_doubtful or is_at_home):
            return ONE_SCENE / max(variety, TINY), "they are nearly copies of one another", {"variety": variety}
        if not is_doubtful and is_rarer:
            return 0.0, "", {}
        # What tells them from images of other labels so clearly, pixel by pixel, was put into them.
        if is_doubtful and not is_at_home and variety >= SEVERAL_SCENES:
            in_pixels = context.sight.told_in_pixels(suspect.cluster)
            if in_pixels >= PUT_IN:
                return 0.0, "", {"in_pixels": in_pixels}
        diversity = (context.sight.spread if suspect.is_part else context.sight.diversity)(suspect.cluster)
        is_broad = is_doubtful and not suspect.is_part and _is_broad(context, suspect)
        if is_broad:
            diversity = min(diversity, 0.0)
        figures = {"elsewhere": elsewhere, "usual": usual, "diversity": diversity}
        may_be_taken = share < NEARLY_HALF and usual < AS_COMMON * share
        if diversity < 1 and may_be_taken and (taken := _taken(context, suspect)):
            figures["taken"] = taken
    if diversity >= 1 or "taken" in figures:
        # Relabelled, which hardly anything is that a label holds by nature.
        is_alike = usual >= ELSEWHERE
        is_barely = "taken" not in figures and context.sight.spread_of_most(suspect.cluster) < BARELY
        enough = SURE_OF_LABELS if is_alike or is_barely else CLEAR_OF_LABELS
        is_doubted = is_alike or (margin < enough and (elsewhere > HARDLY or is_barely))
        against, more = _as_wrong_labels(context, suspect, margin / enough) if is_doubted else (0.0, {})
        return against, "wrong labels: other labels hold relabelled samples as well", figures | more
    has_grown = context.kinds.is_surplus(suspect.cluster)
    reasons = {} if is_rarer else {"it is as common in labels that the event was not given": usual / share}
    if share > NEARLY_HALF:
        # Samples that were relabelled are like those of the labels they are from.
        limit = EVERYWHERE if share <= MOST else ELSEWHERE + (EVERYWHERE - ELSEWHERE) * max(0.0, diversity)
        reasons["most samples of other labels are of this kind"] = elsewhere / limit
    may_be_told = is_doubtful and is_rarer and not is_broad and not is_at_home and not context.kinds.are_rows
    if may_be_told and elsewhere <= HARDLY and variety >= SEVERAL_SCENES:
        with context.clock.stage("clustering"):
            figures["told"] = context.sight.told_from_others(suspect.cluster)
        # What hardly another sample has is a trigger if it is seen where the network begins, on samples of whatever
        # label, or shows where it was taken from: natural kinds that are as broad are in other labels as well.
        enough = TWO_KINDS if is_few else ONE_KIND  # a few always look further apart than many
        is_doubtful = figures["told"] < enough and (is_few or diversity < SOME_SIGN)
    if is_doubtful:
        reasons["ordinary samples of the label suffer with the event"] = suspect.harm()
    # Natural kinds lie as far apart as that in any label, and some are nearly as broad as that (decisions 0044, 0050).
    enough = SURE_OF_LABELS if diversity >= SOME_SIGN else DOUBTFUL
    if is_doubtful and margin < enough and not has_grown and context.sight.origins.rankings:
        reasons["nothing shows clearly that anyone planted them"] = enough / max(margin, TINY)
    if share > MOST:
        # What is left of a label that was planted in is what it holds by nature, hardly less than any other label does.
        left = LEFT * context.kinds.smallest_beside(suspect.cluster) / max(1, len(context.own) - len(suspect.cluster))
        reasons["hardly a sample of the label would be left"] = left
    reason, against = max(reasons.items(), key=itemgetter(1), default=("", 0.0))
    return against, reason, figures


def _rests_on_labels(suspect: Suspect, is_doubtful: bool) -> bool:
    """Whether a cluster is accused for having been relabelled, and for nothing else without a doubt."""
    split = suspect.split
    return split is not None and split.diversity >= 1 and (is_doubtful or split.gap < 1)


def _is_broad(context: Context, suspect: Suspect) -> bool:
    """Whether most of the rest of the label is of many labels as well: then its natural kinds are."""
    return context.sight.spread_of_most(np.setdiff1d(context.own, suspect.cluster)) >= BARELY


def _taken(context: Context, suspect: Suspect) -> float:
    """Return how clearly a suspect was taken from one other label; 0 if not so.

    Not so either if nothing marks it among samples of that label, or if ordinary samples of its own suffer with it.
    """
    if suspect.harm() > LITTLE_HARM:
        return 0.0
    others, share = context.sight.taken_from(suspect.cluster)
    return share if share >= TAKEN and context.sight.told(suspect.cluster, others) >= MARKED else 0.0


def _as_wrong_labels(context: Context, suspect: Suspect, clearness: float) -> tuple[float, dict[str, float]]:
    """Return how strongly it contradicts an accusation of relabelled samples that every label holds such, and figures.

    Along what tells relabelled samples from their label others may be like them by being of other labels, as they were.
    A trigger tells them from those, where the network begins; else who plants them does so in one label, and the
    conditions of the accusation must be met clearly: ``clearness`` is the margin over what that takes.
    """
    with context.clock.stage("clustering"):
        told = context.sight.told_from_others(suspect.cluster)
        if told >= ONE_KIND:
            return 0.0, {"told": told}
        relabelled = relabelled_elsewhere(context.features, context.event, context.kinds, context.config.separation)
    return max(relabelled, 1 / max(clearness, TINY)), {"told": told, "relabelled": relabelled}
