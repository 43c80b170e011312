"""A case on disk: the folder that a trace leaves behind, and the one HTML page that explains it.

The page is built from the folder alone, so it can be made again at any time. Class names, ids, paths and warnings come
from the evidence and may be hostile: Jinja2 escapes all of them, and the page forbids itself scripts and the network.
"""

import base64
import csv
import io
import json
import math
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata, resources
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from poisontrace import store
from poisontrace._errors import StoreError
from poisontrace._types import Cluster, Trace

SCHEMA = 1
# What may be added to a case: the heading of its section, and the two models it compares.
ADDED = {
    "verify": (
        "Proof by retraining",
        {"without_found": "without the samples found", "control": "without as many others"},
    ),
    "repair": ("Repair", {"before": "as traced", "after": "repaired"}),
}
N_THUMBNAILS = 24
N_COLUMNS = 12
N_EVENTS = 12
COLUMNS = ["index", "id", "label", "score"]
WAY_OUT = "Name a folder that 'poisontrace trace' wrote."

T = TypeVar("T")


def save_case(trace: Trace, folder: Path, context: Mapping[str, Any]) -> Path:
    """Write the case folder: ``trace.json``, ``poison.csv``, ``scores.npy``, ``exhibits.npz`` and ``report.html``.

    Args:
        trace: what to write.
        folder: a new or empty folder.
        context: what only the caller knows, all optional: ``inputs`` (name to ``path`` and ``sha256``), ``command``,
            ``classes`` (a name for each label), ``truth`` (``precision`` and ``recall`` in [0, 1]), ``columns`` (names
            of the numbers in a row), ``texts`` (index and text of those shown: ``events``, ``poison``, ``benign``).

    Returns:
        The folder.

    Raises:
        InvalidInputError: if the folder exists and is not empty.
        StoreError: if it cannot be written.
    """
    with store.new_folder(folder, "out") as partial:
        text = json.dumps(_plain(_describe(trace, context)), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
        store.write_atomically(partial / "trace.json", text.encode())
        store.write_atomically(partial / "poison.csv", _poison_csv(trace).encode("utf-8", "backslashreplace"))
        np.save(partial / "scores.npy", np.asarray(trace.scores, np.float32))
        kinds = {name: np.int64 if name.endswith("_index") else np.float32 for name in trace.exhibits}
        arrays: dict[str, Any] = {name: np.asarray(trace.exhibits[name], kind) for name, kind in kinds.items()}
        np.savez_compressed(partial / "exhibits.npz", **arrays)
        store.write_atomically(partial / "report.html", render(partial).encode())
    return folder


def add(folder: Path, name: str, content: Mapping[str, Any]) -> None:
    """Write what was found out after the trace into its case folder, and the report again; the page is made first.

    Args:
        folder: a case.
        name: a key of ``ADDED``; the file is called so, with ``.json``.
        content: its content, without what every file of a case says of itself.

    Raises:
        StoreError: if the case is broken, or cannot be written.
    """
    added = _plain({**_about(), **content})
    page = render(folder, {name: added}).encode("utf-8", "surrogateescape")
    text = json.dumps(added, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    store.write_atomically(folder / f"{name}.json", text.encode())
    store.write_atomically(folder / "report.html", page)


def read_case(folder: Path) -> tuple[dict[str, Any], dict[int, str]]:
    """Read what a case found.

    Returns:
        the content of ``trace.json``, and the id of each responsible sample by its index.

    Raises:
        StoreError: if a file is missing, broken or of another schema.
    """
    if not folder.is_dir():
        raise StoreError(f"'case' must be an existing folder (got {str(folder)!r}). {WAY_OUT}")
    return _read_json(folder, "trace.json"), _read(folder, "poison.csv", _read_poison)


def render(folder: Path, added: Mapping[str, Any] | None = None) -> str:
    """Build the report from a case folder.

    Args:
        folder: holds ``trace.json``, ``poison.csv``, ``scores.npy`` and, for thumbnails, ``exhibits.npz``; and what was
            added later.
        added: what is about to be added, by name, in place of what the folder holds.

    Returns:
        One self-contained HTML page.

    Raises:
        StoreError: if a file is missing, broken or of another schema.
    """
    case, rows = read_case(folder)
    sections = {name: _read_json(folder, f"{name}.json") for name in ADDED if (folder / f"{name}.json").exists()}
    sections |= added or {}
    scores = _read(folder, "scores.npy", lambda path: np.load(path, allow_pickle=False).astype(np.float32).reshape(-1))
    exhibits: dict[str, NDArray[Any]] = {}
    if (folder / "exhibits.npz").exists():
        exhibits = _read(folder, "exhibits.npz", lambda path: dict(np.load(path, allow_pickle=False).items()))
    wanted, got = (case.get("n_samples"), case.get("n_poison")), (len(scores), len(rows))
    if wanted != got:
        raise StoreError(
            f"'case' must hold scores.npy and poison.csv that fit its trace.json (got {got[0]} scores and {got[1]} "
            f"rows for {wanted[0]} samples and {wanted[1]} responsible ones). {WAY_OUT}"
        )
    try:
        return _page(case, scores, rows, exhibits, sections)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise StoreError(f"'case' must hold files as poisontrace wrote them (got {reason}). {WAY_OUT}") from error


def _read(folder: Path, name: str, reader: Callable[[Path], T]) -> T:
    try:
        return reader(folder / name)
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


def _read_poison(path: Path) -> dict[int, str]:
    """Return the id of each responsible sample by its index."""
    with path.open(encoding="utf-8", newline="") as stream:
        table = csv.DictReader(stream)
        if table.fieldnames != COLUMNS:
            raise ValueError(f"columns {table.fieldnames}")
        return {int(row["index"]): row["id"] for row in table}


def _poison_csv(trace: Trace) -> str:
    lines = [",".join(COLUMNS)]
    for index in np.sort(trace.poison).tolist():
        name = str(index) if trace.ids is None else trace.ids[index]
        # A spreadsheet would run such a cell as a formula.
        if name.startswith(("=", "+", "-", "@", "\t", "\r")) and not re.fullmatch(r"[+-]?[0-9]+(\.[0-9]+)?", name):
            name = "'" + name
        # csv.writer leaves a carriage return unquoted when lines end in a plain newline, which would split the row.
        if re.search(r'[",\r\n]', name):
            name = '"' + name.replace('"', '""') + '"'
        lines.append(f"{index},{name},{int(trace.labels[index])},{trace.scores[index]:.4f}")
    return "\n".join(lines) + "\n"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def _about() -> dict[str, Any]:
    """Return what every JSON file of a case says of itself."""
    return {
        "schema": SCHEMA,
        "tool": {"name": "poisontrace", "version": _version("poisontrace")},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _describe(trace: Trace, context: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of ``trace.json``."""
    classes = list(context.get("classes") or [])
    highest = max([int(trace.labels.max(initial=-1)), *(finding.label for finding in trace.findings)])
    case = {
        **_about(),
        "verdict": trace.verdict,
        "summary": _summary(trace, classes),
        "n_samples": len(trace.labels),
        "n_classes": len(classes) or highest + 1,
        "n_poison": len(trace.poison),
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
                "statistics": finding.statistics,
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
    return case | {name: context[name] for name in ("columns", "texts", "truth") if context.get(name)}


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


def _summary(trace: Trace, classes: Sequence[str]) -> str:
    n, n_poison, n_events = len(trace.labels), len(trace.poison), len(trace.findings)
    n_tested = sum(cluster.losses is not None for cluster in trace.clusters)
    tested = f"{n_tested:,} cluster{'' if n_tested == 1 else 's'} of {n:,} training samples"
    findings = [finding for finding in trace.findings if finding.verdict == trace.verdict] or list(trace.findings)
    said = " or ".join(dict.fromkeys(f"“{class_name(classes, finding.label)}”" for finding in findings))
    sure = " to ".join(dict.fromkeys(_percent(f(x.probability for x in findings)) for f in (min, max)))
    share = "any of" if trace.verdict == "no-poison" else "all" if len(findings) == n_events else f"{len(findings)} of"
    which = "the event" if n_events == 1 else f"{share} {n_events} events"
    event = f"{which}, which the model labelled {said} with {sure} confidence"
    if trace.verdict == "poison":
        are = "is" if n_poison == 1 else "are"
        return f"{n_poison:,} of {n:,} training samples ({_percent(n_poison / n)}) {are} responsible for {event}."
    if trace.verdict == "inconclusive":
        return f"The evidence is too weak to call any sample responsible for {event}; {tested} were tested."
    return f"No cluster tested responsible for {event}; {tested} were tested."


def _plain(value: Any) -> Any:
    """Return ``value`` in types that strict JSON knows; numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {str(_plain(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    # File names may hold bytes that are no UTF-8, which Python keeps as lone surrogates and no file can.
    return str(value).encode("utf-8", "backslashreplace").decode()


def class_name(classes: Sequence[str], label: int) -> str:
    """Return what a label is called."""
    return str(classes[label]) if 0 <= label < len(classes) else f"label {label}"


def _campaigns(case: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return what is said of each campaign: its events, the label they got, and what they have in common."""
    if len(case["events"]) == 1:  # which is a campaign of its own
        return []
    said = []
    for campaign in case.get("campaigns") or []:
        *first, last = (event + 1 for event in campaign["events"])
        n = f"{campaign['n_poison']:,} sample{'' if campaign['n_poison'] == 1 else 's'}"
        if first:
            events = f"Events {', '.join(map(str, first))} and {last}"
            said.append((events, campaign["label_name"], f"belong together: they share {n}."))
        else:
            said.append((f"Event {last}", campaign["label_name"], f"stands by itself: it leads to {n}."))
    return said


def _percent(share: float | None) -> str:
    if share is None or not math.isfinite(share):
        return "–"
    if 0.9995 <= share < 1:
        return "over 99.9%"
    if 0 < share < 1e-5:
        return "under 0.001%"
    return f"{100 * share:.1f}%" if share == 0 or share >= 0.001 else f"{100 * share:.2g}%"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    digits = (
        0 if isinstance(value, int) or abs(value) >= 1000 else 1 if abs(value) >= 100 else 2 if abs(value) >= 10 else 3
    )
    return f"{value:,.{digits}f}".replace("-", "−")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _page(
    case: dict[str, Any],
    scores: NDArray[Any],
    rows: Mapping[int, str],
    exhibits: Mapping[str, Any],
    sections: Mapping[str, Any],
) -> str:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(percent=_percent, number=_number, text=_text)
    template = environment.from_string(resources.files("poisontrace").joinpath("report.html.j2").read_text("utf-8"))
    events, poison, benign = (np.nan_to_num(exhibits.get(name, [])) for name in ("events", "poison", "benign"))
    is_image = any(len(x) and x.ndim == 4 and x.shape[1] in (1, 2, 3, 4) for x in (events, poison, benign))
    seconds = {name: value for name, value in case["seconds"].items() if name != "total" and value is not None}
    poison_index, benign_index = (exhibits.get(f"{name}_index", []) for name in ("poison", "benign"))
    return template.render(
        case=case,
        kind={"poison": "Poison found", "inconclusive": "Inconclusive", "no-poison": "No poison found"}[
            case["verdict"]
        ],
        n_events_shown=N_EVENTS,
        campaigns=_campaigns(case),
        event_images=[_png(image) for image in events[:N_EVENTS]] if is_image else [],
        poison_images=_gallery(poison, poison_index, scores, rows) if is_image else [],
        benign_images=_gallery(benign, benign_index, scores, {}) if is_image else [],
        is_smooth=is_image and max(x.shape[-1] for x in (events, poison, benign) if x.ndim == 4) > 96,
        differences=[] if is_image or case.get("texts") else _differences(events, poison, benign),
        columns=dict(enumerate(case.get("columns") or [])),
        texts=case.get("texts") or {},
        added=[(name, *ADDED[name], sections[name]) for name in ADDED if name in sections],
        histogram=Markup(_histogram(scores, np.array(sorted(rows), np.int64))),
        trees=_trees(case),
        seconds=seconds,
        longest=max(seconds.values(), default=0) or 1,
        total=case["seconds"].get("total") or sum(seconds.values()),
    )


def _png(image: NDArray[Any]) -> str:
    """Return one image, (channels, height, width), as a data URI."""
    from PIL import Image

    low, high = min(0.0, float(image.min())), max(1.0, float(image.max()))  # stretch only what leaves [0, 1]
    pixels = np.round((image - low) / (high - low) * 255).astype(np.uint8)
    picture = Image.fromarray(pixels[0] if len(pixels) < 3 else np.ascontiguousarray(pixels[:3].transpose(1, 2, 0)))
    picture.thumbnail((256, 256))
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _gallery(
    images: NDArray[Any], indices: Sequence[int], scores: NDArray[Any], ids: Mapping[int, str]
) -> list[dict[str, Any]]:
    pairs = sorted(zip(images, map(int, indices), strict=True), key=lambda pair: -float(scores[pair[1]]))
    return [
        {"src": _png(image), "index": index, "score": float(scores[index]), "id": ids.get(index, str(index))}
        for image, index in pairs[:N_THUMBNAILS]
    ]


def _differences(events: NDArray[Any], poison: NDArray[Any], benign: NDArray[Any]) -> list[dict[str, Any]]:
    """Return the columns in which responsible samples differ most from benign ones, in standard deviations."""
    if not len(events) or not len(poison) or not len(benign):
        return []
    event, p, b = (x.reshape(len(x), -1).astype(np.float64) for x in (events, poison, benign))
    difference = p.mean(0) - b.mean(0)
    effect = difference / np.maximum(np.sqrt((p.var(0) + b.var(0)) / 2), 1e-9)
    return [
        {
            "column": column,
            "event": float(event[0, column]),
            "poison": float(p[:, column].mean()),
            "benign": float(b[:, column].mean()),
            "effect": float(effect[column]),
        }
        for column in np.argsort(-np.abs(effect), kind="stable")[:N_COLUMNS].tolist()
        if difference[column]
    ]


def _trees(case: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    """Return each event's tree, depth first; every node knows its depth, its labels by share and its two bars."""
    roots: list[list[dict[str, Any]]] = [[] for _ in case["events"]]
    nodes: list[dict[str, Any]] = []
    for cluster in case["clusters"]:
        counts = sorted(cluster["labels"].items(), key=lambda item: (-item[1], int(item[0])))
        labels = [(class_name(case["classes"], int(label)), count / cluster["n"]) for label, count in counts]
        node = {**cluster, "children": [], "labels": labels, "bars": []}
        if cluster["event_before"] is not None or cluster["event_after"] is not None:
            for name in ("event", "control"):
                before, after = cluster[f"{name}_before"], cluster[f"{name}_after"]
                rise = None if before is None or after is None else after - before
                node["bars"].append({"name": name, "before": before, "after": after, "rise": rise})
        if cluster["parent"] is not None and not 0 <= cluster["parent"] < len(nodes):
            raise ValueError(f"cluster {cluster['id']} before its parent {cluster['parent']}")
        parent = None if cluster["parent"] is None else nodes[cluster["parent"]]
        node["depth"] = parent["depth"] + 1 if parent else 0
        (parent["children"] if parent else roots[cluster["event"]]).append(node)
        nodes.append(node)
    bars = [bar for node in nodes for bar in node["bars"]]
    # Rises span orders of magnitude; log1p keeps a rise of 0.3 visible beside one of 30 and leaves zero at zero. A bar
    # is full at 3 nats or more, so that noise in a case without poison does not look like a finding.
    lengths = [math.log1p(max(0.0, bar["rise"] or 0.0)) for bar in bars]
    for bar, length in zip(bars, lengths, strict=True):
        bar["width"] = round(100 * length / max(math.log1p(3), *lengths), 1)
    return [_depth_first(tree) for tree in roots]


def _depth_first(roots: list[dict[str, Any]]) -> list[dict[str, Any]]:
    # A loop, because a lopsided tree can be deeper than Python's stack.
    order, waiting = [], roots[::-1]
    while waiting:
        order.append(waiting.pop())
        waiting += order[-1]["children"][::-1]
    return order


def _histogram(scores: NDArray[Any], poison: NDArray[np.int64]) -> str:
    """Return the distribution of scores as inline SVG, the same bytes for the same scores."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # the reader's own style must not change the evidence
        matplotlib.rcParams.update({"svg.hashsalt": "poisontrace", "svg.fonttype": "none", "font.size": 8})
        figure = Figure(figsize=(4.6, 2.2), layout="constrained")
        axes = figure.subplots()
        is_poison = np.zeros(len(scores), bool)
        is_poison[poison] = True
        # These two colours are placeholders: the page's style sheet decides, for light and for dark.
        axes.hist(
            [scores[~is_poison], scores[is_poison]],
            bins=np.linspace(0, 1, 26).tolist(),
            color=["#010203", "#010204"],
            label=["other samples", "responsible"],
        )
        axes.set(yscale="log", xlim=(0, 1), ylim=(0.6, None), xlabel="confidence that a sample is responsible")
        axes.set_ylabel("samples (log scale)")
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
        if is_poison.any():
            axes.legend(frameon=False, loc="upper center")
        stream = io.StringIO()
        figure.savefig(
            stream, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :].replace("#010203", "var(--control)").replace("#010204", "var(--event)")
    return svg.replace("#000000", "currentColor")
