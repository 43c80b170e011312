"""A model from outside: its factory is found and run, its weights are read, and nothing is unpickled."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bad_inputs import STATE, X, write_incident
from safetensors.torch import save_file
from torch import nn

from poisontrace._errors import InvalidInputError, UnsupportedModelError
from poisontrace.data import to_inputs
from poisontrace.loading import find_factory, load_model, read_state


class Trap:
    """An object whose unpickling would leave a file."""

    def __init__(self, path: Path) -> None:
        """Remember where."""
        self.path = path

    def __reduce__(self) -> Any:
        """Have the file written by whoever unpickles this."""
        return Path.touch, (self.path,)


def build() -> nn.Sequential:
    """Return the network that the weights of the table belong to."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a sound incident."""
    write_incident(tmp_path)
    return tmp_path


def test_a_factory_in_a_file_is_found(folder: Path) -> None:
    """The file comes back with it, for its hash."""
    path, factory = find_factory(f"{folder}/arch.py:build")

    assert path == folder / "arch.py"
    assert isinstance(factory(), nn.Sequential)


def test_a_factory_in_a_package_is_found() -> None:
    """There is no single file then."""
    path, factory = find_factory("torch.nn:Identity")

    assert (path, factory) == (None, nn.Identity)


def test_a_package_in_the_working_folder_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed command does not look there by itself."""
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    (folder / "mine_alone.py").write_text("def build(): return 7")
    monkeypatch.chdir(folder)

    assert find_factory("mine_alone:build")[1]() == 7


def test_the_argument_at_fault_is_named(folder: Path) -> None:
    """A recipe is found as a model is."""
    for spec in ("arch.py", f"{folder}/none.py:train", f"{folder}/arch.py:none", "no_such_package:train"):
        with pytest.raises(InvalidInputError, match="'train_with' must "):
            find_factory(spec, "train_with")


def test_a_file_imports_its_neighbours_and_leaves_no_trace(folder: Path) -> None:
    """The search path is as before, and no bytecode lies among the evidence."""
    (folder / "blocks_alone.py").write_text("value = 7")
    (folder / "net.py").write_text("from blocks_alone import value\n\n\ndef build():\n    return value\n")
    before, files = list(sys.path), sorted(folder.iterdir())

    _, factory = find_factory(f"{folder}/net.py:build")

    assert factory() == 7
    assert (sys.path, sorted(folder.iterdir())) == (before, files)


def test_a_file_may_change_the_search_path(folder: Path) -> None:
    """A file that takes its own folder off the path is still loaded."""
    (folder / "net.py").write_text("import sys\nsys.path = list(sys.path)[1:]\n\n\ndef build():\n    return 7\n")
    before = list(sys.path)

    try:
        assert find_factory(f"{folder}/net.py:build")[1]() == 7
    finally:
        sys.path = before


def test_a_dataclass_in_the_file_works(folder: Path) -> None:
    """Dataclasses look their module up by its name."""
    head = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    (folder / "net.py").write_text(f"{head}\n\n@dataclass\nclass A:\n    b: int = 7\n")

    assert find_factory(f"{folder}/net.py:A")[1]().b == 7


@pytest.mark.parametrize("spec", ["arch.py", "arch.py:", ":build", "", "arch.py:a b", "arch.py:build()"])
def test_another_form_of_the_model_is_refused(spec: str) -> None:
    """Both forms are named."""
    with pytest.raises(
        InvalidInputError, match=r"'model' must be file\.py:function or package\.module:function \(got "
    ):
        find_factory(spec)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def build(:", "SyntaxError"),
        ("import no_such_package", "No module named 'no_such_package'"),
        ("raise KeyError", "KeyError: "),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
    ],
)
def test_code_that_fails_is_one_sentence(code: str, reason: str, folder: Path) -> None:
    """The kind of error and its first line are said."""
    (folder / "wrong.py").write_text(code)

    with pytest.raises(InvalidInputError, match=f"'model' must be importable .*{reason}.* Check the code"):
        find_factory(f"{folder}/wrong.py:build")


def test_weights_are_loaded_in_eval_mode(folder: Path) -> None:
    """The model answers as its weights say."""
    model = load_model(build, folder / "weights.safetensors")

    expected = to_inputs(X).flatten(1) @ STATE["1.weight"].T
    assert not model.training
    torch.testing.assert_close(model(to_inputs(X)), expected)


@pytest.mark.parametrize("wrap", [dict, lambda state: {"state_dict": state, "epoch": 7}], ids=["plain", "checkpoint"])
def test_a_state_dict_is_read_without_pickle(wrap: Any, folder: Path) -> None:
    """As torch.save wrote it, alone or in a checkpoint of tensors and numbers."""
    torch.save(wrap(STATE), folder / "weights.pt")

    state = read_state(folder / "weights.pt")

    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[name], STATE[name]) for name in STATE)


def test_a_pickle_is_refused_and_not_run(folder: Path) -> None:
    """The way out is named; what the pickle would have done has not happened."""
    torch.save(Trap(folder / "sprung"), folder / "weights.pt")

    with pytest.raises(InvalidInputError, match=r"pickled or damaged.*safetensors\.torch\.save_file"):
        read_state(folder / "weights.pt")

    assert not (folder / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"\x80", b"text", b"PK\x03\x04", b"\x80\x02}q\x00(u.", bytes(range(256))])
def test_bytes_that_are_no_weights_are_refused(content: bytes, folder: Path) -> None:
    """Whatever torch makes of them."""
    (folder / "weights.pt").write_bytes(content)
    (folder / "bad.safetensors").write_bytes(content)

    for name in ("weights.pt", "bad.safetensors"):
        with pytest.raises(InvalidInputError, match=r"'weights' must be (a )?safetensors"):
            read_state(folder / name)


@pytest.mark.parametrize("content", [{}, [1], {"a": 1}, {"state_dict": {}}, torch.zeros(2)], ids=str)
def test_something_else_than_a_state_dict_is_refused(content: Any, folder: Path) -> None:
    """Plain data, but no tensors by name."""
    torch.save(content, folder / "weights.pt")

    with pytest.raises(InvalidInputError, match=r"'weights' must be a state dict of tensors .*Save model\.state_dict"):
        read_state(folder / "weights.pt")


def test_what_does_not_fit_is_named(folder: Path) -> None:
    """Three problems by name and the number of others."""
    save_file({"1.weight": torch.zeros(2, 2), **{f"x{i}": torch.zeros(1) for i in range(3)}}, folder / "w.safetensors")

    with pytest.raises(
        InvalidInputError,
        match=r"'weights' must fit the model \(got missing '1\.bias', unexpected 'x0', .* and 2 more\)",
    ):
        load_model(build, folder / "w.safetensors")


def test_weights_that_are_not_finite_are_refused(folder: Path) -> None:
    """By the name of the tensor."""
    save_file({**STATE, "1.bias": torch.tensor([0, torch.inf, 0])}, folder / "w.safetensors")

    with pytest.raises(InvalidInputError, match=r"'weights' must hold finite numbers .* '1\.bias'\)"):
        load_model(build, folder / "w.safetensors")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16], ids=str)
def test_weights_of_few_bits_are_read(dtype: torch.dtype, folder: Path) -> None:
    """As what they stand for; NaN among them is found."""
    state = {name: tensor.to(dtype) for name, tensor in STATE.items()}
    save_file(state, folder / "w.safetensors")

    model = load_model(build, folder / "w.safetensors")

    assert torch.equal(model[1].weight, state["1.weight"].float())
    save_file({**state, "1.bias": torch.tensor([0, torch.nan, 0]).to(dtype)}, folder / "w.safetensors")
    with pytest.raises(InvalidInputError, match=r"'weights' must hold finite numbers .* '1\.bias'\)"):
        load_model(build, folder / "w.safetensors")


def test_a_lazy_model_takes_its_shapes_from_the_weights(folder: Path) -> None:
    """Its own shapes are not known before."""
    model = load_model(lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), folder / "weights.safetensors")

    assert torch.equal(model[1].weight, STATE["1.weight"])


@pytest.mark.parametrize("error", [RuntimeError("no such setting\nat line 3"), SystemExit(3)], ids=repr)
def test_a_factory_that_fails_is_one_sentence(error: BaseException, folder: Path) -> None:
    """The first line of what it raised is said."""

    def fail() -> None:
        raise error

    with pytest.raises(InvalidInputError, match=r"'model' must be a factory that works without arguments .*\). Name"):
        load_model(fail, folder / "weights.safetensors")


def test_a_factory_must_return_a_module(folder: Path) -> None:
    """Anything else is said by its type."""
    with pytest.raises(UnsupportedModelError, match=r"'model' must return a torch\.nn\.Module \(got int\)"):
        load_model(lambda: 7, folder / "weights.safetensors")


def test_a_factory_may_bring_its_own_weights() -> None:
    """Where none are named, what it filled in stays."""
    model = build()
    with torch.no_grad():
        model[1].bias.fill_(7)

    found = load_model(lambda: model.train(), None)

    assert found is model and not found.training
    assert found[1].bias.tolist() == [7, 7, 7]
