"""The instances stage: which bags are finished, what decides a bag's key, and cutting one bag."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preprocessing.bags.rows import BagRow
from preprocessing.bags.shards import Outcome
from preprocessing.bags.table import resolve
from preprocessing.common import stage_versions
from preprocessing.common.files import json_hash, software, write_jpeg, write_json

if TYPE_CHECKING:
    from preprocessing.common.options import CtOptions, WsiOptions
    from preprocessing.store.arrays import Instances


STAGE = "instances"


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


def options_for(modality: str, values: Mapping[str, dict[str, Any]]) -> WsiOptions | CtOptions:
    """Return the settings of one modality, presets resolved."""
    from preprocessing.common.options import ct_options, wsi_options

    if modality == "ct":
        return ct_options(values["ct"])
    if modality == "wsi":
        return wsi_options(values["wsi"])
    raise ValueError(f"modality {modality!r}, expected 'wsi' or 'ct'")


def compute(row: BagRow, options: WsiOptions | CtOptions, root: Path) -> Instances:
    """Compute the instances of one bag."""
    from preprocessing.common.options import CtOptions

    if isinstance(options, CtOptions):
        from preprocessing.instances.scan_bag import ct_instances

        return ct_instances(None, options, row, root)
    from preprocessing.instances.slide_bag import wsi_instances

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
        from preprocessing.store.bags import coords_hash, finished_attrs, write_bag

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
            "stage_version": stage_versions.INSTANCES,
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
        from preprocessing.bags.overrides import bag_options
        from preprocessing.common.options import WsiOptions

        if row.modality not in self.options:
            raise ValueError(f"{row.bag_id}: modality {row.modality!r}, expected one of {sorted(self.options)}")
        options = self.options[row.modality]
        return bag_options(options, row) if isinstance(options, WsiOptions) else options

    def _key(self, row: BagRow, options: WsiOptions | CtOptions, images: list[list[Any]]) -> str:
        key = {
            "stage": STAGE,
            "version": stage_versions.INSTANCES,
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
        from preprocessing.bags.overrides import overrides_of

        return annotation_identity(self.root, overrides_of(row).mask)

    def _write_thumbnail(self, bag_id: str, bag: Instances, outlines: Path) -> None:
        path = self.thumbnails / f"{bag_id}.jpg"
        if bag.thumbnail is None:
            path.unlink(missing_ok=True)
        else:
            write_jpeg(path, bag.thumbnail)
        write_json(outlines, bag.outlines)


def _outcome(attrs: Mapping[str, Any], n: int, content: str, *, redone: bool = True) -> Outcome:
    bad = int(attrs.get("unreadable_tiles", 0))
    if n == 0:
        reason = str(attrs.get("empty_reason") or "no instances found")
        return Outcome("empty", 0, content, reason, redone, bad_tiles=bad)
    return Outcome("ok", n, content, redone=redone, bad_tiles=bad)


def _pixels_key(row: BagRow, bag: Instances, images: list[list[Any]], coords: str) -> str:
    attrs = {name: value for name, value in bag.attrs.items() if not name.startswith(NOT_PIXELS)}
    return json_hash({"images": images, "mpp": row.mpp, "coords": coords, "attrs": attrs})
