"""One new slide or scan with one finished run: label and probability, instance scores, a map, GeoJSON for QuPath.

    python -m smmil.predict SLIDE --model results/D/runs/E/M/split1_lr0.0001 --out DIR

SLIDE may be a slide file, a folder with one CT series, `FOLDER#3` for series 3 of several, or a .dcm file. It becomes a
bag store of its own in `DIR/bag` through the same stages as every dataset, cut and encoded exactly as the run's dataset
was (`smmil.predict.settings`), and is scored by `smmil.score`. A second call with another run of the same dataset
finds the bag finished; `DIR/bag` may be deleted at any time.

| file | content |
|---|---|
| `prediction.json` | probability, label at 0.5, model, encoder, settings and where they come from, warnings |
| `instances.csv` | one line per tile or slice: place, score, rank, signed score (`smmil.predict.outputs`) |
| `heatmap.png`, `.pdf` | scores (`--map signed`: signed scores) over the thumbnail, or over the slices |
| `tiles.geojson` | slides: tiles with scores, to drop on QuPath |

A bag without tissue is an outcome: `state` is `empty`, there are no other files. Another encoder, other weights,
another tile size or resolution than the run's are refused. Not for clinical use.
"""

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preprocessing.common.cli import guard
from preprocessing.common.files import write_json, write_text

if TYPE_CHECKING:
    from preprocessing.bags.rows import BagRow
    from smmil.predict.settings import Encoder, Reference

log = logging.getLogger(__name__)

FILES = ("instances.csv", "heatmap.png", "heatmap.pdf", "tiles.geojson")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m smmil.predict", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("image", type=Path, help="slide file, folder of one CT series (FOLDER#3: series 3), or .dcm")
    parser.add_argument("--model", required=True, type=Path, help="directory of a finished run")
    parser.add_argument("--out", required=True, type=Path, help="folder to write to")
    parser.add_argument("--mpp", type=float, help="um per px at level 0, where the file has none or a wrong one")
    parser.add_argument("--weights", type=Path, default=Path("weights"), help="folder of the encoder's weights")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda")
    parser.add_argument("--threads", type=int, default=2, help="threads for decoding and torch")
    parser.add_argument("--batch-size", type=int, default=64, help="tiles per encoder step")
    parser.add_argument("--bag-id", help="name of the bag (default: of the file or folder)")
    parser.add_argument("--map", choices=("score", "signed"), default="score", help="what the picture shows")
    group = parser.add_argument_group("only where the run's dataset is not beside it, or did not record it")
    group.add_argument("--dataset-folder", type=Path, help="results/D of the run's dataset")
    group.add_argument("--options", help='how it was cut, as in the config: {"wsi": {...}} or {"ct": {...}}')
    group.add_argument("--dtype", choices=("float16", "float32"), help="of its stored features")
    group.add_argument("--precision", choices=("float32", "bf16"), help="of its encoder")
    group.add_argument("--any-resolution", action="store_true", help="accept a resolution the run has never seen")
    return parser


@guard
def main(argv: Sequence[str] | None = None) -> int:
    """Predicts one image; see the top of this file."""
    arguments = build_parser().parse_args(argv)
    from smmil.predict.settings import dataset_folder, encoder_of, read_reference, read_run

    if arguments.threads < 1:
        raise ValueError(f"--threads: found {arguments.threads}, expected at least 1")
    config = read_run(arguments.model)
    encoder = encoder_of(config, arguments.model, arguments.weights)
    folder = dataset_folder(arguments.model, arguments.dataset_folder)
    reference = read_reference(folder, config, arguments.model)
    _check_map(arguments)
    # nothing of an earlier prediction may stand beside a failed one
    for name in ("prediction.json", *FILES):
        (arguments.out / name).unlink(missing_ok=True)
    return _predict(arguments, config, encoder, reference)


def _predict(arguments: argparse.Namespace, config: dict[str, Any], encoder: "Encoder", reference: "Reference") -> int:
    from preprocessing.store.bags import read_attrs
    from smmil.predict.settings import check_like_training, instance_options

    dtype = _stated("dtype", arguments.dtype, reference.dtype)
    precision = _stated("precision", arguments.precision, reference.precision)
    bag, root = arguments.out / "bag", _root(arguments.image)
    row = _list(arguments, str(config["dataset"]), bag, root)
    options = instance_options(row.modality, reference, arguments.options)
    told = {
        "bag_id": row.bag_id,
        "modality": row.modality,
        "options": options,
        "features": {**config["features"], "dtype": dtype, "precision": precision},
        "model": _model(arguments.model, config),
    }
    shard = ["--bags", str(bag / "bags.csv"), "--root", str(root), "--shard", "0", "--bags-per-shard", "1"]
    shard += ["--dataset", str(config["dataset"]), "--options", json.dumps(options, sort_keys=True)]
    entry = _cut(shard, bag, row.bag_id)
    if entry["state"] == "empty":
        log.warning("%s: %s; nothing to predict", row.bag_id, entry["reason"])
        none = {"probability": None, "logit": None, "predicted": None, "instances": 0}
        write_json(arguments.out / "prediction.json", {**told, **none, "state": "empty", "reason": entry["reason"]})
        return 0
    attrs = read_attrs(bag / "instances" / "store", row.bag_id)
    warnings = check_like_training(attrs, reference, any_resolution=arguments.any_resolution)
    _encode(shard, bag, row.bag_id, encoder, dtype, precision, arguments)
    scores = _score(arguments, bag, encoder.name)
    return _write(arguments, row, attrs, scores, reference, {**told, "warnings": warnings})


def _check_map(arguments: argparse.Namespace) -> None:
    """Before anything is cut or encoded: whether the picture asked for can be drawn."""
    from smmil.artifacts.hashes import read_json
    from smmil.predictions.signed import DIRECTION_FILE, read_direction

    done = read_json(arguments.model / "done.json")
    if arguments.map == "signed" and read_direction(arguments.model, done["weights_sha256"]) is None:
        raise ValueError(
            f"--map signed: {arguments.model / DIRECTION_FILE} is missing or not of this run, so it has no sign-aware "
            "score; train the run again, or leave the argument out"
        )


def _stated(name: str, given: str | None, recorded: str) -> str:
    if given and recorded and given != recorded:
        raise ValueError(f"--{name} {given}: the run's features are {recorded}; leave the argument out")
    if not (given or recorded):
        raise ValueError(f"the {name} of the run's features is not recorded with the run; give --{name}")
    return given or recorded


def _root(image: Path) -> Path:
    """The folder that holds the image, links resolved."""
    stem = image
    if not image.exists() and "#" in image.name:
        stem = image.with_name(image.name.rpartition("#")[0])
    if not stem.exists():
        raise ValueError(f"{image}: no such file or folder")
    return stem.resolve().parent


def _list(arguments: argparse.Namespace, dataset: str, bag: Path, root: Path) -> "BagRow":
    """bags.csv of the one image, made as for a manifest of one's own."""
    from preprocessing.bags.__main__ import main as list_bags
    from preprocessing.bags.table import read_bags
    from preprocessing.exchange.tables import bag_id_of, write_csv

    image, series = arguments.image, ""
    if not image.exists():
        name, _, number = image.name.rpartition("#")
        image, series = image.with_name(name), f"#{number}"
    real = image.resolve()
    bag_id = arguments.bag_id or bag_id_of(real.name if real.is_dir() else real.stem)
    mpp = "" if arguments.mpp is None else repr(arguments.mpp)
    write_csv(
        bag / "manifest.csv",
        ("bag_id", "image", "label", "split", "mpp"),
        [(bag_id, f"{real.name}{series}", "", "", mpp)],
    )
    source = json.dumps({"manifest": str((bag / "manifest.csv").resolve())})
    argv = ["--dataset", dataset, "--kind", "custom", "--root", str(root), "--options", source]
    _run(list_bags, [*argv, "--out", str(bag / "bags.csv")])
    return read_bags(bag / "bags.csv")[0]


def _run(main: Any, argv: Sequence[str]) -> None:
    """A stage as its command line; its own message has been printed when it fails."""
    code = main(argv)
    if code:
        raise SystemExit(code)


def _entry(manifest: Path, bag_id: str) -> dict[str, Any]:
    from preprocessing.bags.manifests import ShardManifest

    entry = ShardManifest.read(manifest).by_id[bag_id]
    if entry.state == "failed":
        raise ValueError(f"{bag_id}: {entry.reason}")
    return entry.model_dump()


def _cut(shard: Sequence[str], bag: Path, bag_id: str) -> dict[str, Any]:
    from preprocessing.instances import __main__ as instances

    manifest = bag / "instances" / "shards" / "0000.json"
    argv = ["--out", str(bag / "instances"), "--manifest", str(manifest), "--allowed-failures", "1"]
    _run(instances.main, [*shard, *argv])
    return _entry(manifest, bag_id)


def _encode(
    shard: Sequence[str],
    bag: Path,
    bag_id: str,
    encoder: "Encoder",
    dtype: str,
    precision: str,
    arguments: argparse.Namespace,
) -> None:
    from preprocessing.features import __main__ as features

    manifest = bag / "features" / encoder.name / "shards" / "0000.json"
    argv = [
        *("--instances", str(bag / "instances"), "--instances-manifest", str(bag / "instances/shards/0000.json")),
        *("--encoder", encoder.name, "--weights", str(arguments.weights), "--weights-mode", encoder.mode),
        *("--weights-seed", str(encoder.seed), "--resize-policy", encoder.policy, "--dtype", dtype),
        *("--precision", precision, "--batch-size", str(arguments.batch_size), "--device", arguments.device),
        *("--workers", str(arguments.threads), "--out", str(bag / "features"), "--manifest", str(manifest)),
    ]
    _run(features.main, [*shard, *argv, "--allowed-failures", "1"])
    _entry(manifest, bag_id)


def _score(arguments: argparse.Namespace, bag: Path, encoder: str) -> dict[str, Any]:
    """Arrays of the predictions file of the one bag."""
    from smmil import score
    from smmil.artifacts.results import load_predictions

    out, features = bag / "scores", bag / "features" / encoder
    argv = [
        *("--run", str(arguments.model), "--out", str(out), "--bags", str(bag / "bags.csv")),
        *("--instances", str(bag / "instances"), "--features", str(features)),
        *("--manifests", str(features / "shards" / "0000.json")),
    ]
    _run(score.main, [*argv, "--device", arguments.device, "--threads", str(arguments.threads)])
    found = load_predictions(out / f"{arguments.model.resolve().name}.npz")
    meta = found.meta
    return {**found.arrays, "random_weights": meta.random_weights, "signed_agreement": meta.signed_agreement}


def _model(run: Path, config: dict[str, Any]) -> dict[str, Any]:
    from smmil.artifacts.hashes import read_json

    done = read_json(run / "done.json")
    names = ("dataset", "encoder", "method", "seed", "learning_rate")
    facts = {name: config[name] for name in names}
    selection = {"selection_score": done["selection_score"], "weights_sha256": done["weights_sha256"]}
    return {**facts, "run": run.resolve().name, "protocol": config["training"]["protocol"], **selection}


def _write(
    arguments: argparse.Namespace,
    row: "BagRow",
    attrs: dict[str, Any],
    found: dict[str, Any],
    reference: "Reference",
    told: dict[str, Any],
) -> int:
    import numpy as np

    from smmil.artifacts.hashes import versions
    from smmil.data.stored import read_geometry
    from smmil.predict.outputs import Scored, draw_heatmap, instances_csv, write_geojson
    from smmil.predictions.scoring import sigmoid

    out, bag = arguments.out, arguments.out / "bag"
    _, arrays = read_geometry(bag / "instances", row.bag_id, ["coords", "grid"])
    logit, scores = float(found["bag_logit"][0]), found["instance_score"].astype(np.float64)
    probability, threshold = float(sigmoid(np.array([logit]))[0]), reference.threshold
    random = bool(found["random_weights"])
    scored = Scored(
        row.bag_id,
        attrs,
        arrays["coords"],
        arrays["grid"],
        scores,
        probability,
        threshold,
        told["model"]["method"],
        random,
        found["signed_score"].astype(np.float64) if "signed_score" in found else None,
    )
    write_text(out / "instances.csv", instances_csv(scored))
    shown = scored.as_signed() if arguments.map == "signed" else scored
    draw_heatmap(out / "heatmap.png", shown, bag / "instances" / "thumbnails")
    if not scored.is_scan:
        write_geojson(out / "tiles.geojson", scored)
    told |= {name: attrs[name] for name in ("mpp", "mpp_source", "tile_mpp") if name in attrs}
    told |= {"state": "ok", "instances": len(scores), "logit": logit, "probability": probability}
    told |= {"predicted": int(probability > 0.5), "random_weights": random, "instance_threshold": threshold}
    told |= {"instances_above_threshold": None if threshold is None else int((scores > threshold).sum())}
    told |= {"signed_agreement": found["signed_agreement"], "map": arguments.map}
    # written last: a folder with it is complete
    write_json(out / "prediction.json", {**told, "versions": versions()})
    log.info("%s: probability %.4f, %d instances; %s", row.bag_id, probability, len(scores), out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
