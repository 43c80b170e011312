"""Export: what is written is what was asked for, in the form that the data came in, and nowhere else."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import make_trace
from tasks import toy_images
from test_images import write_folder

from poisontrace import readers, report
from poisontrace._errors import InvalidInputError
from poisontrace.exporting import export

POISON = np.array([2, 5])
KEPT = [0, 1, 3, 4, 6, 7]


def write_case(folder: Path, data: Path | str | None = None, *, n: int = 8, **changes: Any) -> Path:
    """Write a case that accuses samples 2 and 5 of a training set."""
    found = POISON[POISON < n]
    trace = make_trace(
        n=20, labels=np.arange(n) % 4, scores=np.ones(n, np.float32), poison=found, clusters=(), exhibits={}, **changes
    )
    inputs = {} if data is None else {"data": readers.describe(str(data), data if isinstance(data, Path) else None)}
    return report.save_case(trace, folder, {"inputs": inputs})


def write_images(folder: Path) -> Path:
    """Write eight images in four classes; sorted by class they are 0, 4, 1, 5, ..."""
    x, y = toy_images(8)
    return write_folder(folder, x, y)


def test_an_index_is_written_as_an_array_or_as_lines(tmp_path: Path) -> None:
    """Ascending, without needing the data."""
    case = write_case(tmp_path / "case")

    done = export(case, "clean-index", tmp_path / "clean.npy")
    export(case, "clean-index", tmp_path / "clean.txt")

    assert (done.n_kept, done.n_left_out, done.out) == (6, 2, tmp_path / "clean.npy")
    index = np.load(tmp_path / "clean.npy")
    assert (index.tolist(), index.dtype) == (KEPT, np.int64)
    assert (tmp_path / "clean.txt").read_text() == "0\n1\n3\n4\n6\n7\n"


def test_a_list_cannot_carry_formulas(tmp_path: Path) -> None:
    """Not even if another program put one into poison.csv."""
    case = write_case(tmp_path / "case", ids=("=1+1",) * 8)
    export(case, "poison-list", tmp_path / "a.csv")
    (case / "poison.csv").write_text('index,id,label,score\n2,"=HYPERLINK(""x"")",0,1\n5,@x,1,1\n')
    export(case, "poison-list", tmp_path / "b.csv")

    lines = [(tmp_path / f"{name}.csv").read_text().splitlines() for name in "ab"]
    cells = [row["id"] for table in lines for row in csv.DictReader(table)]
    assert cells == ["'=1+1", "'=1+1", '\'=HYPERLINK("x")', "'@x"]


def test_files_are_listed_as_they_are_in_their_folder(tmp_path: Path) -> None:
    """In order, without those accused."""
    data = write_images(tmp_path / "data")
    files = sorted(path.relative_to(data).as_posix() for path in data.rglob("*.png"))

    export(write_case(tmp_path / "case", data), "filelist", tmp_path / "files.txt")

    assert (tmp_path / "files.txt").read_text().splitlines() == [files[index] for index in KEPT]


def test_an_npz_stays_an_npz(tmp_path: Path) -> None:
    """Every array with a row a sample loses the same rows; names of classes stay, even if they are as many."""
    data = tmp_path / "train.npz"
    x, y = toy_images(8)
    np.savez(data, x=x, y=y, ids=np.arange(8).astype(str), classes=list("abcdefgh"), note=np.array("kept"))

    export(write_case(tmp_path / "case", data), "cleaned-data", tmp_path / "clean.npz")

    with np.load(tmp_path / "clean.npz") as cleaned:
        assert (cleaned["x"] == x[KEPT]).all() and cleaned["y"].tolist() == y[KEPT].tolist()
        assert cleaned["ids"].tolist() == [str(index) for index in KEPT]
        assert (len(cleaned["classes"]), str(cleaned["note"])) == (8, "kept")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_csv_stays_as_it_stands(end: str, tmp_path: Path) -> None:
    """Byte for byte: its mark, quotes, formulas, line breaks in cells; only rows are left out."""
    rows = [f'{row}.50;"=cmd{end}{row}";+0' for row in range(8)]
    data = tmp_path / "train.csv"
    data.write_bytes(("\ufeff" + end.join(["a;id;label", *rows[:3], "", *rows[3:]])).encode())

    export(write_case(tmp_path / "case", data), "cleaned-data", tmp_path / "clean.csv")

    assert (tmp_path / "clean.csv").read_bytes().decode() == "\ufeff" + end.join(
        ["a;id;label", *(rows[index] for index in KEPT)]
    )


def test_a_parquet_file_keeps_its_schema(tmp_path: Path) -> None:
    """Types and the names of labels that it holds."""
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    table = pyarrow.table({"a": pyarrow.array(range(8), pyarrow.int16()), "label": [0, 1] * 4})
    table = table.replace_schema_metadata({"huggingface": '{"info": 1}'})
    parquet.write_table(table, tmp_path / "train.parquet")

    export(write_case(tmp_path / "case", tmp_path / "train.parquet"), "cleaned-data", tmp_path / "clean.parquet")

    cleaned = parquet.read_table(tmp_path / "clean.parquet")
    assert cleaned.column("a").to_pylist() == KEPT
    assert cleaned.schema.equals(table.schema, check_metadata=True)


@pytest.mark.parametrize("is_split", [False, True])
def test_a_saved_set_is_loaded_again(is_split: bool, tmp_path: Path) -> None:
    """By the library that saved it, with its features."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    features = datasets.Features({"a": datasets.Value("int32"), "label": datasets.ClassLabel(names=["no", "yes"])})
    saved = datasets.Dataset.from_dict({"a": range(8), "label": [0, 1] * 4}, features=features)
    (datasets.DatasetDict(train=saved, test=saved) if is_split else saved).save_to_disk(tmp_path / "train")

    export(write_case(tmp_path / "case", tmp_path / "train"), "cleaned-data", tmp_path / "clean")

    loaded = datasets.load_from_disk(str(tmp_path / "clean"))
    assert (loaded["a"][:], loaded.features) == (KEPT, features)
    assert readers.read(str(tmp_path / "clean"), "data")[0].classes == ("no", "yes")


def test_a_folder_of_images_is_copied(tmp_path: Path) -> None:
    """The same bytes under the same names; a class without images is still one."""
    data = write_images(tmp_path / "data")
    files = sorted(path.relative_to(data).as_posix() for path in data.rglob("*.png"))
    (data / "zoo").mkdir()

    export(write_case(tmp_path / "case", data), "cleaned-data", tmp_path / "clean")

    copied = {path.relative_to(tmp_path / "clean").as_posix(): path for path in (tmp_path / "clean").rglob("*.png")}
    assert sorted(copied) == [files[index] for index in KEPT]
    assert all(path.read_bytes() == (data / name).read_bytes() for name, path in copied.items())
    assert (tmp_path / "clean" / "zoo").is_dir()


def test_a_link_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one that was there, nor one put there between the look and the copy; nothing is left behind."""
    from poisontrace import exporting

    data = write_images(tmp_path / "data")
    case = write_case(tmp_path / "case", data)
    (tmp_path / "secret.png").write_bytes((data / "ape" / "00000.png").read_bytes())
    files = exporting.list_images(data, "data")
    (data / "ape" / "00000.png").unlink()
    (data / "ape" / "00000.png").symlink_to(tmp_path / "secret.png")

    with pytest.raises(InvalidInputError, match="plain files and folders"):
        export(case, "cleaned-data", tmp_path / "clean")
    monkeypatch.setattr(exporting, "list_images", lambda *_: files)
    with pytest.raises(OSError, match="symbolic link"):
        export(case, "cleaned-data", tmp_path / "clean")

    assert not (tmp_path / "clean").exists() and sorted(path.name for path in tmp_path.iterdir()) == [
        "case",
        "data",
        "secret.png",
    ]


def test_data_that_have_changed_are_refused(tmp_path: Path) -> None:
    """One pixel of them."""
    data = write_images(tmp_path / "data")
    case = write_case(tmp_path / "case", data)
    with (data / "ape" / "00000.png").open("ab") as stream:
        stream.write(b" ")

    with pytest.raises(InvalidInputError, match="'data' must be the file that was traced, of SHA-256"):
        export(case, "cleaned-data", tmp_path / "clean")


def test_data_that_have_moved_are_named(tmp_path: Path) -> None:
    """And must be as many where the case knows no hash."""
    data = write_images(tmp_path / "data")
    case = write_case(tmp_path / "case")

    assert export(case, "cleaned-data", tmp_path / "a", data=data).n_kept == 6
    (data / "ape" / "00000.png").unlink()
    with pytest.raises(InvalidInputError, match=r"'data' must be the training set of the case \(got 7 samples for 8\)"):
        export(case, "cleaned-data", tmp_path / "b", data=data)


@pytest.mark.parametrize("form", ["csv", "npz"])
@pytest.mark.parametrize("n", [7, 9])
def test_files_of_another_length_are_refused(form: str, n: int, tmp_path: Path) -> None:
    """Too short or too long."""
    data = tmp_path / f"d.{form}"
    if form == "npz":
        np.savez(data, x=np.zeros((n, 2), np.float32), y=np.zeros(n, int))
    else:
        data.write_text("a,label\n" + "1,0\n" * n)

    with pytest.raises(InvalidInputError, match="'data' must be the training set of the case"):
        export(write_case(tmp_path / "case"), "cleaned-data", tmp_path / f"out.{form}", data=data)


@pytest.mark.parametrize("name", ["d.csv", "d.tsv", "d.parquet", "d.pq", "saved"])
def test_data_that_cannot_be_read_are_refused(name: str, tmp_path: Path) -> None:
    """In one sentence, and nothing is left behind; the case knows no hash, which would say so."""
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    data = tmp_path / name
    if name == "saved":
        data.mkdir()
    ((data / "state.json") if name == "saved" else data).write_bytes(b"\xff{junk" * 9)
    case = write_case(tmp_path / "case")

    with pytest.raises(InvalidInputError, match=rf"'data' must be a table or a saved set .*in '{name}'\)\. Name it"):
        export(case, "cleaned-data", tmp_path / f"out{data.suffix}", data=data)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["case", name]


def test_data_of_an_unknown_form_are_refused(tmp_path: Path) -> None:
    """Even if they could be read as one that is known."""
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"a": range(8), "label": [0, 1] * 4}), tmp_path / "d.bin")

    with pytest.raises(InvalidInputError, match=r"'data' must be an \.npz file, a table or a folder \(got 'd\.bin'\)"):
        export(write_case(tmp_path / "case"), "cleaned-data", tmp_path / "out.npz", data=tmp_path / "d.bin")


@pytest.mark.parametrize(
    ("what", "out", "message"),
    [
        ("everything", "a.npy", "'what' must be one of clean-index, poison-list, filelist, cleaned-data"),
        ("clean-index", "a.csv", r"'out' must be a new \.npy or \.txt file"),
        ("clean-index", "none/a.npy", "in a folder that exists"),
        ("clean-index", "case/trace.json", "'out' must be a new"),
        ("poison-list", "a.txt", r"'out' must be a new \.csv file"),
        ("filelist", "a.txt", "'what' must be clean-index or poison-list where the data are no folder of images"),
        ("cleaned-data", "a.csv", r"'out' must be a new \.npz file"),
    ],
)
def test_what_cannot_be_written_is_refused(what: str, out: str, message: str, tmp_path: Path) -> None:
    """In one sentence, before anything is."""
    np.savez(tmp_path / "d.npz", x=np.zeros((8, 2), np.float32), y=np.zeros(8, int))
    case = write_case(tmp_path / "case", tmp_path / "d.npz")

    with pytest.raises(InvalidInputError, match=message):
        export(case, what, tmp_path / out)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["case", "d.npz"]


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    """A link where the file should go, even to nowhere, is not a new file."""
    case = write_case(tmp_path / "case")
    os.symlink(tmp_path / "elsewhere.npy", tmp_path / "a.npy")

    with pytest.raises(InvalidInputError, match="'out' must be a new"):
        export(case, "clean-index", tmp_path / "a.npy")


def test_data_made_by_code_are_selected_by_index(tmp_path: Path) -> None:
    """There is no file to clean; and the code is not run."""
    (tmp_path / "data.py").write_text("def build():\n    raise SystemExit(9)\n")
    case = write_case(tmp_path / "case", f"{tmp_path}/data.py:build")

    with pytest.raises(InvalidInputError, match="where code makes the data"):
        export(case, "cleaned-data", tmp_path / "out.npz")


def test_a_name_of_two_lines_is_not_listed(tmp_path: Path) -> None:
    """It would become two files."""
    data = write_images(tmp_path / "data")
    (data / "ape" / "00000.png").rename(data / "ape" / "0\n..\n.png")

    with pytest.raises(InvalidInputError, match="a file's name does not fit on a line"):
        export(write_case(tmp_path / "case", data), "filelist", tmp_path / "files.txt")


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    """A case that accuses beyond its data."""
    case = write_case(tmp_path / "case")
    content = json.loads((case / "trace.json").read_text())
    (case / "trace.json").write_text(json.dumps(content | {"n_samples": 4}))

    with pytest.raises(InvalidInputError, match="'case' must hold files that belong together"):
        export(case, "clean-index", tmp_path / "a.npy")
