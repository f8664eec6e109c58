"""Turn a shard of slides or scans into instances: positions, neighbours and coverage in the bag store.

`python -m preprocessing.instances` writes per bag `{out}/store/{bag_id}` (see `preprocessing.store`), a thumbnail
`{out}/thumbnails/{bag_id}.jpg` and its outlines `{bag_id}.json`, and the shard's manifest. A bag is redone only if its
key changes: stage version, settings, images (name, size, hash of head and tail, but not their times, so a copied slide
is not redone), annotation, label and overrides (`preprocessing.overrides`). The files of a skipped bag are not opened;
the manifest gives the reason.

The attribute `pixels_key` covers the part of the key that determines the pixels of the instances. Features depend on it
alone: a new annotation or label redoes the instances in seconds and keeps the features.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import logging
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preprocessing.bags import BagRow, read_bags, resolve, shard_rows
from preprocessing.cli import guard, write_bytes, write_json
from preprocessing.shards import Outcome, Shard, run_shard, shard_lock

if TYPE_CHECKING:
    from preprocessing.instances_types import Instances
    from preprocessing.options import CtOptions, WsiOptions

log = logging.getLogger(__name__)

STAGE = "instances"
STAGE_VERSION = 1

PROBE_BYTES = 1 << 16
WHOLE_FILE_BYTES = 1 << 24
# Attribute with the resolved settings of a bag.
OPTIONS_ATTR = "instance_options"
# Prefixes of attributes that do not affect the pixels of an instance; all others are part of `pixels_key`.
NOT_PIXELS = ("annotation", "coverage", "lesion", "label", "empty_reason", "thumbnail")
_PACKAGES = ("numpy", "openslide-python", "opencv-python-headless", "pydicom", "shapely", "tifffile")


def image_identity(root: Path | str, names: Sequence[str]) -> list[list[Any]]:
    """Identify the images of a bag without reading them whole: [name, bytes, SHA-256 of head and tail] each.

    An edit in the middle of a file that keeps its length is not detected.

    Raises:
        ValueError: a file is missing or outside the root.
    """
    return [[name, *_probe(_existing(root, name))] for name in names]


def annotation_identity(root: Path | str, annotation: str) -> str:
    """Return the SHA-256 of an annotation file (of head and tail beyond 16 MiB), or an inline annotation itself."""
    if not annotation or annotation.startswith("slices:"):
        return annotation
    path = _existing(root, annotation)
    if path.stat().st_size > WHOLE_FILE_BYTES:
        return str(_probe(path)[1])
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _existing(root: Path | str, name: str) -> Path:
    path = resolve(root, name)
    if not path.is_file():
        raise ValueError(f"{name}: no such file below {root}; restore it, or make the list of bags again")
    return path


def _probe(path: Path) -> tuple[int, str]:
    with open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        digest = hashlib.sha256(stream.read(PROBE_BYTES))
        if size > PROBE_BYTES:
            stream.seek(max(PROBE_BYTES, size - PROBE_BYTES))
            digest.update(stream.read())
    return size, digest.hexdigest()


def json_hash(value: Any) -> str:
    """Return the SHA-256 of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def options_for(modality: str, values: Mapping[str, dict[str, Any]]) -> WsiOptions | CtOptions:
    """Return the settings of one modality, presets resolved."""
    from preprocessing.options import ct_options, wsi_options

    if modality == "ct":
        return ct_options(values["ct"])
    if modality == "wsi":
        return wsi_options(values["wsi"])
    raise ValueError(f"modality {modality!r}, expected 'wsi' or 'ct'")


def compute(row: BagRow, options: WsiOptions | CtOptions, root: Path) -> Instances:
    """Compute the instances of one bag."""
    from preprocessing.options import CtOptions

    if isinstance(options, CtOptions):
        from preprocessing.ct import ct_instances

        return ct_instances(None, options, row, root)
    from preprocessing.wsi import wsi_instances

    return wsi_instances(resolve(root, row.images[0]), options, row, root)


class InstanceStage:
    """Work of one shard of this stage: `work(row)` stores one bag and returns its outcome."""

    def __init__(self, dataset: str, root: Path, out: Path, options: Mapping[str, dict[str, Any]]) -> None:
        self.dataset, self.root, self.out = dataset, root, out
        self.store, self.thumbnails = out / "store", out / "thumbnails"
        self.options = {modality: options_for(modality, options) for modality in ("wsi", "ct")}
        self.software = software(_PACKAGES)

    def work(self, row: BagRow) -> Outcome:
        """Compute and store one bag unless it is finished."""
        from preprocessing.store import coords_hash, finished_attrs, write_bag

        if row.skip:
            return Outcome("skipped", reason=row.skip, redone=False)
        options = self._options(row)
        images = image_identity(self.root, row.images)
        key = self._key(row, options, images)
        outlines = self.thumbnails / f"{row.bag_id}.json"
        stored = finished_attrs(self.store, row.bag_id, key)
        if stored is not None and outlines.is_file():
            return _outcome(stored, int(stored["store"]["n"]), str(stored["store"]["content"]), redone=False)
        bag = compute(row, options, self.root)
        arrays = {name: getattr(bag, name) for name in ("coords", "grid", "neighbors", "coverage")}
        attrs = {
            **bag.attrs,
            "dataset": self.dataset,
            "modality": row.modality,
            "label": row.label,
            "mpp_override": row.mpp,
            "stage_version": STAGE_VERSION,
            "software": self.software,
            # recorded for `smmil.predict`, which cuts new images the same way
            OPTIONS_ATTR: options.model_dump(mode="json"),
        }
        if row.overrides:
            attrs["overrides"] = json.loads(row.overrides)
        attrs["pixels_key"] = _pixels_key(row, bag, images, coords_hash(bag.coords, bag.grid))
        self._write_thumbnail(row.bag_id, bag, outlines)
        content = write_bag(self.store, row.bag_id, arrays, attrs, schema="instances", key=key)
        return _outcome(attrs, len(bag.coords), content)

    def _options(self, row: BagRow) -> WsiOptions | CtOptions:
        """Return the dataset's settings with the overrides of one bag."""
        from preprocessing.options import WsiOptions
        from preprocessing.overrides import bag_options

        if row.modality not in self.options:
            raise ValueError(f"{row.bag_id}: modality {row.modality!r}, expected one of {sorted(self.options)}")
        options = self.options[row.modality]
        return bag_options(options, row) if isinstance(options, WsiOptions) else options

    def _key(self, row: BagRow, options: WsiOptions | CtOptions, images: list[list[Any]]) -> str:
        key = {
            "stage": STAGE,
            "version": STAGE_VERSION,
            "dataset": self.dataset,
            "options": options.model_dump(mode="json"),
            "images": images,
            # without the split, which is read from bags.csv when bags are loaded: a new split must not redo a slide
            "row": {name: getattr(row, name) for name in ("label", "mpp", "provider", "annotation_complete")},
            "annotation": annotation_identity(self.root, row.annotation),
        }
        if row.overrides:
            key |= {"overrides": row.overrides, "mask": self._mask_identity(row)}
        return json_hash(key)

    def _mask_identity(self, row: BagRow) -> str:
        from preprocessing.overrides import overrides_of

        return annotation_identity(self.root, overrides_of(row).mask)

    def _write_thumbnail(self, bag_id: str, bag: Instances, outlines: Path) -> None:
        path = self.thumbnails / f"{bag_id}.jpg"
        if bag.thumbnail is None:
            path.unlink(missing_ok=True)
        else:
            write_jpeg(path, bag.thumbnail)
        write_json(outlines, bag.outlines)


def _pixels_key(row: BagRow, bag: Instances, images: list[list[Any]], coords: str) -> str:
    attrs = {name: value for name, value in bag.attrs.items() if not name.startswith(NOT_PIXELS)}
    return json_hash({"images": images, "mpp": row.mpp, "coords": coords, "attrs": attrs})


def _outcome(attrs: Mapping[str, Any], n: int, content: str, *, redone: bool = True) -> Outcome:
    bad = int(attrs.get("unreadable_tiles", 0))
    if n == 0:
        reason = str(attrs.get("empty_reason") or "no instances found")
        return Outcome("empty", 0, content, reason, redone, bad_tiles=bad)
    return Outcome("ok", n, content, redone=redone, bad_tiles=bad)


def write_jpeg(path: Path, picture: Any) -> None:
    """Write an (h, w, 3) uint8 picture as JPEG, atomically."""
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(picture).save(data, "JPEG", quality=85)
    write_bytes(path, data.getbuffer())


def software(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of Python and of those packages that are installed."""
    versions = {"python": platform.python_version()}
    for name in packages:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def add_shard_arguments(parser: argparse.ArgumentParser, stage_version: int) -> None:
    """Add the arguments of every stage over shards of bags."""
    parser.add_argument("--dataset", required=True, help="name of the dataset in the config")
    parser.add_argument("--bags", required=True, type=Path, help="bags.csv")
    parser.add_argument("--root", required=True, type=Path, help="folder with the raw data")
    parser.add_argument("--shard", required=True, type=int, help="number of the shard, from 0")
    parser.add_argument("--bags-per-shard", required=True, type=int, help="bags per shard")
    parser.add_argument("--options", default="{}", help='JSON: {"wsi": {...}, "ct": {...}}')
    parser.add_argument("--out", required=True, type=Path, help="folder of the stage")
    parser.add_argument("--manifest", required=True, type=Path, help="JSON to write: bags, states, hashes")
    parser.add_argument("--status", type=Path, help="JSONL to append to: outcomes with times (default beside --out)")
    parser.add_argument("--allowed-failures", type=int, default=0, help="failed bags up to which the job succeeds")
    parser.add_argument("--stage-version", type=int, help=f"version the caller expects (this is {stage_version})")


def check_stage_version(expected: int | None, actual: int) -> None:
    """Log a warning if the caller expects another version; the program's version counts."""
    if expected is not None and expected != actual:
        log.warning("--stage-version %d, but this program is version %d, which counts", expected, actual)


def _main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m preprocessing.instances", description=(__doc__ or "").split("\n")[0]
    )
    add_shard_arguments(parser, STAGE_VERSION)
    args = parser.parse_args(argv)
    from preprocessing.options import instance_options
    from preprocessing.store import clean_temporary

    check_stage_version(args.stage_version, STAGE_VERSION)
    rows = shard_rows(read_bags(args.bags), args.shard, args.bags_per_shard)
    stage = InstanceStage(args.dataset, args.root, args.out, instance_options(args.options))
    shard = Shard(args.dataset, STAGE, STAGE_VERSION, args.shard)
    status = args.status or args.out.parent / "status" / STAGE / f"{shard.name}.jsonl"
    with shard_lock(args.out / ".locks" / f"{shard.name}.lock"):
        clean_temporary(stage.store)
        return run_shard(rows, stage.work, args.manifest, args.allowed_failures, status, shard=shard)


main = guard(_main)

if __name__ == "__main__":
    raise SystemExit(main())
