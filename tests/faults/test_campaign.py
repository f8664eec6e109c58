"""A small campaign of kills (the large one: `python -m tests.faults.campaign`), and proof that it can fail."""

import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.campaign import RULES, Campaign, Jobs, plan
from tests.faults.evidence import differences, finished_work, kinds, redone
from tests.helpers.workflows import ROOT

KILLS, SEED = 4, 0
PRINTED = """localrule list_bags:
    output: results/a/bags.csv
    jobid: 3
    wildcards: dataset=a
rule train_runs:
    input: results/a/bags.csv
    output: results/a/runs/e/m/runs.json
    jobid: 7
Finished jobid: 3 (Rule: list_bags)
"""


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_like_an_undisturbed_one(tmp_path):
    outcome = Campaign(tmp_path, KILLS, SEED, ["camelyon16"], "tiny").run()
    assert outcome.wrong == [] and len(outcome.kills) == KILLS
    assert {"bag", "epoch", "run", "prediction"} <= outcome.kept.keys()


def test_the_plan_reaches_every_rule_and_is_the_same_for_the_same_seed():
    counts = Counter({rule: len(moments) for rule, moments in plan(50, 0).items()})
    assert counts.total() == 50 and min(counts.values()) >= 2 and plan(50, 0) == plan(50, 0) != plan(50, 1)
    rules = "".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
    assert {*RULES} <= {*re.findall(r"(?:^rule | as )(\w+)(?: with)?:", rules, re.M)}


def test_the_output_of_snakemake_is_parsed():
    jobs = Jobs.read(PRINTED)
    assert jobs.running == ["train_runs"] and jobs.ended == ["3"]
    assert jobs.outputs == {"3": "results/a/bags.csv", "7": "results/a/runs/e/m/runs.json"}


@pytest.fixture
def results(finished, tmp_path) -> Path:
    """The results folder of a finished training, as the workflow lays it out."""
    shutil.copytree(finished.runs, tmp_path / "results/tiny/runs/e/m")
    shutil.copytree(finished.predictions, tmp_path / "results/tiny/predictions/e/m")
    for stage in ("instances", "features/tiny"):
        shutil.copytree(finished.folder / stage, tmp_path / "results/tiny" / stage)
    return tmp_path / "results"


def test_repeated_work_is_reported(results):
    before = finished_work(results)
    assert kinds(before) == {"bag": 32, "run": 2, "epoch": 6, "prediction": 2} and not redone(before, before)
    bag, run = results / "tiny/instances/store/bag02", results / "tiny/runs/e/m/split1_lr0.01"
    shutil.copytree(bag, bag.with_name("new"))
    shutil.rmtree(bag)
    bag.with_name("new").rename(bag)
    log = (run / "log.jsonl").read_text().replace('"seconds": ', '"seconds": 1')
    (run / "log.jsonl").write_text(log)
    again = redone(before, finished_work(results))
    epochs = [f"epoch tiny/runs/e/m/split1_lr0.01 {number}" for number in (1, 2, 3)]
    assert again == ["bag tiny/instances/store/bag02/zarr.json", *epochs]


def test_different_results_are_reported_but_not_times(results, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(results, other)
    run = other / "tiny/runs/e/m/split1_lr0.01"
    text = (run / "log.jsonl").read_text()
    (run / "log.jsonl").write_text(text.replace('"seconds": ', '"seconds": 1'))
    assert differences(results, other) == []
    (run / "log.jsonl").write_text(text.replace('"epoch": 2', '"epoch": 9'))
    (run / "best.safetensors").write_bytes((run / "best.safetensors").read_bytes() + b" ")
    (other / "tiny/more.csv").touch()
    found = [name.replace("tiny/runs/e/m/split1_lr0.01/", "") for name in differences(results, other)]
    assert found == ["tiny/more.csv: on one side only", "best.safetensors", "log.jsonl"]
