"""Stored bags for an export: read and checked."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from preprocessing.bags.rows import BagRow
from preprocessing.exchange.geometry import grid_origin
from preprocessing.exchange.model import Bag, CarriedFacts
from preprocessing.store.bags import bag_path, check_pairing, read_arrays, read_feature_attrs, read_instance_attrs

log = logging.getLogger(__name__)


def read_stored(row: BagRow, instances: Path, features: Path | None) -> Bag:
    """Read one bag of the store; without a features folder its geometry only.

    Raises:
        ValueError: a missing or damaged bag, or features of other coordinates.
    """
    store, facts, matrix = instances / "store", CarriedFacts(), None
    try:
        attrs, arrays = read_instance_attrs(store, row.bag_id), read_arrays(store, row.bag_id, verify=True)
        if features is not None and len(arrays["coords"]):
            extracted = read_feature_attrs(features / "store", row.bag_id)
            check_pairing(attrs, extracted, row.bag_id)
            matrix = read_arrays(features / "store", row.bag_id, verify=True)["features"]
            facts = CarriedFacts(**extracted.as_json(), dtype=matrix.dtype.name)
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename}: bag {row.bag_id} is not stored; run its stage first") from error
    if "modality" not in attrs.model_fields_set:
        attrs = attrs.updated(modality=row.modality)
    coords = arrays["coords"]
    if attrs.modality == "wsi" and len(coords):
        attrs = attrs.updated(grid_origin_l0=grid_origin(coords, arrays["grid"], attrs.l0_step_px))
        if attrs.grid_origin_l0 is None:
            log.warning("%s: lattice cells do not follow from the coordinates; an import numbers them anew", row.bag_id)
    bag = Bag(row, coords, matrix, arrays["coverage"], attrs, facts)
    if attrs.contour_of_tile is not None and len(attrs.contour_of_tile) == len(bag):
        bag.contour = np.array(attrs.contour_of_tile, np.int64)
    return bag


def stored_bags(
    rows: Sequence[BagRow], instances: Path, features: Path | None, *, strict: bool
) -> Iterator[tuple[BagRow, Bag | None]]:
    """Read the bags that can be exported; None for those that are not stored or empty (an error if `strict`)."""
    for row in rows:
        if not strict and not bag_path(instances / "store", row.bag_id).is_dir():
            yield row, None
            continue
        bag = read_stored(row, instances, features)
        if len(bag) == 0 and strict:
            raise ValueError(f"{row.bag_id}: an empty bag (no tissue), there is nothing to export")
        yield row, bag if len(bag) else None
