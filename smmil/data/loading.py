"""Load bags from the bag store into memory.

In: `bags.csv`, the shard manifests (which bags are ok, empty or failed), the *instances* and *features* stores.
Out: `smmil.data.batch.Bag` per usable bag. Failed and empty bags (no tissue) are left out and listed in `runs.json` and
in the log. A bag without a manifest entry, or with content that differs from its manifest, is an error.

Edge weights are 1, or exp(-||x_i - x_j|| / P) on the raw features (`feature_distance`, as released; row 6 of
docs/reference/protocol.md). `self_loop` makes every instance its own neighbour (as released for RSNA; row 7).
"""

import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import compress
from pathlib import Path

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor

from preprocessing.bags.manifests import ShardManifest
from preprocessing.bags.table import read_bags
from preprocessing.store.bags import (
    check_pairing,
    read_arrays,
    read_feature_attrs,
    read_info,
    read_instance_attrs,
    read_stored,
)
from smmil.config.training_options import DataOptions
from smmil.data.batch import Bag
from smmil.data.labels import instance_labels, is_consistent, labels_by_name
from smmil.data.splits import BagInfo
from smmil.data.stored import ContentHashes

log = logging.getLogger(__name__)

READERS = 8
FEATURE_FACTS = ("encoder", "weights_sha256", "random_weights", "resize_policy")


@dataclass
class Listing:
    """The usable bags, sorted by id, and the ids of the excluded ones by reason (`failed`, `empty`, `inconsistent`)."""

    bags: list[BagInfo]
    excluded: dict[str, list[str]] = field(default_factory=dict)


def list_usable(bags_csv: Path | str, manifests: Iterable[Path | str]) -> Listing:
    """Join `bags.csv` with the states in the shard manifests of one or both stages.

    Raises:
        ValueError: a bag without a manifest entry, an invalid manifest, or a training bag without a label.
    """
    rows = read_bags(bags_csv)
    states = _states(manifests)
    unknown = [row.bag_id for row in rows if row.bag_id not in states]
    if unknown:
        raise ValueError(
            f"{bags_csv}: {len(unknown)} of {len(rows)} bags are in no manifest (e.g. {', '.join(unknown[:3])});"
            " give the manifests of all shards, made from this bags.csv"
        )
    unlabelled = [row.bag_id for row in rows if row.split in ("train", "val") and row.label is None]
    if unlabelled:
        raise ValueError(
            f"{bags_csv}: {len(unlabelled)} training or validation bags have no label (e.g. {unlabelled[0]});"
            " give a label, or leave `split` empty so that they are only scored"
        )
    excluded = {
        state: sorted(row.bag_id for row in rows if states[row.bag_id] == state)
        for state in ("failed", "skipped", "empty")
    }
    for state, names in excluded.items():
        if names:
            log.warning("left out %d %s bags of %d, e.g. %s", len(names), state, len(rows), names[0])
    bags = [
        BagInfo(row.bag_id, float("nan") if row.label is None else float(row.label), row.split, row.group)
        for row in rows
        if states[row.bag_id] == "ok"
    ]
    return Listing(bags, excluded)


def _states(manifests: Iterable[Path | str]) -> dict[str, str]:
    """Read the states of bags by id: ok, empty, skipped or failed; of two stages the worse one counts."""
    severity = {"ok": 0, "empty": 1, "skipped": 2, "failed": 3}
    states: dict[str, str] = {}
    for path in manifests:
        for entry in ShardManifest.read(path).bags:
            states[entry.bag_id] = max(states.get(entry.bag_id, "ok"), entry.state, key=severity.__getitem__)
    return states


def drop_inconsistent(
    listing: Listing, instances: Path | str, options: DataOptions, manifests: Sequence[Path | str] = ()
) -> Listing:
    """Exclude labelled bags whose instance labels contradict the bag label; only coverages are read."""
    hashes = ContentHashes.of_instances(instances, manifests)

    def keep(info: BagInfo) -> bool:
        hashes.check(info.bag_id, read_stored(read_info, _store(instances), info.bag_id).content)
        coverage = read_stored(read_arrays, _store(instances), info.bag_id, ["coverage"], verify=True)["coverage"]
        return is_consistent(coverage, info.y, options)

    with ThreadPoolExecutor(READERS) as pool:
        consistent = list(pool.map(keep, listing.bags))
    dropped = [info.bag_id for info, ok in zip(listing.bags, consistent, strict=True) if not ok]
    if dropped:
        log.warning("left out %d bags whose instance labels contradict their label, e.g. %s", len(dropped), dropped[0])
    return Listing(list(compress(listing.bags, consistent)), {**listing.excluded, "inconsistent": dropped})


def load_listed(
    infos: Sequence[BagInfo],
    instances: Path | str,
    features: Path | str,
    options: DataOptions | None = None,
    manifests: Sequence[Path | str] = (),
) -> tuple[list[Bag], dict[str, float]]:
    """Load bags into memory, in the given order; the manifests in `instances/shards` are always read, too.

    Returns:
        The bags, and the label thresholds that differ from the requested one (bag id -> threshold).

    Raises:
        ValueError: a missing or damaged bag, content that differs from the manifests, features of other coordinates,
            non-finite features, or differing widths.
    """
    options = options or DataOptions()
    hashes = (ContentHashes.of_instances(instances, manifests), ContentHashes("features", manifests))
    with ThreadPoolExecutor(READERS) as pool:
        work = partial(
            _load_one, instances=_store(instances), features=_store(features), options=options, hashes=hashes
        )
        loaded = list(pool.map(work, infos))
    bags = [bag for bag, _ in loaded]
    widths = {bag.x.shape[1]: bag.bag_id for bag in bags}
    if len(widths) > 1:
        raise ValueError(f"{features}: bags of different feature widths (width: example) {widths}, expected one width")
    return bags, {bag.bag_id: used for bag, used in loaded if used != options.label_threshold}


def _load_one(
    info: BagInfo, *, instances: Path, features: Path, options: DataOptions, hashes: tuple[ContentHashes, ContentHashes]
) -> tuple[Bag, float]:
    geometry = read_stored(read_instance_attrs, instances, info.bag_id)
    extracted = read_stored(read_feature_attrs, features, info.bag_id)
    check_pairing(geometry, extracted, info.bag_id)
    for stage, attributes in zip(hashes, (geometry, extracted), strict=True):
        stage.check(info.bag_id, attributes.store.content)
    arrays = read_stored(read_arrays, instances, info.bag_id, verify=True)
    # Features stay in the stored type, mostly float16, to halve the memory; `pack` converts a batch to float32.
    x = torch.from_numpy(read_stored(read_arrays, features, info.bag_id, verify=True)["features"])
    if len(x) == 0 or len(x) != len(arrays["grid"]) or not bool(torch.isfinite(x).all()):
        raise ValueError(
            f"{features / info.bag_id}: found features {tuple(x.shape)} for {len(arrays['grid'])} instances, expected"
            " one finite row for each of at least one instance; extract the features of this bag again"
        )
    y_inst, threshold = instance_labels(arrays["coverage"], info.y, options)
    if options.label_order == "by_name":
        y_inst = labels_by_name(y_inst, arrays["grid"])
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


def feature_distance_weights(x: Tensor, neighbors: Tensor) -> Tensor:
    """Compute exp(-||x_i - x_j||_2 / P) for every neighbour, 0 for padding: (N,P), (N,K) -> (N,K)."""
    weights = torch.zeros(neighbors.shape, dtype=torch.float32)
    # One column at a time, because all (N,K,P) differences would take K times the memory of the features.
    for column in range(neighbors.shape[1]):
        other = neighbors[:, column]
        distance = (x - x[other.clamp(min=0)]).norm(dim=1)
        weights[:, column] = torch.where(other >= 0, torch.exp(-distance / x.shape[1]), 0.0)
    return weights


def feature_facts(features: Path | str, bag_id: str) -> dict[str, JsonValue]:
    """Return the recorded facts that identify a bag's features: encoder, weights, their mode, resize policy."""
    attrs = read_stored(read_feature_attrs, _store(features), bag_id).as_json()
    return {name: attrs[name] for name in FEATURE_FACTS if name in attrs}


def _store(folder: Path | str) -> Path:
    return Path(folder) / "store"
