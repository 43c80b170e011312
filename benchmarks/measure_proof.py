"""Trace single events, train again without the samples found and without as many others, and count what is left.

``python benchmarks/measure_proof.py`` takes seconds a row on digits and program features, and minutes on CIFAR-10, two
trainings each; what ``results/proof.jsonl`` holds is not done again, and networks are kept in ``POISONTRACE_CACHE``.
``poisontrace bench --tables-only`` makes the table. The twin, the same network trained without poison, says what the
attack's inputs do by themselves.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

import poisontrace
from poisontrace import incidents, metrics, train, victims
from poisontrace._errors import PoisontraceError
from poisontrace.data import ArraySet
from poisontrace.incidents import Incident, Plan

RESULT = Path(__file__).resolve().parent / "results" / "proof.jsonl"
N_EVENTS = 3
PLANS = [
    *(Plan(attack="badnets", dataset="digits", rate=0.05, seed=seed) for seed in range(5)),
    *(Plan(attack="malware", dataset="pe", rate=0.02, seed=seed) for seed in range(5)),
    *(Plan(attack="malware", dataset="pdf", rate=0.02, seed=seed) for seed in range(5)),
    *(Plan(attack="malware", dataset="clamp", rate=0.04, seed=seed, options={"n_features": 30}) for seed in range(5)),
    *(
        Plan(attack="physical", dataset="lfw", rate=0.05, seed=seed, training="finetune", options={"item": "glasses"})
        for seed in range(4)
    ),
    *(Plan(attack="physical", dataset="gtsrb", rate=0.05, seed=seed) for seed in range(3)),
    *(Plan(attack="badnets", dataset="cifar10", rate=0.05, n_train=20000, seed=seed) for seed in range(2)),
    Plan(attack="trojan", dataset="cifar10", rate=0.05, n_train=20000, seed=0),
]


def main() -> None:
    """Measure what is missing, one row an event."""
    rows = [json.loads(line) for line in RESULT.read_text().splitlines()] if RESULT.exists() else []
    done = {(row["attack"], row["dataset"], row["seed"]) for row in rows}
    for plan in PLANS:
        if (plan.attack, plan.dataset, plan.seed) in done:
            continue
        incident = incidents.make(plan, progress=show)
        measured = [prove(incident, event) for event in range(min(N_EVENTS, len(incident.event_y)))]
        with RESULT.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in measured)
        for row in measured:
            print(json.dumps(row), flush=True)


def prove(incident: Incident, event: int) -> dict[str, Any]:
    """Trace one event, then verify the case."""
    plan, poison = incident.plan, np.flatnonzero(incident.is_responsible[event])
    samples = ArraySet(incident.x, incident.y)
    trace = poisontrace.trace(incident.model, samples, [ArraySet(incident.event_x, incident.event_y)[event]])
    row: dict[str, Any] = {
        "kind": "proof",
        **{name: getattr(plan, name) for name in ("attack", "dataset", "rate", "seed", "training")},
        "event": event,
        "n_train": len(incident.x),
        "verdict": trace.verdict,
        "precision": metrics.precision(trace.poison, poison),
        "recall": metrics.recall(trace.poison, poison),
        "success": success(incident, incident.model),
        "success_twin": success(incident, incident.twin),
        "accuracy": incident.facts["clean_accuracy"],
    }
    if trace.verdict != "poison":
        return row

    def recipe(x: NDArray[Any], y: NDArray[np.int64], seed: int) -> nn.Module:
        is_frozen = plan.training == "transfer"
        return victims.trained(
            *(x, y, incident.arch, incident.recipe, seed), extractor=incident.extractor, is_frozen=is_frozen
        )[0]

    with tempfile.TemporaryDirectory() as folder:
        home, case = Path(folder) / "incident", Path(folder) / "case"
        incidents.save(incident, home)
        np.savez(home / "events.npz", x=incident.event_x[[event]], y=incident.event_y[[event]])
        trace.save(case)
        places = {name: home / f"{name}.npz" for name in ("test", "attempts", "events")}
        try:
            proof = poisontrace.verify(case, recipe, seed=plan.seed, data=home / "train.npz", **places)
        except PoisontraceError as error:
            sys.exit(str(error))
    row["result"] = proof.events[0]
    for name, model in (("without", proof.without_found), ("control", proof.control)):
        row |= {f"success_{name}": model.success, f"accuracy_{name}": model.accuracy}
    return row


def success(incident: Incident, model: nn.Module) -> float:
    """Return the share of the attacker's inputs that a model gives the wrong label."""
    return float((train.predict(model, incident.attempt_x).argmax(1) == incident.event_y[0]).mean())


def show(stage: str, done: int, total: int) -> None:
    """Say how far a training has come."""
    if sys.stderr.isatty():
        print(f"\r{stage} {done:,} of {total:,}   ", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
