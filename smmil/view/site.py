"""The files of the page by their address, for the server and for the export.

| address | content |
|---|---|
| `data/catalogue` | `Catalogue` |
| `data/C/bags` | `BagList` of cohort C |
| `data/C/B/bag` | `BagView` of bag B |
| `data/C/B/scores-R` | `Scores` of the run with id R |
| `data/C/B/slice-I` | `SliceView` |
| `images/C/B/thumbnail.jpg` | thumbnail, or montage of a scan |
| `images/C/B/instance-I.jpg` | tile or slice I |
| `images/C/B/L/X_Y.jpg` | deep-zoom tile: level, column, row |

Cohorts and bags are looked up by name, never joined to a path, so no address leads out of the folders.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from preprocessing.common.cli import nearest
from smmil.view.catalogue import Bag, Cohort
from smmil.view.images import instance_picture, slice_view, slide_zoom, thumbnail
from smmil.view.layers import bag_view, scores
from smmil.view.records import Catalogue, as_json

STATIC = Path(__file__).parent / "static"
OPENSEADRAGON = "vendor/openseadragon.min.js"
INSTALL = "run `make viewer` in the checkout of smmil, then start this command again"
_SCORES = re.compile(r"scores-([0-9a-f]{12})")
_SLICE = re.compile(r"slice-(\d{1,7})")
_PICTURE = re.compile(r"instance-(\d{1,7})\.jpg")
_ZOOM = re.compile(r"(\d{1,2})/(\d{1,6})_(\d{1,6})\.jpg")
_SCRIPT = '<script src="{}"></script>'


class NoSuchPage(Exception):
    """The address belongs to nothing."""


@dataclass(frozen=True)
class Reply:
    """Content of an address."""

    body: bytes
    kind: str


@dataclass
class Site:
    """Everything that can be shown.

    `start` is the `cohort/bag` to open first, or ""; `static` pages are written to a folder, where their data are
    scripts, which work without a server.
    """

    title: str
    cohorts: Mapping[str, Cohort]
    start: str = ""
    static: bool = False

    @property
    def has_openseadragon(self) -> bool:
        """Whether slides can be zoomed."""
        return (STATIC / OPENSEADRAGON).is_file()

    def get(self, address: str) -> Reply:
        """Return the content of an address.

        Raises:
            NoSuchPage: the address belongs to nothing.
            ValueError: something it needs cannot be read.
        """
        if address in ("", "index.html"):
            return Reply(self.page(), "text/html; charset=utf-8")
        # Only these names are served, so no other file of the folder can be read.
        if address in ("viewer.js", "viewer.css", OPENSEADRAGON) and (STATIC / address).is_file():
            kind = "text/css" if address.endswith("css") else "text/javascript"
            return Reply((STATIC / address).read_bytes(), f"{kind}; charset=utf-8")
        folder, _, rest = address.partition("/")
        if folder == "data":
            return Reply(self._data(rest), "application/json")
        if folder == "images":
            return Reply(self._image(rest), "image/jpeg")
        raise NoSuchPage(address)

    def find(self, name: str) -> list[tuple[str, str]]:
        """Return cohort and name of the bags with a name, `NAME` or `COHORT/NAME`."""
        bags = [(key, bag) for key, cohort in self.cohorts.items() for bag in cohort.bags]
        matches = [(key, bag) for key, bag in bags if name in (bag, f"{key}/{bag}")]
        if not matches:
            raise ValueError(f"{self.title}: no bag {name!r}{nearest(name, [bag for _, bag in bags])}")
        return matches

    def page(self) -> bytes:
        """Return the page."""
        scripts = [OPENSEADRAGON] if self.has_openseadragon else []
        tags = "\n".join(_SCRIPT.format(name) for name in [*scripts, "viewer.js"])
        text = (STATIC / "index.html").read_text(encoding="utf-8")
        return text.replace("<!-- scripts -->", tags).replace("@mode@", "static" if self.static else "server").encode()

    def catalogue(self) -> Catalogue:
        """Return the cohorts."""
        note = f"Slides cannot be zoomed, because OpenSeadragon is not installed: {INSTALL}."
        notes = () if self.has_openseadragon else (note,)
        return Catalogue(self.title, tuple(cohort.entry for cohort in self.cohorts.values()), self.start, notes)

    def _data(self, rest: str) -> bytes:
        match rest.split("/"):
            case ["catalogue"]:
                return as_json(self.catalogue())
            case [key, "bags"] if key in self.cohorts:
                return as_json(self.cohorts[key].listing())
            case [key, name, what]:
                bag = self._bag(key, name)
                if what == "bag":
                    return as_json(bag_view(name, bag))
                if match := _SLICE.fullmatch(what):
                    return as_json(slice_view(bag, int(match[1])))
                if match := _SCORES.fullmatch(what):
                    run = next((run for run in self.cohorts[key].runs() if run.id == match[1]), None)
                    if run is not None:
                        return as_json(scores(bag, run))
        raise NoSuchPage(f"data/{rest}")

    def _image(self, rest: str) -> bytes:
        match rest.split("/", 2):
            case [key, name, what]:
                bag = self._bag(key, name)
                if what == "thumbnail.jpg":
                    return thumbnail(bag)
                if match := _PICTURE.fullmatch(what):
                    return instance_picture(bag, int(match[1]))
                if match := _ZOOM.fullmatch(what):
                    level, column, row = map(int, match.groups())
                    return slide_zoom(bag).tile(level, column, row)
        raise NoSuchPage(f"images/{rest}")

    def _bag(self, key: str, name: str) -> Bag:
        if key not in self.cohorts or name not in self.cohorts[key].bags:
            raise NoSuchPage(f"{key}/{name}")
        return self.cohorts[key].bags[name]
