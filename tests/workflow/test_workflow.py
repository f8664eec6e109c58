"""The workflow by dry run: size and cost of the plan of the paper, every target, and messages to users."""

import csv
import resource

import pytest

from smmil.config.experiment import load_yaml, parse_config
from smmil.config.outputs import all_pairings
from tests.helpers.cohorts import write_slide
from tests.helpers.workflows import (
    ROOT,
    fake_raw,
    job_counts,
    planned,
    shell_rules,
    snakemake,
    start_snakemake,
    touch,
    write_config,
)

PREPROCESSING = ("list_bags", "cut_instances", "extract_features", "draw_contact_sheet")
# of the paper: 399 / 25, 10616 / 100 and 1150 / 100 bags, which are planned for without raw data
SLIDES, BIOPSIES, SCANS = 16, 107, 12


def test_the_whole_paper_is_planned_in_hundreds_of_jobs_and_seconds_of_cpu(tmp_path):
    targets = "all metrics tables figures report qc status scores features analysis numbers".split()
    options = ("--cores", "1", "--dry-run", "--quiet", "host")
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    assert start_snakemake(tmp_path, tmp_path / "log", *targets, *options).wait() == 0
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    jobs = job_counts((tmp_path / "log").read_text())
    assert jobs["cut_instances"] == SLIDES + BIOPSIES + SCANS
    assert jobs["extract_features"] == SLIDES * 4 + (BIOPSIES + SCANS) * 3
    assert sum(jobs.get(rule, 0) for rule in PREPROCESSING) < 1000
    trainings = all_pairings(parse_config(load_yaml(ROOT / "config.yaml")))
    assert jobs["train_runs"] == jobs["measure_runs"] == len(trainings)
    # 13 methods on every extractor, and the ablations
    assert len(trainings) > 13 * (4 + 3 + 3) + 24
    assert jobs["make_table"] == 10 and jobs["make_resources"] == 1
    # a loose bound: it takes 3.5 s on an idle machine
    assert seconds < 30


def test_masks_can_be_looked_at_before_anything_is_extracted(tmp_path):
    jobs = planned(tmp_path, "qc")
    assert jobs["draw_contact_sheet"] == 3 and "extract_features" not in jobs and "train_runs" not in jobs


def test_a_table_asks_for_its_own_extractor_only(tmp_path):
    jobs = planned(tmp_path, "table1")
    # CAMELYON16's main extractor stands first in its list, and so do the others'
    assert jobs["extract_features"] == SLIDES + BIOPSIES + SCANS
    assert jobs["measure_runs"] == jobs["train_runs"] == 30 and jobs["make_table"] == 1


def test_weights_and_raw_data_can_be_planned(tmp_path):
    jobs = planned(tmp_path, "weights", "raw")
    assert jobs["fetch_weights"] == 4 and jobs["fetch_raw"] == 3


@pytest.mark.parametrize("look", ["--lint", "--list"])
def test_the_workflow_can_be_looked_at_without_raw_data(tmp_path, look):
    run = snakemake(tmp_path, look)
    assert "no raw data yet" in run.stdout and "Traceback" not in run.stdout


def test_without_raw_data_the_user_is_told_what_belongs_where_before_the_first_job(tmp_path):
    run = snakemake(tmp_path, "table1", check=False)
    assert run.returncode != 0 and "rule list_bags" not in run.stdout
    for words in ("raw/camelyon16", "raw/panda", "raw/rsna", "what belongs there", "where it comes from", "make demo"):
        assert words in run.stdout
    assert "Traceback" not in run.stdout


def test_an_unknown_key_is_refused_before_anything_is_planned(tmp_path):
    config = write_config(tmp_path, {"training": {"epoch": 3}})
    run = snakemake(tmp_path, "--dry-run", "--configfile", config, check=False)
    assert run.returncode != 0 and "training.epoch: unknown key" in run.stdout and "Traceback" not in run.stdout


def own_slides(directory, rows, **changes):
    """The path of a configuration of two slides of one's own."""
    touch(directory / "slides", ["a.svs", "b.svs"])
    (directory / "slides/m.csv").write_text(f"bag_id,image,label,split\n{rows}\n")
    custom = {"kind": "custom", "root": "slides", "source": {"manifest": "m.csv"}, "encoders": ["resnet18"]}
    return write_config(directory, {"use": ["mine"], "datasets": {"mine": custom | changes}})


def test_own_slides_need_no_dataset_of_the_paper(tmp_path):
    config = own_slides(tmp_path, "a,a.svs,,\nb,b.svs,,", train=False)
    jobs = planned(tmp_path, "qc", "features", "--configfile", config)
    assert jobs["cut_instances"] == 1 and jobs["extract_features"] == 1 and jobs["fetch_weights"] == 1


def test_slides_that_cannot_be_trained_on_are_refused_when_the_training_is_planned(tmp_path):
    config = own_slides(tmp_path, "a,a.svs,1,train\nb,b.svs,1,test")
    run = snakemake(tmp_path, "--dry-run", "table1", "--configfile", config, check=False)
    assert run.returncode != 0 and "datasets.mine: found 0 negative and 1 positive bags with split train" in run.stdout
    assert "cut_instances" in planned(tmp_path, "qc", "--configfile", config)


# what file systems allow, and shells, Snakemake, Python's formats and URLs read as something else
ODD = '{2020} a\'b "c" $HOME %s [x] #1 ü {dataset};&'


@pytest.mark.slow
def test_folders_may_be_called_anything(tmp_path):
    root = tmp_path / ODD / "raw"
    root.mkdir(parents=True)
    write_slide(root / f"{ODD}.tif")
    rows = [["bag_id", "image", "label", "split"], ["a", f"{ODD}.tif", "1", "train"]]
    with (root / f"{ODD}.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    custom = {"kind": "custom", "root": f"{ODD}/raw", "source": {"manifest": f"{ODD}.csv"}, "encoders": ["resnet18"]}
    wsi = {"preset": "20x", "tile_px": 64, "step_px": 64, "tissue": {"a_t": 0, "a_h": 0}}
    given = {"use": ["mine"], "datasets": {"mine": {**custom, "train": False, "instances": {"wsi": wsi}}}}
    folders = {"results": f"{ODD}/results", "weights": {"mode": "random", "folder": f"{ODD}/weights"}}
    config = write_config(tmp_path, {**given, **folders}, name=f"{ODD}.yaml")
    snakemake(tmp_path, "qc", "features", "--configfile", config)
    made = ["bags.csv", "qc/index.html", "features/resnet18/shards/0000.json", "features/resnet18/store/a/zarr.json"]
    assert all((tmp_path / ODD / "results/mine" / name).is_file() for name in made)
    assert planned(tmp_path, "qc", "features", "--configfile", config) == {}
    with (root / f"{ODD}.csv").open("a", newline="") as stream:
        csv.writer(stream).writerow(["b", f"{ODD}.tif", "1", "train"])
    assert "list_bags" in planned(tmp_path, "qc", "--configfile", config)


def test_a_partial_report_is_made_of_the_finished_trainings_and_trains_nothing(tmp_path):
    fake_raw(tmp_path, panda=1, scans=10)
    rsna = {"encoders": ["resnet18"], "source": {"scans": 10}}
    report = {"tables": ["table1", "resources", "comparisons"], "figures": ["fig4", "fig5", "cd", "curves"]}
    given = {"use": ["rsna"], "datasets": {"rsna": rsna}, "methods": ["smap_early", "abmil"], "more_methods": []}
    config = write_config(tmp_path, {**given, "report": report})
    everything = planned(tmp_path, "--configfile", config)
    assert everything["train_runs"] == everything["measure_runs"] == 2
    touch(tmp_path / "results/rsna/runs/resnet18/abmil", ["runs.json"])
    # nested keys of --config merge into the section: tables and figures stay those of the file
    jobs = planned(tmp_path, "--configfile", config, "--config", "report={partial: true}")
    assert "train_runs" not in jobs and jobs["measure_runs"] == jobs["predict_runs"] == 1
    made = {"make_table", "make_resources", "make_comparisons", "draw_curves", "draw_maps", "draw_picture"}
    assert {rule: jobs[rule] for rule in made | {"write_report"}}.items() <= everything.items()


def test_every_rule_has_log_benchmark_environment_and_resources():
    rules = shell_rules()
    assert len(rules) >= 10
    for name, rule in rules.items():
        assert rule.declared.log and rule.declared.benchmark, f"{name} has no log or no benchmark"
        assert {"mem_mb", "runtime"} <= rule.resources.keys() or rule.declared.localrule, f"{name} has no resources"
    assert {rule.environment for rule in rules.values()} == {path.stem for path in (ROOT / "envs").glob("*.yaml")}
