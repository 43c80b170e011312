"""What the command line prints: tables, words and bars; text from the evidence cannot steer the terminal."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table


def one_line(text: str) -> str:
    """Return text as one line without the characters that could steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def plain(text: str) -> str:
    """Return text from the evidence for a cell: one line, and nothing that Rich takes for markup."""
    return one_line(text).replace("[", "(").replace("]", ")")


def new_console(*, stderr: bool = False) -> Console:
    """Return a console on standard output, or on standard error."""
    return Console(stderr=stderr, emoji=False)  # or a path with ":key:" in it would be printed as another one


def print_line(console: Console, text: str) -> None:
    """Print text as one line, as it is."""
    console.print(one_line(text), markup=False, highlight=False, soft_wrap=True)


def print_rows(screen: Console, rows: dict[str, str]) -> None:
    """Print values by their names, one a line."""
    width = max(len(name) for name in rows)
    for name, value in rows.items():
        print_line(screen, f"{name:<{width}}  {value}")


@contextmanager
def progress_bars(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a callback that draws one bar a stage, with elapsed and remaining time, on stderr."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("elapsed,"),
        TimeRemainingColumn(),
        TextColumn("to go"),
    )
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, Any] = {}

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(plain(stage), total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield advance


def print_trace(case: Mapping[str, Any], out: Path) -> None:
    """Print what a case folder found, given the content of its ``trace.json``."""
    from poisontrace.filing import AT_EVEN_ODDS, chance_of_error, percent

    events = case["events"]
    verdict = Column("verdict", no_wrap=True, min_width=max(len(event["verdict"]) for event in events))
    head = ("event", "answered", "confidence", verdict, "found", "apart", "event rise", "control rise")
    table = Table(*head, box=None, pad_edge=False)  # fits into 80 columns
    for number, event in enumerate(events, 1):
        figures = [event["statistics"].get(key) for key in ("separation", "event_rise", "control_rise")]
        cells = [str(number), plain(event["label_name"]), f"{event['probability']:.1%}", event["verdict"]]
        table.add_row(*cells, f"{event['n_poison']:,}", *("" if one is None else f"{one:.2f}" for one in figures))
    screen = new_console()
    screen.print(table)
    rows = {
        "verdict": case["verdict"],
        "responsible": f"{case['n_poison']:,} of {case['n_samples']:,} training samples",
    }
    if case.get("n_suspects"):
        rows["suspects"] = f"{case['n_suspects']:,}, that may be ordinary; they are in {out / 'suspects.csv'}"
    chance = chance_of_error(case)
    if chance is not None:
        rows["error"] = f"{percent(chance)} chance that this verdict is wrong, {AT_EVEN_ODDS}"
    for number, campaign in enumerate(case["campaigns"] if len(events) > 1 else [], 1):
        some = ", ".join(str(event + 1) for event in campaign["events"])
        some = f"event{'' if len(campaign['events']) == 1 else 's'} {some}, answered {campaign['label_name']}"
        rows[f"campaign {number}"] = f"{some}: {campaign['n_poison']:,} samples"
    rows["seconds"] = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in case["seconds"].items())
    if "truth" in case:
        rows["against the truth"] = ", ".join(f"{name} {value:.3f}" for name, value in case["truth"].items())
    rows["report"] = str(out / "report.html")
    print_rows(screen, rows)


def print_added(case: Path, name: str, as_json: bool, rows: dict[str, str]) -> None:
    """Print what was added to a case: what two models answer to each event, and how they do otherwise."""
    from poisontrace.filing import ADDED

    added = json.loads((case / f"{name}.json").read_text(encoding="utf-8"))
    if as_json:
        print(json.dumps({**added, "case": str(case)}))
        return
    _, models = ADDED[name]
    table = Table("event", "wrong label", *models.values(), "", box=None, pad_edge=False)
    for number, event in enumerate(added["events"], 1):
        answers = [f"{plain(event[key]['label_name'])} ({event[key]['probability']:.1%})" for key in models]
        table.add_row(str(number), plain(event["label_name"]), *answers, event["result"])
    screen = new_console()
    screen.print(table)
    screen.print("In brackets: belief in the wrong label.", highlight=False)
    shares = {"accuracy": ("accuracy", added["accuracy_on"]), "attack success": ("success", added["success_on"])}
    for title, (key, of) in shares.items():
        rows[title] = ", ".join(f"{added[model][key]:.1%} {words}" for model, words in models.items()) + f"; on {of}"
    print_rows(screen, {**rows, "report": str(case / "report.html")})
