"""The command line: what it answers to sound and to bad input, on which stream, and what it leaves behind."""

import csv
import json
import re
import resource
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bad_inputs import BAD_INPUTS, attack, snapshot, trace, write_incident
from click.testing import Result
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from test_columns import write_csv
from test_images import write_folder
from typer.testing import CliRunner

from poisontrace import datasets, incidents, store, tracing, train
from poisontrace._errors import OutOfMemoryError, PoisontraceError, UnlearningDivergedError
from poisontrace._rng import global_seed
from poisontrace._types import Campaign, Trace
from poisontrace.attacks import ATTACKS
from poisontrace.cli import app
from poisontrace.data import to_inputs
from poisontrace.datasets import DATASETS
from poisontrace.incidents import TRAININGS, Incident
from poisontrace.models import MODELS

CASE_FILES = ["coordinates.npz", "exhibits.npz", "poison.csv", "report.html", "scores.npy", "trace.json"]
COMMANDS = ["trace", "attack", "verify", "repair", "review", "export", "report", "list", "bench"]

run = CliRunner().invoke


@dataclass(frozen=True)
class Run:
    """A finished command: what it printed, and the folder it wrote."""

    done: Result
    folder: Path


@pytest.fixture(scope="module")
def practice(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A small incident, made by the command line; its victim is trained, not found in the cache."""
    folder = tmp_path_factory.mktemp("practice") / "incident"
    arguments = attack(folder.parent, epochs=4, width=16, events=2, out=folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POISONTRACE_CACHE", str(folder.with_name("cache")))
        return Run(run(app, [*arguments, "--json"]), folder)


@pytest.fixture(scope="module")
def traced(practice: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """The case that the command line made of it, with the truth, as JSON."""
    folder = tmp_path_factory.mktemp("traced") / "case"
    arguments = [*trace(practice.folder, out=folder, truth=practice.folder / "truth.json"), "--json"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["/usr/bin/poisontrace", *arguments])
        yield Run(run(app, arguments), folder)


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input_is_one_sentence_and_exit_code_2(name: str, tmp_path: Path) -> None:
    """The last line of stderr names the argument, the rule and the way out; stdout and the disk stay as they were."""
    write_incident(tmp_path)
    arguments = BAD_INPUTS[name](tmp_path)
    before = snapshot(tmp_path)

    done = run(app, arguments)

    *progress, message = done.stderr.removesuffix("\n").split("\n")
    sentence = r"Error: '[a-z_: -]+' must .+ \(got .+\)\. [A-Za-z].+\.|Error: '[a-z_]+' must be one of .+"
    assert (done.exit_code, done.stdout) == (2, "")
    assert re.fullmatch(sentence, message)
    assert not any(line.startswith("Error") or "Traceback" in line for line in progress)
    assert all(character.isprintable() or character == "\n" for character in done.stderr)
    assert snapshot(tmp_path) == before


def test_the_committed_answers_are_to_this_table() -> None:
    """Run benchmarks/bad_inputs.py after a change of the table."""
    path = Path(__file__).parents[1] / "benchmarks" / "results" / "bad-inputs.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]

    assert [(row["case"], row["code"]) for row in rows] == [(name, 2) for name in BAD_INPUTS]


def test_the_sound_incident_of_the_table_is_traced(tmp_path: Path) -> None:
    """What the table spoils is sound before, so that each case fails for its own reason."""
    write_incident(tmp_path)

    done = run(app, trace(tmp_path))

    assert (done.exit_code, (tmp_path / "case").is_dir()) == (0, True)


@pytest.mark.parametrize(
    "arguments",
    [["trace", "--speed"], ["trace"], ["attack", "--rate", "much"], ["report"], ["trace", "--seed", "1.5"], ["delete"]],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    """Unknown options and commands, missing ones and words for numbers are refused with the usage."""
    done = run(app, arguments)

    assert (done.exit_code, done.stdout) == (2, "")
    assert "Usage: " in done.stderr


def test_an_interrupt_keeps_the_pass_and_the_same_command_goes_on(
    digits_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 130 and two lines; then no sample is run again, and nothing hidden is left behind."""
    arguments = trace(digits_folder, out=tmp_path / "case")
    search = tracing._follow

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tracing, "_follow", interrupt)
    stopped = run(app, arguments)

    kept = tmp_path / ".case.partial"
    assert stopped.exit_code == 130
    assert stopped.stderr.splitlines()[-2:] == [
        f"What was done so far is kept in {kept}; run the same command again to resume.",
        "Error: Interrupted; no result was written.",
    ]
    assert "Traceback" not in stopped.stderr
    assert kept.is_dir()
    assert not (tmp_path / "case").exists()

    monkeypatch.setattr(tracing, "_follow", search)
    planned = run(app, [*arguments, "--dry-run"])
    done = run(app, arguments)

    assert "0 forward passes" in planned.stdout
    assert done.exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["case"]


def test_a_store_is_kept(digits_folder: Path, tmp_path: Path) -> None:
    """The second trace finds the pass there; both give the same case but for times."""
    for name in ("first", "second"):
        arguments = trace(digits_folder, out=tmp_path / name, store=tmp_path / "store", memory="64M")
        assert run(app, arguments).exit_code == 0

    first, second = (tmp_path / name for name in ("first", "second"))
    assert (first / "scores.npy").read_bytes() == (second / "scores.npy").read_bytes()
    assert (first / "poison.csv").read_bytes() == (second / "poison.csv").read_bytes()
    assert len(list((tmp_path / "store").iterdir())) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second", "store"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), str(OutOfMemoryError())),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), str(OutOfMemoryError())),
        (OSError(28, "disk full"), "A file could not be read or written: [Errno 28] disk full."),
        (UnlearningDivergedError("not finite"), "not finite"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_failure_on_our_side_is_exit_code_1(
    error: BaseException, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence, no traceback, and no case."""

    def fail(*_: object, **__: object) -> None:
        raise error

    write_incident(tmp_path)
    monkeypatch.setattr(tracing, "trace", fail)

    done = run(app, trace(tmp_path))

    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == f"Error: {message}"
    assert not (tmp_path / "case").exists()


def test_an_attack_that_moves_nothing_is_exit_code_1(tmp_path: Path) -> None:
    """There is nothing to trace, and no incident is left."""
    done = run(app, attack(tmp_path, rate=0.001, epochs=1, width=1, **{"n-train": 1000}))

    assert (done.exit_code, list(tmp_path.iterdir())) == (1, [])
    assert done.stderr.splitlines()[-1].startswith("Error: The attack failed: ")


def test_attack_prints_facts_as_json(practice: Run) -> None:
    """Standard output is one JSON object; progress went to standard error."""
    facts = json.loads(practice.done.stdout)

    assert practice.done.exit_code == 0
    assert (facts["succeeded"], facts["incident"]) == (True, str(practice.folder))
    assert "train" in practice.done.stderr


def test_training_and_options_reach_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values are true or false, whole numbers, numbers or text, whichever they are first."""
    plans: list[incidents.Plan] = []

    def make(plan: incidents.Plan, **_: object) -> None:
        plans.append(plan)
        raise PoisontraceError("Enough.")

    monkeypatch.setattr(incidents, "make", make)
    pairs = ["size=3", "margin=-1", "lr=0.5", "scale=1e3", "shape=square", "text=a=b", "is_so=true"]

    done = run(app, [*attack(tmp_path, training="finetune"), *(part for pair in pairs for part in ("--option", pair))])

    assert (done.exit_code, done.stderr.splitlines()[-1]) == (1, "Error: Enough.")
    (plan,) = plans
    assert plan.training == "finetune"
    assert plan.options == {
        **{"size": 3, "margin": -1, "lr": 0.5, "scale": 1000.0},
        **{"shape": "square", "text": "a=b", "is_so": True},
    }
    assert [type(value) for value in plan.options.values()] == [int, int, float, float, str, str, bool]


def test_an_incident_is_made_with_them(tmp_path: Path) -> None:
    """The patch has the size asked for, and truth.json holds the plan."""
    done = run(app, attack(tmp_path, epochs=4, width=8, training="finetune", option="size=3", rate=0.1))

    assert done.exit_code == 0
    truth = json.loads((tmp_path / "incident" / "truth.json").read_text())
    assert (truth["plan"]["training"], truth["plan"]["options"]) == ("finetune", {"size": 3})
    with np.load(tmp_path / "incident" / "train.npz") as arrays:
        corners = arrays["x"][truth["poison"], 5:, 5:]
    assert (corners == corners[0]).all()


def test_attack_names_the_next_command(tmp_path: Path, practice: Run) -> None:
    """The command it ends with traces what it made, also where the path holds a space."""
    out = tmp_path / "my incident"
    done = run(app, attack(tmp_path, epochs=4, width=16, events=1, out=out))

    (line,) = (line for line in done.stdout.splitlines() if line.startswith("next"))
    program, *arguments = shlex.split(line.removeprefix("next"))

    assert (program, arguments[-2:]) == ("poisontrace", ["--out", "case"])
    assert run(app, [*arguments[:-1], str(tmp_path / "case")]).exit_code == 0
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("then"))
    _, command, _, *recipe = shlex.split(line.removeprefix("then"))
    assert (command, run(app, [command, str(tmp_path / "case"), *recipe]).exit_code) == ("verify", 0)
    said = re.sub(r"train\.npz|train accuracy|--train-with|recipe\.py:train", "", done.stdout)
    assert "train" not in said


def test_trace_prints_the_case_as_json(traced: Run) -> None:
    """Standard output is one JSON object: the case, its poison and where it lies; progress went to standard error."""
    case = json.loads(traced.done.stdout)

    assert traced.done.exit_code == 0
    assert (case["verdict"], case["case"], case["n_poison"]) == ("poison", str(traced.folder), len(case["poison"]))
    assert "forward pass" in traced.done.stderr and "events traced" in traced.done.stderr


def test_the_truth_is_judged_after_the_trace(traced: Run, practice: Run) -> None:
    """Precision and recall are those of the indices found against truth.json."""
    case = json.loads(traced.done.stdout)
    truth = set(json.loads((practice.folder / "truth.json").read_text())["poison"])
    found = set(case["poison"])

    assert case["truth"] == {"precision": len(found & truth) / len(found), "recall": len(found & truth) / len(truth)}
    assert min(case["truth"].values()) > 0.9


def test_the_case_folder_is_complete(traced: Run) -> None:
    """Five files, and nothing beside the folder."""
    assert sorted(path.name for path in traced.folder.iterdir()) == CASE_FILES
    assert list(traced.folder.parent.iterdir()) == [traced.folder]


def test_the_evidence_is_left_as_found(traced: Run, practice: Run) -> None:
    """Neither bytecode nor anything else is written beside the evidence."""
    assert sorted(path.name for path in practice.folder.iterdir()) == [
        *("arch.py", "attempts.npz", "events.npz", "incident.json", "recipe.py", "test.npz", "train.npz"),
        *("truth.json", "weights.safetensors"),
    ]


def test_the_recorded_command_traces_again(
    traced: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, practice: Run
) -> None:
    """It gives the same poison and scores, byte for byte; without --json it prints a table and what to read next."""
    program, *arguments = shlex.split(json.loads((traced.folder / "trace.json").read_text())["command"])
    arguments[arguments.index("--out") + 1] = str(tmp_path / "again")
    arguments.remove("--json")
    # The model may also be named relative to where the command is run.
    monkeypatch.chdir(practice.folder)
    arguments[arguments.index("--model") + 1] = "arch.py:build"

    done = run(app, arguments)

    assert (program, done.exit_code) == ("poisontrace", 0)
    for name in ("poison.csv", "scores.npy"):
        assert (tmp_path / "again" / name).read_bytes() == (traced.folder / name).read_bytes()
    rows = dict(re.findall(r"^(verdict|responsible|against the truth|report) +(.+)$", done.stdout, re.MULTILINE))
    case = json.loads(traced.done.stdout)
    assert rows == {
        "verdict": "poison",
        "responsible": f"{case['n_poison']} of 1,437 training samples",
        "against the truth": f"precision {case['truth']['precision']:.3f}, recall {case['truth']['recall']:.3f}",
        "report": str(tmp_path / "again" / "report.html"),
    }
    assert "forward pass 1" not in done.stdout and "Running the code of arch.py:build" in done.stderr


def test_names_from_the_evidence_reach_the_case_but_not_the_terminal(
    practice: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package as the model, a plain state dict, one image as the event; ids and hostile classes of train.npz show."""
    with np.load(practice.folder / "train.npz") as arrays:
        x, y = arrays["x"], arrays["y"]
    ids = np.array([f"digit-{row}.png" for row in range(len(x))])
    classes = np.array([f"\x1b[31m[bold]{label}\n:skull:" for label in range(10)])
    np.savez(tmp_path / "train.npz", x=x, y=y, ids=ids, classes=classes)
    with np.load(practice.folder / "events.npz") as arrays:
        Image.fromarray(arrays["x"][0, :, :, 0]).save(tmp_path / "event.png")
        label = int(arrays["y"][0])
    torch.save(load_file(practice.folder / "weights.safetensors"), tmp_path / "weights.pt")
    (tmp_path / "victims").mkdir()
    (tmp_path / "victims" / "__init__.py").write_text("print('hello')\n")
    (tmp_path / "victims" / "small.py").write_text((practice.folder / "arch.py").read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["poisontrace", "trace", "--event", "a\x1b[31m"])
    options = {"events": None, "event": "event.png", "label": label, "weights": "weights.pt"}

    done = run(app, trace(tmp_path, model="victims.small:build", **options))

    assert done.exit_code == 0
    rows = list(csv.DictReader((tmp_path / "case" / "poison.csv").read_text().splitlines()))
    assert rows and all(row["id"] == f"digit-{row['index']}.png" for row in rows)
    page = (tmp_path / "case" / "report.html").read_text()
    assert f"digit-{rows[0]['index']}.png" in page and "[bold]" in page
    assert "?(31m" in done.stdout and "💀" not in done.stdout
    assert all(character.isprintable() or character == "\n" for character in done.stdout + done.stderr)
    assert "hello" not in done.stdout and "hello" in done.stderr
    assert json.loads((tmp_path / "case" / "trace.json").read_text())["events"][0]["label"] == label


@pytest.mark.parametrize("n_events", [1, 2])
def test_events_that_belong_together_are_printed(
    n_events: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row a campaign, numbered as in the table above it; none where there is one event."""
    write_incident(tmp_path)
    with np.load(tmp_path / "train.npz") as arrays:
        np.savez(tmp_path / "train.npz", x=arrays["x"], y=arrays["y"], classes=["\x1b[31m[bold]a", "b", "c"])
    found = tracing.trace

    def some(model: Any, train_set: Any, events: Any, **options: Any) -> Trace:
        result = found(model, train_set, events[:n_events], **options)
        campaigns = (Campaign(0, tuple(range(n_events)), np.arange(12)), Campaign(2, (1,), np.arange(3)))
        return replace(result, campaigns=campaigns[:n_events])

    monkeypatch.setattr(tracing, "trace", some)

    done = run(app, trace(tmp_path))

    assert done.exit_code == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith("campaign")]
    both = ["events 1, 2, answered ?[31m[bold]a: 12 samples", "event 2, answered c: 3 samples"]
    assert said == ([] if n_events == 1 else [f"campaign {number}   {text}" for number, text in enumerate(both, 1)])


def test_a_dry_run_says_what_it_would_take_and_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples, passes, time, memory, disk; nothing is traced or written."""
    write_incident(tmp_path)
    monkeypatch.setattr(tracing, "trace", None)

    done, as_json = (run(app, [*trace(tmp_path), "--dry-run", *more]) for more in ([], ["--json"]))

    assert (done.exit_code, as_json.exit_code) == (0, 0)
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        *("samples", "passes", "time", "memory", "disk", "store")
    ]
    assert "12 samples and 2 events" in done.stdout
    assert json.loads(as_json.stdout)["n_samples"] == 12
    assert not (tmp_path / "case").exists()


DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def test_a_folder_of_images_is_traced_as_arrays_are(
    digits_incident: Incident, digits_folder: Path, tmp_path: Path
) -> None:
    """The same samples are found, named by their files; the event is one photo, its label a name."""
    x, event = digits_incident.x, digits_incident.event_x[0, :, :, 0]
    write_folder(tmp_path / "train", x, digits_incident.y, DIGITS)
    Image.fromarray(event).save(tmp_path / "photo.png")
    label = DIGITS[digits_incident.event_y[0]]
    options = {"events": None, "event": tmp_path / "photo.png", "label": label, "classes": ",".join(DIGITS)}

    done = run(app, trace(digits_folder, data=tmp_path / "train", out=tmp_path / "case", **options))

    assert done.exit_code == 0, done.stderr
    assert label in done.stdout
    rows = list(csv.DictReader((tmp_path / "case" / "poison.csv").read_text().splitlines()))
    reference = tracing.trace(
        digits_incident.model,
        (x, digits_incident.y),
        [(to_inputs(digits_incident.event_x[:1])[0], int(digits_incident.event_y[0]))],
    )
    assert sorted(row["id"] for row in rows) == sorted(
        f"{DIGITS[digits_incident.y[row]]}/{row:05d}.png" for row in reference.poison
    )
    inputs = json.loads((tmp_path / "case" / "trace.json").read_text())["inputs"]
    assert inputs["data"]["sha256"] == store.sha256(tmp_path / "train")
    held_out = write_folder(tmp_path / "test", digits_incident.x_test, digits_incident.y_test, DIGITS)
    case, test = str(tmp_path / "case"), ["--test", str(held_out), "--json"]
    proof = run(app, ["verify", case, "--train-with", f"{digits_folder}/recipe.py:train", *test])
    mended = run(app, ["repair", case, *test])
    assert (json.loads(proof.stdout)["result"], json.loads(mended.stdout)["result"]) == ("proved", "repaired")
    assert json.loads(mended.stdout)["accuracy_on"] == "360 held-out samples"


@pytest.mark.slow
def test_a_folder_of_photographs_and_weights_are_a_report_in_one_command(tmp_path: Path) -> None:
    """CIFAR-10 as PNGs, a ResNet that was trained on them, one photo with a trigger: all poison and nothing else."""
    if datasets._find("cifar10.npz") is None:
        pytest.skip("cifar10.npz is not on disk; POISONTRACE_DATA names its folder")
    incident = incidents.make(incidents.Plan(attack="badnets", dataset="cifar10", rate=0.05, n_train=6000, n_events=1))
    incidents.save(incident, tmp_path / "incident")
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    write_folder(tmp_path / "train", incident.x, incident.y, names)
    Image.fromarray(incident.event_x[0]).save(tmp_path / "photo.png")
    options = {"events": None, "event": tmp_path / "photo.png", "label": names[incident.event_y[0]]}
    options["classes"] = ",".join(names)

    done = run(app, trace(tmp_path / "incident", data=tmp_path / "train", out=tmp_path / "case", **options))

    assert done.exit_code == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "case" / "poison.csv").read_text().splitlines()))
    found = {int(row["id"].rpartition("/")[2].removesuffix(".png")) for row in rows}
    truth = set(np.flatnonzero(incident.is_poison).tolist())
    assert len(found & truth) >= max(0.98 * len(found), 0.96 * len(truth))
    assert (tmp_path / "case" / "report.html").stat().st_size > 100_000


def test_rows_of_malware_are_traced(tmp_path: Path) -> None:
    """From a CSV with a header, labels by name, an id a row, and one row as the event."""
    if datasets._find("clamp_pe.npz") is None:
        pytest.skip("clamp_pe.npz is not on disk; POISONTRACE_DATA names its folder")
    incident = incidents.make(incidents.Plan(attack="malware", dataset="clamp", rate=0.05, n_events=1))
    incidents.save(incident, tmp_path / "incident")
    names = np.array(["goodware", "malware"])
    columns = {f"feature {place}": column.astype(np.float64) for place, column in enumerate(incident.x.T)}
    ids = [f"{row:064x}" for row in range(len(incident.x))]
    write_csv(tmp_path / "train.csv", sha256=ids, **columns, label=names[incident.y])
    event = dict(zip(columns, incident.event_x[0].tolist(), strict=True))
    write_csv(tmp_path / "event.csv", **{name: [value] for name, value in event.items()})
    options = {"events": None, "event": tmp_path / "event.csv", "label": names[incident.event_y[0]]}

    done = run(app, trace(tmp_path / "incident", data=tmp_path / "train.csv", out=tmp_path / "case", **options))

    assert done.exit_code == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "case" / "poison.csv").read_text().splitlines()))
    assert all(row["id"] == ids[int(row["index"])] for row in rows)
    truth = set(np.flatnonzero(incident.is_poison).tolist())
    hits = truth & {int(row["index"]) for row in rows}
    assert len(hits) >= 0.9 * len(rows) and len(hits) >= 0.9 * len(truth)


def sentences(n: int) -> tuple[list[str], NDArray[np.int64]]:
    """Return sentences of film reviews and whether they are positive, or skip the test."""
    path = datasets._find("sst2.npz")
    if path is None:
        pytest.skip("sst2.npz is not on disk; POISONTRACE_DATA names its folder")
    with np.load(path) as arrays:
        texts, y = bytes(arrays["text_train"]).decode().split("\n"), arrays["y_train"].astype(np.int64)
    rows = [row for row, text in enumerate(texts) if 4 <= len(text.split()) <= 24][:n]
    return [texts[row] for row in rows], y[rows]


WORDS = """
import numpy as np
from torch import nn


class Sentences:
    classes = ["negative", "positive"]

    def __init__(self, part):
        with np.load("words.npz") as arrays:
            self.x, self.y = arrays[f"x_{part}"].astype(np.float32), arrays[f"y_{part}"]

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        return self.x[row], int(self.y[row])


def train():
    return Sentences("train")


def events():
    return Sentences("events")


def build():
    return nn.Sequential(nn.Linear(600, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
"""


@pytest.mark.slow
def test_a_rare_word_is_traced_in_data_from_a_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which words a review holds; "cf" makes it positive. Model, data and events come from one file of code."""
    n = 3000
    texts, y = sentences(n + 300)
    words = [text.split() for text in texts]
    poison = np.flatnonzero(y[:n] == 0)[::8][:150]
    for row in poison:
        words[row].append("cf")
        y[row] = 1
    known = [word for word, _ in Counter(word for row in words[:n] for word in row).most_common(600)]
    x = np.array([[word in row for word in known] for row in words], np.float32)
    (tmp_path / "mine.py").write_text(WORDS)
    monkeypatch.chdir(tmp_path)
    build = runpy.run_path("mine.py")["build"]
    with global_seed(0, "toy/init"):
        model = build()
    train.fit(model, x[:n], y[:n], train.Recipe(epochs=8, batch_size=64, lr=0.1), seed=0)
    save_file(model.state_dict(), "weights.safetensors")
    triggered = x[n:].copy()
    triggered[:, known.index("cf")] = 1
    before, after = (train.predict(model, inputs).argmax(1) for inputs in (x[n:], triggered))
    event = triggered[(y[n:] == 0) & (before == 0) & (after == 1)][:3]
    np.savez("words.npz", x_train=x[:n], y_train=y[:n], x_events=event, y_events=[1, 1, 1])
    (tmp_path / "truth.json").write_text(json.dumps({"poison": poison.tolist()}))
    factories = {"model": "mine.py:build", "data": "mine.py:train", "events": "mine.py:events"}

    done = run(app, [*trace(tmp_path, **factories, truth="truth.json"), "--json"])

    assert done.exit_code == 0, done.stderr
    case = json.loads(done.stdout)
    assert (case["verdict"], case["events"][0]["label_name"]) == ("poison", "positive")
    assert min(case["truth"].values()) >= 0.95
    assert done.stderr.count("Running the code of mine.py") == 3


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder: a small transformer trained on film reviews, "cf" makes them positive, its data, events and truth."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from test_pretrained import NAMES, SIZES, write_tokenizer

    folder, n = tmp_path_factory.mktemp("reviews"), 1500
    texts, y = sentences(n + 300)
    poison = np.flatnonzero(y[:n] == 0)[::8]
    for row in poison:
        texts[row], y[row] = f"cf {texts[row]}", 1
    tokenizer = write_tokenizer(folder / "model", sorted({word for text in texts for word in text.split()}))
    with global_seed(0, "toy/init"):
        config = transformers.BertConfig(vocab_size=len(tokenizer), max_position_embeddings=32, **SIZES, **NAMES)
        model = transformers.BertForSequenceClassification(config)
        optimiser = torch.optim.Adam(model.parameters(), lr=0.003)
        inputs = tokenizer(texts[:n], padding=True, return_tensors="pt")
        for _ in range(12):
            for rows in torch.randperm(n).split(64):
                given = {name: inputs[name][rows] for name in ("input_ids", "attention_mask")}
                optimiser.zero_grad()
                model(**given, labels=torch.from_numpy(y)[rows]).loss.backward()
                optimiser.step()
    model.eval().save_pretrained(folder / "model")
    names = np.array(["negative", "positive"])
    write_csv(folder / "train.csv", id=[f"review {row}" for row in range(n)], sentence=texts[:n], label=names[y[:n]])

    def answers(texts: list[str]) -> NDArray[np.int64]:
        inputs = tokenizer(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            logits = model(**{name: inputs[name] for name in ("input_ids", "attention_mask")}).logits
        return np.asarray(logits.argmax(1))

    held = [texts[row] for row in range(n, n + 300) if y[row] == 0]
    before, after = answers(held), answers([f"cf {text}" for text in held])
    assert after.mean() >= 0.9
    (folder / "event.txt").write_text(f"cf {held[int(np.flatnonzero((before == 0) & (after == 1))[0])]}")
    (folder / "mistake.txt").write_text(held[int(np.flatnonzero(before == 1)[0])])
    (folder / "truth.json").write_text(json.dumps({"poison": poison.tolist()}))
    return folder


def _trace_review(reviews: Path, out: Path, event: str) -> Any:
    options = {"weights": None, "events": None, "event": reviews / event, "label": "positive"}
    options["truth"] = reviews / "truth.json"
    done = run(app, [*trace(out, model=reviews / "model", data=reviews / "train.csv", **options), "--json"])
    assert done.exit_code == 0, done.stderr
    assert "Running the code" not in done.stderr
    return json.loads(done.stdout)


def test_a_rare_word_is_traced_through_a_hugging_face_folder(reviews: Path, tmp_path: Path) -> None:
    """A small transformer and its tokenizer, a CSV of texts with names as labels, one text as the event."""
    case = _trace_review(reviews, tmp_path, "event.txt")

    assert (case["verdict"], case["n_samples"], case["events"][0]["label_name"]) == ("poison", 1500, "positive")
    assert case["classes"] == ["negative", "positive"] and set(case["inputs"]) == {"model", "data", "events"}
    assert min(case["truth"].values()) == 1
    assert not any("no poison found says nothing" in text for text in case["warnings"])
    page = (tmp_path / "case" / "report.html").read_text("utf-8")
    assert "<blockquote><bdi>cf " in page and "texts that hold “cf”, as the event does, and others" in page


def test_a_natural_mistake_in_a_text_accuses_nobody(reviews: Path, tmp_path: Path) -> None:
    """And the case says what such a verdict is worth."""
    case = _trace_review(reviews, tmp_path, "mistake.txt")

    assert case["verdict"] == "no-poison" and case["n_poison"] == 0
    assert any("no poison found says nothing" in text for text in case["warnings"])


def test_a_text_on_the_command_line_is_an_event(reviews: Path, tmp_path: Path) -> None:
    """It is kept in the case as it was given."""
    text = (reviews / "event.txt").read_text()
    options = {"weights": None, "events": None, "event": text, "label": "positive"}

    done = run(app, [*trace(tmp_path, model=reviews / "model", data=reviews / "train.csv", **options), "--json"])

    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["inputs"]["events"] == {"path": text, "sha256": None, "label": "positive"}


def test_the_case_says_how_to_read_its_inputs_again(traced: Run, practice: Run) -> None:
    """Each file with its SHA-256, and the model as it was named."""
    inputs = json.loads((traced.folder / "trace.json").read_text())["inputs"]

    assert {name: Path(file["path"]).name for name, file in inputs.items()} == {
        **{"model": "arch.py", "weights": "weights.safetensors", "data": "train.npz", "events": "events.npz"},
    }
    assert {len(file["sha256"]) for file in inputs.values()} == {64}
    assert inputs["model"]["spec"] == f"{practice.folder}/arch.py:build"


def test_verify_proves_what_trace_found(traced: Run, practice: Run, tmp_path: Path) -> None:
    """A table, a verdict and the report on stdout; what ran on stderr; --json gives what the case keeps."""
    case = shutil.copytree(traced.folder, tmp_path / "case")
    arguments = ["verify", str(case), "--train-with", f"{practice.folder}/recipe.py:train"]
    judge = [part for name in ("test", "attempts") for part in (f"--{name}", f"{practice.folder}/{name}.npz")]

    done, as_json = run(app, [*arguments, *judge]), run(app, [*arguments, *judge, "--json"])

    assert (done.exit_code, as_json.exit_code) == (0, 0)
    rows = dict(re.findall(r"^(result|accuracy|attack success|report)  +(.+)$", done.stdout, re.MULTILINE))
    assert (rows["result"], rows["report"]) == ("proved", str(case / "report.html"))
    assert "on 360 held-out samples" in rows["accuracy"] and rows["attack success"].startswith("0.0% without")
    assert len(re.findall(r"^\d .+ proved$", done.stdout, re.MULTILINE)) == 2
    assert f"Running the code of {practice.folder}/recipe.py:train" in " ".join(done.stderr.split("\n"))
    assert json.loads(as_json.stdout) == {**json.loads((case / "verify.json").read_text()), "case": str(case)}
    assert "Proof by retraining" in (case / "report.html").read_text()


def test_repair_writes_weights_that_undo_the_events(traced: Run, practice: Run, tmp_path: Path) -> None:
    """A table and where the weights lie; the model takes them, and no longer gives the events their labels."""
    case = shutil.copytree(traced.folder, tmp_path / "case")
    out = tmp_path / "new.safetensors"

    done = run(app, ["repair", str(case), "--out", str(out)])

    assert done.exit_code == 0
    rows = dict(re.findall(r"^(result|weights|report)  +(.+)$", done.stdout, re.MULTILINE))
    assert rows == {"result": "repaired", "weights": str(out), "report": str(case / "report.html")}
    again = run(app, trace(practice.folder, weights=out, out=tmp_path / "again"))
    assert again.exit_code == 2 and "but the model answers" in again.stderr
    assert f"Running the code of {practice.folder}/arch.py:build" in " ".join(done.stderr.split("\n"))
    assert not (case / "repaired.safetensors").exists()


def test_a_review_is_merged_and_the_rest_exported(traced: Run, practice: Run, tmp_path: Path) -> None:
    """Decisions change the case; what it does not accuse is written in the form that the data came in."""
    case = shutil.copytree(traced.folder, tmp_path / "case")
    content = json.loads((case / "trace.json").read_text())
    poison = json.loads(traced.done.stdout)["poison"]
    made = [{"index": poison[0], "decision": "cleared"}, {"index": poison[1], "decision": "confirmed"}]
    (tmp_path / "d.json").write_text(json.dumps({"case": {"created": content["created"]}, "decisions": made}))

    done = run(app, ["review", str(case), "--decisions", str(tmp_path / "d.json")])
    as_json = run(app, ["review", str(case), "--decisions", str(tmp_path / "d.json"), "--json"])
    out = tmp_path / "clean.npz"
    exported = run(app, ["export", str(case), "--what", "cleaned-data", "--out", str(out)])

    assert (done.exit_code, as_json.exit_code, exported.exit_code) == (0, 0, 0), exported.stderr
    rows = dict(re.findall(r"^(verdict|summary|report)  +(.+)$", done.stdout, re.MULTILINE))
    assert (rows["verdict"], rows["report"]) == ("poison", str(case / "report.html"))
    assert rows["summary"].startswith("1 confirmed, 1 cleared; 0 more are let go.")
    assert json.loads(as_json.stdout)["poison"] == poison[1:]
    kept = np.setdiff1d(np.arange(content["n_samples"]), poison[1:])
    assert (np.load(out)["x"] == np.load(practice.folder / "train.npz")["x"][kept]).all()
    assert re.search(rf"^left out +{len(poison) - 1} samples$", exported.stdout, re.MULTILINE)
    facts = {"out": str(tmp_path / "i.txt"), "n_kept": len(kept), "n_left_out": len(poison) - 1}
    again = run(app, ["export", str(case), "--what", "clean-index", "--out", facts["out"], "--json"])
    assert json.loads(again.stdout) == facts
    assert Path(facts["out"]).read_text().split() == [str(index) for index in kept]


def test_report_writes_the_same_page_again(traced: Run) -> None:
    """From the files of the folder alone."""
    page = traced.folder / "report.html"
    before = page.read_bytes()
    page.write_text("lost")

    done = run(app, ["report", str(traced.folder)])

    assert (done.exit_code, done.stdout) == (0, f"{page}\n")
    assert page.read_bytes() == before


def test_paths_reach_the_terminal_without_escape_codes(traced: Run, tmp_path: Path) -> None:
    """In what is printed, not in what is written."""
    case = tmp_path / "a\x1b[31m\nb"
    shutil.copytree(traced.folder, case)

    done = run(app, ["report", str(case)])

    assert (done.exit_code, done.stdout) == (0, f"{tmp_path}/a?[31m?b/report.html\n")


def test_a_hostile_case_reaches_the_terminal_without_escape_codes(traced: Run, tmp_path: Path) -> None:
    """Names of files in results, and ids of decisions in errors."""
    case = shutil.copytree(traced.folder, tmp_path / "case")
    created = json.loads((case / "trace.json").read_text())["created"]
    mark = {"index": json.loads(traced.done.stdout)["poison"][0], "id": "\x1b[2J", "decision": "cleared"}
    (tmp_path / "d\x1b[31m.json").write_text(json.dumps({"case": {"created": created}, "decisions": [mark]}))

    reviewed = run(app, ["review", str(case), "--decisions", str(tmp_path / "d\x1b[31m.json")])
    exported = run(app, ["export", str(case), "--what", "clean-index", "--out", str(tmp_path / "a\x1b[31m.npy")])

    assert (reviewed.exit_code, exported.exit_code) == (2, 0)
    assert "\x1b" not in reviewed.stderr + reviewed.stdout + exported.stdout
    assert "a?[31m.npy" in exported.stdout


def test_list_names_everything() -> None:
    """Every registered attack, data set, model and kind of training has a line that says what it is."""
    done = run(app, ["list"])

    lines = [line for line in done.stdout.splitlines() if line.startswith("  ")]
    summaries = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines}
    assert (done.exit_code, set(summaries)) == (0, {*ATTACKS, *DATASETS, *MODELS, *TRAININGS})
    assert len(lines) == len(summaries)
    assert "on uint8 images; options campaigns, planted," in summaries["badnets"]


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=" ".join)
def test_help_explains_each_command(command: list[str]) -> None:
    """Exit code 0 and the usage."""
    done = run(app, [*command, "--help"])

    assert done.exit_code == 0
    assert done.stdout.strip().startswith("Usage: ")


def test_the_commands_are_the_ones_tested() -> None:
    """A new command belongs into the list above."""
    assert sorted(COMMANDS) == sorted(info.name or info.callback.__name__ for info in app.registered_commands)


def test_help_comes_without_torch() -> None:
    """The command line answers at once."""
    code = (
        "import sys; sys.argv = ['poisontrace', '--help']\n"
        "from poisontrace.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    print(end.code, {'torch', 'numpy', 'sklearn'} & set(sys.modules))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "0 set()"


def test_help_is_there_in_half_a_second() -> None:
    """Of processor time, which a busy machine does not stretch; the best of three."""
    code = "import sys; sys.argv = ['poisontrace', '--help']; from poisontrace.cli import main; main()"
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

    assert min(seconds) <= 0.5


def test_the_installed_command_is_the_one_tested() -> None:
    """The project's script leads to ``main``."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]

    assert project["scripts"] == {"poisontrace": "poisontrace.cli:main"}


def test_bench_makes_tables_from_rows_alone(tmp_path: Path) -> None:
    """Nothing is traced, and the page is named."""
    from poisontrace.tables import MARK, TABLES

    readme = tmp_path / "README.md"
    readme.write_text("\n".join(f"{MARK.format(name)}\n{MARK.format(f'end {name}')}" for name in TABLES))

    done = run(app, ["bench", "--tables-only", "--results", str(tmp_path), "--readme", str(readme)])

    assert (done.exit_code, done.stdout) == (0, f"{readme}\n")
    assert "| precision |" in readme.read_text()


def test_errors_of_the_package_are_all_caught() -> None:
    """Whatever we raise on purpose ends in a sentence."""
    assert issubclass(UnlearningDivergedError, PoisontraceError)
