"""The main path: one forward pass, then cluster, test by unlearning, prune the innocent, recurse into the guilty.

Read this file first, then ``embedding``, ``scoring``, ``clustering`` and ``unlearning`` in the order they are called;
``searching`` and ``judging`` are what it asks of the last three, for one cluster, ``parting`` which part of one the
event needs; ``hearing`` asks some clusters again, and ``doubting`` says what speaks against an accusation.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from poisontrace import embedding, paper, unlearning
from poisontrace._blocks import MEMORY
from poisontrace._errors import InvalidInputError
from poisontrace._record import Clock, Indices, Tree
from poisontrace._types import Finding, Trace, Verdict, suspects_of
from poisontrace.calibration import p_poison
from poisontrace.campaigns import Campaigns, settled
from poisontrace.context import Context
from poisontrace.data import as_events, as_train_set
from poisontrace.embedding import Features, collect
from poisontrace.exhibiting import exhibits_of, warnings_of
from poisontrace.forward import PRECISIONS
from poisontrace.hearing import NEEDED, Course, challenge, follow_marks, hear_noise, hear_whispers
from poisontrace.judging import FAMILY, LEANS, Judge, Suspect
from poisontrace.judging import Config as Config  # part of what tracing offers
from poisontrace.kinds import Kinds
from poisontrace.marks import Mark, Marks
from poisontrace.notes import Notes
from poisontrace.parting import parted
from poisontrace.pictures import Pictures
from poisontrace.placing import one_thread, placed, resolve
from poisontrace.ranks import ALONE, Ranks
from poisontrace.searching import two_kinds
from poisontrace.sights import Sight, Sights
from poisontrace.unlearning import dismiss

Progress = Callable[[str, int, int], None]

MIN_MEMORY = 1 << 24
RULES = ("default", "paper")
# Certainty below which a sample is let go though it lies on the responsible side, and this far from 1 one may join it.
DOUBTED = 0.1
N_NEAREST, MAX_EVENTS = 6, 12  # responsible samples beside an event, and events that have them
MAX_NAME = 1_000  # characters of an id


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
        train_set: anything indexable that yields (x, y) with x as the model takes it, or a pair of arrays or
            tensors (x, y), of which y may be a list.
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
    notes = Notes(features.folder, len(samples), repr((rule, seed, config, memory)))
    sights = Sights(features, Pictures(samples, features, notes))
    marks = Marks(features, getattr(samples, "name_of", None))
    campaigns = Campaigns(are_joint=rule == "default")
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
            with one_thread():
                if rule == "paper":
                    finding, scores = paper.follow(
                        features, tree, clock, seed, rise=config.paper_rise, max_depth=config.max_depth
                    )
                else:
                    finding, scores = _follow(Context(features, tree, sights, kinds, marks, notes, config, clock))
            notes.write(about, tree, finding, scores)
        trees.append(tree)
        findings.append(finding)
        if finding.verdict == "poison":
            campaigns.add(event, finding, scores)
        if progress:
            progress("events traced", event + 1, len(pairs))
    for event, finding in enumerate(findings):
        if finding.verdict != "poison" and rule == "default":
            with one_thread():
                findings[event] = _adopted(features, event, finding, campaigns, config, clock)
    dismiss(ranks)
    clusters = [cluster for tree in trees for cluster in tree.clusters]
    closed, scores = campaigns.closed(), campaigns.scores(len(samples))
    findings = settled(findings, closed)
    poison = np.unique(np.concatenate([finding.poison for finding in findings]))
    verdicts = {finding.verdict for finding in findings}
    verdict: Verdict = next((v for v in ("poison", "inconclusive") if v in verdicts), "no-poison")
    with one_thread(), clock.stage("clustering"):
        drawn = closed if rule == "default" else []
        coordinates = [sights.of(campaign.events[0]).coordinates(campaign.poison) for campaign in drawn]
        nearest = [
            sights.of(event).nearest(found.poison, N_NEAREST) for event, found in enumerate(findings[:MAX_EVENTS])
        ]
    return Trace(
        verdict=verdict,
        poison=poison,
        scores=scores,
        labels=features.labels.numpy(),
        findings=tuple(findings),
        clusters=tuple(clusters),
        rule=rule,
        config={
            **asdict(config),
            "layers": list(features.layers),
            "batch_size": batch_size,
            "precision": precision,
            "memory": memory,
        },
        seed=seed,
        device=device,
        seconds=dict(clock.seconds),
        warnings=tuple(warnings_of(features, findings)),
        exhibits=exhibits_of(samples, pairs, features, poison, suspects_of(findings), scores, np.stack(nearest), seed),
        ids=_names(samples, "ids"),
        campaigns=tuple(closed),
        coordinates=tuple(coordinates),
        sources=_names(samples, "sources"),
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
    with one_thread():
        unlearning.assist(ranks)


def _check_shared(store: str | Path | None, ranks: Ranks) -> None:
    if store is None and ranks.size > 1:
        raise InvalidInputError(
            "'store' must be given where several ranks share a trace (got none). Name a folder that all of them see."
        )


def _names(samples: Any, kind: str) -> tuple[str, ...] | None:
    """Return ids or sources of samples if they have any; what is too long for a name would fill the case."""
    names = getattr(samples, kind, None)
    return None if names is None else tuple(str(name)[:MAX_NAME] for name in names)


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
        of_poison, of_rest = Judge(Sight(features, event, rest), clock).losses(campaign.poison, rest)
        is_moved = of_poison.event_rise >= max(config.event_rise, LEANS * of_rest.event_rise)
        if is_moved and of_poison.control_rise <= config.spared(features.logits.shape[1]):
            campaigns.adopt(event, position)
            rises = {"event_rise": of_poison.event_rise, "control_rise": of_poison.control_rise}
            kept = {name: value for name, value in finding.statistics.items() if name != "p_poison"}
            return replace(finding, statistics=kept | rises)  # how sure its own verdict was says nothing of this one
    return finding


def _follow(context: Context) -> tuple[Finding, NDArray[np.float32]]:
    """Follow one event down the tree: cluster, test, prune, recurse.

    Returns:
        the finding, and how surely each training sample is poison, (n,) in [0, 1].
    """
    features, tree, own = context.features, context.tree, context.own
    labels, everything = features.labels.numpy(), np.arange(len(features.labels))
    label = int(features.event_logits[context.event].argmax())
    course, mark = Course(), None
    if len(own):
        # Only samples labelled as the event pull its wrong label up; the label form of the gradient splits off others.
        others = np.flatnonzero(labels != label)
        root = tree.add(None, everything, None, "split", "the whole training set, by label")
        of_own, of_others = context.judge.whole_label(others, context.notes)
        whole = Suspect(root, own, of_own, of_others, len(others))
        tree.add(root, others, of_others, "pruned", "other labels do not pull towards the event's")
        if context.marks.are_texts:
            # What else sets texts apart, their length or their style, does so among natural ones as well.
            mark = _planted(context, whole, course)
        else:
            _cluster_and_prune(context, whole, course)
            hear_noise(context, course)
            hear_whispers(context, course)
            follow_marks(context, course)
            challenge(context, course)
    else:
        tree.add(None, everything, None, "pruned", "no sample carries the event's label")

    responsible, statistics = course.responsible, course.statistics
    margin = min((margin for *_, margin in responsible), default=max(course.let_go))
    poison = np.sort(np.concatenate([suspect.cluster for _, suspect, _ in responsible] or [np.array([], np.int64)]))
    scores = np.zeros(len(labels), np.float32)
    verdict: Verdict = "poison" if len(poison) else "inconclusive" if course.is_weak else "no-poison"
    if len(poison):
        with context.clock.stage("clustering"):
            poison, apart = context.sight.settled(poison)
            statistics |= {"pixels": apart} if apart else {}
            certainty = mark.certainties(own) if mark else context.sight.certainty(poison)
            # The tree says who belongs to whom, unless the posterior clearly speaks against it. Among rows and texts a
            # mark does, so none join them.
            poison = _as_certain(own, poison, certainty, may_join=not (mark or context.kinds.are_rows))
        scores[own] = np.where(np.isin(own, poison), np.maximum(certainty, 0.5), np.minimum(certainty, 0.49))
        is_as_tested = len(responsible) == 1 and np.array_equal(poison, responsible[0][1].cluster)
        after = responsible[0][1].losses if is_as_tested else context.judge.losses(poison)[0]
        statistics |= {"event_rise": after.event_rise, "control_rise": after.control_rise}
    statistics |= {"margin": margin, "p_poison": p_poison(margin)}
    probability = float(features.event_logits[context.event].softmax(0)[label])
    doubted = course.doubted if verdict == "inconclusive" else []
    suspects = np.unique(np.concatenate([own[:0], *(cluster for cluster, _ in doubted)]))
    doubt = "; ".join(dict.fromkeys(reason for _, reason in doubted))
    return Finding(label, probability, verdict, poison, statistics, suspects, doubt), scores


def _as_certain(own: Indices, poison: Indices, certainty: NDArray[np.float32], *, may_join: bool) -> Indices:
    """Return poison without whom the posterior clearly speaks against, and with whom it clearly speaks for.

    Args:
        own: samples of the label, in order.
        poison: some of them.
        certainty: (len(own),), how surely each is poison.
        may_join: whether others of the label may become poison (decision 0046).
    """
    is_kept = np.isin(own, poison) & (certainty >= DOUBTED)
    if not is_kept.any():
        return poison
    return own[is_kept | (certainty > 1 - DOUBTED)] if may_join else own[is_kept]


def _cluster_and_prune(context: Context, whole: Suspect, course: Course) -> None:
    """Split, test each cluster by unlearning it, prune the innocent, recurse into what is guilty but not pure."""
    pending = _split(context, whole, course, is_root=True)
    while pending:
        suspect = pending.pop()
        judgement = suspect.judge(context.config, context.spared)
        if judgement is None:
            pending += _split(context, suspect, course)
        elif judgement[0] == "responsible":
            pending += _accuse(context, suspect, course, judgement[1])
        else:
            node = context.tree.add(suspect.parent, suspect.cluster, suspect.losses, *judgement)
            course.let_go.append(context.margin(suspect))
            course.pruned[node] = suspect


def _split(
    context: Context, suspect: Suspect, course: Course, *, is_root: bool = False, family: str = ""
) -> list[Suspect]:
    """Split a cluster in two kinds and unlearn each, or prune it if there is no second one, or for being a ``family``.

    Returns:
        the kinds that are to be judged; may be none.
    """
    kinds, config, cluster = context.kinds, context.config, suspect.cluster
    split = hidden = None
    if context.may_split(suspect):
        with context.clock.stage("clustering"):
            hidden = kinds.hidden(int(context.features.labels[cluster[0]])) if is_root else None
            sight = context.sight if is_root else Sight(context.features, context.event, cluster)
            split = hidden or two_kinds(sight, kinds, config.separation, is_whole_label=is_root)
    apart = split.separation if split else 0.0
    if is_root:
        course.statistics["separation"] = apart
        course.is_weak = split is not None and hidden is None and split.is_at_least(config.weak_separation)
    if not split or not split.is_at_least(config.separation):
        reason = f"one kind, ordinary samples among them (separation {apart:.1f})"
        if split and split.apartness >= config.separation:
            reason = f"two kinds, {apart:.1f} standard deviations apart, but the event is of both alike"
        node = context.tree.add(suspect.parent, cluster, suspect.losses, "pruned", family or reason)
        if not is_root:
            course.pruned[node] = suspect
        elif split:
            course.let_go.append(split.margin(config.separation))
        return []
    first, second = cluster[split.is_first.numpy()], cluster[~split.is_first.numpy()]
    what = "noisy images and others" if hidden else "two kinds"
    node = context.tree.add(
        suspect.parent, cluster, suspect.losses, "split", f"{what}, {apart:.1f} standard deviations apart"
    )
    if hidden or split.diversity >= 1:
        # Noisy images and relabelled samples are not ordinary ones, however many they are.
        context.judge.take_controls(second)
        of_first, of_second = context.judge.losses(first, second)
    else:
        of_first, of_second = context.judge.compare(first, second, partial(kinds.standing, cluster, split))
    of_first_kind = Suspect(node, first, of_first, of_second, len(second), split)
    of_second_kind = Suspect(node, second, of_second, of_first, len(first), split)
    if hidden:
        course.noisy = of_first_kind
        return [of_second_kind]
    return [of_first_kind, of_second_kind]


def _accuse(context: Context, suspect: Suspect, course: Course, reason: str) -> list[Suspect]:
    """Hold a cluster responsible, unless the event needs a part of it only, or it is a family of rows.

    Returns:
        what is to be judged in its place; may be none.
    """
    beyond = context.beyond_mark(suspect.cluster)
    if beyond >= FAMILY:
        # Or several marks, of which the event carries one.
        course.let_go.append(context.margin(suspect, beyond))
        course.is_weak = True
        family = f"a family, {beyond:.1f} standard deviations from others in more than a mark"
        return _split(context, suspect, course, family=family)
    if part := parted(context, suspect):
        return [part]
    node = context.tree.add(suspect.parent, suspect.cluster, suspect.losses, "responsible", reason)
    course.responsible.append((node, suspect, context.margin(suspect, beyond)))
    return []


def _planted(context: Context, whole: Suspect, course: Course) -> Mark | None:
    """Return the word of a text that looks planted most, and accuse the texts that hold it if it does enough."""
    tree, parent, own = context.tree, whole.parent, whole.cluster
    with context.clock.stage("clustering"):
        mark = context.marks.planted(context.event, context.config.min_cluster)
    if mark:
        del course.statistics["separation"]
        course.statistics |= {"likeness": mark.likeness, "certainty": mark.certainty, "fall": mark.fall}
        course.let_go.append(mark.margin)
        course.is_weak = mark.margin >= 1
    if not mark or not course.is_weak:
        tree.add(parent, own, whole.losses, "pruned", "no word of the event was planted in it")
        return mark
    rest = np.setdiff1d(own, mark.cluster)
    node = tree.add(parent, own, whole.losses, "split", f"texts that hold {mark.name}, as the event does, and others")
    losses, by_chance = context.judge.beside_chance(mark.cluster)
    tree.add(node, rest, context.judge.losses(rest)[0], "pruned", f"texts without {mark.name}")
    # A last layer that has learned a few answers by heart hardly tells one reason for them from another; the event
    # without the word does, unless another one of the same trigger is enough.
    best, second = context.features.event_logits[context.event].topk(2).values.tolist()
    is_moved = losses.event_rise > max(by.event_rise for by in by_chance) or mark.fall >= NEEDED * (best - second)
    if not is_moved or losses.control_rise > context.spared:
        tree.add(node, mark.cluster, losses, "pruned", "the event does without them")
        return mark
    reason = f"but for {mark.name} they read like another label, and the event leans on them"
    node = tree.add(node, mark.cluster, losses, "responsible", reason)
    course.responsible.append((node, Suspect(node, mark.cluster, losses, whole.losses, len(rest)), mark.margin))
    return mark
