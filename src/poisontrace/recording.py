"""What one pass leaves of each sample: columns of n rows, filled from the front, in memory or in a folder.

In a folder each column is one ``.npy`` file of its full size, reserved before the pass starts, so that a disk too small
is found out first. Rows count once they are written, synchronised and signed with a SHA-256 in ``blocks.jsonl``: what a
killed process leaves is either signed or written again. The folder is evidence like any other: nothing in it is
believed that is not exactly as this module would have written it (decision 0013).

Several ranks fill the same files at once, each its own run of rows from the front, and sign in a journal each; what
they leave is what one process would have left (decision 0016).
"""

import fcntl
import hashlib
import inspect
import io
import json
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from poisontrace import store
from poisontrace._errors import StoreError
from poisontrace.ranks import ALONE, Ranks

SCHEMA = 1
# A block is signed after so many seconds or bytes, whichever comes first: what an interruption may cost.
BLOCK_SECONDS, BLOCK_BYTES = 2.0, 64_000_000
JOURNAL, JOURNALS, MAX_JOURNAL = "blocks.jsonl", "blocks*.jsonl", 1 << 26
CHUNK_BYTES = 1 << 22
WAY_OUT = "Remove that folder, or name another one with --store."

Columns = Mapping[str, tuple[str, int]]  # name to "float32" or "int64", and width


class Recording:
    """Columns of a pass.

    Attributes:
        n: rows in all.
        rows: those that this process fills, from the front.
        n_done: the row to be filled next; those of ``rows`` before it are there.
        caution: a sentence on rows that had to be thrown away, if there were any.
        folder: where they are kept, if not in memory.
    """

    folder: Path | None = None

    def __init__(self, n: int, columns: Columns) -> None:
        """Keep the columns in memory.

        Args:
            n: rows.
            columns: type and width of each, by name.
        """
        self.n, self.rows, self.n_done, self.caution = n, range(n), 0, ""
        self._columns = dict(columns)
        self._arrays = {
            name: torch.empty(n, width, dtype=getattr(torch, kind)) for name, (kind, width) in columns.items()
        }

    def has(self, name: str) -> bool:
        """Return whether there is such a column."""
        return name in self._columns

    def add(self, rows: Mapping[str, Tensor]) -> None:
        """Add the next rows, (b, width) of each column."""
        for name, values in rows.items():
            self._arrays[name][self.n_done : self.n_done + len(values)] = values
        self.n_done += len(values)

    def finish(self) -> None:
        """Go on when the rows of all ranks are there."""

    def __getitem__(self, name: str) -> Tensor:
        """Return a column, (n, width), of which the first ``n_done`` rows are there."""
        return self._arrays[name]

    def close(self) -> None:
        """Sign what is there; no rows can be added any more."""


class Folder(Recording):
    """A recording on disk; it is taken up where an earlier one with the same identity stopped."""

    def __init__(
        self,
        n: int,
        columns: Columns,
        folder: Path,
        identity: Mapping[str, Any],
        *,
        rows: range | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        """Open or create the folder, and reserve the disk; rank 0 does that for all.

        Args:
            n: rows.
            columns: type and width of each, by name.
            folder: made for one identity; parents are created.
            identity: what the rows depend on.
            rows: those that this rank fills; None for all.
            ranks: that fill the folder together, each its own rows.

        Raises:
            StoreError: if the folder cannot be written, is in use, or holds something else.
        """
        self.n, self.rows, self.caution = n, range(n) if rows is None else rows, ""
        self.n_done, self._ranks, self._spoilt_at = self.rows.start, ranks, n
        self._columns, self._folder, self.folder = dict(columns), folder, folder
        self._about = json.dumps(
            {"schema": SCHEMA, "n": n, "columns": self._columns, "identity": dict(identity)}, sort_keys=True
        ).encode()
        self._maps: dict[str, Tensor] = {}
        self._files: dict[str, int] = {}
        self._lock = -1
        self._made = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            if ranks.is_first:
                folder.mkdir(parents=True, exist_ok=True)
                self._take_lock()
                self._open()
            ranks.wait()
            if not ranks.is_first:
                self._check_shared()
                self._open()
            self._verify()
        except OSError as error:  # a StoreError is one
            self._release()
            if isinstance(error, StoreError):
                raise
            self._discard_if_empty()
            raise _unwritable(folder, error) from error
        self._start_block()

    def _take_lock(self) -> None:
        self._lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError(
                f"'store' must be used by one trace of a model at a time (got {str(self._folder)!r}, in use by another "
                "process). Wait for it, or name another one with --store."
            ) from error

    def _check_shared(self) -> None:
        if not (self._folder / "pass.json").exists():
            raise StoreError(
                f"'store' must be a folder that every rank sees, for the same model and data (got no "
                f"{str(self._folder)!r} in rank {self._ranks.rank}). Name one on a shared disk with --store."
            )

    def _open(self) -> None:
        """Open every file, of the very size and head that it must have; create what is not there."""
        about = self._folder / "pass.json"
        if about.exists():
            if about.stat().st_size != len(self._about) or about.read_bytes() != self._about:
                raise StoreError(
                    f"'store' must hold what one pass of this model over these data wrote (got another pass.json in "
                    f"{str(self._folder)!r}). {WAY_OUT}"
                )
        else:
            for path in (*self._folder.glob(JOURNALS), *map(self._path, self._columns)):
                path.unlink(missing_ok=True)  # of a process that was killed right here
        for name in self._columns:
            head, size = self._head(name), self._size(name)
            self._files[name] = file = os.open(self._path(name), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            if os.fstat(file).st_size == 0 and not about.exists():
                _reserve(file, size)
                _write(file, 0, head)
                os.fsync(file)
            if os.fstat(file).st_size != size or os.pread(file, len(head), 0) != head:
                raise StoreError(
                    f"'store' must hold {self._path(name).name!r} of {size} bytes (got another file in "
                    f"{str(self._folder)!r}). {WAY_OUT}"
                )
        if not about.exists():
            store.write_atomically(about, self._about)

    def _verify(self) -> None:
        """Count the rows whose signatures hold; what follows the first that does not is done again."""
        journals = {path: self._claims(path) for path in sorted({self._journal, *self._folder.glob(JOURNALS)})}
        kept = []
        for start, stop, line in sorted(claim for claims in journals.values() for claim in claims):
            if stop <= self.n_done:
                continue  # another rank's, or known twice
            if start > self.n_done or start >= self.rows.stop:
                break
            if self._signature(start, stop) != json.loads(line)["sha256"]:
                self._doubt(self.n_done)
                break
            self.n_done = min(stop, self.rows.stop)
            if start in self.rows:
                kept.append(line)
        # What a journal holds that is no good is taken out of it, when every rank has read it; first what others keep.
        self._ranks.wait()
        if self._ranks.is_first:
            self._ranks.wait()
        if b"".join(kept) != _plain_content(self._journal):
            store.write_atomically(self._journal, b"".join(kept))
        if not self._ranks.is_first:
            self._ranks.wait()
            return
        written = {self._folder / _journal_of(rank) for rank in range(self._ranks.size)}
        for path in journals.keys() - written:
            path.unlink(missing_ok=True)

    def _claims(self, journal: Path) -> list[tuple[int, int, bytes]]:
        """Return the rows that the lines of a journal speak of, and the lines, as far as they are sound."""
        content = _plain_content(journal)
        if content is None:
            raise StoreError(
                f"'store' must hold a plain file {journal.name!r} of less than {MAX_JOURNAL:,} bytes (got another "
                f"thing in {str(self._folder)!r}). {WAY_OUT}"
            )
        claims = []
        for line in content.splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break  # cut off while it was written
            try:
                block = json.loads(line)
                start, stop, _ = block["start"], block["stop"], block["sha256"]
            except (ValueError, KeyError, TypeError):
                break
            if not (type(start) is type(stop) is int and 0 <= start < stop <= self.n):
                break
            claims.append((start, stop, line))
        return claims

    @property
    def _journal(self) -> Path:
        return self._folder / _journal_of(self._ranks.rank)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.npy"

    def _head(self, name: str) -> bytes:
        kind, width = self._columns[name]
        head = io.BytesIO()
        about = {"descr": np.dtype(kind).newbyteorder("<").str, "fortran_order": False, "shape": (self.n, width)}
        np.lib.format.write_array_header_1_0(head, about)
        return head.getvalue()

    def _row_bytes(self, name: str) -> int:
        kind, width = self._columns[name]
        return np.dtype(kind).itemsize * width

    def _size(self, name: str) -> int:
        return len(self._head(name)) + self.n * self._row_bytes(name)

    def _offset(self, name: str, row: int) -> int:
        return len(self._head(name)) + row * self._row_bytes(name)

    def _signature(self, start: int, stop: int) -> str:
        """Return the SHA-256 of the SHA-256s of some rows of every column, as they are on the disk."""
        digests = []
        for name, file in self._files.items():
            digest, at, end = hashlib.sha256(), self._offset(name, start), self._offset(name, stop)
            while at < end and (chunk := os.pread(file, min(CHUNK_BYTES, end - at), at)):
                digest.update(chunk)
                at += len(chunk)
            digests.append(digest)
        return _joined(digests)

    def _start_block(self) -> None:
        self._block_start, self._block_bytes, self._block_time = self.n_done, 0, time.monotonic()
        self._digests = {name: hashlib.sha256() for name in self._columns}

    def add(self, rows: Mapping[str, Tensor]) -> None:
        """Add the next rows, (b, width) of each column.

        Raises:
            StoreError: if the disk is full.
        """
        try:
            for name, values in rows.items():
                array = values.contiguous().numpy()
                content = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
                _write(self._files[name], self._offset(name, self.n_done), content)
                self._digests[name].update(content)
                self._block_bytes += len(content)
            self.n_done += len(values)
            if self._block_bytes >= BLOCK_BYTES or time.monotonic() - self._block_time >= BLOCK_SECONDS:
                self._sign()
        except OSError as error:
            raise _unwritable(self._folder, error) from error

    def _sign(self) -> None:
        for file in self._files.values():
            os.fsync(file)
        block = {"start": self._block_start, "stop": self.n_done, "sha256": _joined(list(self._digests.values()))}
        with self._journal.open("ab") as journal:
            journal.write(json.dumps(block).encode() + b"\n")
            journal.flush()
            os.fsync(journal.fileno())
        self._start_block()

    def __getitem__(self, name: str) -> Tensor:
        """Return a column, (n, width), mapped from the disk: only what is looked at is read."""
        if name not in self._maps:
            kind, width = self._columns[name]
            if not self.n * width:
                self._maps[name] = torch.empty(self.n, width, dtype=getattr(torch, kind))
            else:
                # Shared and read-only: pages that the system may take back at any time. Torch warns of what cannot be
                # written; nobody writes to it.
                mapped = np.memmap(
                    self._path(name), np.dtype(kind).newbyteorder("<"), "r", self._offset(name, 0), (self.n, width)
                )
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)
                    self._maps[name] = torch.from_numpy(mapped)
        return self._maps[name]

    def finish(self) -> None:
        """Go on when the rows of all ranks are there and signed."""
        self._sign_rest()
        self._doubt(self._ranks.least(self._spoilt_at))

    def _doubt(self, row: int) -> None:
        """Say of a row and what follows it that it was not what was written; nothing if there is no such row."""
        self._spoilt_at = row
        if row < self.n:
            self.caution = (
                f"What the store held of samples {row} and following was not what was written, and was worked out "
                "again."
            )

    def close(self) -> None:
        """Sign what is there; no rows can be added any more."""
        try:
            self._sign_rest()
        finally:
            self._release()
        self._discard_if_empty()

    def _sign_rest(self) -> None:
        try:
            if self.n_done > self._block_start:
                self._sign()
        except OSError as error:
            raise _unwritable(self._folder, error) from error

    def _discard_if_empty(self) -> None:
        """Leave nothing behind where nothing was recorded."""
        if self._ranks.size > 1:
            return  # the others may have
        if self._folder.is_dir() and not self.n_done and not os.path.lexists(self._journal):
            for path in (self._folder / "pass.json", self._folder / "lock", *map(self._path, self._columns)):
                path.unlink(missing_ok=True)
            for folder in self._made:
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()

    def _release(self) -> None:
        for file in self._files.values():
            os.close(file)
        self._files = {}
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def claimed(folder: Path) -> int:
    """Return how many rows a folder says that it holds, without looking at them."""
    return sum(map(_claimed_by, folder.glob(JOURNALS)))


def _claimed_by(journal: Path) -> int:
    try:
        lines = (_plain_content(journal) or b"").splitlines()
        return max(0, int(json.loads(lines[-1])["stop"]) - int(json.loads(lines[0])["start"]))
    except (OSError, ValueError, KeyError, TypeError, IndexError, OverflowError):
        return 0


def _journal_of(rank: int) -> str:
    return JOURNAL if rank == 0 else f"blocks-{rank}.jsonl"


def _plain_content(path: Path) -> bytes | None:
    """Return the content of a file, nothing if it is missing, None if it is no plain file or too large for us."""
    if not path.is_symlink() and not path.exists():
        return b""
    if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_JOURNAL:
        return None
    return path.read_bytes()


def _joined(digests: Sequence[Any]) -> str:
    return hashlib.sha256(b"".join(digest.digest() for digest in digests)).hexdigest()


def _write(file: int, offset: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written


def _reserve(file: int, size: int) -> None:
    """Make a file of some size, so that the disk cannot be full later on, where the system can promise that."""
    if hasattr(os, "posix_fallocate") and size:
        os.posix_fallocate(file, 0, size)
    else:
        os.ftruncate(file, size)


def _unwritable(folder: Path, error: OSError) -> StoreError:
    return StoreError(
        f"'store' must be a folder on a disk that can be written and has room (got {error} in {str(folder)!r}). "
        "Free some room, or name another one with --store; what is there is taken up again."
    )


def identify(model: nn.Module) -> str:
    """Return the SHA-256 of a model: its weights, its structure, and the source of the classes that it is made of."""
    digest = hashlib.sha256(str(model).encode())
    for name, tensor in sorted([*model.named_parameters(), *model.named_buffers()]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    for path in sorted(set(_sources(model))):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _sources(model: nn.Module) -> Iterator[Path]:
    """Yield the files that define the classes of a model, those of torch aside."""
    for kind in {type(module) for module in model.modules()}:
        if kind.__module__.split(".")[0] == "torch":
            continue
        try:
            path = Path(inspect.getfile(kind))
        except (TypeError, OSError):  # made on the fly
            continue
        if path.is_file():
            yield path
