"""Every bad input we know, as one table: a name, and a function that prepares its files and returns the arguments.

``test_cli`` runs the table within the process, ``benchmarks/bad_inputs.py`` through the installed command. Each
function is given a folder that holds a sound incident (see :func:`write_incident`), and spoils one thing.
"""

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from poisontrace._types import Finding, Trace
from poisontrace.store import sha256

N_CLASSES = 3
ARCH = """
from torch import nn


def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(64, 3), nn.Linear(64, 3)

    def forward(self, x):
        return (self.a(x.flatten(1)) + self.b(x.flatten(1))) / 2


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(0 * nn.Linear(64, 3).weight)

    def forward(self, x):
        return x.flatten(1) @ self.kernel.T


class Picky(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(64, 3)

    def forward(self, x):
        assert x.shape[1] == 7, "seven channels"


def raises():
    raise KeyError("no such setting")


def exits():
    raise SystemExit(3)


def wants(setting):
    return build()


def number():
    return 7


def fails(x, y, seed):
    raise KeyError("no such setting")


def seven(x, y, seed):
    return 7


def nothing(x, y, seed):
    return build()


answer = 42
"""

_rng = np.random.default_rng(0)
X = _rng.integers(0, 256, (12, 8, 8, 1), dtype=np.uint8)
FLOATS = X.transpose(0, 3, 1, 2).astype(np.float32) / 255
WEIGHT = _rng.standard_normal((N_CLASSES, 64)).astype(np.float32)
Y = np.arange(12) % N_CLASSES
EVENT_X = X[:2] ^ 1
# What the network answers, worked out by hand.
EVENT_Y = (EVENT_X.reshape(2, -1) / 255 @ WEIGHT.T).argmax(1)
STATE = {"1.weight": torch.from_numpy(WEIGHT), "1.bias": torch.zeros(N_CLASSES)}
INCIDENT = {"attack": "badnets", "dataset": "digits", "rate": 0.05}
GRID = {"seeds": [0], "n_events": 1, "rules": ["default"], "incidents": [INCIDENT]}


def write_incident(folder: Path) -> None:
    """Write a sound incident of twelve images: a linear network whose answers follow from its weights."""
    (folder / "arch.py").write_text(ARCH)
    save_file(STATE, folder / "weights.safetensors")
    np.savez(folder / "train.npz", x=X, y=Y)
    np.savez(folder / "events.npz", x=EVENT_X, y=EVENT_Y)
    (folder / "truth.json").write_text('{"poison": [1, 2]}')


def trace(folder: Path, **changes: Any) -> list[str]:
    """Return the arguments that trace the sound incident, with some options changed (None: left out)."""
    options = {
        "model": f"{folder}/arch.py:build",
        "weights": folder / "weights.safetensors",
        "data": folder / "train.npz",
        "events": folder / "events.npz",
        "out": folder / "case",
        **changes,
    }
    given = [(name, value) for name, value in options.items() if value is not None]
    return ["trace", *(part for name, value in given for part in (f"--{name}", str(value)))]


def attack(folder: Path, **changes: Any) -> list[str]:
    """Return the arguments of a practice attack, with some options changed."""
    options = {"attack": "badnets", "dataset": "digits", "epochs": 1, "out": folder / "incident", **changes}
    return ["attack", *(part for name, value in options.items() for part in (f"--{name}", str(value)))]


def bench(folder: Path, **changes: Any) -> list[str]:
    """Return the arguments that run a grid, with some of its keys changed (None: left out)."""
    return _bench(folder, _file(folder, "grid.toml", grid_text({**GRID, **changes})))


def grid_text(grid: dict[str, Any]) -> str:
    """Return a grid as TOML, without the keys that are None; a list of tables comes last."""
    given = {key: value for key, value in grid.items() if value is not None}
    incidents = given.get("incidents")
    if not (isinstance(incidents, list) and incidents and all(isinstance(incident, dict) for incident in incidents)):
        return _lines(given)
    tables = "".join(f"[[incidents]]\n{_lines(incident)}" for incident in incidents)
    return _lines({key: value for key, value in given.items() if key != "incidents"}) + tables


def _lines(table: dict[str, Any], prefix: str = "") -> str:
    return "".join(
        _lines(value, f"{prefix}{key}.") if isinstance(value, dict) else f"{prefix}{key} = {json.dumps(value)}\n"
        for key, value in table.items()
    )


def _bench(folder: Path, grid: Path) -> list[str]:
    return ["bench", str(grid), "--results", str(folder / "results"), "--readme", str(folder / "README.md")]


def _file(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _cut(folder: Path, name: str) -> Path:
    """Cut a sound file off in the middle."""
    path = folder / name
    content = path.read_bytes()
    return _file(folder, name, content[: len(content) // 2])


def _npz(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "bad.npz", **arrays)
    return folder / "bad.npz"


def _vast(folder: Path) -> Path:
    """Write an .npz whose header claims more than any memory holds."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (1 << 50, 8, 8, 1)})
    with zipfile.ZipFile(folder / "bad.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue())
        archive.writestr("y.npy", header.getvalue())
    return folder / "bad.npz"


def _weights(folder: Path, **tensors: Any) -> Path:
    save_file(dict(tensors), folder / "bad.safetensors")
    return folder / "bad.safetensors"


def _pickled(folder: Path, content: Any) -> Path:
    torch.save(content, folder / "bad.pt")
    return folder / "bad.pt"


def _image(folder: Path, width: int, height: int) -> Path:
    Image.new("L", (width, height)).save(folder / "photo.png")
    return folder / "photo.png"


def _with(array: Any, value: float, row: int = 5) -> Any:
    changed = array.copy()
    changed[row] = value
    return changed


def _copy(folder: Path, **arrays: Any) -> Path:
    """Write a second .npz."""
    np.savez(folder / "other.npz", **arrays)
    return folder / "other.npz"


def _renamed(part: str) -> dict[str, Any]:
    return {f"{part}.{name[2:]}": tensor.clone() for name, tensor in STATE.items()}


def _twice(folder: Path) -> list[str]:
    return _alone(folder, "Twice", **_renamed("a"), **_renamed("b"))


def _alone(folder: Path, kind: str, **tensors: Any) -> list[str]:
    return trace(folder, model=f"{folder}/arch.py:{kind}", weights=_weights(folder, **tensors))


def _folder(folder: Path, spoil: Callable[[Path], object]) -> Path:
    """Write the twelve images as a folder with one sub-folder a class, and spoil one thing."""
    for row, (image, label) in enumerate(zip(X, Y, strict=True)):
        (folder / "images" / "abc"[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[:, :, 0]).save(folder / "images" / "abc"[label] / f"{row}.png")
    spoil(folder / "images")
    return folder / "images"


def _model_folder(folder: Path, weights: str = "model.safetensors", **config: Any) -> Path:
    """Write a folder such as save_pretrained writes, with some of its configuration changed."""
    (folder / "model").mkdir()
    facts = {"model_type": "bert", "architectures": ["BertForSequenceClassification"], **config}
    _file(folder / "model", "config.json", json.dumps(facts))
    return _file(folder / "model", weights, "").parent


def _csv(folder: Path, *, header: str = "", cell: str = "1.5", label: str = "0") -> Path:
    """Write twelve rows of 64 numbers and a label as a CSV, with one cell changed."""
    names = header or ",".join([*(f"f{column}" for column in range(64)), "label"])
    lines = [",".join([*(["0.5"] * 64), str(y)]) for y in Y]
    lines[5] = ",".join([cell, *(["0.5"] * 63), label])
    return _file(folder, "rows.csv", "\n".join([names, *lines]) + "\n")


def _bomb(path: Path) -> None:
    """Write a small PNG that claims 3.6 billion pixels."""
    stream = io.BytesIO()
    Image.new("L", (8, 8)).save(stream, "PNG")
    head = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + stream.getvalue()[24:29]
    path.write_bytes(stream.getvalue()[:12] + head + zlib.crc32(head).to_bytes(4, "big") + stream.getvalue()[33:])


def _swollen(folder: Path) -> Path:
    """Write an .npz whose directory says that a member unpacks to two gigabytes."""
    content = bytearray(_npz(folder, x=X, y=Y).read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = (1 << 31).to_bytes(4, "little")
    return _file(folder, "bad.npz", bytes(content))


def _event(folder: Path, image: Path, **changes: Any) -> list[str]:
    return trace(folder, **{"events": None, "event": image, "label": 0, **changes})


def _case(folder: Path, **files: str) -> list[str]:
    (folder / "case").mkdir()
    for name, content in files.items():
        _file(folder / "case", name.replace("_", "."), content)
    return ["report", str(folder / "case")]


def _traced(folder: Path, found: tuple[int, ...] = (1,), **inputs: Any) -> Path:
    """Write a case of the sound incident that accuses sample 1, with some inputs changed (None: left out)."""
    names = {"model": "arch.py", "weights": "weights.safetensors", "data": "train.npz", "events": "events.npz"}
    files: dict[str, Any] = {
        name: {"path": str(folder / file), "sha256": hashlib.sha256((folder / file).read_bytes()).hexdigest()}
        for name, file in names.items()
    }
    files["model"]["spec"] = f"{folder}/arch.py:build"
    poison, verdict = np.array(found, np.int64), "poison" if found else "no-poison"
    trace = Trace(
        **{"verdict": verdict, "poison": poison, "scores": np.zeros(12, np.float32), "labels": Y},
        **{"findings": (Finding(0, 0.9, verdict, poison, {}),), "clusters": (), "rule": "default", "config": {}},
        **{"seed": 0, "device": "cpu", "seconds": {}, "warnings": (), "exhibits": {}},
    )
    named = {name: file for name, file in (files | inputs).items() if file is not None}
    return trace.save(folder / "case", context={"inputs": named})


def _beyond(folder: Path) -> Path:
    """Write a case that accuses a sample that is not there."""
    case = _traced(folder)
    (case / "poison.csv").write_text("index,id,label,score\n12,12,0,0.9\n")
    return case


def verify(folder: Path, case: Path | None = None, recipe: str = "nothing", **options: Any) -> list[str]:
    """Return the arguments that verify a case with a function of the model file."""
    given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return ["verify", str(case or _traced(folder)), "--train-with", f"{folder}/arch.py:{recipe}", *given]


def repair(folder: Path, case: Path | None = None, **options: Any) -> list[str]:
    """Return the arguments that repair a case."""
    return ["repair", str(case or _traced(folder)), *(part for k, v in options.items() for part in (f"--{k}", str(v)))]


def review(folder: Path, at: Path | None = None, file: Path | None = None, **changes: Any) -> list[str]:
    """Return the arguments that merge decisions into a case: one that is sound, but for what is changed."""
    at = at or _traced(folder)
    created = json.loads((at / "trace.json").read_text())["created"] if (at / "trace.json").exists() else ""
    sound = {"case": {"created": created}, "decisions": [{"index": 1, "decision": "cleared"}]}
    file = file or _file(folder, "decisions.json", json.dumps({**sound, **changes}))
    return ["review", str(at), "--decisions", str(file)]


def export(folder: Path, what: str, out: str, case: Path | None = None) -> list[str]:
    """Return the arguments that export something of a case."""
    return ["export", str(case or _traced(folder)), "--what", what, "--out", str(folder / out)]


def _link(folder: Path) -> Path:
    """Write a case of a folder of images, in which a file became a link to one elsewhere."""
    images = _folder(folder, lambda _: None)
    case = _traced(folder, data={"path": str(images), "sha256": sha256(images)})
    (images / "a" / "0.png").rename(folder / "0.png")
    (images / "a" / "0.png").symlink_to(folder / "0.png")
    return case


def _without(case: Path, name: str) -> Path:
    (case / name).unlink()
    return case


def _changed(folder: Path, name: str) -> Path:
    """Write a case, and then a byte more into one of its files."""
    case = _traced(folder)
    (folder / name).write_bytes((folder / name).read_bytes() + b"\n")
    return case


def _filled(folder: Path) -> Path:
    (folder / "full").mkdir()
    return _file(folder / "full", "mine.txt", "mine").parent


BAD_INPUTS: dict[str, Callable[[Path], list[str]]] = {
    # Files that are not there.
    "model file missing": lambda f: trace(f, model=f"{f}/none.py:build"),
    "model module missing": lambda f: trace(f, model="no_such_package.models:build"),
    "weights missing": lambda f: trace(f, weights=f / "none.safetensors"),
    "data missing": lambda f: trace(f, data=f / "none.npz"),
    "data is a folder": lambda f: trace(f, data=f),
    "events missing": lambda f: trace(f, events=f / "none.npz"),
    "event image missing": lambda f: _event(f, f / "none.png"),
    "a memory that is no number": lambda f: trace(f, memory="plenty"),
    "a memory too small for anything": lambda f: trace(f, memory="1M"),
    "truth missing": lambda f: trace(f, truth=f / "none.json"),
    "escape codes in a file name": lambda f: trace(f, data=f / "a\x1b[31m\x07red.npz"),
    "newline in a file name": lambda f: trace(f, events=f / "a\nError: all is well.npz"),
    "markup in a file name": lambda f: trace(f, model=f"{f}/[bold]:smile:.py:build"),
    # Shapes.
    "fewer labels than samples": lambda f: trace(f, data=_npz(f, x=X, y=Y[:-1])),
    "labels of two axes": lambda f: trace(f, data=_npz(f, x=X, y=np.eye(3, dtype=int)[Y])),
    "samples of one axis": lambda f: trace(f, data=_npz(f, x=FLOATS[:, 0, 0, 0], y=Y)),
    "uint8 without a channel axis": lambda f: trace(f, data=_npz(f, x=X[..., 0], y=Y)),
    "uint8 with channels first": lambda f: trace(f, data=_npz(f, x=X.transpose(0, 3, 1, 2), y=Y)),
    "whole numbers as samples": lambda f: trace(f, data=_npz(f, x=X.astype(np.int64), y=Y)),
    "text as samples": lambda f: trace(f, data=_npz(f, x=np.full((12, 2), "a"), y=Y)),
    "ids for another number of samples": lambda f: trace(f, data=_npz(f, x=X, y=Y, ids=np.array(["a", "b"]))),
    "events of another shape": lambda f: trace(f, events=_npz(f, x=EVENT_X[:, :4], y=EVENT_Y)),
    "events of another type": lambda f: trace(f, events=_npz(f, x=FLOATS[:2], y=EVENT_Y)),
    "data of a shape the model cannot take": lambda f: trace(
        f, data=_npz(f, x=X[:, :4], y=Y), events=_copy(f, x=EVENT_X[:, :4], y=EVENT_Y)
    ),
    "a model that asserts another shape": lambda f: _alone(f, "Picky", **_renamed("a")),
    # Labels.
    "a negative label": lambda f: trace(f, data=_npz(f, x=X, y=_with(Y, -1))),
    "a label beyond the model's outputs": lambda f: trace(f, data=_npz(f, x=X, y=_with(Y, 3))),
    "labels that are not whole numbers": lambda f: trace(f, data=_npz(f, x=X, y=Y.astype(np.float32))),
    "an event's label beyond the model's outputs": lambda f: trace(f, events=_npz(f, x=EVENT_X, y=EVENT_Y + 3)),
    "a negative event label": lambda f: trace(f, events=_npz(f, x=EVENT_X, y=_with(EVENT_Y, -1, 0))),
    "an event's label that the model does not answer": lambda f: trace(
        f, events=_npz(f, x=EVENT_X, y=(EVENT_Y + 1) % 3)
    ),
    # Numbers that are none, and nothing at all.
    "NaN in the data": lambda f: trace(f, data=_npz(f, x=_with(FLOATS, np.nan), y=Y)),
    "infinity in the data": lambda f: trace(f, data=_npz(f, x=_with(FLOATS, np.inf), y=Y)),
    "NaN in the events": lambda f: trace(
        f, data=_npz(f, x=FLOATS, y=Y), events=_copy(f, x=_with(FLOATS[:2], np.nan, 0), y=EVENT_Y)
    ),
    "NaN in the weights": lambda f: trace(
        f, weights=_weights(f, **{**STATE, "1.bias": torch.tensor([0.0, float("nan"), 0.0])})
    ),
    "no sample": lambda f: trace(f, data=_npz(f, x=X[:0], y=Y[:0])),
    "no event": lambda f: trace(f, events=_npz(f, x=EVENT_X[:0], y=EVENT_Y[:0])),
    # The model.
    "no linear layer": lambda f: _alone(f, "Bare", kernel=torch.from_numpy(WEIGHT)),
    "several candidates for the last layer": _twice,
    "a layer that is not there": lambda f: trace(f, layer="head"),
    "a factory that is not there": lambda f: trace(f, model=f"{f}/arch.py:make"),
    "a factory that raises": lambda f: trace(f, model=f"{f}/arch.py:raises"),
    "a factory that ends the program": lambda f: trace(f, model=f"{f}/arch.py:exits"),
    "a factory that wants arguments": lambda f: trace(f, model=f"{f}/arch.py:wants"),
    "a factory that returns a number": lambda f: trace(f, model=f"{f}/arch.py:number"),
    "a factory that is no function": lambda f: trace(f, model=f"{f}/arch.py:answer"),
    "a model without a factory": lambda f: trace(f, model=f"{f}/arch.py"),
    "a syntax error in the model file": lambda f: trace(f, model=f"{_file(f, 'wrong.py', 'def build(:')}:build"),
    "a missing import in the model file": lambda f: trace(f, model=f"{_file(f, 'wrong.py', 'import no_such')}:build"),
    "weights beside a model folder": lambda f: trace(f, model=_model_folder(f)),
    "a model folder without a configuration": lambda f: trace(f, model=_filled(f), weights=None),
    "a model folder with pickled weights": lambda f: trace(
        f, model=_model_folder(f, weights="pytorch_model.bin"), weights=None
    ),
    "a model folder that brings code": lambda f: trace(
        f, model=_model_folder(f, auto_map={"AutoModel": "evil.Model"}), weights=None
    ),
    "a model folder of a generator": lambda f: trace(
        f, model=_model_folder(f, architectures=["GPT2LMHeadModel"]), weights=None
    ),
    "a model folder of a path that leads out": lambda f: trace(
        f, model=_model_folder(f, architectures=["../../evil"]), weights=None
    ),
    "an exported program": lambda f: trace(f, model=_file(f, "model.pt2", "PK"), weights=None),
    # The weights.
    "a pickled model as weights": lambda f: trace(f, weights=_pickled(f, torch.nn.Linear(2, 2))),
    "a pickled list as weights": lambda f: trace(f, weights=_pickled(f, [1, 2])),
    "text as weights": lambda f: trace(f, weights=_file(f, "bad.pt", "not weights")),
    "an empty file as weights": lambda f: trace(f, weights=_file(f, "bad.safetensors", "")),
    "truncated safetensors": lambda f: trace(f, weights=_cut(f, "weights.safetensors")),
    "a missing tensor": lambda f: trace(f, weights=_weights(f, **{"1.weight": STATE["1.weight"]})),
    "an unexpected tensor": lambda f: trace(f, weights=_weights(f, **STATE, extra=torch.zeros(1))),
    "a tensor of another shape": lambda f: trace(f, weights=_weights(f, **{**STATE, "1.weight": torch.zeros(3, 9)})),
    "weights of another network": lambda f: trace(f, weights=_weights(f, **_renamed("a"), **_renamed("b"))),
    # The arrays' files.
    "object arrays": lambda f: trace(f, data=_npz(f, x=np.array([{}] * 12), y=Y)),
    "text named .npz": lambda f: trace(f, data=_file(f, "bad.npz", "x,y\n1,2\n")),
    "truncated .npz": lambda f: trace(f, data=_cut(f, "train.npz")),
    "an .npz that claims a petabyte": lambda f: trace(f, data=_vast(f)),
    "an .npz without labels": lambda f: trace(f, data=_npz(f, x=X)),
    "an .npz of other arrays": lambda f: trace(f, events=_npz(f, images=X, labels=Y)),
    "truth of another form": lambda f: trace(f, truth=_file(f, "bad.json", "[]")),
    "truth beyond the data": lambda f: trace(f, truth=_file(f, "bad.json", '{"poison": [12]}')),
    "truth of fractions": lambda f: trace(f, truth=_file(f, "bad.json", '{"poison": [1.5]}')),
    # One image as the event.
    "an image that is none": lambda f: _event(f, _file(f, "photo.png", "not an image")),
    "an image of another size": lambda f: _event(f, _image(f, 9, 8)),
    "an image for data that are no images": lambda f: _event(f, _image(f, 8, 8), data=_npz(f, x=FLOATS, y=Y)),
    "an image without a label": lambda f: _event(f, _image(f, 8, 8), label=None),
    "an image with a negative label": lambda f: _event(f, _image(f, 8, 8), label=-1),
    "both events and an image": lambda f: _event(f, _image(f, 8, 8), events=f / "events.npz"),
    "neither events nor an image": lambda f: trace(f, events=None),
    "events with a label": lambda f: trace(f, label=1),
    # Folders of images.
    "a folder without images": lambda f: trace(f, data=_filled(f)),
    "an image outside of a class": lambda f: trace(f, data=_folder(f, lambda d: _image(d, 8, 8))),
    "images of two sizes": lambda f: trace(f, data=_folder(f, lambda d: _image(d / "a", 9, 8))),
    "an image that unpacks to 3.6 billion pixels": lambda f: trace(
        f, data=_folder(f, lambda d: _bomb(d / "a" / "0.png"))
    ),
    "a script named as an image": lambda f: trace(f, data=_folder(f, lambda d: _file(d, "a/x.png", "%!PS-Adobe-3.0"))),
    "a link out of the folder": lambda f: trace(f, data=_folder(f, lambda d: (d / "a" / "x.png").symlink_to("/etc"))),
    "escape codes in the name of an image": lambda f: trace(
        f, data=_folder(f, lambda d: _file(d, "a/\x1b[31mx.png", "no image"))
    ),
    # Tables.
    "text named .csv": lambda f: trace(f, data=_file(f, "rows.csv", "no table")),
    "a CSV without rows": lambda f: trace(f, data=_file(f, "rows.csv", "a,label\n")),
    "a CSV with a short row": lambda f: trace(f, data=_file(f, "rows.csv", "a,b,label\n1,2,0\n1,2\n")),
    "a CSV with two columns of one name": lambda f: trace(f, data=_file(f, "rows.csv", "a,a,label\n1,2,0\n")),
    "a CSV that is not UTF-8": lambda f: trace(f, data=_file(f, "rows.csv", b"a,label\n\xff\xfe,0\n")),
    "a word in a column of numbers": lambda f: trace(f, data=_csv(f, cell="UPX")),
    "an empty cell": lambda f: trace(f, data=_csv(f, cell="")),
    "a row without a label": lambda f: trace(f, data=_csv(f, label="")),
    "a fraction as a label": lambda f: trace(f, data=_csv(f, label="0.5")),
    "a column of labels that is not there": lambda f: trace(f, data=_csv(f), **{"label-column": "kind"}),
    "a source column that is not there": lambda f: trace(f, data=_csv(f), **{"source-column": "uploader"}),
    "a source column of arrays": lambda f: trace(f, **{"source-column": "uploader"}),
    "a column of labels where there are no columns": lambda f: trace(f, **{"label-column": "y"}),
    "a memory beyond all numbers": lambda f: trace(f, memory="9" * 400),
    "events without a column of the data": lambda f: trace(
        f, data=_csv(f), events=_file(f, "events.csv", "f0,label\n1,0\n")
    ),
    "text named .parquet": lambda f: trace(f, data=_file(f, "rows.parquet", "no table")),
    "a saved set without its files": lambda f: trace(
        f, data=_file(f, "saved/state.json", '{"_data_files": []}').parent
    ),
    "a saved set that leads elsewhere": lambda f: trace(
        f, data=_file(f, "saved/state.json", '{"_data_files": [{"filename": "../train.npz"}]}').parent
    ),
    "an .npz that unpacks to gigabytes": lambda f: trace(f, data=_swollen(f)),
    "data of an unknown form": lambda f: trace(f, data=_file(f, "train.json", "[]")),
    # Data from a factory.
    "a factory of data that raises": lambda f: trace(f, data=f"{f}/arch.py:raises"),
    "a factory of data that returns a number": lambda f: trace(f, data=f"{f}/arch.py:number"),
    "classes of which one is named twice": lambda f: trace(f, classes="a,b,a"),
    # One row or array as the event.
    "a line of numbers that is too short": lambda f: trace(f, data=_csv(f), events=None, event="1,2,3", label="0"),
    "a pickled array as the event": lambda f: _event(f, _file(f, "event.npy", b"\x80\x04K\x01.")),
    "a label by a name of no class": lambda f: _event(f, _image(f, 8, 8), label="truck"),
    # Options.
    "an unknown rule": lambda f: trace(f, rule="best"),
    "an unknown device": lambda f: trace(f, device="abacus"),
    "a device that holds no numbers": lambda f: trace(f, device="meta"),
    "a device of another machine": lambda f: trace(f, device="hpu"),
    "no sample a step": lambda f: trace(f, **{"batch-size": 0}),
    "an unknown attack": lambda f: attack(f, attack="siege"),
    "an unknown data set": lambda f: attack(f, dataset="stars"),
    "an unknown model": lambda f: attack(f, model="oracle"),
    "a model for other data": lambda f: attack(f, model="mlp"),
    "rate 0": lambda f: attack(f, rate=0),
    "rate 1": lambda f: attack(f, rate=1),
    "rate 1.5": lambda f: attack(f, rate=1.5),
    "rate NaN": lambda f: attack(f, rate="nan"),
    "a rate of less than one sample": lambda f: attack(f, rate=0.0001),
    "no events asked for": lambda f: attack(f, events=0),
    "no training samples asked for": lambda f: attack(f, **{"n-train": 0}),
    "no epochs": lambda f: attack(f, epochs=0),
    "a negative weight decay": lambda f: attack(f, **{"weight-decay": -1}),
    "labels smoothed to nothing": lambda f: attack(f, smoothing=1),
    "nothing but wrong labels": lambda f: attack(f, **{"wrong-labels": 1}),
    "no width": lambda f: attack(f, width=0),
    "a target that is no label": lambda f: attack(f, target=10),
    "an unknown kind of training": lambda f: attack(f, training="osmosis"),
    "an option without a value": lambda f: attack(f, option="size"),
    "an option without a name": lambda f: attack(f, option="=2"),
    "an option given twice": lambda f: [*attack(f, option="size=2"), "--option", "size=3"],
    "an option that the attack does not have": lambda f: attack(f, option="colour=red"),
    "an option of the plan": lambda f: attack(f, option="seed=1"),
    "a word as an option that is a number": lambda f: attack(f, option="size=big"),
    "a fraction as an option that is a whole number": lambda f: attack(f, option="size=2.5"),
    "an option out of its range": lambda f: attack(f, option="size=9"),
    # Where results go.
    "a full folder for the case": lambda f: trace(f, out=_filled(f)),
    "a file for the case": lambda f: trace(f, out=f / "arch.py"),
    "a folder below a file": lambda f: trace(f, out=f / "arch.py" / "case"),
    "a full folder for the incident": lambda f: attack(f, out=_filled(f)),
    "a file for the incident": lambda f: attack(f, out=f / "arch.py"),
    # Cases and grids.
    "a case that is not there": lambda f: ["report", str(f / "none")],
    "a case that is a file": lambda f: ["report", str(f / "arch.py")],
    "a folder that is no case": lambda f: ["report", str(_filled(f))],
    "a case with broken JSON": lambda f: _case(f, trace_json="{"),
    "a case of another schema": lambda f: _case(f, trace_json='{"schema": 99}'),
    "a case without scores": lambda f: _case(f, trace_json='{"schema": 1}'),
    # What follows a trace.
    "a case to verify that is not there": lambda f: verify(f, f / "none"),
    "a case to verify that accuses nobody": lambda f: verify(f, _traced(f, ())),
    "a case to verify whose data have changed": lambda f: verify(f, _changed(f, "train.npz")),
    "a case to verify whose data are gone": lambda f: verify(
        f, _traced(f, data={"path": f"{f}/none.npz", "sha256": "0" * 64})
    ),
    "a case to verify that names no data": lambda f: verify(f, _traced(f, data=None)),
    "a case to verify that accuses beyond the data": lambda f: verify(f, _beyond(f)),
    "other events than those traced": lambda f: verify(f, events=_npz(f, x=EVENT_X ^ 2, y=EVENT_Y)),
    "a recipe of another form": lambda f: ["verify", str(_traced(f)), "--train-with", f"{f}/arch.py"],
    "a recipe that is not there": lambda f: verify(f, recipe="train"),
    "a recipe that wants other arguments": lambda f: verify(f, recipe="wants"),
    "a recipe that raises": lambda f: verify(f, recipe="fails"),
    "a recipe that returns a number": lambda f: verify(f, recipe="seven"),
    "a test set of another shape": lambda f: verify(f, test=_npz(f, x=X[:, :4], y=Y)),
    "attempts that are not there": lambda f: verify(f, attempts=f / "none.npz"),
    "a case to verify without scores": lambda f: verify(f, _without(_traced(f), "scores.npy")),
    "a case to repair that accuses nobody": lambda f: repair(f, _traced(f, ())),
    "a case to repair whose weights have changed": lambda f: repair(f, _changed(f, "weights.safetensors")),
    "a case to repair whose model has changed": lambda f: repair(f, _changed(f, "arch.py")),
    "a case to repair that brings its own code": lambda f: repair(
        f, _traced(f, model={"path": "", "sha256": None, "spec": f"{f}/case/arch.py:build"})
    ),
    "repaired weights over a file": lambda f: repair(f, out=f / "weights.safetensors"),
    "repaired weights of another kind": lambda f: repair(f, out=f / "repaired.pt"),
    "a case to review that is not there": lambda f: review(f, f / "none"),
    "a case to review that accuses nobody": lambda f: review(f, _traced(f, ())),
    "decisions that are not there": lambda f: review(f, file=f / "none.json"),
    "decisions that are no JSON": lambda f: review(f, file=_file(f, "d.json", "confirmed")),
    "decisions nested ever deeper": lambda f: review(f, file=_file(f, "d.json", "[" * 100_000)),
    "decisions on another case": lambda f: review(f, case={"created": "2020-01-01T00:00:00+00:00"}),
    "decisions on a sample that is not there": lambda f: review(f, decisions=[{"index": 99, "decision": "cleared"}]),
    "a decision that is none": lambda f: review(f, decisions=[{"index": 1, "decision": "burnt"}]),
    "no decisions": lambda f: review(f, decisions=[]),
    "an export of an unknown kind": lambda f: export(f, "everything", "a.npy"),
    "an export over a file": lambda f: export(f, "poison-list", _csv(f).name),
    "an export of another form": lambda f: export(f, "cleaned-data", "clean.csv"),
    "an export to a folder that is not there": lambda f: export(f, "clean-index", "none/clean.npy"),
    "an export of data that have changed": lambda f: export(f, "cleaned-data", "clean.npz", _changed(f, "train.npz")),
    "an export of images of which one is a link": lambda f: export(f, "cleaned-data", "clean", _link(f)),
    "a list of files of data that are none": lambda f: export(f, "filelist", "files.txt"),
    "no grid": lambda f: ["bench", "--results", str(f), "--readme", str(f / "README.md")],
    "a grid that is not there": lambda f: _bench(f, f / "none.toml"),
    "a grid that is no TOML": lambda f: _bench(f, _file(f, "grid.toml", "attack = ")),
    "a grid without seeds": lambda f: bench(f, seeds=None),
    "a grid with an unknown key": lambda f: bench(f, sedes=[1]),
    "a grid without incidents": lambda f: bench(f, incidents=None),
    "a grid with one incident and no list": lambda f: bench(f, incidents="badnets"),
    "a grid with an incident without a data set": lambda f: bench(f, incidents=[{"attack": "badnets"}]),
    "a grid with an unknown field of an incident": lambda f: bench(f, incidents=[{**INCIDENT, "rates": [0.05]}]),
    "a grid with an unknown attack": lambda f: bench(f, incidents=[{**INCIDENT, "attack": ["badnets"]}]),
    "a grid with an unknown rule": lambda f: bench(f, rules=["best"]),
    "a grid with rate 1": lambda f: bench(f, incidents=[INCIDENT, {**INCIDENT, "rate": 1.0}]),
    "a grid with no events": lambda f: bench(f, n_events=0),
    "a grid with an unknown device": lambda f: bench(f, device="abacus"),
    "a page without marks": lambda f: [*bench(f)[:-1], str(_file(f, "page.md", "no marks"))],
}


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Return every file below a folder by name with its content, and every folder with None."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
