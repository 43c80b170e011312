"""The report in a real browser: sorting, filtering, marking, downloading; no error, and no request."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import CONTEXT, HOSTILE, make_suspecting_trace, make_trace

from poisontrace import _types as types
from poisontrace.report import save_case
from poisontrace.reviewing import review

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
QUIET = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]


def suspicious(n: int = 300, n_poison: int = 60, shape: tuple[int, ...] = (3, 16, 16), **changes: Any) -> types.Trace:
    """Return a trace of 60 responsible samples with scores of their own, of which 50 have a picture."""
    trace = make_trace(shape, n=n)
    poison = np.arange(n_poison)
    labels, scores = trace.labels.copy(), trace.scores.copy()
    labels[poison] = 1
    scores[poison] = np.linspace(0.5, 1, n_poison)[np.random.default_rng(1).permutation(n_poison)]
    own = np.flatnonzero(labels == 1)
    plane = np.stack([np.isin(own, poison), np.linspace(-2, 2, len(own))], 1).astype(np.float32)
    exhibits = {
        **trace.exhibits,
        "poison": np.random.default_rng(0).uniform(0, 1, (50, *shape)),
        "poison_index": poison[:50],
        "nearest_index": np.array([[3, 1, 2, -1, -1, -1]]),
    }
    return replace(
        trace,
        poison=poison,
        labels=labels,
        scores=scores,
        findings=(replace(trace.findings[0], poison=poison),),
        exhibits=exhibits,
        campaigns=(types.Campaign(1, (0,), poison),),
        coordinates=(types.Coordinates(own, plane, plane),),
        sources=tuple(f"uploader {17 if row < 55 else row % 7}" for row in range(n)),
        **changes,
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", *QUIET])
        yield made
        made.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """A function that saves a trace and opens its report; at the end there was no error, and nothing was asked for."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    errors: list[str] = []
    requests: list[str] = []

    def open_report(trace: types.Trace, **changes: Any) -> Any:
        case = save_case(trace, tmp_path / "case", CONTEXT | changes)
        page = context.new_page()
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto((case / "report.html").as_uri())
        return page

    yield open_report
    assert errors == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert sum(url.startswith("file:") for url in requests) == 1  # the page itself
    context.close()


def shown(page: Any) -> list[int]:
    """Return the indices of the samples listed, in order."""
    return [
        int(index) for index in page.eval_on_selector_all("#list [data-index]", "all => all.map(n => n.dataset.index)")
    ]


def test_samples_are_sorted_and_paged(opened: Any) -> None:
    """As pictures and as a table, by each column, both ways."""
    trace = suspicious()
    page = opened(trace)
    by_score = sorted(range(60), key=lambda index: -trace.scores[index])

    assert shown(page) == [index for index in by_score if index < 50][:48]
    assert "60 of 60 samples; 10 of them have no picture" in page.inner_text("#status")
    page.click("#next")
    assert len(shown(page)) == 2 and page.is_disabled("#next")

    page.select_option("select[name=sort]", "index/up")
    assert shown(page) == list(range(48))
    page.select_option("select[name=view]", "table")
    assert shown(page) == list(range(60))
    page.click("th[data-key=score] button")
    assert shown(page) == by_score
    assert page.get_attribute("th[data-key=score]", "aria-sort") == "descending"
    page.keyboard.press("Enter")  # the button keeps the focus
    assert shown(page) == by_score[::-1]


def test_samples_are_filtered(opened: Any) -> None:
    """By words, scores and sources."""
    trace = suspicious(ids=tuple(f"set/{row:03d}.png" for row in range(300)))
    page = opened(trace)
    page.select_option("select[name=view]", "table")

    page.fill("input[name=query]", "017.PNG")
    assert shown(page) == [17]
    page.fill("input[name=query]", "")
    page.fill("input[name=least]", "0.9")
    assert sorted(shown(page)) == [index for index in range(60) if round(float(trace.scores[index]), 4) >= 0.9]
    page.fill("input[name=least]", "0")
    page.select_option("select[name=source]", "=uploader 6")
    assert shown(page) == [55]
    assert "1 of 60 samples." in page.inner_text("#status")
    assert page.inner_text("#sources td.number >> nth=0") == "55"


def test_samples_are_marked_and_the_decisions_downloaded(opened: Any, tmp_path: Path) -> None:
    """With the mouse, with keys, and all that are listed; a second click takes a mark back."""
    page = opened(suspicious())
    page.select_option("select[name=sort]", "index/up")

    page.click('[data-index="3"] .confirm')
    page.click('[data-index="4"] .clear')
    page.click('[data-index="5"] .clear')
    page.click('[data-index="5"] .clear')
    assert page.get_attribute('[data-index="3"] .confirm', "aria-pressed") == "true"
    assert page.get_attribute('[data-index="5"] .clear', "aria-pressed") == "false"
    page.focus('[data-index="6"] .confirm')
    page.keyboard.press("x")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("c")
    assert page.evaluate("document.activeElement.closest('[data-index]').dataset.index") == "7"
    page.select_option("select[name=source]", "=uploader 6")
    page.click("#confirm-all")
    page.select_option("select[name=source]", "")
    page.select_option("select[name=marks]", "cleared")
    assert shown(page) == [4, 6]
    assert page.inner_text("#n-marked") == "5"

    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "decisions.json"
    decisions = json.loads(Path(download.value.path()).read_text())
    assert [(made["index"], made["decision"]) for made in decisions["decisions"]] == [
        (3, "confirmed"),
        (4, "cleared"),
        (6, "cleared"),
        (7, "confirmed"),
        (55, "confirmed"),
    ]
    case = json.loads((tmp_path / "case" / "trace.json").read_text())
    assert decisions["case"] == {"created": case["created"], "sha256": "b" * 64}

    page.select_option("select[name=marks]", "")
    page.click("#unmark-all")
    assert page.inner_text("#n-marked") == "0"
    page.set_input_files("#load", download.value.path())
    page.get_by_text("5", exact=True).and_(page.locator("#n-marked")).wait_for()
    page.set_input_files("#load", {"name": "a.json", "mimeType": "", "buffer": b'{"case": {}}'})
    page.locator("#status", has_text="another case").wait_for()


def test_suspects_are_looked_at_and_confirmed(opened: Any, tmp_path: Path) -> None:
    """What is downloaded of a case that accuses nobody makes those responsible that a person says are."""
    page = opened(make_suspecting_trace())
    assert page.inner_text("#h-samples") == "Suspects beside benign ones"
    assert shown(page) == list(range(10))
    assert page.locator("#list img").count() == 10 and page.locator("#list .is-let-go").count() == 0

    page.click('[data-index="4"] .clear')
    page.select_option("select[name=marks]", "none")
    page.click("#confirm-all")
    with page.expect_download() as download:
        page.click("#download")
    done = review(tmp_path / "case", download.value.path())

    assert (done.verdict, done.poison.tolist()) == ("poison", [0, 1, 2, 3, 5, 6, 7, 8, 9])


def test_rows_and_texts_are_listed(opened: Any) -> None:
    """A row with its scores, its id and the columns that differ most; what says nothing is left out."""
    page = opened(suspicious(shape=(7,)), columns=[f"size {column}" for column in range(7)])

    assert not page.is_visible("select[name=view]")
    heads = page.eval_on_selector_all("#list th", "all => all.map(n => n.textContent)")
    assert heads[:4] == ["mark", "index", "score ↓", "source"] and heads[4].startswith("size ")
    assert len(shown(page)) == 60


def test_hostile_names_stay_text(opened: Any) -> None:
    """In the list that the script builds, too: no element and no script comes of them."""
    trace = suspicious(ids=(HOSTILE + "<img src=x onerror=alert(1)>",) * 300)
    page = opened(replace(trace, sources=("</script><b id=evil>", "<b id=evil>") * 150), classes=[HOSTILE] * 3)

    for view in ("gallery", "table"):
        page.select_option("select[name=view]", view)
        assert page.locator("#evil, #list script, img[src=x]").count() == 0
        assert HOSTILE in page.inner_text("#list")


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("n_events", [1, 3])
def test_nothing_overlaps_or_leaves_the_page(opened: Any, width: int, n_events: int) -> None:
    """Pictures stay in their places, on a desk and on a telephone, beside one event and several."""
    trace = suspicious()
    exhibits = {**trace.exhibits, "events": np.repeat(trace.exhibits["events"], n_events, 0)}
    exhibits["nearest_index"] = np.tile(np.arange(6), (n_events, 1))
    clusters = tuple(replace(cluster, event=0) for cluster in trace.clusters)
    page = opened(replace(trace, findings=trace.findings * n_events, exhibits=exhibits, clusters=clusters))
    page.set_viewport_size({"width": width, "height": 800})

    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(
        "[...document.querySelectorAll('.gallery img')].every(n => n.clientWidth <= n.parentElement.clientWidth)"
    )
    assert page.evaluate("[...document.querySelectorAll('.event h3')].every(n => n.clientWidth >= 100)")


def test_thousands_of_samples_are_no_burden(opened: Any) -> None:
    """A page of them is in the document, all are in the list."""
    n = 20_000
    trace = suspicious(n, n_poison=8000)
    page = opened(trace)
    page.select_option("select[name=view]", "table")

    assert "8,000 of 8,000 samples." in page.inner_text("#status") and len(shown(page)) == 100
    seconds = page.evaluate(
        "() => { const start = performance.now(); document.querySelector('th[data-key=score] button').click();"
        " return (performance.now() - start) / 1000; }"
    )
    assert seconds < 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(browser: Any, tmp_path: Path, scheme: Any) -> None:
    """At least 4.5 to 1, wherever there is text and a plain ground behind it."""
    case = save_case(suspicious(), tmp_path / "case", CONTEXT)
    page = browser.new_page(color_scheme=scheme)
    page.goto((case / "report.html").as_uri())
    faint = page.evaluate(CONTRAST)
    page.close()

    assert faint == []


def test_a_print_shows_everything_that_is_folded(browser: Any, tmp_path: Path) -> None:
    """On white, without the controls."""
    case = save_case(suspicious(), tmp_path / "case", CONTEXT)
    page = browser.new_page(color_scheme="dark")
    page.goto((case / "report.html").as_uri())
    page.emulate_media(media="print", color_scheme="dark")

    assert not page.is_visible("#controls") and not page.is_visible("#download")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.pdf(format="A4")[:5] == b"%PDF-"
    page.close()


def test_every_control_is_reached_with_the_keyboard(opened: Any) -> None:
    """In the order of the page, and each has a name."""
    page = opened(suspicious())
    names = page.evaluate(
        "() => [...document.querySelectorAll('#review input, #review select, #review button')]"
        ".filter(n => n.offsetParent).map(n => n.getAttribute('aria-label') || n.textContent"
        " || n.closest('label')?.textContent || '')"
    )
    assert all(name.strip() for name in names)
    page.focus("select[name=view]")
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.name || document.activeElement.className"))
    assert {"sort", "query", "least", "most", "source", "marks", "confirm", "clear"} <= reached


CONTRAST = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (c) => c.slice(0, 3).map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const colour = rgb(getComputedStyle(node).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const faint = [];
  for (const node of document.querySelectorAll('body *')) {
    const own = [...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim());
    if (!own || !node.offsetParent || node.closest('svg') || node.disabled || node.tagName === 'SCRIPT') continue;
    const [a, b] = [light(rgb(getComputedStyle(node).color)), light(ground(node))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) faint.push([node.textContent.trim().slice(0, 30), ratio.toFixed(2)]);
  }
  return faint;
}"""
