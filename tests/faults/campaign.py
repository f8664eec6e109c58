"""Kills the whole DAG again and again, at seeded random moments of every stage, and compares with a quiet run.

Run alone, from the root of the checkout:
    python -m tests.faults.campaign --kills 50 --seed 0

One undisturbed run of the tiny cohorts (raw slides to report) is the reference and gives every rule's usual duration.
Then: start Snakemake; when a job of a rule that is due starts, wait a random share of that duration, or for the first
bag, epoch or prediction it finishes and a little longer; SIGKILL the process group; `--unlock`; go on with
`--rerun-incomplete`. A folder that is finished while kills are still due is compared and the next one is begun.

Expected: every result equal to the reference to the byte (wall times excepted); no finished bag, epoch, run or
prediction done again; no job that Snakemake had called finished started again. `OUT/campaign.json` is rewritten after
every kill; SIGINT and SIGTERM end the campaign with what has been seen so far. Exit code 1 if anything is not as
expected.
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
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.evidence import differences, finished_work, kinds, redone, usual_seconds
from tests.faults.house import make_raw, settings
from tests.helpers.workflows import ROOT, snakemake, write_config

log = logging.getLogger("campaign")
RULES = (
    *("list_bags", "cut_instances", "extract_features", "train_runs", "predict_runs", "measure_runs", "score_bags"),
    *("draw_contact_sheet", "tabulate_status", "make_table", "make_resources", "make_comparisons", "draw_figure"),
    *("draw_score_figure", "draw_map_figure", "draw_picture", "draw_curves", "draw_maps", "write_report"),
)
# rules whose jobs finish pieces that are kept: where they leave them
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
    """The jobs of one sitting, from what Snakemake says: by number, rule and outputs."""

    rules: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)
    _rule: str = ""
    _output: str = ""

    def read(self, line: str) -> str:
        """Takes one line; returns the rule whose job it starts, if any."""
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
        """Rules with a job under way."""
        return sorted(rule for number, rule in self.rules.items() if number not in self.ended)


@dataclass
class Seen:
    """What the campaign has seen."""

    kills: list[dict[str, Any]] = field(default_factory=list)
    kept: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    rounds: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    complete: bool = False

    def summary(self) -> dict[str, Any]:
        """JSON-able; kills by the rule that was aimed at, and by what was running."""
        aimed, hit = Counter(kill["aimed"] for kill in self.kills), Counter[str]()
        for kill in self.kills:
            hit.update(set(kill["running"]) or {"between jobs"})
        return {**asdict(self), "count": len(self.kills), "aimed": dict(aimed), "hit": dict(hit)}


def plan(kills: int, seed: int) -> dict[str, list[Moment]]:
    """Which rules are hit how often and when: round and round in one random order, so that no stage is left out."""
    generator = random.Random(seed)
    order = generator.sample(RULES, len(RULES))
    moments: dict[str, list[Moment]] = {rule: [] for rule in RULES}
    for number in range(kills):
        rule = order[number % len(order)]
        moments[rule].append(Moment(generator.random(), rule in TRACES and generator.random() < 0.7))
    return moments


def start(house: Path, config: str, said: Path) -> subprocess.Popen[bytes]:
    """Snakemake in a process group of its own; what it says goes to a file."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2"]
    command += ["--directory", str(house), "--rerun-incomplete", "--configfile", config]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with said.open("wb") as out:
        return subprocess.Popen(
            command, cwd=house, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for Snakemake and every job; returns when none of them lives."""
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
        self.seen, self.usual = Seen(), dict.fromkeys(RULES, 1.0)

    def run(self) -> Seen:
        """The reference, then folders until all kills are done."""
        config = settings(self.datasets, self.size)
        make_raw(self.out, self.datasets, self.size)
        started = time.monotonic()
        reference = self.house("reference")
        snakemake(reference, "--configfile", write_config(reference, config), timeout=int(LIMIT_SECONDS))
        self.seen.seconds["reference"] = round(time.monotonic() - started, 1)
        self.usual |= {rule: usual_seconds(reference, rule) for rule in RULES}
        while len(self.seen.kills) < self.wanted:
            house = self.house(f"killed{self.seen.rounds}")
            self.finish(house, write_config(house, config), started)
            wrong = differences(house / "results", reference / "results")
            self.seen.wrong += [f"{house.name}: differs from the undisturbed run: {name}" for name in wrong]
            self.seen.rounds += 1
            self.save(started)
        self.seen.complete = True
        self.save(started)
        return self.seen

    def house(self, name: str) -> Path:
        """A working directory that sees the raw data under the same relative path as all others."""
        house = self.out / name
        house.mkdir(exist_ok=True)
        if not (house / "raw").is_symlink():
            (house / "raw").symlink_to(self.out / "raw")
        return house

    def finish(self, house: Path, config: str, began: float) -> None:
        """Runs, kills and continues until the folder is finished."""
        done, known = set[str](), dict[str, str]()
        for number in range(10 * self.wanted + 10):
            said = self.out / f"{house.name}-{number:03d}.txt"
            jobs, killed = self.sit(house, config, said)
            again = sorted(done & {*jobs.outputs.values()})
            self.seen.wrong += [f"{said.name}: a finished job was started again: {name}" for name in again]
            done |= {jobs.outputs[n] for n in jobs.ended if n in jobs.outputs}
            now = finished_work(house / "results")
            self.seen.wrong += [f"{said.name}: done again: {name}" for name in redone(known, now)]
            known, most = now, kinds(now)
            self.seen.kept = {kind: max(n, self.seen.kept.get(kind, 0)) for kind, n in most.items()}
            if not killed:
                return
            self.save(began)
            log.info("%d of %d kills: %s", len(self.seen.kills), self.wanted, self.seen.kills[-1])
            snakemake(house, "--unlock", "--configfile", config)

    def sit(self, house: Path, config: str, said: Path) -> tuple[Jobs, bool]:
        """One sitting; True if it was killed, False if it came to its end.

        Raises:
            RuntimeError: Snakemake failed by itself, or does not end.
        """
        process = start(house, config, said)
        try:
            return self._follow(process, house, said)
        finally:
            if process.poll() is None:
                kill_group(process)

    def _follow(self, process: subprocess.Popen[bytes], house: Path, said: Path) -> tuple[Jobs, bool]:
        jobs, aimed, text = Jobs(), "", ""
        due, end, traces = float("inf"), time.monotonic() + LIMIT_SECONDS, -1
        moment = Moment(0.0, False)
        with said.open(encoding="utf-8", errors="replace") as stream:
            while process.poll() is None and time.monotonic() < end:
                *lines, text = (text + stream.read()).split("\n")
                for rule in filter(None, [jobs.read(line) for line in lines]):
                    if not aimed and self.due.get(rule):
                        aimed, moment = rule, self.due[rule].pop()
                        traces = self.traces(house, rule) if moment.after_trace else -1
                        due = float("inf") if moment.after_trace else time.monotonic() + moment.share * self.usual[rule]
                if traces >= 0 and self.traces(house, aimed) != traces:
                    traces, due = -1, time.monotonic() + 0.5 * moment.share
                if aimed and aimed not in jobs.running():
                    due = 0.0  # it was quicker than usual
                if time.monotonic() >= due:
                    kill_group(process)
                    for line in stream.read().split("\n"):
                        jobs.read(line)
                    self.seen.kills.append({"aimed": aimed, "running": jobs.running(), **asdict(moment)})
                    return jobs, True
                time.sleep(0.02)
            for line in (text + stream.read()).split("\n"):
                jobs.read(line)
        if process.poll() != 0:
            raise RuntimeError(f"{said}: Snakemake ended with {process.returncode}:\n{said.read_text()[-3000:]}")
        if aimed:  # it was over before the moment came
            self.due[aimed].append(moment)
        return jobs, False

    def traces(self, house: Path, rule: str) -> int:
        """Pieces that jobs of a rule have finished so far."""
        return sum(1 for _ in (house / "results").glob(TRACES[rule]))

    def save(self, began: float) -> None:
        """Rewrites the report."""
        self.seen.seconds["all"] = round(time.monotonic() - began, 1)
        temporary = self.out / "campaign.json.new"
        temporary.write_text(json.dumps(self.seen.summary(), indent=1) + "\n")
        temporary.replace(self.out / "campaign.json")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
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
        log.warning("stopped; what follows was seen so far")
    seen = campaign.seen.summary()
    print(json.dumps({name: value for name, value in seen.items() if name != "kills"}, indent=1))
    return int(bool(campaign.seen.wrong) or not campaign.seen.complete)


if __name__ == "__main__":
    raise SystemExit(main())
