"""The case folder and its page: what they hold, what they refuse, and what hostile evidence cannot do to them."""

import base64
import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import CONTEXT, HOSTILE, added, make_empty_trace, make_suspecting_trace, make_trace, read_csv

from poisontrace import _types as types
from poisontrace._errors import InvalidInputError, StoreError
from poisontrace.report import add, render, save_case

OURS = ["<script", "<script"]


def markup(page: str) -> list[str]:
    """Return what in a page could run, load or send something: its data, its script and nothing else."""
    return re.findall(r"<(?:script|iframe|object|embed|base|link(?! rel=\"icon\"))\b|@import|<[^>]*\son\w+=", page)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (2, 8, 8), (4, 8, 8), (12,), (6, 5)], ids=str)
def test_render_equals_the_saved_page(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """A page rendered again from the folder is the page that was saved, for images, rows and other arrays."""
    folder = save_case(make_trace(shape), tmp_path / "case", CONTEXT)
    assert render(folder) == (folder / "report.html").read_text("utf-8")
    shutil.move(folder, tmp_path / "moved")
    assert render(tmp_path / "moved") == (tmp_path / "moved" / "report.html").read_text("utf-8")


def test_hostile_text_is_escaped(tmp_path: Path) -> None:
    """Class names, ids, paths, hashes, warnings, settings, reasons and the command cannot bring in markup."""
    trace = make_trace(
        ids=tuple(HOSTILE for _ in range(120)),
        warnings=(HOSTILE,),
        config={HOSTILE: HOSTILE},
        device=HOSTILE,
        rule=HOSTILE,
        seconds={HOSTILE: 1.0},
    )
    trace = replace(
        trace,
        clusters=tuple(replace(cluster, reason=HOSTILE) for cluster in trace.clusters),
        findings=(replace(trace.findings[0], statistics={HOSTILE: 1.0}),),
    )
    context = {
        "inputs": {HOSTILE: {"path": HOSTILE, "sha256": HOSTILE}},
        "command": HOSTILE,
        "classes": [HOSTILE] * 3,
    }
    page = render(save_case(trace, tmp_path / "case", context))
    assert markup(page) == OURS
    assert page.count("&lt;script&gt;") > 20


def test_text_that_no_file_can_hold_is_shown_escaped(tmp_path: Path) -> None:
    """JSON may name lone surrogates."""
    case = save_case(make_trace(), tmp_path / "case", CONTEXT)
    path = case / "trace.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"warnings": ["odd \ud800 and \udc80"]}))

    assert r"odd \ud800 and \udc80" in render(case)


def test_what_is_found_out_later_is_shown(tmp_path: Path) -> None:
    """A proof and a repair have a section each, which the page keeps when it is made again; other text is as before."""
    case = save_case(make_trace(), tmp_path / "case", CONTEXT)
    before = render(case)

    add(case, "verify", added(summary="Proved for <all>."))
    faint = {"label": 1, "label_name": "dog", "probability": 1e-30}
    repaired = added(summary="Repaired.")
    add(case, "repair", {**repaired, "events": [{**repaired["events"][0], "after": faint}]})

    page = (case / "report.html").read_text()
    assert page == render(case)
    assert "Proved for &lt;all&gt;." in page and "Repaired." in page
    assert "50.0% as traced, 50.0% repaired" in page and "12.5%" in page
    assert "under 0.001%" in page
    for name, heading in (("verify", "Proof by retraining"), ("repair", "Repair")):
        assert f'<a href="#{name}">{heading}</a>' in page and f'<h2 id="h-{name}">{heading}</h2>' in page
        assert f'id="{name}"' not in before
        assert json.loads((case / f"{name}.json").read_text())["schema"] == 1


def test_hostile_additions_are_escaped(tmp_path: Path) -> None:
    """Names of labels and paths come from the evidence."""
    case = save_case(make_trace(), tmp_path / "case", CONTEXT)

    add(case, "verify", added(HOSTILE))
    add(case, "repair", added(HOSTILE))

    page = (case / "report.html").read_text()
    assert markup(page) == OURS and page.count("&lt;script&gt;") > 12


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": 2}', '{"schema": 1}'])
def test_a_broken_addition_is_refused(tmp_path: Path, content: str) -> None:
    """By name, as the other files of a case are; and one that does not fit the page is never written."""
    case = save_case(make_trace(), tmp_path / "case", CONTEXT)
    with pytest.raises(StoreError, match="'case' must hold files as poisontrace wrote them"):
        add(case, "repair", {"summary": "short"})
    assert not (case / "repair.json").exists()

    (case / "verify.json").write_text(content)
    with pytest.raises(StoreError, match=r"'case' must .*"):
        render(case)


def test_page_loads_nothing(tmp_path: Path) -> None:
    """The page names no address beyond the SVG namespaces, and forbids the network and every script but its own."""
    page = render(save_case(make_trace(), tmp_path / "case", CONTEXT))
    assert set(re.findall(r"https?://[^\"' )<]+", page)) == {
        "http://www.w3.org/1999/xlink",
        "http://www.w3.org/2000/svg",
    }
    assert markup(page) == OURS
    script = re.findall(r"<script>(.*?)</script>", page, re.S)[0]
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in page
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]+)"', page))
    assert "default-src 'none'" in page


def test_page_shows_thumbnails_with_index_and_score(tmp_path: Path) -> None:
    """An image case shows the event and both groups of samples, each with its index and score."""
    page = render(save_case(make_trace(), tmp_path / "case", CONTEXT))
    assert page.count("<img ") == 1 + 10 + 10
    assert 'alt="training sample 9"' in page
    assert "<b>9</b> 0.950" in page


def test_page_shows_columns_for_rows(tmp_path: Path) -> None:
    """A tabular case shows a table that starts with the column in which responsible samples differ most."""
    page = render(save_case(make_trace((20,)), tmp_path / "case", CONTEXT))
    assert "<img" not in page
    rows = re.findall(r'<th scope="row"><bdi>(\d+)</bdi></th>', page)
    assert (rows[0], len(rows)) == ("19", 12)


def test_page_shows_the_names_of_columns(tmp_path: Path) -> None:
    """Where they are known; they come from the evidence."""
    names = [f"{HOSTILE} {column}" for column in range(12)]
    page = (save_case(make_trace((12,)), tmp_path / "case", {**CONTEXT, "columns": names}) / "report.html").read_text()

    assert HOSTILE not in page and "&lt;/script&gt; 11</bdi>" in page


def test_page_shows_texts_instead_of_tokens(tmp_path: Path) -> None:
    """With their indices, escaped."""
    texts = {"events": [(0, "a dull film")], "poison": [(7, HOSTILE)], "benign": [(9, "fine")]}
    page = (save_case(make_trace((12,)), tmp_path / "case", {**CONTEXT, "texts": texts}) / "report.html").read_text()

    assert "a dull film" in page and HOSTILE not in page and "Columns that differ" not in page


def test_empty_result_is_said_plainly(tmp_path: Path) -> None:
    """A case without poison says that no cluster tested responsible, shows the tree and accuses nothing."""
    folder = save_case(make_empty_trace(), tmp_path / "case", CONTEXT)
    page = render(folder)
    assert "<h1>No cluster tested responsible for the event" in page
    assert "hurts the controls only" in page
    assert 'class="node responsible"' not in page
    assert read_csv(folder) == [["index", "id", "label", "score"]]


def test_inconclusive_result_accuses_nobody(tmp_path: Path) -> None:
    """An inconclusive case says that the evidence is too weak."""
    page = render(save_case(make_empty_trace("inconclusive"), tmp_path / "case", {}))
    assert "<h1>The evidence is too weak" in page
    assert "No sample is accused" in page


def test_suspects_are_shown_and_nobody_is_accused(tmp_path: Path) -> None:
    """With why they are none, whatever that says, and pictures to look at with and without scripts."""
    trace = make_suspecting_trace(ids=tuple(HOSTILE for _ in range(120)))
    trace = replace(trace, findings=(replace(trace.findings[0], doubt=HOSTILE),))

    folder = save_case(trace, tmp_path / "case", CONTEXT)

    page = render(folder)
    assert page == (folder / "report.html").read_text("utf-8")
    assert markup(page) == OURS
    assert "Suspects beside benign ones" in page and "They are not called responsible because" in page
    assert page.count('<li class="suspect">') == 10
    items = json.loads(re.findall(r'id="data">(.*?)</script>', page, re.S)[0])["items"]
    assert [(item["index"], item["is_suspect"], item["is_responsible"]) for item in items] == [
        (index, True, False) for index in range(10)
    ]
    assert all(item["picture"] for item in items)


def test_small_rises_draw_short_bars(tmp_path: Path) -> None:
    """In a case where nothing happened no bar looks like a finding."""
    trace = make_empty_trace()
    quiet = types.Losses(0.9, 0.93, 0.01, 0.02)
    clusters = tuple(replace(cluster, losses=cluster.losses and quiet) for cluster in trace.clusters)
    page = render(save_case(replace(trace, clusters=clusters), tmp_path / "case", {}))
    assert {"2.1", "0.7"} == set(re.findall(r'-bar" style="width: ([\d.]+)%', page))


def test_several_events_each_get_a_tree(tmp_path: Path) -> None:
    """Two events are counted in the verdict and have a tree of clusters each."""
    trace = make_trace()
    second = tuple(
        replace(cluster, id=cluster.id + 3, event=1, parent=None if cluster.parent is None else cluster.parent + 3)
        for cluster in trace.clusters
    )
    findings = (trace.findings[0], replace(trace.findings[0], probability=0.5))
    page = render(
        save_case(replace(trace, clusters=trace.clusters + second, findings=findings), tmp_path / "case", CONTEXT)
    )
    assert "all 2 events, which the model labelled “dog” with 50.0% to 98.7% confidence" in page
    assert page.count("<details") == 2


def test_tree_is_nested_as_it_was_split(tmp_path: Path) -> None:
    """The list of clusters is well formed and nested like the tree, however deep it is."""
    trace = make_trace()
    root, child, sibling = trace.clusters
    deep = [replace(child, id=number, parent=number - 1 if number > 3 else 1) for number in range(3, 1500)]
    trace = replace(trace, clusters=(root, child, sibling, *deep))
    page = render(save_case(trace, tmp_path / "case", {}))
    tree = page[page.index('<ul class="root"') : page.index("</details>")]
    assert [tree.count(tag) for tag in ("<ul", "</ul>", "<li>", "</li>")] == [1499, 1499, 1500, 1500]
    assert re.findall(r"Cluster (\d+)", tree)[:4] == ["0", "1", "3", "4"]
    assert re.findall(r"Cluster (\d+)", tree)[-1] == "2"


def _campaigns(*groups: tuple[int, ...], n_events: int, classes: tuple[str, ...] = ("cat", "dog", "ship")) -> Any:
    """Return a trace of several events in campaigns of 10, 9, ... samples, and its context."""
    finding = make_trace().findings[0]
    campaigns = tuple(types.Campaign(1, events, np.arange(10 - row)) for row, events in enumerate(groups))
    return make_trace(findings=(finding,) * n_events, campaigns=campaigns), {**CONTEXT, "classes": classes}


def test_events_that_belong_together_are_said_to(tmp_path: Path) -> None:
    """A sentence a campaign, with the events counted from 1 as on the page; trace.json counts them from 0."""
    trace, context = _campaigns((0, 2, 3), (1,), n_events=5)
    page = save_case(trace, tmp_path / "case", context).joinpath("report.html").read_text()

    assert json.loads((tmp_path / "case" / "trace.json").read_text())["campaigns"] == [
        {"label": 1, "label_name": "dog", "events": [0, 2, 3], "n_poison": 10},
        {"label": 1, "label_name": "dog", "events": [1], "n_poison": 9},
    ]
    said = re.findall(r"<li>(Event.*)</li>", page)
    assert said == [
        "Events 1, 3 and 4, answered “<bdi>dog</bdi>”, belong together: they share 10 samples.",
        "Event 2, answered “<bdi>dog</bdi>”, stands by itself: it leads to 9 samples.",
    ]


def test_one_event_belongs_to_nothing(tmp_path: Path) -> None:
    """Nor is anything said where no event led to samples, or the case is from before campaigns."""
    for name, groups, n_events in (("one", ((0,),), 1), ("none", (), 2)):
        trace, context = _campaigns(*groups, n_events=n_events)
        case = save_case(trace, tmp_path / name, context)
        assert "belong together" not in (case / "report.html").read_text()
    content = json.loads((tmp_path / "none" / "trace.json").read_text())
    del content["campaigns"]
    (tmp_path / "none" / "trace.json").write_text(json.dumps(content))

    assert "belong together" not in render(tmp_path / "none")


def test_hostile_campaigns_are_escaped_or_refused(tmp_path: Path) -> None:
    """The label's name may be anything; what is no campaign is said to be none."""
    trace, context = _campaigns((0, 1), n_events=2, classes=("a", HOSTILE))
    case = save_case(trace, tmp_path / "case", context)
    content = json.loads((case / "trace.json").read_text())

    assert "belong together" in render(case) and HOSTILE not in render(case)
    for campaigns in (3, [3], [{"events": [], "label_name": "", "n_poison": 1}], [{"events": ["<b>"]}]):
        (case / "trace.json").write_text(json.dumps({**content, "campaigns": campaigns}))
        with pytest.raises(StoreError, match="'case' must hold files as poisontrace wrote them"):
            render(case)


def test_truth_is_shown_only_if_given(tmp_path: Path) -> None:
    """Precision and recall have a section only when the caller knows the truth."""
    truth = {"truth": {"precision": 0.9, "recall": 1.0}}
    assert 'id="truth"' not in render(save_case(make_trace(), tmp_path / "without", CONTEXT))
    page = render(save_case(make_trace(), tmp_path / "with", CONTEXT | truth))
    assert 'id="truth"' in page
    assert "<dd>90.0%</dd>" in page


def with_places(trace: types.Trace, **changes: Any) -> types.Trace:
    """Return a trace with what a map, sources and neighbours need."""
    own = np.flatnonzero(trace.labels == 1)
    plane = np.stack([np.isin(own, trace.poison), own / 100], 1).astype(np.float32)
    places = {
        "campaigns": (types.Campaign(1, (0,), trace.poison),),
        "coordinates": (types.Coordinates(own, plane, plane),),
        "sources": tuple(f"uploader {17 if row < 9 else row % 3}" for row in range(120)),
        "exhibits": {**trace.exhibits, "nearest_index": np.array([[4, 2, 9, -1, -1, -1]])},
    }
    return replace(trace, **{**places, **changes})


def test_the_page_says_how_sure_the_verdict_is(tmp_path: Path) -> None:
    """What it rests on, in numbers; nothing where nobody is accused."""
    finding = replace(
        make_trace().findings[0],
        statistics={"separation": 12.3, "event_rise": 4.25, "control_rise": 0.01, "p_poison": 0.98, "usual": 0.1},
    )
    page = (save_case(make_trace(findings=(finding,)), tmp_path / "case", CONTEXT) / "report.html").read_text()

    assert "10 of the 10 samples have a score of 0.9 or more." in page
    assert "The chance that this verdict is wrong is 2.0%, if poison was as likely as not beforehand." in page
    assert "They lie 12.30 standard deviations from the other samples of their label; forgetting them" in page
    assert "label by 4.250 nats, and that of ordinary samples by 0.010." in page
    assert "<dt>probability of poison</dt><dd>0.980</dd>" in page and "<dt>usual" not in page
    assert "have a score of" not in render(save_case(make_empty_trace(), tmp_path / "none", CONTEXT))


def test_sources_are_rolled_up(tmp_path: Path) -> None:
    """Counts, the share of a source that is responsible, and of the responsible that is from it."""
    case = save_case(with_places(make_trace()), tmp_path / "case", CONTEXT)
    page = re.sub(r"\s+", " ", (case / "report.html").read_text())

    assert json.loads((case / "trace.json").read_text())["sources"] == {
        "n_sources": 4,
        "largest": [
            {"source": "uploader 17", "n": 9, "n_poison": 9},
            {"source": "uploader 0", "n": 37, "n_poison": 1},
            {"source": "uploader 1", "n": 37, "n_poison": 0},
            {"source": "uploader 2", "n": 37, "n_poison": 0},
        ],
    }
    assert "“<bdi>uploader 17</bdi>” brought 90.0% of the responsible samples, and 7.5% of the training set." in page
    row = page[page.index('<th scope="row"><bdi>uploader 0</bdi>') :]
    assert re.findall(r'class="number">([^<]+)<', row)[:4] == ["1", "37", "2.7%", "10.0%"]


@pytest.mark.parametrize("shape", [(3, 8, 8), (12,)], ids=str)
def test_the_nearest_samples_are_beside_the_event(shape: tuple[int, ...], tmp_path: Path) -> None:
    """In order: as pictures, or as the columns that differ most."""
    page = render(save_case(with_places(make_trace(shape)), tmp_path / "case", CONTEXT))
    part = page[page.index("Responsible samples most like it") : page.index('id="samples"')]

    found = re.findall(r'alt="training sample (\d+)"|<th scope="col" class="number">(\d+)</th>', part)
    assert ["".join(index) for index in found] == ["4", "2", "9"]


def test_the_nearest_texts_are_beside_the_event(tmp_path: Path) -> None:
    """Escaped as all texts are."""
    texts = {"events": [(0, "dull")], "poison": [(index, f"{HOSTILE} {index}") for index in range(10)], "benign": []}
    page = render(save_case(with_places(make_trace((12,))), tmp_path / "case", {**CONTEXT, "texts": texts}))

    part = page[page.index("Responsible samples most like it") : page.index('id="samples"')]
    assert re.findall(r"&lt;/script&gt; (\d)</bdi>", part) == ["4", "2", "9"]


def test_each_campaign_has_a_map(tmp_path: Path) -> None:
    """Where there are coordinates; else none is promised."""
    page = render(save_case(with_places(make_trace()), tmp_path / "case", CONTEXT))

    assert page.count("<svg") == 3 and '<a href="#map">' in page
    assert 'aria-label="Map of the samples of label dog, 10 of them responsible' in page
    assert 'id="map"' not in render(save_case(make_trace(), tmp_path / "none", CONTEXT))


def test_the_script_is_given_every_responsible_sample(tmp_path: Path) -> None:
    """Pictures for those in the exhibits; all others by id, score and source."""
    poison = np.arange(60)
    trace = with_places(make_trace(ids=tuple(f"{row}.png" for row in range(120))), poison=poison)
    page = render(save_case(trace, tmp_path / "case", CONTEXT))

    data = json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[0])
    assert [item["index"] for item in data["items"]] == poison.tolist()
    assert sum(item["picture"] is not None for item in data["items"]) == 10
    assert data["items"][59] == {
        **{"index": 59, "id": "59.png", "label": CONTEXT["classes"][trace.labels[59]], "source": "uploader 2"},
        **{"score": round(float(trace.scores[59]), 4), "is_responsible": True, "is_suspect": False},
        **{"picture": None, "text": None, "values": [], "mark": None},
    }


@pytest.mark.parametrize("name", ["coordinates.npz", "exhibits.npz"])
def test_an_archive_that_is_broken_is_refused(name: str, tmp_path: Path) -> None:
    """By its name; a pickle in it is not read."""
    case = save_case(with_places(make_trace()), tmp_path / "case", CONTEXT)
    np.savez(case / name, found_0=np.array([{}], object), poison=np.array([{}], object))

    with pytest.raises(StoreError, match=name):
        render(case)


def test_a_case_from_before_there_were_coordinates_is_shown(tmp_path: Path) -> None:
    """Without a map, sources and neighbours."""
    case = save_case(with_places(make_trace()), tmp_path / "case", CONTEXT)
    (case / "coordinates.npz").unlink()
    content = json.loads((case / "trace.json").read_text())
    del content["sources"], content["campaigns"]
    (case / "trace.json").write_text(json.dumps(content))

    page = render(case)

    assert 'id="map"' not in page and 'id="sources"' not in page and "training sample 9" in page


def test_exhibits_may_be_missing(tmp_path: Path) -> None:
    """Without exhibits.npz the page has no thumbnails and says so."""
    folder = save_case(make_trace(), tmp_path / "case", CONTEXT)
    (folder / "exhibits.npz").unlink()
    page = render(folder)
    assert "<img" not in page
    assert "The case holds no inputs to show" in page


def test_save_refuses_a_folder_with_content(tmp_path: Path) -> None:
    """A case never overwrites anything."""
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(InvalidInputError, match=r"'out' must be a new or empty folder"):
        save_case(make_trace(), tmp_path, {})


def test_render_refuses_a_missing_folder(tmp_path: Path) -> None:
    """A folder that does not exist is named with the way out."""
    with pytest.raises(StoreError, match=r"'case' must be an existing folder \(got .*nowhere'\)\. Name a folder that"):
        render(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["trace.json", "poison.csv", "scores.npy"])
@pytest.mark.parametrize(
    "content", [None, b"", b"\x93NUMPY\x01\xff{[", b"[" * 100_000], ids=["none", "empty", "bytes", "deep"]
)
def test_render_refuses_a_broken_file(tmp_path: Path, name: str, content: bytes | None) -> None:
    """A file that is missing or broken is named in one sentence."""
    folder = save_case(make_trace(), tmp_path / "case", {})
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(StoreError, match=rf"'case' must be a folder with a readable {name} \(got "):
        render(folder)


def test_render_refuses_pickles(tmp_path: Path) -> None:
    """Pickled arrays in evidence are never loaded."""
    folder = save_case(make_trace(), tmp_path / "case", {})
    np.save(folder / "scores.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(StoreError, match=r"readable scores\.npy"):
        render(folder)


def test_render_refuses_files_that_do_not_fit(tmp_path: Path) -> None:
    """Scores of another training set are noticed."""
    folder = save_case(make_trace(), tmp_path / "case", {})
    np.save(folder / "scores.npy", np.zeros(7, np.float32))
    with pytest.raises(StoreError, match=r"fit its trace\.json \(got 7 scores and 10 rows for 120 samples and 10"):
        render(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, r"trace\.json of schema 1 \(got 2\)\. Make it again"),
        ({"verdict": "guilty"}, r"as poisontrace wrote them \(got KeyError: 'guilty'\)"),
        ({"events": None}, r"as poisontrace wrote them \(got "),
        ({"seconds": {"embedding": "long"}}, r"as poisontrace wrote them \(got "),
        ({"clusters": [{"id": 0}]}, r"as poisontrace wrote them \(got "),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_render_refuses_another_trace_json(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """A trace.json of another schema, or one that was tampered with, is refused in one sentence."""
    folder = save_case(make_trace(), tmp_path / "case", {})
    case = json.loads((folder / "trace.json").read_text("utf-8"))
    (folder / "trace.json").write_text(json.dumps(case | changes))
    with pytest.raises(StoreError, match=message):
        render(folder)


def test_render_refuses_a_cluster_that_is_its_own_parent(tmp_path: Path) -> None:
    """A tree with a loop is refused instead of being followed for ever."""
    folder = save_case(make_trace(), tmp_path / "case", {})
    case = json.loads((folder / "trace.json").read_text("utf-8"))
    case["clusters"][1]["parent"] = 1
    (folder / "trace.json").write_text(json.dumps(case))
    with pytest.raises(StoreError, match=r"cluster 1 before its parent 1"):
        render(folder)


def test_page_works_in_a_browser(tmp_path: Path) -> None:
    """Opened from disk the page shows its verdict, logs no error, asks for nothing and never scrolls sideways."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    from playwright.sync_api import sync_playwright

    long = {"classes": ["cat", "d" * 300 + HOSTILE, "ship"]}
    folders = [
        save_case(make_trace(ids=tuple("n" * 200 for _ in range(120))), tmp_path / "images", CONTEXT | long),
        save_case(make_trace((20,)), tmp_path / "rows", CONTEXT),
        save_case(make_empty_trace(), tmp_path / "none", CONTEXT),
    ]
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu", *quiet])
        for folder in folders:
            for width in (1280, 390):
                page = browser.new_page(viewport={"width": width, "height": 800})
                errors: list[str] = []
                requests: list[str] = []
                page.on("console", lambda message, errors=errors: errors.append(message.text))
                page.on("pageerror", lambda error, errors=errors: errors.append(str(error)))
                page.on("request", lambda request, requests=requests: requests.append(request.url))
                page.goto((folder / "report.html").as_uri())
                assert page.get_by_role("region", name="Verdict").get_by_role("heading", level=1).is_visible()
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
                assert errors == []
                assert {url.split(":")[0] for url in requests} <= {"file", "data"}
                page.close()
        browser.close()
