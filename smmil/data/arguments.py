"""Where bags are: a bag store or a CSV table, as arguments of a command line.

This module imports nothing heavy, so that a command prints its help at once.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class BagPaths:
    """Files of a bag store, or a table instead; `add_source_arguments` explains them."""

    bags: Path | None = None
    instances: Path | None = None
    features: Path | None = None
    manifests: Sequence[Path] = ()
    table: Path | None = None
    table_graph: str = "none"

    @classmethod
    def of_arguments(cls, arguments: argparse.Namespace) -> "BagPaths":
        """Return the paths given to the arguments of `add_source_arguments`."""
        return cls(**{field.name: getattr(arguments, field.name) for field in fields(cls)})


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--bags --instances --features --manifests` and `--table --table-graph`."""
    group = parser.add_argument_group("bags, from the bag store or from a table")
    group.add_argument("--bags", type=Path, help="bags.csv")
    group.add_argument("--instances", type=Path, help="folder whose store/ holds the geometry")
    group.add_argument("--features", type=Path, help="folder whose store/ holds the encoder's features")
    group.add_argument("--manifests", type=Path, nargs="+", default=[], help="shard manifests (states of the bags)")
    group.add_argument("--table", type=Path, help="instead of a bag store: a CSV table, one instance per row")
    group.add_argument("--table-graph", choices=("none", "chain"), default="none", help="graph of a table's bags")
