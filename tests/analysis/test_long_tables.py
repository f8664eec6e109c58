"""Tables in long form: what is stored comes back in full, unknown values are empty, pandas needs no hints."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from preprocessing.bags.rows import BagRow
from preprocessing.bags.table import write_bags
from smmil.analysis.__main__ import main
from smmil.artifacts.records import Metrics
from smmil.artifacts.results import load_predictions
from smmil.evaluate.runs import evaluate
from tests.helpers.predictions import BAGS, write_index, write_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two splits at two learning rates, and bags.csv with the patient of two bags."""
    runs = [
        write_run(tmp_path, [*BAGS, ("t3", "test", float("nan"), 0.25, [0.5], [-1])], seed=seed, **choice)
        for seed in (2, 1)
        for choice in ({"lr": 1e-3, "selection_score": 0.4 + seed}, {"lr": 1e-4, "selection_score": 2.0})
    ]
    write_index(tmp_path, runs)
    rows = [BagRow(bag[0], "wsi", (f"{bag[0]}.svs",), int(bag[2]), bag[1], group="") for bag in BAGS[:2]]
    rows += [BagRow(name, "wsi", (f"{name}.svs",), 1, "test", group="p7") for name in ("t1", "t2")]
    write_bags(tmp_path / "bags.csv", rows)
    return tmp_path


def test_predictions_are_those_of_the_chosen_runs_and_equal_the_stored_ones(folder: Path) -> None:
    out = folder / "predictions.csv"
    bags = f"toy={folder / 'bags.csv'}"
    assert main(["predictions", "--index", str(folder / "index.json"), "--bags", bags, "--out", str(out)]) == 0
    table = pd.read_csv(out, keep_default_na=True)
    # validation prefers 1e-4 in split 1 and 1e-3 in split 2
    assert table.groupby("split")["run"].unique().map(list).to_dict() == {1: ["split1_lr0.0001"], 2: ["split2_lr0.001"]}
    for run, rows in table.groupby("run"):
        stored = load_predictions(folder / f"{run}.npz").part("test")
        assert rows["bag"].tolist() == stored["bag_id"].tolist()
        assert rows["logit"].tolist() == stored["bag_logit"].tolist(), "a digit is lost"
        assert rows["n_instances"].tolist() == np.diff(stored["offsets"]).tolist()
        np.testing.assert_array_equal(rows["label"], stored["y"].astype(float))
        np.testing.assert_allclose(rows["probability"], 1 / (1 + np.exp(-stored["bag_logit"])), rtol=1e-15)
    first = table[table["split"] == 1].set_index("bag")
    assert first["call"].to_dict() == {"t0": 0, "t1": 1, "t2": 0, "t3": 1}
    assert first["correct"].fillna(-1).to_dict() == {"t0": 1, "t1": 1, "t2": 0, "t3": -1}
    assert first["patient"].fillna("").to_dict() == {"t0": "", "t1": "p7", "t2": "p7", "t3": ""}
    assert table["logit"].dtype == float and table["split"].dtype == int


def test_metrics_equal_the_stored_ones_and_undefined_ones_have_a_reason(folder: Path) -> None:
    source, out = folder / "metrics.json", folder / "metrics.csv"
    evaluate(folder / "index.json", source, resamples=20)
    assert main(["metrics", "--metrics", str(source), "--out", str(out)]) == 0
    table, metrics = pd.read_csv(out), Metrics.read(source)
    for split in metrics.splits:
        rows = table[table["split"] == split.seed].set_index("metric")
        assert rows["value"].dropna().to_dict() == {k: v for k, v in split.test.values.items() if v is not None}
        assert (rows["learning_rate"] == split.lr).all() and set(rows["statistic"]) == {"split"}
    means = table[table["statistic"] == "mean"].set_index("metric")
    for metric, spread in metrics.spread.items():
        row = means.loc[metric]
        assert row["n_splits"] == spread.n and row["value"] == pytest.approx(spread.mean, nan_ok=True, abs=0)
        if spread.inverted is not None and metric.endswith("_auroc") and spread.n:
            assert row["inverted"] == spread.inverted
    assert metrics.bootstrap and metrics.bootstrap.intervals["bag_auroc"]
    assert (means.loc["bag_auroc", "low"], means.loc["bag_auroc", "high"]) == metrics.bootstrap.intervals["bag_auroc"]
    undefined = table[table["value"].isna()]
    assert undefined["reason"].notna().all() and table[table["value"].notna()]["reason"].isna().all()


def test_without_any_training_there_are_columns_and_no_rows(tmp_path: Path) -> None:
    outs = {kind: tmp_path / f"{kind}.csv" for kind in ("predictions", "metrics")}
    assert [main([kind, "--out", str(out)]) for kind, out in outs.items()] == [0, 0]
    assert pd.read_csv(outs["predictions"]).columns[-1] == "correct" and pd.read_csv(outs["metrics"]).empty


def test_a_table_of_bags_without_its_dataset_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predictions", "--bags", "bags.csv", "--out", str(tmp_path / "p.csv")]) == 2
    assert "found 'bags.csv', expected dataset=bags.csv" in capsys.readouterr().err
