"""Say where the processor's time of a trace goes: a plain pass, a trace, and a second event on the same store.

``python benchmarks/profile_trace.py`` takes a minute or two and trains the victim first if it is not in
``POISONTRACE_CACHE``. Seconds are the processor's, of one thread, so that other work on the machine hardly counts;
``docs/performance.md`` shows what it printed.
"""

import argparse
import cProfile
import pstats
import tempfile
import time
from pathlib import Path

import torch

import poisontrace
from poisontrace import incidents
from poisontrace.bench import plain_pass
from poisontrace.data import ArraySet
from poisontrace.incidents import Plan

# What a second event is made of, by file and function.
PARTS = {
    ("unlearning.py", "unlearn"): "unlearning, all of it",
    ("kinds.py", "of"): "natural kinds of the label",
    ("clustering.py", "against_nature"): "natural kinds beside a split",
    ("searching.py", "two_kinds"): "the search for two kinds",
    ("searching.py", "two_parts"): "the search for other campaigns",
    ("spaces.py", "principal"): "principal directions",
    ("spaces.py", "discriminate"): "discriminants, in all of these",
    ("scoring.py", "condition"): "conditioning on the event",
    ("sights.py", "certainty"): "scores of single samples",
}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--samples", type=int, default=20_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    incident = incidents.make(
        Plan(attack="badnets", dataset="cifar10", rate=arguments.rate, n_train=arguments.samples, n_events=3)
    )
    samples, events = ArraySet(incident.x, incident.y), ArraySet(incident.event_x, incident.event_y)

    start = time.process_time()
    plain_pass(incident.model, samples)
    plain = time.process_time() - start
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        for event in range(2):
            start = time.process_time()
            poisontrace.trace(incident.model, samples, [events[event]], store=store)
            seconds.append(time.process_time() - start)
        profile = cProfile.Profile(time.process_time)
        profile.enable()
        poisontrace.trace(incident.model, samples, [events[2]], store=store)
        profile.disable()
    print("| | processor, s | of a plain pass |\n| --- | --- | --- |")
    for name, value in zip(("plain pass", "whole trace", "second event"), (plain, *seconds), strict=True):
        print(f"| {name} | {value:.2f} | {value / plain:.2f} |")
    spent = {
        (Path(file).name, name): value[3]
        for (file, _, name), value in pstats.Stats(profile).stats.items()  # type: ignore[attr-defined]
    }
    for part, words in PARTS.items():
        print(f"| of it, {words} | {spent.get(part, 0.0):.2f} | {spent.get(part, 0.0) / plain:.2f} |")


if __name__ == "__main__":
    main()
