"""Given a trained model, its training set and one misclassification, find the poisoned training samples behind it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from poisontrace._errors import (
    InvalidInputError,
    OutOfMemoryError,
    PoisontraceError,
    PoisontraceWarning,
    RankError,
    StoreError,
    UnlearningDivergedError,
    UnsupportedModelError,
)

if TYPE_CHECKING:
    from poisontrace._types import Cluster, Finding, Losses, Trace
    from poisontrace.exporting import Export, export
    from poisontrace.repairing import Repair, repair
    from poisontrace.reviewing import Review, review
    from poisontrace.tracing import Config, trace
    from poisontrace.verifying import Verification, verify

__version__ = "0.1.0"

__all__ = [
    "Cluster",
    "Config",
    "Export",
    "Finding",
    "InvalidInputError",
    "Losses",
    "OutOfMemoryError",
    "PoisontraceError",
    "PoisontraceWarning",
    "RankError",
    "Repair",
    "Review",
    "StoreError",
    "Trace",
    "UnlearningDivergedError",
    "UnsupportedModelError",
    "Verification",
    "export",
    "repair",
    "review",
    "trace",
    "verify",
]

# What needs torch is imported when it is first asked for, so that the command line answers at once.
_LATER = {
    **dict.fromkeys(("Cluster", "Finding", "Losses", "Trace"), "poisontrace._types"),
    **dict.fromkeys(("Config", "trace"), "poisontrace.tracing"),
    **dict.fromkeys(("Export", "export"), "poisontrace.exporting"),
    **dict.fromkeys(("Review", "review"), "poisontrace.reviewing"),
    **dict.fromkeys(("Repair", "repair"), "poisontrace.repairing"),
    **dict.fromkeys(("Verification", "verify"), "poisontrace.verifying"),
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted({*globals(), *__all__})
