"""The workflow on tiny cohorts in the real formats: raw files to tables and report, then what a change redoes.

One Snakemake working directory is shared by the tests of this file, in the order of the file.
"""

import csv
import io
import json
import os
import re
import signal
import time
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from smmil.analysis.records import Analysis
from smmil.artifacts.results import load_predictions
from smmil.provenance import main as provenance
from tests.helpers.workflows import (
    add_custom_dataset,
    demo_config,
    make_cohorts,
    make_custom_slides,
    planned,
    snakemake,
    start_snakemake,
    write_config,
)

pytestmark = pytest.mark.slow
METHODS = ["abmil", "smap_early"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Return a working directory with tiny raw cohorts and custom slides."""
    directory = tmp_path_factory.mktemp("experiment")
    make_cohorts(directory)
    make_custom_slides(directory)
    return directory


def tiny():
    """Return the overrides of the demo with two methods, fewer epochs and a custom dataset."""
    config = demo_config() | {"methods": METHODS}
    config["training"]["epochs"] = 2
    config["report"] |= {"bootstrap": 50, "map_bags": 1, "tables": ["table1", "table2", "comparisons", "resources"]}
    add_custom_dataset(config, "smap_early")
    return config


def files(directory: Path, pattern: str) -> dict[str, int]:
    """Return path -> modification time of the files that match."""
    return {str(p.relative_to(directory)): p.stat().st_mtime_ns for p in directory.glob(pattern) if p.is_file()}


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read the rows of a CSV file."""
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_a_killed_run_continues_to_a_finished_report(directory):
    config = write_config(directory, tiny())
    process = start_snakemake(directory, directory / "killed.txt", "--cores", "2", "--configfile", config)
    deadline = time.monotonic() + 300
    features = "results/*/features/resnet18/store/[!.]*/zarr.json"
    while not files(directory, features) and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (directory / "results/report/index.html").exists()
    kept = files(directory, features)
    assert kept
    snakemake(directory, "--unlock", "--configfile", config)
    snakemake(directory, "--rerun-incomplete", "--configfile", config)
    assert (directory / "results/report/index.html").stat().st_size > 10_000
    after = files(directory, features)
    assert kept.items() <= after.items(), "a finished bag was redone"


def test_nothing_is_left_to_do(directory):
    assert planned(directory, "--configfile", write_config(directory, tiny())) == {}


def test_tables_hold_every_method_and_dataset(directory):
    for name in ("table1", "table2"):
        rows = read_rows(directory / f"results/tables/{name}.csv")
        assert len(rows) >= len(METHODS)
        numbers = [float(v) for row in rows for k, v in row.items() if k.endswith("mean") and v]
        assert len(numbers) >= len(METHODS) * 3 * 2 and all(0 <= v <= 1 for v in numbers)
        text = (directory / f"results/tables/{name}.md").read_text()
        assert "±" in text or "+-" in text
        assert "random" in text.lower()


def test_every_prediction_of_a_test_bag_is_a_row_and_equals_the_stored_one(directory):
    rows = read_rows(directory / "results/tables/predictions.csv")
    logits = {tuple(row[key] for key in ("dataset", "method", "run", "bag")): float(row["logit"]) for row in rows}
    assert len(logits) == len(rows)
    stored = {}
    for path in directory.glob("results/*/predictions/resnet18/*/*.npz"):
        run = load_predictions(path)
        test = run.part("test")
        names = (run.meta.dataset, run.meta.method, run.meta.run)
        stored |= {(*names, bag): z for bag, z in zip(test["bag_id"].tolist(), test["bag_logit"].tolist(), strict=True)}
    assert logits == {key: value for key, value in stored.items() if key[1] in METHODS}
    # scans have a patient, one each
    assert all(bool(row["patient"]) == (row["dataset"] == "rsna") for row in rows)
    metrics = [row for row in read_rows(directory / "results/tables/metrics.csv") if row["statistic"] == "mean"]
    assert {row["dataset"] for row in metrics} == {"camelyon16", "panda", "rsna"}


def test_the_report_shows_results_bag_by_bag(directory):
    page = (directory / "results/report/index.html").read_text()
    for dataset in ("camelyon16", "panda", "rsna"):
        analysis = Analysis.read(directory / f"results/{dataset}/analysis/resnet18/analysis.json")
        assert {method.method for method in analysis.methods} == set(METHODS) and analysis.random_weights
        assert f'id="bags-{dataset}"' in page and all(bag.picture for bag in analysis.wrong_bags)
        assert all(f"--bag {bag.bag}" in page for bag in analysis.wrong_bags[:3])


def test_sm_is_compared_with_its_base_on_every_dataset(directory):
    rows = {row["method"]: row for row in read_rows(directory / "results/tables/comparisons.csv")}
    assert rows.keys() == {"smap_early"}
    for dataset in ("camelyon16", "panda", "rsna"):
        name, row = f"{dataset}.resnet18.bag_auroc.difference", rows["smap_early"]
        low, mean, high = (float(row[f"{name}.{part}"]) for part in ("ci95_low", "mean", "ci95_high"))
        assert low <= mean <= high and row[f"{name}.n_splits"] == "2"
    page = (directory / "results/report/index.html").read_text()
    assert "Sm against its base" in page and "snakemake comparisons --configfile mine.yaml" in page


def test_a_bad_file_is_recorded_and_the_good_ones_are_scored(directory):
    rows = {row["bag_id"]: row for row in read_rows(next(directory.glob("results/mine/scores/**/scores.csv")))}
    assert rows["broken"]["state"] == "failed" and rows["broken"]["probability"] == ""
    assert all(0 < float(rows[f"own_{i}"]["probability"]) < 1 for i in range(2))
    manifest = json.loads((directory / "results/mine/instances/shards/0000.json").read_text())
    reason = next(bag["reason"] for bag in manifest["bags"] if bag["bag_id"] == "broken")
    assert "notes.tif" in reason


def test_a_bad_file_that_is_not_allowed_ends_non_zero_after_all_bags(directory):
    changed = tiny() | {"results": "strict"}
    changed["datasets"]["mine"]["allowed_failures"] = 0
    config = write_config(directory, changed, "strict.yaml")
    run = snakemake(directory, "strict/mine/instances/shards/0000.json", "--configfile", config, check=False)
    assert run.returncode != 0 and "notes.tif" in run.stdout
    # the exit code of the job passes the pipe to its log
    assert "non-zero exit" in run.stdout and "completed successfully, but" not in run.stdout


def test_a_change_of_one_dataset_redoes_only_what_depends_on_it(directory):
    changed = tiny()
    changed["datasets"]["rsna"]["instances"] = {"ct": {"preset": "sa_mil"}}
    text = snakemake(directory, "--dry-run", "--configfile", write_config(directory, changed, "changed.yaml")).stdout
    redone = set(re.findall(r"dataset=(\w+)", text))
    assert redone == {"rsna"}


def test_a_new_encoder_leaves_the_others_alone(directory):
    changed = tiny()
    changed["datasets"]["panda"]["encoders"] = ["resnet18", "resnet50"]
    text = snakemake(directory, "--dry-run", "--configfile", write_config(directory, changed, "encoder.yaml")).stdout
    assert set(re.findall(r"encoder=([\w.-]+)", text)) == {"resnet50"}
    assert "rule cut_instances" not in text


def test_snakemake_archives_everything_that_people_look_at(directory):
    snakemake(directory, "--report", "report.zip", "--configfile", write_config(directory, tiny()))
    with zipfile.ZipFile(directory / "report.zip") as archive:
        names = Counter(Path(name).name for name in archive.namelist())
        page = archive.read("report/report.html").decode()
    assert names["index.html"] == 1 and names["contact-sheet.jpg"] == names["status.md"] == 4
    assert names["table1.html"] == names["comparisons.html"] == names["fig5.png"] == names["cd.png"] == 1
    assert names["histograms.png"] == names["curves.png"] == 3
    for caption in ("Thumbnails of the bags of mine", "Time and memory of training", "of panda with features of"):
        assert caption in page


# the identifiers of the real dataset are no DICOM UIDs either
@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_no_identity_of_a_patient_reaches_any_output(directory):
    import pydicom

    header = pydicom.dcmread(next((directory / "raw/rsna/stage_2_train").glob("*.dcm")), stop_before_pixels=True)
    secrets = [str(header.PatientID).encode(), str(header.StudyInstanceUID).encode()]
    for path in (directory / "results").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(secret in content for secret in secrets), path


def test_a_restored_copy_of_the_results_needs_no_raw_pixels_again(directory):
    """Everything downstream of predictions works from stored files alone."""
    report = directory / "results/report/index.html"
    before = report.read_bytes()
    report.unlink()
    slides = {path: (path.read_bytes(), path.stat()) for path in (directory / "raw/camelyon16/images").glob("*.tif")}
    for path, (content, state) in slides.items():
        path.write_bytes(bytes(len(content)))
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    snakemake(directory, "report", "--configfile", write_config(directory, tiny()))
    for path, (content, state) in slides.items():
        path.write_bytes(content)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert len(report.read_bytes()) == pytest.approx(len(before), rel=0.05)


def test_a_partial_table_shows_gaps_and_is_made_again_once_a_run_is_there(directory):
    whole = ("--configfile", write_config(directory, tiny()))
    partial = ("table1", *whole, "--config", "report={partial: true}")
    runs = directory / "results/panda/runs/resnet18/smap_early/runs.json"
    kept, table = runs.read_bytes(), directory / "results/tables/table1.md"
    before = table.read_text()
    runs.unlink()
    assert planned(directory, *partial) == {"make_table": 1, "table1": 1}
    snakemake(directory, *partial)
    assert "cells are empty. PANDA: SmAP (no metrics file)" in table.read_text()
    assert not runs.exists() and planned(directory, *partial) == {}
    runs.write_bytes(kept)
    snakemake(directory, *partial)
    assert table.read_text() == before and runs.read_bytes() == kept
    # the partial table trained nothing, and without it nothing is left to do
    assert planned(directory, *whole) == {}


def test_a_cell_of_a_table_leads_back_to_its_images(directory, capsys):
    table = str(directory / "results/tables/table1.csv")
    assert provenance([table, "--cell", "abmil", "camelyon16", "--verify", "--json"]) == 0
    story = json.loads(capsys.readouterr().out)
    assert story["pairing"]["method"] == "abmil" and story["pairing"]["random_weights"]
    assert story["checks"]["different"] == [] and story["checks"]["computed"] > 10
    cells = next(row for row in read_rows(Path(table)) if row["method"] == "abmil")
    values = [run["test"]["bag_auroc"] for run in story["runs"]]
    rows = read_rows(directory / "results/tables/table2.csv")
    shown = next(row for row in rows if row["method"] == "abmil")["camelyon16.resnet18.bag_auroc.mean"]
    assert cells["protocol"] == story["pairing"]["protocol"]
    assert sum(values) / len(values) == pytest.approx(float(shown))
    predictions = next(directory.glob("results/rsna/predictions/resnet18/smap_early/split1_*.npz"))
    bag = next(row for row in read_rows(directory / "results/rsna/bags.csv") if row["split"] == "test")
    assert provenance([str(predictions), "--bag", bag["bag_id"], "--json"]) == 0
    story = json.loads(capsys.readouterr().out)
    assert [run["run"] for run in story["runs"]] == [predictions.stem]
    assert story["bags"]["bag"]["images"] == bag["images"].split("|")
    assert provenance([table]) == 2 and "a table has many cells" in capsys.readouterr().err


def test_provenance_finds_what_was_changed_afterwards(directory, capsys):
    weights = next(directory.glob("results/camelyon16/runs/resnet18/abmil/split2_*/best.safetensors"))
    features = next(directory.glob("results/camelyon16/features/resnet18/store/normal_*/features/c.0.0"))
    kept = [path.read_bytes() for path in (weights, features)]
    for path, content in zip((weights, features), kept, strict=True):
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    code = provenance([str(directory / "results/camelyon16/metrics/resnet18/abmil.json"), "--verify"])
    for path, content in zip((weights, features), kept, strict=True):
        path.write_bytes(content)
    text = capsys.readouterr().out
    assert code == 1 and "weights of split2" in text and features.parents[1].name in text
