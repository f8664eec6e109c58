"""Work of one feature job: find the bags and encoders that are missing, read their tiles, store their features."""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from preprocessing.bags.identity import Compare, image_times
from preprocessing.bags.manifests import ManifestEntry, ShardManifest
from preprocessing.bags.rows import BagRow, resolve
from preprocessing.bags.shards import Outcome, ShardJob
from preprocessing.common import stage_versions
from preprocessing.common.files import json_hash, software
from preprocessing.features.encoder_model import load_encoder
from preprocessing.features.encoders import encoder_id, weights_hash
from preprocessing.features.extraction import BagPlan, Extraction, Features, OpenTiles, Tile
from preprocessing.instances.scan_bag import read_slices
from preprocessing.slides.tile_reader import iter_tiles
from preprocessing.store.bags import (
    FeatureAttrs,
    InstanceAttrs,
    as_stored,
    clean_temporary,
    finished_attrs,
    read_arrays,
    read_info,
    read_instance_attrs,
    write_bag,
)

log = logging.getLogger(__name__)

STAGE = "features"
# Attributes of the instances that are copied to the features.
_COPIED = ("modality", "preset", "tile_px", "l0_footprint_px", "mpp", "mpp_source", "tile_mpp", "windows", "slice_px")
_PACKAGES = ("numpy", "torch", "torchvision", "timm", "openslide-python", "pydicom", "tifffile", "imagecodecs")


@dataclass(frozen=True)
class FeatureSettings:
    """Settings that determine the features, the same for every encoder of a job; see `load_encoder`.

    Attributes:
        dtype: "float16" or "float32", of the stored features.
    """

    weights: Path
    mode: str
    seed: int
    policy: str
    dtype: str
    precision: str


@dataclass(frozen=True)
class Resources:
    """What a job may use; the features do not depend on it, up to rounding on another device.

    Attributes:
        device: "auto", "cpu", "cuda", "cuda:1", ...
        batch_size: tiles per batch.
        workers: decoding threads.
    """

    device: str
    batch_size: int
    workers: int


def extract(
    row: BagRow,
    encoder: str,
    settings: FeatureSettings,
    root: Path,
    instances: Path,
    out: Path,
    *,
    dataset: str,
    resources: Resources,
) -> Outcome:
    """Extract and store the features of one bag with one encoder, unless they are stored already.

    Args:
        row: the bag; its instances are stored and not empty.
        encoder: its name.
        settings: of all features of a run.
        root: the dataset's root folder, which holds the images.
        instances: folder of the instances stage.
        out: folder of the stage; gets `{encoder}/store/{bag_id}` with the array `features` (N, P).
        dataset: its name, part of the bag's key.
        resources: device, batch size and threads.

    Raises:
        FileNotFoundError: the bag has no stored instances.
        ValueError: missing weights or unreadable images; the file is named.
        Abort: the encoder fails.
    """
    info = read_info(instances / "store", row.bag_id)
    entry = ManifestEntry(bag_id=row.bag_id, state="ok", n=info.n, hash=info.content)
    stage = FeatureStage(dataset, root, out, instances, {row.bag_id: entry}, [encoder], settings)
    with stage.extracting(stage.prepare([row]), resources):
        return stage.work(row)


def extract_shard(
    job: ShardJob,
    encoders: Sequence[str],
    settings: FeatureSettings,
    instances: Path,
    instances_manifest: Path,
    resources: Resources,
) -> int:
    """Extract the features of one shard and write the manifest of the first encoder.

    Args:
        job: the shard.
        encoders: the encoder whose manifest is written, then others to extract in the same pass.
        settings: the same for all encoders.
        instances: folder of the instances stage.
        instances_manifest: its manifest of this shard.
        resources: device, batch size and threads.

    Returns:
        Exit code: 0, or 1 without a manifest if more bags failed than allowed.
    """
    entries = ShardManifest.read(instances_manifest).by_id
    stage = FeatureStage(job.dataset, job.root, job.out, instances, entries, encoders, settings, job.compare)
    # one lock for all encoders of the shard: two jobs at once would decode everything twice
    with job.locked():
        for name in stage.encoders:
            clean_temporary(stage.store(name))
        with stage.extracting(stage.prepare(job.rows), resources):
            return job.run(f"{STAGE}/{stage.main}", stage_versions.FEATURES, stage.work)


@dataclass
class _Bag:
    """A bag of the shard.

    Attributes:
        row: its row of `bags.csv`.
        attrs: of its stored instances.
        keys: of its features, per encoder.
        missing: encoders whose features are not stored.
        stored: attributes of the main encoder's features if they are stored.
        bad_tiles: positions of unreadable tiles.
    """

    row: BagRow
    attrs: InstanceAttrs
    keys: dict[str, str]
    missing: frozenset[str]
    stored: FeatureAttrs | None
    bad_tiles: list[int] = field(default_factory=list)


class FeatureStage:
    """Work of one shard for the main encoder (the first) and, in the same pass, others."""

    def __init__(
        self,
        dataset: str,
        root: Path,
        out: Path,
        instances: Path,
        manifest: Mapping[str, ManifestEntry],
        encoders: Sequence[str],
        settings: FeatureSettings,
        compare: Compare = "time",
    ) -> None:
        self.dataset, self.root, self.out, self.instances = dataset, root, out, instances / "store"
        self.manifest, self.settings, self.compare = manifest, settings, compare
        self.main, self.encoders = encoders[0], tuple(dict.fromkeys(encoders))
        self.hashes = {e: weights_hash(e, settings.weights, settings.mode, settings.seed) for e in self.encoders}
        self.software: dict[str, str] = {}
        self._bags: dict[str, _Bag] = {}
        self._errors: dict[str, ValueError | OSError] = {}
        self._extraction: Extraction | None = None

    def store(self, encoder: str) -> Path:
        """Return the folder of one encoder's stored features."""
        return self.out / encoder / "store"

    def prepare(self, rows: Sequence[BagRow]) -> list[BagPlan]:
        """List the bags to extract; errors of single bags are kept for `work`.

        Raises:
            ValueError: the instances' manifest belongs to another shard.
        """
        absent = [row.bag_id for row in rows if row.bag_id not in self.manifest]
        if absent:
            raise ValueError(
                f"the instances' manifest lacks {len(absent)} of {len(rows)} bags, e.g. {absent[:3]}; "
                "it belongs to another shard or to an older bags.csv: run the instances stage again"
            )
        for row in rows:
            if self.manifest[row.bag_id].state != "ok":
                continue
            try:
                self._bags[row.bag_id] = self._bag(row)
            except (ValueError, OSError) as error:
                self._errors[row.bag_id] = error
        return [
            BagPlan(bag.row.bag_id, bag.attrs.store.n, _tiles_of(bag, self.root, self.instances), bag.missing)
            for bag in self._bags.values()
            if self.main in bag.missing
        ]

    @contextlib.contextmanager
    def extracting(self, plans: Sequence[BagPlan], resources: Resources) -> Iterator[None]:
        """Load the encoders that are needed and open the decode pass; do nothing without plans."""
        if not plans:
            yield
            return
        device = choose_device(resources.device)
        s = self.settings
        self.software = {**software(_PACKAGES), "device": device}
        needed = [name for name in self.encoders if any(name in plan.encoders for plan in plans)]
        loaded = {
            name: load_encoder(
                name, s.weights, mode=s.mode, seed=s.seed, policy=s.policy, device=device, precision=s.precision
            )
            for name in needed
        }
        tiles = sum(plan.n for plan in plans)
        log.info("%d bags, %d tiles, encoders %s on %s", len(plans), tiles, ", ".join(needed), device)
        with Extraction(plans, loaded, resources.batch_size, resources.workers) as self._extraction:
            yield

    def work(self, row: BagRow) -> Outcome:
        """Return the outcome of one bag; extract and store its features unless they are stored."""
        entry = self.manifest[row.bag_id]
        if entry.state in ("empty", "skipped"):
            return Outcome(entry.state, reason=entry.reason, redone=False)
        # The instances stage has already counted its failures against the number that is allowed.
        if entry.state == "failed":
            return Outcome("failed", reason=f"no instances: {entry.reason}", redone=False, counted=False)
        if row.bag_id in self._errors:
            raise self._errors[row.bag_id]
        bag = self._bags[row.bag_id]
        if bag.stored is None:
            assert self._extraction is not None
            content = self._write(bag, self._extraction.result(row.bag_id))
            return Outcome("ok", bag.attrs.store.n, content, bad_tiles=len(bag.bad_tiles))
        info, bad_tiles = bag.stored.store, len(bag.stored.unreadable_tiles)
        return Outcome("ok", info.n, info.content, redone=False, bad_tiles=bad_tiles)

    def _bag(self, row: BagRow) -> _Bag:
        attrs = read_instance_attrs(self.instances, row.bag_id)
        expected = self.manifest[row.bag_id].hash
        if attrs.store.content != expected:
            raise ValueError(
                f"{row.bag_id}: the stored instances ({attrs.store.content[:12]}) are not those of the manifest "
                f"({expected[:12]}); run the instances stage again"
            )
        times = image_times(self.root, row.images, self.compare)
        keys = {name: self._key(name, attrs, times) for name in self.encoders}
        stored = {name: finished_attrs(self.store(name), row.bag_id, key, FeatureAttrs) for name, key in keys.items()}
        missing = frozenset(name for name, attributes in stored.items() if attributes is None)
        return _Bag(row, attrs, keys, missing, stored[self.main])

    def _key(self, encoder: str, attrs: InstanceAttrs, times: Sequence[int]) -> str:
        s = self.settings
        return json_hash(
            {
                "stage": STAGE,
                "version": stage_versions.FEATURES,
                "dataset": self.dataset,
                "pixels": attrs.pixels_key,
                "times": times,
                "coords": attrs.coords_hash,
                "encoder": encoder_id(encoder, s.mode, s.seed),
                "weights": self.hashes[encoder],
                "policy": s.policy,
                "dtype": s.dtype,
                "precision": s.precision,
            }
        )

    def _write(self, bag: _Bag, features: Mapping[str, Features]) -> str:
        """Store the features of every encoder of the pass and return the content hash of the main encoder's.

        Errors of the other encoders are logged only: their own jobs report them.
        """
        bad, allowed = sorted(bag.bad_tiles), bag.attrs.max_bad_tiles
        if len(bad) > allowed:
            raise ValueError(f"{bag.row.bag_id}: {len(bad)} unreadable tiles, {allowed} allowed by max_bad_tiles")
        content = self._write_one(bag, self.main, features[self.main], bad)
        for name in sorted(set(features) - {self.main}):
            try:
                self._write_one(bag, name, features[name], bad)
            except ValueError as error:
                log.warning(
                    "bag %s, encoder %s: %s; the job of this encoder will report it", bag.row.bag_id, name, error
                )
        return content

    def _write_one(self, bag: _Bag, name: str, features: Features, bad: list[int]) -> str:
        s = self.settings
        attrs = FeatureAttrs(
            **{field: getattr(bag.attrs, field) for field in _COPIED if field in bag.attrs.model_fields_set},
            dataset=self.dataset,
            stage_version=stage_versions.FEATURES,
            instances_stage_version=bag.attrs.stage_version,
            coords_hash=bag.attrs.coords_hash,
            encoder=encoder_id(name, s.mode, s.seed),
            weights_sha256=self.hashes[name],
            random_weights=s.mode == "random",
            resize_policy=s.policy,
            precision=s.precision,
            unreadable_tiles=tuple(bad),
            software=self.software,
        )
        arrays = {"features": as_stored(features, s.dtype)}
        return write_bag(self.store(name), bag.row.bag_id, arrays, attrs, key=bag.keys[name])


def _tiles_of(bag: _Bag, root: Path, instances: Path) -> OpenTiles:
    """Return a function that iterates over the tiles start..stop of a bag, (H, W, 3) each."""
    row, attrs = bag.row, bag.attrs

    def tiles(start: int, stop: int) -> Iterator[Tile]:
        coords = read_arrays(instances, row.bag_id, ["coords"], verify=True)["coords"][start:stop]
        path = resolve(root, row.images[0])
        bad = bag.bad_tiles
        return iter_tiles(path, attrs, coords, on_bad_tile=lambda i, _: bad.append(start + i))

    return partial(read_slices, root, attrs) if row.modality == "ct" else tiles


def choose_device(device: str) -> str:
    """Resolve "auto" to the GPU if there is one; other names are those of torch.

    Raises:
        ValueError: the device is a GPU and there is none.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {device!r}, but torch finds no GPU here; use auto or cpu")
    return device
