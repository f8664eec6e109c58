"""The state of a study: the outcome of every bag in every stage, and how far each training is."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from preprocessing.bags.report import ListReport
from preprocessing.bags.table import read_bags
from preprocessing.status import BagState, Status, find_stages, read_stage, summarise
from smmil.cli.jobs import read_progress, tail
from smmil.config.experiment import Config
from smmil.config.outputs import all_pairings
from smmil.planning import Plan

# a job writes at least one line in this time
SILENT_SECONDS = 120


@dataclass(frozen=True)
class TrainingState:
    """How far the runs of one method on one dataset and encoder are.

    Attributes:
        dataset, encoder, method: the training.
        done, total: runs.
        state: "finished", "running", "stopped" (begun, and silent since) or "waiting".
        text: of a training that has begun, its last report.
    """

    dataset: str
    encoder: str
    method: str
    done: int
    total: int
    state: str
    text: str = ""


def dataset_status(config: Config, name: str) -> tuple[Status, list[BagState]] | None:
    """Return the outcome of the bags of a dataset and the row of each bag and stage; None before they are listed.

    Raises:
        ValueError: a file of the results is damaged.
    """
    folder = Path(config.results, name)
    if not (folder / "bags.csv").is_file():
        return None
    rows = read_bags(folder / "bags.csv")
    path = folder / "bags.report.json"
    report = ListReport.read(path) if path.is_file() else ListReport()
    stages = ["instances", *(f"features/{encoder}" for encoder in config.datasets[name].encoders)]
    stages = [*dict.fromkeys([*stages, *find_stages(folder)])]
    return summarise(name, rows, report, {stage: read_stage(folder, stage) for stage in stages})


def training_states(config: Config) -> list[TrainingState]:
    """Return the state of every training that the configuration asks for."""
    plan, runs = Plan(config), len(config.training.splits) * len(config.training.learning_rates)
    states = []
    for dataset, encoder, method in all_pairings(config):
        folder = Path(config.results, dataset, "runs", encoder, method)
        done = len([*folder.glob("*/done.json")])
        logs = [Path(config.results, "logs/train_runs", dataset, encoder, f"{method}.log")]
        logs += Path(config.results, "logs/train_part", dataset, encoder, method).glob("*.log")
        logs = [log for log in logs if log.is_file()]
        if plan.is_trained((dataset, encoder, method)):
            states.append(TrainingState(dataset, encoder, method, max(done, runs), runs, "finished"))
            continue
        newest = max(logs, key=lambda log: log.stat().st_mtime, default=None)
        if newest is None:
            states.append(TrainingState(dataset, encoder, method, done, runs, "waiting"))
            continue
        progress = read_progress(tail(newest))
        state = "running"
        if time.time() - newest.stat().st_mtime > SILENT_SECONDS:
            # a log without runs is that of results which were removed
            state = "stopped" if folder.is_dir() else "waiting"
        text = progress.text if progress and state != "waiting" else ""
        states.append(TrainingState(dataset, encoder, method, done, runs, state, text))
    return states


def not_ok(bags: Sequence[BagState]) -> list[BagState]:
    """Return the bags of each stage that failed, are empty, were skipped or were interrupted."""
    return [bag for bag in bags if bag.state not in ("ok", "pending")]
