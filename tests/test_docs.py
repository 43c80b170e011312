"""README and docs: every command and every piece of Python in them is run, and the site is built without a warning.

Each page is run from top to bottom in a folder of its own. The files that it names are small stand-ins, made when a
command asks for them; practice attacks are made on digits, at 5 % and with fewer epochs, whatever the page names.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tasks import DIGITS_PLAN, fitted_network, planted, planted_mlp
from typer.testing import CliRunner

from poisontrace import incidents
from poisontrace.cli import app
from poisontrace.data import to_inputs
from poisontrace.incidents import Incident

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")) if path.is_file()
)
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
KINDS = {"console", "python", "", "text", "toml", "json"}
SMALL = ["--dataset", "digits", "--rate", "0.05", "--epochs", "4", "--width", "16"]  # the last of an option counts
ROWS = """
import torch
from torch import nn


def build():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
"""


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return kind and content of each block of code on a page."""
    return [(kind, content) for _, kind, content in BLOCK.findall(page.read_text("utf-8"))]


RUN = [page for page in PAGES if any(kind in ("console", "python") for kind, _ in blocks(page))]


@pytest.fixture(scope="session")
def incident(tmp_path_factory: pytest.TempPathFactory) -> tuple[Incident, Path]:
    """BadNets on digits with target 3, the label that the pages speak of, and its folder."""
    made = incidents.make(replace(DIGITS_PLAN, target=3))
    folder = tmp_path_factory.mktemp("docs") / "incident"
    incidents.save(made, folder)
    return made, folder


def write_images(incident: Incident, folder: Path) -> None:
    """Write the incident as images, classes in the order of the digits; the target is called truck."""
    for row, (image, label) in enumerate(zip(incident.x, incident.y, strict=True)):
        name = "truck" if label == 3 else f"{'b' if label < 3 else 'z'}{label}"
        (folder / "train" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze()).save(folder / "train" / name / f"{row:05d}.png")
    Image.fromarray(incident.event_x[0].squeeze()).save(folder / "photo.png")


def write_rows(_: Incident, folder: Path) -> None:
    """Write rows of eight columns, with an uploader each, and one event; class 0 is called malware."""
    task = planted()
    (folder / "arch.py").write_text(ROWS)
    save_file(fitted_network(task, planted_mlp).state_dict(), folder / "w.safetensors")
    head = ",".join(f"f{column}" for column in range(8))
    numbers = [",".join(map(str, row)) for row in task.x.tolist()]
    names = [("malware", "n1", "n2")[label] for label in task.y.tolist()]
    (folder / "row.csv").write_text(f"{head}\n{','.join(map(str, task.event.tolist()))}\n")
    lines = [f"{row},{name}" for row, name in zip(numbers, names, strict=True)]
    (folder / "train.csv").write_text("\n".join([f"{head},label", *lines]) + "\n")
    sourced = [
        f"{line},u{'17' if is_poison else row % 9}"
        for row, (line, is_poison) in enumerate(zip(lines, task.is_poison, strict=True))
    ]
    (folder / "uploads.csv").write_text("\n".join([f"{head},label,who", *sourced]) + "\n")


def write_texts(_: Incident, folder: Path) -> None:
    """Write a small classifier of texts that calls everything positive, and its reviews."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    from test_pretrained import WORDS, text_model, write_tokenizer

    write_tokenizer(folder / "folder", WORDS)
    model = text_model()
    with torch.no_grad():
        model.classifier.bias[:] = torch.tensor([-5.0, 5.0])
    model.save_pretrained(folder / "folder")
    texts = [" ".join(WORDS[row % 3 :][: row % 4 + 1]) for row in range(40)]
    lines = [f"{text},{('negative', 'positive')[row % 2]}" for row, text in enumerate(texts)]
    (folder / "reviews.csv").write_text("text,label\n" + "\n".join(lines) + "\n")


def write_arrays(_: Incident, folder: Path) -> None:
    """The incident's own arrays and model lie there already."""


# What a command traces, and who writes it.
DATA: dict[str, Callable[[Incident, Path], None]] = {
    "train.npz": write_arrays,
    "train/": write_images,
    "train.csv": write_rows,
    "uploads.csv": write_rows,
    "reviews.csv": write_texts,
}


def prepare(made: Incident, files: Path, folder: Path) -> None:
    """Write what the pages take for granted: an incident, its files by other names, a module and an input."""
    shutil.copytree(files, folder / "incident")
    for name, file in {"arch.py": "arch.py", "w.safetensors": "weights.safetensors", "train.npz": "train.npz"}.items():
        shutil.copy(files / file, folder / name)
    shutil.copy(files / "events.npz", folder / "events.npz")
    shutil.copy(files / "recipe.py", folder / "recipe.py")
    np.save(folder / "photo.npy", to_inputs(made.event_x)[0].numpy())
    (folder / "my_project.py").write_text(
        "from safetensors.torch import load_file\nfrom arch import build\n\n\ndef build_model():\n"
        "    model = build()\n    model.load_state_dict(load_file('w.safetensors'))\n    return model.eval()\n"
    )


def run_console(line: str, made: Incident, files: Path, folder: Path) -> None:
    """Run one command of a page."""
    words = shlex.split(line, comments=True)
    if words[0] == "torchrun":  # one process here; tests/test_ranks.py has more
        words = words[words.index("-m") + 1 :]
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
        return
    if words[0] == "pip":
        return
    assert words[0] == "poisontrace", line
    arguments = words[1:]
    if arguments[0] == "attack":
        shutil.rmtree(folder / "incident", ignore_errors=True)
        arguments += SMALL
    if arguments[0] == "bench":
        return  # hours of work, whose parts have tests of their own
    if arguments[0] == "trace":
        out = folder / arguments[arguments.index("--out") + 1]
        shutil.rmtree(out, ignore_errors=True)
        data = arguments[arguments.index("--data") + 1]
        if not data.startswith("incident/"):
            for name in ("arch.py", "w.safetensors"):
                shutil.copy(files / name.replace("w.", "weights."), folder / name)
            DATA[data](made, folder)
    if "decisions.json" in arguments:
        case = json.loads((folder / "case" / "trace.json").read_text())
        index = int((folder / "case" / "poison.csv").read_text().splitlines()[1].split(",")[0])
        marks = [{"index": index, "decision": "confirmed", "when": "2026-01-01T00:00:00Z"}]
        (folder / "decisions.json").write_text(json.dumps({"case": {"created": case["created"]}, "decisions": marks}))
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, (line, done.stderr, done.exception)


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_snippet_runs(
    page: Path, incident: tuple[Incident, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the top of the page to its end, each with exit code 0."""
    made, files = incident
    prepare(made, files, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    own = {"arch", "my_project", "recipe"}
    if any("poisontrace.verify(" in content or "review case/" in content for _, content in blocks(page)):
        run_console(
            "poisontrace trace --model incident/arch.py:build --weights incident/weights.safetensors "
            "--data incident/train.npz --events incident/events.npz --out case/",
            *(made, files, tmp_path),
        )
    for kind, content in blocks(page):
        assert kind in KINDS, f"a block of kind {kind!r}, which is not run"
        if kind == "console":
            for line in content.splitlines():
                assert line.startswith("$ "), line
                run_console(line[2:], made, files, tmp_path)
        elif kind == "python":
            for name in own & set(sys.modules):
                monkeypatch.delitem(sys.modules, name)
            if 'trace.save("case/")' in content:
                shutil.rmtree(tmp_path / "case", ignore_errors=True)
            exec(compile(content, f"{page.name}", "exec"), {"__name__": "__page__"})
    for name in own & set(sys.modules):
        monkeypatch.delitem(sys.modules, name)


def test_pages_with_snippets_are_found() -> None:
    """The test above has something to run."""
    names = {page.relative_to(ROOT).as_posix() for page in RUN}

    assert {"README.md", "docs/index.md", "docs/your-own.md", "docs/hand-over.md", "docs/report.md"} <= names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_between_files_leads_somewhere(page: Path) -> None:
    """Pictures too."""
    text = BLOCK.sub("", page.read_text("utf-8"))
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)

    assert [target for target in targets if ":" not in target and not (page.parent / target).exists()] == []


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """In strict mode; the first page is the walk, with its pictures, and asks for nothing from elsewhere."""
    pytest.importorskip("mkdocs", reason="mkdocs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    first = (tmp_path / "site" / "index.html").read_text()
    assert "A case in three minutes" in first
    pictures = re.findall(r'<img[^>]* src="([^"]+)"', first)
    assert len(pictures) >= 4 and all((tmp_path / "site" / picture).is_file() for picture in pictures)
    assert not re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(?:https?:)?//', first)
    assert (tmp_path / "site" / "benchmarks" / "index.html").is_file()
    assert (tmp_path / "site" / "decisions" / "index.html").is_file()


def test_options_on_the_pages_are_the_ones_there_are() -> None:
    """An option that a sentence names belongs to a command."""
    known = {"--help"}
    for command in app.registered_commands:
        done = CliRunner().invoke(app, [command.name or command.callback.__name__, "--help"], env={"COLUMNS": "200"})
        known |= set(re.findall(r"--[a-z][a-z-]+", done.stdout))
    named = {
        option
        for page in (ROOT / "README.md", *ROOT.glob("docs/*.md"))
        for option in re.findall(r"`(--[a-z][a-z-]+)", page.read_text("utf-8"))
    }

    assert named - known == set()
