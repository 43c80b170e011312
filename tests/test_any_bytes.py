"""Every reader given any bytes, and sound files with something changed: a value, or one sentence, never anything else.

Property-based: hypothesis makes the bytes. What is changed lies anywhere in a file, heads and lengths included.
"""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bad_inputs
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from poisontrace import bench, loading, readers, report
from poisontrace._errors import PoisontraceError
from poisontrace._record import Tree
from poisontrace._types import Finding
from poisontrace.data import ArraySet
from poisontrace.metrics import read_truth
from poisontrace.notes import Notes
from poisontrace.recording import Folder
from poisontrace.rows import read_rows

QUICK = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
ROWS = ArraySet(bad_inputs.FLOATS.reshape(12, -1), bad_inputs.Y)


def _npz() -> bytes:
    content = io.BytesIO()
    np.savez(content, x=bad_inputs.X, y=bad_inputs.Y, ids=np.array(list("abcdefghijkl")))
    return content.getvalue()


def _npy() -> bytes:
    content = io.BytesIO()
    np.save(content, bad_inputs.FLOATS[0])
    return content.getvalue()


def _image() -> bytes:
    content = io.BytesIO()
    Image.fromarray(bad_inputs.X[0, :, :, 0]).save(content, "PNG")
    return content.getvalue()


def _parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = io.BytesIO()
    pq.write_table(pa.table({"a": [0.5, 1.5], "b": [1, 2], "label": ["cat", "dog"]}), content)
    return content.getvalue()


def _read(path: Path) -> Any:
    samples, _ = readers.read(str(path), "data")
    for x, y in samples.batches(5):  # images are decoded only now
        assert len(x) == len(y)
    return samples


def _read_folder(path: Path) -> Any:
    (path.parent / "set" / "cat").mkdir(parents=True, exist_ok=True)
    path.replace(path.parent / "set" / "cat" / "a.png")
    return _read(path.parent / "set")


def _read_event(path: Path, like: Any = ROWS) -> Any:
    return readers.read_event(str(path), "0", like)


def _weights(path: Path) -> Any:
    code = path.parent / "arch.py"
    code.write_text(bad_inputs.ARCH)
    _, factory = loading.find_factory(f"{code}:build")
    return loading.load_model(factory, path)


def _case(path: Path) -> Any:
    (path.parent / "case").mkdir(exist_ok=True)
    path.replace(path.parent / "case" / "trace.json")
    return report.render(path.parent / "case")


def _note(path: Path) -> Any:
    notes, tree = Notes(path.parent, 4, ""), Tree(0, 0)
    finding = Finding(0, 0.5, "poison", np.array([1, 3]), {})
    notes.write(b"event", tree, finding, np.zeros(4, np.float32))
    (written,) = path.parent.glob("event-*.npz")
    path.replace(written)
    return notes.read(b"event", Tree(0, 0))


def _store(path: Path) -> Any:
    folder = path.parent / "pass"
    written = Folder(4, {"a": ("float32", 2)}, folder, {})
    written.add({"a": torch.zeros(3, 2)})
    written.close()
    path.replace(folder / "blocks.jsonl")
    opened = Folder(4, {"a": ("float32", 2)}, folder, {})
    opened.close()
    assert 0 <= opened.n_done <= 4
    return opened


_CSV = b"a,b,label\n0.5,1,cat\n1.5,2,dog\n"
_TRUTH = b'{"poison": [1, 2], "responsible": [[1], [2]]}'
_GRID = bad_inputs.grid_text(bad_inputs.GRID).encode()
_BLOCK = b'{"start": 0, "stop": 2, "sha256": "00"}\n'
# Name of the file, sound content, and what reads it.
READERS: dict[str, tuple[str, Callable[[], bytes], Callable[[Path], Any]]] = {
    "arrays": ("train.npz", _npz, _read),
    "csv": ("train.csv", lambda: _CSV, _read),
    "tsv": ("train.tsv", lambda: _CSV.replace(b",", b"\t"), _read),
    "parquet": ("train.parquet", _parquet, _read),
    "folder of images": ("a.png", _image, _read_folder),
    "event as an image": ("a.png", _image, lambda path: _read_event(path, ArraySet(bad_inputs.X, bad_inputs.Y))),
    "event as an array": ("a.npy", _npy, _read_event),
    "event as a row": ("a.csv", lambda: _CSV, _read_event),
    "classes": ("classes.txt", lambda: b"cat\ndog\n", lambda path: readers.read_classes(str(path))),
    "truth": ("truth.json", lambda: _TRUTH, lambda path: read_truth(path, 12)),
    "weights": ("w.safetensors", lambda: save(bad_inputs.STATE), _weights),
    "grid": ("grid.toml", lambda: _GRID, bench.read_grid),
    "rows of results": ("rows.jsonl", lambda: b'{"kind": "a"}\n{"kind": "b"}\n', read_rows),
    "case": ("trace.json", lambda: json.dumps({"schema": 1, "verdict": "poison"}).encode(), _case),
    "note": ("note.npz", _npz, _note),
    "store": ("blocks.jsonl", lambda: _BLOCK, _store),
}


def _answers(name: str, content: bytes, folder: Path) -> None:
    file, _, read = READERS[name]
    (folder / file).write_bytes(content)
    try:
        read(folder / file)
    except PoisontraceError as error:
        assert str(error)  # one sentence is the other answer


@pytest.mark.parametrize("name", READERS)
@QUICK
@given(content=st.binary(max_size=300))
def test_any_bytes_get_an_answer(name: str, content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Neither a traceback nor a value of another form."""
    _answers(name, content, tmp_path_factory.mktemp("bytes"))


@pytest.mark.parametrize("name", READERS)
@QUICK
@given(data=st.data())
def test_a_sound_file_with_something_changed_gets_an_answer(
    name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A part of it replaced by other bytes, as many or not: cut off, swollen, flipped."""
    sound = READERS[name][1]()
    start = data.draw(st.integers(0, len(sound)))
    length = data.draw(st.integers(0, 20) | st.just(len(sound)))
    _answers(
        name,
        sound[:start] + data.draw(st.binary(max_size=20)) + sound[start + length :],
        tmp_path_factory.mktemp("changed"),
    )


@QUICK
@given(text=st.text(max_size=60), label=st.text(max_size=5))
def test_any_text_as_an_event_gets_an_answer(text: str, label: str) -> None:
    """A path, a line of numbers, or neither."""
    try:
        readers.read_event(text, label, ROWS)
    except PoisontraceError as error:
        assert str(error)


@QUICK
@given(
    rows=st.lists(
        st.tuples(
            st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=3, max_size=3),
            st.sampled_from(["cat", "dog"]),
        ),
        min_size=1,
        max_size=9,
    )
)
def test_rows_are_read_as_they_were_written(
    rows: list[tuple[list[float], str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every float32 comes back to the bit, every label by its name."""
    path = tmp_path_factory.mktemp("rows") / "train.csv"
    lines = [",".join([*map(repr, values), label]) for values, label in rows]
    path.write_text("a,b,c,label\n" + "\n".join(lines) + "\n")

    samples = _read(path)

    (x, y) = next(iter(samples.batches(100)))
    assert x.tolist() == [values for values, _ in rows]
    assert [samples.classes[label] for label in y] == [label for _, label in rows]
