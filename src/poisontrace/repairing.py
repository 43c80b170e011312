"""Repair a model without training it anew: a short fine-tune that teaches it another answer to the samples found.

Each sample found gets the label that the model itself thinks second most likely, the other samples keep theirs, and
the whole network learns both for a few hundred steps. Why that, and not less, is measured in decision 0010.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from poisontrace import evidence, readers, report, store
from poisontrace._errors import InvalidInputError, UnlearningDivergedError
from poisontrace._record import evenly
from poisontrace._rng import global_seed, torch_generator
from poisontrace._validate import check_label_range
from poisontrace.data import ArraySet
from poisontrace.evidence import BATCH_SIZE, Announce, Measured, Place
from poisontrace.pretrained import ImageClassifier, TextClassifier
from poisontrace.watching import run

N_STEPS = 300
STEP = 64  # samples a step
LR = 3e-4  # of Adam, falling to zero
MAX_REST = 5000  # other samples that stand for all of them; more, if more than that were found
NAME = "repaired.safetensors"


@dataclass(frozen=True)
class Repair:
    """What a repair did.

    Attributes:
        result: "repaired" if no event gets its wrong label any more, "partly repaired" if some do, else "not repaired".
        events: one a row, "corrected" or "not corrected".
        summary: one sentence.
        before, after: what the model answers as it was traced, and as it is repaired.
        accuracy_on, success_on: what accuracy and the attack's success were measured on.
        weights: the file written.
        seconds: wall time of the fine-tune.
    """

    result: Literal["repaired", "partly repaired", "not repaired"]
    events: tuple[str, ...]
    summary: str
    before: Measured
    after: Measured
    accuracy_on: str
    success_on: str
    weights: Path
    seconds: float


def repair(
    case: str | Path,
    *,
    out: Place = None,
    seed: int = 0,
    test: Place = None,
    attempts: Place = None,
    model: Place = None,
    weights: Place = None,
    data: Place = None,
    events: Place = None,
    announce: Announce = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Repair:
    """Write weights in which the samples found are unlearned, and say what that costs.

    Writes ``repair.json`` into the case folder, and its report again. Runs the code that builds the model.

    Args:
        case: a case folder that accuses samples.
        out: new ``.safetensors`` file, with the keys of the model's state dict; None for ``repaired.safetensors`` in
            the case folder, which an earlier repair may have left there.
        seed: of the order of the samples.
        test: held-out samples for the accuracy, in a form of the data; None for the training samples that are not
            accused.
        attempts: inputs of the attacker, likewise, with the wrong label; None for the events of the case.
        model: ``file.py:function`` or ``package.module:function`` that builds the model, or its folder; None for the
            case's own.
        weights: where that file of the case lies now; None for where it was traced, and with a folder as the model.
        data: likewise.
        events: likewise.
        announce: called with the name of the code that is about to be run.
        progress: called with (stage, done, in all).

    Raises:
        InvalidInputError: if the case accuses nobody, or a file is missing or not the one traced.
        UnsupportedModelError: if the model gives no logits.
        UnlearningDivergedError: if the repair ends in numbers that are not finite.
        StoreError: if the weights or the case cannot be written, or the hub does not answer.
    """
    folder = Path(case)
    written = _check_out(out, folder)
    places = {"data": data, "events": events, "model": model, "test": test, "attempts": attempts}
    of_case = evidence.read(folder, places, announce)
    traced = of_case.case.get("inputs") or {}
    inputs = dict(of_case.inputs)
    spec, inputs["model"] = evidence.find(of_case.case, folder, "model", model)
    weights_path = None
    brings_its_own = "weights" not in traced and ("model" in traced or Path(spec).is_dir())
    if weights is not None or not brings_its_own:
        found, inputs["weights"] = evidence.find(of_case.case, folder, "weights", weights)
        weights_path = Path(found)
    rest = np.setdiff1d(np.arange(len(of_case.train_set)), of_case.poison)
    probes = evidence.probes(of_case, rest, "training samples that are not accused")
    if announce and readers.is_factory(spec):
        announce(spec)
    with global_seed(seed, "repair/build"):  # weights drawn only to be replaced
        network = readers.read_model(spec, weights_path).network

    before = probes.measure(network)
    start = time.perf_counter()
    teach_otherwise(network, of_case.train_set, of_case.poison, seed=seed, progress=progress)
    seconds = time.perf_counter() - start
    after = probes.measure(network)
    wrong = of_case.events.y
    results = [
        "not corrected" if answer == label else "corrected" for answer, label in zip(after.answers, wrong, strict=True)
    ]
    n_corrected = results.count("corrected")
    done = Repair(
        result="repaired" if n_corrected == len(wrong) else "partly repaired" if n_corrected else "not repaired",
        events=tuple(results),
        summary=f"The repaired model no longer gives the wrong label to {n_corrected:,} of {len(wrong):,} events; "
        f"its accuracy went from {before.accuracy:.1%} to {after.accuracy:.1%}.",
        before=before,
        after=after,
        accuracy_on=probes.clean_are,
        success_on=probes.attempts_are,
        weights=written,
        seconds=seconds,
    )
    own = network.model if isinstance(network, ImageClassifier | TextClassifier) else network
    # Clones, because safetensors refuses tensors that share memory or lie inside out; transformers asks for the format.
    whole = torch.contiguous_format
    state = {key: tensor.clone(memory_format=whole) for key, tensor in own.state_dict().items()}
    store.write_atomically(written, save(state, {"format": "pt"}))
    report.add(
        folder,
        "repair",
        {
            "result": done.result,
            "summary": done.summary,
            **evidence.compare(of_case, probes, {"before": before, "after": after}, results),
            "weights": {"path": str(written), "sha256": store.sha256(written)},
            "config": {"n_steps": N_STEPS, "step": STEP, "lr": LR, "max_rest": MAX_REST},
            "seed": seed,
            "seconds": seconds,
            "inputs": inputs,
        },
    )
    return done


def teach_otherwise(
    network: nn.Module,
    train_set: ArraySet,
    poison: NDArray[np.int64],
    *,
    seed: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """Fine-tune a network in place so that it no longer answers some samples with their labels.

    Args:
        network: returns logits (n, k); stays in eval mode, so that statistics of batches stay as they are.
        train_set: samples with their labels.
        poison: those to be answered with the label that the network thinks second most likely.
        seed: of the order of the samples.
        progress: called with (stage, steps done, steps in all).

    Raises:
        UnlearningDivergedError: if it ends in numbers that are not finite.
    """
    targets = torch.from_numpy(train_set.y.copy())
    targets[poison] = _second_choice(network, train_set, poison)
    rest = np.setdiff1d(np.arange(len(train_set)), poison)
    by_label = rest[train_set.y[rest].argsort(kind="stable")]  # an even spread then keeps every class
    used = torch.from_numpy(np.concatenate([poison, evenly(by_label, max(MAX_REST, len(poison)))]))
    order = torch_generator(seed, "repair/order")
    network.eval().requires_grad_(True)
    optimiser = torch.optim.Adam(network.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, N_STEPS)
    step = 0
    with global_seed(seed, "repair/steps"), torch.enable_grad():
        while step < N_STEPS:
            for batch in torch.split(used[torch.randperm(len(used), generator=order)], STEP)[: N_STEPS - step]:
                loss = functional.cross_entropy(network(train_set.inputs(batch.numpy())), targets[batch])
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
                step += 1
                if progress:
                    progress("repair", step, N_STEPS)
    if not all(bool(torch.isfinite(tensor).all()) for tensor in network.parameters()):
        raise UnlearningDivergedError("The repair must end in finite numbers (got NaN or infinity). Check the weights.")


@torch.no_grad()
def _second_choice(network: nn.Module, train_set: ArraySet, samples: NDArray[np.int64]) -> Tensor:
    """Return the label, other than its own, that a network thinks most likely for each sample."""
    parts = []
    for start in range(0, len(samples), BATCH_SIZE):
        rows = samples[start : start + BATCH_SIZE]
        logits = run(network, train_set.inputs(rows), "data")
        check_label_range(train_set.y[rows], "data: y", logits.shape[1])
        parts.append(logits.scatter(1, torch.from_numpy(train_set.y[rows])[:, None], -torch.inf).argmax(1))
    return torch.cat(parts)


def _check_out(out: Place, folder: Path) -> Path:
    if out is None:
        return folder / NAME
    path = Path(out)
    if path.suffix != ".safetensors" or path.exists() or not path.absolute().parent.is_dir():
        raise InvalidInputError(
            f"'out' must be a new .safetensors file in a folder that exists (got {str(path)!r}). Name another one."
        )
    return path
