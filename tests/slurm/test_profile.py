"""The SLURM profile against the rules; needs no SLURM."""

import re

import pytest
import yaml

from tests.helpers.workflows import ROOT, ShellRule, fake_raw, planned, shell_rules, write_config

PROFILE = ROOT / "workflow/profiles/slurm"
TEXT = (PROFILE / "config.v9+.yaml").read_text()


@pytest.fixture(scope="module")
def submitted() -> dict[str, ShellRule]:
    """The rules whose jobs go to SLURM."""
    return {name: rule for name, rule in shell_rules().items() if not rule.declared.localrule}


def test_every_retry_of_a_job_asks_for_more_memory_and_the_first_for_enough(submitted):
    # the two Snakemakes of a job take about 270 MB
    floor = yaml.safe_load(TEXT)["default-resources"]["mem_mb"]
    assert floor == 500
    for name, rule in submitted.items():
        first, second, third = (rule.resources["mem_mb"](None, attempt=attempt) for attempt in (1, 2, 3))
        assert first >= floor and (second, third) == (2 * first, 3 * first), name


def test_only_the_profile_sets_retries():
    # retries of a rule would run inside the old allocation, with its memory and its time limit
    assert yaml.safe_load(TEXT)["retries"] >= 2
    assert not [name for name, rule in shell_rules().items() if rule.declared.retries is not None]


def test_the_profile_groups_rules_that_exist_and_need_no_gpu(submitted):
    profile = yaml.safe_load(TEXT)
    for name in profile["groups"]:
        assert "gpu" not in submitted[name].resources
    assert {*profile["groups"].values()} == {*profile["group-components"]}


def test_the_lines_to_fill_in_name_every_gpu_rule(submitted):
    profile = yaml.safe_load(re.sub(r"^( *)# > ?", r"\1", TEXT, flags=re.M))
    assert {*profile["set-resources"]} == {name for name, rule in submitted.items() if "gpu" in rule.resources}
    assert "gpu_model" not in profile["default-resources"]
    assert {"slurm_account", "slurm_partition"} <= {*profile["default-resources"]}


def test_snakemake_accepts_the_profile_for_every_target(tmp_path):
    fake_raw(tmp_path, panda=1, scans=50)
    config = write_config(tmp_path, {"use": ["rsna"], "datasets": {"rsna": {"source": {"scans": 50}}}})
    # groups that wait for each other would be refused here
    jobs = planned(tmp_path, "--configfile", config, "--workflow-profile", str(PROFILE))
    assert {"train_runs", "measure_runs", "make_table", "write_report"} <= jobs.keys()
