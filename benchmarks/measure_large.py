"""Time a trace beside a plain pass where the pass is what costs: a ResNet-18 and all 50,000 images of CIFAR-10.

``python benchmarks/measure_large.py`` takes about an hour on two cores, most of it training and passes. Each row of
``results/speed-large.jsonl`` holds a plain pass, a whole trace and a second event, measured one after the other with
nothing else running; ``poisontrace bench --tables-only`` makes the table. The victim, kept in ``POISONTRACE_CACHE``,
is trained for two epochs only, too few for one poison in a hundred to work well; rows say how often it did, and what a
trace of such an event finds. How long a pass takes does not depend on that.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from measure_proof import show

from poisontrace import incidents, metrics, train, victims
from poisontrace.bench import measure_speed
from poisontrace.data import ArraySet
from poisontrace.incidents import Plan

RESULT = Path(__file__).resolve().parent / "results" / "speed-large.jsonl"
PLAN = Plan(attack="badnets", dataset="cifar10", rate=0.01, n_train=50_000, model="resnet18", width=64, epochs=2)
N_TEST = 2_000  # of 10,000 held-out images, which is accurate to a point


def main() -> None:
    """Train the victim, then append as many rows as are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=1, help="0 trains the victim and no more")
    repeats = parser.parse_args().repeats
    dataset, attack = incidents.benign_dataset(PLAN), incidents.prepared_attack(PLAN)
    poisoned = attack.poison(dataset.x_train, dataset.y_train)
    arch = {"name": PLAN.model, "n_classes": len(dataset.classes), "width": PLAN.width, "n_channels": 3}
    recipe = replace(incidents.TASKS[PLAN.dataset].recipe(PLAN.training), epochs=PLAN.epochs)
    victim, _ = victims.trained(poisoned.x, poisoned.y, arch, recipe, PLAN.seed, progress=show)

    x_test, y_test = dataset.x_test[:N_TEST], dataset.y_test[:N_TEST]
    attempts = attack.attempts(x_test, y_test, poisoned.target)
    is_moved = train.predict(victim, attempts.x).argmax(1) == poisoned.target
    chosen = is_moved.nonzero()[0][: 2 * max(1, repeats)]
    events = ArraySet(attempts.x[chosen], np.full(len(chosen), poisoned.target))
    samples, poison = ArraySet(poisoned.x, poisoned.y), poisoned.is_poison.nonzero()[0]
    about = {
        **{"kind": "speed", "rule": "default"},
        **{name: getattr(PLAN, name) for name in ("attack", "dataset", "rate", "seed", "n_train")},
        "plan": {name: getattr(PLAN, name) for name in ("attack", "dataset", "rate", "n_train", "model", "epochs")},
        "model": arch,
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "n_poison": len(poison),
        "clean_accuracy": train.accuracy(victim, x_test, y_test),
        "attack_success": float(is_moved.mean()),
    }
    print(json.dumps(about), flush=True)
    for repeat in range(repeats):
        pair = [events[2 * repeat], events[2 * repeat + 1]]
        times, (trace, _) = measure_speed(victim, samples, pair, "cpu")
        found = {"precision": metrics.precision(trace.poison, poison), "recall": metrics.recall(trace.poison, poison)}
        row = about | {"event": repeat, **found, **times}
        with RESULT.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
