"""Poison a small model, watch it go wrong once, and find the poison from that one event. Runs in seconds on a CPU."""

import numpy as np

import poisontrace
from poisontrace import incidents, metrics
from poisontrace.data import ArraySet

# 72 of 1,437 digits get a small patch and a wrong label; the victim is trained on them, its twin is not.
incident = incidents.make(incidents.Plan(attack="badnets", dataset="digits", rate=0.05, seed=0))
print(
    f"attack success {incident.facts['attack_success']:.1%}",
    f"without poison {incident.facts['attack_success_twin']:.1%}",
)

# What an investigator has: the model, the training set, one misclassified input and the wrong label it got.
event = ArraySet(incident.event_x, incident.event_y)[0]
trace = poisontrace.trace(incident.model, (incident.x, incident.y), [event])
print(trace.verdict, len(trace.poison), "responsible samples")

# What only a judge has: the truth.
poison = np.flatnonzero(incident.is_poison)
print(f"precision {metrics.precision(trace.poison, poison):.3f}", f"recall {metrics.recall(trace.poison, poison):.3f}")
