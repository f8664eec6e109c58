"""Print the JSON schema of the configuration, or check configuration files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from preprocessing.common.cli import guard, program
from smmil.config.experiment import BASE, json_schema, parse_config, read_settings
from smmil.planning import Plan


@guard
def main(argv: Sequence[str] | None = None) -> int:
    """Print the schema, or check configuration files and print the result with every default filled in.

    Files are merged over config.yaml and the preset in the order given, as the workflow does.
    """
    parser = argparse.ArgumentParser(prog=program("smmil.config"), description=main.__doc__)
    parser.add_argument("--schema", action="store_true", help="print the JSON schema")
    parser.add_argument("file", nargs="*", type=Path, help="files with your settings (default: config.yaml alone)")
    args = parser.parse_args(argv)
    if args.schema:
        print(json_schema(), end="")
        return 0
    config = parse_config(read_settings(args.file), ", ".join(map(str, args.file or [BASE])))
    plan = Plan(config)
    plan.missing_raw()
    for dataset in config.trained:
        plan.trained_bags(dataset)
    for remark in plan.remarks():
        print(f"warning: {remark}", file=sys.stderr)
    print(config.model_dump_json(indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
