"""Trace one result back to the raw files: the runs, weights, features, bags and images that it depends on.

Run alone:
    python -m smmil.provenance results/tables/table1.csv --cell SmAP CAMELYON16
    python -m smmil.provenance results/camelyon16/metrics/resnet18/abmil.json --verify
    python -m smmil.provenance results/camelyon16/predictions/resnet18/abmil/split1_lr0.0001.npz --bag tumor_001

RESULT is a table, a metrics file, a predictions file or a run directory below a results folder. `--verify` recomputes
every recorded hash (files of runs and predictions, bag list, manifests, arrays of the bags); exit code 1 on a mismatch.
`--cell` takes the keys of the CSV file or the names that the table prints. The first line is a verdict; a line each for
runs, features and bags follows, with `--all` every recorded fact.
All facts were recorded with the results; nothing is inferred.
"""

import argparse
import csv
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preprocessing.bags.manifests import ManifestEntry, read_entries
from preprocessing.bags.rows import BagRow
from preprocessing.bags.table import read_bags
from preprocessing.common.cli import guard, program
from preprocessing.features.encoders import encoder_title
from smmil.artifacts.hashes import hash_file, hash_files
from smmil.artifacts.records import IndexEntry, Metrics, PredictionIndex, RunConfig, RunEntry, RunsFile, SplitMetrics
from smmil.config.outputs import title_of

# tables mark names, e.g. SmAP ◆ and CAMELYON16†
_MARKS = re.compile(r"[^\w+−]")
KINDS = ("metrics", "predictions", "runs")
# What is recorded, as JSON values.
Facts = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """Location of a result: `root/dataset/{metrics,predictions,runs}/encoder/method`, and one run or all (None)."""

    root: Path
    dataset: str
    encoder: str
    method: str
    run: str | None = None

    def folder(self, kind: str) -> Path:
        """Return the folder of one kind of files."""
        return self.root / self.dataset / kind / self.encoder / self.method


def locate(result: Path, cell: Sequence[str] | None) -> Place:
    """Find the dataset, encoder, method and run of a file or folder; ValueError if it is no result.

    A table needs its cell, (method, dataset) or (method, dataset, encoder).
    """
    if not result.exists():
        raise ValueError(f"{result}: no such file or folder")
    result = result.resolve()
    if result.parent.name == "tables":
        return _cell_of(result, cell)
    if (result / "runs.json").is_file():
        result = result / "runs.json"
    parts = result.parts
    for kind in KINDS:
        # from the right: an encoder's name may hold a slash, a results folder may lie anywhere
        for at in range(len(parts) - 3, 0, -1):
            if parts[at] != kind:
                continue
            names = [*parts[at + 1 : -1], parts[-1].removesuffix(".json").removesuffix(".npz")]
            last = None if kind == "metrics" else names.pop()
            run = None if last in ("index", "runs") else last
            return Place(Path(*parts[: at - 1]), parts[at - 1], "/".join(names[:-1]), names[-1], run)
    raise ValueError(
        f"{result}: found no result, expected a file of tables/, metrics/ or predictions/, or a run's folder"
    )


def _cell_of(table: Path, cell: Sequence[str] | None) -> Place:
    """Find a cell by the keys of the CSV file or by the names that the printed table has."""
    path = table.with_suffix(".csv")
    with open(path, encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        methods = {row["method"]: row.get("name") or row["method"] for row in reader}
        columns = sorted({tuple(name.split(".")[:2]) for name in reader.fieldnames or () if name.count(".") >= 2})
    datasets = {dataset: title_of(dataset) for dataset, _ in columns}
    encoders = {encoder: encoder_title(encoder) for _, encoder in columns}
    options = "; ".join(
        f"{kind} {', '.join(f'{key} ({name})' if key != name else key for key, name in names.items())}"
        for kind, names in (("methods", methods), ("datasets", datasets), ("encoders", encoders))
    )
    if not cell or not 2 <= len(cell) <= 3:
        raise ValueError(f"{table}: a table has many cells; add --cell METHOD DATASET [ENCODER] ({options})")
    method, dataset = _key(cell[0], methods), _key(cell[1], datasets)
    chosen = [c[1] for c in columns if c[0] == dataset and (len(cell) == 2 or c[1] == _key(cell[2], encoders))]
    if not method or len(chosen) != 1:
        found = f"{len(chosen)} columns" if method else f"no method {cell[0]!r}"
        raise ValueError(f"{table}: found {found} for --cell {' '.join(cell)}, expected one of {options}")
    return Place(table.parent.parent, dataset, chosen[0], method)


def _key(name: str, titles: Mapping[str, str]) -> str:
    """Return the key that a user means, by the key itself or by its title without marks, whatever the case; or ""."""

    def plain(text: str) -> str:
        return _MARKS.sub("", text.casefold())

    return next((key for key, title in titles.items() if plain(name) in (plain(key), plain(title))), "")


def trace(place: Place, *, verify: bool = False, bag: str | None = None) -> Facts:
    """Collect everything recorded about a result: `pairing`, `runs`, `features`, `bags`, and `checks` if verified.

    Args:
        place: from `locate`.
        verify: recompute the hashes.
        bag: also describe this bag.

    Raises:
        ValueError: a file of the chain is missing or damaged.
    """
    runs_json = place.folder("runs") / "runs.json"
    listed = RunsFile.read(runs_json)
    index = {entry.run: entry for entry in PredictionIndex.read(place.folder("predictions") / "index.json").runs}
    metrics = place.folder("metrics").parent / f"{place.method}.json"
    splits = {split.run: split for split in Metrics.read(metrics).splits} if metrics.exists() else {}
    chosen = [run for run in listed.runs if run.run == place.run] if place.run else listed.chosen
    if not chosen:
        raise ValueError(f"{runs_json}: does not list {place.run}")
    path = place.root / place.dataset / "bags.csv"
    rows = {row.bag_id: row for row in read_bags(path)}
    if bag is not None and bag not in rows:
        raise ValueError(f"--bag: {path} lists no bag {bag!r}")
    manifests = sorted((place.root / place.dataset / "features" / place.encoder / "shards").glob("*.json"))
    entries = read_entries(manifests)
    shared = listed.as_json()
    bags: Facts = {"listed": len(rows), "states": dict(Counter(entry.state for entry in entries.values()))}
    bags["excluded"] = shared["excluded"]
    if bag is not None:
        bags["bag"] = _bag(place, rows[bag], entries.get(bag))
    finished = [entry for name, entry in entries.items() if entry.state == "ok" and bag in (None, name)]
    checks = _differences(place, listed, chosen, index, manifests, finished) if verify else []
    return {
        "pairing": {"dataset": place.dataset, "encoder": place.encoder, "method": place.method}
        | {name: shared[name] for name in ("protocol", "random_weights", "method_options")},
        "runs": [_run(place, run, index.get(run.run), splits.get(run.run)) for run in chosen],
        "features": shared["features"],
        "bags": {**bags, "inputs": dict(listed.inputs)},
        "checks": {"computed": len(checks), "different": [text for text in checks if text]} if verify else None,
    }


def _differences(
    place: Place,
    listed: RunsFile,
    chosen: Sequence[RunEntry],
    index: Mapping[str, IndexEntry],
    manifests: Sequence[Path],
    finished: Sequence[ManifestEntry],
) -> list[str]:
    """Recompute every recorded hash; one text each, "" where it is as recorded."""
    from preprocessing.store.bags import validate_bag

    def compared(name: str, actual: str, expected: str) -> str:
        return "" if actual == expected else f"{name}: found {actual[:16]}, expected {expected[:16]}"

    checks, dataset = [], place.root / place.dataset
    for run in chosen:
        weights = place.folder("runs") / run.run / "best.safetensors"
        checks.append(compared(f"weights of {run.run}", hash_file(weights), run.weights_sha256))
        if entry := index.get(run.run):
            predictions = hash_file(place.folder("predictions") / entry.file)
            checks.append(compared(f"predictions of {run.run}", predictions, entry.sha256))
    bags = dataset / "bags.csv"
    checks.append(compared(str(bags), hash_file(bags), listed.inputs["bags"]))
    checks.append(compared(f"{len(manifests)} shard manifests", hash_files(manifests), listed.inputs["manifests"]))
    stages = {"features": dataset / "features" / place.encoder, "instances": dataset / "instances"}
    for bag in finished:
        for schema, stage in stages.items():
            try:
                content = validate_bag(stage / "store", bag.bag_id, schema=schema).store.content
            except ValueError as error:
                checks.append(str(error))
                continue
            if schema == "features":
                checks.append(compared(f"{bag.bag_id}: features against the manifest", content, bag.hash))
    return checks


def _run(place: Place, run: RunEntry, entry: IndexEntry | None, split: SplitMetrics | None) -> Facts:
    names = ("instance_auroc", "instance_f1", "bag_auroc", "bag_f1")
    kept = (
        *("seed", "learning_rate", "key", "device", "numerics", "versions"),
        *("training", "data", "inputs", "pos_weight", "split"),
    )
    facts = RunConfig.read(place.folder("runs") / run.run / "config.json").as_json()
    return {
        "run": run.run,
        "chosen_on_validation": run.chosen,
        "best_epoch": run.best_epoch,
        "selection_score": run.selection_score,
        "weights_sha256": run.weights_sha256,
        "predictions_sha256": entry.sha256 if entry else None,
        "test": {name: split.test.values.get(name) for name in names} if split else None,
        **{name: facts[name] for name in kept},
    }


def _bag(place: Place, row: BagRow, entry: ManifestEntry | None) -> Facts:
    from preprocessing.store.bags import read_feature_attrs, read_instance_attrs

    dataset, state = place.root / place.dataset, dict(sorted(entry.model_dump().items())) if entry else None
    facts: Facts = {"bag_id": row.bag_id, "images": list(row.images), "split": row.split, "state": state}
    facts |= {"label": row.label, "annotation": row.annotation}
    if entry is None or entry.state != "ok":
        return facts
    instances = read_instance_attrs(dataset / "instances" / "store", row.bag_id).as_json()
    features = read_feature_attrs(dataset / "features" / place.encoder / "store", row.bag_id).as_json()
    names = ("mpp", "mpp_source", "preset", "read_level", "tile_px", "windows", "pixels_key", "software")
    facts |= {name: instances[name] for name in names if name in instances}
    kept = ("encoder", "weights_sha256", "resize_policy", "precision", "software", "unreadable_tiles")
    return facts | {"features": {name: features[name] for name in kept if name in features}}


def summary(provenance: Facts) -> str:
    """Format the facts that most readers want, a line each: verdict, pairing, runs, features, bags, differences."""
    pairing, features, bags = (provenance[name] for name in ("pairing", "features", "bags"))
    options = f", {json.dumps(pairing['method_options'])}" if pairing["method_options"] else ""
    lines = [f"{pairing['method']} on {pairing['dataset']}, {pairing['encoder']}, {pairing['protocol']}{options}"]
    for run in provenance["runs"]:
        test = [f"{name} {value:.3f}" for name, value in (run["test"] or {}).items() if value is not None]
        facts = [f"best epoch {run['best_epoch']}", *test, f"weights {_short(run['weights_sha256'])}"]
        lines.append(f"run {run['run']}: {', '.join(facts)}")
    lines.append("features: " + ", ".join(f"{name} {_short(value)}" for name, value in features.items()))
    states = ", ".join(f"{count} {state}" for state, count in bags["states"].items())
    lines.append(f"bags: {bags['listed']} listed, {states}; bags.csv {_short(bags['inputs']['bags'])}")
    if bag := bags.get("bag"):
        state = bag["state"] or {"state": "not in these features", "n": 0}
        known = {"split": bag["split"], "label": bag["label"], "state": state["state"], "instances": state["n"]}
        images = " ".join(bag["images"][:3]) + (" ..." if len(bag["images"]) > 3 else "")
        lines.append(f"bag {bag['bag_id']}: {', '.join(f'{k} {v}' for k, v in known.items())}; {images}")
    lines += (provenance["checks"] or {}).get("different", [])
    return verdict(provenance) + "\n".join(lines) + "\n--all prints every recorded fact\n"


def as_text(provenance: Facts) -> str:
    """Format a provenance as indented lines with shortened hashes."""
    lines: list[str] = []

    def add(name: str, value: Any, depth: int) -> None:
        pad = "  " * depth
        if isinstance(value, dict) and value:
            lines.append(f"{pad}{name}")
            for key, item in value.items():
                add(key, item, depth + 1)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for item in value:
                add(str(item.get("run", name)), item, depth)
        else:
            lines.append(f"{pad}{name}: {_short(value)}")

    for name, value in provenance.items():
        add(name, value, 0)
    return "\n".join(lines) + "\n"


def verdict(provenance: Facts) -> str:
    """Return one line: what a result rests on, and whether its files are still those that were recorded."""
    runs, bags = len(provenance["runs"]), provenance["bags"]["states"].get("ok", 0)
    rests = f"{runs} run{'s' * (runs != 1)} on {bags} bag{'s' * (bags != 1)}"
    checks = provenance["checks"]
    if not checks:
        return f"verdict: recorded with {rests}; --verify recomputes the hashes\n"
    wrong, total = len(checks["different"]), checks["computed"]
    if wrong:
        return f"verdict: CHANGED, {wrong} of {total} hashes differ, so {rests} no longer give this result\n"
    return f"verdict: unchanged, all {total} hashes of {rests} are as recorded\n"


def _short(value: Any) -> str:
    """Return a value as text, of a hash only its start."""
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{text[:16]}..." if re.fullmatch(r"[0-9a-f]{64}", text) else text


@guard
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; exit code 1 if `--verify` finds a difference."""
    parser = argparse.ArgumentParser(prog=program("smmil.provenance"), description=(__doc__ or "").split("\n")[0])
    parser.add_argument("result", type=Path, help="a table, metrics or predictions file, or a run directory")
    parser.add_argument(
        "--cell", nargs="+", metavar="NAME", help="of a table: METHOD DATASET [ENCODER], e.g. SmAP CAMELYON16"
    )
    parser.add_argument("--bag", help="describe this bag too, back to its images")
    parser.add_argument("--verify", action="store_true", help="recompute every hash")
    parser.add_argument("--all", action="store_true", help="print every recorded fact")
    parser.add_argument("--json", action="store_true", help="print every recorded fact as JSON")
    arguments = parser.parse_args(argv)
    provenance = trace(locate(arguments.result, arguments.cell), verify=arguments.verify, bag=arguments.bag)
    if arguments.json:
        print(json.dumps(provenance, indent=1))
    else:
        print(verdict(provenance) + as_text(provenance) if arguments.all else summary(provenance), end="")
    return 1 if provenance["checks"] and provenance["checks"]["different"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
