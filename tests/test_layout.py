"""Rules about the source itself: a test file for each module, light imports, one source of randomness, no pickle."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import poisontrace

SOURCE = Path(poisontrace.__file__).parent
TESTS = Path(__file__).parent
MODULES = sorted(path for path in SOURCE.rglob("*.py") if path.stem != "__init__")


def _where(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=_where)
def test_every_module_has_a_test_file(path: Path) -> None:
    """src/poisontrace/a/_x.py is tested in tests/a/test_x.py."""
    test = TESTS / path.relative_to(SOURCE).with_name(f"test_{path.stem.removeprefix('_')}.py")

    assert test.is_file()


def test_importing_the_package_is_light() -> None:
    """Neither the command line's nor the report's nor the data sets' libraries come along."""
    heavy = ["typer", "rich", "jinja2", "matplotlib", "datasets", "pooch"]
    code = f"import sys, poisontrace; print([name for name in {heavy} if name in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"


def _dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _is_true(call: ast.Call, keyword: str) -> bool:
    return any(k.arg == keyword and isinstance(k.value, ast.Constant) and k.value.value is True for k in call.keywords)


DRAWING = {"rand", "randn", "randint", "randperm", "normal", "multinomial", "bernoulli"}


def randomness(code: str) -> list[str]:
    """Return what in the code draws numbers from anywhere but a generator handed to it."""
    tree = ast.parse(code)
    found = [name for name in _imported(tree) if name.split(".")[0] == "random" or name.startswith("numpy.random")]
    for node in ast.walk(tree):
        name = _dotted(node)
        if name.startswith(("np.random.", "numpy.random.")) and not name.endswith(".Generator"):
            found.append(name)
        elif name in ("torch.manual_seed", "torch.seed"):
            found.append(name)
        elif isinstance(node, ast.Call):
            called = _dotted(node.func)
            draws = called.startswith("torch.") and called.removeprefix("torch.") in DRAWING
            if draws and not any(keyword.arg == "generator" for keyword in node.keywords):
                found.append(called)
    return found


def pickles(code: str) -> list[str]:
    """Return what in the code reads or writes pickles."""
    tree = ast.parse(code)
    makers = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    found = [name for name in _imported(tree) if name.split(".")[0] in makers]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = _dotted(node.func)
            if called == "torch.save" or (called == "torch.load" and not _is_true(node, "weights_only")):
                found.append(called)
            elif _is_true(node, "allow_pickle"):
                found.append(called)
    return found


@pytest.mark.parametrize("path", [path for path in MODULES if path.stem != "_rng"], ids=_where)
def test_only_rng_makes_randomness(path: Path) -> None:
    """Elsewhere, numbers are drawn from generators that _rng made."""
    assert randomness(path.read_text()) == []


@pytest.mark.parametrize("path", MODULES, ids=_where)
def test_no_module_uses_pickle(path: Path) -> None:
    """Evidence and models are read without running what is in them."""
    assert pickles(path.read_text()) == []


@pytest.mark.parametrize(
    "code",
    [
        "import random",
        "from random import shuffle",
        "from numpy.random import rand",
        "np.random.seed(0)",
        "rng = np.random.default_rng()",
        "torch.manual_seed(0)",
        "torch.randperm(3)",
    ],
)
def test_stray_randomness_would_be_found(code: str) -> None:
    """The check above can fail."""
    assert randomness(code) != []


@pytest.mark.parametrize("code", ["torch.randperm(3, generator=g)", "def f(g: np.random.Generator): ...", "x.random()"])
def test_a_generator_handed_over_is_fine(code: str) -> None:
    """The check above knows generators."""
    assert randomness(code) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import load",
        "import joblib",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.save(x, path)",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_a_pickle_would_be_found(code: str) -> None:
    """The check above can fail."""
    assert pickles(code) != []


@pytest.mark.parametrize("code", ["torch.load(path, weights_only=True)", "np.load(path, allow_pickle=False)"])
def test_reading_plain_data_is_fine(code: str) -> None:
    """The check above knows the safe forms."""
    assert pickles(code) == []
