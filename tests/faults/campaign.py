"""Kill the workflow at seeded random moments of every stage, and compare the results with an undisturbed run.

Run alone, from the root of the checkout:
    python -m tests.faults.campaign --kills 50 --seed 0

One undisturbed run of the tiny cohorts (raw slides to report) is the reference and gives the duration of every rule.
Then start Snakemake. When a job of the next rule to kill starts, wait a random share of its duration, or until it has
finished a bag, epoch or prediction and a little longer. SIGKILL the process group, `--unlock`, and continue with
`--rerun-incomplete`. When a folder is finished before all kills are done, compare it and begin the next one.

Expected: all results equal the reference to the byte (except wall times); no finished bag, epoch, run or prediction is
repeated; no job that Snakemake reported as finished starts again. `OUT/campaign.json` is rewritten after every kill.
SIGINT and SIGTERM stop the campaign and print its results so far. Exit code 1 if an expectation failed.
"""

import argparse
import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.evidence import differences, finished_work, kinds, redone, usual_seconds
from tests.helpers.workflows import (
    add_custom_dataset,
    demo_config,
    make_cohorts,
    make_custom_slides,
    snakemake,
    start_snakemake,
    write_config,
)

log = logging.getLogger("campaign")
RULES = (
    *("list_bags", "cut_instances", "extract_features", "train_runs", "predict_runs", "measure_runs", "score_bags"),
    *("draw_contact_sheet", "tabulate_status", "make_table", "make_resources", "make_comparisons", "draw_figure"),
    *("draw_score_figure", "draw_map_figure", "draw_picture", "draw_curves", "draw_maps", "write_report"),
)
# rules whose jobs keep finished pieces, and the files of these pieces
TRACES = {
    "cut_instances": "*/instances/store/[!.]*/zarr.json",
    "extract_features": "*/features/*/store/[!.]*/zarr.json",
    "train_runs": "*/runs/*/*/*/state.pt",
    "predict_runs": "*/predictions/*/*/*.npz",
}
LIMIT_SECONDS = 1800.0
_BEGIN = re.compile(r"(?:local)?rule (\w+):")
_OUTPUT = re.compile(r"    output: (.+)")
_JOB = re.compile(r"    jobid: (\d+)")
_END = re.compile(r"Finished jobid: (\d+) ")


@dataclass(frozen=True)
class Moment:
    """When to kill: a share of a job's usual duration after its start, or of a second after its next trace."""

    share: float
    after_trace: bool


@dataclass
class Jobs:
    """Jobs of one attempt as Snakemake prints them: rule and outputs by number."""

    rules: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)
    _rule: str = ""
    _output: str = ""

    def read(self, line: str) -> str:
        """Read one line; return the rule whose job it starts, or ""."""
        if match := _BEGIN.match(line):
            self._rule, self._output = match[1], ""
        elif match := _OUTPUT.match(line):
            self._output = match[1]
        elif self._rule and (match := _JOB.match(line)):
            self.rules[match[1]], self.outputs[match[1]] = self._rule, self._output
            started, self._rule = self._rule, ""
            return started
        elif match := _END.match(line):
            self.ended.append(match[1])
        return ""

    def running(self) -> list[str]:
        """Return the rules with a running job."""
        return sorted(rule for number, rule in self.rules.items() if number not in self.ended)


@dataclass
class Outcome:
    """Kills and problems of the campaign so far."""

    kills: list[dict[str, Any]] = field(default_factory=list)
    kept: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    rounds: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    complete: bool = False

    def summary(self) -> dict[str, Any]:
        """Return a JSON object with counts of kills by the rule that was chosen and by the rules that were running."""
        aimed, hit = Counter(kill["aimed"] for kill in self.kills), Counter[str]()
        for kill in self.kills:
            hit.update(set(kill["running"]) or {"between jobs"})
        return {**asdict(self), "count": len(self.kills), "aimed": dict(aimed), "hit": dict(hit)}


def plan(kills: int, seed: int) -> dict[str, list[Moment]]:
    """Distribute kills over all rules in a fixed random order, so that no stage is left out."""
    generator = random.Random(seed)
    order = generator.sample(RULES, len(RULES))
    moments: dict[str, list[Moment]] = {rule: [] for rule in RULES}
    for number in range(kills):
        rule = order[number % len(order)]
        moments[rule].append(Moment(generator.random(), rule in TRACES and generator.random() < 0.7))
    return moments


def settings(datasets: Sequence[str], size: str) -> dict[str, Any]:
    """Return the overrides of the demo with two methods and a job of every kind of rule."""
    config = demo_config()
    config |= {"use": [*datasets, "mine"], "methods": ["abmil", "smap_early"]}
    config["training"] |= {"epochs": 8 if size == "tiny" else 25, "device": "cpu", "checkpoint_seconds": 0}
    config["features"]["device"] = "cpu"
    config["report"] = {"bootstrap": 50, "map_bags": 1}
    config["report"] |= {"tables": ["table1", "resources", "comparisons"], "figures": ["fig4", "fig5", "cd", "curves"]}
    return config


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Send SIGKILL to Snakemake and all its jobs, and wait until none is alive."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    while any(_in_group(path, process.pid) for path in Path("/proc").glob("[0-9]*/stat")):
        time.sleep(0.02)


def _in_group(stat: Path, group: int) -> bool:
    try:
        state, _, found = stat.read_text().rpartition(")")[2].split()[:3]
    except (OSError, ValueError):
        return False
    return int(found) == group and state != "Z"


class Campaign:
    """One campaign below `out`."""

    def __init__(self, out: Path, kills: int, seed: int, datasets: Sequence[str], size: str) -> None:
        self.out, self.wanted, self.datasets, self.size = out, kills, datasets, size
        self.due, self.generator = plan(kills, seed), random.Random(seed + 1)
        self.outcome, self.durations = Outcome(), dict.fromkeys(RULES, 1.0)

    def run(self) -> Outcome:
        """Make the reference, then folders until all kills are done."""
        config = settings(self.datasets, self.size)
        make_cohorts(self.out, self.size, self.datasets)
        make_custom_slides(self.out)
        add_custom_dataset(config, "abmil")
        started = time.monotonic()
        reference = self.make_folder("reference")
        snakemake(reference, "--configfile", write_config(reference, config), timeout=int(LIMIT_SECONDS))
        self.outcome.seconds["reference"] = round(time.monotonic() - started, 1)
        self.durations |= {rule: usual_seconds(reference, rule) for rule in RULES}
        while len(self.outcome.kills) < self.wanted:
            folder = self.make_folder(f"killed{self.outcome.rounds}")
            self.finish(folder, write_config(folder, config), started)
            wrong = differences(folder / "results", reference / "results")
            self.outcome.wrong += [f"{folder.name}: differs from the undisturbed run: {name}" for name in wrong]
            self.outcome.rounds += 1
            self.save(started)
        self.outcome.complete = True
        self.save(started)
        return self.outcome

    def make_folder(self, name: str) -> Path:
        """Make a working directory with the raw data under the same relative path as in all others."""
        folder = self.out / name
        folder.mkdir(exist_ok=True)
        if not (folder / "raw").is_symlink():
            (folder / "raw").symlink_to(self.out / "raw")
        return folder

    def finish(self, folder: Path, config: str, began: float) -> None:
        """Run, kill and continue until the folder is finished."""
        done, known = set[str](), dict[str, str]()
        for number in range(10 * self.wanted + 10):
            output = self.out / f"{folder.name}-{number:03d}.txt"
            jobs, killed = self.attempt(folder, config, output)
            again = sorted(done & {*jobs.outputs.values()})
            self.outcome.wrong += [f"{output.name}: a finished job was started again: {name}" for name in again]
            done |= {jobs.outputs[n] for n in jobs.ended if n in jobs.outputs}
            now = finished_work(folder / "results")
            self.outcome.wrong += [f"{output.name}: done again: {name}" for name in redone(known, now)]
            known, most = now, kinds(now)
            self.outcome.kept = {kind: max(n, self.outcome.kept.get(kind, 0)) for kind, n in most.items()}
            if not killed:
                return
            self.save(began)
            log.info("%d of %d kills: %s", len(self.outcome.kills), self.wanted, self.outcome.kills[-1])
            snakemake(folder, "--unlock", "--configfile", config)

    def attempt(self, folder: Path, config: str, output: Path) -> tuple[Jobs, bool]:
        """Run Snakemake once; return its jobs and whether it was killed.

        Raises:
            RuntimeError: Snakemake failed by itself, or does not end.
        """
        process = start_snakemake(folder, output, "--cores", "2", "--rerun-incomplete", "--configfile", config)
        try:
            return self._follow(process, folder, output)
        finally:
            if process.poll() is None:
                kill_group(process)

    def _follow(self, process: subprocess.Popen[bytes], folder: Path, output: Path) -> tuple[Jobs, bool]:
        jobs, aimed, text = Jobs(), "", ""
        due, end, traces = float("inf"), time.monotonic() + LIMIT_SECONDS, -1
        moment = Moment(0.0, False)
        with output.open(encoding="utf-8", errors="replace") as stream:
            while process.poll() is None and time.monotonic() < end:
                *lines, text = (text + stream.read()).split("\n")
                for rule in filter(None, [jobs.read(line) for line in lines]):
                    if not aimed and self.due.get(rule):
                        aimed, moment = rule, self.due[rule].pop()
                        traces = self.traces(folder, rule) if moment.after_trace else -1
                        due = (
                            float("inf")
                            if moment.after_trace
                            else time.monotonic() + moment.share * self.durations[rule]
                        )
                if traces >= 0 and self.traces(folder, aimed) != traces:
                    traces, due = -1, time.monotonic() + 0.5 * moment.share
                if aimed and aimed not in jobs.running():
                    due = 0.0  # the job ended before its usual duration
                if time.monotonic() >= due:
                    kill_group(process)
                    for line in stream.read().split("\n"):
                        jobs.read(line)
                    self.outcome.kills.append({"aimed": aimed, "running": jobs.running(), **asdict(moment)})
                    return jobs, True
                time.sleep(0.02)
            for line in (text + stream.read()).split("\n"):
                jobs.read(line)
        if process.poll() != 0:
            raise RuntimeError(f"{output}: Snakemake ended with {process.returncode}:\n{output.read_text()[-3000:]}")
        if aimed:  # it ended before the moment
            self.due[aimed].append(moment)
        return jobs, False

    def traces(self, folder: Path, rule: str) -> int:
        """Count the pieces that jobs of a rule have finished so far."""
        return sum(1 for _ in (folder / "results").glob(TRACES[rule]))

    def save(self, began: float) -> None:
        """Write campaign.json."""
        self.outcome.seconds["all"] = round(time.monotonic() - began, 1)
        temporary = self.out / "campaign.json.new"
        temporary.write_text(json.dumps(self.outcome.summary(), indent=1) + "\n")
        temporary.replace(self.out / "campaign.json")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.campaign", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", default="tiny", help="tiny | demo")
    parser.add_argument("--datasets", default="camelyon16,panda,rsna", help="camelyon16 has to be among them")
    parser.add_argument("--out", type=Path, help="folder to work in; a reference in it is used again (default: new)")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    out = (arguments.out or Path(tempfile.mkdtemp(prefix="smmil-campaign-"))).resolve()
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("killed*"):
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    for signum in (signal.SIGINT, signal.SIGTERM):  # what a shell starts in the background ignores SIGINT
        signal.signal(signum, signal.default_int_handler)
    campaign = Campaign(out, arguments.kills, arguments.seed, arguments.datasets.split(","), arguments.size)
    try:
        campaign.run()
    except KeyboardInterrupt:
        log.warning("stopped; results so far:")
    summary = campaign.outcome.summary()
    print(json.dumps({name: value for name, value in summary.items() if name != "kills"}, indent=1))
    return int(bool(campaign.outcome.wrong) or not campaign.outcome.complete)


if __name__ == "__main__":
    raise SystemExit(main())
