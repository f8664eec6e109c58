"""List the bags of a dataset: raw folder in, `bags.csv` and a report out."""

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from preprocessing.bags.checks import shared_images, validate_bags
from preprocessing.bags.cohort import Cohort
from preprocessing.bags.overrides import apply_overrides, read_overrides
from preprocessing.bags.report import ListReport, omitted, summarise
from preprocessing.bags.rows import BagRow
from preprocessing.bags.table import write_bags
from preprocessing.common.cli import raise_all
from preprocessing.datasets import get_dataset
from preprocessing.datasets.base import option_file

# of compressed slides, for tiles of 512 px: CAMELYON16 has 1.8 GB and 8,000 tiles a slide, PANDA 33 MB and 105
SLIDE_BYTES_PER_INSTANCE = 250_000
LISTED = 10

log = logging.getLogger(__name__)


def list_bags(
    dataset: str,
    kind: str,
    root: Path,
    options: Mapping[str, object],
    out: Path,
    *,
    max_bags: int | None = None,
    instance_bytes: int = 0,
    splits: int = 0,
) -> list[BagRow]:
    """List and check the bags of a dataset, write `bags.csv` and its report, and return the rows, overrides applied.

    The arguments are those of the command line; `splits` is 0 where nothing is trained.

    Raises:
        ValueError: missing raw data, invalid options, bags with problems, all of them named, or bags that cannot be
            trained on.
    """
    table = get_dataset(kind).list_bags(root, options)
    overrides = option_file(kind, "overrides", options.get("overrides"), root)
    rows = table.rows
    if overrides is not None:
        rows = apply_overrides(rows, read_overrides(overrides), root, str(overrides))
    # after the overrides, because a bag whose files are absent may be skipped by one
    validate_bags(rows, root, source=f"dataset {dataset!r} ({kind}) in {root}")
    if max_bags is not None and len(rows) > max_bags:
        raise ValueError(
            f"dataset {dataset!r}: found {len(rows)} bags, but the workflow planned for {max_bags}; "
            "the folder or the manifest grew after the start, run the workflow again"
        )
    if get_dataset(kind).expected:
        # nobody can correct a published dataset, so its duplicates are reported only; custom bags are checked by line
        images = shared_images(rows, root)
        shared = [*images.contradicting, *images.repeated]
        more = [f"and {len(shared) - LISTED} more images in several bags"] if len(shared) > LISTED else []
        table.report.notes.extend([*shared[:LISTED], *more])
    if splits:
        cohort = Cohort.of_rows(rows)
        raise_all(cohort.problems, f"dataset {dataset!r}")
        for remark in cohort.remarks(splits):
            log.warning("%s: %s", dataset, remark)
    skipped = omitted({row.bag_id: row.skip for row in rows if row.skip})
    report = replace(table.report, dataset=dataset, kind=kind, found=summarise(rows), skipped=skipped, root=str(root))
    write_bags(out, rows)
    report.write(out.with_suffix(".report.json"))
    _log_report(report)
    _check_disk(rows, root, out.parent, instance_bytes)
    return sorted(rows, key=lambda row: row.bag_id)


def _check_disk(rows: Sequence[BagRow], root: Path, folder: Path, instance_bytes: int) -> None:
    """Warn if the disk of the results is too small for the features, estimated from the sizes of the raw files."""
    instances = 0.0
    for row in rows if instance_bytes else ():
        if row.modality == "ct":
            instances += len(row.images)
        elif not row.skip and os.path.isfile(root / row.images[0]):
            instances += os.path.getsize(root / row.images[0]) / SLIDE_BYTES_PER_INSTANCE
    needed, free = instances * instance_bytes, shutil.disk_usage(folder).free
    if needed > free:
        log.warning(
            "the features of these bags need roughly %.1f GB, but %s has %.1f GB free; make room or move `results`",
            *(needed / 1e9, folder, free / 1e9),
        )


def _log_report(report: ListReport) -> None:
    log.info("%s: %d bags %s", report.dataset, report.found.bags, json.dumps(report.found.by_split))
    for what, omissions in (("missing", report.missing), ("excluded", report.excluded), ("skipped", report.skipped)):
        for omission in omissions[:LISTED]:
            log.warning("%s: %s (%s)", what, omission.name, omission.reason)
        if len(omissions) > LISTED:
            log.warning("%s: and %d more, see the report", what, len(omissions) - LISTED)
    for note in report.notes:
        log.info("note: %s", note)
