"""Records that the page receives as JSON; `viewer.js` reads the fields by these names."""

import base64
import json
import zlib
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Packed:
    """An array: its little-endian bytes, compressed by zlib, as base64.

    `kind` is f4, f8, i4 or i2.
    """

    kind: str
    data: str

    @classmethod
    def of(cls, array: npt.NDArray[Any], kind: str) -> Self:
        """Pack an array of any shape in C order."""
        payload = np.ascontiguousarray(array, f"<{kind}").tobytes()
        return cls(kind, base64.b64encode(zlib.compress(payload, 1)).decode("ascii"))


@dataclass(frozen=True)
class Rings:
    """Outlines in level-0 px: (P,2) "f4" points (x, y) of all rings, and the number of points of each."""

    points: Packed
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class Artefact:
    """Areas of pen, blur and the like on a slide, and their share of the tissue."""

    share: float
    rings: Rings


@dataclass(frozen=True)
class CohortEntry:
    """One dataset, or the images of a prediction, in the menu of the page."""

    key: str
    title: str
    modality: str
    bags: int


@dataclass(frozen=True)
class Catalogue:
    """What can be looked at; `start` is the `cohort/bag` to open first, "" = the first bag of the list."""

    title: str
    cohorts: tuple[CohortEntry, ...]
    start: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class RunEntry:
    """One run and what it predicts for the bags of a cohort.

    Attributes:
        name: of the method in the tables.
        colour: of the method in all figures.
        bags: (B,) "i4" positions in `BagList.bags`.
        logits: (B,) "f8", of these bags.
        parts: first letter of "val", "test" or "score" for each of them.
        thresholds: of instance scores from validation, by score.
    """

    id: str
    encoder: str
    method: str
    name: str
    colour: str
    seed: int
    random_weights: bool
    bags: Packed
    logits: Packed
    parts: str
    thresholds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class BagEntry:
    """One line of the list: name, label (None = unknown), split of the dataset, state, and whether it has a picture."""

    id: str
    label: int | None
    split: str
    state: str
    thumbnail: bool


@dataclass(frozen=True)
class BagList:
    """The bags of a cohort, the runs that predict them, and what could not be read, one line each."""

    bags: tuple[BagEntry, ...]
    runs: tuple[RunEntry, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Zoom:
    """The deep-zoom pyramid of a slide: size of level 0, levels, and side and overlap of its picture tiles, px."""

    width: int
    height: int
    levels: int
    tile: int
    overlap: int


@dataclass(frozen=True)
class SlideView:
    """Geometry of a slide in level-0 px.

    Attributes:
        zoom: None if the slide cannot be opened.
        bounds: scanned region (x, y, width, height).
        mpp: um per px, None = unknown.
        footprint: side of a tile.
        step: distance of neighbouring tiles.
        coords: (N,2) "i4" top-left corners (x, y).
        grid: (N,2) "i4" row and column.
        tissue: outlines, holes included.
        artefacts: by kind, those that were found.
    """

    width: int
    height: int
    zoom: Zoom | None
    bounds: tuple[int, int, int, int]
    mpp: float | None
    footprint: int
    step: int
    coords: Packed
    grid: Packed
    lesion: Rings
    tissue: Rings
    artefacts: dict[str, Artefact]


@dataclass(frozen=True)
class ScanView:
    """Geometry of a scan.

    Attributes:
        aspect: height of a pixel divided by its width.
        positions: (N,) "f4" mm along the slice normal.
        windows: (level, width) that the encoder saw, HU.
    """

    rows: int
    columns: int
    aspect: float
    positions: Packed
    files: tuple[str, ...]
    readable: bool
    windows: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class BagView:
    """One bag: state and reason of its cutting, lesion share (N,) "f4" (NaN = unknown), names and values for the panel.

    It has a slide or a scan, or none if nothing is stored.
    """

    id: str
    label: int | None
    split: str
    state: str
    reason: str
    n: int
    coverage: Packed
    facts: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    slide: SlideView | None = None
    scan: ScanView | None = None


@dataclass(frozen=True)
class Score:
    """One kind of instance scores: the stored values (N,) "f4", and their range over all bags of the run."""

    name: str
    values: Packed
    low: float
    high: float


@dataclass(frozen=True)
class Scores:
    """The instance scores of one bag by one run, by key of `smmil.view.layers.KINDS`."""

    scores: dict[str, Score]


@dataclass(frozen=True)
class SliceView:
    """One slice: (rows, columns) "i2" Hounsfield units, and the body's directions on its left, right, top, bottom."""

    hu: Packed
    sides: tuple[str, str, str, str]


def as_json(record: Any) -> bytes:
    """Return a record as JSON; NaN and infinity are refused."""
    return json.dumps(asdict(record), separators=(",", ":"), allow_nan=False).encode()
