"""The command line: parse, call, print. Results go to stdout, progress and errors to stderr.

Exit codes: 0 done (also when nothing is found), 1 failed, 2 usage or bad input, 130 interrupted.
"""

import json
import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console

from poisontrace._errors import (
    InvalidInputError,
    OutOfMemoryError,
    PoisontraceError,
    StoreError,
    UnsupportedModelError,
    is_out_of_memory,
)
from poisontrace.screen import new_console, one_line, print_added, print_line, print_rows, print_trace, progress_bars

if TYPE_CHECKING:
    from poisontrace.ranks import Ranks

app = typer.Typer(
    name="poisontrace",
    help="Find the training samples behind one misclassification.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

PAGES_WITH_TABLES = ("docs/robustness.md", "docs/scaling.md")

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Seed = Annotated[int, typer.Option(help="Random seed.")]
Case = Annotated[Path, typer.Argument(help="A case folder.")]
Test = Annotated[
    str | None, typer.Option(help="Held-out samples for the accuracy, in a form of the data; default: of the case.")
]
Attempts = Annotated[
    str | None, typer.Option(help="The attacker's inputs with the wrong label; default: the events of the case.")
]
Moved = Annotated[str | None, typer.Option(help="New path of this part of the case, if it has moved.")]


@app.command()
def trace(
    model: Annotated[
        str,
        typer.Option(help="file.py:factory or package.module:factory, whose code is run; or a Hugging Face folder."),
    ],
    data: Annotated[
        str, typer.Option(help=".npz, .csv, .parquet, a folder of images by class, a saved data set, file.py:factory.")
    ],
    out: Annotated[Path, typer.Option(help="New folder for the case.")],
    weights: Annotated[
        Path | None, typer.Option(help="safetensors, or a plain state dict; left out where the model brings its own.")
    ] = None,
    events: Annotated[
        str | None, typer.Option(help="Misclassified inputs in a form of --data, with the wrong labels given.")
    ] = None,
    event: Annotated[
        str | None, typer.Option(help="One image or one row instead of an events file; needs --label.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="The wrong label that the model gave it: name or number.")] = None,
    classes: Annotated[
        str | None, typer.Option(help="Names of the labels in the order of the model's outputs: a,b,c or a .txt file.")
    ] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of labels in a table, if it is not found.")] = None,
    source_column: Annotated[
        str | None, typer.Option(help="Column that says where each row came from, such as the uploader.")
    ] = None,
    seed: Seed = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    rule: Annotated[str, typer.Option(help="default, or paper: the published procedure.")] = "default",
    layer: Annotated[str | None, typer.Option(help="Name of the last linear layer, if it is not found.")] = None,
    batch_size: Annotated[int, typer.Option(help="Samples a step; does not change the result.")] = 256,
    precision: Annotated[
        str, typer.Option(help="Of the forward pass: float32, bfloat16, float16. Samples may differ at the edges.")
    ] = "float32",
    memory: Annotated[
        str, typer.Option(help="Memory to get along with beside model, data and one batch: 512M, 2G, ...")
    ] = "1G",
    store_folder: Annotated[
        Path | None,
        typer.Option("--store", help="Keep the pass there: the next event on the same model and data needs none."),
    ] = None,
    truth: Annotated[
        Path | None, typer.Option(help="truth.json of a practice incident: judge the finished trace.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Say what the trace will take, and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Trace misclassifications to the responsible training samples and write a case folder.

    torchrun --nproc-per-node 4 -m poisontrace trace ... shares the work among processes.
    """
    with _errors(), _ranks() as ranks:
        from poisontrace import metrics, planning, readers, store, texts, tracing

        store.check_new_folder(out, "out")
        n_bytes, partial = _bytes(memory), store.partial_folder(out)
        if (events is None) == (event is None):
            got = "neither" if events is None else "both"
            raise InvalidInputError(
                f"'events' must be given, or else 'event' with 'label' (got {got}). Pass one of them."
            )
        if (event is None) != (label is None):
            raise InvalidInputError(
                f"'label' must be given with 'event' (got {label}). It is the wrong label that the model gave the "
                "image; an events file holds its own."
            )
        console = new_console(stderr=True)
        # Standard output is ours, whatever code of the evidence prints.
        with redirect_stdout(sys.stderr):
            names = None if classes is None else readers.read_classes(classes)
            for spec in (model, data, events):
                if spec is not None and readers.is_factory(spec):
                    print_line(console, f"Running the code of {spec}.")
            loaded = readers.read_model(model, weights)
            train_set, data_file = readers.read(
                data,
                "data",
                classes=names or loaded.classes,
                label_column=label_column,
                source_column=source_column,
                tokenize=loaded.tokenize,
            )
            if events is not None:
                event_set, event_file = readers.read(
                    events, "events", label_column=label_column, tokenize=loaded.tokenize, like=train_set
                )
            else:
                assert event is not None and label is not None
                event_set, event_file = readers.read_event(event, label, train_set, tokenize=loaded.tokenize)
            readers.check_same_form(event_set, train_set)
        poison = None if truth is None else metrics.read_truth(truth, len(train_set))
        options: dict[str, Any] = {
            **{"rule": rule, "layer": layer, "device": device, "batch_size": batch_size},
            **{"precision": precision, "memory": n_bytes, "store": store_folder or partial},
        }
        with redirect_stdout(sys.stderr):
            pairs = readers.as_pairs(event_set)
            if not ranks.is_first:
                if not dry_run:
                    tracing.assist(
                        loaded.network,
                        train_set,
                        pairs,
                        ranks=ranks,
                        **{name: options[name] for name in ("layer", "device", "batch_size", "precision", "store")},
                    )
                return
            forecast = planning.forecast(loaded.network, train_set, pairs, **options)
        if dry_run:
            if as_json:
                print(json.dumps(forecast.as_dict()))
            else:
                print_rows(new_console(), forecast.rows())
            return
        print_line(console, f"Plan: {', '.join(forecast.rows().values())}.")
        with _kept(console, store_folder or partial), redirect_stdout(sys.stderr), progress_bars(console) as progress:
            result = tracing.trace(
                *(loaded.network, train_set, pairs),
                **options,
                seed=seed,
                ranks=ranks,
                progress=progress,
            )
        if loaded.tokenize is not None and result.verdict != "poison":
            result = replace(result, warnings=(*result.warnings, texts.CAUTION))
        class_names = list(train_set.classes or ())
        given = {"model": (model, loaded.file), "data": (data, data_file), "events": (events or event, event_file)}
        inputs = {name: readers.describe(str(spec), file) for name, (spec, file) in given.items()}
        if weights is not None:
            inputs["weights"] = readers.describe(str(weights), weights)
        columns = {"label_column": label_column, "source_column": source_column}
        inputs["data"] |= {name: column for name, column in columns.items() if column is not None}
        inputs["events"] |= {} if label is None else {"label": label}
        context: dict[str, Any] = {
            "inputs": inputs,
            "command": shlex.join(["poisontrace", *sys.argv[1:]]),
            "classes": class_names,
            "columns": getattr(train_set, "columns", None),
            "texts": readers.texts_shown(train_set, event_set, result.exhibits),
        }
        if poison is not None:
            judged = {f.__name__: f(result.poison, poison) for f in (metrics.precision, metrics.recall)}
            context["truth"] = judged
        result.save(out, context=context)
        store.remove(partial)

        case = json.loads((out / "trace.json").read_text(encoding="utf-8"))
        if as_json:
            print(json.dumps({**case, "poison": result.poison.tolist(), "case": str(out)}))
            return
        print_trace(case, out)
        for warning in result.warnings:
            print_line(console, f"Warning: {warning}")


@app.command()
def attack(
    attack: Annotated[str, typer.Option(help="Which attack; see poisontrace list.")],
    dataset: Annotated[str, typer.Option(help="Which data set; see poisontrace list.")],
    out: Annotated[Path, typer.Option(help="New folder for the incident.")],
    rate: Annotated[float, typer.Option(help="Poison / training size, in (0, 1).")] = 0.05,
    seed: Seed = 0,
    n_train: Annotated[
        int | None, typer.Option(help="Training samples; default 20,000 of cifar10, all of digits.")
    ] = None,
    n_events: Annotated[int, typer.Option("--events", help="Misclassifications to keep.")] = 5,
    target: Annotated[int | None, typer.Option(help="Label the attacker wants; default: drawn from the seed.")] = None,
    wrong_labels: Annotated[
        float, typer.Option(help="Share of the labels that are wrong before the attack, in [0, 1).")
    ] = 0.0,
    model: Annotated[str | None, typer.Option(help="Victim's network; see poisontrace list.")] = None,
    width: Annotated[int | None, typer.Option(help="Victim's width.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training set.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Weight decay of its training.")] = None,
    smoothing: Annotated[float | None, typer.Option(help="Label smoothing of its training, in [0, 1).")] = None,
    training: Annotated[str, typer.Option(help="scratch, transfer or finetune; see poisontrace list.")] = "scratch",
    option: Annotated[
        list[str] | None, typer.Option(help="name=value, an option of the attack; may be repeated.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Poison a data set, train the victim and its unpoisoned twin, and write an incident to practise on."""
    with _errors():
        from poisontrace import incidents, store

        store.check_new_folder(out, "out")
        plan = incidents.Plan(
            attack=attack,
            dataset=dataset,
            rate=rate,
            seed=seed,
            n_train=n_train,
            n_events=n_events,
            target=target,
            wrong_labels=wrong_labels,
            training=training,
            model=model,
            width=width,
            epochs=epochs,
            weight_decay=weight_decay,
            smoothing=smoothing,
            options=_options(option or []),
        )
        with progress_bars(new_console(stderr=True)) as progress:
            incident = incidents.make(plan, progress=progress)
        incidents.save(incident, out)
        facts = incident.facts
        if as_json:
            print(json.dumps({**facts, "incident": str(out)}))
            return
        target_name = incident.classes[facts["target"]]
        files = {
            "model": "arch.py:build",
            "weights": "weights.safetensors",
            "data": "train.npz",
            "events": "events.npz",
        }
        options = [part for name, file in files.items() for part in (f"--{name}", f"{out}/{file}")]
        rows = {
            "attack": f"{attack}: {facts['n_poison']:,} of {facts['n_train']:,} samples, target {target_name!r}",
            "success": f"{facts['attack_success']:.1%}, without poison {facts['attack_success_twin']:.1%}",
            "clean accuracy": f"{facts['clean_accuracy']:.1%}, without poison {facts['clean_accuracy_twin']:.1%}",
            "train accuracy": f"{facts['train_accuracy']:.1%}",
            "events": str(len(incident.event_y)),
            "incident": str(out),
            "next": shlex.join(["poisontrace", "trace", *options, "--out", "case"]),
            "then": shlex.join(
                ["poisontrace", "verify", "case", "--train-with", f"{out}/recipe.py:train", "--seed", str(seed)]
            ),
        }
        if not facts["succeeded"]:
            rows = {"NOTE": "this attack FAILED: its success is too low, or the trigger alone already works", **rows}
        print_rows(new_console(), rows)


@app.command()
def verify(
    case: Case,
    train_with: Annotated[
        str, typer.Option(help="file.py:function or package.module:function, train(x, y, seed); its code is run.")
    ],
    seed: Seed = 0,
    test: Test = None,
    attempts: Attempts = None,
    data: Moved = None,
    events: Moved = None,
    model: Annotated[str | None, typer.Option(help="Where the folder of a model of texts lies now.")] = None,
    as_json: AsJson = False,
) -> None:
    """Prove a case: train without the samples found, and without as many others, and compare."""
    with _errors():
        from poisontrace import verifying

        with _running() as reports:
            done = verifying.verify(
                case,
                train_with,
                seed=seed,
                test=test,
                attempts=attempts,
                data=data,
                events=events,
                model=model,
                **reports,
            )
        print_added(case, "verify", as_json, {"result": done.result, "summary": done.summary})


@app.command()
def repair(
    case: Case,
    out: Annotated[
        Path | None, typer.Option(help="New .safetensors file; default: repaired.safetensors in the case.")
    ] = None,
    seed: Seed = 0,
    test: Test = None,
    attempts: Attempts = None,
    model: Annotated[
        str | None, typer.Option(help="The function or folder of the case's model, if it has moved.")
    ] = None,
    weights: Moved = None,
    data: Moved = None,
    events: Moved = None,
    as_json: AsJson = False,
) -> None:
    """Write weights in which the samples found are unlearned, and say what that costs."""
    with _errors():
        from poisontrace import repairing

        with _running() as reports:
            done = repairing.repair(
                case,
                out=out,
                seed=seed,
                test=test,
                attempts=attempts,
                model=model,
                weights=weights,
                data=data,
                events=events,
                **reports,
            )
        print_added(
            case, "repair", as_json, {"result": done.result, "summary": done.summary, "weights": str(done.weights)}
        )


@app.command()
def review(
    case: Case,
    decisions: Annotated[Path, typer.Option(help="The file that the report downloads.")],
    as_json: AsJson = False,
) -> None:
    """Merge what people decided in the report, score the other samples anew and write the case again."""
    with _errors():
        from poisontrace import reviewing

        done = reviewing.review(case, decisions)
        if as_json:
            lists = {name: getattr(done, name).tolist() for name in ("confirmed", "cleared", "let_go", "poison")}
            print(json.dumps({"verdict": done.verdict, "summary": done.summary, **lists, "case": str(case)}))
            return
        print_rows(
            new_console(),
            {"verdict": done.verdict, "summary": done.summary, "report": str(case / "report.html")},
        )


@app.command()
def export(
    case: Case,
    what: Annotated[str, typer.Option(help="clean-index, poison-list, filelist or cleaned-data.")],
    out: Annotated[Path, typer.Option(help="New file; for a folder of data, a new folder.")],
    data: Moved = None,
    as_json: AsJson = False,
) -> None:
    """Write what a case accuses, or the training set without it, in the form that the data came in."""
    with _errors():
        from poisontrace import exporting

        done = exporting.export(case, what, out, data=data)
        if as_json:
            print(json.dumps({"out": str(done.out), "n_kept": done.n_kept, "n_left_out": done.n_left_out}))
            return
        rows = {
            "kept": f"{done.n_kept:,} samples",
            "left out": f"{done.n_left_out:,} samples",
            "written": str(done.out),
        }
        print_rows(new_console(), rows)


@app.command()
def report(case: Case) -> None:
    """Write the report of a case folder again."""
    with _errors():
        from poisontrace import report as report_module
        from poisontrace import store

        try:
            page = report_module.render(case)
        except StoreError as error:
            raise InvalidInputError(str(error)) from error  # the folder named is at fault, so exit code 2
        store.write_atomically(case / "report.html", page.encode("utf-8", "surrogateescape"))
        print(one_line(str(case / "report.html")))


@app.command(name="list")
def list_() -> None:
    """Show attacks with their options, data sets, models and kinds of training, one line each."""
    with _errors():
        from poisontrace.attacks import ATTACKS
        from poisontrace.attacks.base import KINDS
        from poisontrace.datasets import DATASETS
        from poisontrace.incidents import TRAININGS
        from poisontrace.models import MODELS

        attacks = {}
        for name, attack_kind in ATTACKS.items():
            options = ", ".join(attack_kind.options()) or "none"
            attacks[name] = (
                f"{attack_kind.summary}; on {KINDS[attack_kind.kind]}; options {options}; {attack_kind.paper}"
            )
        kinds: dict[str, dict[str, str]] = {
            "attacks": attacks,
            "data sets": {name: summary for name, (_, summary) in DATASETS.items()},
            "models": {
                name: (build.__doc__ or "").splitlines()[0].replace("``", "").rstrip(".")
                for name, build in MODELS.items()
            },
            "kinds of training": TRAININGS,
        }
        for kind, entries in kinds.items():
            print(f"{kind}:")
            for name, summary in entries.items():
                print(f"  {name:<12} {summary}")


@app.command()
def bench(
    grid: Annotated[Path | None, typer.Argument(help="A grid of incidents, .toml.")] = None,
    tables_only: Annotated[bool, typer.Option(help="Renew the tables from the committed rows alone.")] = False,
    results: Annotated[Path, typer.Option(help="Folder of the rows.")] = Path("benchmarks/results"),
    readme: Annotated[
        list[Path] | None,
        typer.Option(help="Page with marks where tables go; default: README.md, benchmarks/README.md, pages of docs."),
    ] = None,
) -> None:
    """Trace every incident of a grid, one JSON row a trace, and renew the tables; resumes where it stopped."""
    with _errors():
        from poisontrace import tables

        if (grid is None) != tables_only:
            got = "neither" if grid is None else "both"
            raise InvalidInputError(f"'grid' must be given, or else '--tables-only' (got {got}). Pass one of them.")
        pages = readme or [Path("benchmarks/README.md"), Path("README.md"), *map(Path, PAGES_WITH_TABLES)]
        if grid is not None:
            from poisontrace import bench as bench_module

            bench_module.read_grid(grid)  # what is wrong with the grid or the page is said before hours of work
            for page in pages:
                tables.check_page(page)
            with progress_bars(new_console(stderr=True)) as progress:
                bench_module.run(grid, results, progress=progress)
        for page in pages:
            tables.write_tables(results, page)
            print(one_line(str(page)))


def _options(pairs: list[str]) -> dict[str, Any]:
    """Return options given as name=value, each value as true, false or a number if it is one."""
    options: dict[str, Any] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not (name and separator and value):
            raise InvalidInputError(f"'option' must be name=value (got {pair!r}). Write --option size=4, for example.")
        if name in options:
            raise InvalidInputError(f"'option' must name each option once (got {name!r} again). Remove one.")
        options[name] = _value(value)
    return options


def _value(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


@contextmanager
def _running() -> Iterator[dict[str, Any]]:
    """Yield what work that runs code from outside reports to: ``announce`` and ``progress``; stdout stays ours."""
    console = new_console(stderr=True)
    with redirect_stdout(sys.stderr), progress_bars(console) as progress:
        yield {"announce": lambda code: print_line(console, f"Running the code of {code}."), "progress": progress}


@contextmanager
def _ranks() -> Iterator["Ranks"]:
    """Yield the processes that torchrun started; all but the first one say nothing unless they fail."""
    from poisontrace import ranks

    with ranks.joined() as joined, ExitStack() as stack:
        if not joined.is_first:
            silence = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(redirect_stdout(silence))
            stack.enter_context(redirect_stderr(silence))
        yield joined


@contextmanager
def _kept(console: Console, folder: Path) -> Iterator[None]:
    """Say, when the block fails, where the work so far is kept."""
    try:
        yield
    except BaseException:
        if folder.is_dir():
            print_line(console, f"What was done so far is kept in {folder}; run the same command again to resume.")
        raise


def _bytes(text: str) -> int:
    """Return a size written as 512M, 2G, 1.5GiB or in bytes."""
    found = re.fullmatch(r"(\d{1,15}(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if found is None:
        raise InvalidInputError(f"'memory' must be a number of bytes (got {text!r}). Write 512M or 2G.")
    number, unit = found.groups()
    return int(float(number) * 1024 ** " KMGT".index(unit.upper() or " "))


@contextmanager
def _errors() -> Iterator[None]:
    """Turn errors into one sentence on stderr and the exit code that belongs to them."""
    try:
        yield
    except (InvalidInputError, UnsupportedModelError) as error:
        _fail(str(error), 2)
    except PoisontraceError as error:
        _fail(str(error), 1)
    except OSError as error:
        _fail(f"A file could not be read or written: {error}.", 1)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        _fail(str(OutOfMemoryError()), 1)
    except KeyboardInterrupt:
        _fail("Interrupted; no result was written.", 130)


def _fail(message: str, code: int) -> NoReturn:
    print(f"Error: {one_line(' '.join(message.split()))}", file=sys.stderr)
    raise typer.Exit(code)


def main() -> None:
    """Run the command line."""
    app()
