"""Files on disk: written whole or not at all, JSON, NumPy and safetensors, never pickle."""

import glob
import hashlib
import io
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poisontrace._errors import InvalidInputError, PoisontraceError, StoreError


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits.

    That of a folder is the SHA-256 of the list of its files, sorted by name, as the command sha256sum writes it.

    Raises:
        OSError: if it, or anything in it, cannot be read.
    """
    if path.is_dir():

        def refuse(error: OSError) -> None:  # rglob would leave the folder out
            raise error

        found = (Path(where) / name for where, _, names in os.walk(path, onerror=refuse) for name in names)
        files = sorted(file.relative_to(path).as_posix() for file in found if file.is_file())
        listing = "".join(f"{sha256(path / file)}  {file}\n" for file in files)
        return hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it, so that no reader ever sees half of it."""
    write_together(path.parent, {path.name: content})


def write_together(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files that belong together: all are on the disk, under temporary names, before the first gets its own.

    Args:
        folder: exists.
        files: content by name.

    Raises:
        StoreError: if one cannot be written; none has its name by then, unless that is what cannot be given.
    """
    partial = {name: folder / f".{name}.{os.getpid()}.partial" for name in files}
    name = ""
    try:
        for name, content in files.items():
            partial[name].unlink(missing_ok=True)
            # A folder from elsewhere may hold a link of that name, which must not be followed.
            with os.fdopen(os.open(partial[name], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        for name, path in partial.items():
            path.replace(folder / name)
    except OSError as error:
        raise StoreError(f"'{name}' must be writable (got {error}).") from error
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)


def npz(arrays: Mapping[str, Any]) -> bytes:
    """Return arrays as the content of an ``.npz`` file."""
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def npy(array: NDArray[Any]) -> bytes:
    """Return an array as the content of an ``.npy`` file."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


@contextmanager
def new_folder(folder: Path, name: str) -> Iterator[Path]:
    """Yield a temporary sibling of ``folder`` that takes its name when the block ends well and vanishes otherwise.

    Args:
        folder: where the result belongs.
        name: the argument's name, for messages.

    Raises:
        InvalidInputError: if the folder exists and is not empty.
        StoreError: if it cannot be written.
    """
    check_new_folder(folder, name)
    folder = folder.resolve()  # gives "." a name, and a link to an empty folder its end
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Not of the ending of a partial folder, which another folder of that name with a number behind it may have.
        for stale in folder.parent.glob(f".{glob.escape(folder.name)}.*.new"):
            if not _is_running(stale.name.split(".")[-2]):
                remove(stale)  # of a process that was killed
        partial.mkdir()
        yield partial
        if folder.exists():
            folder.rmdir()
        partial.replace(folder)
    except PoisontraceError:
        raise  # the block's own, which already says what is wrong
    except OSError as error:
        raise StoreError(f"'{name}' must be a folder that can be written (got {error}).") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def partial_folder(folder: Path) -> Path:
    """Return where unfinished work for a folder is kept: hidden, beside it."""
    folder = folder.resolve()
    return folder.with_name(f".{folder.name}.partial")


def remove(folder: Path) -> None:
    """Remove a folder of ours with all that is in it, if it is there."""
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder, ignore_errors=True)


def _is_running(process: str) -> bool:
    """Return whether another process of this machine has an id; what is no id is left alone."""
    if not process.isdecimal():
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    except OverflowError:
        return False
    return int(process) != os.getpid()


def check_new_folder(folder: Path, name: str) -> None:
    """Refuse a folder that exists with anything in it, before any long work."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidInputError(f"'{name}' must be a new or empty folder (got {str(folder)!r}). Name another one.")
    above = next(parent for parent in folder.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise InvalidInputError(
            f"'{name}' must lie in a folder that can be written (got {str(folder)!r}, but {str(above)!r} is none). "
            "Name another one."
        )
