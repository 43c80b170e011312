"""Tables as training sets: CSV by the standard library, Parquet and Hugging Face sets on disk by pyarrow.

A table has a column of labels, perhaps one that names the rows, and columns that the model takes: numbers, one image or
one text. Which is which is found by name; a column that is none of these is refused, because leaving one out or turning
it into numbers would feed the model something else than it was trained on.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poisontrace._errors import InvalidInputError
from poisontrace._validate import check_file, check_inputs, check_ratio
from poisontrace.data import ArraySet, folders_at, number_labels
from poisontrace.images import ImageSet
from poisontrace.texts import TextSet, Tokenize

LABELS = ("label", "labels", "y", "target", "class")
ROW_NAMES = ("id", "path", "filename", "file_name", "file", "source", "name", "sha256", "md5")
INDICES = (
    "id",
    "idx",
    "index",
    "",
    "unnamed: 0",
    "__index_level_0__",
)  # numbers that pandas adds, or that count the rows
SOURCES = ("source", "contributor", "uploader")
PATHS = ("path", "filename", "file_name", "file")
TEXTS = ("text", "sentence", "content", "review", "body", "message")
CHUNK = 8192  # rows read at once
WORDS = {"": "nan", "True": "1", "False": "0", "true": "1", "false": "0"}


class Cells(Sequence[bytes]):
    """A column of images, each the bytes of a file; fetched one at a time."""

    def __init__(self, column: Any) -> None:
        """Wrap an Arrow column of bytes, or of structures with a field ``bytes``."""
        self._column = column

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._column)

    def __getitem__(self, row: Any) -> Any:
        """Return one image; nothing where there is none, which no image reader takes."""
        value = self._column[row].as_py()
        return (value.get("bytes") if isinstance(value, dict) else value) or b""


@dataclass(frozen=True)
class Table:
    """Columns by name: float64 (n,) for numbers, names (n,) for texts, or :class:`Cells`.

    Attributes:
        path: where it came from.
        columns: in the order of the file.
        classes: what the file says the names of the labels in a column are.
    """

    path: Path
    columns: dict[str, Any]
    classes: dict[str, tuple[str, ...]]

    def __len__(self) -> int:
        """Return the number of rows."""
        return max((len(column) for column in self.columns.values() if column is not None), default=0)

    def find(self, names: Sequence[str]) -> str | None:
        """Return the first of some names that a column has, whatever its case."""
        return _first(tuple(self.columns), names)


def _first(columns: Sequence[str], names: Sequence[str]) -> str | None:
    lower = {column.lower().strip(): column for column in reversed(columns)}
    return next((lower[name] for name in names if name in lower), None)


def _is_text(column: Any) -> bool:
    return isinstance(column, np.ndarray) and column.dtype.kind == "O"


def table_set(
    table: Table,
    name: str,
    *,
    classes: Sequence[str] | None = None,
    label_column: str | None = None,
    source_column: str | None = None,
    label: int | None = None,
    like: Any = None,
    tokenize: Tokenize | None = None,
) -> ArraySet | ImageSet | TextSet:
    """Return a table as a training set or as events.

    Args:
        table: what was read.
        name: the argument's name, for messages.
        classes: names of the labels in the order of the model's outputs; None asks the file, else sorts them.
        label_column: the column of labels; None finds it.
        source_column: the column that says where each row came from; None finds it, if there is one.
        label: of every row, instead of a column.
        like: the training set, of which these are events.
        tokenize: turns texts into the numbers of their tokens, if the model takes texts.

    Raises:
        InvalidInputError: if there is no column of labels, or other columns than the model can take.
    """
    given = getattr(like, "columns", None)
    target = None if label is not None else _label_column(table, label_column, given or ())
    source = _source_column(table, source_column)
    rest = [column for column in table.columns if column not in (target, source)]
    named = [column for column in rest if _is_a(column, (*ROW_NAMES, *INDICES)) and _is_text(table.columns[column])]
    inputs = _inputs(table, name, [column for column in rest if column not in named], given, tokenize is not None)
    ids = [str(value) for value in table.columns[named[0]]] if named else list(map(str, range(len(table))))
    sources = None
    if source is not None:
        sources = tuple(str(value).removesuffix(".0") for value in table.columns[source])
    elif named and _is_a(named[0], PATHS):
        sources = folders_at(ids, 0)
    if target is None:
        y, known = np.full(len(table), label, np.int64), None if classes is None else tuple(classes)
    else:
        labels = table.columns[target]
        if not isinstance(labels, np.ndarray):
            raise InvalidInputError(
                f"'{name}' must hold labels in one column (got {target!r}, which holds neither numbers nor names). "
                "Name another one with --label-column."
            )
        values = labels.astype(str) if _is_text(labels) else _whole(labels, f"{name}: {target}")
        known_names = table.classes.get(target) if classes is None else classes
        y, known = number_labels(values, f"{name}: {target}", known_names)
    columns = [table.columns[column] for column in inputs]
    if any(not isinstance(column, np.ndarray | Cells) for column in columns):
        raise InvalidInputError(
            f"'{name}' must hold one number, image or text a cell (got something else in {_listed(inputs)} of "
            f"{table.path.name!r}). Pass your own data set as --{name} file.py:factory."
        )
    if tokenize is not None:
        return TextSet(columns[0].tolist(), y, ids, known, tokenize, inputs, sources)
    if isinstance(columns[0], Cells):
        n_channels = like.shape[2] if isinstance(like, ImageSet) else None
        return ImageSet(columns[0], y, ids, known, name, n_channels, sources)
    x = np.stack(columns, 1)
    check_inputs(x, name)
    return ArraySet(x.astype(np.float32), y, tuple(ids), known, tuple(inputs), sources)


def _whole(labels: NDArray[np.float64], name: str) -> NDArray[np.int64]:
    is_whole = np.isfinite(labels) & (np.abs(labels) < 2**53) & (labels == np.floor(labels))
    if not is_whole.all():
        row = int(np.argmin(is_whole))
        raise InvalidInputError(
            f"'{name}' must hold whole numbers or names (got {labels[row]} in row {row}). "
            "Name the column of labels with --label-column."
        )
    return labels.astype(np.int64)


def _label_column(table: Table, label_column: str | None, inputs: Sequence[str]) -> str:
    if label_column is None:
        rest = [column for column in table.columns if column not in inputs]
        found = table.find(LABELS)
        if found is None and not rest:
            raise InvalidInputError(
                f"'events' must have a column with the wrong label that the model gave (got "
                f"{_listed(table.columns)} in {table.path.name!r}). Add one named label."
            )
        return found or rest[-1]
    if label_column not in table.columns:
        raise InvalidInputError(
            f"'label-column' must be a column of {table.path.name!r} (got {label_column!r}). "
            f"Name one of {_listed(table.columns)}."
        )
    return label_column


def _source_column(table: Table, source_column: str | None) -> str | None:
    if source_column is None:
        found = table.find(SOURCES)
        # A number is a measurement, and what is different in each row a name of the row.
        is_source = found is not None and _is_text(words := table.columns[found]) and len(set(words)) < len(words)
        return found if is_source else None
    column = table.columns.get(source_column)
    if not isinstance(column, np.ndarray):
        raise InvalidInputError(
            f"'source-column' must be a column of names or numbers in {table.path.name!r} (got {source_column!r}). "
            f"Name one of {_listed(table.columns)}."
        )
    return source_column


def _inputs(
    table: Table, name: str, columns: Sequence[str], given: Sequence[str] | None, is_text: bool
) -> tuple[str, ...]:
    """Return the columns that the model takes: those of the training set, or one text, one image, or the numbers."""
    if given is not None:
        if missing := [column for column in given if column not in table.columns]:
            raise InvalidInputError(
                f"'{name}' must have the columns of 'data' (got none named {_listed(missing)} in "
                f"{table.path.name!r}). Write both from one table."
            )
        return tuple(given)
    texts = [column for column in columns if _is_text(table.columns[column])]
    images = [column for column in columns if isinstance(table.columns[column], Cells)]
    if is_text:
        named = [column for column in texts if _is_a(column, TEXTS)]
        if len(texts) != 1 and len(named) != 1:
            raise InvalidInputError(
                f"'{name}' must have one column of text (got {_listed(texts) or 'none'} in {table.path.name!r}). "
                "Name it text."
            )
        return ((texts if len(texts) == 1 else named)[0],)
    if images:
        return (images[0],)
    odd = [column for column in columns if not isinstance(table.columns[column], np.ndarray) or column in texts]
    if odd or not columns:
        got = f"{_first_word(table.columns[odd[0]])} in {_listed(odd)}" if odd else "no other column"
        raise InvalidInputError(
            f"'{name}' must hold numbers in every column but the label and the id (got {got} of {table.path.name!r}). "
            "Turn them into numbers as for the model's training, drop them, or name the one with a row's name id."
        )
    return tuple(columns)


def _first_word(column: Any) -> str:
    """Return the first cell of a column that is no number."""
    for cell in column if isinstance(column, np.ndarray) else ():
        try:
            float(cell or "nan")
        except ValueError:
            return repr(cell)
    return "none"


def _listed(names: Any) -> str:
    shown = list(names)
    return ", ".join(map(repr, shown[:5])) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")


def read_table(path: Path, name: str, label_column: str | None = None, source_column: str | None = None) -> Table:
    """Read a CSV, a Parquet file or a Hugging Face set that was saved to disk.

    Args:
        path: the file or folder.
        name: the argument's name, for messages.
        label_column: the column of labels; None finds it.
        source_column: the column that says where each row came from, whose numbers stay as they are written.

    Raises:
        InvalidInputError: if it cannot be read, is empty, or two of its columns have one name.
    """
    is_csv = path.suffix.lower() in (".csv", ".tsv")
    table = _read_csv(path, name, (label_column, source_column)) if is_csv else _read_arrow(path, name)
    if not table.columns or not len(table):
        raise InvalidInputError(f"'{name}' must have at least one row (got none in {path.name!r}). Check the file.")
    return table


def _read_csv(path: Path, name: str, given: tuple[str | None, str | None]) -> Table:
    check_file(path, name)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            delimiter = delimiter_of(stream.readline())
            stream.seek(0)
            rows = csv.reader(stream, delimiter=delimiter, strict=True)
            header = next(rows, [])
            if len(set(header)) < len(header):
                raise ValueError(f"two columns named {max(header, key=header.count)!r}")
            return Table(path, _typed(header, rows, *given), {})
    except (OSError, ValueError, csv.Error) as error:
        raise InvalidInputError(
            f"'{name}' must be a CSV with a header, in UTF-8 (got {error} in {path.name!r}). Write it again with "
            "pandas.DataFrame.to_csv(path, index=False)."
        ) from error


def delimiter_of(header: str) -> str:
    """Return what stands between the cells of a CSV."""
    return max(",;\t", key=header.count)


def _typed(
    header: Sequence[str], rows: Iterator[Sequence[str]], label_column: str | None, source_column: str | None
) -> dict[str, Any]:
    """Return columns of numbers where the first cells are numbers, else of text; an empty cell is a missing number."""
    parts: list[list[Any]] = [[] for _ in header]
    labels = label_column or _first(header, LABELS)
    words = (*LABELS, *ROW_NAMES, *SOURCES)
    is_text = [column in (labels, source_column) or _is_a(column, (*words, *INDICES)) for column in header]
    n = 0
    while read := list(islice(rows, CHUNK)):
        chunk = [row for row in read if row]  # csv yields an empty list for an empty line
        for row, cells in enumerate(chunk, n + 1):
            if len(cells) != len(header):
                raise ValueError(f"{len(cells)} cells in row {row} for {len(header)} columns")
        for place, column in enumerate(zip(*chunk, strict=True)):
            if not is_text[place]:
                try:
                    parts[place].append(_numbers(column))
                except ValueError as error:
                    if n:
                        raise ValueError(f"{error} in the column {header[place]!r}, numbers up to row {n},") from error
                    is_text[place] = True
            if is_text[place]:
                parts[place].append(np.array(column, object))
        n += len(chunk)
    columns: dict[str, Any] = {name: np.concatenate(found) for name, found in zip(header, parts, strict=True) if found}
    for name, column in columns.items():  # a number may be called source, but counting rows is not a measurement
        if _is_a(name, words) and name not in (labels, source_column) and not _is_a(name, INDICES):
            with suppress(ValueError):
                columns[name] = _numbers(column)
    return columns


def _is_a(column: str, names: Sequence[str]) -> bool:
    return column.lower().strip() in names


def _numbers(cells: Any) -> NDArray[np.float64]:
    return np.array([WORDS.get(cell) or cell for cell in cells], np.float64)


def _read_arrow(path: Path, name: str) -> Table:
    """Read Parquet, or the Arrow files of a set that ``datasets`` saved to disk, without making a cache."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise InvalidInputError(
            f"'{name}' must be a form that can be read here (got {path.name!r}, which needs pyarrow). "
            "Install it: pip install 'poisontrace[data]'."
        ) from error
    try:
        if path.is_dir():
            table = read_saved_set(path)
        else:
            check_file(path, name)
            facts = parquet.ParquetFile(path).metadata
            groups = [facts.row_group(group) for group in range(facts.num_row_groups)]
            n_unpacked = max(sum(group.total_byte_size for group in groups), 8 * facts.num_rows)
            check_ratio(n_unpacked, path.stat().st_size)
            table = parquet.read_table(path)
        names = table.column_names
        if len(set(names)) < len(names):
            raise ValueError(f"two columns named {max(names, key=names.count)!r}")
        columns = {column: _from_arrow(table.column(column), column) for column in names}
        return Table(path, columns, _class_labels(table.schema.metadata or {}))
    except InvalidInputError:
        raise
    except Exception as error:  # bytes from outside may raise anything
        raise InvalidInputError(
            f"'{name}' must be a Parquet file or a set written by datasets' save_to_disk (got {error} in "
            f"{path.name!r}). Write it again with DataFrame.to_parquet(path)."
        ) from error


def read_saved_set(folder: Path) -> Any:
    """Return a set that ``datasets`` saved, or its split ``train``, as an Arrow table; its files are trusted."""
    import pyarrow

    return pyarrow.concat_tables([_stream(file) for file in _arrow_files(folder)])


def is_saved_set(folder: Path) -> bool:
    """Return whether ``datasets`` saved one set, or several splits, to a folder."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _arrow_files(folder: Path) -> list[Path]:
    """Return the files of a saved set in order, or of its split ``train``."""
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text("utf-8"))["splits"]
        if "train" not in splits:
            raise ValueError(f"the splits {', '.join(map(str, splits))}, of which one's folder must be named,")
        folder = folder / "train"
    state = json.loads((folder / "state.json").read_text("utf-8"))
    if state.get("_indices_data_files"):
        raise ValueError("a selection of rows; call flatten_indices() before save_to_disk,")
    files = [folder / entry["filename"] for entry in state["_data_files"]]
    if outside := [file for file in files if file.parent != folder or file.is_symlink()]:
        raise ValueError(f"{str(outside[0])!r}, a file elsewhere,")
    return files


def _stream(path: Path) -> Any:
    import pyarrow

    reader = pyarrow.ipc.open_stream(pyarrow.memory_map(str(path)))
    batches, n_unpacked = [], 0
    for batch in reader:
        n_unpacked += batch.nbytes
        check_ratio(n_unpacked, path.stat().st_size)
        batches.append(batch)
    return pyarrow.Table.from_batches(batches, reader.schema)


def _from_arrow(column: Any, name: str) -> Any:
    import pyarrow
    from pyarrow import types

    kind = column.type
    if types.is_integer(kind) and _is_a(name, INDICES):
        column = column.cast(pyarrow.string())
        kind = column.type
    if types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if (types.is_struct(kind) and any(field.name == "bytes" for field in kind)) or types.is_binary(kind):
        return Cells(column)
    if types.is_string(kind) or types.is_large_string(kind):
        return np.array(["" if value is None else value for value in column.to_pylist()], object)
    if types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        return column.cast(pyarrow.float64(), safe=False).to_numpy()
    return None  # lists and the like, which are no input of one row


def _class_labels(metadata: dict[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """Return the names of labels that ``datasets`` keeps in the schema of its Arrow and Parquet files."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        named = {column: feature.get("names") for column, feature in features.items() if isinstance(feature, dict)}
        return {column: tuple(map(str, names)) for column, names in named.items() if names}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
