"""Sources of bags for the command lines: a bag store or a CSV table.

`open_source` reads what is known without features (bags, labels, groups, input hashes); only `Source.load` reads them,
so a job whose runs are all finished reads almost nothing.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smmil.artifacts.hashes import hash_file, hash_files
from smmil.config.training_options import DataOptions
from smmil.data.loading import BagInfo, Listing, drop_inconsistent, feature_facts, list_usable, load_bags

if TYPE_CHECKING:
    from smmil.data.batch import Bag


@dataclass(frozen=True)
class Source:
    """Bags to load.

    Attributes:
        listing: usable and excluded bags.
        inputs: content hashes of the inputs.
        data: resolved loading options as JSON values.
        facts: identity of the features (encoder, weights, resize policy); empty for a table.
        loader: returns the bags and the label thresholds that differ from the requested one.
    """

    listing: Listing
    inputs: dict[str, str]
    data: dict[str, Any]
    facts: dict[str, Any]
    loader: "Callable[[Sequence[BagInfo]], tuple[list[Bag], dict[str, float]]]"

    @property
    def random_weights(self) -> bool:
        """Whether the encoder has random weights (demo, tests); marks all results."""
        return bool(self.facts.get("random_weights"))

    def load(self, ids: Sequence[str] | None = None) -> "tuple[list[Bag], dict[str, float]]":
        """Load the given usable bags (default: all), sorted by id, and the label thresholds that differ."""
        chosen = None if ids is None else set(ids)
        return self.loader([info for info in self.listing.bags if chosen is None or info.bag_id in chosen])


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--bags --instances --features --manifests` and `--table --table-graph`."""
    group = parser.add_argument_group("bags, from the bag store or from a table")
    group.add_argument("--bags", type=Path, help="bags.csv")
    group.add_argument("--instances", type=Path, help="folder whose store/ holds the geometry")
    group.add_argument("--features", type=Path, help="folder whose store/ holds the encoder's features")
    group.add_argument("--manifests", type=Path, nargs="+", default=[], help="shard manifests (states of the bags)")
    group.add_argument("--table", type=Path, help="instead of a bag store: a CSV table, one instance per row")
    group.add_argument("--table-graph", choices=("none", "chain"), default="none", help="graph of a table's bags")


def open_source(arguments: argparse.Namespace, options: DataOptions) -> Source:
    """Open the source given by the arguments.

    Raises:
        ValueError: neither or both kinds of source, or no usable bag.
    """
    store = (arguments.bags, arguments.instances, arguments.features)
    if arguments.table is not None:
        if any(store) or arguments.manifests:
            raise ValueError("--table: found together with a bag store, expected one of the two")
        source = _table_source(arguments.table, arguments.table_graph)
    elif all(store) and arguments.manifests:
        source = _store_source(arguments, options)
    else:
        raise ValueError("expected --bags, --instances, --features and --manifests together, or --table")
    if not source.listing.bags:
        left_out = {reason: len(names) for reason, names in source.listing.excluded.items()}
        raise ValueError(f"{arguments.bags or arguments.table}: no usable bag (left out: {left_out}); see the QC page")
    return source


def _store_source(arguments: argparse.Namespace, options: DataOptions) -> Source:
    listing = list_usable(arguments.bags, arguments.manifests)
    if options.drop_inconsistent:
        listing = drop_inconsistent(listing, arguments.instances, options, arguments.manifests)
    facts = feature_facts(arguments.features, listing.bags[0].bag_id) if listing.bags else {}
    return Source(
        listing=listing,
        inputs={"bags": hash_file(arguments.bags), "manifests": hash_files(arguments.manifests)},
        data=options.model_dump(),
        facts=facts,
        loader=lambda infos: load_bags(infos, arguments.instances, arguments.features, options, arguments.manifests),
    )


def _table_source(path: Path, graph: str) -> Source:
    from smmil.data.csv_table import load_table

    bags = {bag.bag_id: bag for bag in load_table(path, graph=graph)}
    infos = [BagInfo(bag.bag_id, bag.y, bag.split, bag.group) for bag in bags.values()]
    return Source(
        listing=Listing(infos),
        inputs={"table": hash_file(path)},
        data={"graph": graph},
        facts={},
        loader=lambda chosen: ([bags[info.bag_id] for info in chosen], {}),
    )
