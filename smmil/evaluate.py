"""From saved predictions to the metrics of one (dataset, encoder, method); CPU only (paper section 5).

Per split the learning rate is the one whose run had the best VALIDATION selection score (bag AUROC - BCE, stored by
training); the test metrics of the runs not chosen stand beside it under `candidates` and enter no table. Definitions:
`smmil.metrics`; intervals: `smmil.bootstrap`.

Run alone:
    python -m smmil.evaluate --index results/D/predictions/E/M/index.json --out results/D/metrics/E/M.json
"""

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from preprocessing.cli import guard, write_json

logger = logging.getLogger(__name__)

STAGE_VERSION = 1
SHARED = ("dataset", "encoder", "method", "protocol")


def evaluate_runs(files: Sequence[Path | str], *, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Metrics of all runs of one method on one dataset.

    Args:
        files: predictions files, every split and learning rate.
        resamples: of the bootstrap over test bags; 0 leaves the intervals out.
        seed: of the bootstrap.

    Returns:
        The JSON-able metrics object: dataset, encoder, method, protocol, random_weights, `splits` (seed, lr, run,
        threshold, test, val, gated, candidates), `bootstrap`, `definitions`. None, never NaN, where undefined.

    Raises:
        ValueError: runs of different datasets, encoders, methods or protocols, or splits with different test bags.
    """
    from smmil.bootstrap import LEVEL, METRICS, intervals
    from smmil.metrics import DEFINITIONS
    from smmil.results import load_predictions

    groups: dict[int, list[dict[str, Any]]] = {}
    metas, reference = [], None
    for file in files:
        predictions = load_predictions(file)
        test = predictions.part("test")
        reference = _same_bags(predictions.path, test, reference)
        metas.append(predictions.meta)
        entry = _evaluate_run(predictions.meta, test, predictions.part("val"))
        groups.setdefault(int(predictions.meta["seed"]), []).append(entry)
    shared = _shared(metas, files)
    splits, chosen = [], []
    for split_seed in sorted(groups):
        best = choose_run(groups[split_seed])
        chosen.append((best.pop("_test"), best["threshold"]))
        candidates = [_candidate(entry, best) for entry in sorted(groups[split_seed], key=lambda entry: -entry["lr"])]
        splits.append({**best, "candidates": candidates})
    found = intervals(chosen, resamples=resamples, seed=seed) if resamples else dict.fromkeys(METRICS)
    bootstrap = {"resamples": resamples, "seed": seed, "level": LEVEL, "over": "test bags", "intervals": found}
    return {
        **shared,
        "random_weights": any(bool(meta.get("random_weights")) for meta in metas),
        "stage_version": STAGE_VERSION,
        "splits": splits,
        "bootstrap": bootstrap,
        "definitions": DEFINITIONS,
    }


def choose_run(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The run of one split with the best validation selection score; on a tie the larger learning rate.

    Raises:
        ValueError: one learning rate twice.
    """
    rates = [entry["lr"] for entry in entries]
    if len(set(rates)) != len(rates):
        raise ValueError(f"split {entries[0]['seed']}: found the learning rates {rates}, expected each once")
    return max(entries, key=lambda entry: (entry["selection_score"], entry["lr"]))


def _evaluate_run(meta: Mapping[str, Any], test: Mapping[str, Any], val: Mapping[str, Any]) -> dict[str, Any]:
    from smmil.metrics import run_metrics

    gated = run_metrics(test, val, gated=True)
    keys = [key for key in gated["test"] if key.startswith("instance_")]
    return {
        "seed": int(meta["seed"]),
        "lr": float(meta["lr"]),
        "run": str(meta["run"]),
        "selection_score": float(meta["selection_score"]),
        **run_metrics(test, val),
        "gated": {"threshold": gated["threshold"], **{key: gated["test"][key] for key in keys}},
        "_test": test,
    }


def _candidate(entry: Mapping[str, Any], best: Mapping[str, Any]) -> dict[str, Any]:
    from smmil.bootstrap import METRICS

    test = {metric: entry["test"][metric] for metric in METRICS}
    keys = ("run", "lr", "selection_score")
    return {**{key: entry[key] for key in keys}, "chosen": entry["run"] == best["run"], "test": test}


def _same_bags(path: Path, test: Mapping[str, Any], reference: list[str] | None) -> list[str]:
    bags: list[str] = test["bag_id"].tolist()
    if reference is not None and bags != reference:
        odd = sorted(set(bags) ^ set(reference))[:5]
        raise ValueError(f"{path}: its {len(bags)} test bags differ from the other runs' {len(reference)} (e.g. {odd})")
    return bags


def _shared(metas: Sequence[Mapping[str, Any]], files: Sequence[Path | str]) -> dict[str, Any]:
    if not metas:
        raise ValueError("no predictions file given")
    for key in SHARED:
        found = sorted({str(meta[key]) for meta in metas})
        if len(found) > 1:
            raise ValueError(f"{key}: found {found} among {len(files)} runs, expected one; evaluate them apart")
    return {key: metas[0][key] for key in SHARED}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: index in, metrics JSON out."""
    parser = argparse.ArgumentParser(prog="python -m smmil.evaluate", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--index", required=True, help="index.json of the predictions of one method")
    parser.add_argument("--out", required=True, help="metrics JSON to write")
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap resamples over test bags, 0 = none")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap")
    arguments = parser.parse_args(argv)
    from smmil.results import read_index

    files = read_index(arguments.index)
    metrics = evaluate_runs(files, resamples=arguments.resamples, seed=arguments.seed)
    write_json(arguments.out, metrics)
    logger.info("%s: %d runs, %d splits", arguments.out, len(files), len(metrics["splits"]))
    return 0


if __name__ == "__main__":
    raise SystemExit(guard(main)(None))
