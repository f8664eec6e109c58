"""How the bags that a run learned from were cut, and whether another bag was cut and encoded like them.

A score means what it meant in training only for tiles or slices of the same size, resolution and windows. `results/D`
of a run is found from its place or given; what was recorded with its bags there is compared with the new bag.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preprocessing.common.options import TissueOptions
from preprocessing.store.attrs import InstanceAttrs
from preprocessing.store.bags import read_feature_attrs, read_instance_attrs
from preprocessing.store.files import check_chunk
from smmil.artifacts.records import Json, Metrics, RunConfig, SplitMetrics
from smmil.data.splits import read_splits
from smmil.data.stored import read_geometry

REFERENCE_BAGS = 64
TILE_MPP_TOLERANCE = 0.10
# attributes of instances that decide what a tile or slice shows, and which tiles are taken
_SCALE = {"wsi": ("recipe", "tile_px", "lattice"), "ct": ("windows", "slice_px")}
_SELECTION = ("contour_fn", "use_padding", "min_tissue", "otsu_bgr")
_THRESHOLDS = frozenset(TissueOptions.model_fields)


@dataclass(frozen=True)
class Reference:
    """Bags of the dataset a run learned from.

    Attributes:
        instances: attributes of some stored bags, without bags that have settings of their own.
        dtype: of the stored features, "" if unknown.
        precision: of the encoder's arithmetic, "" if unknown.
        split: metrics of the run; None if it has not been evaluated or was not chosen.
        parts: train, val or test of each bag in the run's split; empty if unknown.
        store: all stored instances; None if they are not at hand.
    """

    instances: tuple[InstanceAttrs, ...] = ()
    dtype: str = ""
    precision: str = ""
    split: SplitMetrics | None = None
    parts: Mapping[str, str] = field(default_factory=dict)
    store: Path | None = None

    def part_of(self, bag_id: str, coords: NDArray[Any]) -> str:
        """Return the part of the run's split with a bag of this name and coords (N,2) or (N,1), else ""."""
        part = self.parts.get(bag_id, "")
        if not part or self.store is None or not (self.store / bag_id).is_dir():
            return ""
        return part if np.array_equal(read_geometry(self.store.parent, bag_id, ["coords"])[1]["coords"], coords) else ""


def read_reference(run: Path, config: RunConfig, folder: Path | None = None) -> Reference:
    """Read what the stored bags of a run's dataset record; empty without them.

    Args:
        run: directory of the run.
        config: its `config.json`.
        folder: `results/D` of its dataset; None = above the folder `runs` of the run.

    Raises:
        ValueError: the folder given holds no instances.
    """
    if folder is not None and not (folder / "instances" / "store").is_dir():
        raise ValueError(f"{folder}: no instances/store in it, expected the results folder of the run's dataset")
    folder = folder or next((path.parent for path in run.resolve().parents if path.name == "runs"), None)
    if folder is None or not (folder / "instances" / "store").is_dir():
        return Reference()
    instances, features = folder / "instances" / "store", folder / "features" / config.encoder / "store"
    attrs = [read_instance_attrs(instances, name) for name in _sample(instances)]
    comparable = tuple(bag for bag in attrs if bag.store.n and "overrides" not in bag.model_fields_set)
    dtype, precision = "", ""
    if features.is_dir() and (stored := _sample(features)):
        dtype = check_chunk(features / stored[0] / "features")[0].name
        precision = read_feature_attrs(features, stored[0]).precision
    method, name = run.resolve().parts[-2:]
    metrics, splits = folder / "metrics" / config.encoder / f"{method}.json", run.resolve().with_name("splits.csv")
    evaluated = Metrics.read(metrics).splits if metrics.is_file() else ()
    split = next((split for split in evaluated if split.run == name), None)
    parts = read_splits(splits).get(config.seed, {}) if splits.is_file() else {}
    return Reference(comparable, dtype, precision, split, parts, instances)


def _sample(store: Path) -> list[str]:
    names = sorted(path.name for path in store.iterdir() if not path.name.startswith("."))
    # Evenly over the names, which often go by patient or centre.
    return names[:: max(1, len(names) // REFERENCE_BAGS)][:REFERENCE_BAGS]


def check_like_training(attrs: InstanceAttrs, reference: Reference, *, any_resolution: bool = False) -> list[str]:
    """Compare a new bag with bags of the run's dataset.

    Imported bags do not record how they were cut; only what both record is compared with them. Of a bag with settings
    of its own (`preprocessing.bags.overrides`) the tissue thresholds are not compared. Return warnings, with
    `any_resolution` also that of another resolution.

    Raises:
        ValueError: another modality, tile size, lattice, tissue thresholds or windows, or a resolution the run has
            never seen.
    """
    if not reference.instances:
        return ["no bag of the run's dataset at hand: tile size and resolution could not be compared with it"]
    trained = reference.instances[0]
    if attrs.modality != trained.modality:
        raise ValueError(f"a {attrs.modality} bag, but the run learned from {trained.modality} bags")
    here, there = attrs.as_json(), trained.as_json()
    scale = _SCALE[attrs.modality]
    if attrs.imported_from or trained.imported_from:
        scale = tuple(name for name in scale if name in here and name in there)
    differs = _differences(here, there, scale)
    if not differs and not attrs.overrides:
        ours, theirs = (record.get("tissue") or {} for record in (here, there))
        differs = _differences(here, there, [name for name in _SELECTION if name in here and name in there])
        differs += _differences(ours, theirs, sorted(_THRESHOLDS & ours.keys() & theirs.keys()), "tissue.")
    if differs:
        raise ValueError(
            f"not cut as the run's dataset was ({'; '.join(differs)}); cut it with the same settings (`instances` of"
            " the config, `smmil predict --options`)"
        )
    known = [float(other.tile_mpp) for other in reference.instances if other.tile_mpp]
    if not known:
        return []
    lowest, highest, mpp = min(known), max(known), attrs.tile_mpp
    if mpp and lowest * (1 - TILE_MPP_TOLERANCE) <= mpp <= highest * (1 + TILE_MPP_TOLERANCE):
        return []
    here_mpp = f"{mpp:.4g} um/px" if mpp else "unknown resolution"
    text = f"tiles of {here_mpp}, the run learned from {lowest:.4g}..{highest:.4g} um/px"
    if any_resolution:
        return [text]
    raise ValueError(
        f"{text}; correct the slide's resolution (`mpp` of the manifest, `smmil predict --mpp`), or accept this with"
        " --any-resolution"
    )


def _differences(here: Json, there: Json, names: Iterable[str], prefix: str = "") -> list[str]:
    return [
        f"{prefix}{name}: {json.dumps(here.get(name))} here, {json.dumps(there.get(name))} trained"
        for name in names
        if here.get(name) != there.get(name)
    ]
