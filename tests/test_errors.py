"""The exception tree."""

import inspect

import pytest
import torch

from poisontrace import _errors
from poisontrace._errors import OutOfMemoryError, PoisontraceError, PoisontraceWarning, is_out_of_memory

ERRORS = [
    error
    for _, error in inspect.getmembers(_errors, inspect.isclass)
    if error not in (PoisontraceError, PoisontraceWarning)
]


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("InvalidInputError", ValueError),
        ("UnsupportedModelError", TypeError),
        ("UnlearningDivergedError", RuntimeError),
        ("StoreError", OSError),
        ("OutOfMemoryError", MemoryError),
        ("RankError", RuntimeError),
    ],
)
def test_each_error_is_also_the_builtin_a_caller_would_catch(name: str, builtin: type[Exception]) -> None:
    """Code that knows nothing of poisontrace can still catch its errors."""
    assert issubclass(getattr(_errors, name), (builtin,))


@pytest.mark.parametrize("error", ERRORS)
def test_one_base_catches_every_error(error: type[Exception]) -> None:
    """Every error derives from PoisontraceError."""
    assert issubclass(error, PoisontraceError)


@pytest.mark.parametrize("error", ERRORS)
def test_the_drawn_tree_is_complete(error: type[Exception]) -> None:
    """The tree in the module's docstring names every error."""
    assert f"── {error.__name__} (" in str(_errors.__doc__)


def test_the_warning_is_a_user_warning() -> None:
    """The warning is shown by default and is no error."""
    assert issubclass(PoisontraceWarning, UserWarning)
    assert not issubclass(PoisontraceWarning, PoisontraceError)


def test_out_of_memory_says_what_helps_whatever_the_command() -> None:
    """Only a trace has the options; where it happened is said if it is known."""
    text = str(OutOfMemoryError())

    assert text.startswith(
        "Out of memory. Pass a smaller --batch-size and a smaller --memory to poisontrace trace; for "
    )
    assert text.endswith("; for another command, free some memory or use a larger machine.")
    assert str(OutOfMemoryError("sample 7")) == text.replace("memory.", "memory at sample 7.", 1)


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError(), False),
    ],
)
def test_out_of_memory_is_known_whoever_says_it(error: Exception, is_one: bool) -> None:
    """Python, torch on the CPU, torch on a GPU."""
    assert is_out_of_memory(error) == is_one
