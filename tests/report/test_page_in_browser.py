"""The page in a browser: no error, no request, tabs, sorting, folding, enlarging, phone, dark mode and no script."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smmil.config.layouts import TableLayout
from smmil.report.page import Inputs, build_page
from smmil.tables.build import build_table
from smmil.tables.formats import to_html
from tests.helpers.predictions import metrics_record

# Playwright's event loop is closed by the garbage collector
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]
DATASETS = [{"name": name, "title": name.upper(), "encoder": "resnet18"} for name in "abc"]
LAYOUT = TableLayout.parse({"datasets": DATASETS, "methods": ["smap_early", "abmil", "clam", "smtap", "t_ap"]})
SHOWN = "#table2 section:not([hidden])"


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two tables on three datasets, too wide for a phone."""
    folder = tmp_path_factory.mktemp("report")
    metrics = [
        metrics_record(dataset.name, method, {"bag_auroc": [0.5 + 0.1 * i, 0.55 + 0.1 * i]})
        for dataset in LAYOUT.datasets
        for i, method in enumerate(LAYOUT.methods)
    ]
    tables = [folder / f"{name}.html" for name in ("table1", "table2")]
    for path in tables:
        path.write_text(to_html(build_table(path.stem, metrics, LAYOUT)), "utf-8")
    inputs = Inputs(metrics=metrics, tables=tables)
    text = build_page("t", LAYOUT, inputs, page=folder / "index.html", layouts={"table2": LAYOUT})
    (folder / "index.html").write_text(text, "utf-8")
    return folder / "index.html"


@pytest.fixture
def open_page(browser: Any, page_file: Path) -> Iterator[Any]:
    """Open the report with the options of a context; afterwards no error, no request and no overflow."""
    problems, pages = list[str](), list[Any]()

    def open_with(**options: Any) -> Any:
        page = browser.new_context(**options).new_page()
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: problems.append(request.url) if "index.html" not in request.url else None)
        page.goto(page_file.as_uri())
        pages.append(page)
        return page

    yield open_with
    for page in pages:
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.context.close()
    assert problems == []


def first_column(page: Any) -> list[str]:
    """Names of the rows of the first block of Table 2."""
    names = page.locator(f"{SHOWN} tbody >> nth=0").locator("th[scope=row]")
    return [text.strip() for text in names.all_inner_texts()]


def test_tabs_show_one_section_and_sorting_orders_each_block(open_page: Any) -> None:
    page = open_page(viewport={"width": 1280, "height": 900})
    sections = page.locator("#table2 .tabs > section")
    assert [sections.nth(i).is_visible() for i in range(sections.count())] == [True] + [False] * (sections.count() - 1)
    page.get_by_role("tab", name="95 % intervals").last.click()
    assert [sections.nth(i).is_visible() for i in range(2)] == [False, True]
    page.locator("#table2").get_by_role("tab").first.click()
    before = first_column(page)
    button = page.locator(f"{SHOWN} thead tr:last-child th button").first
    button.click()
    assert first_column(page) == ["CLAM", "ABMIL", "SmAP ◆"]
    button.click()
    assert first_column(page) == ["SmAP ◆", "ABMIL", "CLAM"] == before
    page.locator(f"{SHOWN} tr.group button").first.click()
    assert not page.locator(f"{SHOWN} tbody >> nth=0").locator("th[scope=row]").first.is_visible()
    assert page.locator("nav a[href='#table2']").is_visible()


def test_a_phone_gets_a_folded_menu_and_no_overflow(open_page: Any) -> None:
    page = open_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
    assert not page.locator("nav").is_visible()
    page.get_by_text("Contents").click()
    page.locator("nav a[href='#table2']").click()
    assert not page.locator("nav").is_visible()
    ink, paper = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    assert ink != paper and paper == "rgb(20, 23, 26)"
    # the names of the rows stay in sight while a table scrolls
    box = page.locator(f"{SHOWN} .scroll")
    box.evaluate("box => { box.scrollLeft = 100 }")
    name = page.locator(f"{SHOWN} th[scope=row]").first
    assert box.evaluate("box => box.scrollLeft") > 0 and name.bounding_box()["x"] >= box.bounding_box()["x"] - 1


def test_without_the_script_every_section_is_readable(open_page: Any) -> None:
    page = open_page(viewport={"width": 1280, "height": 900}, java_script_enabled=False)
    sections = page.locator(".tabs > section")
    assert sections.count() > 4 and all(sections.nth(i).is_visible() for i in range(sections.count()))


def test_on_paper_there_is_no_menu_and_no_table_is_cut(open_page: Any) -> None:
    page = open_page(viewport={"width": 720, "height": 1000})
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible() and not page.locator(".tablist").first.is_visible()
    assert page.evaluate("[...document.querySelectorAll('.scroll')].every(b => b.scrollWidth <= 760)")
