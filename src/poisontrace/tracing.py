"""The main path: one forward pass, then cluster, test by unlearning, prune the innocent, recurse into the guilty.

Read this file first, then ``embedding``, ``scoring``, ``clustering`` and ``unlearning`` in the order they are called.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import log
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from poisontrace import embedding, paper, unlearning
from poisontrace._blocks import MEMORY
from poisontrace._errors import InvalidInputError
from poisontrace._record import Clock, Indices, Tree
from poisontrace._rng import numpy_generator
from poisontrace._types import Campaign, Coordinates, Decision, Finding, Losses, Trace, Verdict
from poisontrace.calibration import p_poison
from poisontrace.campaigns import Campaigns, settled
from poisontrace.clustering import (
    HINT,
    N_FOLDS,
    ONE_KIND,
    TWO_KINDS,
    Split,
    against_nature,
    posterior,
    search,
    with_gap,
)
from poisontrace.data import TrainSet, as_events, as_train_set
from poisontrace.embedding import PRECISIONS, Features, collect
from poisontrace.kinds import MIN_OTHERS, N_GUESSES, Kinds, guesses
from poisontrace.marks import Mark, Marks
from poisontrace.notes import Notes
from poisontrace.ranks import ALONE, Ranks
from poisontrace.scoring import condition
from poisontrace.sights import Sight, Sights
from poisontrace.unlearning import Heads, dismiss, spread, unlearn

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Every threshold of the default rule; all are our choice, see decisions 0003, 0004 and 0006 to 0008.

    Attributes:
        separation: two clusters are two kinds of samples if their means lie this many standard deviations apart, less
            where the gap in likeness is wide.
        weak_separation: from here on a split is worth mentioning, but not enough to accuse.
        event_rise: a cluster is innocent if unlearning it raises the event's loss by less than this, in nats,
        faint_rise: unless it is at least this and ten times what its sibling does: an event of which the model is very
            sure moves little.
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
        """Refuse clusters too small to be told apart."""
        if self.min_cluster < 2 * N_FOLDS:
            raise InvalidInputError(f"'min_cluster' must be at least {2 * N_FOLDS} (got {self.min_cluster}).")


MIN_MEMORY = 1 << 24
RULES = ("default", "paper")
# Times the rise of the other side: to be clear, and to accuse.
CLEARLY, LEANS = 10, 1.5
NEEDED = 0.5  # of an event's margin, from a planted word or a mark
# An accusation with a smaller margin than this must exceed what the same search finds in other labels: so many are
# asked, so many must reach it, and this share of its apartness is as much.
DOUBTFUL, N_NATURAL, N_REACHED, NEARLY = 2.0, 8, 2, 0.9
# It must also spare ordinary samples: their loss may rise by this share of the event's, or by so little, in nats, that
# it says nothing (decision 0022).
HARM, HARMLESS = 0.04, 0.02
# What a label and the samples of others are for the greater part, nobody planted: two shares of the label, and of the
# others the shares that let go what is more than the larger one and accused with doubt, or more than the smaller one.
NEARLY_HALF, MOST, ELSEWHERE, EVERYWHERE = 0.45, 2 / 3, 0.5, 0.9
TINY = 1e-9
FAR = 2.0  # times the separation of two kinds: the features alone nearly say it
WHISPER = 0.002  # nats that the event must rise by even so
# Random sets of other samples, as many, that say what chance comes to, and how many times that is more than chance.
N_BY_CHANCE, BEYOND_CHANCE = 4, 5
ROWS_OF_LABELS = 500  # that stand for whole labels: their effect is large, and nothing hangs on its size
# Of a responsible cluster, to be taken for a campaign of its own, and times the separation of two kinds.
MIN_PART, APART = 0.2, 1.2
N_OF_PARTS = 400  # of its samples, that are looked at first
# Along what tells two campaigns apart: how far four in five of all other samples lie from each other, and how far an
# event lies the way of the other campaign if it carries both triggers.
TOGETHER, OF_BOTH = 0.6, 1 / 3
DOUBTED = 0.1  # certainty below which a sample is let go, though it lies on the responsible side
FAMILY = 0.4  # standard deviations from others, mark apart: a kind of its own, not rows picked to carry a mark
N_SHOWN, MAX_SHOWN, N_BENIGN = 400, 1 << 26, 24  # samples for the report, responsible ones within as many bytes
N_NEAREST, MAX_EVENTS = 6, 12  # responsible samples beside an event, and events that have them


@torch.inference_mode(False)  # the caller may be in it, and gradients do not work there
def trace(
    model: nn.Module,
    train_set: Any,
    events: Sequence[tuple[Any, int]],
    *,
    rule: str = "default",
    layer: str | None = None,
    seed: int = 0,
    device: str = "auto",
    batch_size: int = 256,
    precision: str = "float32",
    config: Config | None = None,
    store: str | Path | None = None,
    memory: int = MEMORY,
    ranks: Ranks = ALONE,
    progress: Progress | None = None,
) -> Trace:
    """Find the training samples that are responsible for misclassifications.

    Paper: sections 4.1 to 4.3. The default rule differs from it in the embedding (several layers, weighted by the
    event), the split (discriminative), the unlearning (converged) and the stop (evidence of purity); ``rule="paper"``
    does not.

    Args:
        model: returns logits (n, k); left as found.
        train_set: anything indexable that yields (x, y) with x as the model takes it, or a pair of arrays.
        events: pairs (x, wrong label that the model gave), x without a batch axis; each is traced on its own.
        rule: "default" or "paper".
        layer: name of the last linear layer; None finds it.
        seed: for the paper's rule and the choice of benign samples shown in the report; the default rule is
            deterministic.
        device: "auto", "cpu", "cuda", ...: where the network runs.
        batch_size: samples a step; does not change the result.
        precision: "float32", "bfloat16" or "float16": of the forward pass, by ``torch.autocast``; events, and all that
            follows the pass, are float32 (decision 0023).
        config: thresholds; None for the defaults.
        store: folder in which the pass is kept, so that the next event on the same model and data needs none, and a
            trace that was cut short goes on where it was; None keeps it no longer than the trace.
        memory: bytes to get along with, beside model, data and one batch.
        ranks: that share the work, see :func:`poisontrace.ranks.joined`; rank 0 traces, the others :func:`assist`.
        progress: called with (stage, done, in all).

    Returns:
        the trace; ``trace.poison`` are the responsible samples of all events together.

    Raises:
        InvalidInputError: if data, events or options break a rule that the message states.
        UnsupportedModelError: if the model has no usable last linear layer.

    Example:
        >>> import numpy as np, torch, poisontrace
        >>> x = np.eye(4, dtype=np.float32)[np.arange(60) % 4]
        >>> model = torch.nn.Linear(4, 4)
        >>> _ = model.load_state_dict({"weight": torch.eye(4), "bias": torch.zeros(4)})
        >>> poisontrace.trace(model, (x, np.arange(60) % 4), [(x[0], 0)]).verdict
        'no-poison'
    """
    check_options(rule, batch_size, memory, precision)
    _check_shared(store, ranks)
    samples, pairs, config = as_train_set(train_set), as_events(events), config or Config()
    device = resolve(device)
    clock = Clock()

    with clock.stage("forward pass"), placed(model, device):
        features = collect(
            *(model, samples, pairs),
            layer=layer,
            device=device,
            batch_size=batch_size,
            precision=precision,
            store=None if store is None else Path(store),
            memory=memory,
            ranks=ranks,
            progress=progress,
        )
    sights, marks = Sights(features), Marks(features, getattr(samples, "name_of", None))
    notes, campaigns = Notes(features.folder, len(samples), repr((rule, seed, config, memory))), Campaigns()
    kinds = Kinds(features, notes, separation=config.separation, min_cluster=config.min_cluster)
    findings: list[Finding] = []
    trees: list[Tree] = []
    for event in range(len(pairs)):
        tree = Tree(event, first_id=sum(len(tree.clusters) for tree in trees))
        x, y = pairs[event]
        about = f"{event if rule == 'paper' else ''} {y} {x.shape}".encode() + x.numpy().tobytes()
        if known := notes.read(about, tree):
            finding, scores = known
        else:
            with _one_thread():
                if rule == "paper":
                    finding, scores = paper.follow(
                        features, tree, clock, seed, rise=config.paper_rise, max_depth=config.max_depth
                    )
                else:
                    finding, scores = _follow(features, tree, sights, kinds, marks, config, clock)
            notes.write(about, tree, finding, scores)
        trees.append(tree)
        findings.append(finding)
        if finding.verdict == "poison":
            campaigns.add(event, finding, scores)
        if progress:
            progress("events traced", event + 1, len(pairs))
    for event, finding in enumerate(findings):
        if finding.verdict != "poison":
            with _one_thread():
                findings[event] = _adopted(features, event, finding, campaigns, config, clock)
    dismiss(ranks)
    clusters = [cluster for tree in trees for cluster in tree.clusters]
    closed, scores = campaigns.closed(), campaigns.scores(len(samples))
    findings = settled(findings, closed)
    poison = np.unique(np.concatenate([finding.poison for finding in findings]))
    verdicts = {finding.verdict for finding in findings}
    verdict: Verdict = next((v for v in ("poison", "inconclusive") if v in verdicts), "no-poison")
    with _one_thread(), clock.stage("clustering"):
        coordinates = [_coordinates(sights, campaign) for campaign in closed] if rule == "default" else []
        nearest = [_nearest(sights, event, found) for event, found in enumerate(findings[:MAX_EVENTS])]
    return Trace(
        verdict=verdict,
        poison=poison,
        scores=scores,
        labels=features.labels.numpy(),
        findings=tuple(findings),
        clusters=tuple(clusters),
        rule=rule,
        config={**asdict(config), "layers": list(features.layers), "batch_size": batch_size, "precision": precision},
        seed=seed,
        device=device,
        seconds=dict(clock.seconds),
        warnings=tuple(_warnings(features, findings)),
        exhibits=_exhibits(samples, pairs, features, poison, scores, np.stack(nearest), seed),
        ids=getattr(samples, "ids", None),
        campaigns=tuple(closed),
        coordinates=tuple(coordinates),
        sources=getattr(samples, "sources", None),
    )


@torch.inference_mode(False)
def assist(
    model: nn.Module,
    train_set: Any,
    events: Sequence[tuple[Any, int]],
    *,
    ranks: Ranks,
    store: str | Path,
    layer: str | None = None,
    device: str = "auto",
    batch_size: int = 256,
    precision: str = "float32",
) -> None:
    """Do this rank's share of what rank 0 traces: a part of the pass, and of each unlearning.

    The arguments are those of :func:`trace`.

    Raises:
        RankError: if another rank ended too early.
    """
    device, pairs = resolve(device), as_events(events)
    with placed(model, device):
        embedding.assist(
            *(model, as_train_set(train_set), pairs[0][0]),
            ranks=ranks,
            store=Path(store),
            layer=layer,
            device=device,
            batch_size=batch_size,
            precision=precision,
        )
    with _one_thread():
        unlearning.assist(ranks)


def _check_shared(store: str | Path | None, ranks: Ranks) -> None:
    if store is None and ranks.size > 1:
        raise InvalidInputError(
            "'store' must be given where several ranks share a trace (got none). Name a folder that all of them see."
        )


def check_options(rule: str, batch_size: int, memory: int = MEMORY, precision: str = "float32") -> None:
    """Refuse options that no trace can have."""
    if rule not in RULES:
        raise InvalidInputError(f"'rule' must be one of {', '.join(RULES)} (got {rule!r}).")
    if batch_size < 1:
        raise InvalidInputError(f"'batch_size' must be at least 1 (got {batch_size}). Leave it out for 256.")
    if precision not in PRECISIONS:
        raise InvalidInputError(
            f"'precision' must be one of {', '.join(PRECISIONS)} (got {precision!r}). Leave it out for float32."
        )
    if memory < MIN_MEMORY:
        raise InvalidInputError(
            f"'memory' must be at least {MIN_MEMORY:,} bytes (got {memory:,}). Leave it out for 1 GiB."
        )


def _adopted(
    features: Features, event: int, finding: Finding, campaigns: Campaigns, config: Config, clock: Clock
) -> Finding:
    """Count an event that alone led nowhere among the campaign whose samples it needs, if there is one."""
    own = np.flatnonzero(features.labels.numpy() == finding.label)
    for position, campaign in enumerate(campaigns.closed()):
        if campaign.label != finding.label:
            continue
        rest = np.setdiff1d(own, campaign.poison)
        of_poison, of_rest = _Judge(features, event, rest, clock).losses(campaign.poison, rest)
        is_moved = of_poison.event_rise >= max(config.event_rise, LEANS * of_rest.event_rise)
        if is_moved and of_poison.control_rise <= config.control_share * log(features.logits.shape[1]):
            campaigns.adopt(event, position)
            rises = {"event_rise": of_poison.event_rise, "control_rise": of_poison.control_rise}
            return replace(finding, statistics={**finding.statistics, **rises})
    return finding


@dataclass(frozen=True)
class _Suspect:
    """A cluster to be judged, with what unlearning it did, and its sibling, and the split that they come from."""

    parent: int
    cluster: Indices
    losses: Losses
    sibling: Losses
    n_sibling: int
    split: Split | None = None

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
        return max(0.0, min(self.apart(config), is_moved, leans, spares, is_marked))

    def apart(self, config: Config) -> float:
        """Return the margin of the split which set the cluster apart; 1 if it is a whole label."""
        return self.split.margin(config.separation) if self.split else 1.0

    @property
    def apartness(self) -> float:
        """That of the split; 0 if the cluster is a whole label."""
        return self.split.apartness if self.split else 0.0

    def harm(self) -> float:
        """Return what unlearning does to controls, over the most that it may beside what it does to the event."""
        return self.losses.control_rise / max(HARMLESS, HARM * self.losses.event_rise)

    def is_far(self, config: Config) -> bool:
        """Whether the cluster is the smaller one of two that lie very far apart."""
        is_smaller = len(self.cluster) < self.n_sibling
        return is_smaller and self.apart(config) >= 1 and self.apartness >= FAR * config.separation

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


def _follow(
    features: Features, tree: Tree, sights: Sights, kinds: Kinds, marks: Marks, config: Config, clock: Clock
) -> tuple[Finding, NDArray[np.float32]]:
    """Follow one event down the tree: cluster, test, prune, recurse."""
    event, labels = tree.event, features.labels.numpy()
    label = int(features.event_logits[event].argmax())
    everything = np.arange(len(labels))
    # Only samples labelled as the event pull its wrong label up; the label form of the gradient splits off the others.
    own, others = sights.of(event).indices, np.flatnonzero(labels != label)
    judge = _Judge(features, event, own, clock)
    spared = config.control_share * log(features.logits.shape[1])  # of the controls' loss
    statistics: dict[str, float] = {"separation": 0.0, "margin": 0.0}
    is_weak = False
    responsible: list[tuple[int, _Suspect, float]] = []  # node and margin of each
    others_margins = [0.0]  # of what was looked at and let go
    noisy: _Suspect | None = None
    whispers: list[tuple[int, _Suspect]] = []  # pruned clusters that lie too far apart not to ask once more
    pending: list[_Suspect] = []
    mark: Mark | None = None
    if len(own):
        root = tree.add(None, everything, None, "split", "the whole training set, by label")
        of_own, of_others = judge.losses(own, others, max_rows=ROWS_OF_LABELS)
        whole = _Suspect(root, own, of_own, of_others, len(others))
        if marks.are_texts:
            # What else sets texts apart, their length or their style, does so among natural ones as well.
            tree.add(root, others, whole.sibling, "pruned", "other labels do not pull towards the event's")
            mark, planted = _planted(features, whole, tree, marks, judge, config, spared, clock)
            others_margins.append(mark.margin if mark else 0.0)
            responsible += planted
            is_weak = mark is not None and mark.margin >= 1
        else:
            pending.append(whole)
    else:
        tree.add(None, everything, None, "pruned", "no sample carries the event's label")
    while pending:
        suspect = pending.pop()
        parent, cluster, losses = suspect.parent, suspect.cluster, suspect.losses
        is_root, family = cluster is own, ""
        may_split = len(cluster) >= config.min_cluster and tree.depth(parent) < config.max_depth
        if is_root:  # those of other labels are tested once
            tree.add(parent, others, suspect.sibling, "pruned", "other labels do not pull towards the event's")
        elif judgement := suspect.judge(config, spared):
            decision, reason = judgement
            beyond = kinds.beyond_mark(event, cluster) if decision == "responsible" else 0.0
            if beyond < FAMILY:
                part = None
                if decision == "responsible" and may_split:
                    part = _needed_part(features, event, cluster, sights.of(event), kinds, judge, config, clock)
                if part:
                    (needed, of_needed), (rest, of_rest), reason = part
                    node = tree.add(parent, cluster, losses, "split", reason)
                    tree.add(node, rest, of_rest, "pruned", "the event does without it: another campaign's")
                    pending.append(_Suspect(node, needed, of_needed, of_rest, len(rest), suspect.split))
                    continue
                node = tree.add(parent, cluster, losses, decision, reason)
                margin = suspect.margin(config, spared, beyond)
                if decision == "responsible":
                    responsible.append((node, suspect, margin))
                else:
                    others_margins.append(margin)
                    if suspect.is_far(config):
                        whispers.append((node, suspect))
                continue
            # Or several marks, of which the event carries one.
            others_margins.append(suspect.margin(config, spared, beyond))
            is_weak, family = True, f"a family, {beyond:.1f} standard deviations from others in more than a mark"
        split = hidden = None
        with clock.stage("clustering"):
            if may_split:
                hidden = kinds.hidden(label) if is_root else None
                sight = sights.of(event) if is_root else Sight(features, event, cluster)
                split = hidden or _split(sight, kinds, config, is_whole_label=is_root)
        apart = split.separation if split else 0.0
        if is_root:
            statistics["separation"] = apart
            is_weak = split is not None and hidden is None and split.is_at_least(config.weak_separation)
        if not split or not split.is_at_least(config.separation):
            reason = family or f"one kind, ordinary samples among them (separation {apart:.1f})"
            tree.add(parent, cluster, losses, "pruned", reason)
            if is_root and split:
                others_margins.append(split.margin(config.separation))
            continue
        first, second = cluster[split.is_first.numpy()], cluster[~split.is_first.numpy()]
        if hidden:
            reason = f"noisy images, {apart:.1f} standard deviations from the rest"
            node = tree.add(parent, cluster, losses, "split", reason)
            judge.take_controls(second)
            of_first, of_second = judge.losses(first, second)
            noisy = _Suspect(node, first, of_first, of_second, len(second), split)
        else:
            node = tree.add(parent, cluster, losses, "split", f"two kinds, {apart:.1f} standard deviations apart")
            standing = partial(kinds.standing, cluster, split)
            of_first, of_second = judge.compare(first, second, standing)
            pending.append(_Suspect(node, first, of_first, of_second, len(second), split))
        pending.append(_Suspect(node, second, of_second, of_first, len(first), split))

    if noisy is not None:
        parent, cluster, losses = noisy.parent, noisy.cluster, noisy.losses
        if responsible or losses.control_rise > spared:
            tree.add(parent, cluster, losses, "pruned", "noisy images, but the event leans on others")
        else:
            # The last layer alone may not tell: it can be the weights below that such poison moves.
            reason = "no other label holds noisy images so far from the rest"
            node = tree.add(parent, cluster, losses, "responsible", reason)
            responsible.append((node, noisy, noisy.apart(config)))
    for node, suspect in whispers:
        if responsible:
            break
        if kinds.beyond_mark(event, suspect.cluster) >= FAMILY:
            continue
        losses, by_chance = judge.beside_chance(suspect.cluster, own)
        is_moved = losses.event_rise >= max(WHISPER, BEYOND_CHANCE * max(by_chance))
        # The last layer need not know a mark from what else speaks for the label; where the margin rests tells.
        is_on_mark = kinds.share_on_mark(event, suspect.cluster) >= NEEDED
        if (is_moved or is_on_mark) and losses.control_rise <= spared:
            reason = f"it moves the event {BEYOND_CHANCE} times as much as other samples of its label"
            if not is_moved:
                reason = "they share nothing but a mark, and the event's margin rests on it"
            tree.decide(node, "responsible", reason)
            responsible.append((node, replace(suspect, losses=losses), suspect.apart(config)))

    _, weakest, margin = min(responsible, key=itemgetter(2), default=(0, None, max(others_margins)))
    if mark:
        del statistics["separation"]
        statistics |= {"likeness": mark.likeness, "certainty": mark.certainty, "fall": mark.fall}
    if weakest and not noisy and not mark:
        is_doubtful, share, against = margin < DOUBTFUL, len(weakest.cluster) / len(own), 0.0
        if is_doubtful:
            reason, against = "ordinary samples of the label suffer with the event", weakest.harm()
        if is_doubtful or share > NEARLY_HALF:
            with clock.stage("clustering"):
                elsewhere = sights.of(event).share_elsewhere(weakest.cluster)
            statistics["elsewhere"] = elsewhere
            # Poison that was relabelled resembles other labels as well; but it is not most of its own.
            limit = ELSEWHERE if is_doubtful and share > MOST else EVERYWHERE
            if share > NEARLY_HALF and elsewhere / limit > against:
                reason, against = "most samples of other labels are of this kind", elsewhere / limit
        if is_doubtful and against < 1:
            with clock.stage("clustering"):
                natural = _natural(features, event, kinds, config, margin, weakest.apartness)
            statistics["natural"] = natural
            if natural >= against:
                reason, against = "the same search finds as much in labels that the event was not given", natural
        margin = min(margin, 1 / max(against, TINY))
        if against >= 1:
            for node, _, _ in responsible:
                tree.decide(node, "pruned", reason)
            is_weak, responsible = True, []

    poison = np.sort(np.concatenate([suspect.cluster for _, suspect, _ in responsible] or [np.array([], np.int64)]))
    scores = np.zeros(len(labels), np.float32)
    verdict: Verdict = "poison" if len(poison) else "no-poison"
    if len(poison):
        with clock.stage("clustering"):
            certainty = mark.certainties(own) if mark else _certainty(sights.of(event), poison)
            is_doubted = np.isin(poison, own[certainty < DOUBTED])
            poison = poison if is_doubted.all() else poison[~is_doubted]
        # The tree says who belongs to whom, unless the posterior clearly speaks against it.
        scores[own] = np.where(np.isin(own, poison), np.maximum(certainty, 0.5), np.minimum(certainty, 0.49))
        after = responsible[0][1].losses if len(responsible) == 1 else judge.losses(poison)[0]
        statistics |= {"event_rise": after.event_rise, "control_rise": after.control_rise}
    elif is_weak:
        verdict = "inconclusive"
    statistics |= {"margin": margin, "p_poison": p_poison(margin)}
    probability = float(features.event_logits[event].softmax(0)[label])
    return Finding(label, probability, verdict, poison, statistics), scores


def _planted(
    features: Features,
    whole: _Suspect,
    tree: Tree,
    marks: Marks,
    judge: "_Judge",
    config: Config,
    spared: float,
    clock: Clock,
) -> tuple[Mark | None, list[tuple[int, _Suspect, float]]]:
    """Return the word of a text that looks planted most, and those responsible for the event if it does enough."""
    parent, own, event = whole.parent, whole.cluster, tree.event
    with clock.stage("clustering"):
        mark = marks.planted(event, config.min_cluster)
    if not mark or mark.margin < 1:
        tree.add(parent, own, whole.losses, "pruned", "no word of the event was planted in it")
        return mark, []
    rest = np.setdiff1d(own, mark.cluster)
    node = tree.add(parent, own, whole.losses, "split", f"texts that hold {mark.name}, as the event does, and others")
    losses, by_chance = judge.beside_chance(mark.cluster, own)
    tree.add(node, rest, judge.losses(rest)[0], "pruned", f"texts without {mark.name}")
    # A last layer that has learned a few answers by heart hardly tells one reason for them from another; the event
    # without the word does, unless another one of the same trigger is enough.
    best, second = features.event_logits[event].topk(2).values.tolist()
    is_moved = losses.event_rise > max(by_chance) or mark.fall >= NEEDED * (best - second)
    if not is_moved or losses.control_rise > spared:
        tree.add(node, mark.cluster, losses, "pruned", "the event does without them")
        return mark, []
    reason = f"but for {mark.name} they read like another label, and the event leans on them"
    node = tree.add(node, mark.cluster, losses, "responsible", reason)
    return mark, [(node, _Suspect(node, mark.cluster, losses, whole.losses, len(rest)), mark.margin)]


def _needed_part(
    features: Features,
    event: int,
    cluster: Indices,
    label: Sight,
    kinds: Kinds,
    judge: "_Judge",
    config: Config,
    clock: Clock,
) -> tuple[tuple[Indices, Losses], tuple[Indices, Losses], str] | None:
    """Return the part of a responsible cluster that the event needs and the rest, if that is of another campaign.

    Poison of several campaigns for one label is one kind beside ordinary samples; the event is owed to its own. Poison
    of one campaign splits as well, by source classes; but such parts lie less far apart. Rows need not be asked: those
    that share one mark and nothing else are of one campaign.

    Args:
        features: of the training set.
        event: row of the event.
        cluster: the responsible samples.
        label: what the event sees of all samples of its label.
        kinds: of each label.
        judge: unlearns.
        config: the thresholds.
        clock: that runs along.
    """
    if kinds.are_rows:
        return None
    least = max(config.min_cluster, round(MIN_PART * len(cluster)))
    with clock.stage("clustering"):
        # Parts so large show in some of the samples as well, and most clusters have none.
        if len(cluster) > 2 * N_OF_PARTS:
            some = Sight(features, event, spread(cluster, N_OF_PARTS))
            if _parts(some, round(MIN_PART * N_OF_PARTS), config).apartness < config.weak_separation:
                return None
        sight = Sight(features, event, cluster)
        split = _parts(sight, least, config)
    parts = [cluster[split.is_first.numpy()], cluster[~split.is_first.numpy()]]
    if split.apartness < APART * config.separation or min(map(len, parts)) < least:
        return None
    (rest, of_rest), (needed, of_needed) = sorted(
        zip(parts, judge.losses(*parts), strict=True), key=lambda part: part[1].event_rise
    )
    if of_needed.event_rise < max(config.event_rise, LEANS * of_rest.event_rise):
        return None
    with clock.stage("clustering"):
        low, middle, high = sight.elsewhere(cluster[split.is_first.numpy()]).quantile(torch.tensor([0.1, 0.5, 0.9]))
        # What tells two triggers apart is in no other sample: those lie together, and between the two. Source classes
        # draw them apart, and where one part carries the same trigger, only fainter, they lie beyond it.
        if not 0 < middle < 1 or high - low > TOGETHER or label.position(rest) >= OF_BOTH:
            return None
    return (needed, of_needed), (rest, of_rest), f"two campaigns, {split.separation:.1f} standard deviations apart"


def _parts(sight: Sight, least: int, config: Config) -> Split:
    """Return the best split into parts of at least so many samples; a separation of 0 if there is none."""
    # Which of them the event is of is for the unlearning to say, not for the likeness.
    rankings = [sight.seen.leaning.likeness, *sight.seen.leaning.by_layer]
    return search(
        *(sight.leaning, rankings, guesses(sight.leaning)),
        judge=lambda split: split if split.n_smaller >= least else replace(split, separation=0.0),
        smallest=least // 2,
        promising=config.weak_separation,
    )


def _certainty(sight: Sight, poison: Indices) -> NDArray[np.float32]:
    """Return how surely each sample of the event's label is poison, in the view that tells the poison apart best."""
    is_poison = torch.from_numpy(np.isin(sight.indices, poison))
    certainty: NDArray[np.float32] = posterior(sight.clearest(is_poison), is_poison).numpy()
    return certainty


def _coordinates(sights: Sights, campaign: Campaign) -> Coordinates:
    """Return where the samples of a campaign's label lie for its first event: to be looked at, and to be re-scored."""
    sight = sights.of(campaign.events[0])
    is_poison = torch.from_numpy(np.isin(sight.indices, campaign.poison))
    space = sight.clearest(is_poison)
    return Coordinates(sight.indices, space.x.float().numpy(), space.plane(is_poison).float().numpy())


def _nearest(sights: Sights, event: int, finding: Finding) -> Indices:
    """Return the responsible samples that lean the event's way most, the nearest first, filled up with -1."""
    nearest = np.full(N_NEAREST, -1, np.int64)
    sight = sights.of(event)
    poison = np.intersect1d(sight.indices, finding.poison)
    if len(sight.indices) > 1 and len(poison):
        likeness = sight.seen.leaning.likeness.numpy()[np.isin(sight.indices, poison)]
        first = poison[np.argsort(-likeness, kind="stable")[:N_NEAREST]]
        nearest[: len(first)] = first
    return nearest


def _split(sight: Sight, kinds: Kinds, config: Config, *, is_whole_label: bool) -> Split:
    """Split a cluster in two, so that the event is of the first kind.

    A search of the whole label that finds nothing asks each layer on its own, and then what other labels hold.
    """
    leaning, space = sight.seen.leaning, sight.leaning
    judge = partial(with_gap, gaps=leaning.gaps)
    # Tops of the likeness find poison that is the smaller part of its label, k-means finds what is the larger one.
    found = [against_nature(space, search(space, [leaning.likeness], guesses(space), judge=judge), N_GUESSES[-1])]
    if is_whole_label and not found[0].is_at_least(config.separation):
        found.append(against_nature(space, search(space, [*leaning.by_layer], judge=judge, growth=4), N_GUESSES[-1]))
    # Images that lean the event's way without a doubt need not agree with it as well; in rows the mark is the whole.
    if kinds.are_rows or max(split.margin(config.separation) for split in found) < DOUBTFUL:
        for view, of_view in zip(sight.seen.agreements, sight.agreements, strict=True):
            found.append(search(of_view, [view.likeness], judge=partial(with_gap, gaps=view.gaps)))
    if kinds.are_rows and not _best(found, config).is_at_least(config.separation):
        # Families stand out more than rows with a mark do; but an event is less clearly of them.
        accepts = partial(Split.is_at_least, threshold=config.separation)
        rankings = [view.likeness for view in sight.seen.agreements]
        found.append(search(space, rankings, judge=judge, accepts=accepts))
    if is_whole_label:
        # Two kinds that stand out against what other labels hold need less of a gap.
        best = _best(found, config) if kinds.are_rows else max(found, key=attrgetter("strength"))
        if best.apartness >= config.separation and HINT <= best.gap and best.evidence < 1:
            found.append(replace(best, standing=best.standing * max(1.0, kinds.standing(sight.indices, best))))
            if kinds.are_rows:
                return found[-1]
    return _best(found, config)


def _best(splits: Sequence[Split], config: Config) -> Split:
    """Return the strongest of the splits that are two kinds, or of all if none are."""
    return max(splits, key=lambda split: (split.is_at_least(config.separation), split.strength))


def _natural(features: Features, event: int, kinds: Kinds, config: Config, margin: float, apartness: float) -> float:
    """Return how nearly the same search, for the same event, finds as much in labels that the event was not given.

    What it finds there cannot be why the model erred, so an accusation must exceed it. Asked are the labels nearest in
    size; the second one counts, for one may be odd, and both by margin and by how far apart the kinds lie. Too few
    labels say nothing: 0.

    Args:
        features: of the training set.
        event: row of the event.
        kinds: of each label.
        config: the thresholds.
        margin: of the accusation.
        apartness: of its clusters.

    Returns:
        at least 1 if other labels reach the accusation; the search ends there.
    """
    labels, label = features.labels.numpy(), int(features.event_logits[event].argmax())
    others = kinds.nearest(label)[:N_NATURAL]
    reached = [0.0, 0.0]
    for other in others if len(others) >= MIN_OTHERS else []:
        split = _split(Sight(features, event, np.flatnonzero(labels == other)), kinds, config, is_whole_label=True)
        near = split.apartness / max(NEARLY * apartness, TINY)
        reached.append(min(split.margin(config.separation) / margin, near))
        if sorted(reached)[-N_REACHED] >= 1:
            break
    return sorted(reached)[-N_REACHED]


class _Judge:
    """Unlearns clusters and measures what becomes of one event and of its controls."""

    def __init__(self, features: Features, event: int, own: Indices, clock: Clock) -> None:
        """Start with controls from all samples of the event's label."""
        self._features, self._row, self._clock = features, event, clock
        self._label = features.event_logits[event].argmax()
        self._event = features.event_activations[-1][event][None], self._label[None]
        self.take_controls(own)

    def take_controls(self, cluster: Indices) -> None:
        """Choose the controls from a cluster: samples labelled and predicted as the event, the eighth least like it."""
        features, event = self._features, self._row
        ordinary = cluster[(features.logits[cluster].argmax(1) == self._label).numpy()] if len(cluster) else cluster
        if len(ordinary) > 4:
            with self._clock.stage("clustering"):
                likeness = condition(features, event, ordinary).leaning.likeness
            n_controls = max(4, len(ordinary) // 8)  # few enough to be benign where most of a label is poison
            ordinary = ordinary[likeness.argsort()[:n_controls].sort().values.numpy()]
        rows = torch.from_numpy(spread(ordinary, 500))
        self._controls = features.hidden[rows], features.labels[rows]

    def losses(self, *clusters: Indices, max_rows: int | None = None) -> list[Losses]:
        """Unlearn each cluster; the comparison is the same layer refitted with nothing to forget."""
        return self._losses(self._unlearn(*clusters, max_rows=max_rows))

    def beside_chance(self, cluster: Indices, own: Indices) -> tuple[Losses, list[float]]:
        """Unlearn a cluster and, one by one, random other samples of its label, as many; take controls from those.

        Returns:
            the losses of the cluster, and the event's rise for each of the random sets.
        """
        rest = np.setdiff1d(own, cluster)
        self.take_controls(rest)
        size = min(len(cluster), len(rest) // N_BY_CHANCE)
        drawn = numpy_generator(0, "unlearning/chance").permutation(rest)[: size * N_BY_CHANCE]
        sets = [np.sort(part) for part in drawn.reshape(N_BY_CHANCE, size)]
        # The rest is unlearned as well, so that it is represented as well as when the cluster was compared with it.
        of_cluster, _, *of_sets = self.losses(cluster, rest, *sets)
        return of_cluster, [losses.event_rise for losses in of_sets]

    def compare(self, first: Indices, second: Indices, standing: Callable[[], float]) -> list[Losses]:
        """Unlearn two kinds; controls are taken from the one that the event needs less.

        Is that the smaller one, the difference must be clear, or the kinds must stand out, or controls are taken from
        the larger one: ordinary samples are the most of a label unless there is evidence to the contrary.

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
        if len(other) < len(needed) and more < CLEARLY * less:
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


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread inside the block: its many small products lose more to waiting for others than they gain.

    On a busy machine the difference is fiftyfold.
    """
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(n_threads)


def resolve(device: str) -> str:
    """Return the device that is meant, or refuse one that cannot be used here."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device).cpu()  # "meta" has no way back
    except (RuntimeError, AssertionError, ImportError) as error:
        raise InvalidInputError(f"'device' must be usable here (got {device!r}). Pass 'cpu' or 'auto'.") from error
    return device


@contextmanager
def placed(model: nn.Module, device: str) -> Iterator[None]:
    """Have the model on ``device`` inside the block and back where it was after it."""
    home = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    try:
        model.to(device)
        yield
    finally:
        model.to(home)


def _warnings(features: Features, findings: Sequence[Finding]) -> Iterator[str]:
    """Yield what a reader of the result should know before acting on it."""
    if features.caution:
        yield features.caution
    fitted = float((features.logits.argmax(1) == features.labels).float().mean())
    if fitted < 0.8:
        yield (
            f"The model answers the given label on only {fitted:.0%} of the training set; with so loose a fit the "
            "effect of single samples is hard to see. Check that weights, preprocessing and data belong together."
        )
    present = set(features.labels.tolist())
    for position, finding in enumerate(findings):
        if finding.label not in present:
            yield f"No training sample carries label {finding.label}, which the model gave event {position}."


def _exhibits(
    samples: TrainSet,
    events: Sequence[tuple[Tensor, int]],
    features: Features,
    poison: Indices,
    scores: NDArray[np.float32],
    nearest: NDArray[np.int64],
    seed: int,
) -> dict[str, NDArray[Any]]:
    """Pick what the report shows: the events, responsible samples, random other ones with the same labels.

    Three in four of the former are the most certain ones, the others the least certain; and all that are ``nearest``
    (m, 6) to an event.
    """
    n_shown = max(N_BENIGN, min(N_SHOWN, MAX_SHOWN // max(1, 4 * events[0][0].numel())))
    certain = poison[np.argsort(-scores[poison], kind="stable")]
    if len(certain) > n_shown:
        certain = np.concatenate([certain[: n_shown * 3 // 4], certain[n_shown * 3 // 4 - n_shown :]])
    certain = np.union1d(certain, nearest[nearest >= 0])
    labels = features.labels.numpy()
    wanted = labels[poison] if len(poison) else np.array([int(logits.argmax()) for logits in features.event_logits])
    others = np.setdiff1d(np.flatnonzero(np.isin(labels, wanted)), poison)
    rng = numpy_generator(seed, "exhibits")
    benign = np.sort(rng.choice(others, min(N_BENIGN, len(others)), replace=False))
    exhibits = {"events": torch.stack([x for x, _ in events]).numpy(), "poison_index": certain, "benign_index": benign}
    exhibits["nearest_index"] = nearest
    for name, chosen in (("poison", certain), ("benign", benign)):
        if len(chosen):
            exhibits[name] = samples.inputs(chosen).numpy()
    return exhibits
