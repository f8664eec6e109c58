"""Pictures of slides and scans: deep-zoom tiles, instance tiles, thumbnails, and slices in Hounsfield units.

What is missing, damaged or not what the bag was cut from raises `ValueError`, whose message the page shows.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from openslide.deepzoom import DeepZoomGenerator
from PIL import Image

from preprocessing.scans.dicom import Header, read_slice
from preprocessing.scans.windows import to_hu, window
from preprocessing.slides.slide import Slide, open_slide
from preprocessing.slides.tile_reader import check_same_slide, read_tile
from preprocessing.store.bags import read_arrays
from smmil.view.catalogue import Bag, Store
from smmil.view.records import Packed, SliceView, Zoom

TILE_PX, OVERLAP_PX = 510, 1
OPEN_SLIDES = 6
LEVEL_TOLERANCE = 0.005
_BRAIN = (40, 80)
# Longest side of slices in the strips; tiles keep the size of the encoder's input.
_THUMB_PX = 256


class _Levels:
    """What the deep-zoom generator asks of a slide, as `preprocessing.slides` reads it: checked levels."""

    def __init__(self, slide: Slide) -> None:
        self.slide = slide
        self.level_dimensions, self.level_downsamples = slide.level_dimensions, slide.level_downsamples
        self.properties: Mapping[str, str] = {}

    def get_best_level_for_downsample(self, downsample: float) -> int:
        return self.slide.level_at(downsample, LEVEL_TOLERANCE)

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
        return Image.fromarray(self.slide.read(*location, level, size)).convert("RGBA")


class SlideZoom:
    """An open slide and its deep-zoom pyramid; several threads may read."""

    def __init__(self, slide: Slide) -> None:
        self.slide = slide
        levels: Any = _Levels(slide)
        self.generator = DeepZoomGenerator(levels, TILE_PX, OVERLAP_PX)

    @property
    def record(self) -> Zoom:
        """What the page needs to ask for tiles."""
        width, height = self.slide.dimensions
        return Zoom(width, height, self.generator.level_count, TILE_PX, OVERLAP_PX)

    def tile(self, level: int, column: int, row: int) -> bytes:
        """Return one tile as JPEG."""
        return _jpeg(self.generator.get_tile(level, (column, row)))


def slide_zoom(bag: Bag) -> SlideZoom:
    """Open the slide of a bag; the last few stay open."""
    path = bag.store.raw(bag.row.images[0])
    return _open(bag.store, bag.id, path, path.stat().st_mtime_ns)


# OpenSlide closes a slide when its last reader drops it
@lru_cache(maxsize=OPEN_SLIDES)
def _open(store: Store, bag_id: str, path: Path, mtime_ns: int) -> SlideZoom:
    bag = Bag(store, bag_id)
    slide = open_slide(path, mpp_override=bag.row.mpp, require_mpp=False, raw=False)
    if bag.stored:
        check_same_slide(slide, bag.attrs)
    return SlideZoom(slide)


def instance_picture(bag: Bag, index: int) -> bytes:
    """Return one tile as the encoder receives it, or one slice in the brain window, as JPEG."""
    attrs = bag.attrs
    if not 0 <= index < attrs.store.n:
        raise ValueError(f"{bag.id}: no instance {index}, found {attrs.store.n}")
    if attrs.modality == "ct":
        raw, header = read_slice(bag.store.raw(attrs.files[index]), attrs.files[index])
        picture = Image.fromarray(np.uint8(np.rint(255 * window(to_hu(raw, header), *_BRAIN))))
        picture.thumbnail((_THUMB_PX, _THUMB_PX))
        return _jpeg(picture)
    x, y = read_arrays(bag.store.instances / "store", bag.id, ["coords"])["coords"][index].tolist()
    return _jpeg(Image.fromarray(read_tile(slide_zoom(bag).slide, attrs, x, y)))


def slice_view(bag: Bag, index: int) -> SliceView:
    """Return one slice of a scan."""
    attrs = bag.attrs
    if attrs.modality != "ct" or not 0 <= index < attrs.store.n:
        raise ValueError(f"{bag.id}: no slice {index}, found {attrs.store.n if attrs.modality == 'ct' else 'a slide'}")
    raw, header = read_slice(bag.store.raw(attrs.files[index]), attrs.files[index])
    limits = np.iinfo(np.int16)
    return SliceView(Packed.of(np.clip(np.rint(to_hu(raw, header)), limits.min, limits.max), "i2"), _sides(header))


def _sides(header: Header) -> tuple[str, str, str, str]:
    """Return the directions of the body (right, left, anterior, posterior, head, foot) on the sides of a slice."""
    assert header.orientation is not None
    # the patient's axes point to the left, to the back and to the head
    axes = (("R", "L"), ("A", "P"), ("F", "H"))
    sides: list[str] = []
    for direction in (header.orientation[:3], header.orientation[3:]):
        axis = max(range(3), key=lambda i: abs(direction[i]))
        sides += axes[axis] if direction[axis] > 0 else axes[axis][::-1]
    left, right, top, bottom = sides
    return left, right, top, bottom


def thumbnail(bag: Bag) -> bytes:
    """Return the thumbnail of a bag as JPEG."""
    path = bag.thumbnail.resolve()
    if not path.is_relative_to(bag.store.folder):
        raise ValueError(f"{bag.id}: its thumbnail is a link that leads out of {bag.store.folder}")
    if not path.is_file():
        raise ValueError(f"{bag.id}: no thumbnail")
    return path.read_bytes()


def _jpeg(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=85)
    return stream.getvalue()
