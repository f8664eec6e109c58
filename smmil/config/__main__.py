"""Print the JSON schema of the configuration, or check a configuration file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from preprocessing.common.cli import guard
from smmil.config.experiment import json_schema, load_yaml, parse_config


@guard
def main(argv: Sequence[str] | None = None) -> int:
    """Print the schema, or check a complete configuration file and print it with every default filled in."""
    parser = argparse.ArgumentParser(prog="python -m smmil.config", description=main.__doc__)
    parser.add_argument("--schema", action="store_true", help="print the JSON schema")
    parser.add_argument(
        "file", nargs="?", type=Path, default=Path("config.yaml"), help="file to check (default: config.yaml)"
    )
    args = parser.parse_args(argv)
    if args.schema:
        print(json_schema(), end="")
        return 0
    print(parse_config(load_yaml(args.file), str(args.file)).model_dump_json(indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
