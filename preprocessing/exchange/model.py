"""What import and export exchange: a bag, the options, and the interface of a format.

| field of `Bag` | shape, dtype | meaning |
|---|---|---|
| `coords` | (N,2) int32 or (N,1) float32 | level-0 px (x, y), or mm along the slice normal |
| `features` | (N,P) float or None | encoder output; None where only geometry is exchanged |
| `coverage` | (N,) float32 or None | lesion share of an instance, NaN = not annotated; None = not carried |

An export writes `Carried` beside the data, as one JSON text under the name `smmil`, and an import reads it back. Other
tools ignore it; without it the geometry comes from the tool's own attributes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, JsonValue

from preprocessing.bags.rows import BagRow
from preprocessing.store.attrs import FeatureAttrs, InstanceAttrs

Array = npt.NDArray[Any]

CARRIED_KEY = "smmil"
# Attributes of stored instances that an export carries.
CARRIED = (
    *("modality", "recipe", "preset", "lattice", "tile_px", "read_level", "read_px", "read_downsample"),
    *("l0_footprint_px", "l0_step_px", "grid_origin_l0", "resize_filter", "mpp", "mpp_source", "tile_mpp"),
    *("dimensions", "bounds", "vendor", "provider", "windows", "slice_px", "spacing_mm", "contour_fn", "use_padding"),
    "snap",
)
CARRIED_FACTS = ("encoder", "weights_sha256", "random_weights", "resize_policy", "precision", "dtype")


class CarriedFacts(FeatureAttrs):
    """What is known of features; `dtype` is that of the stored array."""

    dtype: Literal["float16", "float32"] | None = None


class Carried(BaseModel):
    """What an export keeps of a stored bag for an import.

    Attributes:
        attrs: geometry, the attributes named in `CARRIED`.
        facts: of the features, those named in `CARRIED_FACTS`.
    """

    model_config = ConfigDict(frozen=True)

    attrs: InstanceAttrs
    facts: CarriedFacts


NOTHING_CARRIED = Carried(attrs=InstanceAttrs(), facts=CarriedFacts())


@dataclass
class Bag:
    """One bag between the store and a file of another tool; see the table at the top of this file.

    Attributes:
        row: its line of `bags.csv`.
        coords: positions.
        features: encoder output.
        coverage: lesion shares.
        attrs: geometry: `modality`, for slides `l0_footprint_px`, `l0_step_px`, `tile_px` and what else is known.
        facts: what is known of the features.
        scores: columns (N,) of numbers (GeoJSON only).
    """

    row: BagRow
    coords: Array
    features: Array | None = None
    coverage: npt.NDArray[np.float32] | None = None
    attrs: InstanceAttrs = field(default_factory=InstanceAttrs)
    facts: CarriedFacts = field(default_factory=CarriedFacts)
    scores: dict[str, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.coords)

    @property
    def carried(self) -> dict[str, JsonValue]:
        """What an export writes for a later import, as JSON values."""
        attrs, facts = self.attrs.as_json(), self.facts.as_json()
        return {
            "attrs": {name: attrs[name] for name in CARRIED if attrs.get(name) is not None},
            "facts": {name: facts[name] for name in CARRIED_FACTS if name in facts},
        }

    @property
    def carried_text(self) -> str:
        """The same as one JSON text."""
        return json.dumps(self.carried, sort_keys=True, allow_nan=False)


@dataclass(frozen=True)
class ImportOptions:
    """What a tool's files do not say.

    Attributes:
        encoder: name of the features here; also the folder `features_{encoder}` of TRIDENT and torchmil.
        features_name: that folder's name where it differs.
        coords: CLAM: folder with the coordinate files, where they do not lie below the source.
        labels: CSV with labels, and optionally split, group, mpp.
        splits: CSV with splits.
        tile_px: side of a tile as the encoder saw it, px; torchmil does not record it.
        footprint_px: side of a tile at level 0, px.
        step_px: distance of neighbouring tiles at level 0, px; None = no overlap unless the files say so.
    """

    encoder: str
    features_name: str = ""
    coords: Path | None = None
    labels: Path | None = None
    splits: Path | None = None
    tile_px: int | None = None
    footprint_px: int | None = None
    step_px: int | None = None


@dataclass(frozen=True)
class ExportOptions:
    """How to write.

    Attributes:
        encoder: name of the features.
        label_threshold: coverage above which an instance counts as positive (torchmil, QuPath classes).
        object_type: QuPath: tile, detection or annotation; or tissue, the outlines instead of the tiles.
        magnification: TRIDENT: nominal magnification of level 0, where the resolution is unknown.
        root: folder of the slides (tissue).
        instances: folder of the instances stage (tissue).
    """

    encoder: str = ""
    label_threshold: float = 0.5
    object_type: str = "tile"
    magnification: int | None = None
    root: Path | None = None
    instances: Path | None = None


class Source(Protocol):
    """Files of another tool."""

    def rows(self) -> list[BagRow]:
        """List the bags, cheaply: names, files relative to the source folder, labels, splits."""

    def identity(self, row: BagRow) -> list[object]:
        """Return what changes when the files of a bag change."""

    def read(self, row: BagRow) -> Bag:
        """Read one bag; every inconsistency is a `ValueError` that names the file."""


class Target(Protocol):
    """A folder in another tool's layout."""

    def write(self, bag: Bag) -> None:
        """Write one bag, whole or not at all."""

    def finish(self, rows: list[BagRow]) -> None:
        """Write the tables (labels, splits) of the bags written."""


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        name: its key.
        open_source: reads; None if the format holds no features.
        open_target: writes.
        needs_features: whether an export needs them.
    """

    name: str
    open_source: Callable[[Path, ImportOptions], Source] | None
    open_target: Callable[[Path, ExportOptions], Target]
    needs_features: bool = True
