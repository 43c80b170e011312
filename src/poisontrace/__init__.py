"""Given a trained model, its training set and one misclassification, find the poisoned training samples behind it."""

from poisontrace._errors import (
    InvalidInputError,
    PoisontraceError,
    PoisontraceWarning,
    StoreError,
    UnlearningDivergedError,
    UnsupportedModelError,
)
from poisontrace._types import Cluster, Finding, Losses, Trace
from poisontrace.tracing import Config, trace

__version__ = "0.1.0"

__all__ = [
    "Cluster",
    "Config",
    "Finding",
    "InvalidInputError",
    "Losses",
    "PoisontraceError",
    "PoisontraceWarning",
    "StoreError",
    "Trace",
    "UnlearningDivergedError",
    "UnsupportedModelError",
    "trace",
]
