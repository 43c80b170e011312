"""The case folder as a trace leaves it, and the one HTML page that explains it.

The page is built from the folder alone, so it can be made again at any time. Class names, ids, paths and warnings come
from the evidence and may be hostile: Jinja2 escapes all of them, and the page forbids itself the network and every
script but its own, which it names by its hash.
"""

import base64
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poisontrace import plots, store
from poisontrace._errors import StoreError
from poisontrace._types import Trace, suspects_of
from poisontrace.filing import (
    ADDED,
    AT_EVEN_ODDS,
    WAY_OUT,
    Row,
    about,
    as_json,
    chance_of_error,
    class_name,
    coordinates_of,
    describe,
    percent,
    plain,
    poison_csv,
    read_arrays,
    read_case,
    read_scores,
    read_sections,
    read_suspects,
    rows_of,
)

# What is said of each event, of the statistics in trace.json.
FACTS = {
    "separation": "apart, in std. deviations",
    "pixels": "apart in pixels, in std. deviations",
    "in_pixels": "from other labels in pixels, in std. deviations",
    "certainty": "unlike its label, in std. errors",
    "event_rise": "rise of the event’s loss",
    "control_rise": "rise of others’ loss",
    "margin": "margin (1 accuses)",
    "p_poison": "probability of poison",
}
N_THUMBNAILS = 24  # without scripts; with them all that are in the exhibits
N_COLUMNS = 12  # in which responsible rows differ most; as many as N_VALUES of them with each row
N_VALUES = 5
N_EVENTS = 12
N_MAPS = 6
THUMBNAIL, PICTURE = 96, 256  # pixels
SURE = 0.9  # score from which on a sample is counted as a sure one


def save_case(trace: Trace, folder: Path, context: Mapping[str, Any]) -> Path:
    """Write the case folder.

    ``trace.json``, ``poison.csv``, ``suspects.csv`` if there are any, ``scores.npy`` and ``report.html`` are for people
    and programs; ``exhibits.npz`` is what the report shows, ``coordinates.npz`` what its map and a review need.

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
        store.write_atomically(partial / "trace.json", as_json(describe(trace, context)))
        store.write_atomically(partial / "poison.csv", poison_csv(rows_of(trace, trace.poison), trace.scores))
        if len(suspects := suspects_of(trace.findings)):
            store.write_atomically(partial / "suspects.csv", poison_csv(rows_of(trace, suspects), trace.scores))
        np.save(partial / "scores.npy", np.asarray(trace.scores, np.float32))
        kinds = {name: np.int64 if name.endswith("_index") else np.float32 for name in trace.exhibits}
        arrays = {name: np.asarray(trace.exhibits[name], kind) for name, kind in kinds.items()}
        store.write_atomically(partial / "exhibits.npz", store.npz(arrays))
        store.write_atomically(partial / "coordinates.npz", store.npz(coordinates_of(trace)))
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
    text = as_json({**about(), **content})
    page = render(folder, {name: json.loads(text)}).encode()
    store.write_atomically(folder / f"{name}.json", text)
    store.write_atomically(folder / "report.html", page)


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
    sections = {**read_sections(folder), **(added or {})}
    scores = read_scores(folder)
    arrays = read_arrays(folder, "exhibits.npz"), read_arrays(folder, "coordinates.npz")
    wanted, got = (case.get("n_samples"), case.get("n_poison")), (len(scores), len(rows))
    if wanted != got:
        raise StoreError(
            f"'case' must hold scores.npy and poison.csv that fit its trace.json (got {got[0]} scores and {got[1]} "
            f"rows for {wanted[0]} samples and {wanted[1]} responsible ones). {WAY_OUT}"
        )
    try:
        return page(case, scores, rows, read_suspects(folder), *arrays, sections)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise StoreError(f"'case' must hold files as poisontrace wrote them (got {reason}). {WAY_OUT}") from error


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


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    digits = (
        0 if isinstance(value, int) or abs(value) >= 1000 else 1 if abs(value) >= 100 else 2 if abs(value) >= 10 else 3
    )
    return f"{value:,.{digits}f}".replace("-", "−")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def page(
    case: Mapping[str, Any],
    scores: NDArray[Any],
    rows: Mapping[int, Row],
    suspects: Mapping[int, Row],
    exhibits: Mapping[str, Any],
    coordinates: Mapping[str, Any],
    sections: Mapping[str, Any],
) -> str:
    """Build the report.

    Args:
        case: content of ``trace.json``.
        scores: of each training sample, (n,).
        rows: the responsible samples by their index.
        suspects: the suspects by theirs.
        exhibits: content of ``exhibits.npz``.
        coordinates: content of ``coordinates.npz``.
        sections: what was added later, by a key of ``ADDED``.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(percent=percent, number=_number, text=_text)
    files = resources.files("poisontrace")
    template = environment.from_string(files.joinpath("report.html.j2").read_text("utf-8"))
    script = files.joinpath("report.js").read_text("utf-8")
    kinds = "poison", "suspects", "benign"
    events, poison, suspected, benign = (np.nan_to_num(exhibits.get(name, [])) for name in ("events", *kinds))
    poison_index, suspects_index, benign_index = (np.array(exhibits.get(f"{name}_index", []), int) for name in kinds)
    is_held = np.isin(poison_index, list(rows))  # a review may have let some go
    poison, poison_index = poison[is_held], poison_index[is_held]
    is_image = any(len(x) and x.ndim == 4 and x.shape[1] in (1, 2, 3, 4) for x in (events, poison, suspected, benign))
    seconds = {name: value for name, value in case["seconds"].items() if value is not None}
    differences = [] if is_image or case.get("texts") else _differences(events, poison, benign)
    columns = dict(enumerate(case.get("columns") or []))
    shown = [row["column"] for row in differences[:N_VALUES]]
    names = [str(columns.get(column, column)) for column in shown]
    place_of = {index: place for place, index in enumerate(poison_index.tolist())}
    nearest = [[int(index) for index in row if int(index) in place_of] for row in exhibits.get("nearest_index", [])]
    text = template.render(
        case=case,
        kind={"poison": "Poison found", "inconclusive": "Inconclusive", "no-poison": "No poison found"}[
            case["verdict"]
        ],
        how_sure=_how_sure(case, scores, rows, sections),
        n_events_shown=N_EVENTS,
        facts=FACTS,
        campaigns=_campaigns(case),
        event_images=[_png(image, PICTURE) for image in events[:N_EVENTS]] if is_image else [],
        nearest=[
            [
                {
                    "index": index,
                    "score": float(scores[index]),
                    "src": _png(poison[place_of[index]], PICTURE) if is_image else None,
                    "text": dict(case.get("texts", {}).get("poison", [])).get(index),
                    "values": [float(poison[place_of[index]].reshape(-1)[column]) for column in shown],
                }
                for index in row
            ]
            for row in nearest
        ],
        shown_columns=names,
        event_values=[[float(event.reshape(-1)[column]) for column in shown] for event in events[:N_EVENTS]],
        poison_images=_gallery(poison, poison_index.tolist(), scores, rows) if is_image else [],
        benign_images=_gallery(benign, benign_index.tolist(), scores, {}) if is_image else [],
        is_smooth=is_image and max(x.shape[-1] for x in (events, poison, suspected, benign) if x.ndim == 4) > 96,
        doubts=list(dict.fromkeys(event["doubt"] for event in case["events"] if event.get("doubt"))),
        differences=differences,
        columns=columns,
        texts=case.get("texts") or {},
        suspect_images=_gallery(suspected, suspects_index.tolist(), scores, suspects) if is_image else [],
        data=plain(_data(case, scores, rows, suspects, exhibits, coordinates, is_image, shown, names)),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        added=[(name, *ADDED[name], sections[name]) for name in ADDED if name in sections],
        outdated={
            name
            for name in sections
            for review in case.get("reviews", [])
            if sections[name]["created"] < review["when"]
        },
        histogram=Markup(plots.histogram(scores, np.array(sorted(rows), np.int64))),
        maps=[
            Markup(plots.plane(coordinates[f"plane_{place}"], np.isin(coordinates[f"index_{place}"], list(rows))))
            for place in range(min(N_MAPS, len(case.get("campaigns") or [])))
            if f"plane_{place}" in coordinates
        ],
        max_points=plots.MAX_POINTS,
        trees=_trees(case),
        seconds=seconds,
        longest=max(seconds.values(), default=0) or 1,
        total=sum(seconds.values()),
    )
    # JSON may hold lone surrogates, which no file can.
    return text.encode("utf-8", "backslashreplace").decode()


def _how_sure(
    case: Mapping[str, Any], scores: NDArray[Any], rows: Mapping[int, Row], sections: Mapping[str, Any]
) -> list[str]:
    """Return sentences on what the verdict rests on, with its numbers."""
    error = chance_of_error(case)
    chance = [] if error is None else [f"The chance that this verdict is wrong is {percent(error)}, {AT_EVEN_ODDS}."]
    if not rows:
        return chance
    n_sure = int((scores[list(rows)] >= SURE).sum())
    said = [f"{n_sure:,} of the {len(rows):,} samples have a score of {SURE} or more."]
    found = [event["statistics"] for event in case["events"] if event["verdict"] == "poison"]
    for key, words in (
        ("separation", "They lie {} standard deviations from the other samples of their label"),
        ("certainty", "But for one word they read {} standard errors less like their label than others of it"),
        ("event_rise", "forgetting them raises the loss of the event’s label by {} nats"),
        ("control_rise", "and that of ordinary samples by {}"),
    ):
        values = [statistics[key] for statistics in found if statistics.get(key) is not None]
        if values:
            ends = dict.fromkeys(_number(float(f(values))) for f in (min, max))
            said.append(words.format(" to ".join(ends)))
    if len(said) > 1:
        said[1:] = ["; ".join(said[1:]).replace("; and", ", and") + "."]
        said[1] = said[1][0].upper() + said[1][1:]
    return chance + said + ([sections["verify"]["summary"]] if "verify" in sections else [])


def _data(
    case: Mapping[str, Any],
    scores: NDArray[Any],
    rows: Mapping[int, Row],
    suspects: Mapping[int, Row],
    exhibits: Mapping[str, Any],
    coordinates: Mapping[str, Any],
    is_image: bool,
    shown: Sequence[int],
    names: Sequence[str],
) -> dict[str, Any]:
    """Return what the page's script works on: every responsible sample, suspects, and those that a review let go."""
    listed = {**suspects, **rows}
    for place, campaign in enumerate(case.get("campaigns") or []):
        ids = dict(
            zip(
                coordinates.get(f"index_{place}", np.array([])).tolist(),
                coordinates.get(f"ids_{place}", np.array([])).tolist(),
                strict=False,
            )
        )
        for index in coordinates.get(f"found_{place}", np.array([])).tolist():
            if not 0 <= index < len(scores):
                raise ValueError(f"sample {index} among {len(scores)}")
            listed.setdefault(index, Row(str(ids.get(index, index)), campaign["label"]))
    inputs = {
        int(index): x
        for kind in ("suspects", "poison")
        for index, x in zip(exhibits.get(f"{kind}_index", []), exhibits.get(kind, []), strict=True)
    }
    texts = dict(case.get("texts", {}).get("poison", []))
    sources, source = coordinates.get("sources"), coordinates.get("source")
    marks = {mark["index"]: mark for mark in case.get("decisions", [])}
    return {
        "case": {"created": case["created"], "sha256": case["inputs"].get("data", {}).get("sha256")},
        "columns": names,
        "items": [
            {
                "index": index,
                "id": row.id,
                "label": class_name(case["classes"], row.label),
                "score": round(float(scores[index]), 4),
                "source": None if source is None or sources is None else str(sources[source[index]]),
                "is_responsible": index in rows,
                "is_suspect": index in suspects,
                "picture": _png(inputs[index], THUMBNAIL) if is_image and index in inputs else None,
                "text": texts.get(index),
                "values": [float(inputs[index].reshape(-1)[column]) for column in shown] if index in inputs else [],
                "mark": marks.get(index),
            }
            for index, row in sorted(listed.items())
        ],
    }


def _png(image: NDArray[Any], size: int) -> str:
    """Return one image, (channels, height, width), as a data URI of at most ``size`` pixels a side."""
    from PIL import Image

    image = np.nan_to_num(image)
    low, high = min(0.0, float(image.min())), max(1.0, float(image.max()))  # stretch only what leaves [0, 1]
    pixels = np.round((image - low) / (high - low) * 255).astype(np.uint8)
    picture = Image.fromarray(pixels[0] if len(pixels) < 3 else np.ascontiguousarray(pixels[:3].transpose(1, 2, 0)))
    picture.thumbnail((size, size))
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _gallery(
    images: NDArray[Any], indices: Sequence[int], scores: NDArray[Any], rows: Mapping[int, Row]
) -> list[dict[str, Any]]:
    pairs = sorted(zip(images, indices, strict=True), key=lambda pair: -float(scores[pair[1]]))
    return [
        {
            "src": _png(image, THUMBNAIL),
            "index": index,
            "score": float(scores[index]),
            "id": rows[index].id if index in rows else str(index),
        }
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
