"""Compute the metrics of one (dataset, encoder, method) from saved predictions; CPU only (paper section 5).

Per split the run with the best VALIDATION selection score is chosen (bag AUROC - BCE, stored by training); the test
metrics of all runs are listed under `candidates`, and no table uses them. Definitions: `smmil.evaluate.metrics`;
intervals:
`smmil.evaluate.bootstrap`. `gated` holds the metrics with every score of a bag called negative set to -5; under the
quirk
`eval_gate_by_bag` the gated metrics are the primary `test`, `val` and threshold, and the raw ones are stored under
`ungated`. The quirk `eval_energy` halves the energies, in means and intervals.

`spread` describes how every test metric varies over the splits: mean, std (ddof 1, None for one split), median, worst
(the smallest; the largest where less is better: losses, errors, false positive rates, energies), n splits that have
it, and `inverted`: the number of splits whose score ranks instances upside down (AUROC < 0.5); None for bag metrics.

Run alone:
    python -m smmil.evaluate --index results/D/predictions/E/M/index.json --out results/D/metrics/E/M.json
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from preprocessing.common.files import write_json
from smmil.config import stage_versions

logger = logging.getLogger(__name__)

LESS_IS_BETTER = ("bag_bce", "bag_ece", "instance_fpr_at_tpr90", "dirichlet_raw", "dirichlet_normalised")
SHARED = ("dataset", "encoder", "method", "protocol", "quirks")


def evaluate(index: Path | str, out: Path | str, *, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Write and return the metrics of the runs that an index lists.

    Args:
        index: `index.json` of the predictions of one method.
        out: metrics JSON to write.
        resamples: of the bootstrap over test bags; 0 omits the intervals.
        seed: of the bootstrap.

    Raises:
        ValueError: see `smmil.artifacts.results.read_index` and `evaluate_runs`.
    """
    from smmil.artifacts.results import read_index

    files = read_index(index)
    metrics = evaluate_runs(files, resamples=resamples, seed=seed)
    write_json(out, metrics)
    logger.info("%s: %d runs, %d splits", out, len(files), len(metrics["splits"]))
    return metrics


def evaluate_runs(files: Sequence[Path | str], *, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Compute the metrics of all runs of one method on one dataset.

    Args:
        files: predictions files, every split and learning rate.
        resamples: of the bootstrap over test bags; 0 omits the intervals.
        seed: of the bootstrap.

    Returns:
        The JSON-able metrics object: dataset, encoder, method, protocol, quirks, random_weights, `splits` (seed, lr,
        run, threshold, test, val, gated, candidates), `spread`, `bootstrap`, `definitions`. None where undefined.

    Raises:
        ValueError: runs of different datasets, encoders, methods, protocols or quirks, or with different test bags.
    """
    from smmil.artifacts.results import load_predictions
    from smmil.config.definitions import definitions
    from smmil.evaluate.bootstrap import LEVEL, METRICS, intervals

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
        chosen.append((best.pop("_test"), best["threshold"], best.get("signed_threshold")))
        candidates = [_candidate(entry, best) for entry in sorted(groups[split_seed], key=lambda entry: -entry["lr"])]
        splits.append({**best, "candidates": candidates})
    limits = intervals(chosen, resamples=resamples, seed=seed) if resamples else dict.fromkeys(METRICS)
    return {
        **shared,
        "random_weights": any(bool(meta.get("random_weights")) for meta in metas),
        "stage_version": stage_versions.METRICS,
        "splits": splits,
        "spread": spread([split["test"] for split in splits]),
        "bootstrap": {
            "resamples": resamples,
            "seed": seed,
            "level": LEVEL,
            "over": "test bags",
            "intervals": limits,
        },
        "definitions": definitions(shared["quirks"]),
    }


def choose_run(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the run of one split with the best validation selection score; on a tie the larger learning rate.

    Raises:
        ValueError: one learning rate twice.
    """
    rates = [entry["lr"] for entry in entries]
    if len(set(rates)) != len(rates):
        raise ValueError(f"split {entries[0]['seed']}: found the learning rates {rates}, expected each once")
    return max(entries, key=lambda entry: (entry["selection_score"], entry["lr"]))


def spread(tests: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Describe how the metrics of one method vary over its splits.

    Args:
        tests: per split its test metrics.

    Returns:
        {metric: {"mean", "std", "median", "worst", "n", "inverted"}}, see the top of this file.
    """
    from statistics import fmean, median, stdev

    names = sorted({name for test in tests for name, value in test.items() if _is_metric(name, value)})
    result: dict[str, dict[str, Any]] = {}
    for name in names:
        values = [float(value) for test in tests if (value := test.get(name)) is not None]
        plain = name.removeprefix("signed_")
        flag = f"{name[: -len(plain)]}inverted"
        result[name] = {
            "mean": fmean(values) if values else None,
            "std": stdev(values) if len(values) > 1 else None,
            "median": median(values) if values else None,
            "worst": (max(values) if plain in LESS_IS_BETTER else min(values)) if values else None,
            "n": len(values),
            "inverted": sum(bool(test.get(flag)) for test in tests) if plain.startswith("instance_") else None,
        }
    return result


def _is_metric(name: str, value: Any) -> bool:
    known = name.startswith(("instance_", "signed_instance_", "bag_", "dirichlet_"))
    return known and (value is None or isinstance(value, float))


def _evaluate_run(meta: Mapping[str, Any], test: Mapping[str, Any], val: Mapping[str, Any]) -> dict[str, Any]:
    from smmil.config.definitions import GATE
    from smmil.evaluate.metrics import run_metrics

    raw, gated = (
        run_metrics(as_evaluated(meta, test, gated=flag), as_evaluated(meta, val, gated=flag)) for flag in (False, True)
    )
    by_bag = GATE in meta.get("quirks", [])
    primary = gated if by_bag else raw
    return {
        "seed": int(meta["seed"]),
        "lr": float(meta["lr"]),
        "run": str(meta["run"]),
        "selection_score": float(meta["selection_score"]),
        **primary,
        "gated": _instances(gated),
        **({"ungated": _instances(raw)} if by_bag else {}),
        **({"signed_agreement": meta["signed_agreement"]} if "signed_agreement" in meta else {}),
        "_test": as_evaluated(meta, test, gated=by_bag),
    }


def as_evaluated(meta: Mapping[str, Any], part: Mapping[str, Any], *, gated: bool | None = None) -> dict[str, Any]:
    """Apply the run's quirks of evaluation to the arrays of a part.

    Args:
        meta: of the run's predictions.
        part: its test or validation arrays.
        gated: whether scores of bags called negative become -5; None = whether the quirk `eval_gate_by_bag` is active.

    Returns:
        The arrays with gated scores where asked for, and energies halved under the quirk `eval_energy`.
    """
    from smmil.config.definitions import GATE, HALVED
    from smmil.evaluate.metrics import gate

    quirks, changed = meta.get("quirks", []), {}
    if GATE in quirks if gated is None else gated:
        scores = (name for name in ("instance_score", "signed_score") if name in part)
        changed = {name: gate(part[name], part["offsets"], part["bag_logit"]) for name in scores}
    if HALVED in quirks and "energy" in part:
        changed["energy"] = part["energy"] / 2
    return {**part, **changed}


def _instances(metrics: Mapping[str, Any]) -> dict[str, Any]:
    instance_metrics = {key: value for key, value in metrics["test"].items() if key.startswith("instance_")}
    return {"threshold": metrics["threshold"], **instance_metrics}


def _candidate(entry: Mapping[str, Any], best: Mapping[str, Any]) -> dict[str, Any]:
    from smmil.evaluate.bootstrap import METRICS

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
    # a run as written has no quirks in its meta
    metas = [{**meta, "quirks": sorted(meta.get("quirks", []))} for meta in metas]
    for key in SHARED:
        values = sorted({str(meta[key]) for meta in metas})
        if len(values) > 1:
            raise ValueError(f"{key}: found {values} among {len(files)} runs, expected one; evaluate them apart")
    return {key: metas[0][key] for key in SHARED}
