"""Leave out one rule of the method at a time, and count which traces of a suite come out otherwise.

``python benchmarks/ablate.py`` takes about an hour; what ``results/ablation.jsonl`` holds is not done again, and
networks are kept in ``POISONTRACE_CACHE``. ``poisontrace bench --tables-only`` makes the table. A rule that said
nothing in a trace cannot have changed it: such a trace is not repeated.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from poisontrace import bench, doubting, hearing, incidents, parting, searching, tracing
from poisontrace._errors import PoisontraceError
from poisontrace._record import Indices
from poisontrace.clustering import Split
from poisontrace.judging import Suspect
from poisontrace.kinds import Kinds
from poisontrace.origins import Origins
from poisontrace.pictures import Pictures
from poisontrace.rows import Row, read_rows
from poisontrace.sights import Sight

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "ablation.jsonl"
SUITE = (
    "badnets-digits",
    "networks-digits",
    "noise-digits",
    "clean-digits",
    "anti-forensics",
    "malware",
    "clean-malware",
)
SEEDS, N_EVENTS, N_MISTAKES = (0,), 1, 4  # of each grid; and of each victim, at most


@dataclass(frozen=True)
class Rule:
    """A rule of the method, and what it is without it.

    Attributes:
        name: in words.
        places: object and attribute of the function that is the rule, wherever it is called from.
        without: called in its place, with the function and its arguments.
        decisions: numbers of those that it comes from.
        is_asked: whether its answer says if it changed anything; else every trace is repeated.
    """

    name: str
    decisions: tuple[int, ...]
    places: tuple[tuple[Any, str], ...]
    without: Callable[..., Any]
    is_asked: bool = True


def says(answer: Any) -> Callable[..., Any]:
    """Return a stand-in that gives the same answer always."""
    return lambda function, *args, **options: answer


def no_parts(function: Callable[..., Split], *args: Any, **options: Any) -> Split:
    """Stand in for a search that finds nothing."""
    return replace(function(*args, **options), separation=0.0)


def nobody(function: Callable[..., None], origins: Origins, *args: Any) -> None:
    """Stand in for what makes origins: no layer tells labels apart."""
    function(origins, *args)
    origins._views, origins.rankings = [], []


def beside_all(function: Callable[..., float], sight: Sight, cluster: Indices) -> float:
    """Stand in for how diverse samples are: all of them, beside all of the rest."""
    return sight.spread(cluster) - sight.spread(np.setdiff1d(sight.indices, cluster))


def one_search(function: Callable[..., Split], *args: Any, **options: Any) -> Split:
    """Stand in for the search of each layer on its own."""
    split = function(*args, **options)
    return replace(split, separation=0.0) if options.get("growth") == 4 else split


def all_judged(function: Callable[..., Indices], own: Indices, poison: Indices, *args: Any, **options: Any) -> Indices:
    """Stand in for what the posterior makes of an accusation: nobody is let go."""
    return np.union1d(function(own, poison, *args, **options), poison)


def only_judged(function: Callable[..., Indices], own: Indices, poison: Indices, *args: Any, **options: Any) -> Indices:
    """Stand in for the same: nobody joins."""
    return np.intersect1d(function(own, poison, *args, **options), poison)


RULES = (
    Rule("each layer is searched on its own", (17,), ((searching, "search"),), one_search),
    Rule("samples that come from many labels", (27, 28), ((Origins, "__init__"),), nobody, False),
    Rule("samples beside most of the rest of their label", (43,), ((Sight, "diversity"),), beside_all),
    Rule("a search beside them if it goes through them", (35,), ((searching, "_is_through"),), says(False)),
    Rule("a label that is broad by nature", (41,), ((searching, "_unless_broad"),), lambda f, sight, split, _: split),
    Rule("kinds held against those of other labels", (7, 8), ((Kinds, "standing"),), says(1.0)),
    Rule("a label that grew", (36,), ((Kinds, "is_surplus"),), says(False)),
    Rule("noisy images", (7,), ((Kinds, "hidden"),), says(None)),
    Rule("families of rows", (9,), ((Kinds, "beyond_mark"),), says(0.0)),
    Rule("marks of rows", (25, 32, 48), ((hearing, "_marks"),), says([])),
    Rule("parts are asked", (24,), ((tracing, "parted"), (hearing, "parted")), says(None)),
    Rule("parts of other campaigns", (24, 39), ((parting, "_without_campaigns"),), says(None)),
    Rule("the event's trigger across others", (33, 37), ((parting, "_sides_of_event"),), says(None)),
    Rule("an event that carries both triggers", (39,), ((parting, "_carries"),), says(False)),
    Rule("pieces of a trigger", (41,), ((parting, "_has_more"),), says(False)),
    Rule("parts that came along", (31,), ((parting, "_without_others"),), says(None)),
    Rule("parts where the network begins", (33,), ((parting, "two_parts_at_input"),), no_parts),
    Rule("parts that nobody relabelled", (35,), ((parting, "two_parts_by_origin"),), no_parts),
    Rule("coordinates beside samples outside", (39, 41), ((Sight, "contrasted"),), says(None), False),
    Rule("what lies far apart is heard again", (6, 31), ((hearing, "_beyond_chance"),), says(None)),
    Rule("relabelled and early in the network", (39,), ((hearing, "_bears_trigger"),), says(False)),
    Rule("doubt of any kind", (22,), ((hearing, "contradicted"),), says((0.0, "", {}))),
    Rule("doubt: other labels hold relabelled samples", (30,), ((doubting, "_as_wrong_labels"),), says((0.0, {}))),
    Rule("doubt: ordinary samples suffer", (22,), ((Suspect, "harm"),), says(0.0)),
    Rule("doubt: hardly a sample would be left", (36,), ((Kinds, "smallest_beside"),), says(0)),
    Rule("doubt: where other samples lie", (22, 28), ((Sight, "share_elsewhere"),), says((0.0, 0.0))),
    Rule("doubt: the rest of the label is of many labels", (44,), ((doubting, "_is_broad"),), says(False)),
    Rule("what is seen early", (29,), ((Sight, "told_from_others"),), says(0.0)),
    Rule("pictures of one scene", (42,), ((Sight, "variety"),), says(1.0)),
    Rule("what looks like its label", (45,), ((Sight, "at_home"),), says(0.0)),
    Rule("what the images themselves say", (45,), ((Pictures, "of"),), says(None)),
    Rule("taken from one label", (34,), ((doubting, "_taken"),), says(0.0)),
    Rule("whom the posterior speaks against", (12,), ((tracing, "_as_certain"),), all_judged),
    Rule("whom the posterior speaks for", (46,), ((tracing, "_as_certain"),), only_judged),
)


@contextmanager
def patched(rules: tuple[Rule, ...], make: Callable[[Rule, Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Put what ``make`` gives in the place of each function of the rules, inside the block."""
    with ExitStack() as stack:
        for rule in rules:
            for owner, name in rule.places:
                known = vars(owner)[name]
                stack.callback(setattr, owner, name, known)
                function = known.func if hasattr(known, "func") else known  # a cached property's
                replaced = make(rule, function)
                setattr(owner, name, property(replaced) if function is not known else replaced)
        yield


def main(grids: list[str]) -> None:
    """Trace what is missing, plan by plan: with all rules, then without each that said something."""
    torch.set_num_threads(1)
    done = set(map(key_of, read_rows(RESULT)))
    for name in grids or SUITE:
        grid = bench.read_grid(HERE / "grids" / f"{name}.toml")
        twins: set[Any] = set()
        for plan in grid.plans():
            twin = bench.twin_of(plan)
            n_mistakes = 0 if twin in twins else min(N_MISTAKES, grid.natural_mistakes)
            twins.add(twin)
            about = {"grid": name, "seed": plan.seed, "plan": bench.described(plan)}
            if plan.seed not in SEEDS or key_of(about) in done:
                continue
            try:
                subject = bench.Subject(incidents.make(plan), "cpu")
            except PoisontraceError:
                continue  # the attack failed, which the grid's own rows say
            n_events = min(N_EVENTS, grid.n_events) if grid.rules else 0
            wanted = [("poison", event) for event in range(n_events)]
            wanted += [("mistake", event) for event in range(n_mistakes)]
            found = [about | row for asked, event in wanted for row in ablated(subject, asked, event)]
            for row in found:
                bench.append(RESULT, row)
            print(*key_of(about), len(found), flush=True)


def key_of(row: Row) -> tuple[str, int, str]:
    """Return what no two victims of the suite have in common."""
    return row["grid"], row["seed"], json.dumps(row["plan"])


def ablated(subject: bench.Subject, asked: str, event: int) -> Iterator[Row]:
    """Yield the row of a trace with all rules, and of one without each rule that said something."""
    spoke: set[str] = set()

    def listening(rule: Rule, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **options: Any) -> Any:
            answer = function(*args, **options)
            if is_other(answer, rule.without(lambda *_, **__: answer, *args, **options)):
                spoke.add(rule.name)
            return answer

        return called

    def is_other(answer: Any, stand_in: Any) -> bool:
        if isinstance(answer, Split) and isinstance(stand_in, Split):
            return answer is not stand_in and (answer.separation, answer.gap) != (stand_in.separation, stand_in.gap)
        if isinstance(answer, np.ndarray):
            return not np.array_equal(answer, stand_in)
        return bool(answer != stand_in)

    with patched(tuple(rule for rule in RULES if rule.is_asked), listening):
        row = measured(subject, asked, event)
    if row is None:
        return
    about = {"kind": f"ablation, {asked}", "event": event}
    yield {**about, "rule": "", "decisions": [], **row}
    for rule in RULES:
        if rule.is_asked and rule.name not in spoke:
            continue

        def without(rule: Rule, function: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *args, **options: rule.without(function, *args, **options)

        with patched((rule,), without):
            row = measured(subject, asked, event)
        assert row is not None  # it was not without the rule
        yield {**about, "rule": rule.name, "decisions": rule.decisions, **row}


def measured(subject: bench.Subject, asked: str, event: int) -> Row | None:
    """Trace once; None after the last event."""
    measure = subject.trace_row if asked == "poison" else subject.clean_row
    row = measure("default", event)
    names = ("verdict", "n_found", "precision", "recall")
    facts = {"succeeded": subject.facts()["succeeded"]}
    return facts | {name: row[name] for name in names if name in row} if row else None


if __name__ == "__main__":
    main(sys.argv[1:])
