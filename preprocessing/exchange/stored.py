"""Stored bags for an export: read, checked, and with the text that lets an import put them back as they were."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from preprocessing.bags.rows import BagRow
from preprocessing.exchange.geometry import grid_origin
from preprocessing.exchange.model import CARRIED, CARRIED_FACTS, Array, Bag

log = logging.getLogger(__name__)

_SCORE_ARRAYS = ("bag_id", "offsets", "instance_score")


def read_stored(row: BagRow, instances: Path, features: Path | None) -> Bag:
    """One bag of the store.

    Args:
        row: which bag.
        instances: folder of the instances stage.
        features: folder of an encoder's features; None = geometry only.

    Raises:
        ValueError: a missing or damaged bag, or features of other coordinates.
    """
    from preprocessing.store.bags import FeatureAttrs, InstanceAttrs, check_pairing, read_arrays, read_attrs

    store = instances / "store"
    try:
        attrs, arrays = read_attrs(store, row.bag_id), read_arrays(store, row.bag_id, verify=True)
        facts, matrix = {}, None
        if features is not None and len(arrays["coords"]):
            facts = read_attrs(features / "store", row.bag_id)
            check_pairing(InstanceAttrs(**attrs), FeatureAttrs(**facts), row.bag_id)
            matrix = read_arrays(features / "store", row.bag_id, verify=True)["features"]
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename}: bag {row.bag_id} is not stored; run its stage first") from error
    contour = attrs.get("contour_of_tile")
    bag = Bag(row, arrays["coords"], matrix, arrays["coverage"], dict(attrs))
    bag.contour = np.array(contour, np.int64) if contour is not None and len(contour) == len(bag) else None
    bag.attrs.setdefault("modality", row.modality)
    if bag.attrs["modality"] == "wsi" and len(bag):
        step = int(attrs["l0_step_px"])
        bag.attrs["grid_origin_l0"] = grid_origin(arrays["coords"], arrays["grid"], step)
        if bag.attrs["grid_origin_l0"] is None:
            log.warning(
                "%s: its lattice cells do not follow from its coordinates; an import will number them anew", row
            )
    bag.facts = {**facts, "carried": carried_text(bag.attrs, facts, matrix)}
    return bag


def carried_text(attrs: Mapping[str, Any], facts: Mapping[str, Any], matrix: Array | None) -> str:
    """The JSON text an import takes the geometry and the encoder's facts back from."""
    kept = {name: attrs[name] for name in CARRIED if attrs.get(name) is not None}
    told = {name: facts[name] for name in CARRIED_FACTS if name in facts}
    if matrix is not None:
        told["dtype"] = matrix.dtype.name
    return json.dumps({"attrs": kept, "facts": told}, sort_keys=True, allow_nan=False)


def stored_bags(
    rows: Sequence[BagRow], instances: Path, features: Path | None, *, strict: bool
) -> Iterator[tuple[BagRow, Bag | None]]:
    """The bags that can be exported, None for those that are not stored or empty (an error if `strict`).

    Raises:
        ValueError: as `read_stored`; or an empty bag that was asked for by name.
    """
    from preprocessing.store.bags import bag_path

    for row in rows:
        if not strict and not bag_path(instances / "store", row.bag_id).is_dir():
            yield row, None
            continue
        bag = read_stored(row, instances, features)
        if len(bag) == 0 and strict:
            raise ValueError(f"{row.bag_id}: an empty bag (no tissue), there is nothing to export")
        yield row, bag if len(bag) else None


def read_scores(path: Path) -> dict[str, Array]:
    """Arrays of a predictions file that concern instances.

    Raises:
        ValueError: no such file, or not predictions.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such predictions file")
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = {name: archive[name] for name in _SCORE_ARRAYS}
            found |= {name: archive[name] for name in ("signed_score",) if name in archive.files}
    except (KeyError, ValueError, OSError, EOFError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a predictions file ({error}); expected {', '.join(_SCORE_ARRAYS)}") from error
    offsets = found["offsets"]
    lengths = {len(found[name]) for name in ("instance_score", "signed_score") if name in found}
    if len(offsets) != len(found["bag_id"]) + 1 or lengths != {int(offsets[-1])}:
        raise ValueError(f"{path}: lengths do not fit, expected offsets of {len(found['bag_id'])} bags")
    return found
