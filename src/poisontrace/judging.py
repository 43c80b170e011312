"""What unlearning says of a cluster: what becomes of the event and of its controls, and whether that accuses it.

Paper: section 4.3. An accusation here takes more than a rise of the event's loss: ordinary samples of the label are
spared, the other kind moves the event less, and the two kinds lie apart (decisions 0004, 0006, 0008, 0022).
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import log

import numpy as np
import torch
from torch import Tensor

from poisontrace._errors import InvalidInputError
from poisontrace._record import Clock, Indices, evenly
from poisontrace._rng import numpy_generator
from poisontrace._types import Decision, Losses
from poisontrace.clustering import ONE_KIND, TWO_KINDS, Split
from poisontrace.notes import Notes
from poisontrace.sights import Sight
from poisontrace.spaces import N_FOLDS
from poisontrace.unlearning import Heads, unlearn

# Times the rise of the other side: to be clear, and to accuse.
CLEARLY, LEANS = 10, 1.5
# An accusation must spare ordinary samples: their loss may rise by this share of the event's, or by so little, in nats,
# that it says nothing (decision 0022).
HARM, HARMLESS = 0.04, 0.02
NEARLY_HALF = 0.45  # of some samples: more are as good as half of them
TINY = 1e-9
# Random sets of other samples, as many, that say what chance comes to.
N_BY_CHANCE = 4
ROWS_OF_LABELS = 500  # that stand for whole labels: their effect is large, and nothing hangs on its size
FAMILY = 0.4  # standard deviations from others, mark apart: a kind of its own, not rows picked to carry a mark


def is_minority(n: int, n_others: int) -> bool:
    """Whether so many samples are clearly fewer than the others: of two halves neither is."""
    return n < NEARLY_HALF * (n + n_others)


@dataclass(frozen=True, kw_only=True)
class Config:
    """The thresholds that may be set; all are our choice, see decisions 0003, 0004, 0006 to 0008 and 0012.

    Attributes:
        separation: two clusters are two kinds of samples if their means lie this many standard deviations apart, less
            where the gap in likeness is wide.
        weak_separation: from here on a split is worth mentioning, but not enough to accuse.
        event_rise: a cluster is innocent if unlearning it raises the event's loss by less than this, in nats.
        faint_rise: a rise as small as this, in nats, counts as well if it is ten times what the sibling does: an event
            of which the model is very sure moves little.
        control_share: a cluster is responsible if unlearning it raises the controls' loss by at most this share of
            log(k), the loss of knowing nothing about them.
        min_cluster: fewer samples are not split further.
        paper_rise: the released threshold, in nats; only for ``rule="paper"``.
        max_depth: levels of the tree.
    """

    separation: float = TWO_KINDS
    weak_separation: float = ONE_KIND
    event_rise: float = 0.05
    faint_rise: float = 0.01
    control_share: float = 0.1
    min_cluster: int = 20
    paper_rise: float = 0.01
    max_depth: int = 20

    def __post_init__(self) -> None:
        """Refuse clusters too small to be told apart, and thresholds that everything is beyond."""
        if self.min_cluster < 2 * N_FOLDS:
            raise InvalidInputError(f"'min_cluster' must be at least {2 * N_FOLDS} (got {self.min_cluster}).")
        for name in ("separation", "event_rise", "faint_rise"):
            if not getattr(self, name) > 0:
                raise InvalidInputError(f"'{name}' must be above 0 (got {getattr(self, name)}). Leave it out.")

    def spared(self, n_classes: int) -> float:
        """Return by how much the loss of controls may rise, in nats."""
        return self.control_share * log(n_classes)


@dataclass(frozen=True)
class Suspect:
    """A cluster to be judged, with what unlearning it did, and its sibling, and the split that they come from.

    ``is_across`` says that the event's own trigger told it from others, across the parts that further triggers make.
    """

    parent: int
    cluster: Indices
    losses: Losses
    sibling: Losses
    n_sibling: int
    split: Split | None = None
    is_across: bool = False

    def margin(self, config: Config, spared: float, beyond: float = 0.0) -> float:
        """Return how well the conditions of an accusation are met, the least of them counts: at least 1 accuses.

        Args:
            config: the thresholds.
            spared: by how much the loss of controls may rise.
            beyond: standard deviations from others, mark apart.
        """
        rise, of_sibling = self.losses.event_rise, max(self.sibling.event_rise, TINY)
        is_moved = max(rise / config.event_rise, min(rise / config.faint_rise, rise / (CLEARLY * of_sibling)))
        leans = max(rise / of_sibling / LEANS, rise / of_sibling * self.n_sibling / len(self.cluster) / CLEARLY)
        spares, is_marked = spared / max(self.losses.control_rise, TINY), FAMILY / max(beyond, TINY)
        return max(0.0, min(self.split_margin(config), is_moved, leans, spares, is_marked))

    def split_margin(self, config: Config) -> float:
        """Return the margin of the split which set the cluster apart; 1 if it is a whole label."""
        return self.split.margin(config.separation) if self.split else 1.0

    @property
    def apartness(self) -> float:
        """That of the split; 0 if the cluster is a whole label."""
        return self.split.apartness if self.split else 0.0

    @property
    def is_part(self) -> bool:
        """Whether it is a part only of what its split set apart."""
        if self.split is None:
            return False
        n_smaller, n = self.split.n_smaller, len(self.split.is_first)
        return len(self.cluster) not in (n_smaller, n - n_smaller)

    def harm(self) -> float:
        """Return what unlearning does to controls, over the most that it may beside what it does to the event."""
        return self.losses.control_rise / max(HARMLESS, HARM * self.losses.event_rise)

    def is_far(self, config: Config) -> bool:
        """Whether the cluster is clearly the smaller one of two that lie very far apart."""
        is_smaller, split = is_minority(len(self.cluster), self.n_sibling), self.split
        return is_smaller and split is not None and self.split_margin(config) >= 1 and split.is_far(config.separation)

    def judge(self, config: Config, spared: float) -> tuple[Decision, str] | None:
        """Return what the test of unlearning says of the cluster, and why; None if it is guilty but not pure.

        Args:
            config: the thresholds.
            spared: by how much the loss of controls may rise.
        """
        rise, rise_of_sibling = self.losses.event_rise, self.sibling.event_rise
        is_faint = rise >= config.faint_rise and rise >= CLEARLY * rise_of_sibling
        if rise < config.event_rise and not is_faint:
            return "pruned", "unlearning it leaves the event as it is"
        if self.losses.control_rise > spared:
            if self.sibling.control_rise <= spared and rise < rise_of_sibling:
                return "pruned", "ordinary samples; the event leans on the other kind"
            return None
        # Pure: no ordinary sample suffers. Poison from several source classes would split further, to no end.
        per_sample, per_sibling = rise / len(self.cluster), rise_of_sibling / max(1, self.n_sibling)
        if rise >= LEANS * rise_of_sibling or per_sample >= CLEARLY * per_sibling:
            return "responsible", "unlearning it undoes the event and spares ordinary samples"
        return "pruned", "the event leans as much on the other kind"


class Judge:
    """Unlearns clusters and measures what becomes of one event and of its controls."""

    def __init__(self, label: Sight, clock: Clock) -> None:
        """Start with controls from what the event sees of its label."""
        self._label, self._clock, self._features = label, clock, label.features
        logits = self._features.event_logits[label.event]
        self._event = self._features.event_activations[-1][label.event][None], logits.argmax()[None]
        self.take_controls(label.indices)

    def take_controls(self, cluster: Indices) -> None:
        """Choose the controls from a cluster: samples labelled and predicted as the event, the eighth least like it.

        If there are none in it they are of the whole label.
        """
        features, label = self._features, self._label

        def is_answered(some: Indices) -> Tensor:
            return features.logits[torch.from_numpy(some)].argmax(1) == self._event[1]

        is_ordinary = is_answered(cluster)
        if not is_ordinary.any():  # without controls nobody would suffer
            cluster, is_ordinary = label.indices, is_answered(label.indices)
        ordinary = cluster[is_ordinary.numpy()]
        if len(ordinary) > 4:
            with self._clock.stage("clustering"):
                sight = label if cluster is label.indices else Sight(features, label.event, cluster)
                likeness = sight.seen.leaning.likeness[is_ordinary]
            n_controls = max(4, len(ordinary) // 8)  # few enough to be benign where most of a label is poison
            ordinary = ordinary[likeness.argsort()[:n_controls].sort().values.numpy()]
        rows = torch.from_numpy(evenly(ordinary, 500))
        self._controls = features.hidden[rows], features.labels[rows]

    def whole_label(self, others: Indices, notes: Notes) -> list[Losses]:
        """Unlearn all samples of the label, and all others; what that takes is written down for later events of it."""
        about, (k, d) = str(int(self._event[1])).encode(), self._features.weight.shape
        single = np.dtype(np.float32)
        if known := notes.known("heads", about, {"weight": ((3, k, d), single), "bias": ((3, k), single)}):
            heads = Heads(torch.from_numpy(known["weight"]), torch.from_numpy(known["bias"]))
        else:
            heads = self._unlearn(self._label.indices, others, max_rows=ROWS_OF_LABELS)
            notes.keep("heads", about, {"weight": heads.weight.numpy(), "bias": heads.bias.numpy()})
        return self._losses(heads)

    def losses(self, *clusters: Indices) -> list[Losses]:
        """Unlearn each cluster; the comparison is the same layer refitted with nothing to forget."""
        return self._losses(self._unlearn(*clusters))

    def beside_chance(self, cluster: Indices) -> tuple[Losses, list[Losses]]:
        """Unlearn a cluster and, one by one, random other samples of its label, as many; take controls from those.

        Returns:
            the losses of the cluster, and of each of the random sets.
        """
        rest = np.setdiff1d(self._label.indices, cluster)
        self.take_controls(rest)
        size = min(len(cluster), len(rest) // N_BY_CHANCE)
        drawn = numpy_generator(0, "unlearning/chance").permutation(rest)[: size * N_BY_CHANCE]
        sets = [np.sort(part) for part in drawn.reshape(N_BY_CHANCE, size)]
        # The rest is unlearned as well, so that it is represented as well as when the cluster was compared with it.
        of_cluster, _, *of_sets = self.losses(cluster, rest, *sets)
        return of_cluster, of_sets

    def compare(self, first: Indices, second: Indices, standing: Callable[[], float]) -> list[Losses]:
        """Unlearn two kinds; controls are taken from the one that the event needs less.

        If that is the smaller one, they are taken from the larger one all the same, unless the difference is clear or
        the kinds stand out: ordinary samples are most of a label as long as nothing speaks against it.

        Args:
            first: training samples of one label.
            second: others of the same label.
            standing: works out how far the two stand out against other labels, above 1 if they do.
        """
        heads = self._unlearn(first, second)
        with self._clock.stage("unlearning"):
            before, *after = heads.losses(*self._event)[:, 0].tolist()
        (less, other), (more, needed) = sorted(
            zip((loss - before for loss in after), (first, second), strict=True), key=lambda side: side[0]
        )
        if is_minority(len(other), len(needed)) and more < CLEARLY * less:
            with self._clock.stage("clustering"):
                if more < LEANS * less or standing() <= 1:
                    other = needed
        self.take_controls(other)
        return self._losses(heads)

    def _unlearn(self, *clusters: Indices, max_rows: int | None = None) -> Heads:
        with self._clock.stage("unlearning"):
            f = self._features
            layer, nobody = (f.hidden, f.labels, f.weight, f.bias), np.array([], np.int64)
            return unlearn(*layer, (nobody, *clusters), memory=f.memory, max_rows=max_rows, ranks=f.ranks)

    def _losses(self, heads: Heads) -> list[Losses]:
        with self._clock.stage("unlearning"):
            events = heads.losses(*self._event)[:, 0].tolist()
            controls = heads.losses(*self._controls).quantile(0.5, dim=1).tolist() if len(self._controls[1]) else []
            before, *after = zip(events, controls or [0.0] * len(events), strict=True)
            return [Losses(before[0], event, before[1], control) for event, control in after]
