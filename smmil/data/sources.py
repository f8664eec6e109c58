"""Sources of bags: a bag store or a CSV table.

`open_source` reads what is known without features (bags, labels, groups, input hashes); only `Source.load` reads them,
so a job whose runs are all finished reads almost nothing.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from preprocessing.store.attrs import InstanceAttrs
from preprocessing.store.bags import read_instance_attrs, read_stored
from smmil.artifacts.hashes import hash_file, hash_files
from smmil.config.training_options import DataOptions
from smmil.data.arguments import BagPaths
from smmil.data.batch import Bag
from smmil.data.csv_table import load_table
from smmil.data.loading import Listing, drop_inconsistent, feature_facts, list_usable, load_listed
from smmil.data.splits import BagInfo

Loaded = tuple[list[Bag], dict[str, float]]


@dataclass(frozen=True)
class Source:
    """Bags to load.

    Attributes:
        listing: usable and excluded bags.
        inputs: content hashes of the inputs.
        data: resolved loading options.
        facts: identity of the features (encoder, weights, resize policy); empty for a table.
        loader: returns the bags and the label thresholds that differ from the requested one.
        records: returns the attributes of a bag's instances and the `facts` of its features; None where there are none.
    """

    listing: Listing
    inputs: dict[str, str]
    data: dict[str, JsonValue]
    facts: dict[str, JsonValue]
    loader: Callable[[Sequence[BagInfo]], Loaded]
    records: Callable[[str], tuple[InstanceAttrs, dict[str, JsonValue]]] | None = None

    @property
    def random_weights(self) -> bool:
        """Whether the encoder has random weights (demo, tests); marks all results."""
        return bool(self.facts.get("random_weights"))

    def load(self, ids: Sequence[str] | None = None) -> Loaded:
        """Load the given usable bags (default: all), sorted by id, and the label thresholds that differ."""
        chosen = None if ids is None else set(ids)
        return self.loader([info for info in self.listing.bags if chosen is None or info.bag_id in chosen])


def open_source(paths: BagPaths | argparse.Namespace, options: DataOptions) -> Source:
    """Open a source of bags; `paths` may be parsed arguments of `smmil.data.arguments.add_source_arguments`.

    Raises:
        ValueError: neither or both kinds of source, or no usable bag.
    """
    if isinstance(paths, argparse.Namespace):
        paths = BagPaths.of_arguments(paths)
    if paths.table is not None:
        if paths.bags or paths.instances or paths.features or paths.manifests:
            raise ValueError("--table: found together with a bag store, expected one of the two")
        source = _table_source(paths.table, paths.table_graph)
    elif paths.bags and paths.instances and paths.features and paths.manifests:
        source = _store_source(paths.bags, paths.instances, paths.features, paths.manifests, options)
    else:
        raise ValueError("expected --bags, --instances, --features and --manifests together, or --table")
    if not source.listing.bags:
        left_out = {reason: len(names) for reason, names in source.listing.excluded.items()}
        raise ValueError(f"{paths.bags or paths.table}: no usable bag (left out: {left_out}); see the QC page")
    return source


def load_bags(
    folder: Path | str,
    encoder: str,
    *,
    split: str | None = None,
    bag_ids: Sequence[str] | None = None,
    options: DataOptions | None = None,
) -> list[Bag]:
    """Load the bags of a dataset with the features of one encoder.

    Empty, skipped and failed bags are left out. Features keep their stored type, mostly float16.

    Args:
        folder: results folder of the dataset, with `bags.csv`, `instances/` and `features/`.
        encoder: name of the encoder, a folder in `features/`.
        split: only bags of this split (`train`, `val` or `test`).
        bag_ids: only these bags.
        options: rules of instance labels and edge weights.

    Returns:
        Bags sorted by id; `smmil.BagBatch.pack` makes a batch of them.

    Raises:
        ValueError: a folder without such bags, an unknown id, or a damaged bag; the message names it.

    Example:
        >>> import smmil
        >>> bags = smmil.load_bags("results/camelyon16", "resnet50_bt", split="test")
        >>> batch = smmil.BagBatch.pack(bags[:4])
        >>> model = smmil.build_model("smap_early", batch.x.shape[1]).eval()
        >>> model(batch).bag_logit.shape
        torch.Size([4])
    """
    features = Path(folder) / "features" / encoder
    manifests = sorted((features / "shards").glob("*.json"))
    if not manifests:
        raise ValueError(f"{features / 'shards'}: no shard manifest; extract the features of {encoder} first")
    paths = BagPaths(Path(folder) / "bags.csv", Path(folder) / "instances", features, manifests)
    source = open_source(paths, options or DataOptions())
    chosen = [info.bag_id for info in source.listing.bags if split in (None, info.split)]
    if bag_ids is not None:
        unknown = sorted(set(bag_ids) - set(chosen))
        if unknown:
            raise ValueError(f"{folder}: found no usable bags {unknown[:5]} among {len(chosen)}")
        chosen = list(bag_ids)
    return source.load(chosen)[0]


def _store_source(
    bags: Path, instances: Path, features: Path, manifests: Sequence[Path], options: DataOptions
) -> Source:
    listing = list_usable(bags, manifests)
    if options.drop_inconsistent:
        listing = drop_inconsistent(listing, instances, options, manifests)
    return Source(
        listing=listing,
        inputs={"bags": hash_file(bags), "manifests": hash_files(manifests)},
        data=options.model_dump(),
        facts=feature_facts(features, listing.bags[0].bag_id) if listing.bags else {},
        loader=lambda infos: load_listed(infos, instances, features, options, manifests),
        records=lambda bag_id: (
            read_stored(read_instance_attrs, instances / "store", bag_id),
            feature_facts(features, bag_id),
        ),
    )


def _table_source(path: Path, graph: str) -> Source:
    bags = {bag.bag_id: bag for bag in load_table(path, graph=graph)}
    return Source(
        listing=Listing([BagInfo(bag.bag_id, bag.y, bag.split, bag.group) for bag in bags.values()]),
        inputs={"table": hash_file(path)},
        data={"graph": graph},
        facts={},
        loader=lambda infos: ([bags[info.bag_id] for info in infos], {}),
    )
