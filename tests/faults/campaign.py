"""Kill the workflow at seeded random moments of every stage, and compare the results with an undisturbed run.

Run alone, from the root of the checkout:
    python -m tests.faults.campaign --kills 50 --seed 0

One undisturbed run of the tiny cohorts (raw slides to report) is the reference and gives the duration of every rule.
Then start Snakemake. When a job of the next rule to kill starts, wait a random share of its duration, or until it has
finished a bag, epoch or prediction and a little longer. SIGKILL the process group, `--unlock`, and continue with
`--rerun-incomplete`. When a folder is finished before all kills are done, compare it and begin the next one.

Expected: all results equal the reference to the byte (except wall times); no finished bag, epoch, run or prediction is
repeated; no job that Snakemake reported as finished starts again. Exit code 1 if an expectation failed; the output of
every start of Snakemake stays in the folder.
"""

import argparse
import logging
import os
import random
import re
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
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
_STARTED = re.compile(r"^(?:local)?rule (\w+):\n(?:    .*\n)*?    output: (.+)\n(?:    .*\n)*?    jobid: (\d+)\n", re.M)
_ENDED = re.compile(r"^Finished jobid: (\d+) ", re.M)


@dataclass(frozen=True)
class Moment:
    """When to kill: a share of a job's usual duration after its start, or of half a second after its next trace."""

    share: float
    after_trace: bool


@dataclass(frozen=True)
class Jobs:
    """Jobs of one start of Snakemake: rule and outputs by number, and the numbers of those that have ended."""

    rules: dict[str, str]
    outputs: dict[str, str]
    ended: list[str]

    @classmethod
    def read(cls, text: str) -> "Jobs":
        """Read what Snakemake has printed."""
        started = _STARTED.findall(text)
        rules, outputs = ({number: pair[i] for *pair, number in started} for i in (0, 1))
        return cls(rules, outputs, _ENDED.findall(text))

    @property
    def running(self) -> list[str]:
        """Return the rules with a running job, in the order of their starts."""
        return [rule for number, rule in self.rules.items() if number not in self.ended]


@dataclass
class Outcome:
    """Rules that were running at each kill, most finished pieces of each kind that a kill met, and problems."""

    kills: list[list[str]] = field(default_factory=list)
    kept: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


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
    add_custom_dataset(config, "abmil")
    return config


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Send SIGKILL to Snakemake and all its jobs, and wait until none is alive."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    while any(_in_group(path, process.pid) for path in Path("/proc").glob("[0-9]*/stat")):
        time.sleep(0.02)


def _in_group(stat: Path, group: int) -> bool:
    try:
        state, _, other = stat.read_text().rpartition(")")[2].split()[:3]
    except (OSError, ValueError):
        return False
    return int(other) == group and state != "Z"


class Campaign:
    """One campaign below `out`."""

    def __init__(self, out: Path, kills: int, seed: int, datasets: Sequence[str], size: str) -> None:
        self.out, self.wanted, self.datasets, self.size = out, kills, datasets, size
        self.due, self.outcome = plan(kills, seed), Outcome()
        self.durations = dict.fromkeys(RULES, 1.0)

    def run(self) -> Outcome:
        """Make the reference, then folders until all kills are done."""
        config = settings(self.datasets, self.size)
        make_cohorts(self.out, self.size, self.datasets)
        make_custom_slides(self.out)
        reference = self.make_folder("reference")
        snakemake(reference, "--configfile", write_config(reference, config), timeout=int(LIMIT_SECONDS))
        self.durations = {rule: usual_seconds(reference, rule) for rule in RULES}
        rounds = 0
        while len(self.outcome.kills) < self.wanted:
            folder = self.make_folder(f"killed{rounds}")
            self.finish(folder, write_config(folder, config))
            wrong = differences(folder / "results", reference / "results")
            self.outcome.wrong += [f"{folder.name}: differs from the undisturbed run: {name}" for name in wrong]
            rounds += 1
        return self.outcome

    def make_folder(self, name: str) -> Path:
        """Make a working directory with the raw data under the same relative path as in all others."""
        folder = self.out / name
        folder.mkdir()
        (folder / "raw").symlink_to(self.out / "raw")
        return folder

    def finish(self, folder: Path, config: str) -> None:
        """Run, kill and continue until the folder is finished."""
        done, known, killed, number = set[str](), dict[str, str](), True, 0
        while killed:
            output = self.out / f"{folder.name}-{number:03d}.txt"
            killed = self.attempt(folder, config, output)
            jobs = Jobs.read(output.read_text(encoding="utf-8", errors="replace"))
            again = sorted(done & {*jobs.outputs.values()})
            self.outcome.wrong += [f"{output.name}: a finished job was started again: {name}" for name in again]
            # the rule `all` has no output
            done |= {jobs.outputs[n] for n in jobs.ended if n in jobs.outputs}
            now = finished_work(folder / "results")
            self.outcome.wrong += [f"{output.name}: done again: {name}" for name in redone(known, now)]
            self.outcome.kept |= kinds(now)
            known, number = now, number + 1
            if killed:
                self.outcome.kills.append(jobs.running)
                log.info("%d of %d kills: %s", len(self.outcome.kills), self.wanted, jobs.running or "between jobs")
                snakemake(folder, "--unlock", "--configfile", config)

    def attempt(self, folder: Path, config: str, output: Path) -> bool:
        """Run Snakemake once; return whether it was killed.

        Raises:
            RuntimeError: Snakemake failed by itself, or does not end.
        """
        process = start_snakemake(folder, output, "--cores", "2", "--rerun-incomplete", "--configfile", config)
        try:
            return self._follow(process, folder, output)
        finally:
            if process.poll() is None:
                kill_group(process)

    def _follow(self, process: subprocess.Popen[bytes], folder: Path, output: Path) -> bool:
        aimed, moment, due, end = "", Moment(0.0, False), float("inf"), time.monotonic() + LIMIT_SECONDS
        while process.poll() is None and time.monotonic() < end:
            running = Jobs.read(output.read_text(encoding="utf-8", errors="replace")).running
            if not aimed and (aimed := next(filter(self.due.get, running), "")):
                moment, traces = self.due[aimed].pop(), self.traces(folder, aimed)
                due = float("inf") if moment.after_trace else time.monotonic() + moment.share * self.durations[aimed]
            elif moment.after_trace and due == float("inf") and self.traces(folder, aimed) != traces:
                due = time.monotonic() + 0.5 * moment.share
            # a job may end before its usual duration
            if time.monotonic() >= due or (aimed and aimed not in running):
                kill_group(process)
                return True
            time.sleep(0.02)
        if process.poll() != 0:
            raise RuntimeError(f"{output}: Snakemake ended with {process.poll()}:\n{output.read_text()[-3000:]}")
        if aimed:  # it ended before the moment
            self.due[aimed].append(moment)
        return False

    def traces(self, folder: Path, rule: str) -> int:
        """Count the pieces that jobs of a rule have finished so far."""
        return sum(1 for _ in (folder / "results").glob(TRACES[rule])) if rule in TRACES else 0


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.campaign", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", default="tiny", help="tiny | demo")
    parser.add_argument("--datasets", default="camelyon16,panda,rsna", help="camelyon16 has to be among them")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    out = Path(tempfile.mkdtemp(prefix="smmil-campaign-")).resolve()
    outcome = Campaign(out, arguments.kills, arguments.seed, arguments.datasets.split(","), arguments.size).run()
    hit = Counter(rule for rules in outcome.kills for rule in set(rules) or {"between jobs"})
    print(f"{out}: {len(outcome.kills)} kills of {dict(hit)}, kept {dict(outcome.kept)}", *outcome.wrong, sep="\n")
    return int(bool(outcome.wrong))


if __name__ == "__main__":
    raise SystemExit(main())
