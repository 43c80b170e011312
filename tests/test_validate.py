"""Checks at the boundary: what passes, and what each message says."""

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from poisontrace import _validate
from poisontrace._errors import InvalidInputError


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 5, float("nan")])
def test_a_rate_outside_the_open_unit_interval_is_refused(rate: float) -> None:
    """The message names the argument, the rule and the usual slip."""
    with pytest.raises(InvalidInputError, match=r"'rate' must be a fraction in \(0, 1\) .*For five percent pass 0\.05"):
        _validate.check_rate(rate)


def test_a_rate_inside_comes_back() -> None:
    """A valid rate passes unchanged."""
    assert _validate.check_rate(0.05) == 0.05


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((0, 3), np.float32), r"'x' must have at least one row and one column \(got shape \(0, 3\)\)"),
        (np.zeros((3, 0), np.float32), r"'x' must have at least one row and one column \(got shape \(3, 0\)\)"),
        (np.zeros((0, 8, 8, 1), np.uint8), "'x' must have at least one row"),
        (np.zeros(3, np.float32), "'x' must have at least one row and one column"),
        (np.zeros((2, 8, 8), np.uint8), r"'x' must have shape \(n, height, width, channels\).*Add a channel axis"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"'x' must have shape .*got \(2, 3, 8, 8\)"),
        (np.zeros((2, 3), np.int64), r"'x' must be uint8 images or a float array \(got dtype int64\).*astype"),
        (np.zeros((2, 3), bool), "'x' must be uint8 images or a float array"),
        (np.array([["a"]]), "'x' must be uint8 images or a float array"),
        (
            np.array([[0.0], [np.nan], [np.inf]]),
            r"'x' must hold finite numbers .*2 of 3 rows, first 1\)\. Drop or fill",
        ),
        (np.array([[0.0], [1e300]]), r"'x' must hold finite numbers .*1 of 2 rows, first 1"),
    ],
)
def test_inputs_that_break_a_rule_are_refused(x: Any, message: str) -> None:
    """Each message names the argument, the rule and what was got."""
    with pytest.raises(InvalidInputError, match=message):
        _validate.check_inputs(x, "x")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_finite_floats_of_any_width_pass(dtype: Any) -> None:
    """Float arrays come back as they are."""
    x = np.ones((2, 3), dtype)

    assert _validate.check_inputs(x, "x") is x


@pytest.mark.parametrize(
    ("y", "n", "message"),
    [
        (np.zeros((2, 1), np.int64), 2, r"'y' must have shape \(2,\), one label a sample \(got \(2, 1\)\)"),
        (np.zeros(3, np.int64), 2, r"'y' must have shape \(2,\), one label a sample \(got \(3,\)\)"),
        (np.zeros((2, 1), np.int64), None, r"'y' must have shape \(n,\)"),
        (np.zeros(2), 2, r"'y' must hold integers \(got dtype float64\)\. Convert it with astype\('int64'\)"),
        (np.array([0, -1]), 2, r"'y' must hold labels of 0 or more \(got -1\)"),
        (np.array([0, 2**63], np.uint64), 2, r"'y' must hold labels that fit int64"),
    ],
)
def test_labels_that_break_a_rule_are_refused(y: Any, n: int | None, message: str) -> None:
    """Each message names the argument, the rule and what was got."""
    with pytest.raises(InvalidInputError, match=message):
        _validate.check_labels(y, "y", n=n)


def test_labels_become_int64() -> None:
    """Labels of any integer type are widened."""
    assert _validate.check_labels(np.array([1, 2], np.uint8), "y", n=2).dtype == np.int64


def test_a_label_without_an_output_is_named_with_its_row() -> None:
    """The message says which label, which row and what to check."""
    with pytest.raises(InvalidInputError, match=r"'y' must hold labels below 3.*got 3 at row 1\)\. Check that data"):
        _validate.check_label_range(np.array([2, 3]), "y", 3)
    _validate.check_label_range(np.array([2, 0]), "y", 3)
    _validate.check_label_range(np.array([], np.int64), "y", 3)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """A path without a file, or a folder, is named."""
    with pytest.raises(InvalidInputError, match=r"'data' must be an existing file .*nothing\.npz"):
        _validate.read_npz(tmp_path / "nothing.npz", "data", required=())
    with pytest.raises(InvalidInputError, match="'data' must be an existing file"):
        _validate.check_file(tmp_path, "data")


def test_arrays_come_back_by_name(tmp_path: Path) -> None:
    """Required and other arrays are read alike."""
    np.savez_compressed(tmp_path / "a.npz", x=np.ones(2), other=np.zeros(1))

    arrays = _validate.read_npz(tmp_path / "a.npz", "data", required=("x",))

    assert sorted(arrays) == ["other", "x"]
    assert arrays["x"].tolist() == [1, 1]


def _npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def _npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ones(3))
    return stream.getvalue()


def _zip(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def _flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes(byte ^ 255 for byte in content[middle : middle + 40]) + content[middle + 40 :]


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"index,label\n0,3\n", "got a file of another kind"),
        (b"", "got a file of another kind"),
        (_npy(), "got a file of another kind"),
        (_npz(x=np.ones(500))[:-30], "cut off"),
        (_npz(x=np.array([{}, None], dtype=object)), "got object arrays, which need pickle"),
        (_npz(x=np.frombuffer(os.urandom(4000), np.uint8)), ""),
        (_zip(x=b"no array"), "got 'x', which is no array"),
    ],
    ids=["text", "empty", "npy", "cut-off", "objects", "damaged", "plain-zip"],
)
def test_a_file_that_is_no_npz_of_plain_arrays_is_refused(tmp_path: Path, content: bytes, got: str) -> None:
    """The message says what the file is instead and how to write a good one."""
    path = tmp_path / "file.npz"
    path.write_bytes(content if got else _flipped(content))

    with pytest.raises(InvalidInputError, match=rf"'data' must be an \.npz file.*{got}.*numpy\.savez_compressed"):
        _validate.read_npz(path, "data", required=("x",))


def test_missing_arrays_are_named(tmp_path: Path) -> None:
    """The message lists what must be there and what is."""
    np.savez(tmp_path / "a.npz", x=np.ones(2), label=np.ones(2))

    with pytest.raises(InvalidInputError, match=r"'data' must hold the arrays x, y \(got x, label in 'a\.npz'\)"):
        _validate.read_npz(tmp_path / "a.npz", "data", required=("x", "y"))


def test_what_unpacks_to_far_more_is_refused() -> None:
    """Over a gigabyte and a hundred times its size."""
    _validate.check_ratio(1 << 30, 1)
    _validate.check_ratio(100 << 30, 1 << 30)

    with pytest.raises(ValueError, match="1,000 bytes that unpack to 2,147,483,648"):
        _validate.check_ratio(2 << 30, 1000)


@pytest.mark.parametrize("content", [b"", b"no array", b"\x80\x04K\x01."])
def test_one_array_is_read_without_pickle(content: bytes, tmp_path: Path) -> None:
    """And what is none is refused."""
    np.save(tmp_path / "x.npy", np.arange(3.0))
    (tmp_path / "bad.npy").write_bytes(content)

    assert _validate.read_npy(tmp_path / "x.npy", "event").tolist() == [0, 1, 2]
    with pytest.raises(InvalidInputError, match=r"'event' must be an .npy file of one plain array"):
        _validate.read_npy(tmp_path / "bad.npy", "event")
