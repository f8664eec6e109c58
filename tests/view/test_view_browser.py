"""The viewer in a real browser: Chromium of the system, driven by Playwright; skipped where it is absent."""

import base64
import io
import re
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from preprocessing.scans.dicom import read_slice
from preprocessing.scans.windows import to_hu, window
from preprocessing.store.bags import read_arrays, read_instance_attrs
from smmil.figures.top_tiles import extremes
from smmil.view.__main__ import main
from smmil.view.site import OPENSEADRAGON, STATIC

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect
pytestmark = [
    pytest.mark.skipif(not (STATIC / OPENSEADRAGON).is_file(), reason="no OpenSeadragon: run `make viewer`"),
    # Playwright's event loop is closed by the garbage collector
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture
def page(browser) -> Iterator:
    """A page whose errors fail the test."""
    tab = browser.new_page(viewport={"width": 1300, "height": 850})
    tab.set_default_timeout(15_000)
    errors: list[str] = []
    tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: errors.append(str(error)))
    yield tab
    tab.close()
    assert errors == []


def drawn(page, pane: int = 0) -> np.ndarray:
    """The overlay of a pane (h,w,4)."""
    code = "(i) => document.querySelectorAll('.pane > canvas')[i].toDataURL('image/png')"
    png = base64.b64decode(page.evaluate(code, pane).partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(png)))


def scale(page, pane: int = 0) -> float:
    """Length of the scale bar in px per um."""
    bar = page.locator(".pane .scale").nth(pane)
    number, unit = re.match(r"([\d.]+) (µm|mm)", bar.inner_text()).groups()
    length = bar.locator("i").evaluate("node => node.getBoundingClientRect().width")
    return length / (float(number) * (1000 if unit == "mm" else 1))


def open_bag(page, url: str, bag: str) -> None:
    page.goto(f"{url}#{bag}")
    page.locator("#title", has_text=bag.split("/")[1]).wait_for()
    page.locator("#tile h2", has_text="Slice" if bag.startswith("scans") else "Tile").wait_for()


def test_a_slide_zooms_and_a_tile_tells_its_stored_score(page, server, results):
    open_bag(page, server.url, "slides/tumour")
    page.locator(".pane .scale i").wait_for()
    page.wait_for_timeout(300)
    before = scale(page)
    page.get_by_label("Zoom in").click()
    page.wait_for_timeout(900)
    assert scale(page) / before == pytest.approx(1.6, rel=0.05)
    page.get_by_label("Whole slide").click()
    page.wait_for_timeout(900)
    assert scale(page) == pytest.approx(before, rel=0.02)
    # a tile is 32 um wide; the middle of the slide is the middle of the pane
    box = page.locator(".pane .deep").bounding_box()
    index, um = 5, before
    arrays = read_arrays(results.store("slides"), "tumour")
    x, y = (arrays["coords"][index] + 32 - np.array([320, 256])) * 0.5 * um
    page.mouse.click(box["x"] + box["width"] / 2 + x, box["y"] + box["height"] / 2 + y)
    page.get_by_role("heading", name=f"Tile {index}", exact=True).wait_for()
    scores = results.scores["smap_early", 1]["tumour"]
    told = page.locator("#tile td.score").first.inner_text()
    assert np.float32(told) == scores[index]
    rank = int((scores > scores[index]).sum()) + 1
    assert f"{rank} of {len(scores)}" in page.locator("#tile table").inner_text()
    assert f"{arrays['coords'][index][0]}, {arrays['coords'][index][1]} px" in page.locator("#tile").inner_text()
    assert page.locator("#tile img").evaluate("node => node.decode().then(() => node.naturalWidth)") == 64


def test_the_strips_are_those_of_the_figures(page, server, results):
    for key, bag, method in (("slides", "tumour", "smap_early"), ("scans", "bleed", "abmil")):
        open_bag(page, server.url, f"{key}/{bag}")
        store = results.store(key)
        coords, scores = read_arrays(store, bag, ["coords"])["coords"], results.scores[method, 1][bag]
        expected = extremes(read_instance_attrs(store, bag), coords, scores)
        page.locator(".strip button").first.wait_for()
        strips = [page.locator(".strip").nth(i).locator("button") for i in range(2)]
        shown = [buttons.evaluate_all("nodes => nodes.map(n => n.getAttribute('aria-label'))") for buttons in strips]
        assert shown == [[f"{'Tile' if key == 'slides' else 'Slice'} {i}" for i in strip] for strip in expected]


def test_layers_are_switched_and_show_the_scores(page, server, results):
    open_bag(page, server.url, "slides/tumour")
    page.wait_for_timeout(800)
    page.locator("#lesion").uncheck()
    full = drawn(page)
    painted = full[..., 3] > 0
    assert painted.any() and set(np.unique(full[..., 3])) == {0, 140}
    page.locator("#opacity").fill("1")
    solid = drawn(page)
    assert set(np.unique(solid[..., 3])) == {0, 255}
    # viridis from its first colour at the lowest score to its last at the highest
    colours = {tuple(colour) for colour in solid[painted][:, :3].tolist()}
    assert {(68, 1, 84), (253, 231, 37)} <= colours
    n = len(results.scores["smap_early", 1]["tumour"])
    assert n * 0.6 <= len(colours) <= n
    page.locator("#panel").get_by_label("Method").select_option("none")
    page.wait_for_timeout(300)
    assert not drawn(page).any()
    page.locator("#lesion").check()
    assert drawn(page).any()


def test_four_views_move_together(page, server):
    open_bag(page, server.url, "slides/tumour")
    page.locator("#layout button", has_text="4").click()
    page.locator(".pane .scale i").nth(3).wait_for()
    page.wait_for_timeout(500)
    box = page.locator(".pane").nth(2).bounding_box()
    before = scale(page, 0)
    page.mouse.move(box["x"] + 100, box["y"] + 150)
    page.mouse.wheel(0, -300)
    page.wait_for_timeout(1200)
    scales = [scale(page, pane) for pane in range(4)]
    assert scales[0] > 1.1 * before and np.ptp(scales) < 0.01 * scales[0]
    # two methods, so two views repeat the first
    names = page.locator(".pane .head select").evaluate_all("nodes => nodes.map(n => n.value)")
    assert names[:2] == ["resnet18|smap_early", "resnet18|abmil"]


def test_the_list_sorts_and_filters(page, server):
    open_bag(page, server.url, "slides/tumour")
    rows = page.locator(".bag")
    assert rows.count() == 4
    page.locator("#ranking").select_option("resnet18|abmil")
    # ABMIL misses the tumour: probability 0.3; the failed and the unused slide come last
    assert rows.first.locator(".name").text_content() == "tumour"
    assert "✗ 0.3" in rows.first.text_content() and "failed" in page.locator(".bag", has_text="broken").text_content()
    assert "1 of 2 test bags wrong" in page.locator("#count").inner_text()
    expect(page.locator(".pane .head select").first).to_have_value("resnet18|abmil", timeout=15_000)
    page.locator("#filter").fill("NOR")
    assert rows.locator(".name").all_text_contents() == ["normal"]
    rows.first.click()
    page.locator("#title", has_text="normal").wait_for()
    page.locator("#filter").fill("broken")
    rows.first.click()
    page.locator(".empty", has_text="not a slide").wait_for()


def test_a_scan_scrolls_and_its_window_changes(page, server, results):
    open_bag(page, server.url, "scans/bleed")
    attrs = read_instance_attrs(results.store("scans"), "bleed")
    canvas = "document.querySelector('.scan .view canvas')"
    page.locator(".scan .side.left", has_text="R").wait_for()

    def shown() -> np.ndarray:
        page.wait_for_timeout(250)
        code = f"() => Array.from({canvas}.getContext('2d').getImageData(0, 0, 16, 16).data)"
        return np.array(page.evaluate(code), np.uint8).reshape(16, 16, 4)[..., 0]

    def expected(index: int, level: float, width: float) -> np.ndarray:
        raw, header = read_slice(results.raw.parents[1] / "scans/raw" / attrs.files[index])
        return np.floor(255 * window(to_hu(raw, header), level, width) + 0.5)

    # the scan opens in its middle
    np.testing.assert_array_equal(shown(), expected(2, 40, 80))
    page.keyboard.press("Home")
    np.testing.assert_array_equal(shown(), expected(0, 40, 80))
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    np.testing.assert_array_equal(shown(), expected(2, 40, 80))
    page.get_by_role("button", name="Subdural").click()
    np.testing.assert_array_equal(shown(), expected(2, 80, 200))
    page.locator("#width").fill("60")
    page.locator("#width").press("Enter")
    np.testing.assert_array_equal(shown(), expected(2, 80, 60))
    page.get_by_label("Slice", exact=True).fill("4")
    np.testing.assert_array_equal(shown(), expected(4, 80, 60))
    box = page.locator(".scan .view").bounding_box()
    page.mouse.move(box["x"] + 50, box["y"] + 200)
    page.mouse.wheel(0, -100)
    np.testing.assert_array_equal(shown(), expected(3, 80, 60))
    assert np.float32(page.locator("#tile td.score").inner_text()) == results.scores["abmil", 1]["bleed"][3]
    # pixels are twice as high as wide
    side = page.locator(".scan .view canvas").bounding_box()
    assert side["height"] / side["width"] == pytest.approx(2, rel=0.02)


def test_the_last_of_many_quick_requests_is_shown(page, server):
    open_bag(page, server.url, "slides/tumour")
    for bag in ("scans/bleed", "slides/normal", "scans/clear", "slides/tumour", "slides/broken", "scans/bleed"):
        page.evaluate("bag => { location.hash = bag; }", bag)
        page.mouse.click(500, 400)
        page.mouse.wheel(0, 100)
    page.locator("#title", has_text="bleed").wait_for()
    page.locator(".scan .side.left", has_text="R").wait_for()
    assert sorted(page.locator(".bag .name").all_text_contents()) == ["bleed", "clear"]


def test_an_export_opens_from_a_folder(page, results, tmp_path):
    out = tmp_path / "page"
    assert main([str(results.folder), "--export", str(out), "--bags", "tumour", "bleed"]) == 0
    open_bag(page, f"file://{out}/index.html", "slides/tumour")
    page.wait_for_timeout(800)
    assert drawn(page).any()
    page.locator(".strip button").first.click()
    top = results.scores["smap_early", 1]["tumour"].max()
    assert np.float32(page.locator("#tile td.score").first.inner_text()) == top
    loaded = page.locator(".strip img").first.evaluate("node => node.decode().then(() => node.naturalWidth)")
    assert loaded == 64
    open_bag(page, f"file://{out}/index.html", "scans/bleed")
    page.locator(".scan .side.left", has_text="R").wait_for()
