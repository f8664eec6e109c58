"""Write the page with its tiles and layers to a folder that needs no server.

The addresses are those of `smmil.view.site`. Pictures keep theirs; data become scripts, which a browser also loads from
a folder on disk. `index.html` is written last, so a folder with it is complete.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from preprocessing.common.files import write_bytes
from preprocessing.slides.regions import TileReadError
from preprocessing.store.bags import read_instance_attrs
from smmil.figures.top_tiles import extremes
from smmil.view.catalogue import Cohort
from smmil.view.images import SlideZoom, slide_zoom
from smmil.view.layers import geometry, instance_scores
from smmil.view.site import OPENSEADRAGON, Site

log = logging.getLogger(__name__)

# instances in each strip of the page; also in viewer.js
EXTREMES = 8
_SAMPLED = 9
_ASK_BYTES = 2_000_000_000


@dataclass(frozen=True)
class Size:
    """Expected size of an export."""

    bags: int
    files: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.bags} bags, {self.files:,} files, about {self.bytes / 1e6:,.0f} MB"


def chosen(site: Site, names: list[str]) -> Site:
    """Return the site with these bags only; [] = all.

    Raises:
        ValueError: there is no such bag.
    """
    if not names:
        return site
    wanted = {bag for name in names for bag in site.find(name)}
    cohorts = {}
    for key, cohort in site.cohorts.items():
        bags = {name: store for name, store in cohort.bags.items() if (key, name) in wanted}
        if bags:
            cohorts[key] = replace(cohort, bags=bags)
    return replace(site, cohorts=cohorts)


def expected_size(site: Site) -> Size:
    """Estimate files and bytes: of a slide from a sample of its tiles, of a scan from its pixels."""
    bags = files = size = 0
    for cohort in site.cohorts.values():
        runs = cohort.runs()
        for name, store in cohort.bags.items():
            bags += 1
            if not store.stored(cohort.ids[name]):
                files += 2
                continue
            attrs = read_instance_attrs(store.instances / "store", cohort.ids[name])
            n = attrs.store.n
            layers = sum(run.predicts(store, cohort.ids[name]) for run in runs)
            pictures = min(n, 2 * EXTREMES * layers)
            files += 2 + layers + pictures
            # three kinds of scores of 4 bytes each, as text
            size += 16 * n * layers + 6000 * pictures
            if attrs.modality == "ct":
                rows, columns = attrs.source_px or (attrs.slice_px, attrs.slice_px)
                # half of 16 bits after compression, four thirds as text
                files, size = files + n, size + int(n * rows * columns * 4 / 3)
                continue
            try:
                zoom = slide_zoom(store, cohort.ids[name])
            except ValueError:
                continue
            tiles = zoom.generator.tile_count
            files, size = files + tiles, size + int(tiles * _mean_bytes(zoom))
    return Size(bags, files, size)


def _mean_bytes(zoom: SlideZoom) -> float:
    """Return the mean size of some tiles of the finest level, evenly spaced."""
    columns, rows = zoom.generator.level_tiles[-1]
    numbers = np.unique(np.linspace(0, columns * rows - 1, _SAMPLED).astype(int)).tolist()
    sizes = []
    for number in numbers:
        try:
            sizes.append(len(zoom.tile(zoom.generator.level_count - 1, number % columns, number // columns)))
        except TileReadError:
            sizes.append(0)
    return float(np.mean(sizes))


def export(site: Site, out: Path, *, confirmed: bool = False) -> None:
    """Write the site; its size is printed before.

    Args:
        site: what is written.
        out: a new or empty folder, or an earlier export.
        confirmed: whether more than 2 GB are written.

    Raises:
        ValueError: a folder with other files, too little room on the disk, or a large export without confirmation.
    """
    if not site.has_openseadragon and any(c.entry.modality == "wsi" for c in site.cohorts.values()):
        raise ValueError(
            "--export: OpenSeadragon is not installed, so slides could not be zoomed; run `make viewer` in the checkout"
        )
    if out.exists() and any(out.iterdir()) and not (out / "viewer.js").is_file():
        raise ValueError(f"--export {out}: holds other files, expected a new folder or an earlier export")
    size = expected_size(site)
    print(f"export to {out}: {size}", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out).free
    if size.bytes > free:
        raise ValueError(f"--export {out}: {free / 1e6:,.0f} MB are free there; choose bags with --bags")
    if size.bytes > _ASK_BYTES and not confirmed:
        raise ValueError("--export: more than 2 GB; choose bags with --bags, or confirm with --yes")
    (out / "index.html").unlink(missing_ok=True)
    # bags of an earlier export must not be passed on with this one
    for name in ("data", "images"):
        if (out / name).is_dir():
            shutil.rmtree(out / name)
    site = replace(site, static=True)
    for address in ("viewer.js", "viewer.css", OPENSEADRAGON):
        if address != OPENSEADRAGON or site.has_openseadragon:
            write_bytes(out / address, site.get(address).body)
    _data(site, out, "data/catalogue")
    for key, cohort in site.cohorts.items():
        _data(site, out, f"data/{key}/bags")
        for number, name in enumerate(cohort.bags, 1):
            for address in _addresses(key, cohort, name):
                _write(site, out, address)
            print(f"{key}/{name} ({number} of {len(cohort.bags)})", flush=True)
    write_bytes(out / "index.html", site.get("index.html").body)


def _addresses(key: str, cohort: Cohort, name: str) -> Iterator[str]:
    store, bag_id = cohort.bags[name], cohort.ids[name]
    place = f"{key}/{name}"
    yield f"data/{place}/bag"
    yield f"images/{place}/thumbnail.jpg"
    if not store.stored(bag_id):
        return
    attrs, arrays = geometry(store, bag_id)
    shown: set[int] = set()
    for run in cohort.runs():
        scores = instance_scores(cohort, name, run)
        if scores:
            yield f"data/{place}/scores-{run.id}"
        for values in scores.values():
            shown.update(*extremes(attrs, arrays["coords"], values, EXTREMES))
    yield from (f"images/{place}/instance-{index}.jpg" for index in sorted(shown))
    if cohort.row(name).modality == "ct":
        yield from (f"data/{place}/slice-{index}" for index in range(attrs.store.n))
        return
    try:
        generator = slide_zoom(store, bag_id).generator
    except ValueError:
        return
    for level, (columns, rows) in enumerate(generator.level_tiles):
        yield from (f"images/{place}/{level}/{x}_{y}.jpg" for y in range(rows) for x in range(columns))


def _write(site: Site, out: Path, address: str) -> None:
    """Write one file; what cannot be read is logged and left out, as the page of the server shows it."""
    try:
        if address.startswith("data/"):
            _data(site, out, address)
        else:
            write_bytes(out / address, site.get(address).body)
    except (ValueError, TileReadError, OSError) as error:
        log.warning("%s is left out: %s", address, error)


def _data(site: Site, out: Path, address: str) -> None:
    body = site.get(address).body.decode()
    write_bytes(out / f"{address}.js", f"smmilData({json.dumps(address)},{body});\n".encode())
