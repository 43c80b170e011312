"""The files of a case: what stands in them, and how they are read; whatever is broken is refused in one sentence."""

import csv
import json
import math
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from poisontrace._errors import StoreError
from poisontrace._types import Cluster, Trace, suspects_of
from poisontrace._validate import check_archive

SCHEMA = 1
# What may be added to a case: the heading of its section, and the two models it compares.
ADDED = {
    "verify": (
        "Proof by retraining",
        {"without_found": "without the samples found", "control": "without as many others"},
    ),
    "repair": ("Repair", {"before": "as traced", "after": "repaired"}),
}
N_SOURCES = 100
COLUMNS = ["index", "id", "label", "score"]
# How the cells begin that get a quote before them, for they might be run, or be taken for quoted ones; and those then.
# A spreadsheet may also part cells at semicolons and tabs.
_START, _FORMULA = r"(^|[;\t])", r"(?=[=+\-@\t\r'])"
_NUMBER = r"[+-]?[0-9]+(\.[0-9]+)?"
AT_EVEN_ODDS = "if poison was as likely as not beforehand"  # what a chance of error rests on
WAY_OUT = "Name a folder that 'poisontrace trace' wrote."

T = TypeVar("T")


class Row(NamedTuple):
    """A line of ``poison.csv``, whose index is known."""

    id: str
    label: int


def read_case(folder: Path) -> tuple[dict[str, Any], dict[int, Row]]:
    """Read what a case found.

    Returns:
        the content of ``trace.json``, and the responsible samples by their index.

    Raises:
        StoreError: if a file is missing, broken or of another schema.
    """
    if not folder.is_dir():
        raise StoreError(f"'case' must be an existing folder (got {str(folder)!r}). {WAY_OUT}")
    return _read_json(folder, "trace.json"), _read(folder, "poison.csv", _read_poison)


def read_suspects(folder: Path) -> dict[int, Row]:
    """Read the suspects of a case by their index; none if it has none.

    Raises:
        StoreError: if the file is broken.
    """
    return _read(folder, "suspects.csv", _read_poison) if (folder / "suspects.csv").exists() else {}


def read_sections(folder: Path) -> dict[str, Any]:
    """Read what was added to a case, by a key of ``ADDED``.

    Raises:
        StoreError: if a file is broken or of another schema.
    """
    return {name: _read_json(folder, f"{name}.json") for name in ADDED if (folder / f"{name}.json").exists()}


def read_arrays(folder: Path, name: str) -> dict[str, NDArray[Any]]:
    """Read ``exhibits.npz`` or ``coordinates.npz`` of a case; nothing if it has none.

    Raises:
        StoreError: if it is broken.
    """
    if not (folder / name).exists():
        return {}

    def unpacked(path: Path) -> dict[str, NDArray[Any]]:
        check_archive(path)
        return dict(np.load(path, allow_pickle=False).items())

    return _read(folder, name, unpacked)


def read_scores(folder: Path) -> NDArray[np.float32]:
    """Read the score of each training sample, (n,).

    Raises:
        StoreError: if the file is missing or broken.
    """
    return _read(folder, "scores.npy", lambda path: np.load(path, allow_pickle=False).astype(np.float32).reshape(-1))


def _read(folder: Path, name: str, reader: Callable[[Path], T]) -> T:
    path = folder / name
    try:
        if path.exists() and not path.is_file():  # a device would be read for ever, a pipe waited for
            raise ValueError("no plain file")
        return reader(path)
    except Exception as error:
        # Whatever a folder from elsewhere holds, the reader gets one sentence instead of a traceback.
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error) or type(error).__name__
        raise StoreError(f"'case' must be a folder with a readable {name} (got {reason}). {WAY_OUT}") from error


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    content = _read(folder, name, lambda path: json.loads(path.read_text("utf-8")))
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else type(content).__name__
        raise StoreError(
            f"'case' must hold a {name} of schema {SCHEMA} (got {found!r}). Make it again with this version."
        )
    return content


def _read_poison(path: Path) -> dict[int, Row]:
    with path.open(encoding="utf-8", newline="") as stream:
        table = csv.DictReader(stream)
        if table.fieldnames != COLUMNS:
            raise ValueError(f"columns {table.fieldnames}")
        return {
            int(row["index"]): Row(re.sub(f"{_START}'{_FORMULA}", r"\1", row["id"]), int(row["label"])) for row in table
        }


def rows_of(trace: Trace, indices: NDArray[np.int64]) -> dict[int, Row]:
    """Return the lines of some training samples by their index."""
    names = map(str, indices.tolist()) if trace.ids is None else (trace.ids[index] for index in indices)
    return dict(zip(indices.tolist(), map(Row, names, trace.labels[indices].tolist()), strict=True))


def poison_csv(rows: Mapping[int, Row], scores: NDArray[np.float32]) -> bytes:
    """Return the content of ``poison.csv``, or of ``suspects.csv``.

    Args:
        rows: the responsible samples, or the suspects, by their index.
        scores: of each training sample, (n,).
    """
    lines = [",".join(COLUMNS)]
    for index in sorted(rows):
        name = rows[index].id
        # A spreadsheet would run such a cell as a formula.
        if not re.fullmatch(_NUMBER, name):
            name = re.sub(f"{_START}{_FORMULA}", r"\1'", name)
        # csv.writer leaves a carriage return unquoted when lines end in a plain newline, which would split the row.
        if re.search(r'[",\r\n]', name):
            name = '"' + name.replace('"', '""') + '"'
        lines.append(f"{index},{name},{rows[index].label},{scores[index]:.4f}")
    return ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace")


def coordinates_of(trace: Trace) -> dict[str, Any]:
    """Return the content of ``coordinates.npz``: what each campaign led to, and where the samples of its label lie."""
    arrays: dict[str, Any] = {"scores": np.asarray(trace.scores, np.float32)}
    for place, campaign in enumerate(trace.campaigns):
        arrays[f"found_{place}"] = campaign.poison
    for place, seen in enumerate(trace.coordinates):
        arrays |= {f"index_{place}": seen.indices, f"x_{place}": seen.x, f"plane_{place}": seen.plane}
        if trace.ids is not None:
            arrays[f"ids_{place}"] = np.array([trace.ids[index] for index in seen.indices.tolist()], np.str_)
    if trace.sources is not None:
        arrays["sources"], arrays["source"] = np.unique(np.array(trace.sources, np.str_), return_inverse=True)
    return arrays


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def about() -> dict[str, Any]:
    """Return what every JSON file of a case says of itself."""
    return {
        "schema": SCHEMA,
        "tool": {"name": "poisontrace", "version": _version("poisontrace")},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def describe(trace: Trace, context: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of ``trace.json``."""
    classes = list(context.get("classes") or [])
    highest = max([int(trace.labels.max(initial=-1)), *(finding.label for finding in trace.findings)])
    case = {
        **about(),
        "verdict": trace.verdict,
        "n_samples": len(trace.labels),
        "n_classes": len(classes) or highest + 1,
        "n_poison": len(trace.poison),
        "n_suspects": len(suspects_of(trace.findings)),
        "rule": trace.rule,
        "seed": trace.seed,
        "device": trace.device,
        "config": trace.config,
        "versions": {
            "python": platform.python_version(),
            **{package: _version(package) for package in ("torch", "numpy", "poisontrace")},
            "platform": platform.platform(),
        },
        "events": [
            {
                "label": finding.label,
                "label_name": class_name(classes, finding.label),
                "probability": finding.probability,
                "verdict": finding.verdict,
                "n_poison": len(finding.poison),
                "error": finding.error,
                "statistics": finding.statistics,
                "n_suspects": len(finding.suspects),
                "doubt": finding.doubt,
            }
            for finding in trace.findings
        ],
        "campaigns": [
            {
                "label": campaign.label,
                "label_name": class_name(classes, campaign.label),
                "events": campaign.events,
                "n_poison": len(campaign.poison),
            }
            for campaign in trace.campaigns
        ],
        "clusters": [_describe_cluster(cluster, trace.labels) for cluster in trace.clusters],
        "seconds": trace.seconds,
        "warnings": trace.warnings,
        "inputs": context.get("inputs") or {},
        "command": context.get("command"),
        "classes": classes,
    }
    if trace.sources is not None:
        case["sources"] = roll_up(*np.unique(np.array(trace.sources), return_inverse=True), trace.poison)
    optional = {name: context[name] for name in ("columns", "texts", "truth") if context.get(name)}
    return {**case, "summary": summarise(case), **optional}


def roll_up(names: NDArray[Any], source: NDArray[Any], poison: NDArray[np.int64]) -> dict[str, Any]:
    """Return how many samples, and how many responsible ones, came from each source, the guiltiest first.

    Args:
        names: of the sources, (k,).
        source: of each training sample, its position in ``names``, (n,).
        poison: indices of the responsible samples.
    """
    n, n_poison = (np.bincount(source[rows], minlength=len(names)) for rows in (slice(None), poison))
    order = np.lexsort((n, -n_poison))[:N_SOURCES].tolist()
    return {
        "n_sources": len(names),
        "largest": [{"source": str(names[k]), "n": int(n[k]), "n_poison": int(n_poison[k])} for k in order],
    }


def _describe_cluster(cluster: Cluster, labels: NDArray[np.int64]) -> dict[str, Any]:
    values, counts = np.unique(labels[cluster.indices], return_counts=True)
    losses = ("event_before", "event_after", "control_before", "control_after")
    return {
        "id": cluster.id,
        "parent": cluster.parent,
        "event": cluster.event,
        "n": len(cluster.indices),
        "labels": dict(zip(values.tolist(), counts.tolist(), strict=True)),
        "decision": cluster.decision,
        "reason": cluster.reason,
        **{name: getattr(cluster.losses, name) if cluster.losses else None for name in losses},
    }


def summarise(case: Mapping[str, Any]) -> str:
    """Return the verdict of a case in one sentence.

    Args:
        case: content of ``trace.json``, but for the sentence.
    """
    n, n_poison, n_events = case["n_samples"], case["n_poison"], len(case["events"])
    n_tested = sum(cluster["event_before"] is not None for cluster in case["clusters"])
    tested = f"{n_tested:,} cluster{'' if n_tested == 1 else 's'} of {n:,} training samples"
    events = [event for event in case["events"] if event["verdict"] == case["verdict"]] or list(case["events"])
    said = " or ".join(dict.fromkeys(f"“{event['label_name']}”" for event in events))
    sure = " to ".join(dict.fromkeys(percent(f(event["probability"] for event in events)) for f in (min, max)))
    share = "any of" if case["verdict"] == "no-poison" else "all" if len(events) == n_events else f"{len(events)} of"
    which = "the event" if n_events == 1 else f"{share} {n_events} events"
    event = f"{which}, which the model labelled {said} with {sure} confidence"
    if case["verdict"] == "poison":
        are = "is" if n_poison == 1 else "are"
        return f"{n_poison:,} of {n:,} training samples ({percent(n_poison / n)}) {are} responsible for {event}."
    if case["verdict"] == "inconclusive" and case.get("reviews"):
        return f"Reviewers cleared every sample that the trace held responsible for {event}."
    if case["verdict"] == "inconclusive":
        said = f"The evidence is too weak to call any sample responsible for {event}; {tested} were tested"
        if not (n_suspects := case.get("n_suspects")):
            return f"{said}."
        return f"{said}. Forgetting {n_suspects:,} samples undoes it, but they may be ordinary."
    return f"No cluster tested responsible for {event}; {tested} were tested."


def chance_of_error(case: Mapping[str, Any]) -> float | None:
    """Return the probability that the verdict of a case is wrong, in [0, 1]; None if it is not known.

    That some samples are poison is as sure as the surest event says; that none are, as the least sure one.

    Args:
        case: content of ``trace.json``.
    """
    errors = [event.get("error") for event in case["events"] if event["verdict"] == case["verdict"]]
    known = [float(error) for error in errors if error is not None]
    if not known:
        return None
    return max(known) if case["verdict"] == "no-poison" else min(known)


def as_json(content: Any) -> bytes:
    """Return strict JSON as the files of a case hold it."""
    return (json.dumps(plain(content), indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def plain(value: Any) -> Any:
    """Return ``value`` in types that strict JSON knows; numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    # File names may hold bytes that are no UTF-8, which Python keeps as lone surrogates and no file can.
    return str(value).encode("utf-8", "backslashreplace").decode()


def class_name(classes: Sequence[str], label: int) -> str:
    """Return what a label is called."""
    return str(classes[label]) if 0 <= label < len(classes) else f"label {label}"


def percent(share: float | None) -> str:
    """Return a share in percent, to the digits that say something."""
    if share is None or not math.isfinite(share):
        return "–"
    if 0.9995 <= share < 1:
        return "over 99.9%"
    if 0 < share < 1e-5:
        return "under 0.001%"
    return f"{100 * share:.1f}%" if share == 0 or share >= 0.001 else f"{100 * share:.2g}%"
