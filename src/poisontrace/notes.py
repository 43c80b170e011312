"""What was found out about a pass, written down, so that it is not worked out again.

What the search for one event came to spares a trace that was cut short that search; what kinds a label holds spares
every later event of that label. A note belongs to a pass in a store, and is named after all else that its content
depends on: what it is about, the options and the source of this package.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from poisontrace import store
from poisontrace._errors import InvalidInputError
from poisontrace._record import Tree
from poisontrace._types import Cluster, Decision, Finding, Losses, Verdict
from poisontrace._validate import read_npz

Form = tuple[tuple[int, ...], np.dtype[Any]]  # shape and type of an array


@dataclass(frozen=True)
class Notes:
    """The notes of one pass.

    Attributes:
        folder: of the pass; None keeps what is known of a label for this trace only, and nothing of events.
        n: training samples.
        options: what all notes of a trace depend on.
    """

    folder: Path | None
    n: int
    options: str
    _kept: dict[str, dict[str, NDArray[Any]]] = field(default_factory=dict, repr=False)  # where there is no folder

    def keep(self, topic: str, about: bytes, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write arrays down.

        Args:
            topic: what they say, one word.
            about: of what they say it.
            arrays: by name.

        Raises:
            StoreError: if that fails.
        """
        name = self._name(topic, about)
        if self.folder is None:
            self._kept[name] = dict(arrays)
            return
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)  # type: ignore[arg-type]  # NumPy's stub takes them for an option
        store.write_atomically(self.folder / name, content.getvalue())

    def known(self, topic: str, about: bytes, required: Mapping[str, Form | None]) -> dict[str, NDArray[Any]] | None:
        """Return arrays that were kept; None if there are none, or not all that are required, in the form required.

        Args:
            topic: what they say, one word.
            about: of what they say it.
            required: names, and shape and type of each; None for any.
        """
        arrays = self._written(self._name(topic, about), tuple(required))
        forms = ((name, form) for name, form in required.items() if form is not None)
        if arrays is None or any((arrays[name].shape, arrays[name].dtype) != form for name, form in forms):
            return None
        return arrays

    def _written(self, name: str, required: tuple[str, ...]) -> dict[str, NDArray[Any]] | None:
        if self.folder is None:
            return self._kept.get(name)
        if not (self.folder / name).is_file():
            return None
        try:
            return read_npz(self.folder / name, "store", required=required)
        except InvalidInputError:
            return None  # unusable: worked out again

    def _name(self, topic: str, about: bytes) -> str:
        options = f"{self.n} {self.options} {_source_digest()}".encode()
        return f"{topic}-{hashlib.sha256(hashlib.sha256(options).digest() + about).hexdigest()[:32]}.npz"

    def write(self, event: bytes, tree: Tree, finding: Finding, scores: NDArray[np.float32]) -> None:
        """Write down what an event led to.

        Args:
            event: its input and label.
            tree: the clusters.
            finding: what they came to.
            scores: (n,).

        Raises:
            StoreError: if that fails.
        """
        if self.folder is None:
            return
        # Clusters are long runs of positions: steps between them take hardly any room.
        arrays = {f"cluster{i}": _steps(cluster.indices) for i, cluster in enumerate(tree.clusters)}
        facts = {
            "clusters": [
                {
                    "parent": None if cluster.parent is None else cluster.parent - tree.clusters[0].id,
                    "losses": None if cluster.losses is None else asdict(cluster.losses),
                    "decision": cluster.decision,
                    "reason": cluster.reason,
                }
                for cluster in tree.clusters
            ],
            "label": finding.label,
            "probability": finding.probability,
            "verdict": finding.verdict,
            "statistics": dict(finding.statistics),
            "doubt": finding.doubt,
        }
        facts_of_event = np.frombuffer(json.dumps(facts).encode(), np.uint8)
        found = {"poison": _steps(finding.poison), "suspects": _steps(finding.suspects)}
        self.keep("event", event, {"facts": facts_of_event, "scores": scores, **found, **arrays})

    def read(self, event: bytes, tree: Tree) -> tuple[Finding, NDArray[np.float32]] | None:
        """Return what an event led to and fill its tree; None if that is not known, or the note is not sound.

        Args:
            event: its input and label.
            tree: empty.
        """
        form = (self.n,), np.dtype(np.float32)
        arrays = self.known("event", event, {"facts": None, "poison": None, "suspects": None, "scores": form})
        if arrays is None:
            return None
        try:
            facts = json.loads(arrays["facts"].tobytes())
            decisions = {fact["decision"] for fact in facts["clusters"]}
            if facts["verdict"] not in get_args(Verdict) or not decisions <= set(get_args(Decision)):
                raise ValueError("no verdict or decision")
            clusters = [(fact, self._positions(arrays[f"cluster{i}"])) for i, fact in enumerate(facts["clusters"])]
            first = tree.next_id
            found = [
                Cluster(
                    id=first + i,
                    parent=None if fact["parent"] is None else first + int(fact["parent"]),
                    event=tree.event,
                    indices=indices,
                    losses=None if fact["losses"] is None else Losses(**fact["losses"]),
                    decision=fact["decision"],
                    reason=str(fact["reason"]),
                )
                for i, (fact, indices) in enumerate(clusters)
            ]
            finding = Finding(
                int(facts["label"]),
                float(facts["probability"]),
                facts["verdict"],
                self._positions(arrays["poison"]),
                {str(name): float(value) for name, value in facts["statistics"].items()},
                self._positions(arrays["suspects"]),
                str(facts["doubt"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return None  # unusable: the search is done again
        tree.clusters += found
        return finding, arrays["scores"]

    def _positions(self, steps: NDArray[Any]) -> NDArray[np.int64]:
        indices = np.cumsum(steps.astype(np.int64))
        is_sound = indices.ndim == 1 and (steps[:1] >= 0).all() and (steps[1:] > 0).all() and (indices < self.n).all()
        if not is_sound:
            raise ValueError("positions of other samples")
        return indices


def _steps(indices: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.diff(indices, prepend=0)


@cache
def _source_digest() -> str:
    """Return the SHA-256 of this package's source: another version may come to another result."""
    return digest_of_files(sorted(Path(__file__).parent.rglob("*.py")))


def digest_of_files(paths: Iterable[Path]) -> str:
    """Return one SHA-256 of the content of some files."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
