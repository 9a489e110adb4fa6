"""The page in a real browser: alive, printable, and deaf to hostile names."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile_pages import pages

from planner.report.page import Command, plan_page

pytest.importorskip("plotly")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
PATIENCE_MS = 120_000
"""More than anything here takes on a machine that does much else."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    if BROWSER is None:
        pytest.skip("no Chromium")
    with api.sync_playwright() as play:
        opened = play.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox"], timeout=PATIENCE_MS
        )
        yield opened
        opened.close()


def opened(browser: Any, path: Path, **how: Any) -> tuple[Any, list[str]]:
    """Return the page in a browser, and what it complains of or fetches."""
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"], **how)
    page, trouble = context.new_page(), []
    page.set_default_timeout(PATIENCE_MS)
    page.on("console", lambda m: trouble.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("dialog", lambda dialog: trouble.append(dialog.message))
    page.on("request", lambda r: r.url.startswith("http") and trouble.append(r.url))
    page.goto(path.as_uri())
    page.wait_for_selector(".chart .main-svg")
    return page, trouble


@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 390)])
def test_a_browser_draws_tabs_copies_and_sorts(browser, plan, tmp_path, scheme, width):
    path = tmp_path / "page.html"
    path.write_text(plan_page(plan, [Command("a", "do", "echo 'ü' &&\n  b")], tie=0.03))
    how = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
    page, trouble = opened(browser, path, **how)
    assert page.locator("#memory-chart-1").is_hidden()
    page.get_by_role("tab", name="#2").click()
    page.wait_for_selector("#memory-chart-1 .bars path")
    assert page.locator("#memory-chart-0").is_hidden()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#memory-chart-2 .bars path")
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == "echo 'ü' &&\n  b"
    step = page.locator("#plans th button").filter(has_text=re.compile("^step$"))
    step.click()
    step.click()  # slowest first
    assert page.locator("#plans tbody tr").first.inner_text().startswith("#7")
    told = page.locator("#plans tbody td").nth(1).bounding_box()  # the step, seen at once
    assert told["x"] + told["width"] < width
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(wide) == 0
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert back == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 28)")
    ink = "getComputedStyle(document.querySelector('.xtick text')).fill"
    assert page.evaluate(ink) == ("rgb(27, 31, 36)" if scheme == "light" else "rgb(231, 235, 240)")
    page.emulate_media(media="print")
    until = time.monotonic() + PATIENCE_MS / 1000
    while page.evaluate(ink) != "rgb(0, 0, 0)" and time.monotonic() < until:
        page.wait_for_timeout(50)
    assert page.evaluate(ink) == "rgb(0, 0, 0)"
    assert trouble == []


@pytest.mark.browser
def test_a_browser_runs_nothing_of_hostile_names(browser, hostile, tmp_path):
    for name, text in pages(hostile).items():
        path = tmp_path / f"{name}.html"
        path.write_text(text)
        page, trouble = opened(browser, path)
        for tab in page.get_by_role("tab").all():
            tab.click()
        page.wait_for_timeout(200)
        assert page.locator("img, iframe, .chart a").count() == 0
        assert trouble == []


@pytest.mark.browser
def test_a_browser_prints_the_page(browser, plan, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(plan_page(plan, [], tie=0.03))
    page, trouble = opened(browser, path)
    pdf = page.pdf(format="A4", print_background=True)
    assert pdf.startswith(b"%PDF")
    assert trouble == []


@pytest.mark.browser
def test_a_browser_too_old_to_unpack_shows_the_tables_and_says_why(browser, plan, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(plan_page(plan, [], tie=0.03))
    page = browser.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.add_init_script("delete window.DecompressionStream")
    page.goto(path.as_uri())
    page.get_by_text("too old to draw the chart").first.wait_for()
    assert page.locator("#plans tbody tr").first.is_visible()
