"""What a reader of the result is shown: samples to look at, and sentences to know before acting on it."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from poisontrace._record import Indices, evenly
from poisontrace._rng import numpy_generator
from poisontrace._types import Finding
from poisontrace.data import TrainSet
from poisontrace.embedding import Features

N_SHOWN, MAX_SHOWN, N_BENIGN = 400, 1 << 26, 24  # samples for the report, responsible ones within as many bytes


def warnings_of(features: Features, findings: Sequence[Finding]) -> Iterator[str]:
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
            yield f"No training sample carries label {finding.label}, which the model gave event {position + 1}."
    taken = [str(position + 1) for position, finding in enumerate(findings) if _is_in_other_labels(features, finding)]
    if taken:
        yield (
            f"What was found for event {', '.join(taken)} was taken from one other label, and most labels hold samples "
            "like it: each label may have been relabelled as another. Give an event of each label to have them all "
            "found."
        )


def _is_in_other_labels(features: Features, finding: Finding) -> bool:
    """Whether what was found was taken from one other label, as samples that are as common in most labels may be."""
    n_own = int((features.labels == finding.label).sum())
    usual = finding.statistics.get("usual", 0.0)
    return len(finding.poison) > 0 and "taken" in finding.statistics and usual >= len(finding.poison) / n_own


def exhibits_of(
    samples: TrainSet,
    events: Sequence[tuple[Tensor, int]],
    features: Features,
    poison: Indices,
    suspects: Indices,
    scores: NDArray[np.float32],
    nearest: NDArray[np.int64],
    seed: int,
) -> dict[str, NDArray[Any]]:
    """Pick what the report shows: the events, responsible samples, suspects, random other ones with the same labels.

    Of the responsible ones three in four are the most certain, the others the least certain; and all that are
    ``nearest`` (m, 6) to an event.
    """
    n_shown = max(N_BENIGN, min(N_SHOWN, MAX_SHOWN // max(1, 4 * events[0][0].numel())))
    certain = poison[np.argsort(-scores[poison], kind="stable")]
    if len(certain) > n_shown:
        certain = np.concatenate([certain[: n_shown * 3 // 4], certain[n_shown * 3 // 4 - n_shown :]])
    certain = np.union1d(certain, nearest[nearest >= 0])
    labels = features.labels.numpy()
    wanted = labels[poison] if len(poison) else np.array([int(logits.argmax()) for logits in features.event_logits])
    others = np.setdiff1d(np.flatnonzero(np.isin(labels, wanted)), np.union1d(poison, suspects))
    rng = numpy_generator(seed, "exhibits")
    benign = np.sort(rng.choice(others, min(N_BENIGN, len(others)), replace=False))
    exhibits = {"events": torch.stack([x for x, _ in events]).numpy(), "poison_index": certain, "benign_index": benign}
    exhibits |= {"suspects_index": evenly(suspects, n_shown), "nearest_index": nearest}
    for name, chosen in (("poison", certain), ("suspects", exhibits["suspects_index"]), ("benign", benign)):
        if len(chosen):
            exhibits[name] = samples.inputs(chosen).numpy()
    return exhibits
