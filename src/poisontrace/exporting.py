"""Hand-over: what a case says of the training set, in a form that the next program reads, and the set without it.

The data are those that were traced, to the bit, and keep their form: rows are copied as they stand, cells and columns
are not looked into. What is written goes to one new file or folder; links are neither followed nor made.
"""

import csv
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from poisontrace import evidence, filing, readers, store
from poisontrace._errors import InvalidInputError, PoisontraceError, StoreError
from poisontrace._validate import read_npz
from poisontrace.columns import delimiter_of, is_saved_set, read_saved_set
from poisontrace.evidence import Place
from poisontrace.images import list_images

# What can be exported, and what the file is called; that of data is called as the data are.
SUFFIXES = {"clean-index": (".npy", ".txt"), "poison-list": (".csv",), "filelist": (".txt",), "cleaned-data": ()}

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        out: the file or folder.
        n_kept: samples that the case does not accuse.
        n_left_out: samples that it accuses.
    """

    out: Path
    n_kept: int
    n_left_out: int


def export(case: str | Path, what: str, out: str | Path, *, data: Place = None) -> Export:
    """Write what a case says of its training set.

    Args:
        case: a case folder.
        what: "clean-index" (positions of the samples that are not accused: ``.npy``, or ``.txt`` with one a line),
            "poison-list" (``.csv``, as ``poison.csv``), "filelist" (``.txt``: paths of the images that are not accused,
            as they are in their folder) or "cleaned-data" (the training set without the accused samples, in its form).
        out: a new file, or for a folder of data a new folder.
        data: where the training set lies now; None for where it was traced.

    Raises:
        InvalidInputError: if an argument breaks its rule, or the data are missing, not those traced or not readable.
        StoreError: if it cannot be written, or the hub does not answer.
    """
    folder, written = Path(case), Path(out)
    if what not in SUFFIXES:
        raise InvalidInputError(f"'what' must be one of {', '.join(SUFFIXES)} (got {what!r}).")
    try:
        content, rows = filing.read_case(folder)
        scores = filing.read_scores(folder)
    except StoreError as error:
        raise InvalidInputError(str(error)) from error  # the folder named is at fault
    n, poison = content.get("n_samples"), np.array(sorted(rows), np.int64)
    if not isinstance(n, int) or n != len(scores) or (len(poison) and not 0 <= poison[0] <= poison[-1] < n):
        raise InvalidInputError(
            f"'case' must hold files that belong together (got {len(scores)} scores for {n!r} samples, accused up to "
            f"index {max(poison, default=None)}). {filing.WAY_OUT}"
        )
    kept = np.setdiff1d(np.arange(n), poison)
    if what in ("clean-index", "poison-list"):
        _check_out(written, SUFFIXES[what])
        if what == "poison-list":
            store.write_atomically(written, filing.poison_csv(rows, scores))
        elif written.suffix == ".npy":
            store.write_atomically(written, store.npy(kept))
        else:
            store.write_atomically(written, "".join(f"{index}\n" for index in kept).encode())
        return Export(written, len(kept), len(poison))
    spec, _ = evidence.find(content, folder, "data", data)
    source = Path(spec)
    if readers.is_factory(spec) and not source.exists():
        raise InvalidInputError(
            f"'what' must be clean-index or poison-list where code makes the data (got {what!r} for {spec!r}). "
            "Select from the data by index."
        )
    is_folder = source.is_dir() and not is_saved_set(source)
    if what == "filelist":
        if not is_folder:
            raise InvalidInputError(
                f"'what' must be clean-index or poison-list where the data are no folder of images (got {what!r} for "
                f"{source.name!r}). Ask for one of these."
            )
        _check_out(written, SUFFIXES[what])
        files = _files(source, n)
        if odd := next((file for file in files if not file.isprintable()), None):
            raise InvalidInputError(
                f"'what' must be clean-index where a file's name does not fit on a line (got {what!r}, and {odd!r})."
            )
        store.write_atomically(written, "".join(f"{files[index]}\n" for index in kept).encode("utf-8"))
    elif is_folder:
        _copy_images(source, _files(source, n), kept, written)
    else:
        _clean_file_or_set(source, kept, n, written)
    return Export(written, len(kept), len(poison))


def _check_out(path: Path, suffixes: tuple[str, ...]) -> None:
    if path.suffix not in suffixes or os.path.lexists(path) or not path.absolute().parent.is_dir():
        raise InvalidInputError(
            f"'out' must be a new {' or '.join(suffixes)} file in a folder that exists (got {str(path)!r}). "
            "Name another one."
        )


def _check_length(n_found: int, n: int) -> None:
    if n_found != n:
        raise InvalidInputError(
            f"'data' must be the training set of the case (got {n_found} samples for {n}). Name it with --data."
        )


def _clean_file_or_set(source: Path, kept: Indices, n: int, out: Path) -> None:
    try:
        if source.is_dir():
            return _copy_saved_set(source, kept, n, out)
        if source.suffix.lower() not in (".npz", *readers.TABLES):
            raise InvalidInputError(
                f"'data' must be an .npz file, a table or a folder (got {source.name!r}). Name it with --data."
            )
        _check_out(out, (source.suffix,))
        store.write_atomically(out, _cleaned_file(source, kept, n))
    except (PoisontraceError, MemoryError):
        raise
    except Exception as error:  # bytes from outside may raise anything
        raise InvalidInputError(
            f"'data' must be a table or a saved set that can be read (got {error} in {source.name!r}). "
            "Name it with --data."
        ) from error


def _cleaned_file(source: Path, kept: Indices, n: int) -> bytes:
    """Return the content of a file of data without what is not kept."""
    suffix = source.suffix.lower()
    if suffix == ".npz":
        return _cleaned_npz(source, kept, n)
    return _cleaned_csv(source, kept, n) if suffix in (".csv", ".tsv") else _cleaned_parquet(source, kept, n)


def _cleaned_npz(source: Path, kept: Indices, n: int) -> bytes:
    arrays = read_npz(source, "data", required=("x", "y"))
    _check_length(len(arrays["x"]), n)
    # The names of the classes are as many as there are labels, which may be n.
    is_per_sample = {name: array.shape[:1] == (n,) and name != "classes" for name, array in arrays.items()}
    return store.npz({name: array[kept] if is_per_sample[name] else array for name, array in arrays.items()})


def _cleaned_csv(source: Path, kept: Indices, n: int) -> bytes:
    """Return the lines of a CSV as they stand: marks at its beginning, quotes, ends of lines and empty lines too."""
    is_kept = np.zeros(n, bool)
    is_kept[kept] = True
    parts, row = [], -1  # the header
    with source.open(encoding="utf-8", newline="") as stream:
        delimiter = delimiter_of(stream.readline())
        stream.seek(0)
        for cells, text in _records(stream, delimiter):
            if not cells:
                continue  # an empty line is no sample
            if row < 0 or (row < n and is_kept[row]):
                parts.append(text)
            row += 1
    _check_length(row, n)
    return "".join(parts).encode("utf-8")


def _records(stream: TextIO, delimiter: str) -> Iterator[tuple[list[str], str]]:
    """Yield the cells of each record of a CSV and its text, which may have several lines."""
    lines: list[str] = []

    def remembered() -> Iterator[str]:
        for line in stream:
            lines.append(line)
            yield line

    for cells in csv.reader(remembered(), delimiter=delimiter, strict=True):
        yield cells, "".join(lines)
        lines.clear()


def _cleaned_parquet(source: Path, kept: Indices, n: int) -> bytes:
    import pyarrow
    from pyarrow import parquet

    table = parquet.read_table(source)
    _check_length(len(table), n)
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(table.take(pyarrow.array(kept)), sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _copy_saved_set(source: Path, kept: Indices, n: int, out: Path) -> None:
    """Write a set such as ``datasets`` saves, in one file; of several splits, only ``train``, which was traced."""
    import pyarrow

    table = read_saved_set(source)
    _check_length(len(table), n)
    home = source / "train" if (source / "dataset_dict.json").is_file() else source
    state = json.loads((home / "state.json").read_text("utf-8"))
    name = "data-00000-of-00001.arrow"
    state |= {"_data_files": [{"filename": name}], "_fingerprint": store.sha256(home)[:16]}
    with store.new_folder(out, "out") as partial:
        cleaned = table.take(pyarrow.array(kept))
        with pyarrow.OSFile(str(partial / name), "wb") as sink, pyarrow.ipc.new_stream(sink, cleaned.schema) as writer:
            writer.write_table(cleaned)
        store.write_atomically(partial / "state.json", json.dumps(state).encode())
        facts = home / "dataset_info.json"
        if facts.is_file() and not facts.is_symlink():
            store.write_atomically(partial / facts.name, facts.read_bytes())


def _files(source: Path, n: int) -> list[str]:
    files, _ = list_images(source, "data")
    _check_length(len(files), n)
    return files


def _copy_images(source: Path, files: list[str], kept: Indices, out: Path) -> None:
    """Copy images into a folder of the same form; a class stays, even if none of its images does."""
    with store.new_folder(out, "out") as partial:
        for name in list_images(source, "data")[1]:
            (partial / name).mkdir()
        for index in kept:
            target = partial / files[index]
            target.parent.mkdir(parents=True, exist_ok=True)
            # Not even a link that was put there just now is followed.
            with os.fdopen(os.open(source / files[index], os.O_RDONLY | os.O_NOFOLLOW), "rb") as image:
                with target.open("xb") as copy:
                    shutil.copyfileobj(image, copy)
