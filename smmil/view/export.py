"""Write the page with its tiles and layers to a folder that needs no server.

The addresses are those of `smmil.view.site`. Pictures keep theirs; data become scripts, which a browser also loads from
a folder on disk. `index.html` is written last, so a folder with it is complete.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from preprocessing.common.files import write_bytes
from preprocessing.slides.regions import TileReadError
from smmil.figures.top_tiles import extremes
from smmil.view.catalogue import Bag, Run
from smmil.view.images import SlideZoom, slide_zoom
from smmil.view.layers import geometry, instance_scores
from smmil.view.site import OPENSEADRAGON, Site

log = logging.getLogger(__name__)

# instances in each strip of the page; also in viewer.js
EXTREMES = 8
_SAMPLED = 9
_ASK_BYTES = 2_000_000_000


def chosen(site: Site, names: list[str]) -> Site:
    """Return the site with these bags only; [] = all."""
    if not names:
        return site
    wanted = {bag for name in names for bag in site.find(name)}
    bags = {
        key: {name: bag for name, bag in cohort.bags.items() if (key, name) in wanted}
        for key, cohort in site.cohorts.items()
    }
    return replace(site, cohorts={key: replace(site.cohorts[key], bags=part) for key, part in bags.items() if part})


def expected_size(site: Site) -> tuple[int, int]:
    """Estimate the number of files and of bytes: of a slide from a sample of its tiles, of a scan from its pixels."""
    files = size = 0
    for cohort in site.cohorts.values():
        runs = cohort.runs()
        for bag in cohort.bags.values():
            files += 2
            if not bag.stored:
                continue
            attrs = bag.attrs
            n, layers = attrs.store.n, sum(run.predictions(bag) is not None for run in runs)
            pictures = min(n, 2 * EXTREMES * layers)
            # three kinds of scores of 4 bytes each, as text
            files, size = files + layers + pictures, size + 16 * n * layers + 6000 * pictures
            if attrs.modality == "ct":
                rows, columns = attrs.source_px or (attrs.slice_px, attrs.slice_px)
                # half of 16 bits after compression, four thirds as text
                files, size = files + n, size + int(n * rows * columns * 4 / 3)
            elif zoom := _zoom(bag):
                files += zoom.generator.tile_count
                size += int(zoom.generator.tile_count * _mean_bytes(zoom))
    return files, size


def _zoom(bag: Bag) -> SlideZoom | None:
    try:
        return slide_zoom(bag)
    except ValueError:
        return None


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
    """Write the site to a new or empty folder, or over an earlier export; its size is printed before.

    Raises:
        ValueError: a folder with other files, too little room on the disk, or a large export without confirmation.
    """
    if not site.has_openseadragon and any(c.entry.modality == "wsi" for c in site.cohorts.values()):
        raise ValueError(
            "--export: OpenSeadragon is not installed, so slides could not be zoomed; run `make viewer` in the checkout"
        )
    if out.exists() and any(out.iterdir()) and not (out / "viewer.js").is_file():
        raise ValueError(f"--export {out}: holds other files, expected a new folder or an earlier export")
    files, size = expected_size(site)
    bags = sum(len(cohort.bags) for cohort in site.cohorts.values())
    print(f"export to {out}: {bags} bags, {files:,} files, about {size / 1e6:,.0f} MB", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out).free
    if size > free:
        raise ValueError(f"--export {out}: {free / 1e6:,.0f} MB are free there; choose bags with --bags")
    if size > _ASK_BYTES and not confirmed:
        raise ValueError("--export: more than 2 GB; choose bags with --bags, or confirm with --yes")
    (out / "index.html").unlink(missing_ok=True)
    # bags of an earlier export must not be passed on with this one
    for name in ("data", "images"):
        if (out / name).is_dir():
            shutil.rmtree(out / name)
    site = replace(site, static=True)
    for address in ("viewer.js", "viewer.css", *([OPENSEADRAGON] if site.has_openseadragon else [])):
        write_bytes(out / address, site.get(address).body)
    _data(site, out, "data/catalogue")
    for key, cohort in site.cohorts.items():
        _data(site, out, f"data/{key}/bags")
        for number, (name, bag) in enumerate(cohort.bags.items(), 1):
            for address in _addresses(f"{key}/{name}", bag, cohort.runs()):
                _write(site, out, address)
            print(f"{key}/{name} ({number} of {len(cohort.bags)})", flush=True)
    write_bytes(out / "index.html", site.get("index.html").body)


def _addresses(place: str, bag: Bag, runs: Sequence[Run]) -> Iterator[str]:
    yield f"data/{place}/bag"
    yield f"images/{place}/thumbnail.jpg"
    if not bag.stored:
        return
    attrs, arrays = geometry(bag)
    extreme: set[int] = set()
    for run in runs:
        scores = instance_scores(bag, run)
        if scores:
            yield f"data/{place}/scores-{run.id}"
        for values in scores.values():
            extreme.update(*extremes(attrs, arrays["coords"], values, EXTREMES))
    yield from (f"images/{place}/instance-{index}.jpg" for index in sorted(extreme))
    if attrs.modality == "ct":
        yield from (f"data/{place}/slice-{index}" for index in range(attrs.store.n))
    elif zoom := _zoom(bag):
        for level, (columns, rows) in enumerate(zoom.generator.level_tiles):
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
