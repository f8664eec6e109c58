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
from smmil.cli.app import VERBS, app
from smmil.cli.pipeline import check_targets, read_config, read_setup, target_names
from smmil.cli.run import snakemake_command, snakemake_environment
from smmil.installation import workflow_folder
from tests.cli import code_of
from tests.helpers.workflows import ROOT, make_cohorts, write_config


def smmil(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `python -m smmil` in a folder; stdout and stderr come back joined."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "smmil", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300
    )


def test_help_names_every_verb_in_a_whole_line_and_is_quick():
    start = time.monotonic()
    run = smmil("--help", folder=Path("/"))
    seconds = time.monotonic() - start
    assert run.returncode == 0 and seconds < 3 and "..." not in run.stdout.partition("Commands:")[2], run.stdout
    for verb in ("init", "doctor", "run", "qc", "status", *VERBS):
        assert f"\n  {verb} " in run.stdout


def test_version_and_completion():
    assert CliRunner().invoke(app, ["--version"]).stdout == f"smmil {__version__}\n"
    words = {"_SMMIL_COMPLETE": "complete_bash", "COMP_WORDS": "smmil ru", "COMP_CWORD": "1"}
    assert CliRunner().invoke(app, [], prog_name="smmil", env=words).stdout.split() == ["run"]


@pytest.mark.parametrize(
    ("verb", "option"),
    [
        ("predict", "--model"),
        ("explain", "--cell"),
        ("import", "--source"),
        ("export", "--bags"),
        ("config", "--schema"),
    ],
)
def test_help_and_errors_of_a_passing_verb_show_its_options_and_the_name_that_was_typed(verb, option, capsys):
    assert code_of(verb, "--help") == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: smmil {verb} ") and option in text and "python -m" not in text
    assert code_of(verb, "--no-such-option") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"usage: smmil {verb} ") and f"\nsmmil {verb}: error: " in error


def test_a_passing_verb_gets_its_arguments_as_they_are(tmp_path, capsys):
    arguments = ["--format", "clam", "--bags", str(tmp_path / "none.csv"), "--instances", "i", "--out", "o"]
    assert code_of("export", *arguments, "--features", "f") == 2
    assert "none.csv: no such file" in capsys.readouterr().err


def test_what_stands_after_two_dashes_goes_to_snakemake(monkeypatch, tmp_path):
    commands: list[list[str]] = []
    monkeypatch.setattr("subprocess.Popen", lambda command, env: commands.append(command))
    monkeypatch.setattr("smmil.cli.run._wait", lambda process: 0)
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path, {"methods": ["abmil"]})
    assert code_of("run", "table1", "--cores", "3", "--", "--rerun-triggers", "mtime", "-n") == 0
    assert code_of("qc", "-c", "mine.yaml", "--", "--cores=1") == 0
    first, second = commands
    at = first.index("--configfile")
    assert first[3] == "table1" and first[at:] == ["--configfile", "mine.yaml", "--rerun-triggers", "mtime", "-n"]
    assert first[first.index("--cores") + 1] == "3" and "--keep-going" in first and "--rerun-incomplete" in first
    assert second[3] == "qc" and "--cores" not in second and second[-1] == "--cores=1"


def test_a_profile_of_the_user_replaces_the_defaults_and_a_hint_repeats_the_configuration(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path, {})
    write_config(tmp_path, {"methods": ["abmil"]}, "more.yaml")
    setup = read_setup([Path("mine.yaml"), Path("more.yaml")])
    assert read_setup([]).options == "" and setup.options == " -c mine.yaml -c more.yaml"
    command = snakemake_command(setup, [], ["--workflow-profile", "slurm"], verbose=True)
    assert not {"--keep-going", "--logger", "--cores"} & {*command} and command.count("--workflow-profile") == 1
    environment = snakemake_environment({"PATH": "/bin"})
    assert environment["PATH"].startswith(str(Path(sys.executable).parent)) and environment["SMMIL_QUIET_JOBS"]
    assert "SMMIL_QUIET_JOBS" not in snakemake_environment({}, verbose=True)


def test_targets_are_the_rules_without_wildcards_tables_and_figures():
    names = target_names()
    assert {"all", "qc", "raw", "weights", "report", "table1", "fig4", "cd"} <= {*names} and len(names) == len({*names})
    assert not {"cut_instances", "train_runs", "make_table"} & {*names}
    check_targets([*names, "results/mine/bags.csv"])


def test_the_configuration_is_merged_over_the_papers(tmp_path, monkeypatch):
    first = write_config(tmp_path, {"methods": ["abmil"], "training": {"epochs": 3}}, "a.yaml")
    second = write_config(tmp_path, {"training": {"splits": [7]}}, "b.yaml")
    config, paper = read_config([Path(first), Path(second)]), read_config([])
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
        ("run -c broken.yaml", "broken.yaml: line 2, column 2: not YAML in UTF-8: expected ',' or ']', but got ':'\n"),
        ("run -c fine.yaml tabel1", "unknown target 'tabel1' (did you mean 'table1'?)"),
    ],
)
def test_refusals_are_one_message_before_snakemake_starts(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path, {"training": {"epoch": 3}}, "wrong.yaml")
    write_config(tmp_path, {"weights": {"mode": "random"}}, "fine.yaml")
    Path("broken.yaml").write_text("methods: [abmil\nb: 3\n")
    assert code_of(*shlex.split(arguments)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("error: ") == 1


@pytest.mark.slow
def test_a_run_from_another_folder_says_what_fails_and_where_the_log_lies(tmp_path):
    make_cohorts(tmp_path, datasets=["camelyon16"])
    slide = sorted((tmp_path / "raw/camelyon16/images").glob("*.tif"))[0]
    (tmp_path / "raw/broken.tif").write_bytes(slide.read_bytes()[:3000])
    manifest, lines = tmp_path / "raw/m.csv", f"good,{slide.relative_to(tmp_path / 'raw')},,\n"
    manifest.write_text(f"bag_id,image,labl,split\n{lines}")
    mine = {"kind": "custom", "root": "raw", "source": {"manifest": "m.csv"}, "encoders": ["resnet18"]}
    write_config(tmp_path, {"use": ["mine"], "weights": {"mode": "random"}, "datasets": {"mine": mine}})
    faulty = smmil("run", folder=tmp_path)
    assert faulty.returncode != 0 and "'labl'" in faulty.stdout and faulty.stdout.count("error") == 1, faulty.stdout
    assert "Traceback" not in faulty.stdout and ".smk" not in faulty.stdout
    manifest.write_text(f"bag_id,image,label,split\n{lines}broken,broken.tif,,\n")
    dry = smmil("run", "qc", "--", "-n", folder=tmp_path)
    assert dry.returncode == 0 and "cut instances" in dry.stdout and not (tmp_path / "results").exists(), dry.stdout
    none = smmil("run", "results/nothing.txt", folder=tmp_path)
    assert none.returncode == 1 and "error: No rule to produce results/nothing.txt\n" in none.stdout, none.stdout
    run = smmil("qc", folder=tmp_path)
    assert run.returncode == 1 and run.stdout.count("damaged slide") == 1, run.stdout
    assert "failed: cut instances mine/0000: " in run.stdout and "Traceback" not in run.stdout
    assert "log: results/logs/cut_instances/mine/0000.log" in run.stdout and "[1/4] list bags mine" in run.stdout
    assert "Traceback" not in (tmp_path / "results/logs/cut_instances/mine/0000.log").read_text()
    manifest.write_text(f"bag_id,image,label,split\n{lines}")
    run = smmil("qc", folder=tmp_path)
    assert run.returncode == 0 and f"open {tmp_path / 'results/mine/qc/index.html'}" in run.stdout, run.stdout
