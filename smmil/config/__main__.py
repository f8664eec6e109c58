"""Print the JSON schema of the configuration, or check configuration files."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from preprocessing.common.cli import guard
from smmil.config.experiment import json_schema, load_yaml, merge, parse_config
from smmil.installation import workflow_folder
from smmil.planning import Plan

log = logging.getLogger(__name__)
BASE = workflow_folder() / "config.yaml"


@guard
def main(argv: Sequence[str] | None = None) -> int:
    """Print the schema, or check configuration files and print the result with every default filled in.

    Files are merged over config.yaml in the order given, as `snakemake --configfile` does.
    """
    parser = argparse.ArgumentParser(prog="python -m smmil.config", description=main.__doc__)
    parser.add_argument("--schema", action="store_true", help="print the JSON schema")
    parser.add_argument("file", nargs="*", type=Path, help="files with your settings (default: config.yaml alone)")
    args = parser.parse_args(argv)
    if args.schema:
        print(json_schema(), end="")
        return 0
    files = [BASE, *(file for file in args.file if not _same(file, BASE))]
    values: dict[str, Any] = {}
    for file in files:
        values = merge(values, load_yaml(file))
    config = parse_config(values, ", ".join(map(str, args.file or files)))
    plan = Plan(config)
    plan.missing_raw()
    for remark in plan.remarks():
        log.warning("%s", remark)
    print(config.model_dump_json(indent=1))
    return 0


def _same(file: Path, other: Path) -> bool:
    return file.is_file() and file.samefile(other)


if __name__ == "__main__":
    raise SystemExit(main())
