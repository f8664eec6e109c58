"""`--use-conda` without conda-forge: every rule runs in its environment and finds there what it imports.

The conda client is a stand-in, `standin/bin/conda`, which lists its limits. Its environments hide every package that
their YAML file neither names nor needs, so a run also shows that the files are complete.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.workflows import ROOT, demo_config, make_cohorts, shell_rules, snakemake, write_config

CLIENT = ROOT / "tests/conda/standin/bin"


@pytest.fixture(autouse=True, scope="module")
def _client():
    """The stand-in on PATH, and a PYTHONPATH that Snakemake has to drop."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{CLIENT}:{os.environ['PATH']}")
        patch.setenv("PYTHONPATH", "/nowhere")
        yield


def conda(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run([str(CLIENT / "conda"), *words], capture_output=True, text=True, env=environment)


def env_python(prefix: Path, code: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(prefix / "bin/python"), "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=prefix)


def test_an_environment_shows_what_it_names_and_hides_the_rest(tmp_path):
    prefix = tmp_path / "train"
    made = conda("env", "create", "--quiet", "--file", str(ROOT / "envs/train.yaml"), "--prefix", str(prefix))
    assert made.returncode == 0, made.stderr
    assert env_python(prefix, "import numpy, zarr, pydantic").returncode == 0
    # an environment holds packages, never this project
    for hidden in ("cv2", "smmil"):
        assert f"No module named '{hidden}'" in env_python(prefix, f"import {hidden}").stderr


def ran(directory: Path) -> dict[str, set[str]]:
    """Return environment -> modules that ran in it, from the notes of the environments."""
    found = {}
    for copy in (directory / ".snakemake/conda").glob("*.yaml"):
        names = [p.stem for p in (ROOT / "envs").glob("*.yaml") if p.read_text() == copy.read_text()]
        notes = copy.with_suffix("") / "ran.txt"
        lines = notes.read_text().splitlines() if notes.exists() else []
        found[names[0]] = {line.split()[1] for line in lines if line.startswith("-m ")}
    return found


@pytest.mark.slow
def test_every_rule_runs_in_its_environment_and_imports_the_project_there(tmp_path):
    make_cohorts(tmp_path, datasets=["camelyon16"])
    config = demo_config()
    config["use"] = ["camelyon16", "scored"]
    runs = {"dataset": "camelyon16", "encoder": "resnet18", "method": "abmil"}
    config["datasets"]["scored"] = config["datasets"]["camelyon16"] | {
        **{"kind": "camelyon16", "train": False, "score_with": runs}
    }
    config["methods"] = ["abmil", "smap_early"]
    config["training"]["epochs"] = 2
    config["report"] = {"bootstrap": 20, "map_bags": 1}
    config["report"] |= {"tables": ["table1", "resources", "comparisons"], "figures": ["fig4", "cd", "curves"]}
    arguments = ("--use-conda", "--configfile", write_config(tmp_path, config))
    snakemake(tmp_path, "--conda-create-envs-only", *arguments)
    # made once, before any job, and nothing has run in them
    assert ran(tmp_path) == {"preprocess": set(), "train": set(), "report": set()}
    text = snakemake(tmp_path, *arguments).stdout
    assert "Creating conda environment" not in text
    assert (tmp_path / "results/report/index.html").stat().st_size > 10_000
    seen = {module: env for env, modules in ran(tmp_path).items() for module in modules}
    expected = {rule.module: rule.environment for rule in shell_rules().values()}
    assert seen == {module: expected[module] for module in seen}
    # everything but what downloads
    assert expected.keys() - seen.keys() <= {"preprocessing.raw", "preprocessing.weights"}
