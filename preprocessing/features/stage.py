"""Work of one feature job: find the bags and encoders that are missing, read their tiles, store their features.

Each bag and encoder gives one stored bag with the array `features` (N, P) float16 or float32. A bag's key consists of
the stage version, the pixels and coordinates of its instances, encoder, weights, resize policy, dtype and precision.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preprocessing.bags.rows import BagRow
from preprocessing.bags.shards import Outcome
from preprocessing.bags.table import resolve
from preprocessing.common import stage_versions
from preprocessing.common.files import json_hash, software
from preprocessing.features.encoders import MODES, encoder_id, weights_hash
from preprocessing.features.transforms import check_policy

if TYPE_CHECKING:
    from preprocessing.features.extraction import BagPlan, Extraction, Features

log = logging.getLogger(__name__)

STAGE = "features"
PRECISIONS = ("float32", "bf16")
DTYPES = ("float16", "float32")
# Attributes of the instances that are copied to the features.
_COPIED = ("modality", "preset", "tile_px", "l0_footprint_px", "mpp", "mpp_source", "tile_mpp", "windows", "slice_px")
_PACKAGES = ("numpy", "torch", "torchvision", "timm", "openslide-python", "pydicom", "tifffile", "imagecodecs")


@dataclass(frozen=True)
class FeatureSettings:
    """Settings that determine the features, the same for every encoder of a job."""

    weights: Path
    mode: str
    seed: int
    policy: str
    dtype: str
    precision: str

    def check(self) -> None:
        """Raise a `ValueError` if a setting has an unknown value."""
        check_policy(self.policy)
        choices = {"mode": MODES, "dtype": DTYPES, "precision": PRECISIONS}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: found {getattr(self, name)!r}, expected one of {', '.join(allowed)}")


@dataclass
class _Bag:
    """A bag of the shard.

    Attributes:
        row: row of `bags.csv`.
        attrs: attributes of its stored instances.
        keys: key of its features, per encoder.
        missing: encoders whose features are not stored.
        stored: attributes of the main encoder's features if they are stored.
        bad_tiles: positions of unreadable tiles.
    """

    row: BagRow
    attrs: dict[str, Any]
    keys: dict[str, str]
    missing: frozenset[str]
    stored: dict[str, Any] | None
    bad_tiles: list[int] = field(default_factory=list)


class FeatureStage:
    """Work of one shard for the main encoder (the first) and, in the same pass, others."""

    def __init__(
        self,
        dataset: str,
        root: Path,
        out: Path,
        instances: Path,
        manifest: Mapping[str, Mapping[str, Any]],
        encoders: Sequence[str],
        settings: FeatureSettings,
    ) -> None:
        settings.check()
        self.dataset, self.root, self.out, self.instances = dataset, root, out, instances / "store"
        self.manifest, self.settings = manifest, settings
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
            if self.manifest[row.bag_id]["state"] != "ok":
                continue
            try:
                self._bags[row.bag_id] = self._bag(row)
            except (ValueError, OSError) as error:
                self._errors[row.bag_id] = error
        return [self._plan(bag) for bag in self._bags.values() if self.main in bag.missing]

    @contextlib.contextmanager
    def extracting(self, plans: Sequence[BagPlan], *, device: str, batch_size: int, workers: int) -> Iterator[None]:
        """Load the encoders that are needed and open the decode pass; do nothing without plans."""
        if not plans:
            yield
            return
        from preprocessing.features.encoder_model import load_encoder
        from preprocessing.features.extraction import Extraction

        device = choose_device(device)
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
        with _threads(workers, device), Extraction(plans, loaded, batch_size, workers) as self._extraction:
            yield
        self._extraction = None

    def work(self, row: BagRow) -> Outcome:
        """Return the outcome of one bag; extract and store its features unless they are stored."""
        entry = self.manifest[row.bag_id]
        if entry["state"] in ("empty", "skipped"):
            return Outcome(entry["state"], reason=str(entry["reason"]), redone=False)
        if entry["state"] == "failed":
            return Outcome("failed", reason=f"no instances: {entry['reason']}", redone=False, counted=False)
        if row.bag_id in self._errors:
            raise self._errors[row.bag_id]
        bag = self._bags[row.bag_id]
        if bag.stored is None:
            assert self._extraction is not None
            content = self._write(bag, self._extraction.result(row.bag_id))
            return Outcome("ok", int(bag.attrs["store"]["n"]), content, bad_tiles=len(bag.bad_tiles))
        info, bad = bag.stored["store"], len(bag.stored.get("unreadable_tiles", []))
        return Outcome("ok", int(info["n"]), str(info["content"]), redone=False, bad_tiles=bad)

    def _bag(self, row: BagRow) -> _Bag:
        from preprocessing.store.bags import finished_attrs, read_attrs

        attrs = read_attrs(self.instances, row.bag_id)
        expected = self.manifest[row.bag_id]["hash"]
        if attrs["store"]["content"] != expected:
            raise ValueError(
                f"{row.bag_id}: the stored instances ({attrs['store']['content'][:12]}) are not those of the manifest "
                f"({expected[:12]}); run the instances stage again"
            )
        keys = {name: self._key(name, attrs) for name in self.encoders}
        stored = {name: finished_attrs(self.store(name), row.bag_id, key) for name, key in keys.items()}
        missing = frozenset(name for name, attributes in stored.items() if attributes is None)
        return _Bag(row, attrs, keys, missing, stored[self.main])

    def _key(self, encoder: str, attrs: Mapping[str, Any]) -> str:
        s = self.settings
        return json_hash(
            {
                "stage": STAGE,
                "version": stage_versions.FEATURES,
                "dataset": self.dataset,
                "pixels": attrs["pixels_key"],
                "coords": attrs["coords_hash"],
                "encoder": encoder_id(encoder, s.mode, s.seed),
                "weights": self.hashes[encoder],
                "policy": s.policy,
                "dtype": s.dtype,
                "precision": s.precision,
            }
        )

    def _plan(self, bag: _Bag) -> BagPlan:
        from preprocessing.features.extraction import BagPlan

        return BagPlan(
            bag.row.bag_id, int(bag.attrs["store"]["n"]), _tiles_of(bag, self.root, self.instances), bag.missing
        )

    def _write(self, bag: _Bag, features: Mapping[str, Features]) -> str:
        """Store the features of every encoder of the pass and return the content hash of the main encoder's.

        Errors of the other encoders are logged only: their own jobs report them.
        """
        bad, allowed = sorted(bag.bad_tiles), int(bag.attrs.get("max_bad_tiles", 0))
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
        from preprocessing.store.bags import as_stored, write_bag

        s = self.settings
        attrs = {
            **{key: bag.attrs[key] for key in _COPIED if key in bag.attrs},
            "dataset": self.dataset,
            "stage_version": stage_versions.FEATURES,
            "instances_stage_version": bag.attrs.get("stage_version"),
            "coords_hash": bag.attrs["coords_hash"],
            "encoder": encoder_id(name, s.mode, s.seed),
            "weights_sha256": self.hashes[name],
            "random_weights": s.mode == "random",
            "resize_policy": s.policy,
            "precision": s.precision,
            "unreadable_tiles": bad,
            "software": self.software,
        }
        arrays = {"features": as_stored(features, s.dtype)}
        return write_bag(self.store(name), bag.row.bag_id, arrays, attrs, schema="features", key=bag.keys[name])


def _tiles_of(bag: _Bag, root: Path, instances: Path) -> Any:
    """Return a function that iterates over the tiles start..stop of a bag."""
    from preprocessing.store.bags import read_arrays

    row, attrs = bag.row, bag.attrs
    if row.modality == "ct":

        def slices(start: int, stop: int) -> Iterator[Any]:
            from preprocessing.instances.scan_bag import read_slices

            return read_slices(root, {**attrs, "files": attrs["files"][start:stop]})

        return slices

    def tiles(start: int, stop: int) -> Iterator[Any]:
        from preprocessing.instances.slide_bag import iter_tiles

        coords = read_arrays(instances, row.bag_id, ["coords"], verify=True)["coords"][start:stop]
        path = resolve(root, row.images[0])
        bad = bag.bad_tiles
        return iter_tiles(path, attrs, coords, mpp_override=row.mpp, on_bad_tile=lambda i, _: bad.append(start + i))

    return tiles


@contextlib.contextmanager
def _threads(workers: int, device: str) -> Iterator[None]:
    """Limit torch on the CPU to the threads of the job instead of all cores of the machine."""
    import torch

    before = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(max(1, workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
