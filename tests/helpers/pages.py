"""A page checker and hand-made slides for the tests of the sheet and the report."""

from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from preprocessing.common.files import write_json
from preprocessing.store.bags import InstanceAttrs, write_bag

VOID = {"img", "meta", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Checks nesting and collects tags and pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def put_slide(root: Path, bag_id: str, n: int, lesion: int, **more: object) -> None:
    """A slide of 4000 x 2000 px with a thumbnail at 1/10, n tiles of 200 px in a row of which `lesion` are covered."""
    from PIL import Image

    coords = np.stack([200 * np.arange(n), np.full(n, 400)], axis=1).astype(np.int32)
    arrays = {
        "coords": coords,
        "grid": np.stack([np.zeros(n, np.int32), np.arange(n, dtype=np.int32)], axis=1),
        "neighbors": np.full((n, 8), -1, np.int32),
        "coverage": (np.arange(n) < lesion).astype(np.float32),
    }
    attrs = {
        "dimensions": [4000, 2000],
        "l0_footprint_px": 200,
        "l0_step_px": 200,
        "mpp": 0.25,
        "mpp_source": "manifest",
        **more,
    }
    write_bag(root / "store", bag_id, arrays, InstanceAttrs(**attrs), key="k")
    folder = root / "thumbnails"
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (400, 200), "white").save(folder / f"{bag_id}.jpg", "JPEG")
    tissue = [[0, 0], [2000, 0], [2000, 2000], [0, 2000]]
    hole = [[100, 1000], [500, 1000], [500, 1500], [100, 1500]]
    outlines = {"downsample": 10.0, "tissue": [tissue], "holes": [hole], "lesion": [[[0, 400], [400, 400], [400, 600]]]}
    write_json(folder / f"{bag_id}.json", outlines)
