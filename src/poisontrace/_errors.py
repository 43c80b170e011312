"""Every exception poisontrace raises, and its one warning.

PoisontraceError
├── InvalidInputError (ValueError)        an argument or a file breaks a stated rule
├── UnsupportedModelError (TypeError)     the model has no last linear layer we can use
├── UnlearningDivergedError (RuntimeError)  a last layer could not be fitted
├── OutOfMemoryError (MemoryError)        memory ran out, and at which samples
├── StoreError (OSError)                  a case or incident folder cannot be read or written
└── RankError (RuntimeError)              another process of a run that several share ended too early
PoisontraceWarning (UserWarning)          a result exists but may mislead
"""


class PoisontraceError(Exception):
    """Base of all errors raised on purpose by poisontrace."""


class InvalidInputError(PoisontraceError, ValueError):
    """An argument or a file from outside breaks the rule that its message states."""


class UnsupportedModelError(PoisontraceError, TypeError):
    """The model offers no last linear layer that the tracer can use."""


class UnlearningDivergedError(PoisontraceError, RuntimeError):
    """Fitting a last layer ended in numbers that are not finite."""


class StoreError(PoisontraceError, OSError):
    """A case folder or an incident folder cannot be read or written."""


class OutOfMemoryError(PoisontraceError, MemoryError):
    """Memory ran out; the message says at which samples, if that is known."""

    def __init__(self, where: str = "") -> None:
        """Say where, and what helps; only a trace has options for it."""
        super().__init__(
            f"Out of memory{where and f' at {where}'}. Pass a smaller --batch-size and a smaller --memory to "
            "poisontrace trace; for another command, free some memory or use a larger machine."
        )


class RankError(PoisontraceError, RuntimeError):
    """Another process of a run that several share ended before its work was done."""


class PoisontraceWarning(UserWarning):
    """A result exists but may mislead the reader."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out; torch has none of its own for that on the CPU."""
    name = type(error).__name__
    return isinstance(error, MemoryError) or name == "OutOfMemoryError" or "can't allocate memory" in str(error)
