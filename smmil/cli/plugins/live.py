"""The live view of `smmil run`: a logger of Snakemake that also shows bags, tiles and epochs of the running jobs.

It builds on snakemake-logger-plugin-rich, which draws a bar for each rule. On a terminal, a line for each running job
and the time left stand below the bars; elsewhere a line is printed when a job ends.
"""

import os
import re
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text
from snakemake_logger_plugin_rich import LogHandler as RichPlugin
from snakemake_logger_plugin_rich.event_handler import EventHandler

from smmil.cli.jobs import JobProgress, as_duration, fault, read_progress, tail

SHOWN_JOBS = 8
_HEADER = re.compile(r"(?:\w*(?:Error|Exception)(?: in (?:file|rule)[^\n]*)?:\s+)+")
_TRAILER = re.compile(
    r"\n(?:Wildcards|Traceback):\n.*|\n +File \"[^\n]*, line \d+, in .*| \(if you use input functions make sure .*",
    re.DOTALL,
)
# what `smmil run` has said, and repeats of the report of a failed job
_NOISE = re.compile(
    r"$|None$|Exiting because a job execution failed|Error in rule |RuleException|CalledProcessError|Complete log|"
    r"WorkflowError:\s*$|At least one job did not complete|Error executing rule|Using workflow specific profile|"
    r"Config file .* is extended|Conda environments: ignored|Elapsed time: |Shutting down"
)
# the jobs that fail after it were stopped by Ctrl-C
_INTERRUPTED = "Terminating processes on user request"


@dataclass(frozen=True)
class Job:
    """A job that Snakemake has started: its rule, the values of its wildcards, and its logs."""

    rule: str
    names: tuple[str, ...]
    logs: tuple[Path, ...]
    started: float = field(default_factory=time.monotonic)

    @property
    def title(self) -> str:
        """Return the rule and what it works on."""
        return " ".join([self.rule.replace("_", " "), "/".join(self.names)]).strip()

    @property
    def seconds(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self.started

    def progress(self) -> JobProgress | None:
        """Return what the log says of the progress."""
        return read_progress(tail(self.logs[0])) if self.logs else None


class Jobs:
    """The jobs of a run: waiting, running and finished ones."""

    def __init__(self) -> None:
        self.waiting: dict[str, int] = {}
        self.running: dict[int, Job] = {}
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.failed: list[Job] = []
        self.total = self.done = 0

    def start(self, number: int, job: Job) -> None:
        """Note that a job runs."""
        self.running[number] = job
        self.waiting[job.rule] = max(0, self.waiting.get(job.rule, 0) - 1)

    def finish(self, number: int) -> Job | None:
        """Note that a job has ended well."""
        job = self.running.pop(number, None)
        if job is not None:
            self.seconds[job.rule].append(job.seconds)
            self.done += 1
        return job

    def time_left(self) -> str:
        """Estimate the time left from the jobs of each rule that have ended.

        It is a lower bound as long as no job of some rule has ended.
        """
        mean = {rule: sum(values) / len(values) for rule, values in self.seconds.items()}
        unknown = any(count and rule not in mean for rule, count in self.waiting.items())
        seconds = sum(mean.get(rule, 0) * count for rule, count in self.waiting.items())
        for job in self.running.values():
            progress = job.progress()
            if progress is not None and progress.done:
                seconds += job.seconds * (progress.total / progress.done - 1)
            elif job.rule in mean:
                seconds += max(0.0, mean[job.rule] - job.seconds)
            else:
                unknown = True
        if not seconds and unknown:
            return "time left: unknown until the first jobs have ended"
        duration = as_duration(seconds / max(1, len(self.running)))
        return f"time left: {'more than' if unknown else 'about'} {duration}"

    def __rich__(self) -> Group:
        """Return the lines below the bars."""
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        jobs = sorted(self.running.values(), key=lambda job: job.started)
        for job in jobs[:SHOWN_JOBS]:
            progress = job.progress()
            table.add_row(job.title, as_duration(job.seconds), Text(progress.text if progress else "", style="dim"))
        if len(jobs) > SHOWN_JOBS:
            table.add_row(f"and {len(jobs) - SHOWN_JOBS} more jobs", "", "")
        failed = f", {len(self.failed)} failed" if self.failed else ""
        return Group(table, Text(f"{self.done} of {self.total} jobs{failed}; {self.time_left()}", style="bold"))


def plain_error(message: str) -> str:
    """Return what an error of Snakemake says, without where in the workflow it was noticed."""
    text = _HEADER.sub("", _TRAILER.sub("", message.strip()), count=1).strip()
    return text.replace("with the --unlock argument", "with `smmil run -- --unlock`")


class Events(EventHandler):  # type: ignore[misc]
    """What is shown of Snakemake's events."""

    def __init__(self, jobs: Jobs, **settings: Any) -> None:
        super().__init__(**settings)
        self.jobs = jobs
        self.last_message = ""
        self.interrupted = False

    def handle_workflow_started(self, event_data: Any, **kwargs: Any) -> None:
        """Show nothing: `smmil run` has said what it runs."""

    def handle_run_info(self, event_data: Any, **kwargs: Any) -> None:
        """Take the number of jobs of each rule."""
        self.jobs.waiting = {**event_data.per_rule_job_counts}
        self.jobs.total = event_data.total_job_count
        super().handle_run_info(event_data, **kwargs)
        for task in self.progress.tasks:
            self.progress.update(task.id, active=0)

    def handle_job_info(self, event_data: Any, **kwargs: Any) -> None:
        """Note a started job."""
        super().handle_job_info(event_data, **kwargs)
        if not self.dryrun:
            names = tuple(str(value) for value in (event_data.wildcards or {}).values())
            self.jobs.start(event_data.jobid, Job(event_data.rule_name, names, tuple(map(Path, event_data.log or []))))

    def handle_job_finished(self, event_data: Any, **kwargs: Any) -> None:
        """Note a finished job; print a line where no bars are drawn."""
        super().handle_job_finished(event_data, **kwargs)
        job = self.jobs.finish(event_data.job_id)
        if job is not None and not self.console.is_terminal:
            self._print(f"[{self.jobs.done}/{self.jobs.total}] {job.title}, {as_duration(job.seconds)}")

    def handle_job_error(self, event_data: Any, **kwargs: Any) -> None:
        """Say in a line per cause why a job failed, and where its log is."""
        job = self.jobs.running.pop(event_data.jobid, None)
        if job is None or self.interrupted:
            return
        self.jobs.failed.append(job)
        cause = next(filter(None, (fault(tail(log)) for log in job.logs)), "")
        cause = cause or "no reason in the log; the job may have been killed (memory, time)"
        self._print(f"failed: {job.title}: {cause}", "red")
        for log in job.logs:
            self._print(f"  log: {log}")

    def handle_error(self, event_data: Any, **kwargs: Any) -> None:
        """Print what is wrong without where in the workflow it was noticed."""
        self._stop_dag_status()
        self.dryrun_job_stats = None
        message = plain_error(event_data.message or "")
        if not _NOISE.match(event_data.message or "") and not _NOISE.match(message):
            self._print(f"error: {message}", "red")

    def should_log_message(self, record: Any, message: str) -> bool:
        """Leave out what repeats the report of a failed job, or the last message."""
        repeated, self.last_message = message == self.last_message, message
        self.interrupted = self.interrupted or message.startswith(_INTERRUPTED)
        return not repeated and not _NOISE.match(message.strip()) and bool(super().should_log_message(record, message))

    def close(self) -> None:
        """End the display; after failures, say how to go on. Snakemake calls this more than once."""
        super().close()
        if self.jobs.failed:
            count = len(self.jobs.failed)
            status = f"smmil status{os.environ.get('SMMIL_OPTIONS', '')}"
            self._print(f"{count} job{'s' * (count > 1)} failed. `{status}` shows the outcome of every bag.")
        if self.jobs.failed or self.interrupted:
            self._print("The same command continues: what is finished is kept.")
        self.jobs.failed, self.interrupted = [], False

    def _print(self, text: str, style: str = "") -> None:
        self.console.print(Text(text, style=style), soft_wrap=True)


class LogHandler(RichPlugin):  # type: ignore[misc]
    """The logger that `snakemake --logger smmil` uses."""

    def __post_init__(self) -> None:
        """Replace the events and the display of the plugin."""
        super().__post_init__()
        jobs = Jobs()
        self.live_display.update(Group(self.live_display.renderable, jobs))
        self.event_handler = Events(
            jobs,
            console=self.console,
            progress=self.progress,
            live_display=self.live_display,
            dryrun=self.settings.dryrun,
            printshellcmds=self.settings.printshellcmds,
            show_failed_logs=False,
            verbose=self.settings.verbose,
        )
