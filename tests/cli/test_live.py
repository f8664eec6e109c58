"""The live view: what is read from the logs of jobs, the time left, and what is said of errors."""

import io
import logging
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.live import Live
from rich.progress import Progress as RichProgress

from preprocessing.features import extraction
from smmil.artifacts.records import LogRow
from smmil.cli.jobs import as_duration, fault, read_progress
from smmil.cli.plugins.live import Events, Job, Jobs, plain_error
from smmil.train.progress import Progress
from tests.helpers.cohorts import Cohort, write_slide


@pytest.fixture
def log(caplog) -> pytest.LogCaptureFixture:
    """A log as jobs write it."""
    caplog.set_level(logging.INFO)
    caplog.handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    return caplog


def test_bags_are_read_from_the_log_of_a_real_job(log, tmp_path):
    cohort = Cohort(tmp_path)
    for name in ("a", "b"):
        write_slide(cohort.raw / f"{name}.tif")
        cohort.add(name, f"{name}.tif")
    assert read_progress(log.text) is None
    assert cohort.list_bags() == cohort.cut() == 0
    progress = read_progress(log.text)
    assert (progress.done, progress.total, progress.text) == (2, 2, "bag 2 of 2")


def test_epochs_are_read_from_the_lines_of_a_training(log):
    progress = Progress(runs=4, epochs=10, stream=io.StringIO())
    progress.start("split1_lr0.1")
    progress.start("split2_lr0.1")
    row = dict(epoch=1, loss=0.5, val_loss=0.5, val_bag_auroc=0.5, selection=0.5, kept=True)
    values = {name: row.get(name, 0.0) for name in LogRow.model_fields}
    progress(LogRow.model_construct(**values))
    seen = read_progress(log.text)
    assert (seen.done, seen.total) == (11, 40) and seen.text.startswith("run 2 of 4, epoch 1 of 10, left 0:00:0")


def test_tiles_per_second_are_read_from_the_lines_of_the_feature_stage(log, monkeypatch):
    monkeypatch.setattr(extraction, "SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr("sys.stderr", io.StringIO())
    bar = extraction._progress(200)
    bar.update(50)
    bar.close()
    seen = read_progress(log.text)
    assert (seen.done, seen.total) == (50, 200) and "tiles/s" in seen.text


def test_the_fault_of_a_job_is_its_last_error_with_the_bags_behind_it():
    text = (
        "2026-01-01 10:00:00,1 ERROR preprocessing.bags.shards: bag b failed: b.tif: damaged\n"
        "2026-01-01 10:00:00,1 ERROR preprocessing.bags.shards: instances 0000: 1 of 2 bags failed, 0 allowed\n"
        "  b: b.tif: damaged\n"
        "2026-01-01 10:00:00,1 INFO preprocessing: bye\n"
    )
    assert fault(text) == "instances 0000: 1 of 2 bags failed, 0 allowed\n  b: b.tif: damaged"
    assert fault("error: m.csv: 2 problems:\n  line 1\n  line 2\n") == "m.csv: 2 problems:\n  line 1\n  line 2"
    assert fault("Traceback (most recent call last):\n  File\nKeyError: 'x'\n") == "KeyError: 'x'"
    assert fault("all is well\n") == ""


@pytest.mark.parametrize(
    ("message", "plain"),
    [
        (
            'WorkflowError in file "/x/common.smk", line 33:\nconfig: 1 problem(s)\n  a: b',
            "config: 1 problem(s)\n  a: b",
        ),
        ("WorkflowError:\nat least one", "at least one"),
        ("Error:\n  ValueError: few bags\nWildcards:\n  dataset=x\nTraceback:\n  File", "few bags"),
        (
            "MissingRuleException:\nNo rule to produce x (if you use input functions make sure that ...).",
            "No rule to produce x",
        ),
    ],
)
def test_errors_of_snakemake_are_said_without_their_place(message, plain):
    assert plain_error(message) == plain


def test_the_time_left_is_a_lower_bound_until_a_job_of_each_rule_has_ended(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("time.monotonic", lambda: clock.now)
    jobs = Jobs()
    jobs.waiting, jobs.total = {"cut": 3, "train": 1}, 4
    jobs.start(1, Job("cut", ("a", "0000"), (), started=0.0))
    assert "unknown" in jobs.time_left()
    clock.now = 60.0
    jobs.finish(1)
    # two more of 60 s; nothing is known about the training
    assert jobs.time_left() == "time left: more than 2 min"
    jobs.start(2, Job("train", (), (), started=60.0))
    clock.now = 90.0
    jobs.finish(2)
    assert jobs.time_left() == "time left: about 2 min" and jobs.done == 2
    jobs.start(3, Job("cut", (), (), started=90.0))
    jobs.start(4, Job("cut", (), (), started=90.0))
    clock.now = 120.0
    # 30 s each, side by side
    assert jobs.time_left() == "time left: about 30 s"
    screen = Console(file=io.StringIO(), width=100)
    screen.print(jobs)
    assert "2 of 4 jobs; time left: about 30 s" in screen.file.getvalue()


def test_jobs_that_ctrl_c_stops_have_not_failed(tmp_path):
    text = io.StringIO()
    console = Console(file=text, width=100)
    progress = RichProgress(console=console)
    events = Events(
        Jobs(), console=console, progress=progress, live_display=Live(console=console, transient=True), dryrun=False
    )
    record = logging.LogRecord("snakemake", logging.WARNING, "", 0, "", None, None)
    for number, message in enumerate(
        ("Something", "Terminating processes on user request, this might take some time.")
    ):
        events.should_log_message(record, message)
        events.jobs.start(number, Job("train", ("a",), ()))
        events.handle_job_error(SimpleNamespace(jobid=number))
    events.close()
    assert text.getvalue().count("failed: train a") == 1 and "1 job failed" in text.getvalue()
    assert "The same command continues" in text.getvalue()


def test_durations_are_rounded_as_people_say_them():
    assert [as_duration(s) for s in (0.4, 89, 600, 7200, 86400 * 3)] == ["0 s", "89 s", "10 min", "2.0 h", "3 days"]
