"""Tables: which column is the label, which names the rows, which the model takes, and what is refused."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tasks import toy_rows

from poisontrace._errors import InvalidInputError
from poisontrace.columns import CHUNK, is_saved_set, read_table, table_set
from poisontrace.data import ArraySet
from poisontrace.images import ImageSet
from poisontrace.texts import TextSet


def write_csv(path: Path, **columns: Any) -> Path:
    """Write columns of one length as a CSV."""
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def write_parquet(path: Path, **columns: Any) -> Path:
    """Write columns of one length as Parquet."""
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({name: list(column) for name, column in columns.items()}), path)
    return path


def write_saved(path: Path, **columns: Any) -> Path:
    """Write columns of one length as datasets' save_to_disk does."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    datasets.Dataset.from_dict({name: list(column) for name, column in columns.items()}).save_to_disk(path)
    return path


WRITERS = {"rows.csv": write_csv, "rows.parquet": write_parquet, "saved": write_saved}


def png(value: int) -> bytes:
    """Return a small grey image as the bytes of its file."""
    stream = io.BytesIO()
    Image.new("L", (3, 2), value).save(stream, "PNG")
    return stream.getvalue()


def read(path: Path, **options: Any) -> Any:
    """Read a table as a training set."""
    columns = (options.get("label_column"), options.get("source_column"))
    return table_set(read_table(path, "data", *columns), "data", **options)


@pytest.mark.parametrize("form", WRITERS)
def test_every_form_gives_what_arrays_give(form: str, tmp_path: Path) -> None:
    """Numbers arrive as float32 in the order of the columns; names are numbered in the order of the alphabet."""
    x, y = toy_rows(30, n_features=3)
    names = np.array(["goodware", "malware"])[y]
    columns = {"b": x[:, 0], "id": np.arange(30) + 7, "a": x[:, 1], "label": names, "c": x[:, 2]}

    found = read(WRITERS[form](tmp_path / form, **columns))

    assert isinstance(found, ArraySet)
    assert found.x.dtype == np.float32
    assert np.allclose(found.x, x, atol=1e-6)
    assert (found.y == y).all()
    assert found.classes == ("goodware", "malware")
    assert found.columns == ("b", "a", "c")
    assert found.ids == tuple(map(str, np.arange(30) + 7))


@pytest.mark.parametrize("header", ["label", "Target", "Y", "class"])
def test_a_column_of_labels_is_found_by_its_name(header: str, tmp_path: Path) -> None:
    """Wherever it stands and however it is written."""
    found = read(write_csv(tmp_path / "d.csv", a=[1.5, 2], **{header: [1, 0]}, b=[3, 4]))

    assert (found.columns, found.y.tolist(), found.classes) == (("a", "b"), [1, 0], None)


def test_else_the_last_column_is_the_label(tmp_path: Path) -> None:
    """As in most tables."""
    found = read(write_csv(tmp_path / "d.csv", a=[1.5, 2], b=[3, 4], kind=["x", "w"]))

    assert (found.columns, found.y.tolist(), found.classes) == (("a", "b"), [1, 0], ("w", "x"))


def test_a_column_called_label_is_more_of_one_than_another_called_y(tmp_path: Path) -> None:
    """Whichever comes first: y may be a coordinate."""
    found = read(write_csv(tmp_path / "d.csv", x=[1.5, 2], y=[3, 4.5], label=["b", "a"]))

    assert (found.columns, found.y.tolist(), found.x[:, 1].tolist()) == (("x", "y"), [1, 0], [3, 4.5])


def test_else_the_column_that_was_named(tmp_path: Path) -> None:
    """Even if another one is called label."""
    path = write_csv(tmp_path / "d.csv", kind=[0, 1], label=[3, 4], b=[5, 6])

    found = read(path, label_column="kind")

    assert (found.columns, found.y.tolist()) == (("label", "b"), [0, 1])


@pytest.mark.parametrize(
    ("columns", "row_name", "inputs"),
    [
        ({"filename": ["u", "v"], "a": [1, 2]}, ("u", "v"), ("a",)),
        ({"": [0, 1], "a": [1, 2]}, ("0", "1"), ("a",)),
        ({"Unnamed: 0": [0, 1], "a": [1, 2]}, ("0", "1"), ("a",)),
        ({"source": [3, 4], "a": [1, 2]}, ("0", "1"), ("source", "a")),
        ({"id": ["007", "8"], "source": [3, 4]}, ("007", "8"), ("source",)),
        ({"sha256": ["ab", "cd"], "md5": ["e", "f"], "a": [1, 2]}, ("ab", "cd"), ("a",)),
    ],
)
def test_a_column_that_names_the_rows_is_found(columns: Any, row_name: Any, inputs: Any, tmp_path: Path) -> None:
    """By its name; numbers are features unless they count the rows."""
    found = read(write_csv(tmp_path / "d.csv", **columns, label=[0, 1]))

    assert (found.ids, found.columns) == (row_name, inputs)


def test_separators_marks_and_words_are_known(tmp_path: Path) -> None:
    """Semicolons, a byte order mark, true and false, empty lines."""
    (tmp_path / "d.csv").write_text("\ufeffa;b;y\n1.5;True;0\n\n2;False;1\n", "utf-8")

    found = read(tmp_path / "d.csv")

    assert (found.x.tolist(), found.y.tolist()) == ([[1.5, 1.0], [2.0, 0.0]], [0, 1])


def test_long_tables_are_read_in_parts(tmp_path: Path) -> None:
    """No row is lost where two parts meet."""
    n = 2 * CHUNK + 5

    found = read(write_csv(tmp_path / "d.csv", a=range(n), y=np.arange(n) % 2))

    assert (found.x[:, 0] == np.arange(n)).all() and len(found.y) == n


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,family,y\n1,worm,0\n", r"numbers in every column .*got 'worm' in 'family' of .*name the one"),
        ("a,y\n1,0\n2\n", r"must be a CSV .*1 cells in row 2 for 2 columns"),
        ("a,a,y\n1,2,0\n", r"two columns named 'a'"),
        ("a,y\n", r"at least one row"),
        ("", r"at least one row"),
        ("y\n1\n", r"got no other column of"),
        ("a,y\n1,\n", r"'data: y' must hold a label in each row \(got none in row 0\)"),
        ("a,y\n1,0.5\n", r"'data: y' must hold whole numbers or names \(got .*0.5"),
        ("a,y\n1,-1\n", r"'data: y' must hold labels of 0 or more"),
        ("a,y\n,0\n", r"must hold finite numbers \(got NaN or infinity in 1 of 1 rows, first 0\)"),
        ('a,y\n"1,0\n', r"must be a CSV"),
        ("a,y\n" + "1,0\n" * CHUNK + "x,0\n", r"in the column 'a', numbers up to row 8192"),
    ],
)
def test_a_table_that_cannot_be_fed_is_refused(text: str, message: str, tmp_path: Path) -> None:
    """What is wrong, and where."""
    (tmp_path / "d.csv").write_text(text)

    with pytest.raises(InvalidInputError, match=message):
        read(tmp_path / "d.csv")


def test_a_column_of_labels_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """The columns are named."""
    with pytest.raises(InvalidInputError, match=r"'label-column' .*got 'kind'.*Name one of 'a', 'y'"):
        read(write_csv(tmp_path / "d.csv", a=[1], y=[0]), label_column="kind")


def test_bytes_that_are_no_table_are_refused(tmp_path: Path) -> None:
    """In one sentence."""
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    (tmp_path / "d.parquet").write_bytes(b"PAR1" + bytes(range(200)))

    with pytest.raises(InvalidInputError, match=r"'data' must be a Parquet file"):
        read(tmp_path / "d.parquet")


def test_a_parquet_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    """A billion rows of one value fit into a few kilobytes."""
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    table = pyarrow.table({"a": pyarrow.array(np.zeros(1 << 20, np.int8)).dictionary_encode()})
    with parquet.ParquetWriter(tmp_path / "d.parquet", table.schema, compression="zstd") as writer:
        for _ in range(130):
            writer.write_table(table)

    with pytest.raises(InvalidInputError, match=r"bytes that unpack to 1,090,519,040"):
        read(tmp_path / "d.parquet")


@pytest.mark.parametrize("form", ["rows.parquet", "saved"])
def test_images_in_a_table_are_read(form: str, tmp_path: Path) -> None:
    """As bytes, or as the structures that datasets writes; other columns are not fed."""
    cells = [{"bytes": png(value), "path": "/etc/passwd"} for value in (1, 2)]

    found = read(WRITERS[form](tmp_path / form, image=cells, note=["a", "b"], label=["x", "w"]))

    assert isinstance(found, ImageSet)
    assert found.pixels([0, 1])[:, 0, 0, 0].tolist() == [1, 2]
    assert (found.y.tolist(), found.classes) == ([1, 0], ("w", "x"))


def test_an_image_that_is_only_a_path_is_not_followed(tmp_path: Path) -> None:
    """It would lead out of the evidence."""
    Image.new("L", (3, 2)).save(tmp_path / "x.png")
    cells = [{"bytes": None, "path": str(tmp_path / "x.png")}]

    with pytest.raises(InvalidInputError, match=r"readable images"):
        read(write_parquet(tmp_path / "d.parquet", image=cells, label=[0]))


def test_a_saved_set_brings_the_names_of_its_labels(tmp_path: Path) -> None:
    """Its numbers stay as they are; of several splits, train is read."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    features = datasets.Features({"a": datasets.Value("float32"), "label": datasets.ClassLabel(names=["w", "1", "0"])})
    split = datasets.Dataset.from_dict({"a": [1.0, 2.0], "label": [2, 1]}, features=features)
    datasets.DatasetDict({"train": split, "test": split}).save_to_disk(tmp_path / "saved")

    found = read(tmp_path / "saved")

    assert is_saved_set(tmp_path / "saved") and not is_saved_set(tmp_path)
    assert (found.y.tolist(), found.classes) == ([2, 1], ("w", "1", "0"))


def test_a_saved_set_cannot_lead_elsewhere(tmp_path: Path) -> None:
    """Its list of files may name anything."""
    write_saved(tmp_path / "saved", a=[1.0], label=[0])
    state = json.loads((tmp_path / "saved" / "state.json").read_text())
    state["_data_files"] = [{"filename": "../other.arrow"}]
    (tmp_path / "saved" / "state.json").write_text(json.dumps(state))

    with pytest.raises(InvalidInputError, match=r"other.arrow', a file elsewhere"):
        read(tmp_path / "saved")


def test_texts_are_found(tmp_path: Path) -> None:
    """The one column of text, or the one that is called so."""
    one = write_csv(tmp_path / "a.csv", remark=["ab", "c"], size=[1, 2], label=["x", "w"])
    two = write_csv(tmp_path / "b.csv", remark=["ab", "c"], text=["d", "ef"], label=["x", "w"])
    three = write_csv(tmp_path / "c.csv", remark=["ab", "c"], note=["d", "ef"], label=["x", "w"])

    def letters(texts: list[str]) -> list[list[int]]:
        return [list(map(ord, text)) for text in texts]

    found = [read(path, tokenize=letters) for path in (one, two)]

    assert all(isinstance(texts, TextSet) for texts in found)
    assert [texts.texts for texts in found] == [["ab", "c"], ["d", "ef"]]
    with pytest.raises(InvalidInputError, match=r"one column of text \(got 'remark', 'note' .*Name it text"):
        read(three, tokenize=letters)


def test_events_have_the_columns_of_the_data(tmp_path: Path) -> None:
    """In whatever order their own file has them; the classes are those of the data."""
    data = read(write_csv(tmp_path / "d.csv", a=[1, 2], b=[3, 4], label=["w", "x"]))
    events = write_csv(tmp_path / "e.csv", b=[30], more=["?"], label=["x"], a=[10])
    lacking = write_csv(tmp_path / "f.csv", b=[30], label=["x"])
    bare = write_csv(tmp_path / "g.csv", a=[10], b=[30])

    found = read(events, like=data, classes=data.classes)

    assert (found.x.tolist(), found.y.tolist()) == ([[10.0, 30.0]], [1])
    assert read(bare, like=data, label=1).y.tolist() == [1]
    with pytest.raises(InvalidInputError, match=r"columns of 'data' \(got none named 'a'"):
        read(lacking, like=data, classes=data.classes)
    with pytest.raises(InvalidInputError, match=r"column with the wrong label"):
        read(bare, like=data, classes=data.classes)


def test_cells_that_hold_several_numbers_are_refused(tmp_path: Path) -> None:
    """In the data they are no numbers, and in events no sample."""
    data = read(write_csv(tmp_path / "d.csv", a=[1, 2], label=[0, 1]))
    lists = write_parquet(tmp_path / "d.parquet", a=[[1, 2]], label=[0])

    with pytest.raises(InvalidInputError, match=r"numbers in every column .*in 'a' of 'd.parquet'"):
        read(lists)
    with pytest.raises(InvalidInputError, match=r"one number, image or text a cell"):
        read(lists, like=data, label=1)


def test_truth_values_and_missing_numbers_of_parquet_are_known(tmp_path: Path) -> None:
    """The former are 0 and 1, the latter are refused."""
    found = read(write_parquet(tmp_path / "d.parquet", a=[True, False], idx=[5, 6], label=[True, False]))

    assert (found.x.tolist(), found.y.tolist(), found.ids) == ([[1.0], [0.0]], [1, 0], ("5", "6"))
    with pytest.raises(InvalidInputError, match="finite numbers"):
        read(write_parquet(tmp_path / "e.parquet", a=[1, None], label=[0, 1]))


@pytest.mark.parametrize("name", WRITERS)
def test_where_rows_came_from_is_read_and_not_fed(name: str, tmp_path: Path) -> None:
    """The column is found by its name if it holds words, or is named by the caller."""
    numbers = {"a": [1, 2, 3], "label": [0, 1, 0]}
    found = read(WRITERS[name](tmp_path / name, uploader=["u1", "u2", "u1"], **numbers))
    named = read(WRITERS[name](tmp_path / f"2{name}", uploader=[7, 7, 10**6], **numbers), source_column="uploader")

    assert (found.sources, found.columns) == (("u1", "u2", "u1"), ("a",))
    assert (named.sources, named.columns) == (("7", "7", "1000000"), ("a",))


def test_a_source_that_differs_in_each_row_is_its_name(tmp_path: Path) -> None:
    """As before there were sources."""
    found = read(write_csv(tmp_path / "d.csv", source=["u", "v"], a=[1, 2], label=[0, 1]))

    assert (found.ids, found.sources, found.columns) == (("u", "v"), None, ("a",))


def test_folders_of_paths_are_sources(tmp_path: Path) -> None:
    """The first level; an id without folders says nothing."""
    found = read(write_csv(tmp_path / "d.csv", filename=["u17/x/1.exe", "u3/2.exe"], a=[1, 2], label=[0, 1]))

    assert found.sources == ("u17", "u3")
    assert read(write_csv(tmp_path / "e.csv", filename=["1.exe", "2.exe"], a=[1, 2], label=[0, 1])).sources is None


def test_a_source_column_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """With the columns there are."""
    path = write_csv(tmp_path / "d.csv", a=[1, 2], label=[0, 1])

    with pytest.raises(InvalidInputError, match=r"'source-column' must be a column .* \(got 'who'\)\. Name one of 'a'"):
        read(path, source_column="who")
