"""The trace in the clothes of other libraries: an estimator in scikit-learn's style, a defence in ART's.

Both take arrays and events, and both keep the whole trace, so that nothing is lost on the way. ART, the Adversarial
Robustness Toolbox, is not needed: its contract of a defence is kept without importing it.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from torch import nn

from poisontrace import tracing
from poisontrace._errors import InvalidInputError
from poisontrace._types import Trace
from poisontrace.data import ArraySet

Events = Sequence[tuple[Any, int]]


class PoisonTracer(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """Finds the training samples behind misclassifications, as an outlier detector of scikit-learn does outliers.

    It judges the samples that it is fitted on and no others, so there is ``fit_predict`` and no ``predict``, as in
    scikit-learn's ``LocalOutlierFactor`` without novelty.

    Attributes:
        labels_: (n,) int64, -1 for a responsible sample and 1 for any other.
        scores_: (n,) float32 in [0, 1], confidence that a sample is responsible.
        poison_: int64, indices of the responsible samples, ascending.
        verdict_: "poison", "inconclusive" or "no-poison".
        trace_: the whole :class:`poisontrace.Trace`; ``trace_.save(folder)`` writes the case.
        n_features_in_: numbers in one sample.

    Example:
        >>> import torch
        >>> x = np.eye(4, dtype=np.float32)[np.arange(60) % 4]
        >>> model = torch.nn.Linear(4, 4)
        >>> _ = model.load_state_dict({"weight": torch.eye(4), "bias": torch.zeros(4)})
        >>> PoisonTracer(model).fit(x, np.arange(60) % 4, events=[(x[0], 0)]).verdict_
        'no-poison'
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        *,
        rule: str = "default",
        layer: str | None = None,
        seed: int = 0,
        device: str = "auto",
        batch_size: int = 256,
    ) -> None:
        """Keep the settings; nothing is checked before ``fit``.

        Args:
            model: returns logits (n, k); left as found.
            rule: as for :func:`poisontrace.trace`, and so are the others.
            layer: name of the last linear layer.
            seed: of what is random.
            device: where the network runs.
            batch_size: samples a step.
        """
        self.model = model
        self.rule = rule
        self.layer = layer
        self.seed = seed
        self.device = device
        self.batch_size = batch_size

    def fit(self, X: Any, y: Any, *, events: Events) -> Self:
        """Trace events to the samples that are responsible for them.

        Args:
            X: (n, ...), uint8 images or numbers as the model takes them; a table of pandas will do.
            y: (n,) labels of the training set, whole numbers.
            events: pairs of an input and the wrong label that the model gave it.

        Raises:
            InvalidInputError: if something breaks a rule that the message states.
            UnsupportedModelError: if the model has no usable last linear layer.
        """
        if not isinstance(self.model, nn.Module):
            raise InvalidInputError(
                f"'model' must be a torch.nn.Module that returns logits (got {type(self.model).__name__}). "
                "Pass the trained model."
            )
        x = _numbers(X)
        result = tracing.trace(
            self.model,
            ArraySet(x, np.asarray(y)),
            events,
            rule=self.rule,
            layer=self.layer,
            seed=self.seed,
            device=self.device,
            batch_size=self.batch_size,
        )
        self.trace_: Trace = result
        self.verdict_ = result.verdict
        self.poison_ = result.poison
        self.scores_ = result.scores
        self.labels_ = np.ones(len(x), np.int64)
        self.labels_[result.poison] = -1
        self.n_features_in_ = int(np.prod(x.shape[1:]))
        return self

    def fit_predict(self, X: Any, y: Any = None, *, events: Events) -> NDArray[np.int64]:
        """Trace events, and return -1 for each responsible sample and 1 for any other, (n,)."""
        return self.fit(X, y, events=events).labels_


class TraceDefence:
    """A poison filtering defence such as ART has: ``detect_poison`` returns ``(report, is_clean_lst)``.

    Attributes:
        classifier: ART's estimator, whose ``model`` is the network; or the network.
        x_train: (n, ...), as the classifier is fed.
        y_train: (n,) labels, or (n, k) one-hot.
        trace: of the last call of ``detect_poison``.
    """

    defence_params: ClassVar[list[str]] = ["classifier", "events", "rule", "layer", "seed", "device", "batch_size"]

    def __init__(
        self, classifier: Any, x_train: NDArray[Any], y_train: NDArray[Any], events: Events, **settings: Any
    ) -> None:
        """Keep what is to be traced.

        Args:
            classifier: an estimator of ART for PyTorch, or a network.
            x_train: (n, ...), as the classifier is fed; its preprocessing is not repeated here.
            y_train: (n,) labels, or (n, k) one-hot.
            events: pairs of an input and the wrong label that the model gave it, a number or one-hot.
            settings: as :class:`PoisonTracer` takes them.
        """
        self.classifier, self.x_train, self.y_train, self.events = classifier, x_train, y_train, events
        self.trace: Trace | None = None
        self._tracer = PoisonTracer()
        self.set_params(**settings)

    def set_params(self, **kwargs: Any) -> None:
        """Change the events, the classifier or settings."""
        for name in ("classifier", "events"):
            if name in kwargs:
                setattr(self, name, kwargs.pop(name))
        try:
            self._tracer.set_params(**kwargs)
        except ValueError as error:
            known = ", ".join(self.defence_params)
            raise InvalidInputError(f"'settings' must be some of {known} (got {', '.join(kwargs)}).") from error

    def get_params(self) -> dict[str, Any]:
        """Return the classifier, the events and the settings."""
        settings = {name: value for name, value in self._tracer.get_params().items() if name in self.defence_params}
        return {"classifier": self.classifier, "events": self.events, **settings}

    def detect_poison(self, **kwargs: Any) -> tuple[dict[str, Any], list[int]]:
        """Trace the events.

        Args:
            kwargs: settings to change first, as :meth:`set_params` takes them.

        Returns:
            a report of plain values, and for each training sample 1 if it is clean, 0 if it is responsible.
        """
        self.set_params(**kwargs)
        network = self.classifier if isinstance(self.classifier, nn.Module) else getattr(self.classifier, "model", None)
        events = [(x, _label(y, 1)) for x, y in self.events]
        tracer = self._tracer.set_params(model=network).fit(self.x_train, _label(self.y_train, 2), events=events)
        self.trace = tracer.trace_
        report = {
            "verdict": tracer.verdict_,
            "n_poison": len(tracer.poison_),
            "poison": tracer.poison_.tolist(),
            "scores": tracer.scores_.tolist(),
            "events": [
                {"label": finding.label, "verdict": finding.verdict, **dict(finding.statistics)}
                for finding in tracer.trace_.findings
            ],
            "warnings": list(tracer.trace_.warnings),
        }
        return report, ((tracer.labels_ + 1) // 2).tolist()

    def evaluate_defence(self, is_clean: NDArray[Any], **kwargs: Any) -> str:
        """Compare with the truth, which only the caller has.

        Args:
            is_clean: (n,), 1 for a clean sample and 0 for poison.
            kwargs: as :meth:`detect_poison` takes them; traced again only if there are any, or nothing was traced.

        Returns:
            JSON: for each label a confusion matrix in percent, in which poison is positive; -1 where there is nothing.
        """
        if kwargs or self.trace is None:
            self.detect_poison(**kwargs)
        assert self.trace is not None
        is_poison, labels = np.asarray(is_clean) == 0, self.trace.labels
        if is_poison.shape != labels.shape:
            raise InvalidInputError(f"'is_clean' must have shape {labels.shape}, one a sample (got {is_poison.shape}).")
        is_found = np.isin(np.arange(len(labels)), self.trace.poison)
        matrix = {}
        for label in range(int(labels.max()) + 1):
            truth, found = is_poison[labels == label], is_found[labels == label]
            matrix[f"class_{label}"] = {
                "TruePositive": _rate(truth & found, truth),
                "TrueNegative": _rate(~truth & ~found, ~truth),
                "FalsePositive": _rate(~truth & found, ~truth),
                "FalseNegative": _rate(truth & ~found, truth),
            }
        return json.dumps(matrix)

    def save(self, folder: str | Path) -> Path:
        """Write the case folder of the last trace."""
        if self.trace is None:
            raise InvalidInputError("'trace' must have been made (got none). Call detect_poison() first.")
        return self.trace.save(folder)


def _numbers(x: Any) -> NDArray[Any]:
    """Return samples as an array that the tracer takes: uint8 images, or float32."""
    array = np.asarray(x)
    is_image = array.dtype == np.uint8 and array.ndim == 4
    return array if is_image or array.dtype.kind not in "iufb" else array.astype(np.float32)


def _label(y: Any, n_axes: int) -> Any:
    """Return labels as numbers: of one-hot vectors, which have ``n_axes`` axes, the position of the one."""
    array = np.asarray(y)
    return array.argmax(-1) if array.ndim == n_axes else y


def _rate(is_hit: NDArray[np.bool_], of: NDArray[np.bool_]) -> dict[str, Any]:
    hits, n = int(is_hit.sum()), int(of.sum())
    return {"rate": round(100 * hits / n, 2) if n else -1, "numerator": hits, "denominator": n}
