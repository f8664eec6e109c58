"""Turn a shard of slides or scans into instances: positions, neighbours and coverage in the bag store.

`python -m preprocessing.instances` writes per bag `{out}/store/{bag_id}` (see `preprocessing.store.bags`), a thumbnail
`{out}/thumbnails/{bag_id}.jpg` and its outlines `{bag_id}.json`, and the shard's manifest. A bag is redone only if its
key changes: stage version, settings, images and annotation (`preprocessing.bags.identity`), label and overrides
(`preprocessing.bags.overrides`). The files of a skipped bag are not opened; the manifest gives the reason.

The attribute `pixels_key` covers the part of the key that determines the pixels of the instances. Features depend on it
alone: a new annotation or label redoes the instances in seconds and keeps the features.
"""

import argparse
from collections.abc import Sequence

from preprocessing.bags.shards import ShardJob, add_shard_arguments
from preprocessing.common import stage_versions
from preprocessing.common.cli import guard


@guard
def main(argv: Sequence[str] | None = None) -> int:
    """Cut one shard; see the top of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m preprocessing.instances", description=(__doc__ or "").split("\n")[0]
    )
    add_shard_arguments(parser, stage_versions.INSTANCES)
    args = parser.parse_args(argv)
    from preprocessing.common.options import parse_instance_options
    from preprocessing.instances.stage import cut_shard

    job = ShardJob.from_arguments(args, stage_versions.INSTANCES)
    return cut_shard(job, parse_instance_options(args.options))


if __name__ == "__main__":
    raise SystemExit(main())
