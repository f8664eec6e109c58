"""Read stored bags that are complete and match the shard manifests.

A manifest records the content hash of every bag. A bag that was written again later (by hand, or by a stage killed
before its manifest) has another hash in its attributes and is an error, because runs and predictions are keyed by the
manifests.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from preprocessing.bags.manifests import ShardManifest
from preprocessing.store.attrs import InstanceAttrs
from preprocessing.store.bags import read_arrays, read_instance_attrs, read_stored
from preprocessing.store.schema import Array


def read_geometry(instances: Path, bag_id: str, names: Iterable[str]) -> tuple[InstanceAttrs, dict[str, Array]]:
    """Read attributes and verified arrays, any shape, of a bag's instances, for maps and predictions.

    Raises:
        ValueError: a damaged or missing bag, or content that differs from its manifest.
    """
    attrs = read_stored(read_instance_attrs, instances / "store", bag_id)
    ContentHashes.of_instances(instances).check(bag_id, attrs.store.content)
    return attrs, read_stored(read_arrays, instances / "store", bag_id, list(names), verify=True)


def labels_key(instances: Path, bags: Iterable[str]) -> str:
    """Hash the content hashes of these bags in the instance manifests; "" if there are none.

    A new annotation changes this hash, but not the features.
    """
    hashes = ContentHashes.of_instances(instances).hashes
    content = {bag_id: sorted(hashes[bag_id]) for bag_id in bags if bag_id in hashes}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest() if content else ""


class ContentHashes:
    """Content hashes of bags in those of the given manifests that belong to a stage, "instances" or "features".

    Stale manifests from a different shard size may still be on disk, so a match with any manifest is enough.
    """

    def __init__(self, stage: str, manifests: Iterable[Path | str]) -> None:
        self.stage = stage
        self.hashes: dict[str, dict[str, Path | str]] = {}
        for path in manifests:
            manifest = ShardManifest.read(path)
            for entry in manifest.bags if manifest.stage.partition("/")[0] == stage else ():
                if entry.hash:
                    self.hashes.setdefault(entry.bag_id, {})[entry.hash] = path

    @classmethod
    def of_instances(cls, instances: Path | str, manifests: Iterable[Path | str] = ()) -> "ContentHashes":
        """Read the given manifests and those in the folder of the instances stage."""
        return cls("instances", [*manifests, *sorted((Path(instances) / "shards").glob("*.json"))])

    def check(self, bag_id: str, content: str) -> None:
        """Raise a ValueError if a bag's content differs from its manifests; bags without an entry are accepted."""
        hashes = self.hashes.get(bag_id)
        if hashes and content not in hashes:
            expected, path = next(iter(hashes.items()))
            raise ValueError(
                f"bag {bag_id}: found stored {self.stage} with the hash {content[:12]}, expected {expected[:12]} as in"
                f" {path}: they were written again since; run the {self.stage} stage again (delete that file, then run"
                " the workflow: finished bags are kept)"
            )
