"""Slides: our tile reader against OpenSlide, and the chain to encoder input against CLAM's.

In: nothing (a slide is generated), or `--slide PATH`. Out: a table, or with `--json` a list of {name, ours, peer,
ratio, target, unit}; one core, CPU time per tile of 512 px. Both sides start with a file just opened, caches empty.
- reader: tiles of level 0 as RGB arrays, aligned with the file's tiles and 137 px off; the pixels have to be identical.
- chain: tiles to normalised batches (B, 3, 224, 224) through the code of the features stage, opening, self-check and
  threads included, against OpenSlide + Pillow + torchvision in a data loader. The tiles are compared after the resize:
  equal pixels.
"""

import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.timing import Case, Different, Fresh, Step, make_parser, run, scale_of
from preprocessing.common.cli import guard

SIDE, OFFSET, BATCH, INPUT_PX = 8192, 137, 32, 224
MOST_TILES = 256
# identical pixels leave only the last bits of the normalisation
NORMALISED_TOLERANCE = 1e-5
Coords = npt.NDArray[np.int32]


def reader(path: Path, coords: Coords) -> tuple[Step, Step]:
    """Prepare reading all tiles with our reader and with OpenSlide."""
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
    """Open a slide and run its self-check."""
    from preprocessing.slides.slide import open_slide

    slide = open_slide(path, require_mpp=False)
    # the first read runs the check; outside the slide it decodes no tile that is needed later
    slide.read(-8, -8, 0, (1, 1))
    return slide


def our_tiles(slide: Any, coords: Coords) -> Iterator[npt.NDArray[np.uint8]]:
    """Read tiles with the reader of the stages."""
    from bench.slide_files import attributes
    from preprocessing.slides.tile_reader import tile_source

    read = tile_source(slide, attributes())
    for x, y in coords.tolist():
        yield read(x, y)


def same_tiles(path: Path, coords: Coords, *_: object) -> None:
    """Raise `Different` unless every pixel of every tile is equal."""
    import openslide

    from bench.peer_readers import openslide_tiles
    from bench.slide_files import TILE_PX

    with opened(path) as slide, openslide.OpenSlide(str(path)) as handle:
        pairs = zip(our_tiles(slide, coords), openslide_tiles(handle, coords, TILE_PX), strict=True)
        for number, (ours, theirs) in enumerate(pairs):
            if not np.array_equal(ours, theirs):
                raise Different(f"{path}: tile {number} differs from OpenSlide's")


class InputOnly:
    """Stand-in for an encoder: normalise the input and return one mean per tile."""

    def __init__(self) -> None:
        import torch

        from preprocessing.features.transforms import Resize

        self.resize, self.device = Resize(INPUT_PX), torch.device("cpu")
        self.kept: list[Any] | None = None

    def forward(self, x: Any) -> Any:
        """Map (B, 3, h, w) to (B, 1)."""
        from preprocessing.features.encoders import IMAGENET_MEAN, IMAGENET_STD
        from preprocessing.features.transforms import normalised

        batch = normalised(x, IMAGENET_MEAN, IMAGENET_STD)
        if self.kept is not None:
            self.kept.append(batch)
        return batch[:, :, 0, 0].mean(1, keepdim=True)


def our_chain(path: Path, coords: Coords, encoder: InputOnly) -> None:
    """Turn all tiles into encoder input as the features stage does, with one decoding thread."""
    from bench.slide_files import attributes
    from preprocessing.features.extraction import BagPlan, Extraction
    from preprocessing.slides.tile_reader import iter_tiles

    def tiles(start: int, stop: int) -> Iterator[npt.NDArray[np.uint8]]:
        return iter_tiles(path, attributes(), coords[start:stop])

    plan = BagPlan("slide", len(coords), tiles, frozenset({"input"}))
    encoders: Any = {"input": encoder}
    with Extraction([plan], encoders, min(BATCH, len(coords)), 1) as extraction:
        extraction.result("slide")


def their_batches(handle: Any, coords: Coords) -> Iterator[Any]:
    """Return the peer's encoder input."""
    from bench.peer_readers import ClamTiles, clam_batches
    from bench.slide_files import TILE_PX
    from preprocessing.features.encoders import IMAGENET_MEAN, IMAGENET_STD

    return clam_batches(ClamTiles(handle, coords, TILE_PX, INPUT_PX, IMAGENET_MEAN, IMAGENET_STD), BATCH)


def chain(path: Path, coords: Coords) -> tuple[Step, Step]:
    """Prepare both ways from a slide to encoder input."""
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
    """Raise `Different` unless the first batches agree."""
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


def cases(path: Path, dimensions: tuple[int, int], most: int) -> list[Case]:
    """List readers and chains of one slide."""
    from bench.slide_files import lattice

    out = []
    for kind, offset, least in (("aligned", 0, 7.0), ("offset", OFFSET, 5.0)):
        coords = lattice(dimensions, offset=offset, most=most)
        title = f"{len(coords)} tiles, {kind}" + (f" by {offset} px" if offset else "")
        work, check = partial(reader, path, coords), partial(same_tiles, path, coords)
        out.append(Case(f"reader/{kind}", f"reader, {title}", work, least, check, len(coords), "ms per tile"))
        work, check = partial(chain, path, coords), partial(same_input, path, coords)
        out.append(Case(f"chain/{kind}", f"chain, {title}", work, 5.0, check, len(coords), "ms per tile"))
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = make_parser("slides", __doc__)
    parser.add_argument("--slide", type=Path, help="a slide to read, instead of a generated one")
    arguments = parser.parse_args(argv)
    scale = scale_of(arguments)
    with tempfile.TemporaryDirectory(prefix="bench-slides-") as folder:
        from bench.slide_files import write_slide
        from preprocessing.slides.slide import open_slide

        path = arguments.slide or write_slide(Path(folder) / "slide.tif", max(1024, round(SIDE * scale**0.5)))
        with open_slide(path, require_mpp=False) as slide:
            dimensions = slide.dimensions
        return run(cases(path, dimensions, max(1, round(MOST_TILES * scale))), arguments)


if __name__ == "__main__":
    raise SystemExit(guard(main)())
