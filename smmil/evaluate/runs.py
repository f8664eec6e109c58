"""Compute the metrics of one (dataset, encoder, method) from saved predictions; CPU only (paper section 5).

Per split the run counts whose learning rate VALIDATION chose (bag AUROC - BCE, stored by training): per split or one
rate for all splits, see `smmil.artifacts.chosen_runs`. The test metrics of all runs are listed under `candidates`, and
no table uses them. Definitions: `smmil.evaluate.metrics`; intervals: `smmil.evaluate.bootstrap`. `gated` holds the
metrics with every score of a bag called negative set to -5; under the quirk `eval_gate_by_bag` the gated metrics are
the primary `test`, `val` and threshold, and the raw ones are stored under `ungated`.

`spread` describes how every test metric varies over the splits: mean, std (ddof 1, None for one split), median, worst
(the smallest; the largest where less is better: losses, errors, false positive rates, energies), n splits that have
it, and `inverted`: the number of splits whose score ranks instances upside down (AUROC < 0.5); None for bag metrics.

Run alone:
    python -m smmil.evaluate --index results/D/predictions/E/M/index.json --out results/D/metrics/E/M.json
"""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any, NamedTuple

from smmil.artifacts.chosen_runs import chosen_rates
from smmil.artifacts.records import (
    Bootstrap,
    Candidate,
    Metrics,
    PartMetrics,
    PredictionIndex,
    PredictionMeta,
    SplitMetrics,
    Spread,
    Values,
)
from smmil.artifacts.results import SCORES, Arrays, load_predictions, read_index
from smmil.config import stage_versions
from smmil.config.definitions import GATE, definitions
from smmil.config.training_options import RateChoice
from smmil.evaluate.bootstrap import LEVEL, METRICS, Run, intervals
from smmil.evaluate.metrics import RunMetrics, gate, run_metrics

logger = logging.getLogger(__name__)

LESS_IS_BETTER = ("bag_bce", "bag_ece", "instance_fpr_at_tpr90", "dirichlet_raw", "dirichlet_normalised")


class EvaluatedRun(NamedTuple):
    """Metrics of one run, and what the bootstrap resamples."""

    meta: PredictionMeta
    split: SplitMetrics
    resampled: Run


def evaluate(index: Path | str, out: Path | str, *, resamples: int = 1000, seed: int = 0) -> Metrics:
    """Write, as JSON, and return the metrics of the runs that an `index.json` lists; see `evaluate_runs`."""
    files, choice = read_index(index), PredictionIndex.read(index).learning_rate_choice
    metrics = evaluate_runs(files, choice=choice, resamples=resamples, seed=seed)
    metrics.write(out)
    logger.info("%s: %d runs, %d splits", out, len(files), len(metrics.splits))
    return metrics


def evaluate_runs(
    files: Sequence[Path | str], *, choice: RateChoice = "split", resamples: int = 1000, seed: int = 0
) -> Metrics:
    """Compute the metrics of all runs of one method on one dataset.

    Args:
        files: predictions files, every split and learning rate.
        choice: how validation chooses among the learning rates.
        resamples: of the bootstrap over test bags; 0 omits the intervals.
        seed: of the bootstrap.

    Raises:
        ValueError: runs of different datasets, encoders, methods, options, protocols or quirks, or of other test bags.
    """
    runs: list[EvaluatedRun] = []
    for file in files:
        predictions = load_predictions(file)
        run = _evaluate_run(predictions.meta, predictions.part("test"), predictions.part("val"))
        bags = run.resampled[0]["bag_id"].tolist()
        reference = runs[0].resampled[0]["bag_id"].tolist() if runs else bags
        # Means over splits and resampled bags need one test set for all of them.
        if bags != reference:
            differing = sorted(set(bags) ^ set(reference))[:5]
            raise ValueError(
                f"{file}: its {len(bags)} test bags differ from the other runs' {len(reference)} (e.g. {differing})"
            )
        runs.append(run)
    for key in ("dataset", "encoder", "method", "method_options", "protocol", "quirks"):
        values = sorted({str(sorted(run.meta.quirks) if key == "quirks" else getattr(run.meta, key)) for run in runs})
        if len(values) > 1:
            raise ValueError(f"{key}: found {values} among {len(runs)} runs, expected one; evaluate them apart")
    rates = chosen_rates((run.meta for run in runs), choice)
    chosen = [run for seed_, rate in rates.items() for run in runs if (run.meta.seed, run.meta.lr) == (seed_, rate)]
    limits = intervals([run.resampled for run in chosen], resamples=resamples, seed=seed) if resamples else {}
    meta = runs[0].meta
    return Metrics(
        dataset=meta.dataset,
        encoder=meta.encoder,
        method=meta.method,
        method_options=meta.method_options,
        protocol=meta.protocol,
        quirks=tuple(sorted(meta.quirks)),
        random_weights=any(run.meta.random_weights for run in runs),
        learning_rate_choice=choice,
        stage_version=stage_versions.METRICS,
        splits=tuple(run.split.model_copy(update={"candidates": _candidates(run, runs)}) for run in chosen),
        spread=spread([run.split.test for run in chosen]),
        bootstrap=Bootstrap(
            resamples=resamples, seed=seed, level=LEVEL, over="test bags", intervals=limits or dict.fromkeys(METRICS)
        ),
        definitions=definitions(meta.quirks),
    )


def _candidates(best: EvaluatedRun, runs: Sequence[EvaluatedRun]) -> tuple[Candidate, ...]:
    """Return the runs of a split, the largest learning rate first."""
    of_split = sorted((run for run in runs if run.meta.seed == best.meta.seed), key=lambda run: -run.meta.lr)
    return tuple(
        Candidate(
            run=run.meta.run,
            lr=run.meta.lr,
            selection_score=run.meta.selection_score,
            chosen=run is best,
            test={metric: run.split.test.values[metric] for metric in METRICS},
        )
        for run in of_split
    )


def spread(tests: Sequence[PartMetrics]) -> dict[str, Spread]:
    """Describe how the test metrics of one method vary over its splits, see the top of this file."""
    result: dict[str, Spread] = {}
    for name in sorted({name for test in tests for name in test.values}):
        values = [value for test in tests if (value := test.values.get(name)) is not None]
        prefix = max((prefix for prefix in SCORES if name.startswith(prefix)), key=len)
        plain = name.removeprefix(prefix)
        flags = [getattr(test, f"{prefix}inverted") for test in tests]
        result[name] = Spread(
            mean=fmean(values) if values else None,
            std=stdev(values) if len(values) > 1 else None,
            median=median(values) if values else None,
            worst=(max if plain in LESS_IS_BETTER else min)(values, default=None),
            n=len(values),
            inverted=sum(flags) if plain.startswith("instance_") else None,
        )
    return result


def _evaluate_run(meta: PredictionMeta, test: Arrays, val: Arrays) -> EvaluatedRun:
    raw, gated = (
        run_metrics(*(as_evaluated(meta.quirks, part, gated=flag) for part in (test, val))) for flag in (False, True)
    )
    by_bag = GATE in meta.quirks
    primary = gated if by_bag else raw
    # The record leaves out what was not set.
    optional: dict[str, Any] = {"ungated": _instance_values(raw)} if by_bag else {}
    if meta.signed_agreement is not None:
        optional["signed_agreement"] = meta.signed_agreement
    split = SplitMetrics(
        seed=meta.seed,
        lr=meta.lr,
        run=meta.run,
        selection_score=meta.selection_score,
        **{f"{prefix}threshold": threshold for prefix, threshold in primary.thresholds.items()},
        test=primary.test,
        val=primary.val,
        gated=_instance_values(gated),
        **optional,
    )
    return EvaluatedRun(meta, split, (as_evaluated(meta.quirks, test), primary.thresholds))


def as_evaluated(quirks: Collection[str], part: Arrays, *, gated: bool | None = None) -> Arrays:
    """Return the arrays of a part, scores (M,) gated if `gated`; None = if the quirk `eval_gate_by_bag` is active."""
    if not (GATE in quirks if gated is None else gated):
        return part
    scores = (name for name in SCORES.values() if name in part)
    return {**part, **{name: gate(part[name], part["offsets"], part["bag_logit"]) for name in scores}}


def _instance_values(metrics: RunMetrics) -> Values:
    values = {name: value for name, value in metrics.test.values.items() if name.startswith("instance_")}
    return {"threshold": metrics.thresholds.get(""), **values}
