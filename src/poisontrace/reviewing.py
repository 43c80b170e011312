"""Review: people confirm or clear samples that a case accuses, and the others are scored anew.

A decision is about one sample and final until another one is made: a confirmed sample is responsible, with score 1, a
cleared one is not, with score 0. The others of their campaign are judged by what the decisions teach: the posterior of
belonging to the responsible ones is worked out with the sides as traced and with the sides as decided, in the
coordinates that the case keeps, and a score moves by the difference. Where five or more were cleared, those without a
decision first leave the responsible side if they fall on the other one, until nothing moves, as in the search itself. A
sample is let go if the posterior now clearly speaks against it, by the decisions. A review accuses nobody: whom the
trace did not, only a person can confirm (decision 0015).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from poisontrace import filing, report, store
from poisontrace._errors import InvalidInputError, PoisontraceError, StoreError
from poisontrace._validate import check_file
from poisontrace.clustering import MAX_ROUNDS, posterior
from poisontrace.filing import Row
from poisontrace.spaces import N_FOLDS, Space
from poisontrace.tracing import DOUBTED

DECISIONS = ("confirmed", "cleared")
MAX_BYTES = 1 << 28
WAY_OUT = "Download the decisions from the report of this case."

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Review:
    """What a review changed.

    Attributes:
        summary: one sentence.
        verdict: of the case, "poison" or, where nobody is accused any more, "inconclusive".
        confirmed, cleared: all samples with that decision, of this review and those before, int64, ascending.
        let_go: samples without a decision that were found and that the decisions speak against, int64, ascending.
        poison: the responsible samples, int64, ascending.
    """

    summary: str
    verdict: str
    confirmed: Indices
    cleared: Indices
    let_go: Indices
    poison: Indices


@dataclass
class _Campaign:
    """A campaign as traced, where its label's samples lie, and what becomes of it."""

    label: int
    found: Indices
    indices: Indices  # (n,) samples that can be decided on
    x: NDArray[np.float32] | None  # (n, d)
    ids: list[str]

    def judge(
        self, confirmed: Indices, cleared: Indices, scores: NDArray[np.float32]
    ) -> tuple[Indices, Indices, NDArray[np.float32]]:
        """Return who is responsible now, who is let go, and the scores of all that can be decided on, (n,).

        Args:
            confirmed: samples with that decision, of this label or not, but for what is another campaign's.
            cleared: samples with that decision, of this label or not.
            scores: of each training sample, as traced.
        """
        confirmed, cleared = (np.intersect1d(self.indices, decided) for decided in (confirmed, cleared))
        is_found = np.isin(self.indices, self.found)
        is_fixed = np.isin(self.indices, np.union1d(confirmed, cleared))
        is_decided = (is_found | np.isin(self.indices, confirmed)) & ~np.isin(self.indices, cleared)
        is_let_go = np.zeros(len(self.indices), bool)
        new = scores[self.indices]
        if self.x is not None and is_fixed.any():
            space = Space(torch.from_numpy(self.x))
            now = self._settled(space, is_decided, is_fixed) if len(cleared) >= N_FOLDS else is_decided
            before, after = (posterior(space, torch.from_numpy(side)).numpy() for side in (is_found, now))
            is_let_go = is_decided & ~is_fixed & (after < DOUBTED) & ((before >= DOUBTED) | ~now)
            new = (new + (after - before)).clip(0, 1)
        is_poison = is_decided & ~is_let_go
        new = np.where(is_poison, np.maximum(new, 0.5), np.minimum(new, 0.49))
        new[np.isin(self.indices, confirmed)] = 1
        new[np.isin(self.indices, cleared)] = 0
        return self.indices[is_poison], self.indices[is_let_go], new

    @staticmethod
    def _settled(space: Space, is_decided: NDArray[np.bool_], is_fixed: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return the responsible side (n,) when those it holds without a decision may leave it, until nothing moves."""
        side = is_decided
        for _ in range(MAX_ROUNDS):
            if min(side.sum(), (~side).sum()) < N_FOLDS:
                break
            position = space.discriminate(torch.from_numpy(side)).numpy()
            is_near = position > (position[side].mean() + position[~side].mean()) / 2
            moved = is_decided & (is_fixed | is_near)
            if (moved == side).all():
                break
            side = moved
        return side


def review(case: str | Path, decisions: str | Path) -> Review:
    """Merge decisions into a case and score its samples anew; it is written again, or left as it is.

    Decisions of earlier reviews stay unless these are about the same samples. The result depends on the trace and on
    the decisions that stand, not on how they came about.

    Args:
        case: a case folder that accuses or suspects samples, or did before it was reviewed.
        decisions: the file that its report downloads.

    Raises:
        InvalidInputError: if the case accuses nobody, or the file is of another form or about another case.
        StoreError: if the case cannot be written.
    """
    folder, path = Path(case), Path(decisions)
    try:
        content, rows = filing.read_case(folder)
        suspects = filing.read_suspects(folder)
        report.render(folder)
        exhibits, arrays = (filing.read_arrays(folder, f"{name}.npz") for name in ("exhibits", "coordinates"))
        sections = filing.read_sections(folder)
    except StoreError as error:
        raise InvalidInputError(str(error)) from error  # the folder named is at fault
    try:
        done, files = _merged(path, content, rows, suspects, exhibits, arrays, sections, filing.read_scores(folder))
    except PoisontraceError:
        raise
    except Exception as error:  # a folder from elsewhere may hold anything
        reason = f"{type(error).__name__}: {error}"
        raise InvalidInputError(
            f"'case' must hold files as poisontrace wrote them (got {reason}). {filing.WAY_OUT}"
        ) from error
    store.write_together(folder, files)
    return done


def _merged(
    path: Path,
    content: dict[str, Any],
    rows: Mapping[int, Row],
    suspects: Mapping[int, Row],
    exhibits: Mapping[str, Any],
    arrays: dict[str, Any],
    sections: Mapping[str, Any],
    scores: NDArray[np.float32],
) -> tuple[Review, dict[str, bytes]]:
    """Return what a file of decisions changes, and the files of the case as they are then."""
    if rows and "found_0" not in arrays:
        content, arrays = _by_label(content, rows, {**arrays, "scores": scores})
    content, arrays = _with_suspects(content, suspects, arrays)
    campaigns = _campaigns(content, rows, arrays)
    scores = np.array(arrays["scores"], np.float32) if "scores" in arrays else scores
    if scores.shape != (content["n_samples"],):
        raise ValueError(f"scores of shape {scores.shape}")
    kept = {int(mark["index"]): mark for mark in content.get("decisions", [])}
    if not campaigns:
        raise InvalidInputError(
            f"'case' must be one that accuses samples (got the verdict {content.get('verdict')!r}). "
            "No sample was found responsible, so there is nothing to decide."
        )
    known = {
        index: filing.plain(name)
        for one in campaigns
        for index, name in zip(one.indices.tolist(), one.ids, strict=True)
    }
    made = _read_decisions(path, content, known)
    kept |= made

    confirmed, cleared = (
        np.array(sorted(index for index, mark in kept.items() if mark["decision"] == decision), np.int64)
        for decision in DECISIONS
    )
    now = []
    for one in campaigns:
        # What another campaign led to is confirmed as being of that one.
        of_others = [other.found for other in campaigns if other is not one]
        elsewhere = np.setdiff1d(np.concatenate([one.found[:0], *of_others]), one.found)
        now.append(one.judge(np.setdiff1d(confirmed, elsewhere), cleared, scores))
    poison = np.unique(np.concatenate([found for found, _, _ in now]))
    let_go = np.setdiff1d(np.concatenate([gone for _, gone, _ in now]), poison)
    for one in campaigns:
        scores[one.indices] = 0
    for one, (_, _, new) in zip(campaigns, now, strict=True):  # in the campaign that a sample belongs to most
        scores[one.indices] = np.maximum(scores[one.indices], new)
    label_of = {index: one.label for one in campaigns for index in one.indices.tolist()}
    n_before = content["n_poison"]
    n_made = [sum(mark["decision"] == decision for mark in made.values()) for decision in DECISIONS]
    summary = (
        f"{n_made[0]:,} confirmed, {n_made[1]:,} cleared; {len(let_go):,} more "
        f"{'is' if len(let_go) == 1 else 'are'} let go. Responsible samples: {n_before:,} before, {len(poison):,} now."
    )
    log = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "path": str(path),
        "sha256": store.sha256(path),
        "summary": summary,
        **{
            decision: [index for index, mark in sorted(made.items()) if mark["decision"] == decision]
            for decision in DECISIONS
        },
        "let_go": let_go,
        "n_poison_before": n_before,
        "n_poison": len(poison),
    }
    content = _changed(content, campaigns, [found for found, _, _ in now], poison, arrays)
    content |= {
        "decisions": [{"index": index, **mark} for index, mark in sorted(kept.items())],
        "reviews": [*content.get("reviews", []), log],
    }
    content["summary"] = filing.summarise(content)
    new_rows = {index: rows.get(index) or Row(known[index], label_of[index]) for index in poison.tolist()}
    text = filing.as_json(content)
    page = report.page(json.loads(text), scores, new_rows, suspects, exhibits, arrays, sections)
    files = {
        "coordinates.npz": store.npz(arrays),
        "scores.npy": store.npy(scores),
        "poison.csv": filing.poison_csv(new_rows, scores),
        "trace.json": text,
        "report.html": page.encode(),
    }
    return Review(summary, content["verdict"], confirmed, cleared, let_go, poison), files


def _by_label(
    content: Mapping[str, Any], rows: Mapping[int, Row], arrays: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a case that does not say which campaign its samples belong to with one campaign for each label."""
    campaigns = []
    for place, label in enumerate(sorted({row.label for row in rows.values()})):
        arrays[f"found_{place}"] = np.array(
            sorted(index for index, row in rows.items() if row.label == label), np.int64
        )
        events = [number for number, event in enumerate(content["events"]) if event["label"] == label]
        name = filing.class_name(content["classes"], label)
        campaigns.append({"label": label, "label_name": name, "events": events, "n_poison": len(rows)})
    return {**content, "campaigns": campaigns}, arrays


def _with_suspects(
    content: Mapping[str, Any], suspects: Mapping[int, Row], arrays: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a case with a campaign for the suspects of each label that has none, which led to nobody yet."""
    campaigns = list(content.get("campaigns") or [])
    for label in sorted({row.label for row in suspects.values()} - {campaign["label"] for campaign in campaigns}):
        place, of_label = len(campaigns), {index: row for index, row in suspects.items() if row.label == label}
        indices = np.array(sorted(of_label), np.int64)
        arrays |= {
            f"found_{place}": indices[:0],
            f"index_{place}": indices,
            f"ids_{place}": np.array([of_label[index].id for index in indices.tolist()], np.str_),
        }
        events = [
            number
            for number, event in enumerate(content["events"])
            if event["label"] == label and event.get("n_suspects")
        ]
        name = filing.class_name(content["classes"], label)
        campaigns.append({"label": label, "label_name": name, "events": events, "n_poison": 0})
    return {**content, "campaigns": campaigns}, arrays


def _campaigns(
    content: Mapping[str, Any], rows: Mapping[int, Row], arrays: Mapping[str, NDArray[Any]]
) -> list[_Campaign]:
    """Return the campaigns of a case as they were traced; without coordinates, only decided samples change."""
    campaigns = []
    for place, campaign in enumerate(content.get("campaigns") or []):
        found = arrays.get(f"found_{place}")
        if found is None:
            continue
        indices = arrays.get(f"index_{place}", found).astype(np.int64)
        names = arrays.get(f"ids_{place}")
        if names is None:
            names = np.array([rows[index].id if index in rows else str(index) for index in indices.tolist()])
        x = arrays.get(f"x_{place}")
        if names.shape != indices.shape or (x is not None and x.shape[:1] != indices.shape):
            raise ValueError("arrays of different lengths in coordinates.npz")
        if len(indices) and not 0 <= indices.min() <= indices.max() < content["n_samples"]:
            raise ValueError(f"sample {indices.max()} among {content['n_samples']}")
        if x is not None and not np.isfinite(x).all():
            raise ValueError("coordinates that are not finite")
        campaigns.append(_Campaign(int(campaign["label"]), found.astype(np.int64), indices, x, names.tolist()))
    return campaigns


def _read_decisions(path: Path, content: Mapping[str, Any], known: Mapping[int, str]) -> dict[int, dict[str, str]]:
    """Return the decisions of a file by index: ``decision`` and ``when``.

    Args:
        path: the file.
        content: of the case's ``trace.json``.
        known: ids of the samples that can be decided on, by index.
    """
    check_file(path, "decisions")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path.stat().st_size:,} bytes")
        file = json.loads(path.read_text("utf-8"))
        created, listed = file["case"]["created"], file["decisions"]
        made = {}
        for mark in listed:
            index, decision, when = mark["index"], mark["decision"], mark.get("when")
            if type(index) is not int or decision not in DECISIONS or not isinstance(when, str | None):
                raise ValueError(f"{json.dumps(mark)[:80]}, which is no decision")
            if index in made:
                raise ValueError(f"two decisions on sample {index}")
            if index not in known:
                raise ValueError(f"a decision on sample {index}, which has not the label of any event")
            if mark.get("id", known[index]) != known[index]:
                raise ValueError(f"the id {str(mark['id'])[:80]!r} for sample {index}, which is {known[index]!r}")
            made[index] = {"decision": decision, "when": when[:40] if when else "unknown"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise InvalidInputError(
            f"'decisions' must be a file of decisions on this case (got {reason} in {path.name!r}). {WAY_OUT}"
        ) from error
    if created != content["created"]:
        raise InvalidInputError(
            f"'decisions' must be about this case, made at {content['created']} (got {str(created)[:40]!r} in "
            f"{path.name!r}). {WAY_OUT}"
        )
    if not made:
        raise InvalidInputError(
            f"'decisions' must hold one decision at least (got none in {path.name!r}). Mark samples in the report."
        )
    return made


def _changed(
    content: Mapping[str, Any],
    campaigns: list[_Campaign],
    found: list[Indices],
    poison: Indices,
    arrays: Mapping[str, NDArray[Any]],
) -> dict[str, Any]:
    """Return the content of ``trace.json`` with other responsible samples."""
    of_campaign = [
        {**campaign, "n_poison": len(now)} for campaign, now in zip(content["campaigns"], found, strict=True)
    ]
    events = [dict(event) for event in content["events"]]
    for campaign in of_campaign:
        for event in campaign["events"]:
            n = campaign["n_poison"]
            events[event] |= {"n_poison": n} | (
                {"verdict": "poison"} if n else {"verdict": "inconclusive", "error": None}
            )
    changed = {
        **content,
        "verdict": "poison" if len(poison) else "inconclusive",
        "n_poison": len(poison),
        "events": events,
        "campaigns": of_campaign,
    }
    if "source" in arrays and "sources" in arrays:
        changed["sources"] = filing.roll_up(arrays["sources"], arrays["source"], poison)
    return changed
