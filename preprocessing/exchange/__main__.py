"""`python -m preprocessing.exchange import|export --format clam|trident|torchmil|qupath`: other tools' files.

import: their features become a dataset of the bag store, ready for `smmil.train`.
export: stored bags become their files. See docs/howto/exchange.md for what each format can carry.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from preprocessing.bags.rows import BagRow
from preprocessing.bags.table import read_bags
from preprocessing.common.cli import guard, program
from preprocessing.common.files import write_json
from preprocessing.exchange import FORMATS
from preprocessing.exchange.model import ExportOptions, ImportOptions
from preprocessing.exchange.qupath import OBJECT_TYPES, TISSUE, read_scores
from preprocessing.store.bags import bag_path

log = logging.getLogger("preprocessing.exchange")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=program("preprocessing.exchange"), description=(__doc__ or "").split("\n")[0])
    actions = parser.add_subparsers(dest="action", required=True)
    _add_import(actions.add_parser("import", help="other tools' features into the bag store"))
    _add_export(actions.add_parser("export", help="stored bags as other tools' files"))
    return parser.parse_args(argv)


def _add_import(parser: argparse.ArgumentParser) -> None:
    readable = [name for name, entry in FORMATS.items() if entry.open_source is not None]
    parser.add_argument("--format", required=True, choices=readable)
    parser.add_argument("--source", required=True, type=Path, help="folder with the other tool's files")
    parser.add_argument("--dataset", required=True, help="name of the dataset here")
    parser.add_argument("--encoder", required=True, help="name of the features here, e.g. clam_resnet50")
    parser.add_argument("--features-name", default="", help="their folder is features_NAME (default: the encoder)")
    parser.add_argument("--out", required=True, type=Path, help="results/DATASET")
    parser.add_argument("--coords", type=Path, help="clam: folder that holds patches/")
    parser.add_argument("--labels", type=Path, help="CSV: slide_id,label and optionally split,group,mpp")
    parser.add_argument("--splits", type=Path, help="CSV: bag_name,split, or CLAM's train,val,test")
    parser.add_argument("--tile-px", type=int, help="side of a tile as the encoder saw it, px")
    parser.add_argument("--footprint-px", type=int, help="side of a tile at level 0, px")
    parser.add_argument("--step-px", type=int, help="distance of neighbouring tiles at level 0, px")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float16", "float32"), help="of stored features")
    parser.add_argument("--bags-per-shard", type=int, default=25, help="as in the config")
    parser.add_argument("--allowed-failures", type=int, default=0, help="failed bags per shard that are no error")


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", required=True, choices=[*FORMATS])
    parser.add_argument("--bags", required=True, type=Path, help="bags.csv")
    parser.add_argument("--instances", required=True, type=Path, help="folder of the instances stage")
    parser.add_argument("--features", type=Path, help="folder of an encoder's features (not for qupath)")
    parser.add_argument("--out", required=True, type=Path, help="folder to fill")
    parser.add_argument("--bag-id", nargs="*", default=[], help="these bags only")
    parser.add_argument("--predictions", type=Path, help="qupath: npz of a run, adds the score of every tile")
    parser.add_argument("--object-type", default="tile", choices=(*OBJECT_TYPES, TISSUE), help="qupath")
    parser.add_argument("--root", type=Path, help="qupath, tissue: the dataset's root folder, which holds the slides")
    parser.add_argument("--label-threshold", type=float, default=0.5, help="lesion share of a positive instance")
    parser.add_argument("--magnification", type=int, help="trident: of level 0, where the resolution is unknown")


def _import(args: argparse.Namespace) -> int:
    from preprocessing.exchange.stage import import_bags

    for name in ("tile_px", "footprint_px", "step_px", "bags_per_shard"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')}: found {value}, expected at least 1")
    options = ImportOptions(**{field.name: getattr(args, field.name) for field in fields(ImportOptions)})
    opener = FORMATS[args.format].open_source
    assert opener is not None
    if not args.source.is_dir():
        raise ValueError(f"--source {args.source}: no such folder")
    code = import_bags(
        opener(args.source, options),
        args.format,
        args.dataset,
        args.out,
        options,
        bags_per_shard=args.bags_per_shard,
        allowed_failures=args.allowed_failures,
        dtype=args.dtype,
    )
    if code == 0:
        _write_config(args)
    return code


def _write_config(args: argparse.Namespace) -> None:
    """Write `{out}/config.yaml` (JSON is YAML), with which Snakemake finds the imported stages finished."""
    if args.out.resolve().name != args.dataset:
        log.warning("--out does not end in %s, so a workflow will not find it; no config.yaml written", args.dataset)
        return
    dataset = {
        **{"kind": "custom", "root": str(args.source), "source": {"manifest": str(args.out / "manifest.csv")}},
        **{"encoders": [args.encoder], "bags_per_shard": args.bags_per_shard},
        "allowed_failures": args.allowed_failures,
    }
    # No encoder runs, so no weights are needed; the features record whether theirs were random.
    shared = {"preset": "study", "use": [args.dataset], "weights": {"mode": "random"}, "results": str(args.out.parent)}
    write_json(args.out / "config.yaml", {**shared, "datasets": {args.dataset: dataset}})
    print(f"next: `smmil run -c {args.out / 'config.yaml'}`")


def _export(args: argparse.Namespace) -> int:
    from preprocessing.exchange.stage import read_stored

    form = FORMATS[args.format]
    if form.needs_features and args.features is None:
        raise ValueError(f"--features: {form.name} holds features, give an encoder's folder, e.g. .../features/E")
    rows = read_bags(args.bags)
    if unknown := sorted(set(args.bag_id) - {row.bag_id for row in rows}):
        raise ValueError(f"{args.bags}: no bags {unknown[:5]} among {len(rows)}")
    rows = [row for row in rows if not args.bag_id or row.bag_id in args.bag_id]
    encoder = args.features.resolve().name if args.features is not None else ""
    target = form.open_target(
        args.out,
        ExportOptions(encoder, args.label_threshold, args.object_type, args.magnification, args.root, args.instances),
    )
    scores = read_scores(args.predictions) if args.predictions is not None else {}
    features = args.features if form.needs_features else None
    written: list[BagRow] = []
    skipped: list[str] = []
    for row in rows:
        stored = bag_path(args.instances / "store", row.bag_id).is_dir()
        bag = read_stored(row, args.instances, features) if stored or args.bag_id else None
        if bag is None or len(bag) == 0:
            if args.bag_id:
                raise ValueError(f"{row.bag_id}: an empty bag (no tissue), there is nothing to export")
            skipped.append(row.bag_id)
            continue
        bag.scores = scores.get(row.bag_id, {})
        target.write(bag)
        written.append(row)
    target.finish(written)
    if not written:
        raise ValueError(f"{args.bags}: none of {len(rows)} bags is stored and has instances; run the stages first")
    if skipped:
        log.warning("left out %d bags that are empty or not stored, e.g. %s", len(skipped), skipped[0])
    log.info("%s: %d bags written to %s", form.name, len(written), args.out)
    return 0


def _main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    return _import(args) if args.action == "import" else _export(args)


main = guard(_main)

if __name__ == "__main__":
    raise SystemExit(main(None))
