"""Turn a shard of slides or scans into instances: positions, neighbours and coverage in the bag store.

`python -m preprocessing.instances` writes per bag `{out}/store/{bag_id}` (see `preprocessing.store.bags`), a thumbnail
`{out}/thumbnails/{bag_id}.jpg` and its outlines `{bag_id}.json`, and the shard's manifest. A bag is redone only if its
key changes: stage version, settings, images (name, size, hash of head and tail, but not their times, so a copied slide
is not redone), annotation, label and overrides (`preprocessing.bags.overrides`). The files of a skipped bag are not
opened;
the manifest gives the reason.

The attribute `pixels_key` covers the part of the key that determines the pixels of the instances. Features depend on it
alone: a new annotation or label redoes the instances in seconds and keeps the features.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from preprocessing.bags.shards import Shard, add_shard_arguments, check_stage_version, run_shard, shard_lock
from preprocessing.bags.table import read_bags, shard_rows
from preprocessing.common import stage_versions
from preprocessing.common.cli import guard
from preprocessing.instances.stage import STAGE, InstanceStage

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)


def _main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m preprocessing.instances", description=(__doc__ or "").split("\n")[0]
    )
    add_shard_arguments(parser, stage_versions.INSTANCES)
    args = parser.parse_args(argv)
    from preprocessing.common.options import instance_options
    from preprocessing.store.bags import clean_temporary

    check_stage_version(args.stage_version, stage_versions.INSTANCES)
    rows = shard_rows(read_bags(args.bags), args.shard, args.bags_per_shard)
    stage = InstanceStage(args.dataset, args.root, args.out, instance_options(args.options))
    shard = Shard(args.dataset, STAGE, stage_versions.INSTANCES, args.shard)
    status = args.status or args.out.parent / "status" / STAGE / f"{shard.name}.jsonl"
    with shard_lock(args.out / ".locks" / f"{shard.name}.lock"):
        clean_temporary(stage.store)
        return run_shard(rows, stage.work, args.manifest, args.allowed_failures, status, shard=shard)


main = guard(_main)

if __name__ == "__main__":
    raise SystemExit(main())
