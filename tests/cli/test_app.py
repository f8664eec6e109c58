"""The command `smmil`: its verbs, what they pass on, and refusals in one line."""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from smmil import __version__
from smmil.cli.app import VERBS, app, main
from smmil.cli.pipeline import check_targets, read_config, read_setup, target_names
from smmil.cli.run import run_workflow, snakemake_command, snakemake_environment
from smmil.installation import workflow_folder
from tests.helpers.workflows import ROOT, make_cohorts, shell_rules, write_config


def smmil(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `python -m smmil` in a folder; stdout and stderr come back joined."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "smmil", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300
    )


def code_of(*arguments: str) -> int:
    """Return the exit code of the command line in this process."""
    try:
        return main([*arguments])
    except SystemExit as end:
        return int(end.code or 0)


def test_help_names_every_verb_and_is_quick():
    start = time.monotonic()
    run = smmil("--help", folder=Path("/"))
    seconds = time.monotonic() - start
    assert run.returncode == 0 and seconds < 3, run.stdout
    for verb in ("init", "doctor", "run", "qc", "status", *VERBS):
        assert f"\n  {verb} " in run.stdout


def test_version_and_completion():
    assert CliRunner().invoke(app, ["--version"]).stdout == f"smmil {__version__}\n"
    completion = CliRunner().invoke(
        app,
        [],
        prog_name="smmil",
        env={"_SMMIL_COMPLETE": "complete_bash", "COMP_WORDS": "smmil ru", "COMP_CWORD": "1"},
    )
    assert completion.stdout.split() == ["run"]


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "view"])
def test_the_help_of_a_passing_verb_shows_the_real_options(verb, capsys):
    assert code_of(verb, "--help") == 0
    text = capsys.readouterr().out
    expected = {
        "predict": "--model",
        "explain": "--cell",
        "import": "--source",
        "export": "--bags",
        "config": "--schema",
    }
    assert text.startswith(f"usage: smmil {verb} ") and expected[verb] in text and "python -m" not in text


def test_a_passing_verb_gets_its_arguments_as_they_are(tmp_path, capsys):
    arguments = ["--format", "clam", "--bags", str(tmp_path / "none.csv"), "--instances", "i", "--out", "o"]
    assert code_of("export", *arguments, "--features", "f") == 2
    assert "none.csv: no such file" in capsys.readouterr().err


def test_what_stands_after_two_dashes_goes_to_snakemake(monkeypatch, tmp_path):
    commands: list[list[str]] = []
    monkeypatch.setattr("smmil.cli.run._wait", lambda process: process.wait())
    monkeypatch.setattr("subprocess.Popen", lambda command, env: commands.append(command) or Finished())
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path, {"methods": ["abmil"]})
    assert code_of("run", "table1", "--cores", "3", "--", "--rerun-triggers", "mtime", "-n") == 0
    assert code_of("qc", "-c", "mine.yaml", "--", "--cores=1") == 0
    first, second = commands
    at = first.index("--configfile")
    assert first[3] == "table1" and first[at:] == ["--configfile", "mine.yaml", "--rerun-triggers", "mtime", "-n"]
    assert first[first.index("--cores") + 1] == "3" and "--keep-going" in first and "--rerun-incomplete" in first
    assert second[3] == "qc" and "--cores" not in second and second[-1] == "--cores=1"


def test_a_hint_repeats_the_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path, {})
    more = Path(write_config(tmp_path, {"methods": ["abmil"]}, "more.yaml")).relative_to(tmp_path)
    assert read_setup([]).options == read_setup([Path("mine.yaml")]).options == ""
    assert read_setup([Path("mine.yaml"), more]).options == " -c mine.yaml -c more.yaml"


class Finished:
    """A process that has ended."""

    def wait(self) -> int:
        return 0


def test_a_profile_of_the_user_replaces_the_defaults(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    setup = read_setup([Path(write_config(tmp_path, {}))])
    command = snakemake_command(setup, [], ["--workflow-profile", "slurm"], verbose=True)
    assert "--keep-going" not in command and "--logger" not in command and command.count("--workflow-profile") == 1
    environment = snakemake_environment({"PATH": "/bin"})
    assert environment["PATH"].startswith(str(Path(sys.executable).parent)) and environment["SMMIL_QUIET_JOBS"]
    assert "SMMIL_QUIET_JOBS" not in snakemake_environment({}, verbose=True)


def test_targets_are_the_rules_without_wildcards_tables_and_figures():
    names = target_names()
    assert {"all", "qc", "raw", "weights", "report", "table1", "fig4", "cd"} <= {*names} and len(names) == len({*names})
    assert not {*names} & {*shell_rules()} - {"resources", "comparisons"}
    check_targets([*names, "results/mine/bags.csv"])


def test_the_configuration_is_merged_over_the_papers(tmp_path, monkeypatch):
    first = write_config(tmp_path, {"methods": ["abmil"], "training": {"epochs": 3}}, "a.yaml")
    second = write_config(tmp_path, {"training": {"splits": [7]}}, "b.yaml")
    config = read_config([Path(first), Path(second)])
    paper = read_config([])
    assert config.methods == ["abmil"] and config.training.epochs == 3 and config.training.splits == [7]
    assert config.datasets == paper.datasets
    monkeypatch.chdir(workflow_folder())
    assert read_setup([]).config == paper


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run", "no configuration: found no mine.yaml"),
        ("qc", "smmil init FOLDER"),
        ("run -c none.yaml", "none.yaml: no such file"),
        ("run -c wrong.yaml", "epoch: unknown key (did you mean 'epochs'?)"),
        ("run -c fine.yaml tabel1", "unknown target 'tabel1' (did you mean 'table1'?)"),
    ],
)
def test_refusals_are_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path, {"training": {"epoch": 3}}, "wrong.yaml")
    write_config(tmp_path, {"weights": {"mode": "random"}}, "fine.yaml")
    assert code_of(*shlex.split(arguments)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("error: ") == 1


def test_a_faulty_manifest_is_refused_by_snakemake_without_traceback(tmp_path):
    (tmp_path / "m.csv").write_text("bag_id,image,labl,split\na,a.svs,0,train\n")
    own = {"kind": "custom", "root": ".", "source": {"manifest": "m.csv"}, "encoders": ["resnet18"]}
    write_config(tmp_path, {"use": ["own"], "datasets": {"own": own}}, "faulty.yaml")
    run = smmil("run", "-c", "faulty.yaml", folder=tmp_path)
    assert run.returncode != 0 and "'labl'" in run.stdout, run.stdout
    assert run.stdout.count("error") == 1 and "Traceback" not in run.stdout and ".smk" not in run.stdout


@pytest.mark.slow
def test_a_run_from_another_folder_says_what_fails_and_where_the_log_lies(tmp_path):
    make_cohorts(tmp_path, datasets=["camelyon16"])
    slide = sorted((tmp_path / "raw/camelyon16/images").glob("*.tif"))[0]
    (tmp_path / "raw/broken.tif").write_bytes(slide.read_bytes()[:3000])
    good = slide.relative_to(tmp_path / "raw")
    (tmp_path / "raw/m.csv").write_text(f"bag_id,image,label,split\ngood,{good},,\nbroken,broken.tif,,\n")
    own = {"kind": "custom", "root": "raw", "source": {"manifest": "m.csv"}, "encoders": ["resnet18"]}
    write_config(tmp_path, {"use": ["own"], "weights": {"mode": "random"}, "datasets": {"own": own}})
    dry = smmil("run", "qc", "--", "-n", folder=tmp_path)
    assert dry.returncode == 0 and "cut instances" in dry.stdout and not (tmp_path / "results").exists(), dry.stdout
    none = smmil("run", "results/nothing.txt", folder=tmp_path)
    assert none.returncode == 1 and "error: No rule to produce results/nothing.txt\n" in none.stdout, none.stdout
    run = smmil("qc", folder=tmp_path)
    assert run.returncode == 1 and run.stdout.count("damaged slide") == 1, run.stdout
    assert "failed: cut instances own/0000: " in run.stdout and "Traceback" not in run.stdout
    assert "log: results/logs/cut_instances/own/0000.log" in run.stdout and "[1/4] list bags own" in run.stdout
    assert "Traceback" not in (tmp_path / "results/logs/cut_instances/own/0000.log").read_text()
    with (tmp_path / "raw/m.csv").open("a") as manifest:
        manifest.truncate(manifest.tell() - len("broken,broken.tif,,\n"))
    run = smmil("qc", folder=tmp_path)
    assert run.returncode == 0 and f"open {tmp_path / 'results/own/qc/index.html'}" in run.stdout, run.stdout


def test_unknown_targets_are_refused_before_snakemake_starts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    setup = read_setup([Path(write_config(tmp_path, {}))])
    with pytest.raises(ValueError, match="did you mean 'report'"):
        run_workflow(setup, ["raport"], [])
