"""Bags of instances to features: one shard, one decode pass, all encoders that still need it.

`python -m preprocessing.features` writes `{out}/{encoder}/store/{bag_id}` (array `features` (N, P), see
`preprocessing.store.bags`) and the manifest of one encoder's shard. Bags it decodes anyway it also extracts for the
encoders named in `--also`; their own jobs then find them finished. A bag is redone only if its key changes: stage
version, the pixels its instances show (`pixels_key`), coordinates, encoder, weights, resize policy, dtype, precision.
If nothing is left to do, torch is not even imported.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from preprocessing.bags.shards import ShardJob, add_shard_arguments
from preprocessing.common import stage_versions
from preprocessing.common.cli import guard
from preprocessing.features.encoders import DTYPES, MODES, PRECISIONS


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m preprocessing.features", description=(__doc__ or "").split("\n")[0]
    )
    add_shard_arguments(parser, stage_versions.FEATURES)
    parser.add_argument("--instances", required=True, type=Path, help="folder of the instances stage")
    parser.add_argument("--instances-manifest", required=True, type=Path, help="its manifest of this shard")
    parser.add_argument("--encoder", required=True, help="the encoder whose manifest is written")
    parser.add_argument("--also", default="", help="encoders to extract in the same pass, separated by commas")
    parser.add_argument("--weights", type=Path, default=Path("weights"), help="folder of the weight files")
    parser.add_argument(
        "--weights-mode", default="pretrained", choices=MODES, help="random: seeded, for demo and tests"
    )
    parser.add_argument("--weights-seed", type=int, default=0, help="seed of random weights")
    parser.add_argument("--resize-policy", default="resize224", help="resize224 (or another side), weights, native")
    parser.add_argument("--dtype", default="float16", choices=DTYPES, help="of the stored features")
    parser.add_argument("--batch-size", type=int, default=64, help="tiles per batch")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--precision", default="float32", choices=PRECISIONS, help="bf16 = autocast")
    parser.add_argument("--workers", type=int, default=2, help="decoding threads")
    return parser.parse_args(argv)


@guard
def main(argv: Sequence[str] | None = None) -> int:
    """Extract one shard; see the top of this file."""
    args = _arguments(argv)
    from preprocessing.features.stage import FeatureSettings, Resources, extract_shard

    return extract_shard(
        ShardJob.from_arguments(args, stage_versions.FEATURES),
        [args.encoder, *(name for name in args.also.split(",") if name)],
        FeatureSettings(
            *(args.weights, args.weights_mode, args.weights_seed, args.resize_policy, args.dtype, args.precision)
        ),
        args.instances,
        args.instances_manifest,
        Resources(args.device, args.batch_size, args.workers),
    )


if __name__ == "__main__":
    raise SystemExit(main())
