"""The published procedure with the settings of its release, for ``rule="paper"`` and comparisons alone.

Shan et al., *Poison Forensics*, USENIX Security 2022, sections 4.2 and 4.3. Differs from the release in using all
coordinates of the embedding instead of at most 5,000 random ones, and the one event that was given before and after.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from poisontrace._record import Clock, Indices, Tree
from poisontrace._rng import torch_generator
from poisontrace._types import Decision, Finding, Losses
from poisontrace.clustering import two_means
from poisontrace.embedding import Features, embed, residual
from poisontrace.unlearning import Heads

# Of the authors' repository in its last state.
BATCH, LEARNING_RATE, MOMENTUM, CLIP, MIN_STEPS = 128, 0.004, 0.9, 0.05, 100
LOOKS = 20  # at how far the unlearning is
FORGOTTEN, KEPT = 0.02, 0.97  # accuracies on a batch of the cluster and of the rest that end it
NOTHING_LEFT = 0.01  # accuracy on a batch of the cluster below which it is not unlearned further


def follow(
    features: Features, tree: Tree, clock: Clock, seed: int, *, rise: float, max_depth: int
) -> tuple[Finding, NDArray[np.float32]]:
    """Follow one event down the tree. Both children guilty: stop, keep both. One: recurse into it. Neither: drop both.

    Args:
        features: one pass over the training set.
        tree: empty; filled with every cluster tested.
        clock: told the time of each stage.
        seed: draws the batches of unlearning.
        rise: a cluster is guilty if unlearning it raises the event's loss by more than this, in nats.
        max_depth: levels of the tree.

    Returns:
        the finding, and scores (n,): 1 for the responsible samples, else 0.
    """
    event, n = tree.event, len(features.labels)
    label = int(features.event_logits[event].argmax())
    with clock.stage("clustering"):
        embedding = embed([features.hidden], residual(features.logits))
    own_head = Heads(features.weight[None], features.bias[None])
    event_hidden, event_label = features.event_activations[-1][event][None], torch.tensor([label])
    before = float(own_head.losses(event_hidden, event_label)[0, 0])
    generator = torch_generator(seed, f"paper/{event}")

    root = tree.add(None, np.arange(n), None, "split", "the whole training set")
    responsible: list[Indices] = []
    pending: list[tuple[int, Indices]] = [(root, np.arange(n))]
    while pending:
        parent, cluster = pending.pop()
        with clock.stage("clustering"):
            is_first = two_means(embedding[torch.from_numpy(cluster)]).numpy()
        children = [cluster[is_first], cluster[~is_first]]
        if tree.depth(parent) >= max_depth or not all(len(child) for child in children):
            if parent != root:  # nothing left to split: what was guilty stays guilty
                responsible.append(cluster)
                tree.decide(parent, "responsible", "guilty, and nothing left to split")
            continue
        with clock.stage("unlearning"):
            heads = unlearn_as_released(features, children, generator)
            after = heads.losses(event_hidden, event_label)[:, 0].tolist()
        is_guilty = [loss - before > rise for loss in after]
        for child, loss, guilty in zip(children, after, is_guilty, strict=True):
            decision: Decision = "pruned" if not guilty else "responsible" if all(is_guilty) else "split"
            reason = {"pruned": "the event's loss did not rise", "split": "guilty, its sibling is not"}.get(
                decision, "both children guilty: kept whole"
            )
            node = tree.add(parent, child, Losses(before, loss, float("nan"), float("nan")), decision, reason)
            if decision == "responsible":
                responsible.append(child)
            elif decision == "split":
                pending.append((node, child))

    poison = np.unique(np.concatenate(responsible)) if responsible else np.array([], np.int64)
    scores = np.isin(np.arange(n), poison).astype(np.float32)
    probability = float(features.event_logits[event].softmax(0)[label])
    return Finding(label, probability, "poison" if len(poison) else "no-poison", poison, {}), scores


def unlearn_as_released(features: Features, clusters: Sequence[NDArray[np.int64]], generator: torch.Generator) -> Heads:
    """Fine-tune the last layer as the authors' release does, for ``rule="paper"`` and comparisons alone.

    SGD with learning rate 0.004 and Nesterov momentum 0.9, gradients clipped to 0.05 each, max(100, 2 n / 128) steps
    for a cluster of n. A step takes 128 samples of the cluster, of which those count that still get their label,
    towards uniform, and 128 of the rest with their labels. It ends early once the cluster is forgotten and the rest is
    not.

    Args:
        features: one pass over the training set.
        clusters: sets of training indices.
        generator: draws the batches.
    """
    n, k = features.logits.shape
    weights, biases = [], []
    for cluster in clusters:
        rest = np.setdiff1d(np.arange(n), cluster)
        of_cluster, of_rest = (_batches(torch.from_numpy(part), generator) for part in (cluster, rest))
        weight, bias = (t.clone().requires_grad_() for t in (features.weight, features.bias))
        optimiser = torch.optim.SGD([weight, bias], lr=LEARNING_RATE, momentum=MOMENTUM, nesterov=True)
        n_steps = max(MIN_STEPS, len(cluster) // BATCH * 2)
        for step in range(n_steps):
            with torch.enable_grad():
                own, other = next(of_cluster), next(of_rest)
                logits, other_logits = (features.hidden[rows] @ weight.T + bias for rows in (own, other))
                is_known = logits.argmax(1) == features.labels[own]
                loss = torch.nn.functional.cross_entropy(other_logits, features.labels[other])
                if is_known.float().mean() >= NOTHING_LEFT:
                    uniform = torch.full_like(logits, 1 / k)
                    loss = loss + torch.nn.functional.cross_entropy(logits[is_known], uniform[is_known])
                optimiser.zero_grad()
                (loss * BATCH).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_value_([weight, bias], CLIP)
            optimiser.step()
            if step % (n_steps // LOOKS) == 0:
                is_right = other_logits.argmax(1) == features.labels[other]
                if is_known.float().mean() < FORGOTTEN and is_right.float().mean() > KEPT:
                    break
        weights.append(weight.detach())
        biases.append(bias.detach())
    return Heads(torch.stack(weights), torch.stack(biases))


def _batches(rows: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield batches of some rows forever, reshuffled after each pass over them."""
    while True:
        mixed = rows[torch.randperm(len(rows), generator=generator)]
        for start in range(0, len(rows), BATCH):
            yield mixed[start : start + BATCH]
