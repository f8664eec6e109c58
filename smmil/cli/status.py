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
    """How many runs of one method on one dataset and encoder are done, and the last report of one that has begun.

    The state is "finished", "running", "stopped" (begun, and silent since) or "waiting".
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
        done, state, text = len([*folder.glob("*/done.json")]), "waiting", ""
        logs = [*Path(config.results, "logs/train_runs", dataset, encoder).glob(f"{method}.log")]
        logs += Path(config.results, "logs/train_part", dataset, encoder, method).glob("*.log")
        if plan.is_trained((dataset, encoder, method)):
            done, state = max(done, runs), "finished"
        elif logs:
            newest = max(logs, key=lambda log: log.stat().st_mtime)
            silent = time.time() - newest.stat().st_mtime > SILENT_SECONDS
            # a silent log without runs is that of results which were removed
            if folder.is_dir() or not silent:
                state = "stopped" if silent else "running"
                progress = read_progress(tail(newest))
                text = progress.text if progress else ""
        states.append(TrainingState(dataset, encoder, method, done, runs, state, text))
    return states


def not_ok(bags: Sequence[BagState]) -> list[BagState]:
    """Return the bags of each stage that failed, are empty, were skipped or were interrupted."""
    return [bag for bag in bags if bag.state not in ("ok", "pending")]
