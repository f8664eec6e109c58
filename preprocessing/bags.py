"""The list of bags (`bags.csv`): one row per slide or scan, written by a dataset module, read by every later stage.

The columns are the fields of `BagRow`; skip and overrides are present only if a bag has an override. The file is sorted
by bag_id and byte-deterministic. All paths in it are relative to the dataset's root and may not leave it.
`python -m preprocessing.bags` writes it together with a report. The option `overrides` names a CSV file with settings
of single bags (`preprocessing.overrides`).
"""

import argparse
import csv
import io
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preprocessing.bag_checks import SPLITS, resolve, validate_bags
from preprocessing.cli import guard, write_json, write_text

__all__ = ["BagRow", "main", "read_bags", "resolve", "shard_rows", "summarise", "validate_bags", "write_bags"]

log = logging.getLogger("preprocessing.bags")

COLUMNS = (
    "bag_id",
    "modality",
    "images",
    "label",
    "split",
    "group",
    "annotation",
    "annotation_complete",
    "provider",
    "mpp",
    "note",
)
OVERRIDE_COLUMNS = ("skip", "overrides")


@dataclass(frozen=True)
class BagRow:
    """One bag before any pixel is read.

    Attributes:
        bag_id: letters, digits, `.`, `_`, `-`, starting with a letter or digit; unique whatever the case.
        modality: "wsi" or "ct".
        images: paths relative to the dataset's root. WSI: one file; CT: the files of one series.
        label: 0, 1, or None (the bag is only scored).
        split: "train", "val", "test", or "" (the bag is only scored).
        group: patient or study, a running index (never a real identifier); "" = a separate group.
        annotation: "" or a path relative to the root, or for CT "slices:" and one character (0, 1, x = unknown) per
            entry of `images`.
        annotation_complete: whether everything outside the annotation is known to be negative; also True for a
            negative bag without an annotation.
        provider: PANDA's radboud or karolinska, otherwise "".
        mpp: um per px at level 0, replaces the file's metadata.
        note: a remark for readers, e.g. "partly annotated".
        skip: reason why the bag is skipped; "" = it is not.
        overrides: settings of this bag alone, one JSON object with sorted keys (`preprocessing.overrides`), or "".
    """

    bag_id: str
    modality: str
    images: tuple[str, ...]
    label: int | None = None
    split: str = ""
    group: str = ""
    annotation: str = ""
    annotation_complete: bool = True
    provider: str = ""
    mpp: float | None = None
    note: str = ""
    skip: str = ""
    overrides: str = ""


def write_bags(path: Path | str, rows: Iterable[BagRow]) -> None:
    """Write `bags.csv` atomically, sorted by bag_id; equal rows give equal bytes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    rows = sorted(rows, key=lambda r: r.bag_id)
    columns = COLUMNS + (OVERRIDE_COLUMNS if any(row.skip or row.overrides for row in rows) else ())
    writer.writerow(columns)
    for row in rows:
        cells: Mapping[str, str] = {
            **{name: getattr(row, name) for name in columns},
            "images": "|".join(row.images),
            "label": "" if row.label is None else str(row.label),
            "annotation_complete": "true" if row.annotation_complete else "false",
            "mpp": "" if row.mpp is None else repr(row.mpp),
        }
        writer.writerow([cells[name] for name in columns])
    write_text(path, text.getvalue())


def read_bags(path: Path | str) -> list[BagRow]:
    """Read `bags.csv`.

    Raises:
        ValueError: no such file, other columns, or a cell that cannot be parsed; file and line are named.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected the bags.csv that `python -m preprocessing.bags` writes")
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        if tuple(reader.fieldnames or ()) not in (COLUMNS, COLUMNS + OVERRIDE_COLUMNS):
            raise ValueError(f"{path}: found the columns {reader.fieldnames}, expected {list(COLUMNS)}")
        return [_parse(cells, f"{path}, line {number}") for number, cells in enumerate(reader, start=2)]


def _parse(cells: Mapping[str, str], where: str) -> BagRow:
    if None in cells or None in cells.values():
        raise ValueError(f"{where}: the number of cells differs from the number of columns; write the file again")
    label, complete, mpp = cells["label"], cells["annotation_complete"], cells["mpp"]
    if label not in ("", "0", "1") or complete not in ("true", "false"):
        raise ValueError(f"{where}: label {label!r}, annotation_complete {complete!r}; expected 0/1/empty, true/false")
    try:
        number = float(mpp) if mpp else None
    except ValueError:
        raise ValueError(f"{where}: mpp: found {mpp!r}, expected a number (um per px) or nothing") from None
    return BagRow(
        bag_id=cells["bag_id"],
        modality=cells["modality"],
        images=tuple(cells["images"].split("|")) if cells["images"] else (),
        label=int(label) if label else None,
        split=cells["split"],
        group=cells["group"],
        annotation=cells["annotation"],
        annotation_complete=complete == "true",
        provider=cells["provider"],
        mpp=number,
        note=cells["note"],
        skip=cells.get("skip", ""),
        overrides=cells.get("overrides", ""),
    )


def shard_rows(rows: Sequence[BagRow], shard: int, bags_per_shard: int) -> list[BagRow]:
    """Return the rows of one shard, in file order; a shard beyond the last bag is empty.

    Raises:
        ValueError: a negative shard or a shard size below 1.
    """
    if shard < 0 or bags_per_shard < 1:
        raise ValueError(f"shard {shard} with {bags_per_shard} bags per shard: expected shard >= 0 and size >= 1")
    return list(rows[shard * bags_per_shard : (shard + 1) * bags_per_shard])


def summarise(rows: Sequence[BagRow]) -> dict[str, Any]:
    """Count the bags of a list: in total, per split and label, annotated, skipped and overridden."""
    label = {None: "unlabelled", 0: "negative", 1: "positive"}
    special = {"skipped": sum(bool(r.skip) for r in rows), "overridden": sum(bool(r.overrides) for r in rows)}
    return {
        "bags": len(rows),
        "by_split": {
            split or "score_only": dict(Counter(label[r.label] for r in rows if r.split == split))
            for split in SPLITS
            if any(r.split == split for r in rows)
        },
        "images": sum(len(r.images) for r in rows),
        "annotated": sum(bool(r.annotation) for r in rows),
        "annotation_incomplete": sum(not r.annotation_complete for r in rows),
        **{name: n for name, n in special.items() if n},
    }


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m preprocessing.bags", description="List the bags of a dataset.")
    parser.add_argument("--dataset", required=True, help="name of the dataset in the config")
    parser.add_argument("--kind", required=True, help="camelyon16, panda, rsna or own")
    parser.add_argument("--root", required=True, type=Path, help="folder with the raw data")
    parser.add_argument("--options", default="{}", help="the kind's options, one JSON object")
    parser.add_argument("--max-bags", type=int, help="bags the workflow planned for; more is an error")
    parser.add_argument("--out", required=True, type=Path, help="bags.csv; NAME.report.json is written beside it")
    return parser.parse_args(argv)


def _main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    from preprocessing.datasets import get_dataset

    dataset = get_dataset(args.kind)
    try:
        options = json.loads(args.options)
    except json.JSONDecodeError as error:
        raise ValueError(f"--options: not JSON ({error}); found {args.options[:80]!r}") from error
    if not isinstance(options, dict):
        raise ValueError(f"--options: expected a JSON object, found {type(options).__name__}")
    table = dataset.list_bags(args.root, options)
    rows = _overridden(table.rows, args.kind, args.root, options)
    validate_bags(rows, args.root, source=f"dataset {args.dataset!r} ({args.kind}) in {args.root}")
    if args.max_bags is not None and len(rows) > args.max_bags:
        raise ValueError(
            f"dataset {args.dataset!r}: found {len(rows)} bags, but the workflow planned for {args.max_bags}; "
            "the folder or the manifest grew after the start, run the workflow again"
        )
    report = {"dataset": args.dataset, "kind": args.kind, "found": summarise(rows), **table.report}
    skipped = [{"name": row.bag_id, "reason": row.skip} for row in rows if row.skip]
    write_bags(args.out, rows)
    if skipped:
        report["skipped"] = sorted(skipped, key=lambda item: item["name"])
    write_json(args.out.with_suffix(".report.json"), report)
    _log_report(report)
    return 0


def _overridden(rows: list[BagRow], kind: str, root: Path, options: Mapping[str, Any]) -> list[BagRow]:
    """Return the rows with the overrides of the file named by the option `overrides`, if any."""
    from preprocessing.datasets.base import option_file
    from preprocessing.overrides import apply_overrides, read_overrides

    path = option_file(kind, options, "overrides", root)
    return rows if path is None else apply_overrides(rows, read_overrides(path), root, str(path))


def _log_report(report: Mapping[str, Any]) -> None:
    log.info("%s: %d bags %s", report["dataset"], report["found"]["bags"], json.dumps(report["found"]["by_split"]))
    for what in ("missing", "excluded", "skipped"):
        items = report.get(what, [])
        for item in items[:10]:
            log.warning("%s: %s (%s)", what, item["name"], item["reason"])
        if len(items) > 10:
            log.warning("%s: and %d more, see the report", what, len(items) - 10)
    for note in report.get("notes", []):
        log.info("note: %s", note)


main = guard(_main)

if __name__ == "__main__":
    raise SystemExit(main(None))
