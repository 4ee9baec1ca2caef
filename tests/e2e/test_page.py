"""The report's page in a real browser: what a person sees, clicks and types."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.config import Settings
from pipeline.model.saved import Heads
from pipeline.project import Project
from pipeline.report.run import run_report
from pipeline.store import read_vectors
from tests.unit.test_report import HOSTILE, LAYERS, make_project

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="the browser's driver, playwright, is not installed"
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
EXECUTABLE = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(
    EXECUTABLE is None, reason="no Chromium on this machine: `apt-get install chromium`"
)
TEXTS = [
    "</script><script>document.title = 'owned'</script>",
    "<img src=x onerror=\"document.title = 'owned'\">",
    "<!-- <script> never closed",
    "שלום עולם (abc) 12",
    "\u202eoverridden\u202c text",
    "family 👩‍👩‍👧‍👦 and 🇪🇺",
    "{{ 7 * 7 }} {% raw %} & &lt;b&gt;",
    "a" * 300,
    "line\u2028separator\u2029and\ttab",
    '=HYPERLINK("x")',
]
NAMES = [*HOSTILE, "</script><b>x", "عربي", "x" * 120]
ROWS = 400
# What stands to the right of the window, outside of what scrolls by itself.
OVERFLOWING = """() => [...document.querySelectorAll("body *")]
  .filter((e) => e.getBoundingClientRect().right > innerWidth + 1
    && e.checkVisibility() && !e.closest(".scroll, .contents ul, .unseen-by-eye, table.rows thead"))
  .map((e) => e.outerHTML.slice(0, 80))"""


def name_text(row: int) -> str:
    return f"{TEXTS[row % len(TEXTS)]} {row}"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two tasks whose texts and classes try to be more than text."""
    folder = tmp_path_factory.mktemp("page")
    with contextlib.chdir(folder):
        make_project({"spam": ["ham", "spam"], "kind": NAMES}, ROWS, name_text)
        run_report(Project(), Settings())
    return folder / "cache" / "report" / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=EXECUTABLE, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, report: Path) -> Iterator[Page]:
    with open_page(browser, report) as page:
        yield page


@contextlib.contextmanager
def open_page(browser: Browser, report: Path, **options: object) -> Iterator[Page]:
    """The page, ready; at the end it must have asked for nothing and complained of nothing."""
    context = browser.new_context(
        **{"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce", **options}
    )
    page = context.new_page()
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(report.as_uri())
    if options.get("java_script_enabled", True):
        page.wait_for_selector("html[data-ready]", state="attached")
        page.wait_for_selector("canvas[data-drawn]", state="attached")
    yield page
    assert complaints == []
    assert requests == [report.as_uri()]
    context.close()


def read_column(page: Page, title: str, table: str = "errors") -> list[str]:
    cells = page.locator(f'[data-table="{table}"] td[data-label="{title}"]')
    return cells.all_inner_texts()


def count_found(page: Page, table: str = "errors") -> int:
    return int(page.locator(f'[data-table="{table}"]').get_attribute("data-found") or -1)


def test_hostile_texts_and_names_stay_text(page: Page) -> None:
    assert page.title() == "Heads on a frozen backbone"
    assert page.locator("main img, main b:not(a.find > b), main script").count() == 0
    page.select_option('[data-tools="errors"] [data-filter="task"]', "")
    shown = page.locator('[data-table="errors"] td.lead-cell bdi').all_text_contents()
    assert shown
    known = {name_text(row) for row in range(ROWS)}
    assert {text for text in shown if not text.endswith("…")} <= known
    starts = {text[:-1] for text in shown if text.endswith("…")}
    assert all(any(text.startswith(start) for text in known) for start in starts)
    # Text of a script that runs from right to left moves nothing beside it.
    page.fill('[data-tools="errors"] [data-filter="search"]', "שלום")
    cell = page.locator('[data-table="errors"] td bdi', has_text="שלום").first
    assert cell.evaluate("e => getComputedStyle(e).unicodeBidi") == "isolate"
    page.select_option('[data-tools="errors"] [data-filter="task"]', "1")
    options = page.locator('[data-tools="errors"] [data-filter="class"] option')
    assert options.all_text_contents()[1:] == NAMES


def test_a_table_sorts_by_mouse_and_by_keyboard(page: Page) -> None:
    heading = page.locator('[data-table="errors"] th', has_text="Probability")
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    falling = [float(cell) for cell in read_column(page, "Probability")]
    assert falling == sorted(falling, reverse=True)
    assert len(falling) > 5
    heading.locator("button").focus()
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    rising = [float(cell) for cell in read_column(page, "Probability")]
    assert rising == sorted(rising)
    assert rising[0] <= falling[-1]


def test_filters_and_search_show_the_rows_that_they_name(page: Page) -> None:
    tools = page.locator('[data-tools="errors"]')
    tools.locator('[data-filter="task"]').select_option("1")
    whole = count_found(page)
    tools.locator('[data-filter="class"]').select_option(label=NAMES[0])
    of_class = count_found(page)
    pairs = zip(read_column(page, "Actual"), read_column(page, "Predicted"), strict=True)
    assert 0 < of_class < whole
    assert all(NAMES[0] in pair for pair in pairs)
    tools.locator('[data-filter="kind"]').select_option("wrong")
    assert "doubtful" not in read_column(page, "Kind")
    tools.locator('[data-filter="class"]').select_option("")
    tools.locator('[data-filter="kind"]').select_option("")
    tools.locator('[data-filter="search"]').fill("FAMILY and")
    assert 0 < count_found(page) < whole
    rows = page.locator('[data-table="errors"] tbody tr').all_inner_texts()
    assert all("family" in row for row in rows)
    tools.locator('[data-filter="search"]').fill("no such words")
    assert count_found(page) == 0
    assert page.locator('[data-pager="errors"] [role=status]').inner_text() == "no rows"


def test_pages_of_a_table_turn(page: Page) -> None:
    page.select_option('[data-tools="errors"] [data-filter="task"]', "")
    status = page.locator('[data-pager="errors"] [role=status]')
    found = count_found(page)
    assert found > 25
    assert status.inner_text() == f"1 to 25 of {found:,}"
    first = read_column(page, "Text")
    page.locator('[data-pager="errors"] button', has_text="Next").click()
    assert status.inner_text().startswith("26 to ")
    assert read_column(page, "Text") != first
    page.locator('[data-pager="errors"] button', has_text="Back").click()
    assert read_column(page, "Text") == first


def test_a_row_is_found_on_the_map_and_a_point_chooses_rows(page: Page) -> None:
    row = page.locator('[data-table="errors"] tbody tr').first
    text = row.locator("td.lead-cell bdi").text_content()
    number = row.locator('[data-label="Row"]').inner_text().split()[0]
    row.locator("button.link").click()
    tip = page.locator(".tip")
    assert tip.locator("bdi").first.text_content() == text
    assert number in tip.inner_text().replace(",", "")
    # The point stands in the middle now, where the pointer finds it.
    box = page.locator(".board canvas").bounding_box()
    assert box is not None
    page.mouse.move(10, 10)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert tip.locator("bdi").first.text_content() == text
    page.mouse.down()
    page.mouse.up()
    page.wait_for_selector('canvas[data-chosen="1"]')
    assert set(page.locator('[data-table="errors"] td.lead-cell bdi').all_text_contents()) == {text}
    assert page.locator("#errors .chosen-points").is_visible()
    page.keyboard.press("Escape")
    page.wait_for_selector('canvas[data-chosen=""]')
    assert page.locator("#errors .chosen-points").is_hidden()


def test_the_map_zooms_moves_and_takes_an_area(page: Page) -> None:
    canvas = page.locator(".board canvas")
    assert canvas.get_attribute("data-zoom") == "1.00"
    page.locator("[data-zoom=in]").click()
    page.wait_for_selector('canvas[data-zoom="1.60"]')
    canvas.focus()
    page.keyboard.press("+")
    page.wait_for_selector('canvas[data-zoom="2.40"]')
    canvas.hover()
    page.mouse.wheel(0, -300)
    page.wait_for_function("() => parseFloat(document.querySelector('canvas').dataset.zoom) > 2.4")
    page.locator("[data-zoom=all]").click()
    page.wait_for_selector('canvas[data-zoom="1.00"]')
    page.locator("[data-area]").click()
    canvas.evaluate("e => e.scrollIntoView({ block: 'center' })")
    box = canvas.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 20, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] - 20, steps=3)
    page.mouse.up()
    page.wait_for_function("() => Number(document.querySelector('canvas').dataset.chosen) > 1")
    chosen = int(canvas.get_attribute("data-chosen") or 0)
    assert chosen < int(canvas.get_attribute("data-drawn") or 0)


@pytest.mark.parametrize("by", ["label", "predicted", "error", "suspect", "part", "cluster"])
def test_the_map_is_coloured_by(page: Page, by: str) -> None:
    page.select_option("select[data-by]", by)
    page.wait_for_selector(f'canvas[data-by="{by}"]', state="attached")
    drawn = int(page.locator(".board canvas").get_attribute("data-drawn") or 0)
    counts = page.locator("[data-keys] li span").all_inner_texts()
    assert sum(int(count.replace(",", "")) for count in counts) == drawn


def test_a_finger_chooses_a_point(browser: Browser, report: Path) -> None:
    size = {"width": 380, "height": 800}
    with open_page(browser, report, has_touch=True, is_mobile=True, viewport=size) as page:
        page.locator('[data-table="errors"] button.link').first.tap()
        box = page.locator(".board canvas").bounding_box()
        assert box is not None
        page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_selector('canvas[data-chosen="1"]')
        assert page.locator(".tip").is_visible()


def test_the_slider_shows_what_another_threshold_would_give(page: Page, report: Path) -> None:
    project = Project(report.parents[2])
    head = Heads.load(project.heads).heads[0]
    labels, texts = pq.read_table(project.labels_file), pq.read_table(project.texts_file)
    vectors = read_vectors(project.store, texts["key"].combine_chunks(), LAYERS)
    logits = vectors.reshape(ROWS, -1) @ head.weights[0].weight.T
    probability = 1 / (1 + np.exp(-logits[:, 0].astype(float) / head.decision.temperature))
    is_test = np.array(labels["split"].to_pylist()) == "test"
    is_spam = labels["spam"].to_numpy()[is_test] == 1
    box = page.locator('.threshold[data-task="0"]')

    def read() -> dict[str, str]:
        names = ("threshold", "precision", "recall", "tp", "fp", "fn", "tn")
        return {name: box.locator(f'[data-show="{name}"]').inner_text() for name in names}

    assert read()["threshold"] == "0.500"
    line = box.locator("line.now")
    before = line.get_attribute("x1")
    box.locator("input[type=range]").focus()
    for _ in range(40):
        page.keyboard.press("ArrowRight")
    shown = read()
    assert shown["threshold"] == "0.700"
    assert line.get_attribute("x1") != before
    answered = probability[is_test] > 0.7
    expected = {
        "tp": int((answered & is_spam).sum()),
        "fp": int((answered & ~is_spam).sum()),
        "fn": int((~answered & is_spam).sum()),
        "tn": int((~answered & ~is_spam).sum()),
    }
    assert {name: int(shown[name]) for name in expected} == expected
    assert float(shown["precision"]) == pytest.approx(
        expected["tp"] / (expected["tp"] + expected["fp"]), abs=5e-4
    )
    box.locator("[data-reset]").click()
    assert read()["threshold"] == "0.500"


def test_light_and_dark_follow_the_machine_and_the_button(page: Page) -> None:
    def read() -> tuple[str, str]:
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return colour, str(page.locator(".board canvas").get_attribute("data-ink"))

    light = read()
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(
        "ink => document.querySelector('canvas').dataset.ink !== ink", arg=light[1]
    )
    dark = read()
    assert max(map(int, re.findall(r"\d+", dark[0])[:3])) < 60
    assert min(map(int, re.findall(r"\d+", light[0])[:3])) > 200
    page.locator("button.theme").click()
    page.wait_for_function(
        "ink => document.querySelector('canvas').dataset.ink === ink", arg=light[1]
    )
    assert read() == light


@pytest.mark.parametrize("width", [380, 768, 1280, 3840])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows(browser: Browser, report: Path, width: int, scheme: str) -> None:
    size = {"width": width, "height": 900}
    with open_page(browser, report, viewport=size, color_scheme=scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(OVERFLOWING) == []
        # No figure is cut by a column that is too narrow.
        assert "…" not in page.locator(".headline .number").first.inner_text()


def test_without_its_script_the_page_has_all_but_the_map(browser: Browser, report: Path) -> None:
    with open_page(browser, report, java_script_enabled=False) as page:
        assert page.locator('[data-table="errors"] tbody tr').count() == 25
        assert page.locator('[data-table="errors"] td.lead-cell bdi').first.text_content()
        assert page.locator(".threshold table.matrix td").first.is_visible()
        assert page.locator(".map").is_hidden()
        assert page.locator('[data-tools="errors"]').is_hidden()


def test_the_policy_lets_nothing_else_run_or_load(browser: Browser, report: Path) -> None:
    page = browser.new_page()
    page.goto(report.as_uri())
    violated = page.evaluate(
        """async () => {
          const seen = [];
          addEventListener("securitypolicyviolation", (event) => {
            seen.push(event.effectiveDirective);
          });
          const script = document.createElement("script");
          script.textContent = "window.owned = true";
          document.body.append(script);
          await fetch("https://example.com/").catch(() => null);
          document.body.setAttribute("style", "color: red");
          await new Promise((resolve) => setTimeout(resolve));
          return [window.owned === true, ...seen.sort()];
        }"""
    )
    assert violated == [False, "connect-src", "script-src-elem", "style-src-attr"]
    page.close()


def test_print_cuts_no_row(page: Page) -> None:
    page.emulate_media(media="print")
    style = "(e) => { const s = getComputedStyle(e); return [s.display, s.breakInside]; }"
    assert page.locator('[data-table="errors"] tbody tr').first.evaluate(style)[1] == "avoid"
    assert page.locator('[data-table="errors"] thead').evaluate(style)[0] == "table-header-group"
    assert page.locator("nav.contents").is_hidden()
    assert page.pdf(format="A4").startswith(b"%PDF")
