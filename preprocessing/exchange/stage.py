"""Imported bags into the bag store: the finished *instances* and *features* stages of a dataset, as if computed here.

    {out}/manifest.csv                       the bags as a manifest (dataset kind `custom`)
    {out}/bags.csv, bags.report.json         one row per bag; `images` names the imported file
    {out}/instances/{store,shards,thumbnails}
    {out}/features/{encoder}/{store,shards}
    {out}/status/...                          outcomes with seconds

Pictures show where the tiles are, as no pixels are imported. A bag is imported again only if its files, label or the
options change. Errors stay with their bag (`preprocessing.bags.shards`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessing.bags.manifests import ManifestEntry, ShardManifest
from preprocessing.bags.report import ListReport, summarise
from preprocessing.bags.rows import BagRow
from preprocessing.bags.shards import Outcome, Shard, run_shard, shard_lock
from preprocessing.bags.table import shard_rows, write_bags
from preprocessing.common import stage_versions
from preprocessing.common.files import json_hash, software, write_jpeg, write_json
from preprocessing.exchange.geometry import (
    as_coverage,
    as_features,
    check_step,
    reading_order,
    scan_geometry,
    slide_geometry,
)
from preprocessing.exchange.model import Bag, ImportOptions, Source
from preprocessing.exchange.tables import shown_label, write_csv

log = logging.getLogger(__name__)

PICTURE_PX = 1024
CELL_PX = 128
_PACKAGES = ("numpy", "h5py")
_TILE, _PAPER = 205, 255


class ImportStage:
    """Imports the bags of one source; `instances(row)` stores both trees, `features(row)` reports the second."""

    def __init__(
        self, source: Source, name: str, dataset: str, out: Path, options: ImportOptions, dtype: str = "auto"
    ) -> None:
        self.source, self.format, self.dataset, self.options, self.dtype = source, name, dataset, options, dtype
        self.instances_folder, self.features_folder = out / "instances", out / "features" / options.encoder
        self.width: int | None = None
        self.software = software(_PACKAGES)

    def instances(self, row: BagRow) -> Outcome:
        """Reads, checks and stores one bag unless it is finished."""
        from preprocessing.store.bags import FeatureAttrs, InstanceAttrs, bag_path, finished_attrs, write_bag
        from preprocessing.store.files import check_chunk

        store, features = self.instances_folder / "store", self.features_folder / "store"
        key = self._key(row)
        stored = finished_attrs(store, row.bag_id, key, InstanceAttrs)
        if stored is not None and stored.store.n and finished_attrs(features, row.bag_id, key, FeatureAttrs) is None:
            stored = None
        if stored is None:
            arrays, matrix, bag = self._arrays(self.source.read(row))
            attrs = self._attrs(row, bag, key)
            if len(matrix):
                written = {"features": matrix}
                facts = self._facts(bag, arrays["coords"], arrays["grid"])
                write_bag(features, row.bag_id, written, FeatureAttrs(**facts), key=key)
            self._picture(row.bag_id, attrs, arrays)
            n, content = len(matrix), write_bag(store, row.bag_id, arrays, InstanceAttrs(**attrs), key=key)
        else:
            n, content = stored.store.n, stored.store.content
            if self.width is None and n:
                self.width = check_chunk(bag_path(features, row.bag_id) / "features")[1][1]
        reason = "" if n else "no instance in the imported file"
        return Outcome("ok" if n else "empty", n, content, reason, stored is None)

    def features(self, row: BagRow, entry: ManifestEntry) -> Outcome:
        """The outcome of the features of one bag, which `instances` has stored."""
        from preprocessing.store.bags import read_info

        if entry.state != "ok":
            return Outcome(entry.state, reason=entry.reason, redone=False, counted=False)
        info = read_info(self.features_folder / "store", row.bag_id)
        return Outcome("ok", info.n, info.content, redone=False)

    def _arrays(self, bag: Bag) -> tuple[dict[str, Any], Any, Bag]:
        """Checked arrays of the instances, the features, and the bag with resolved attributes."""
        where, n = f"{self.format} bag {bag.row.bag_id}", len(bag.coords)
        assert bag.features is not None
        features = as_features(bag.features, n, where)
        if len(features) and self.width not in (None, features.shape[1]):
            raise ValueError(f"{where}: {features.shape[1]} features, other bags have {self.width}; mixed encoders?")
        coverage = as_coverage(bag.coverage, n, bag.row.label, where)
        attrs = {name: value for name, value in bag.attrs.items() if value is not None}
        if attrs.setdefault("modality", bag.row.modality) != bag.row.modality:
            raise ValueError(f"{where}: carried as {attrs['modality']}, but this layout holds {bag.row.modality} bags")
        coords = bag.coords
        if attrs["modality"] == "ct":
            grid, neighbors = scan_geometry(n)
        else:
            attrs["l0_step_px"] = int(attrs.get("l0_step_px") or attrs["l0_footprint_px"])
            order = reading_order(coords)
            coords, features, coverage = coords[order], features[order], coverage[order]
            if self.options.step_px is None and "preset" not in attrs:
                check_step(coords, attrs["l0_step_px"], Path(bag.row.images[0]))
            grid, neighbors = slide_geometry(coords, attrs)
            if n > 1 and not (neighbors >= 0).any():
                log.warning("%s: %d tiles and no two of them are neighbours; is --step-px right?", where, n)
                attrs["zero_edges"] = True
        self.width = features.shape[1] if len(features) else self.width
        bag.attrs = attrs
        arrays = {"coords": coords, "grid": grid, "neighbors": neighbors, "coverage": coverage}
        return arrays, features.astype(self._dtype(bag, features.dtype), copy=False), bag

    def _dtype(self, bag: Bag, found: npt.DTypeLike) -> str:
        """As asked; "auto" = what an export of ours recorded, else as the file has it."""
        if self.dtype != "auto":
            return self.dtype
        return str(bag.facts.get("dtype") or np.dtype(found).name)

    def _key(self, row: BagRow) -> str:
        options = {name: str(value) for name, value in vars(self.options).items() if value is not None}
        facts = {"label": row.label, "mpp": row.mpp, "dtype": self.dtype, "format": self.format}
        seen = {"dataset": self.dataset, "files": self.source.identity(row), "options": options}
        return json_hash({"stage": "import", "version": stage_versions.IMPORT, **facts, **seen})

    def _attrs(self, row: BagRow, bag: Bag, key: str) -> dict[str, Any]:
        unknown = {"mpp": None, "mpp_source": "not recorded"} if bag.attrs["modality"] == "wsi" else {}
        attrs = {"preset": "imported", **unknown, **bag.attrs}
        if row.mpp is not None:
            attrs |= {"mpp": row.mpp, "mpp_source": "manifest"}
        if attrs.get("mpp") is not None and attrs.get("tile_px"):
            attrs["tile_mpp"] = attrs["mpp"] * attrs["l0_footprint_px"] / attrs["tile_px"]
        attrs |= {"imported_from": self.format, "dataset": self.dataset, "label": row.label, "pixels_key": key}
        return {**attrs, "stage_version": stage_versions.INSTANCES, "software": self.software}

    def _facts(self, bag: Bag, coords: Any, grid: Any) -> dict[str, Any]:
        from preprocessing.store.bags import coords_hash

        facts = {name: value for name, value in bag.facts.items() if name != "dtype"}
        return {
            # unknown weights stay unknown: a run trained on them scores only other imported bags
            **{"encoder": self.options.encoder, "weights_sha256": "unknown", "random_weights": False},
            **{"resize_policy": "unknown", **facts, "imported_from": self.format, "dataset": self.dataset},
            **{"modality": bag.attrs["modality"], "coords_hash": coords_hash(coords, grid)},
            **{"stage_version": stage_versions.FEATURES, "software": self.software},
        }

    def _picture(self, bag_id: str, attrs: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
        if not len(arrays["coords"]):
            picture, outlines = None, {"downsample": 1.0}
        elif attrs["modality"] == "ct":
            picture, outlines = scan_picture(len(arrays["coords"]))
        else:
            picture, outlines = slide_picture(arrays["coords"], attrs)
        folder = self.instances_folder / "thumbnails"
        if picture is not None:
            write_jpeg(folder / f"{bag_id}.jpg", picture)
        write_json(folder / f"{bag_id}.json", {"tissue": [], "holes": [], "lesion": [], **outlines})


def slide_picture(coords: Any, attrs: Mapping[str, Any]) -> tuple[npt.NDArray[np.uint8], dict[str, Any]]:
    """White paper with grey tiles, (h,w,3) uint8 of at most 1024 px, and its downsample."""
    side = int(attrs["l0_footprint_px"])
    width, height = attrs.get("dimensions") or [int(v) + side for v in coords.max(axis=0)]
    downsample = max(1.0, max(width, height) / PICTURE_PX)
    shape = (max(1, round(height / downsample)), max(1, round(width / downsample)), 3)
    picture = np.full(shape, _PAPER, np.uint8)
    for x, y in (coords / downsample).tolist():
        low_x, low_y = max(0, round(x)), max(0, round(y))
        picture[low_y : round(y + side / downsample), low_x : round(x + side / downsample)] = _TILE
    return picture, {"downsample": downsample}


def scan_picture(n: int) -> tuple[npt.NDArray[np.uint8], dict[str, Any]]:
    """A montage of empty cells, one per slice (at most 64), with its layout."""
    shown = np.unique(np.linspace(0, n - 1, min(n, 64)).round().astype(int))
    columns = int(np.ceil(np.sqrt(len(shown))))
    rows = -(-len(shown) // columns)
    picture = np.full((rows * CELL_PX, columns * CELL_PX, 3), _TILE, np.uint8)
    picture[::CELL_PX] = picture[:, ::CELL_PX] = _PAPER
    layout = {"columns": columns, "cell_px": CELL_PX, "slices": shown.tolist()}
    return picture, {"downsample": 1.0, "montage": layout}


def import_bags(
    source: Source,
    name: str,
    dataset: str,
    out: Path,
    options: ImportOptions,
    *,
    bags_per_shard: int = 25,
    allowed_failures: int = 0,
    dtype: str = "auto",
) -> int:
    """Imports everything; returns the exit code (1 = more bags of a shard failed than allowed).

    Args:
        source: opened source.
        name: of the format.
        dataset: name of the dataset in the config.
        out: `results/{dataset}`.
        options: as the source was opened with.
        bags_per_shard: as in the config, so that a workflow finds these shards.
        allowed_failures: bags per shard that may fail.
        dtype: of the stored features; auto = as they come.

    Raises:
        ValueError: tables or folders that do not fit; nothing is written then.
    """
    rows = sorted(source.rows(), key=lambda row: row.bag_id)
    # before bags.csv, so that a workflow does not find the list older than its manifest
    lines = [(row.bag_id, row.images[0], shown_label(row), row.split, row.group, row.modality) for row in rows]
    write_csv(out / "manifest.csv", ("bag_id", "image", "label", "split", "group", "modality"), lines)
    write_bags(out / "bags.csv", rows)
    note = f"imported from {name}; neighbours rebuilt from coordinates"
    ListReport(dataset, name, summarise(rows), notes=[note]).write(out / "bags.report.json")
    stage, worst = ImportStage(source, name, dataset, out, options, dtype), 0
    for number in range(max(1, -(-len(rows) // bags_per_shard))):
        part = shard_rows(rows, number, bags_per_shard)
        worst = max(worst, _import_shard(stage, part, number, out, allowed_failures))
    return worst


def _import_shard(stage: ImportStage, rows: Sequence[BagRow], number: int, out: Path, allowed: int) -> int:
    shard = Shard(stage.dataset, "instances", stage_versions.INSTANCES, number)
    manifest = stage.instances_folder / "shards" / f"{shard.name}.json"
    status = out / "status" / "instances" / f"{shard.name}.jsonl"
    with shard_lock(stage.instances_folder / ".locks" / f"{shard.name}.lock"):
        code = run_shard(rows, stage.instances, manifest, allowed, status, shard=shard)
        if code:
            return code
        entries = ShardManifest.read(manifest).by_id
        encoder = stage.options.encoder
        shard = Shard(stage.dataset, f"features/{encoder}", stage_versions.FEATURES, number)
        status = out / "status" / "features" / encoder / f"{shard.name}.jsonl"
        manifest = stage.features_folder / "shards" / f"{shard.name}.json"
        return run_shard(
            rows, lambda row: stage.features(row, entries[row.bag_id]), manifest, allowed, status, shard=shard
        )
