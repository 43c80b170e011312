"""A data set on the hub, which here is a local server that speaks its protocol."""

import hashlib
import http.server
import io
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from poisontrace import evidence, readers
from poisontrace._errors import InvalidInputError, StoreError
from poisontrace.data import ArraySet
from poisontrace.hub import download

constants = pytest.importorskip("huggingface_hub.constants", reason="huggingface_hub is not installed")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ADDRESS = f"hf://datasets/owner/rows@{COMMIT}/data/train.parquet"


def _content() -> bytes:
    import pyarrow
    from pyarrow import parquet

    stream = io.BytesIO()
    table = {"a": np.arange(6.0), "b": np.ones(6), "label": ["good", "bad"] * 3}
    parquet.write_table(pyarrow.table(table), stream)
    return stream.getvalue()


class _Hub(http.server.BaseHTTPRequestHandler):
    """Has one file."""

    content = b""

    def _answer(self) -> None:
        is_there = self.path == f"/datasets/owner/rows/resolve/{COMMIT}/data/train.parquet"
        self.send_response(200 if is_there else 404)
        self.send_header("X-Repo-Commit", COMMIT)
        if is_there:
            self.send_header("ETag", f'"{hashlib.sha256(self.content).hexdigest()}"')
        else:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", str(len(self.content) if is_there else 0))
        self.end_headers()
        if is_there and self.command == "GET":
            self.wfile.write(self.content)

    do_GET = do_HEAD = _answer

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[http.server.HTTPServer]:
    """A server, to which every request goes."""
    monkeypatch.setattr(_Hub, "content", _content())
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()


def test_a_file_of_the_hub_is_read_as_one_on_the_disk(hub: http.server.HTTPServer, tmp_path: Path) -> None:
    """The same rows, and the case keeps address, path and hash."""
    (tmp_path / "train.parquet").write_bytes(_Hub.content)

    samples, path = readers.read(ADDRESS, "data")
    on_disk, _ = readers.read(str(tmp_path / "train.parquet"), "data")

    assert isinstance(samples, ArraySet) and isinstance(on_disk, ArraySet)
    assert samples.fingerprint() == on_disk.fingerprint() and samples.classes == ("bad", "good")
    about = readers.describe(ADDRESS, path)
    assert about["spec"] == ADDRESS and about["sha256"] == hashlib.sha256(_Hub.content).hexdigest()


def test_an_address_that_is_named_for_a_case_is_fetched(hub: http.server.HTTPServer, tmp_path: Path) -> None:
    """As another form of data, or in place of what was traced, if it is the same."""
    sha256 = hashlib.sha256(_Hub.content).hexdigest()
    other = {"inputs": {"data": {"path": str(tmp_path / "gone.parquet"), "sha256": "0" * 64}}}

    spec, about = evidence.find({}, tmp_path, "test", ADDRESS)

    assert Path(spec).read_bytes() == _Hub.content
    assert about == {"path": spec, "sha256": sha256}
    with pytest.raises(InvalidInputError, match="'data' must be the file that was traced, of SHA-256 0000"):
        evidence.find(other, tmp_path, "data", ADDRESS)


def test_what_was_fetched_is_there_without_the_hub(hub: http.server.HTTPServer) -> None:
    """A revision cannot change."""
    first = download(ADDRESS, "data")
    hub.shutdown()
    hub.server_close()

    assert download(ADDRESS, "data") == first


def test_a_file_that_is_not_there_is_named(hub: http.server.HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As is a hub that cannot be reached."""
    with pytest.raises(InvalidInputError, match=r"^'data' must be there on the hub \(got no 'data/test\.parquet' in"):
        download(ADDRESS.replace("train", "test"), "data")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(StoreError, match=r"^'data' could not be fetched from the hub \(got "):
        download(ADDRESS, "data")


@pytest.mark.parametrize(
    "spec",
    [
        ADDRESS.replace(COMMIT, "main"),
        ADDRESS.replace("train.parquet", "train.py"),
        ADDRESS.replace("data/", "../../data/"),
        ADDRESS.replace("hf://datasets/", "hf://"),
        "hf:",
    ],
    ids=["a branch", "a script", "a way out", "a model", "nothing"],
)
def test_an_address_of_another_form_is_refused(spec: str) -> None:
    """Before anything is asked of the network."""
    with pytest.raises(InvalidInputError, match=r"^'data' must be hf://datasets/OWNER/NAME@REVISION/FILE with the 40"):
        readers.read(spec, "data")
