"""Check stored bags byte by byte for damage by a failing disk or an incomplete copy, and make room to rebuild.

`python -m preprocessing.check results/panda/features/resnet18` reads every bag of the stage, compares sizes, schema and
checksums, and lists each broken one. With `--remove` a broken bag and the shard manifests that list it are deleted, so
that the next run of the workflow redoes exactly these bags. Exit code 1 if something is broken.
"""

import argparse
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from preprocessing.common.cli import guard

log = logging.getLogger(__name__)


def check_store(stage: Path | str) -> dict[str, str]:
    """Check all bags of a stage's folder (`{stage}/store`) and return the problems by bag id."""
    from preprocessing.store.bags import read_info, validate_bag

    store = Path(stage) / "store"
    if not store.is_dir():
        raise ValueError(
            f"{stage}: no folder 'store' in it; expected the folder of a stage, e.g. results/NAME/instances"
        )
    broken: dict[str, str] = {}
    for path in sorted(store.iterdir()):
        if path.name.startswith("."):
            continue
        try:
            validate_bag(store, path.name, schema=read_info(store, path.name).schema)
        except (ValueError, OSError) as error:
            broken[path.name] = " ".join(str(error).split())
    return broken


def remove_bags(stage: Path | str, bags: Sequence[str]) -> list[Path]:
    """Delete bags and the manifests that list them; return the deleted manifests."""
    from preprocessing.bags.manifests import ShardManifest

    removed: list[Path] = []
    for manifest in sorted((Path(stage) / "shards").glob("*.json")):
        if ShardManifest.read(manifest).by_id.keys() & set(bags):
            manifest.unlink()
            removed.append(manifest)
    for bag in bags:
        shutil.rmtree(Path(stage) / "store" / bag)
    return removed


@guard
def main(argv: Sequence[str] | None = None) -> int:
    """Check the stages named; see the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m preprocessing.check", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("stage", nargs="+", type=Path, help="folder of a stage: .../instances or .../features/ENCODER")
    parser.add_argument("--remove", action="store_true", help="delete broken bags and the manifests that list them")
    args = parser.parse_args(argv)
    exit_code = 0
    for stage in args.stage:
        broken = check_store(stage)
        exit_code |= bool(broken)
        for bag, reason in broken.items():
            log.error("%s: %s", bag, reason)
        if args.remove and broken:
            for manifest in remove_bags(stage, sorted(broken)):
                log.warning("deleted %s; the next run of the workflow makes it again", manifest)
        log.info("%s: %d broken bags", stage, len(broken))
    return exit_code


if __name__ == "__main__":
    raise SystemExit(main())
