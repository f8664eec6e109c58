"""List the bags of a data set: raw folder in, bags.csv and a report out."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from preprocessing.bags.checks import validate_bags
from preprocessing.bags.rows import BagRow
from preprocessing.bags.table import summarise, write_bags
from preprocessing.common.cli import guard
from preprocessing.common.files import write_json
from preprocessing.datasets import DATASETS, get_dataset
from preprocessing.datasets.base import option_file

log = logging.getLogger(__name__)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m preprocessing.bags", description="List the bags of a dataset.")
    parser.add_argument("--dataset", required=True, help="name of the dataset in the config")
    parser.add_argument("--kind", required=True, help=", ".join(DATASETS))
    parser.add_argument("--root", required=True, type=Path, help="folder with the raw data")
    parser.add_argument("--options", default="{}", help="the kind's options, one JSON object")
    parser.add_argument("--max-bags", type=int, help="bags the workflow planned for; more is an error")
    parser.add_argument("--out", required=True, type=Path, help="bags.csv; NAME.report.json is written beside it")
    return parser.parse_args(argv)


def _main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
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
    from preprocessing.bags.overrides import apply_overrides, read_overrides

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
