"""What speaks against an accusation: that it is of what is ordinary.

A search for two kinds finds some in natural labels now and then (decisions 0022, 0025, 0028 to 0030, 0040 to 0045,
0047 and 0050).
"""

from functools import cached_property
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
GATHERED = 0.2  # of all that lie near: wrong labels come to 0, lying scattered among samples of the label they are of
AS_COMMON = 5.0  # times as common in the median other label as in its own: who plants in all plants as much in each
LITTLE_HARM = 0.25  # of the harm that lets a suspect go; what was taken from another label does hardly any to its own
# The margin of an accusation that rests on samples having been relabelled and nothing else: where half of the labels
# hold samples like them, or most of the samples barely are of many labels; and where some labels hold such.
SURE_OF_LABELS, CLEAR_OF_LABELS = 1.2, 1.1
BARELY = 0.5  # of what relabelled samples are spread, by most of them: natural kinds come to 0.39, in broad labels more

# How strongly something speaks against an accusation, the reason, and figures of it.
Answer = tuple[float, str, dict[str, float]]


def contradicted(context: Context, suspect: Suspect, margin: float) -> Answer:
    """Return how strongly what is ordinary contradicts an accusation, the reason for it, and figures.

    At least 1 lets the suspect go (decisions 0022, 0028 to 0030, 0032, 0044, 0045, 0047, 0050 and 0052). The first
    question that has an answer decides.
    """
    accused = _Accused(context, suspect, margin)
    with context.clock.stage("clustering"):
        for question in (_looks_like_its_label, _is_one_scene, _is_certain, _was_put_in, _has_wrong_labels):
            if answer := question(accused):
                return answer
        return _is_ordinary(accused)


class _Accused:
    """A cluster that is accused, and what several questions ask of it; nothing is worked out before it is asked for."""

    def __init__(self, context: Context, suspect: Suspect, margin: float) -> None:
        self.context, self.suspect, self.margin = context, suspect, margin
        self.cluster, self.sight = suspect.cluster, context.sight
        self.share = len(suspect.cluster) / len(context.own)
        self.is_doubtful = margin < DOUBTFUL or self.share > NEARLY_HALF
        self.is_few = self.share < MORE_THAN_A_FILM

    @property
    def rests_on_labels(self) -> bool:
        """Whether it is accused for having been relabelled, and for nothing else without a doubt."""
        split = self.suspect.split
        return split is not None and split.diversity >= 1 and (self.is_doubtful or split.gap < 1)

    @cached_property
    def at_home(self) -> float:
        """How many of it look like their label; where the rest is poison as well, that is no home."""
        return 0.0 if self.share > 1 / 2 or self.suspect.is_part else self.sight.at_home(self.cluster)

    @property
    def is_at_home(self) -> bool:
        """Whether it looks like its label."""
        return self.at_home >= AT_HOME

    @cached_property
    def variety(self) -> float:
        """How much its images differ; a large cluster, and rows, are no film."""
        return self.sight.variety(self.cluster) if self.is_few and not self.context.kinds.are_rows else inf

    @cached_property
    def _elsewhere(self) -> tuple[float, float]:
        return self.sight.share_elsewhere(self.cluster)

    @property
    def elsewhere(self) -> float:
        """How many of all other samples are like it, as a share."""
        return self._elsewhere[0]

    @property
    def usual(self) -> float:
        """The same of the median other label."""
        return self._elsewhere[1]

    @cached_property
    def is_rarer(self) -> bool:
        """Whether other labels hold less of it than its own does.

        Whatever natural kinds of several labels have in common, a trigger tells them apart where the network begins.
        """
        is_rarer = self.suspect.is_part or self.usual < self.share
        return is_rarer or self.sight.told_from_others(self.cluster, are_alike=True) >= TWO_KINDS

    @cached_property
    def is_broad(self) -> bool:
        """Whether its label is broad by nature, and the accusation doubtful: then its kinds may differ as much."""
        return self.is_doubtful and not self.suspect.is_part and _is_broad(self.context, self.suspect)

    @cached_property
    def diversity(self) -> float:
        """How much more diverse it is than the rest of its label; of a part the rest is poison."""
        diversity = (self.sight.spread if self.suspect.is_part else self.sight.diversity)(self.cluster)
        return min(diversity, 0.0) if self.is_broad else diversity

    @property
    def figures(self) -> dict[str, float]:
        """What the report says of any accusation that took questions."""
        return {"elsewhere": self.elsewhere, "usual": self.usual, "diversity": self.diversity}


def _looks_like_its_label(accused: _Accused) -> Answer | None:
    """Ask whether what should have been relabelled looks like the label that it has."""
    if not (accused.rests_on_labels and accused.is_at_home):
        return None
    return accused.at_home / AT_HOME, "they look like their label, as nothing does that was relabelled", {}


def _is_one_scene(accused: _Accused) -> Answer | None:
    """Ask whether a few images are of one scene; copies that were planted look like no label."""
    variety = accused.variety
    if not (variety < ONE_SCENE and (accused.is_doubtful or accused.is_at_home)):
        return None
    return ONE_SCENE / max(variety, TINY), "they are nearly copies of one another", {"variety": variety}


def _is_certain(accused: _Accused) -> Answer | None:
    """Ask nothing more of an accusation without a doubt, if other labels hold less of it."""
    return (0.0, "", {}) if not accused.is_doubtful and accused.is_rarer else None


def _was_put_in(accused: _Accused) -> Answer | None:
    """Ask what tells doubtful images from those of other labels: so clearly, pixel by pixel, it was put into them."""
    if not accused.is_doubtful or accused.is_at_home or accused.variety < SEVERAL_SCENES:
        return None
    in_pixels = accused.sight.told_in_pixels(accused.cluster)
    return (0.0, "", {"in_pixels": in_pixels}) if in_pixels >= PUT_IN else None


def _has_wrong_labels(accused: _Accused) -> Answer | None:
    """Ask of what was relabelled, which hardly any natural kind is, whether other labels hold such samples as well."""
    context, figures = accused.context, accused.figures
    may_be_taken = accused.share < NEARLY_HALF and accused.usual < AS_COMMON * accused.share
    if accused.diversity < 1 and may_be_taken and (taken := _taken(context, accused.suspect)):
        figures["taken"] = taken
    elif accused.diversity < 1:
        return None
    is_alike = accused.usual >= ELSEWHERE
    is_barely = "taken" not in figures and accused.sight.spread_of_most(accused.cluster) < BARELY
    enough = SURE_OF_LABELS if is_alike or is_barely else CLEAR_OF_LABELS
    is_doubted = is_alike or (accused.margin < enough and (accused.elsewhere > HARDLY or is_barely))
    against, more = _as_wrong_labels(context, accused.suspect, accused.margin / enough) if is_doubted else (0.0, {})
    return against, "wrong labels: other labels hold relabelled samples as well", figures | more


def _is_ordinary(accused: _Accused) -> Answer:
    """Ask of what was not clearly relabelled whether it is of a natural kind; the strongest reason counts."""
    context, suspect, share, figures = accused.context, accused.suspect, accused.share, accused.figures
    reasons = {}
    if not accused.is_rarer:
        reasons["it is as common in labels that the event was not given"] = accused.usual / share
    if share > NEARLY_HALF:
        # Samples that were relabelled are like those of the labels they are from.
        limit = EVERYWHERE if share <= MOST else ELSEWHERE + (EVERYWHERE - ELSEWHERE) * max(0.0, accused.diversity)
        reasons["most samples of other labels are of this kind"] = accused.elsewhere / limit
    is_doubtful, told = accused.is_doubtful, _seen_early(accused)
    if told is not None:
        figures["told"] = told
        enough = TWO_KINDS if accused.is_few else ONE_KIND  # a few always look further apart than many
        is_doubtful = told < enough and (accused.is_few or accused.diversity < SOME_SIGN)
    if is_doubtful:
        reasons["ordinary samples of the label suffer with the event"] = suspect.harm()
    # Natural kinds lie as far apart as that in any label, and some are nearly as broad as that (decisions 0044, 0050).
    enough = SURE_OF_LABELS if accused.diversity >= SOME_SIGN else DOUBTFUL
    knows_labels, has_grown = bool(accused.sight.origins.rankings), context.kinds.is_surplus(suspect.cluster)
    if is_doubtful and accused.margin < enough and not has_grown and knows_labels:
        reasons["nothing shows clearly that anyone planted them"] = enough / max(accused.margin, TINY)
    if share > MOST:
        # What is left of a label that was planted in is what it holds by nature, hardly less than any other label does.
        left = LEFT * context.kinds.smallest_beside(suspect.cluster) / max(1, len(context.own) - len(suspect.cluster))
        reasons["hardly a sample of the label would be left"] = left
    reason, against = max(reasons.items(), key=itemgetter(1), default=("", 0.0))
    return against, reason, figures


def _seen_early(accused: _Accused) -> float | None:
    """Return how far apart from all others what hardly another sample has lies where the network begins.

    That is a trigger if it is seen there, on samples of whatever label, or shows where it was taken from: natural kinds
    that are as broad are in other labels as well. None where that says nothing.
    """
    if not (accused.is_doubtful and accused.is_rarer) or accused.is_broad or accused.context.kinds.are_rows:
        return None
    if accused.elsewhere > HARDLY or accused.variety < SEVERAL_SCENES or accused.is_at_home:
        return None
    return accused.sight.told_from_others(accused.cluster)


def _is_broad(context: Context, suspect: Suspect) -> bool:
    """Whether most of the rest of the label is of many labels as well: then its natural kinds are."""
    return context.sight.spread_of_most(np.setdiff1d(context.own, suspect.cluster)) >= BARELY


def _taken(context: Context, suspect: Suspect) -> float:
    """Return how clearly a suspect was taken from one other label; 0 if not so.

    Not so either if nothing marks it among samples of that label, and it does not lie together there, as wrong labels
    do not; or if ordinary samples of its own suffer with it.
    """
    sight, cluster = context.sight, suspect.cluster
    if suspect.harm() > LITTLE_HARM:
        return 0.0
    others, share = sight.taken_from(cluster)
    if share < TAKEN:
        return 0.0
    return share if sight.told(cluster, others) >= MARKED or sight.gathered(cluster, others) >= GATHERED else 0.0


def _as_wrong_labels(context: Context, suspect: Suspect, clearness: float) -> tuple[float, dict[str, float]]:
    """Return how strongly it contradicts an accusation of relabelled samples that every label holds such, and figures.

    Along what tells relabelled samples from their label others may be like them by being of other labels, as they were.
    A trigger tells them from those, where the network begins; else who plants them does so in one label, and the
    conditions of the accusation must be met clearly: ``clearness`` is the margin over what that takes.
    """
    told = context.sight.told_from_others(suspect.cluster)
    if told >= ONE_KIND:
        return 0.0, {"told": told}
    relabelled = relabelled_elsewhere(context.features, context.event, context.kinds, context.config.separation)
    return max(relabelled, 1 / max(clearness, TINY)), {"told": told, "relabelled": relabelled}
