"""Stored bags as a job may trust them: there, whole, and the very ones that the shard manifests name.

A stage's manifest names the content hash of every bag it found or made. A bag that was written again afterwards (by
hand, by a stage that was killed before its manifest) carries another hash in its attributes: it is refused, since runs
and predictions are keyed by the manifests and would go by a name that is no longer theirs. The arrays themselves are
held against their checksums when they are read (`verify=True`).
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from preprocessing.check import read_stored


def read_geometry(instances: Path, bag_id: str, names: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Attributes and verified arrays of a bag's instances, for maps and predictions.

    Args:
        instances: folder of the stage.
        bag_id: name of the bag.
        names: of the arrays.

    Raises:
        ValueError: a damaged or missing bag, or one that its manifest does not name.
    """
    from preprocessing.store import read_arrays, read_attrs

    attrs: dict[str, Any] = read_stored(read_attrs, instances / "store", bag_id)
    Named.beside(instances).check(bag_id, attrs)
    return attrs, read_stored(read_arrays, instances / "store", bag_id, list(names), verify=True)


def labels_key(instances: Path, bags: Iterable[str]) -> str:
    """Hash of what the manifests beside a store of instances name for these bags; "" where they name none.

    Another annotation changes it, and nothing of the features: who keeps labels of instances goes by it.
    """
    named = Named.beside(instances).hashes
    told = {bag_id: sorted(named[bag_id]) for bag_id in bags if bag_id in named}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest() if told else ""


def read_bags_of(path: Path | str) -> tuple[str, list[dict[str, Any]]]:
    """Stage ("" if it is not told) and bags of a shard manifest.

    Raises:
        ValueError: a file that is not a shard manifest.
    """
    try:
        manifest = json.loads(Path(path).read_text(encoding="utf-8"))
        bags = [{**bag, "bag_id": str(bag["bag_id"]), "state": str(bag["state"])} for bag in manifest["bags"]]
        return str(manifest.get("stage", "")), bags
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a shard manifest ({error}); expected a JSON object with `bags`") from error


class Named:
    """Content hashes of bags by the manifests that name them.

    Manifests of an older cut into shards may lie about: a bag is the right one if any of them names it.

    Args:
        stage: "instances" or "features".
        manifests: of any stage; those of others are passed over.
    """

    def __init__(self, stage: str, manifests: Iterable[Path | str]) -> None:
        self.stage = stage
        self.hashes: dict[str, dict[str, Path | str]] = {}
        for path in manifests:
            told, bags = read_bags_of(path)
            if told.partition("/")[0] == stage:
                for bag in bags:
                    if bag.get("hash"):
                        self.hashes.setdefault(bag["bag_id"], {})[str(bag["hash"])] = path

    @classmethod
    def beside(cls, instances: Path | str, manifests: Iterable[Path | str] = ()) -> "Named":
        """Of the instances stage: those given and those in its folder."""
        return cls("instances", [*manifests, *sorted((Path(instances) / "shards").glob("*.json"))])

    def check(self, bag_id: str, attrs: Mapping[str, Any]) -> None:
        """Refuses a bag that is not the one any manifest names; one that none names is taken as it is.

        Args:
            bag_id: name of the bag.
            attrs: its attributes.

        Raises:
            ValueError: naming the bag, its manifest, and what to do.
        """
        named, found = self.hashes.get(bag_id), str(attrs["store"].get("content"))
        if named and found not in named:
            expected, path = next(iter(named.items()))
            raise ValueError(
                f"bag {bag_id}: the stored {self.stage} ({found[:12]}) are not those that {path} names"
                f" ({expected[:12]}): they were written again since; run the {self.stage} stage again (delete that"
                " file, then run the workflow: finished bags are kept)"
            )
