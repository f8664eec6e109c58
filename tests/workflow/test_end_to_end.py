"""The whole house on tiny cohorts in the real formats: raw files to tables and report, then what a change redoes.

One Snakemake working directory is shared by the tests of this file, in the order of the file.
"""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.workflows import ROOT, planned, snakemake, write_config

pytestmark = pytest.mark.slow
METHODS = ["abmil", "smap_early", "t_ap", "smtap"]


def tiny(**changes):
    """The demo's overrides with fewer epochs, and a custom dataset of good, bad and empty files."""
    import yaml

    config = yaml.safe_load((ROOT / "workflow/demo.yaml").read_text().replace("demo/", ""))
    config["training"]["epochs"] = 3
    config["report"] |= {"bootstrap": 50, "map_bags": 1}
    config["datasets"]["mine"] = {
        "kind": "custom",
        "root": "raw",
        "source": {"manifest": "raw/own.csv"},
        "encoders": ["resnet18"],
        "instances": config["datasets"]["camelyon16"]["instances"],
        "train": False,
        "allowed_failures": 1,
        "score_with": {"dataset": "camelyon16", "encoder": "resnet18", "method": "smap_early"},
    }
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A working directory with tiny raw cohorts and a custom manifest."""
    directory = tmp_path_factory.mktemp("house")
    command = [sys.executable, "-m", "preprocessing.synthetic", "--out", str(directory / "raw"), "--size", "tiny"]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    slides = sorted((directory / "raw/camelyon16/images").glob("test_*.tif"))[:2]
    (directory / "raw/notes.tif").write_text("this is no slide\n")
    rows = [f"own_{i},{s.relative_to(directory / 'raw')},,," for i, s in enumerate(slides)]
    (directory / "raw/own.csv").write_text(
        "\n".join(["bag_id,image,label,split,mpp", *rows, "broken,notes.tif,,,"]) + "\n"
    )
    return directory


def files(directory: Path, pattern: str) -> dict[str, int]:
    """Path -> modification time of everything below that matches."""
    return {str(p.relative_to(directory)): p.stat().st_mtime_ns for p in directory.glob(pattern) if p.is_file()}


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_a_killed_run_continues_to_a_finished_report(house):
    config = write_config(house, tiny())
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2"]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    process = subprocess.Popen(
        [*command, "--directory", str(house), "--configfile", config],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while not list(house.glob("results/*/features/resnet18/store/*")) and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (house / "results/report/index.html").exists()
    kept = files(house, "results/*/features/resnet18/store/*/zarr.json")
    assert kept
    snakemake(house, "--unlock", "--configfile", config)
    snakemake(house, "--rerun-incomplete", "--configfile", config)
    assert (house / "results/report/index.html").stat().st_size > 10_000
    after = files(house, "results/*/features/resnet18/store/*/zarr.json")
    assert kept.items() <= after.items(), "a finished bag was redone"


def test_nothing_is_left_to_do(house):
    assert planned(house, "--configfile", write_config(house, tiny())) == {}


def test_tables_hold_every_method_and_dataset(house):
    for name in ("table1", "table2"):
        rows = read_rows(house / f"results/tables/{name}.csv")
        assert len(rows) >= len(METHODS)
        numbers = [float(v) for row in rows for k, v in row.items() if k.endswith("mean") and v]
        assert len(numbers) >= len(METHODS) * 3 * 2 and all(0 <= v <= 1 for v in numbers)
        text = (house / f"results/tables/{name}.md").read_text()
        assert "±" in text or "+-" in text
        assert "random" in text.lower()


def test_sm_is_compared_with_its_base_on_every_dataset(house):
    rows = {row["method"]: row for row in read_rows(house / "results/tables/comparisons.csv")}
    assert rows.keys() == {"smap_early", "smtap"}
    for row in rows.values():
        for dataset in ("camelyon16", "panda", "rsna"):
            name = f"{dataset}.resnet18.bag_auroc.difference"
            low, mean, high = (float(row[f"{name}.{part}"]) for part in ("ci95_low", "mean", "ci95_high"))
            assert low <= mean <= high and row[f"{name}.n_splits"] == "2"
    page = (house / "results/report/index.html").read_text()
    assert "Sm against its base" in page and "snakemake comparisons --configfile mine.yaml" in page


def test_a_bad_file_is_recorded_and_the_good_ones_are_scored(house):
    rows = {row["bag_id"]: row for row in read_rows(next(house.glob("results/mine/scores/**/scores.csv")))}
    assert rows["broken"]["state"] == "failed" and rows["broken"]["probability"] == ""
    assert all(0 < float(rows[f"own_{i}"]["probability"]) < 1 for i in range(2))
    manifest = json.loads((house / "results/mine/instances/shards/0000.json").read_text())
    reason = next(bag["reason"] for bag in manifest["bags"] if bag["bag_id"] == "broken")
    assert "notes.tif" in reason


def test_a_bad_file_that_is_not_allowed_ends_non_zero_after_all_bags(house):
    changed = tiny()
    changed["datasets"]["mine"]["allowed_failures"] = 0
    config = write_config(house, changed, "strict.yaml")
    run = snakemake(house, "results/mine/instances/shards/0000.json", "--configfile", config, check=False)
    assert run.returncode != 0 and "notes.tif" in run.stdout
    # the job's own exit code has to be seen through the pipe that keeps its log
    assert "non-zero exit" in run.stdout and "completed successfully, but" not in run.stdout
    snakemake(house, "--configfile", write_config(house, tiny()))


def test_a_change_of_one_dataset_redoes_only_what_depends_on_it(house):
    changed = tiny()
    changed["datasets"]["rsna"]["instances"] = {"ct": {"preset": "sa_mil"}}
    text = snakemake(house, "--dry-run", "--configfile", write_config(house, changed, "changed.yaml")).stdout
    redone = set(re.findall(r"dataset=(\w+)", text))
    assert redone == {"rsna"}


def test_a_new_encoder_leaves_the_others_alone(house):
    changed = tiny()
    changed["datasets"]["panda"]["encoders"] = ["resnet18", "resnet50"]
    text = snakemake(house, "--dry-run", "--configfile", write_config(house, changed, "encoder.yaml")).stdout
    assert set(re.findall(r"encoder=([\w.-]+)", text)) == {"resnet50"}
    assert "rule cut_instances" not in text


# the identifiers of the real dataset are no DICOM UIDs either
@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_no_identity_of_a_patient_reaches_any_output(house):
    import pydicom

    header = pydicom.dcmread(next((house / "raw/rsna/stage_2_train").glob("*.dcm")), stop_before_pixels=True)
    secrets = [str(header.PatientID).encode(), str(header.StudyInstanceUID).encode()]
    for path in (house / "results").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(secret in content for secret in secrets), path


def test_a_restored_copy_of_the_results_needs_no_raw_pixels_again(house):
    """Everything downstream of predictions works from stored files alone."""
    report = house / "results/report/index.html"
    before = report.read_bytes()
    report.unlink()
    hidden = house / "raw/camelyon16/hidden"
    shutil.move(house / "raw/camelyon16/annotations", hidden)
    snakemake(house, "report", "--configfile", write_config(house, tiny()))
    shutil.move(hidden, house / "raw/camelyon16/annotations")
    assert len(report.read_bytes()) == pytest.approx(len(before), rel=0.05)


def test_a_partial_report_shows_gaps_and_is_made_again_once_a_run_is_there(house):
    whole = write_config(house, tiny())
    partial = ("--configfile", whole, "--config", "report={partial: true}")
    runs = house / "results/panda/runs/resnet18/smtap/runs.json"
    kept, table = runs.read_bytes(), house / "results/tables/table1.md"
    before = table.read_text()
    runs.unlink()
    jobs = planned(house, *partial)
    assert {"make_table", "draw_figure", "draw_maps", "write_report"} <= jobs.keys() and "train_runs" not in jobs
    snakemake(house, *partial)
    assert "cells are empty. PANDA: SmTAP (no metrics file)" in table.read_text()
    page = (house / "results/report/index.html").read_text()
    assert "1 of 12 trainings behind the tables have no result: panda/resnet18/smtap." in page
    assert "1 of 4 methods have no run, and no map: SmTAP" in page
    comparisons = (house / "results/tables/comparisons.md").read_text()
    assert "4 of 24 differences are empty" in comparisons and "PANDA SmTAP − T+AP" in comparisons
    assert not runs.exists() and planned(house, *partial) == {}
    runs.write_bytes(kept)
    assert planned(house, *partial)["make_table"] == jobs["make_table"]
    snakemake(house, *partial)
    assert table.read_text() == before and runs.read_bytes() == kept
    # nothing was trained for it, and without the switch nothing is left to do
    snakemake(house, "--configfile", whole)
    assert planned(house, "--configfile", whole) == {}


def tell(house, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `smmil.provenance`."""
    command = [sys.executable, "-m", "smmil.provenance", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_a_cell_of_a_table_leads_back_to_its_images(house):
    table = str(house / "results/tables/table1.csv")
    story = json.loads(tell(house, table, "--cell", "abmil", "camelyon16", "--verify", "--json").stdout)
    assert story["pairing"]["method"] == "abmil" and story["pairing"]["random_weights"]
    assert story["checks"]["different"] == [] and story["checks"]["computed"] > 10
    cells = next(row for row in read_rows(Path(table)) if row["method"] == "abmil")
    values = [run["test"]["bag_auroc"] for run in story["runs"]]
    rows = read_rows(house / "results/tables/table2.csv")
    shown = next(row for row in rows if row["method"] == "abmil")["camelyon16.resnet18.bag_auroc.mean"]
    assert cells["protocol"] == story["pairing"]["protocol"]
    assert sum(values) / len(values) == pytest.approx(float(shown))
    predictions = next(house.glob("results/rsna/predictions/resnet18/smtap/split1_*.npz"))
    bag = next(row for row in read_rows(house / "results/rsna/bags.csv") if row["split"] == "test")
    story = json.loads(tell(house, str(predictions), "--bag", bag["bag_id"], "--json").stdout)
    assert [run["run"] for run in story["runs"]] == [predictions.stem]
    assert story["bags"]["bag"]["images"] == bag["images"].split("|")
    assert "a table has many cells" in tell(house, table).stderr


def test_provenance_finds_what_was_changed_afterwards(house):
    weights = next(house.glob("results/camelyon16/runs/resnet18/abmil/split2_*/best.safetensors"))
    features = next(house.glob("results/camelyon16/features/resnet18/store/normal_*/features/c.0.0"))
    kept = [path.read_bytes() for path in (weights, features)]
    for path, content in zip((weights, features), kept, strict=True):
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    run = tell(house, str(house / "results/camelyon16/metrics/resnet18/abmil.json"), "--verify")
    for path, content in zip((weights, features), kept, strict=True):
        path.write_bytes(content)
    assert run.returncode == 1
    assert "weights of split2" in run.stdout and features.parents[1].name in run.stdout
