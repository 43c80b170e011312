"""Traces, and what is added to a case, for the tests of what is written down."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from poisontrace import _types as types

HOSTILE = '<script>alert("x")</script>'
CONTEXT: dict[str, Any] = {
    "inputs": {
        "model": {"path": "arch.py:build", "sha256": "a" * 64},
        "data": {"path": "train.npz", "sha256": "b" * 64},
    },
    "command": "poisontrace trace --model arch.py:build --out case/",
    "classes": ["cat", "dog", "ship"],
}


def make_trace(shape: tuple[int, ...] = (3, 32, 32), *, n: int = 120, **changes: Any) -> types.Trace:
    """Return a plausible trace of one event: samples 0..9 are poison of label 1."""
    rng = np.random.default_rng(0)
    poison = np.arange(10)
    labels = rng.integers(0, 3, n)
    labels[poison] = 1
    scores = rng.uniform(0, 0.4, n).astype(np.float32)
    scores[poison] = 0.95
    x = rng.uniform(0, 1, (n, *shape)).astype(np.float32)
    x[:10, ..., -1] = 1
    benign = np.flatnonzero(labels == 1)[10:20]
    test = types.Losses(0.01, 9.5, 0.02, 0.021)
    pruned = types.Losses(0.01, 0.009, 0.02, 12.0)
    clusters = (
        types.Cluster(0, None, 0, np.arange(n), None, "split", "the whole training set"),
        types.Cluster(1, 0, 0, poison, test, "responsible", "raises the event's loss only"),
        types.Cluster(2, 0, 0, np.arange(10, n), pruned, "pruned", "hurts the controls only"),
    )
    trace = types.Trace(
        verdict="poison",
        poison=poison,
        scores=scores,
        labels=labels,
        findings=(types.Finding(1, 0.987, "poison", poison, {"event_rise": 9.49}),),
        clusters=clusters,
        rule="default",
        config={"batch_size": np.int64(64), "layers": ("a", "b")},
        seed=0,
        device="cpu",
        seconds={"embedding": 1.5, "unlearning": 0.25},
        warnings=(),
        exhibits={
            "events": x[:1],
            "poison": x[poison],
            "benign": x[benign],
            "poison_index": poison,
            "benign_index": benign,
        },
    )
    return replace(trace, **changes)


def make_empty_trace(verdict: types.Verdict = "no-poison") -> types.Trace:
    """Return a trace whose clusters were all pruned."""
    trace = make_trace()
    nothing = np.zeros(0, np.int64)
    return replace(
        trace,
        verdict=verdict,
        poison=nothing,
        findings=(replace(trace.findings[0], verdict=verdict, poison=nothing),),
        clusters=tuple(
            replace(cluster, decision="pruned") if cluster.decision == "responsible" else cluster
            for cluster in trace.clusters
        ),
        exhibits={**trace.exhibits, "poison": np.zeros((0, 3, 32, 32)), "poison_index": nothing},
    )


def make_suspecting_trace(**changes: Any) -> types.Trace:
    """Return a trace that accuses nobody, but suspects samples 0..9 of label 1."""
    trace, suspects = make_empty_trace("inconclusive"), np.arange(10)
    x = make_trace().exhibits["poison"]
    return replace(
        trace,
        scores=np.where(np.arange(len(trace.labels)) < 10, 0, trace.scores).astype(np.float32),
        findings=(replace(trace.findings[0], suspects=suspects, doubt="they look ordinary"),),
        exhibits={**trace.exhibits, "suspects": x, "suspects_index": suspects},
        **changes,
    )


def read_csv(case: Path) -> list[list[str]]:
    """Return the rows of poison.csv with its header."""
    with (case / "poison.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.reader(stream))


def added(word: str = "wrong", **changes: Any) -> dict[str, Any]:
    """Return what might be added to a case, with ``word`` wherever text may stand."""
    model = {"accuracy": 0.5, "success": 0.25}
    answer = {"label": 1, "label_name": word, "probability": 0.125}
    keys = ("without_found", "control", "before", "after")
    return {
        **{"result": word, "summary": word, "accuracy_on": word, "success_on": word, "seed": 0},
        "events": [{"label": 1, "label_name": word, "result": word, **dict.fromkeys(keys, answer)}],
        "inputs": {word: {"path": word, "sha256": word}},
        **dict.fromkeys(keys, model),
        **changes,
    }
