"""The nouns of the method: frozen, without behaviour beyond their invariants. Ground truth has no place here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Verdict = Literal["poison", "inconclusive", "no-poison"]
Decision = Literal["responsible", "pruned", "split"]


@dataclass(frozen=True)
class Losses:
    """What unlearning a cluster did: losses before and after, in nats.

    Attributes:
        event_before, event_after: cross-entropy of the event with the wrong label that the model gave it.
        control_before, control_after: median cross-entropy of the control events, with their own labels.
    """

    event_before: float
    event_after: float
    control_before: float
    control_after: float

    @property
    def event_rise(self) -> float:
        """How much unlearning the cluster hurts the event's wrong label."""
        return self.event_after - self.event_before

    @property
    def control_rise(self) -> float:
        """How much unlearning the cluster hurts ordinary samples of that label."""
        return self.control_after - self.control_before


@dataclass(frozen=True)
class Cluster:
    """A node of the tree: a set of training samples, its test and what was decided.

    Attributes:
        id: position in ``Trace.clusters``.
        parent: the cluster it was split from; None for a root (one per event).
        event: which event it was tested against.
        indices: training samples, int64, ascending.
        losses: None for a root, which is never unlearned.
        decision: "responsible" (kept whole), "pruned" (dropped whole) or "split" (went on into its children).
        reason: why, in a few words.
    """

    id: int
    parent: int | None
    event: int
    indices: NDArray[np.int64] = field(repr=False)
    losses: Losses | None
    decision: Decision
    reason: str


@dataclass(frozen=True)
class Finding:
    """What one event led to.

    Attributes:
        label: the wrong label the model gave.
        probability: the model's confidence in it, in [0, 1].
        verdict: this event's verdict.
        poison: responsible samples for this event, int64, ascending; with several events, those of its campaign.
        statistics: the numbers that led to the verdict, by name.
        suspects: samples whose unlearning undoes the event, but that may be ordinary, int64, ascending; empty unless
            the verdict is "inconclusive" (decision 0051).
        doubt: why those are not called responsible, in a few words; empty if there are none.
    """

    label: int
    probability: float
    verdict: Verdict
    poison: NDArray[np.int64] = field(repr=False)
    statistics: Mapping[str, float]
    suspects: NDArray[np.int64] = field(default_factory=lambda: np.array([], np.int64), repr=False)
    doubt: str = ""

    @property
    def error(self) -> float | None:
        """Probability that the verdict is wrong, in [0, 1]; None if it is "inconclusive" or not known.

        Poison and no poison are taken as equally likely beforehand (decision 0014).
        """
        p_poison = self.statistics.get("p_poison")
        if p_poison is None or self.verdict == "inconclusive":
            return None
        return 1 - p_poison if self.verdict == "poison" else p_poison


def suspects_of(findings: Sequence[Finding]) -> NDArray[np.int64]:
    """Return the suspects of all events that no other event holds responsible, int64, ascending."""
    nobody = np.array([], np.int64)
    suspects = np.concatenate([nobody, *(finding.suspects for finding in findings)])
    return np.setdiff1d(suspects, np.concatenate([nobody, *(finding.poison for finding in findings)]))


@dataclass(frozen=True)
class Campaign:
    """Events that led to the same samples.

    Attributes:
        label: the wrong label the model gave.
        events: positions of the events, ascending.
        poison: samples that these events together hold responsible, int64, ascending.
    """

    label: int
    events: tuple[int, ...]
    poison: NDArray[np.int64] = field(repr=False)


@dataclass(frozen=True)
class Coordinates:
    """Where the samples of a campaign's label lie, seen so that its responsible samples are told apart best.

    Attributes:
        indices: training samples, int64, ascending, (n,).
        x: float32 (n, d), coordinates along principal directions.
        plane: float32 (n, 2): the cross-fitted position between other samples, at 0, and responsible ones, at 1; and
            the position along the direction of largest variance across that.
    """

    indices: NDArray[np.int64] = field(repr=False)
    x: NDArray[np.float32] = field(repr=False)
    plane: NDArray[np.float32] = field(repr=False)


@dataclass(frozen=True)
class Trace:
    """The result of a trace.

    Attributes:
        verdict: "poison" if any event led to responsible samples, "inconclusive" if evidence was found but is weak,
            else "no-poison".
        poison: indices of the responsible samples in the training set, int64, ascending; empty unless "poison".
        scores: (n,) float32 in [0, 1], confidence that a sample is responsible.
        labels: (n,) int64, the labels of the training set as it was read.
        findings: one per event, in the order given.
        clusters: every cluster of every event's tree, parents before children.
        rule: "default" or "paper".
        config: every setting, by name.
        seed: the seed given.
        device: where the network ran.
        seconds: wall time of each stage.
        warnings: sentences on what may mislead.
        exhibits: inputs for the report: ``events``, ``poison``, ``suspects`` and ``benign`` (as the model takes them),
            the three latter with their indices ``poison_index``, ``suspects_index`` and ``benign_index``; and
            ``nearest_index`` (m, 6), the responsible samples most like each event, filled up with -1.
        ids: (n,) sample ids of the data set, or None where the position is the id.
        campaigns: events with the verdict "poison", put together where they led to the same samples.
        coordinates: one for each campaign, or none.
        sources: (n,) who or what each sample came from, or None where that is not known.
    """

    verdict: Verdict
    poison: NDArray[np.int64] = field(repr=False)
    scores: NDArray[np.float32] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)
    findings: tuple[Finding, ...]
    clusters: tuple[Cluster, ...] = field(repr=False)
    rule: str
    config: Mapping[str, Any] = field(repr=False)
    seed: int
    device: str
    seconds: Mapping[str, float]
    warnings: tuple[str, ...]
    exhibits: Mapping[str, NDArray[Any]] = field(repr=False)
    ids: tuple[str, ...] | None = field(default=None, repr=False)
    campaigns: tuple[Campaign, ...] = ()
    coordinates: tuple[Coordinates, ...] = field(default=(), repr=False)
    sources: tuple[str, ...] | None = field(default=None, repr=False)

    def save(self, folder: str | Path, *, context: Mapping[str, Any] | None = None) -> Path:
        """Write the case folder: ``trace.json``, ``poison.csv``, ``scores.npy``, ``report.html`` and what that needs.

        Args:
            folder: a new or empty folder.
            context: what only the caller knows: ``inputs`` (name to path and SHA-256), ``command``, ``classes``.

        Raises:
            InvalidInputError: if the folder exists and is not empty.
            StoreError: if it cannot be written.
        """
        from poisontrace.report import save_case

        return save_case(self, Path(folder), context or {})
