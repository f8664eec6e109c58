"""Slides: our tile reader against OpenSlide, and the chain to encoder input against CLAM's.

A slide is generated unless `--slide PATH` names one: one level, tiled 4:2:0 JPEG of quality 80, about 45 kB per tile of
512 px, as scanned tissue has. One core, CPU time per tile of 512 px; both sides open the file and start with empty
caches.
- reader: tiles of level 0 as RGB arrays, aligned with the file's tiles and 137 px off.
- chain: tiles to normalised batches (B, 3, 224, 224) through the code of the features stage, self-check and threads
  included, against OpenSlide + Pillow + torchvision in a data loader. (CLAM also opens its file of coordinates for
  every tile; the peer here is spared that.)
Before anything is timed, the pixels of both sides have to be identical, those of the chain up to the last bits of the
normalisation.
"""

import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.timing import Case, Step, make_parser, run
from preprocessing.common.cli import guard

TILE_PX, MPP, SIDE, OFFSET, BATCH, INPUT_PX = 512, 0.5, 8192, 137, 32, 224
MOST_TILES = 256
NORMALISED_TOLERANCE = 1e-5
_BLOCK = 2048
Image = npt.NDArray[np.uint8]
Coords = npt.NDArray[np.int32]


class Different(RuntimeError):
    """The two sides did not compute the same."""


def tissue(side: int) -> Image:
    """Draw pink and violet noise of several scales, (side, side, 3)."""
    import cv2

    rng = np.random.default_rng(0)
    image = np.zeros((side, side, 3), np.float32)
    for scale, strength in ((64, 0.5), (16, 0.35), (4, 0.3), (2, 0.12)):
        coarse = rng.standard_normal((side // scale + 2, side // scale + 2, 3)).astype(np.float32)
        image += strength * np.asarray(cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC))
    return np.asarray(np.clip(image * [38, 45, 30] + [205, 150, 190], 0, 255), np.uint8)


def write_slide(path: Path, side: int) -> Path:
    """Write a square slide of repeated blocks of 2048 px."""
    import tifffile

    block = tissue(min(side, _BLOCK))
    times = -(-side // len(block))
    tifffile.imwrite(
        path,
        np.tile(block, (times, times, 1))[:side, :side],
        photometric="rgb",
        tile=(TILE_PX, TILE_PX),
        compression="jpeg",
        compressionargs={"level": 80},
        subsampling=(2, 2),
        resolution=(1e4 / MPP, 1e4 / MPP),
        resolutionunit="CENTIMETER",
        metadata=None,
        maxworkers=1,
    )
    return path


def lattice(dimensions: tuple[int, int], *, offset: int = 0, most: int = MOST_TILES) -> Coords:
    """Return (N, 2) level-0 (x, y) of tiles side by side, row by row: at most `most`, whole rows near the middle."""
    columns, rows = ((size - offset) // TILE_PX for size in dimensions)
    if columns < 1 or rows < 1:
        raise ValueError(f"--slide: found {dimensions[0]} x {dimensions[1]} px, expected {TILE_PX + offset} at least")
    # as square as the slide allows
    columns = min(columns, max(1, round(most**0.5)))
    kept = min(rows, max(1, most // columns))
    y, x = np.mgrid[(rows - kept) // 2 : (rows + kept) // 2, :columns]
    return (np.stack([x.ravel(), y.ravel()], axis=1) * TILE_PX + offset).astype(np.int32)


def our_tiles(path: Path, coords: Coords) -> Iterator[Image]:
    """Read tiles as the stages do."""
    from preprocessing.slides.tile_reader import iter_tiles
    from preprocessing.store.attrs import InstanceAttrs

    sides = dict.fromkeys(("tile_px", "read_px", "l0_step_px", "l0_footprint_px"), TILE_PX)
    return iter_tiles(path, InstanceAttrs(**sides, resize_filter="none", recipe="clam"), coords)


def their_tiles(path: Path, coords: Coords) -> Iterator[Any]:
    """Read tiles as pictures with OpenSlide."""
    import openslide

    with openslide.OpenSlide(path) as handle:
        for x, y in coords.tolist():
            yield handle.read_region((x, y), 0, (TILE_PX, TILE_PX)).convert("RGB")


class InputOnly:
    """Stand-in for an encoder: keep the normalised input of the first batches and return one mean per tile."""

    def __init__(self, kept: int = 0) -> None:
        import torch

        from preprocessing.features.transforms import Resize

        self.resize, self.device = Resize(INPUT_PX), torch.device("cpu")
        self.kept: list[Any] = []
        self._most = kept

    def forward(self, x: Any) -> Any:
        """Map (B, 3, h, w) to (B, 1)."""
        from preprocessing.features.encoders import IMAGENET_MEAN, IMAGENET_STD
        from preprocessing.features.transforms import normalised

        batch = normalised(x, IMAGENET_MEAN, IMAGENET_STD)
        self.kept += [batch] if len(self.kept) < self._most else []
        return batch[:, :, 0, 0].mean(1, keepdim=True)


def our_chain(path: Path, coords: Coords, encoder: InputOnly) -> None:
    """Turn all tiles into encoder input as the features stage does, with one decoding thread."""
    from preprocessing.features.extraction import BagPlan, Extraction

    plan = BagPlan("slide", len(coords), lambda a, b: our_tiles(path, coords[a:b]), frozenset({"input"}))
    encoders: Any = {"input": encoder}
    with Extraction([plan], encoders, min(BATCH, len(coords)), 1) as extraction:
        extraction.result("slide")


def their_chain(path: Path, coords: Coords) -> Iterator[Any]:
    """Yield the peer's encoder input (B, 3, h, w), loaded in this process so that its CPU time counts."""
    from torch.utils.data import DataLoader, IterableDataset
    from torchvision import transforms

    from preprocessing.features.encoders import IMAGENET_MEAN, IMAGENET_STD

    transform = transforms.Compose(
        [transforms.Resize(INPUT_PX), transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    )

    class Tiles(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return map(transform, their_tiles(path, coords))

    yield from DataLoader(Tiles(), batch_size=BATCH, num_workers=0)


def reader(path: Path, coords: Coords) -> tuple[Step, Step]:
    """Compare and prepare reading all tiles with our reader and with OpenSlide."""
    pairs = zip(our_tiles(path, coords), map(np.asarray, their_tiles(path, coords)), strict=True)
    for number, (ours, theirs) in enumerate(pairs):
        if not np.array_equal(ours, theirs):
            raise Different(f"{path}: tile {number} differs from OpenSlide's")
    return (
        lambda: sum(1 for _ in our_tiles(path, coords)),
        lambda: sum(1 for _ in map(np.asarray, their_tiles(path, coords))),
    )


def chain(path: Path, coords: Coords) -> tuple[Step, Step]:
    """Compare the first batches and prepare both ways from a slide to encoder input."""
    first, encoder = coords[: 2 * BATCH], InputOnly(kept=2)
    our_chain(path, first, encoder)
    for number, (ours, theirs) in enumerate(zip(encoder.kept, their_chain(path, first), strict=True)):
        off = float((ours[: len(theirs)] - theirs).abs().max())
        if off > NORMALISED_TOLERANCE:
            raise Different(f"{path}: encoder input of batch {number} differs by up to {off:.3g}")
    return lambda: our_chain(path, coords, InputOnly()), lambda: sum(1 for _ in their_chain(path, coords))


def cases(path: Path, dimensions: tuple[int, int], most: int) -> list[Case]:
    """List readers and chains of one slide."""
    out = []
    for kind, offset, least in (("aligned", 0, 7.0), ("offset", OFFSET, 5.0)):
        coords = lattice(dimensions, offset=offset, most=most)
        title = f"{len(coords)} tiles, {kind}" + (f" by {offset} px" if offset else "")
        for name, make, target in (("reader", reader, least), ("chain", chain, 5.0)):
            work = partial(make, path, coords)
            out.append(Case(f"{name}/{kind}", f"{name}, {title}", work, target, len(coords), "ms per tile"))
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = make_parser("slides", __doc__)
    parser.add_argument("--slide", type=Path, help="a slide to read, instead of a generated one")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="bench-slides-") as folder:
        from preprocessing.slides.slide import open_slide

        side = max(1024, round(SIDE * arguments.scale**0.5))
        path = arguments.slide or write_slide(Path(folder) / "slide.tif", side)
        with open_slide(path, require_mpp=False) as slide:
            dimensions = slide.dimensions
        run(cases(path, dimensions, max(1, round(MOST_TILES * arguments.scale))), arguments)
    return 0


if __name__ == "__main__":
    raise SystemExit(guard(main)())
