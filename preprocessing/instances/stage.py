"""The instances stage: cut bags, and redo those whose key has changed."""

import json
import logging
from functools import partial
from pathlib import Path

from preprocessing.bags.identity import Compare, Images, annotation_identity, image_identity, image_times
from preprocessing.bags.overrides import bag_options, overrides_of
from preprocessing.bags.rows import FAULTY, BagRow, resolve
from preprocessing.bags.shards import Outcome, ShardJob
from preprocessing.common import stage_versions
from preprocessing.common.files import json_hash, software, write_jpeg
from preprocessing.common.options import CtOptions, InstanceOptions, WsiOptions
from preprocessing.instances.checks import warnings_of
from preprocessing.instances.scan_bag import ct_instances
from preprocessing.instances.slide_bag import artefacts_of_stored, wsi_instances
from preprocessing.store.arrays import Instances
from preprocessing.store.bags import InstanceAttrs, clean_temporary, coords_hash, finished_attrs, read_arrays, write_bag
from preprocessing.store.outlines import Outlines
from preprocessing.tiling.artefacts import Artefacts, warnings_of_artefacts

STAGE = "instances"
# Prefixes of attributes that do not affect the pixels of an instance; all others are part of `pixels_key`. `snap` acts
# through the coordinates alone.
NOT_PIXELS = tuple("annotation coverage lesion label empty_reason thumbnail snap statistics warnings".split())
_PACKAGES = ("numpy", "openslide-python", "opencv-python-headless", "pydicom", "scikit-image", "shapely", "tifffile")

log = logging.getLogger(__name__)


def cut_bag(
    row: BagRow, options: InstanceOptions, root: Path, out: Path, *, dataset: str, compare: Compare = "time"
) -> Outcome:
    """Cut one slide or scan into instances and store them, unless they are stored already.

    Args:
        row: the bag.
        options: settings of the dataset; the bag's overrides are applied to them.
        root: the dataset's root folder, which holds the images.
        out: folder of the stage; gets `store/{bag_id}` and `thumbnails/{bag_id}.jpg` and `.json`.
        dataset: name of the dataset, part of the bag's key.
        compare: how a changed file is recognised, by "time" or "content".

    Returns:
        State ("ok", "empty" or "skipped"), number of instances and content hash.

    Raises:
        ValueError: an unreadable image, an implausible resolution or a bad annotation; the file is named.
    """
    if row.skip:
        return Outcome("skipped", reason=row.skip, redone=False)
    if FAULTY in row.note and resolve(root, row.images[0]).is_dir():
        # the listing had no files to name, only the folder; with other files in it, bags are listed again
        raise ValueError(row.note.rpartition(f"{FAULTY}: ")[2])
    settings = options.of(row.modality)
    if isinstance(settings, WsiOptions):
        settings = bag_options(settings, row)
    images = image_identity(root, row.images, compare)
    key = _key(row, settings, images, root, dataset, compare)
    outlines = out / "thumbnails" / f"{row.bag_id}.json"
    stored = finished_attrs(out / "store", row.bag_id, key, InstanceAttrs)
    if stored is not None and outlines.is_file():
        warnings = (*warnings_of(stored), *warnings_of_artefacts(_artefacts(row, stored, root, out)))
        return _outcome(stored, stored.store.n, stored.store.content, warnings, redone=False)
    bag = compute(row, settings, root)
    attrs = bag.attrs.updated(
        dataset=dataset,
        modality=row.modality,
        label=row.label,
        mpp_override=row.mpp,
        stage_version=stage_versions.INSTANCES,
        software=software(_PACKAGES),
        instance_options=settings,
        overrides=json.loads(row.overrides or "{}"),
        pixels_key=_pixels_key(row, bag, images),
    )
    picture = outlines.with_suffix(".jpg")
    if bag.thumbnail is None:
        picture.unlink(missing_ok=True)
    else:
        write_jpeg(picture, bag.thumbnail)
    bag.outlines.write(outlines)
    content = write_bag(out / "store", row.bag_id, bag.arrays, attrs, key=key)
    warnings = (*warnings_of(attrs), *warnings_of_artefacts(bag.outlines.artefacts))
    for warning in warnings:
        log.warning("%s: %s", row.bag_id, warning)
    return _outcome(attrs, len(bag), content, warnings)


def _artefacts(row: BagRow, attrs: InstanceAttrs, root: Path, out: Path) -> Artefacts | None:
    """Return the artefacts of a stored bag; if it was cut before anybody looked, look and write them."""
    outlines = Outlines.read(out, row.bag_id)
    if row.modality != "wsi" or outlines.artefacts is not None or outlines.downsample is None:
        return outlines.artefacts
    coords = read_arrays(out / "store", row.bag_id, ["coords"])["coords"]
    artefacts = artefacts_of_stored(resolve(root, row.images[0]), row, attrs, outlines, coords)
    if artefacts is not None:
        outlines.model_copy(update={"artefacts": artefacts}).write(out / "thumbnails" / f"{row.bag_id}.json")
    return artefacts


def cut_shard(job: ShardJob, options: InstanceOptions) -> int:
    """Cut the bags of one shard and write its manifest; exit code 1 without it if more bags failed than allowed."""
    work = partial(cut_bag, options=options, root=job.root, out=job.out, dataset=job.dataset, compare=job.compare)
    with job.locked():
        clean_temporary(job.out / "store")
        return job.run(STAGE, stage_versions.INSTANCES, work)


def compute(row: BagRow, options: WsiOptions | CtOptions, root: Path) -> Instances:
    """Compute the instances of one bag."""
    if isinstance(options, CtOptions):
        return ct_instances(options, row, root)
    return wsi_instances(resolve(root, row.images[0]), options, row, root)


def _key(
    row: BagRow, options: WsiOptions | CtOptions, images: Images, root: Path, dataset: str, compare: Compare
) -> str:
    key = {
        "stage": STAGE,
        "version": stage_versions.INSTANCES,
        "dataset": dataset,
        "options": options.model_dump(mode="json"),
        "images": images,
        "times": image_times(root, row.images, compare),
        # without the split, which is read from bags.csv when bags are loaded: a new split must not redo a slide
        "row": {name: getattr(row, name) for name in ("label", "mpp", "provider", "annotation_complete")},
        "annotation": annotation_identity(root, row.annotation, compare),
    }
    if row.note and row.modality == "ct":
        key["note"] = row.note
    if row.overrides:
        key |= {"overrides": row.overrides, "mask": annotation_identity(root, overrides_of(row).mask, compare)}
    return json_hash(key)


def _pixels_key(row: BagRow, bag: Instances, images: Images) -> str:
    attrs = {name: value for name, value in bag.attrs.as_json().items() if not name.startswith(NOT_PIXELS)}
    coords = coords_hash(bag.coords, bag.grid)
    return json_hash({"images": images, "mpp": row.mpp, "coords": coords, "attrs": attrs})


def _outcome(attrs: InstanceAttrs, n: int, content: str, warnings: tuple[str, ...], *, redone: bool = True) -> Outcome:
    return Outcome(
        "ok" if n else "empty",
        n,
        content,
        "" if n else attrs.empty_reason or "no instances found",
        redone,
        bad_tiles=attrs.unreadable_tiles,
        unused_outlines=attrs.annotation_counts.unused,
        warnings=warnings,
    )
