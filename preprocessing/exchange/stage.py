"""Bags into the bag store and out of it: an import gives finished *instances* and *features* stages of a dataset.

    {out}/manifest.csv                       the bags as a manifest of a custom dataset
    {out}/bags.csv, bags.report.json         one row per bag; `images` names the imported file
    {out}/instances/{store,shards,thumbnails}
    {out}/features/{encoder}/{store,shards}
    {out}/status/...                          outcomes with seconds

Thumbnails show where the tiles are, because no pixels are imported. A bag is imported again only if its files, its
label or the options change. Errors stay with their bag (`preprocessing.bags.shards`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from preprocessing.bags.manifests import ManifestEntry, ShardManifest
from preprocessing.bags.report import ListReport, summarise
from preprocessing.bags.rows import BagRow
from preprocessing.bags.shards import Outcome, Shard, run_shard, shard_lock
from preprocessing.bags.table import shard_rows, write_bags
from preprocessing.common import stage_versions
from preprocessing.common.files import json_hash, software, write_jpeg
from preprocessing.exchange.geometry import (
    as_coverage,
    as_features,
    check_step,
    grid_origin,
    reading_order,
    scan_geometry,
    slide_geometry,
)
from preprocessing.exchange.model import Array, Bag, CarriedFacts, ImportOptions, Source
from preprocessing.exchange.tables import label_cell, write_csv
from preprocessing.store.attrs import FeatureAttrs, InstanceAttrs
from preprocessing.store.bags import (
    bag_path,
    check_pairing,
    coords_hash,
    finished_attrs,
    read_arrays,
    read_feature_attrs,
    read_info,
    read_instance_attrs,
    write_bag,
)
from preprocessing.store.files import check_chunk
from preprocessing.store.outlines import Montage, Outlines

log = logging.getLogger(__name__)

PICTURE_PX = 1024
CELL_PX = 128
_PACKAGES = ("numpy", "h5py")
_TILE, _PAPER = 205, 255


class ImportStage:
    """Import the bags of one source; `instances(row)` stores both trees, `features(row)` reports the second."""

    def __init__(
        self, source: Source, name: str, dataset: str, out: Path, options: ImportOptions, dtype: str = "auto"
    ) -> None:
        self.source, self.format, self.dataset, self.options, self.dtype = source, name, dataset, options, dtype
        self.instances_folder, self.features_folder = out / "instances", out / "features" / options.encoder
        self.width: int | None = None
        self.software = software(_PACKAGES)

    def instances(self, row: BagRow) -> Outcome:
        """Read, check and store one bag unless it is finished."""
        store, features = self.instances_folder / "store", self.features_folder / "store"
        key = self._key(row)
        stored = finished_attrs(store, row.bag_id, key, InstanceAttrs)
        if stored is not None and stored.store.n and finished_attrs(features, row.bag_id, key, FeatureAttrs) is None:
            stored = None
        if stored is None:
            arrays, matrix, bag = self._arrays(self.source.read(row))
            attrs, n = self._attrs(row, bag, key), len(matrix)
            if n:
                facts = self._facts(bag, coords_hash(arrays["coords"], arrays["grid"]))
                write_bag(features, row.bag_id, {"features": matrix}, facts, key=key)
            self._picture(row.bag_id, attrs, arrays["coords"])
            content = write_bag(store, row.bag_id, arrays, attrs, key=key)
        else:
            n, content = stored.store.n, stored.store.content
            if self.width is None and n:
                self.width = check_chunk(bag_path(features, row.bag_id) / "features")[1][1]
        reason = "" if n else "no instance in the imported file"
        return Outcome("ok" if n else "empty", n, content, reason, stored is None)

    def features(self, row: BagRow, entry: ManifestEntry) -> Outcome:
        """Return the outcome of the features of one bag, which `instances` has stored."""
        if entry.state != "ok":
            return Outcome(entry.state, reason=entry.reason, redone=False, counted=False)
        info = read_info(self.features_folder / "store", row.bag_id)
        return Outcome("ok", info.n, info.content, redone=False)

    def _arrays(self, bag: Bag) -> tuple[dict[str, Array], Array, Bag]:
        """Return checked arrays of the instances, the features (N,P), and the bag with resolved attributes."""
        where, n = f"{self.format} bag {bag.row.bag_id}", len(bag.coords)
        assert bag.features is not None
        features = as_features(bag.features, n, where)
        # Stopped here, because a bag of another width would end the training instead.
        if len(features) and self.width not in (None, features.shape[1]):
            raise ValueError(f"{where}: {features.shape[1]} features, other bags have {self.width}; mixed encoders?")
        coverage = as_coverage(bag.coverage, n, bag.row.label, where)
        attrs, modality = bag.attrs, bag.row.modality
        if "modality" in attrs.model_fields_set and attrs.modality != modality:
            raise ValueError(f"{where}: carried as {attrs.modality}, but this layout holds {modality} bags")
        coords, attrs = bag.coords, attrs.updated(modality=modality)
        if modality == "ct":
            grid, neighbors = scan_geometry(n)
        else:
            attrs = attrs.updated(l0_step_px=attrs.l0_step_px or attrs.l0_footprint_px)
            order = reading_order(coords)
            coords, features, coverage = coords[order], features[order], coverage[order]
            if self.options.step_px is None and "preset" not in attrs.model_fields_set:
                check_step(coords, attrs.l0_step_px, Path(bag.row.images[0]))
            grid, neighbors = slide_geometry(coords, attrs)
            if n > 1 and not (neighbors >= 0).any():
                log.warning("%s: %d tiles and no two of them are neighbours; is --step-px right?", where, n)
                attrs = attrs.updated(zero_edges=True)
        self.width = features.shape[1] if len(features) else self.width
        bag.attrs = attrs
        arrays = {"coords": coords, "grid": grid, "neighbors": neighbors, "coverage": coverage}
        dtype = self.dtype if self.dtype != "auto" else bag.facts.dtype or features.dtype.name
        return arrays, features.astype(dtype, copy=False), bag

    def _key(self, row: BagRow) -> str:
        options = {name: str(value) for name, value in vars(self.options).items() if value is not None}
        facts = {"label": row.label, "mpp": row.mpp, "dtype": self.dtype, "format": self.format}
        sources = {"dataset": self.dataset, "files": self.source.identity(row), "options": options}
        return json_hash({"stage": "import", "version": stage_versions.IMPORT, **facts, **sources})

    def _attrs(self, row: BagRow, bag: Bag, key: str) -> InstanceAttrs:
        attrs = bag.attrs
        defaults: dict[str, object] = {"preset": "imported"}
        if attrs.modality == "wsi":
            defaults |= {"mpp": None, "mpp_source": "not recorded"}
        attrs = attrs.updated(**{k: value for k, value in defaults.items() if k not in attrs.model_fields_set})
        if row.mpp is not None:
            attrs = attrs.updated(mpp=row.mpp, mpp_source="manifest")
        if attrs.mpp is not None and attrs.tile_px:
            attrs = attrs.updated(tile_mpp=attrs.mpp * attrs.l0_footprint_px / attrs.tile_px)
        return attrs.updated(
            imported_from=self.format,
            dataset=self.dataset,
            label=row.label,
            pixels_key=key,
            stage_version=stage_versions.INSTANCES,
            software=self.software,
        )

    def _facts(self, bag: Bag, pairing: str) -> FeatureAttrs:
        # Unknown weights stay unknown: a run trained on them scores only other imported bags.
        facts = FeatureAttrs(
            encoder=self.options.encoder, weights_sha256="unknown", random_weights=False, resize_policy="unknown"
        )
        known = bag.facts.as_json()
        known.pop("dtype", None)
        return facts.updated(
            **known,
            imported_from=self.format,
            dataset=self.dataset,
            modality=bag.attrs.modality,
            coords_hash=pairing,
            stage_version=stage_versions.FEATURES,
            software=self.software,
        )

    def _picture(self, bag_id: str, attrs: InstanceAttrs, coords: Array) -> None:
        outlines, folder = Outlines(downsample=1.0), self.instances_folder / "thumbnails"
        if len(coords):
            scan = attrs.modality == "ct"
            picture, outlines = scan_picture(len(coords)) if scan else slide_picture(coords, attrs)
            write_jpeg(folder / f"{bag_id}.jpg", picture)
        outlines.write(folder / f"{bag_id}.json")


def slide_picture(coords: Array, attrs: InstanceAttrs) -> tuple[npt.NDArray[np.uint8], Outlines]:
    """Draw the tiles of a slide grey on white, (h,w,3) uint8 of at most 1024 px; return also the downsample."""
    side = attrs.l0_footprint_px
    width, height = attrs.dimensions or [int(v) + side for v in coords.max(axis=0)]
    downsample = max(1.0, max(width, height) / PICTURE_PX)
    shape = (max(1, round(height / downsample)), max(1, round(width / downsample)), 3)
    picture = np.full(shape, _PAPER, np.uint8)
    for x, y in (coords / downsample).tolist():
        low_x, low_y = max(0, round(x)), max(0, round(y))
        picture[low_y : round(y + side / downsample), low_x : round(x + side / downsample)] = _TILE
    return picture, Outlines(downsample=downsample)


def scan_picture(n: int) -> tuple[npt.NDArray[np.uint8], Outlines]:
    """Draw a montage of empty cells (h,w,3) uint8, one per slice (at most 64); return also its layout."""
    slices = np.unique(np.linspace(0, n - 1, min(n, 64)).round().astype(int))
    columns = int(np.ceil(np.sqrt(len(slices))))
    rows = -(-len(slices) // columns)
    picture = np.full((rows * CELL_PX, columns * CELL_PX, 3), _TILE, np.uint8)
    picture[::CELL_PX] = picture[:, ::CELL_PX] = _PAPER
    return picture, Outlines(downsample=1.0, montage=Montage(columns=columns, cell_px=CELL_PX, slices=slices.tolist()))


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
    """Import everything; return the exit code (1 = more bags of a shard failed than allowed).

    Args:
        source: opened with the same `options`.
        name: of the format.
        dataset: its name in the config.
        out: `results/{dataset}`.
        options: what the tool's files do not say.
        bags_per_shard: as in the config, so that a workflow finds these shards.
        allowed_failures: bags per shard that may fail.
        dtype: of the stored features; auto = as they come.

    Raises:
        ValueError: tables or folders that do not fit; nothing is written then.
    """
    rows = sorted(source.rows(), key=lambda row: row.bag_id)
    # Written before bags.csv, so that a workflow does not find the list older than its manifest.
    lines = [(row.bag_id, row.images[0], label_cell(row), row.split, row.group, row.modality) for row in rows]
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
    return Bag(row, coords, matrix, arrays["coverage"], attrs, facts)
