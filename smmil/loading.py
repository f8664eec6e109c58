"""From the bag store (or a plain CSV table) to bags in memory; the only door through which bags reach a model.

In: `bags.csv`, the shard manifests (which bags are ok, empty or failed), the *instances* and *features* stores.
Out: `smmil.data.Bag` per usable bag: features float32 (N,P), neighbours, grid, coordinates, bag label, instance labels.

- A failed bag is left out and counted; so is an empty one (no tissue: it has no instance to score). Nothing is silent:
  both lists stand in `runs.json` and in the log. A bag that no manifest names is an error, and so is one whose content
  is not what its manifests name (`smmil.stored`).
- Instance labels come from the stored coverage by the rules of `smmil.data_options`.
- Edge weights are 1, or exp(-||x_i - x_j|| / P) on the raw features (`feature_distance`, as released; row 6).
- `self_loop` adds every instance to its own neighbours (as released for RSNA; row 7).

Importing this module is cheap; torch is imported where bags become tensors.
"""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from preprocessing.bags import BagRow, read_bags
from preprocessing.check import read_stored
from smmil.data_options import DataOptions as DataOptions
from smmil.data_options import instance_labels as instance_labels
from smmil.data_options import is_consistent, labels_by_name
from smmil.stored import Named, read_bags_of

if TYPE_CHECKING:
    from torch import Tensor

    from smmil.data import Bag

log = logging.getLogger(__name__)

READERS = 8


@dataclass(frozen=True)
class BagInfo:
    """What is known of a bag before its arrays are read; enough to make splits."""

    bag_id: str
    y: float
    split: str
    group: str


@dataclass
class Listing:
    """The usable bags and those left out.

    Attributes:
        bags: sorted by id.
        excluded: reason (`failed`, `empty`, `inconsistent`) -> ids.
    """

    bags: list[BagInfo]
    excluded: dict[str, list[str]] = field(default_factory=dict)


def list_usable(bags_csv: Path | str, manifests: Iterable[Path | str]) -> Listing:
    """Joins `bags.csv` with the states in the shard manifests (of one stage or of both).

    Raises:
        ValueError: a bag no manifest names, a manifest that is none, or a training bag without a label.
    """
    rows = read_bags(bags_csv)
    states = read_states(manifests)
    unknown = [row.bag_id for row in rows if row.bag_id not in states]
    if unknown:
        raise ValueError(
            f"{bags_csv}: {len(unknown)} of {len(rows)} bags stand in no manifest (e.g. {', '.join(unknown[:3])});"
            " give the manifests of all shards, made from this bags.csv"
        )
    unlabelled = [row.bag_id for row in rows if row.split in ("train", "val") and row.label is None]
    if unlabelled:
        raise ValueError(
            f"{bags_csv}: {len(unlabelled)} bags to learn from have no label (e.g. {unlabelled[0]});"
            " give a label, or leave `split` empty so that they are only scored"
        )
    excluded = {
        state: sorted(row.bag_id for row in rows if states[row.bag_id] == state)
        for state in ("failed", "skipped", "empty")
        # runs.json of a dataset that skips nothing stays what it was
        if state != "skipped" or state in states.values()
    }
    for state, names in excluded.items():
        if names:
            log.warning("left out %d %s bags of %d, e.g. %s", len(names), state, len(rows), names[0])
    return Listing([_info(row) for row in rows if states[row.bag_id] == "ok"], excluded)


def _info(row: BagRow) -> BagInfo:
    return BagInfo(row.bag_id, float("nan") if row.label is None else float(row.label), row.split, row.group)


def read_states(manifests: Iterable[Path | str]) -> dict[str, str]:
    """Bag id -> ok, empty or failed; where manifests of two stages differ, the worse state holds.

    Raises:
        ValueError: a file that is not a shard manifest.
    """
    severity = {"ok": 0, "empty": 1, "skipped": 2, "failed": 3}
    states: dict[str, str] = {}
    for path in manifests:
        for bag_id, state in ((bag["bag_id"], bag["state"]) for bag in read_bags_of(path)[1]):
            if state not in severity:
                raise ValueError(f"{path}: bag {bag_id} has the state {state!r}, expected one of {', '.join(severity)}")
            states[bag_id] = max(states.get(bag_id, "ok"), state, key=severity.__getitem__)
    return states


def drop_inconsistent(
    listing: Listing, instances: Path | str, options: DataOptions, manifests: Sequence[Path | str] = ()
) -> Listing:
    """Leaves out (and counts) labelled bags whose instance labels contradict the bag label; reads coverages only."""
    from preprocessing.store import read_arrays, read_attrs

    named = Named.beside(instances, manifests)

    def keep(info: BagInfo) -> bool:
        named.check(info.bag_id, read_stored(read_attrs, _store(instances), info.bag_id))
        coverage = read_stored(read_arrays, _store(instances), info.bag_id, ["coverage"], verify=True)["coverage"]
        return is_consistent(coverage, info.y, options)

    with ThreadPoolExecutor(READERS) as pool:
        kept = list(pool.map(keep, listing.bags))
    dropped = [info.bag_id for info, ok in zip(listing.bags, kept, strict=True) if not ok]
    if dropped:
        log.warning("left out %d bags whose instance labels contradict their label, e.g. %s", len(dropped), dropped[0])
    bags = [info for info, ok in zip(listing.bags, kept, strict=True) if ok]
    return Listing(bags, {**listing.excluded, "inconsistent": dropped})


def load_bags(
    infos: Sequence[BagInfo],
    instances: Path | str,
    features: Path | str,
    options: DataOptions | None = None,
    manifests: Sequence[Path | str] = (),
) -> "tuple[list[Bag], dict[str, float]]":
    """Reads bags into memory, several at a time, in the order given.

    Args:
        infos: which bags.
        instances: `results/D/instances`, whose `store/` holds the geometry.
        features: `results/D/features/E`, whose `store/` holds the features.
        options: labels and edge weights.
        manifests: shard manifests that name the bags' content; those in `instances/shards` count in any case.

    Returns:
        The bags, and the label thresholds that differ from the one asked for (bag id -> threshold).

    Raises:
        ValueError: a missing or damaged bag, one written again after its manifest, features of other coordinates,
            non-finite features, differing widths.
    """
    options = options or DataOptions()
    named = (Named.beside(instances, manifests), Named("features", manifests))
    with ThreadPoolExecutor(READERS) as pool:
        work = partial(_load_one, instances=_store(instances), features=_store(features), options=options, named=named)
        loaded = list(pool.map(work, infos))
    bags = [bag for bag, _ in loaded]
    widths = {bag.x.shape[1]: bag.bag_id for bag in bags}
    if len(widths) > 1:
        raise ValueError(f"{features}: bags of different feature widths (width: example) {widths}, expected one width")
    return bags, {bag.bag_id: used for bag, used in loaded if used != options.label_threshold}


def _load_one(
    info: BagInfo, *, instances: Path, features: Path, options: DataOptions, named: tuple[Named, Named]
) -> "tuple[Bag, float]":
    import torch

    from preprocessing.store import check_pairing, read_arrays, read_attrs
    from smmil.data import Bag

    ours, theirs = (read_stored(read_attrs, store, info.bag_id) for store in (instances, features))
    check_pairing(ours, theirs, info.bag_id)
    for manifests, found in zip(named, (ours, theirs), strict=True):
        manifests.check(info.bag_id, found)
    arrays = read_stored(read_arrays, instances, info.bag_id, verify=True)
    # as stored, mostly float16: in float32 a cohort of slides takes twice the memory (`pack` converts a batch)
    x = torch.from_numpy(read_stored(read_arrays, features, info.bag_id, verify=True)["features"])
    if len(x) == 0 or len(x) != len(arrays["grid"]) or not bool(torch.isfinite(x).all()):
        raise ValueError(
            f"{features / info.bag_id}: found features {tuple(x.shape)} for {len(arrays['grid'])} instances, expected"
            " one finite row for each of at least one instance; extract the features of this bag again"
        )
    y_inst, threshold = instance_labels(arrays["coverage"], info.y, options)
    if options.label_order == "by_name":
        y_inst = labels_by_name(y_inst)
    neighbors = torch.from_numpy(arrays["neighbors"].astype(np.int64))
    if options.self_loop:
        neighbors = torch.cat([torch.arange(len(neighbors))[:, None], neighbors], 1)
    bag = Bag(
        bag_id=info.bag_id,
        x=x,
        neighbors=neighbors,
        grid=torch.from_numpy(arrays["grid"].astype(np.int64)),
        coords=torch.from_numpy(arrays["coords"]),
        y=info.y,
        y_inst=torch.from_numpy(y_inst),
        coverage=torch.from_numpy(arrays["coverage"]),
        split=info.split,
        group=info.group,
        edge_weight=feature_distance_weights(x.float(), neighbors)
        if options.edge_weight == "feature_distance"
        else None,
    )
    return bag, threshold


def feature_distance_weights(x: "Tensor", neighbors: "Tensor") -> "Tensor":
    """exp(-||x_i - x_j||_2 / P) for every neighbour, 0 where padded: (N,P), (N,K) -> (N,K)."""
    import torch

    weights = torch.zeros(neighbors.shape, dtype=torch.float32)
    # column by column: all (N,K,P) differences at once would be K times the features
    for column in range(neighbors.shape[1]):
        other = neighbors[:, column]
        distance = (x - x[other.clamp(min=0)]).norm(dim=1)
        weights[:, column] = torch.where(other >= 0, torch.exp(-distance / x.shape[1]), 0.0)
    return weights


def feature_facts(features: Path | str, bag_id: str) -> dict[str, Any]:
    """What identifies a bag's features: encoder, weights and their mode, resize policy (those it records)."""
    from preprocessing.store import read_attrs

    attrs: Mapping[str, Any] = read_stored(read_attrs, _store(features), bag_id)
    return {name: attrs[name] for name in FEATURE_FACTS if name in attrs}


FEATURE_FACTS: Collection[str] = ("encoder", "weights_sha256", "random_weights", "resize_policy")


def _store(folder: Path | str) -> Path:
    return Path(folder) / "store"
