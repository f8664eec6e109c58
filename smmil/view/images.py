"""Pictures of slides and scans: deep-zoom tiles, instance tiles, thumbnails, and slices in Hounsfield units."""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import openslide
from openslide.deepzoom import DeepZoomGenerator
from PIL import Image

from preprocessing.scans.dicom import Header, read_slice
from preprocessing.scans.windows import to_hu, window
from preprocessing.slides.slide import Slide, open_slide
from preprocessing.slides.tile_reader import check_same_slide, read_tile
from preprocessing.store.attrs import InstanceAttrs
from preprocessing.store.bags import read_arrays, read_instance_attrs
from smmil.view.catalogue import Store
from smmil.view.records import Packed, SliceView, Zoom

TILE_PX, OVERLAP_PX = 510, 1
OPEN_SLIDES = 6
LEVEL_TOLERANCE = 0.005
_BRAIN = (40, 80)
_THUMB_PX = 256


class _Checked(openslide.AbstractSlide):  # type: ignore[misc]
    """A slide as `preprocessing.slides` reads it, for the deep-zoom generator: checked levels, white background."""

    def __init__(self, slide: Slide) -> None:
        super().__init__()
        self._slide = slide

    @classmethod
    def detect_format(cls, filename: object) -> str | None:
        return None

    def close(self) -> None:
        self._slide.close()

    @property
    def level_count(self) -> int:
        return len(self._slide.level_dimensions)

    @property
    def level_dimensions(self) -> tuple[tuple[int, int], ...]:
        return self._slide.level_dimensions

    @property
    def level_downsamples(self) -> tuple[float, ...]:
        return self._slide.level_downsamples

    @property
    def properties(self) -> Mapping[str, str]:
        return {}

    @property
    def associated_images(self) -> Mapping[str, Image.Image]:
        return {}

    def get_best_level_for_downsample(self, downsample: float) -> int:
        return self._slide.level_at(downsample, LEVEL_TOLERANCE)

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
        return Image.fromarray(self._slide.read(*location, level, size)).convert("RGBA")


class SlideZoom:
    """An open slide and its deep-zoom pyramid; several threads may read."""

    def __init__(self, slide: Slide) -> None:
        self.slide = slide
        self.generator = DeepZoomGenerator(_Checked(slide), TILE_PX, OVERLAP_PX)

    @property
    def record(self) -> Zoom:
        """What the page needs to ask for tiles."""
        width, height = self.slide.dimensions
        return Zoom(width, height, self.generator.level_count, TILE_PX, OVERLAP_PX)

    def tile(self, level: int, column: int, row: int) -> bytes:
        """Return one tile as JPEG.

        Raises:
            ValueError: no such tile, or it cannot be decoded.
        """
        return _jpeg(self.generator.get_tile(level, (column, row)))


def slide_zoom(store: Store, bag_id: str) -> SlideZoom:
    """Open the slide of a bag; the last few stay open.

    Raises:
        ValueError: the slide is missing, OpenSlide does not read it, or it is not the one that the bag was cut from.
    """
    row = store.rows[bag_id]
    path = store.raw(row.images[0])
    return _open(store, bag_id, path, path.stat().st_mtime_ns)


# OpenSlide closes a slide when its last reader drops it
@lru_cache(maxsize=OPEN_SLIDES)
def _open(store: Store, bag_id: str, path: Path, mtime_ns: int) -> SlideZoom:
    slide = open_slide(path, mpp_override=store.rows[bag_id].mpp, require_mpp=False, raw=False)
    if store.stored(bag_id):
        check_same_slide(slide, read_instance_attrs(store.instances / "store", bag_id))
    return SlideZoom(slide)


def instance_picture(store: Store, bag_id: str, index: int) -> bytes:
    """Return one tile as the encoder receives it, or one slice in the brain window, as JPEG.

    Raises:
        ValueError: no such instance, or its file cannot be read.
    """
    attrs = read_instance_attrs(store.instances / "store", bag_id)
    if not 0 <= index < attrs.store.n:
        raise ValueError(f"{bag_id}: no instance {index}, found {attrs.store.n}")
    if attrs.modality == "ct":
        raw, header = _read(store, attrs, index)
        picture = Image.fromarray(np.uint8(np.rint(255 * window(to_hu(raw, header), *_BRAIN))))
        picture.thumbnail((_THUMB_PX, _THUMB_PX))
        return _jpeg(picture)
    x, y = read_arrays(store.instances / "store", bag_id, ["coords"])["coords"][index].tolist()
    return _jpeg(Image.fromarray(read_tile(slide_zoom(store, bag_id).slide, attrs, x, y)))


def slice_view(store: Store, bag_id: str, index: int, level: int = 1) -> SliceView:
    """Return one slice of a scan; `level` is that of zlib.

    Raises:
        ValueError: no such slice, or its file cannot be read.
    """
    attrs = read_instance_attrs(store.instances / "store", bag_id)
    if attrs.modality != "ct" or not 0 <= index < attrs.store.n:
        raise ValueError(f"{bag_id}: no slice {index}, found {attrs.store.n if attrs.modality == 'ct' else 'a slide'}")
    raw, header = _read(store, attrs, index)
    limits = np.iinfo(np.int16)
    hu = np.clip(np.rint(to_hu(raw, header)), limits.min, limits.max)
    return SliceView(Packed.of(hu, "i2", level), _sides(header))


def _read(store: Store, attrs: InstanceAttrs, index: int) -> tuple[np.ndarray, Header]:  # type: ignore[type-arg]
    return read_slice(store.raw(attrs.files[index]), attrs.files[index])


def _sides(header: Header) -> tuple[str, str, str, str]:
    """Return the directions of the body (right, left, anterior, posterior, head, foot) on the sides of a slice."""
    assert header.orientation is not None
    # the patient's axes point to the left, to the back and to the head
    axes = (("R", "L"), ("A", "P"), ("F", "H"))
    sides: list[str] = []
    for direction in (header.orientation[:3], header.orientation[3:]):
        axis = max(range(3), key=lambda i: abs(direction[i]))
        ends = axes[axis] if direction[axis] > 0 else axes[axis][::-1]
        sides += ends
    left, right, top, bottom = sides
    return left, right, top, bottom


def thumbnail_path(store: Store, bag_id: str) -> Path:
    """Return the thumbnail of a bag.

    Raises:
        ValueError: there is none, or it is a link that leads out of the store.
    """
    path = (store.instances / "thumbnails" / f"{bag_id}.jpg").resolve()
    if not path.is_relative_to(store.folder):
        raise ValueError(f"{bag_id}: its thumbnail is a link that leads out of {store.folder}")
    if not path.is_file():
        raise ValueError(f"{bag_id}: no thumbnail")
    return path


def _jpeg(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=85)
    return stream.getvalue()
