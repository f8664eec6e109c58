"""The SLURM profile against the rules it speaks of; needs no SLURM."""

import re

import pytest
import yaml

from tests.helpers.workflows import ROOT, fake_raw, planned, write_config

PROFILE = ROOT / "workflow/profiles/slurm"
TEXT = (PROFILE / "config.v9+.yaml").read_text()
RULES = {
    block.split(":")[0]: block
    for path in sorted((ROOT / "workflow/rules").glob("*.smk"))
    for block in path.read_text().split("\nrule ")[1:]
}
SUBMITTED = {name: block for name, block in RULES.items() if "shell:" in block and "localrule: True" not in block}


def uncommented() -> dict:
    """The profile as a newcomer has it after taking the marks off the lines that are theirs."""
    return yaml.safe_load(re.sub(r"^( *)# > ?", r"\1", TEXT, flags=re.M))


@pytest.mark.parametrize("name", sorted(SUBMITTED))
def test_every_retry_of_a_job_asks_for_more_memory_and_the_first_for_enough(name):
    found = re.search(r"mem_mb=lambda w, attempt: (\d+) \* attempt,", SUBMITTED[name])
    assert found, f"{name}: write mem_mb=lambda w, attempt: 4000 * attempt"
    # the two Snakemakes of a job take about 270 MB
    assert int(found[1]) >= yaml.safe_load(TEXT)["default-resources"]["mem_mb"] == 500


def test_retries_are_the_profiles_alone():
    # a rule's own retries stay inside the old allocation, with its memory and its time limit
    assert yaml.safe_load(TEXT)["retries"] >= 2
    assert not [name for name, block in RULES.items() if re.search(r"^ *retries:", block, re.M)]


def test_the_profile_groups_rules_that_exist_and_need_no_gpu():
    profile = yaml.safe_load(TEXT)
    for name in profile["groups"]:
        assert name in SUBMITTED and "gpu=" not in SUBMITTED[name]
    assert {*profile["groups"].values()} == {*profile["group-components"]}


def test_the_lines_to_fill_in_name_every_gpu_rule():
    profile = uncommented()
    assert {*profile["set-resources"]} == {name for name, block in SUBMITTED.items() if "gpu=" in block}
    assert "gpu_model" not in profile["default-resources"]
    assert {"slurm_account", "slurm_partition"} <= {*profile["default-resources"]}


def test_snakemake_accepts_the_profile_for_every_target(tmp_path):
    fake_raw(tmp_path, panda=1, scans=200)
    config = write_config(tmp_path, {"use": ["rsna"], "datasets": {"rsna": {"source": {"scans": 200}}}})
    # groups that wait for each other would be refused here
    jobs = planned(tmp_path, "--configfile", config, "--workflow-profile", str(PROFILE))
    assert {"train_runs", "measure_runs", "make_table", "write_report"} <= jobs.keys()
