"""Poison Forensics with the procedure and the settings of its release, every step through the whole network.

Shan et al., "Poison Forensics: Traceback of Data Poisoning Attacks in Neural Networks" (USENIX Security 2022); the
settings are those of the authors' repository in its last state. ``poisontrace.trace(rule="paper")`` is the fast form on
cached features; this is what it saves. Differs from the release where that cannot run on one event: the event is the
same before and after, a cluster begins anew when its last batch is used up, and two clusters that cannot be formed end
the branch.
"""

from collections.abc import Iterator
from copy import deepcopy

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor, nn
from torch.nn import functional

from peers.case import Answer, Case
from poisontrace._rng import numpy_generator, torch_generator
from poisontrace.data import crop_and_flip, to_inputs

Indices = NDArray[np.int64]

MAX_COORDINATES = 5000
BATCH, LEARNING_RATE, MOMENTUM, CLIP, MIN_STEPS = 128, 0.004, 0.9, 0.05, 100
RISE = 0.01  # of the event's loss, in nats
LOOKS = 20  # at how far the unlearning is
FORGOTTEN, KEPT = 0.02, 0.97  # accuracies on a batch of the cluster and of the rest that end it
NOTHING_LEFT = 0.01  # accuracy on a batch of the cluster below which it is not unlearned further


def find(case: Case) -> Answer:
    """Cluster, unlearn each cluster, prune the innocent, recurse into the guilty."""
    for parameter in case.body.parameters():
        parameter.requires_grad_(False)
    embedding = embed(case)
    before = _event_loss(case, case.model)
    found: list[Indices] = []
    pending = [np.arange(len(case.train_set))]
    while pending:
        cluster = pending.pop()
        children = split(embedding, cluster)
        if len(children) < 2:
            found.append(cluster)
            continue
        rises = [_event_loss(case, unlearn(case, child)) - before for child in children]
        guilty = [child for child, rise in zip(children, rises, strict=True) if rise > RISE]
        if len(guilty) == len(children):
            found += guilty
        else:
            pending += guilty
    return Answer(np.unique(np.concatenate(found)) if found else np.empty(0, np.int64))


def embed(case: Case) -> NDArray[np.float32]:
    """Return the Jacobian of the loss towards the uniform label, (n, d), rows of length 1.

    Of the weights of the last layer at most 5,000 coordinates are kept, drawn at random.
    """
    weight, n_classes = case.head.weight, case.head.out_features
    n_kept = min(weight.numel(), MAX_COORDINATES)
    kept = numpy_generator(case.seed, "peers/published/coordinates").permutation(weight.numel())[:n_kept]
    rows = []
    for x, _ in case.train_set.batches(256):
        logits = case.model(x)
        uniform = torch.full_like(logits, 1 / n_classes)
        losses = functional.cross_entropy(logits, uniform, reduction="none")
        # One backward pass for each sample, side by side.
        (jacobian,) = torch.autograd.grad(losses, weight, torch.eye(len(x)), is_grads_batched=True)  # (b, k, d)
        rows.append(functional.normalize(jacobian.flatten(1)[:, kept], dim=1))
    return torch.cat(rows).numpy()


def split(embedding: NDArray[np.float32], cluster: Indices) -> list[Indices]:
    """Return the two clusters that mini-batch k-means forms, or one if there are no two."""
    if len(cluster) < 2:
        return [cluster]
    side = MiniBatchKMeans(n_clusters=2, random_state=42, n_init=3).fit_predict(embedding[cluster])
    return [part for part in (cluster[side == 0], cluster[side == 1]) if len(part)]


def unlearn(case: Case, cluster: Indices) -> nn.Sequential:
    """Return the network with a last layer that is fine-tuned to know nothing of a cluster and the labels of the rest.

    Each step is a batch of 128 of either through the whole network. Of the cluster only samples count that still get
    their label.
    """
    head = deepcopy(case.head)
    model = nn.Sequential(case.body, head)
    rest = np.setdiff1d(np.arange(len(case.train_set)), cluster)
    name = f"peers/published/{cluster[0]}/{len(cluster)}"
    order, flips = numpy_generator(case.seed, name), torch_generator(case.seed, name)
    of_cluster, of_rest = (_batches(case, order.permutation(part), flips) for part in (cluster, rest))
    optimiser = torch.optim.SGD(head.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, nesterov=True)
    n_steps = max(MIN_STEPS, len(cluster) // BATCH * 2)
    for step in range(n_steps):
        (x, y), (x_rest, y_rest) = next(of_cluster), next(of_rest)
        logits, logits_rest = model(x), model(x_rest)
        is_known = logits.argmax(1) == y
        loss = functional.cross_entropy(logits_rest, y_rest)
        if is_known.float().mean() >= NOTHING_LEFT:
            uniform = torch.full_like(logits, 1 / logits.shape[1])
            loss = loss + functional.cross_entropy(logits[is_known], uniform[is_known])
        optimiser.zero_grad()
        (loss * BATCH).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_value_(head.parameters(), CLIP)
        optimiser.step()
        if step % (n_steps // LOOKS) == 0:
            accuracy_of_rest = (logits_rest.argmax(1) == y_rest).float().mean()
            if is_known.float().mean() < FORGOTTEN and accuracy_of_rest > KEPT:
                break
    return model


def _batches(case: Case, order: Indices, flips: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of some samples for ever, flipped if the victim's training flipped them."""
    while True:
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            x = to_inputs(case.train_set.x[rows])
            if case.recipe.flip:
                x = crop_and_flip(x, 0, 0.5, flips)
            yield x, torch.from_numpy(case.train_set.y[rows])


@torch.no_grad()
def _event_loss(case: Case, model: nn.Module) -> float:
    return float(functional.cross_entropy(model(case.event_x[None]), torch.tensor([case.event_y])))
