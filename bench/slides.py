"""Slides: our tile reader against OpenSlide, the chain to encoder input against CLAM's way, and lesion coverage.

In: nothing (a slide is generated), or `--slide PATH`. Out: a table, or with `--json` a list of {name, ours, peer,
ratio, target, unit}; one core, CPU time per tile of 512 px. Both sides start with a file just opened, caches empty.
- reader: tiles of level 0 as RGB arrays, aligned with the file's tiles and 137 px off; the pixels have to be identical.
- codec: the JPEG codec alone on tiles of a generated slide, against OpenSlide reading as many: the most a reader gets.
- chain: tiles to normalised batches (B, 3, 224, 224) through the code of the features stage, opening, self-check and
  threads included, against OpenSlide + Pillow + torchvision in a data loader. The tiles are compared after the resize:
  equal pixels.
- open: opening a slide with our self-check, per slide; there is no peer.
- coverage: share of 20,000 tiles inside 100 outlines of 1,000 vertices, round or jagged, and of 10,000 tiles inside the
  outlines of a real slide (`--polygons`, by default Tumor_016 of the shared data where it is there); seconds. A sample
  of the tiles is compared with shapely's intersections, to 1e-9.
"""

import argparse
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bench.timing import Step, add_arguments, scale_of
from bench.trials import Different, Fresh, Trial, run_trials
from preprocessing.cli import guard, setup_logging

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

SIDE, OFFSET, BATCH, INPUT_PX = 8192, 137, 32, 224
MOST_TILES = 256
OUTLINES, VERTICES, TILES, REAL_TILES = 100, 1000, 20_000, 10_000
# identical pixels leave only the last bits of the normalisation
NORMALISED_TOLERANCE = 1e-5
REAL = Path(__file__).resolve().parents[2] / "shared/data/camelyon16/lesion_polygons/Tumor_016.json"
Coords = npt.NDArray[np.int32]


def reader(path: Path, coords: Coords) -> tuple[Step, Step]:
    """Reading all tiles, ours and OpenSlide's."""
    import openslide

    from bench.peer_readers import openslide_tiles
    from bench.slide_files import TILE_PX

    def theirs(handle: Any) -> None:
        deque(openslide_tiles(handle, coords, TILE_PX), maxlen=0)

    return (
        Fresh(partial(opened, path), lambda slide: deque(our_tiles(slide, coords), maxlen=0), lambda s: s.close()),
        Fresh(lambda: openslide.OpenSlide(str(path)), theirs, lambda handle: handle.close()),
    )


def opened(path: Path) -> Any:
    """An open slide whose self-check is done."""
    from preprocessing.slide import open_slide

    slide = open_slide(path, require_mpp=False)
    # the check runs before the first read; a place outside decodes no tile that is asked for later
    slide.read(-8, -8, 0, (1, 1))
    return slide


def our_tiles(slide: Any, coords: Coords) -> Iterator[npt.NDArray[np.uint8]]:
    """Tiles through the reader of the stages."""
    from bench.slide_files import attributes
    from preprocessing.tile_reader import tile_source

    read = tile_source(slide, attributes())
    for x, y in coords.tolist():
        yield read(x, y)


def same_tiles(path: Path, coords: Coords, *_: object) -> None:
    """Raises `Different` unless every pixel of every tile is equal."""
    import openslide

    from bench.peer_readers import openslide_tiles
    from bench.slide_files import TILE_PX

    with opened(path) as slide, openslide.OpenSlide(str(path)) as handle:
        pairs = zip(our_tiles(slide, coords), openslide_tiles(handle, coords, TILE_PX), strict=True)
        for number, (ours, theirs) in enumerate(pairs):
            if not np.array_equal(ours, theirs):
                raise Different(f"{path}: tile {number} differs from OpenSlide's")


class InputOnly:
    """Takes the place of an encoder: normalises its input and keeps no more than a mean of it per tile."""

    def __init__(self) -> None:
        import torch

        from preprocessing.transforms import Resize

        self.resize, self.device = Resize(INPUT_PX), torch.device("cpu")
        self.kept: list[Any] | None = None

    def forward(self, x: Any) -> Any:
        """(B, 3, h, w) -> (B, 1)."""
        from preprocessing.encoders import IMAGENET_MEAN, IMAGENET_STD
        from preprocessing.transforms import normalised

        batch = normalised(x, IMAGENET_MEAN, IMAGENET_STD)
        if self.kept is not None:
            self.kept.append(batch)
        return batch[:, :, 0, 0].mean(1, keepdim=True)


def our_chain(path: Path, coords: Coords, encoder: InputOnly) -> None:
    """All tiles to encoder input as the features stage does it, with one decoding thread."""
    from bench.slide_files import attributes
    from preprocessing.extraction import BagPlan, Extraction
    from preprocessing.tile_reader import iter_tiles

    def tiles(start: int, stop: int) -> Iterator[npt.NDArray[np.uint8]]:
        return iter_tiles(path, attributes(), coords[start:stop])

    plan = BagPlan("slide", len(coords), tiles, frozenset({"input"}))
    encoders: Any = {"input": encoder}
    with Extraction([plan], encoders, min(BATCH, len(coords)), 1) as extraction:
        extraction.result("slide")


def their_batches(handle: Any, coords: Coords) -> Iterator[Any]:
    """The peer's encoder input."""
    from bench.peer_readers import ClamTiles, clam_batches
    from bench.slide_files import TILE_PX
    from preprocessing.encoders import IMAGENET_MEAN, IMAGENET_STD

    return clam_batches(ClamTiles(handle, coords, TILE_PX, INPUT_PX, IMAGENET_MEAN, IMAGENET_STD), BATCH)


def chain(path: Path, coords: Coords) -> tuple[Step, Step]:
    """Slide to encoder input, ours and CLAM's way."""
    import openslide

    return (
        lambda: our_chain(path, coords, InputOnly()),
        Fresh(
            lambda: openslide.OpenSlide(str(path)),
            lambda handle: deque(their_batches(handle, coords), maxlen=0),
            lambda handle: handle.close(),
        ),
    )


def same_input(path: Path, coords: Coords, *_: object) -> None:
    """Raises `Different` unless the first batches agree."""
    import openslide

    first, encoder = coords[: 2 * BATCH], InputOnly()
    encoder.kept = []
    our_chain(path, first, encoder)
    with openslide.OpenSlide(str(path)) as handle:
        done = 0
        for ours, theirs in zip(encoder.kept, their_batches(handle, first), strict=True):
            off = float((ours[: len(theirs)] - theirs).abs().max())
            if off > NORMALISED_TOLERANCE:
                raise Different(f"{path}: encoder input of tiles {done}... differs by up to {off:.3g}")
            done += len(theirs)


def slide_trials(path: Path, dimensions: tuple[int, int], most: int) -> list[Trial]:
    """Readers, chains and opening of one slide."""
    from bench.slide_files import lattice

    out = []
    for kind, offset, least in (("aligned", 0, 7.0), ("offset", OFFSET, 5.0)):
        coords = lattice(dimensions, offset=offset, most=most)
        title = f"{len(coords)} tiles, {kind}" + (f" by {offset} px" if offset else "")
        work, check = partial(reader, path, coords), partial(same_tiles, path, coords)
        out.append(Trial(f"reader/{kind}", f"reader, {title}", work, least, check, len(coords), "ms per tile"))
        work, check = partial(chain, path, coords), partial(same_input, path, coords)
        out.append(Trial(f"chain/{kind}", f"chain, {title}", work, 5.0, check, len(coords), "ms per tile"))
    name = "open a slide with self-check"
    out.append(Trial("open", name, lambda: (lambda: opened(path).close(), None), None, unit="ms per slide"))
    return out


def codec_trial(path: Path, dimensions: tuple[int, int], most: int) -> Trial:
    """The JPEG codec alone on a generated slide."""
    from bench.peer_readers import bare_decoder
    from bench.slide_files import lattice

    coords = lattice(dimensions, most=most)
    name, n = f"codec alone, {len(coords)} tiles", len(coords)
    return Trial("codec", name, lambda: (bare_decoder(path, n), reader(path, coords)[1]), None, None, n, "ms per tile")


def outlines(n: int, vertices: int, span: int, *, jagged: bool, seed: int = 0) -> "BaseGeometry":
    """Separate outlines on a square of `span` px: round with bumps, or with a random radius at every vertex."""
    import shapely

    rng, side = np.random.default_rng(seed), int(np.ceil(n**0.5))
    angle = np.linspace(0, 2 * np.pi, vertices, endpoint=False)
    polygons = []
    for i in range(n):
        centre = (np.array([i % side, i // side]) + 0.5) * span / side
        bumps = 1 + 0.2 * np.sin(3 * angle + i) + 0.05 * np.sin(41 * angle)
        radius = rng.uniform(0.4, 1.0, vertices) if jagged else 0.75 * bumps
        ring = centre + 0.48 * span / side * radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        polygons.append(shapely.Polygon(ring))
    return shapely.MultiPolygon(polygons)


def same_shares(lesion: "BaseGeometry", coords: Coords, footprint: int, sample: int, ours: Any, _: object) -> None:
    """Raises `Different` unless a sample of tiles has the share that shapely cuts out, to 1e-9."""
    import shapely

    chosen = np.random.default_rng(1).permutation(len(coords))[:sample]
    x, y = coords[chosen].astype(float).T
    boxes = shapely.box(x, y, x + footprint, y + footprint)
    expected = np.zeros(len(chosen))
    for part in shapely.get_parts(lesion):
        near = shapely.STRtree(boxes).query(part)
        expected[near] += shapely.area(shapely.intersection(part, boxes[near])) / footprint**2
    worst = float(np.abs(ours[chosen] - expected).max())
    if worst > 1e-9:
        raise Different(f"coverage differs from shapely's intersection by {worst:.3g} of a tile")


def coverage_trials(scale: float, real: Path | None) -> list[Trial]:
    """Coverage of generated and of real outlines, limits in seconds."""
    from bench.slide_files import TILE_PX

    def trial(key: str, name: str, make: Callable[[], tuple["BaseGeometry", Coords]], limit: float) -> Trial:
        from preprocessing.coverage import shares

        made: list[Any] = []

        def sides() -> tuple[Step, None]:
            made[:] = make()
            return lambda: shares(made[0], made[1], TILE_PX), None

        def check(ours: Any, theirs: object) -> None:
            same_shares(made[0], made[1], TILE_PX, max(20, round(400 * scale)), ours, theirs)

        return Trial(key, name, sides, limit, check, unit="s")

    out = []
    side, n = round((TILES * scale) ** 0.5 + 0.5), max(1, round(OUTLINES * scale))
    coords = lattice_over((0, 0, side * TILE_PX, side * TILE_PX), side * side)
    for kind in ("round", "jagged"):
        make = partial(outlines, n, VERTICES, side * TILE_PX, jagged=kind == "jagged")
        name = f"coverage, {len(coords)} tiles, {n} {kind} outlines x {VERTICES}"
        out.append(trial(f"coverage/{kind}", name, lambda make=make: (make(), coords), 1.0))  # type: ignore[misc]
    if real is not None:
        out.append(trial("coverage/real", *real_outlines(real, round(REAL_TILES * scale)), 2.0))
    return out


def real_outlines(path: Path, n: int) -> tuple[str, Callable[[], tuple["BaseGeometry", Coords]]]:
    """Name and maker of n tiles over the outlines of a file."""
    from preprocessing.annotations import read_lesion

    lesion = read_lesion(path).geometry
    coords = lattice_over(lesion.bounds, n)
    return f"coverage, {len(coords)} tiles, outlines of {path.stem}", lambda: (lesion, coords)


def lattice_over(bounds: Sequence[float], n: int) -> Coords:
    """About n tiles on a lattice over a rectangle, overlapping if it is small."""
    x0, y0, x1, y1 = bounds
    step = max(1.0, ((x1 - x0) * (y1 - y0) / n) ** 0.5)
    x, y = np.meshgrid(np.arange(x0, x1, step).astype(np.int32), np.arange(y0, y1, step).astype(np.int32))
    return np.stack([x.ravel(), y.ravel()], axis=1)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line, see the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m bench.slides", description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    parser.add_argument("--slide", type=Path, help="a slide to read, instead of a generated one")
    parser.add_argument("--polygons", type=Path, help="an annotation file for coverage/real")
    arguments = parser.parse_args(argv)
    setup_logging()
    scale, real = scale_of(arguments), arguments.polygons or (REAL if REAL.is_file() else None)
    with tempfile.TemporaryDirectory(prefix="bench-slides-") as folder:
        from bench.slide_files import write_slide
        from preprocessing.slide import open_slide

        path = arguments.slide or write_slide(Path(folder) / "slide.tif", max(1024, round(SIDE * scale**0.5)))
        with open_slide(path, require_mpp=False) as slide:
            dimensions = slide.dimensions
        most = max(1, round(MOST_TILES * scale))
        trials = slide_trials(path, dimensions, most)
        if arguments.slide is None:
            trials.append(codec_trial(path, dimensions, most))
        return run_trials([*trials, *coverage_trials(scale, real)], arguments)


if __name__ == "__main__":
    raise SystemExit(guard(main)())
