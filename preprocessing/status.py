"""The state of a dataset: the outcome of every bag in every stage, the reason, and the speed.

`python -m preprocessing.status results/panda` reads `bags.csv` and its report, the shard manifests, and the status
lines that jobs append (the only trace of a job that failed), and writes into `results/panda/status/`: `status.csv`, a
row per stage and bag; `status.json` and `status.md`, a line per stage, the published counts, and every bag that is not
ok or looks wrong (`preprocessing.instances.checks`), with the reason.

A bag in a manifest is what the manifest says; otherwise its last status line counts. Interrupted: a job was at this bag
when it was killed, or still is; pending: no job has come to it. Only seconds and rates differ between equal runs.
"""

import argparse
import csv
import io
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from preprocessing.bags.manifests import BagOutcome, ShardManifest, StatusLine
from preprocessing.bags.report import Expected, ListReport, Omitted
from preprocessing.bags.rows import BagRow
from preprocessing.bags.table import read_bags
from preprocessing.common.cli import guard
from preprocessing.common.files import write_json, write_text

log = logging.getLogger(__name__)

STATES = ("ok", "empty", "skipped", "failed", "interrupted", "pending")
REASONS = {
    "interrupted": "a job was at this bag when it ended without a word (killed? memory or time ran out), or still is",
    "pending": "no job has come to it",
}
LISTED = 50


@dataclass(frozen=True)
class StageStatus:
    """What the files of one stage say.

    Attributes:
        outcomes: by bag id; bags that no job has come to are missing.
        seconds: of the last job that did the work (did not find it finished), by bag id.
        unreadable: status lines that are not JSON (cut off by a crash).
    """

    outcomes: dict[str, BagOutcome]
    seconds: dict[str, float]
    unreadable: int = 0


@dataclass(frozen=True)
class BagState:
    """One bag in one stage; a row of `status.csv`."""

    stage: str
    bag_id: str
    modality: str
    state: str
    n: int
    bad_tiles: int
    unused_outlines: int
    seconds: float | None
    tiles_per_second: float | None
    reason: str
    warnings: str


@dataclass(frozen=True)
class Total:
    """Sums over bags: a number per state, the counts, seconds of the work done, and its rate."""

    stage: str
    bags: int
    ok: int = 0
    empty: int = 0
    skipped: int = 0
    failed: int = 0
    interrupted: int = 0
    pending: int = 0
    instances: int = 0
    bad_tiles: int = 0
    unused_outlines: int = 0
    seconds: float | None = None
    tiles_per_second: float | None = None


@dataclass(frozen=True)
class StageProblem:
    """A bag that is not ok in a stage."""

    stage: str
    bag_id: str
    state: str
    reason: str


@dataclass(frozen=True)
class StageWarning:
    """What looks wrong with a bag although a stage stored it."""

    stage: str
    bag_id: str
    warning: str


@dataclass(frozen=True)
class Status:
    """The content of `status.json`.

    Attributes:
        listed: bags of the list.
        total: over all stages; an instance is counted once.
        expected: published counts beside those found.
        missing, excluded: of the report of the list.
        problems: bags that are not ok.
        warnings: what looks wrong with bags, one entry each.
        unreadable_lines: status lines that are not JSON.
    """

    dataset: str
    listed: int
    stages: list[Total]
    total: Total
    expected: list[Expected] = field(default_factory=list)
    missing: list[Omitted] = field(default_factory=list)
    excluded: list[Omitted] = field(default_factory=list)
    problems: list[StageProblem] = field(default_factory=list)
    warnings: list[StageWarning] = field(default_factory=list)
    unreadable_lines: int = 0


def find_stages(folder: Path) -> list[str]:
    """Stages that left a manifest or a status line: instances first, then features by encoder."""
    # an encoder's name has one part or two (timm/NAME); `**` would walk through every bag of every store
    kinds = ("instances/shards/*.json", "features/*/shards/*.json", "features/*/*/shards/*.json")
    manifests = [path.parent.parent for kind in kinds for path in folder.glob(kind)]
    traces = [p.parent for end in ("jsonl", "working") for p in folder.glob(f"status/**/*.{end}")]
    names = {p.relative_to(folder).as_posix() for p in manifests}
    names |= {p.relative_to(folder / "status").as_posix() for p in traces}
    return sorted(names, key=lambda name: (name != "instances", name))


def read_stage(folder: Path, stage: str) -> StageStatus:
    """Read manifests and status lines of one stage, "instances" or "features/ENCODER", of a dataset's results."""
    outcomes: dict[str, BagOutcome] = {}
    seconds: dict[str, float] = {}
    unreadable = 0
    for path in sorted((folder / "status" / stage).glob("*.jsonl")):
        for text in filter(str.strip, path.read_text(encoding="utf-8", errors="replace").splitlines()):
            try:
                line = StatusLine.model_validate_json(text)
            except ValidationError:
                unreadable += 1
                continue
            outcomes[line.bag_id] = line
            if line.redone:
                seconds[line.bag_id] = line.seconds
    for path in (folder / "status" / stage).glob("*.working"):
        bag_id = path.read_text(encoding="utf-8", errors="replace").strip()
        outcomes[bag_id] = _without_outcome(bag_id, "interrupted")
    # last, because what a manifest says counts more than any line of a job
    for path in sorted((folder / stage / "shards").glob("*.json")):
        outcomes |= {entry.bag_id: entry for entry in ShardManifest.read(path).bags}
    return StageStatus(outcomes, seconds, unreadable)


def _without_outcome(bag_id: str, state: Any) -> BagOutcome:
    """Return a bag in a state that no job writes, so that the record would refuse it in a file."""
    return BagOutcome.model_construct(bag_id=bag_id, state=state)


def bag_states(rows: Sequence[BagRow], stage: str, status: StageStatus) -> list[BagState]:
    """Return the state of every bag of the list in one stage."""
    states = []
    for row in rows:
        bag = status.outcomes.get(row.bag_id) or _without_outcome(row.bag_id, "pending")
        seconds = status.seconds.get(row.bag_id) if bag.state in ("ok", "empty", "failed") else None
        rate = round(bag.n / seconds, 2) if seconds and bag.n else None
        counts, reason = (bag.n, bag.bad_tiles, bag.unused_outlines), bag.reason or REASONS.get(bag.state, "")
        known = (stage, bag.bag_id, row.modality, bag.state, *counts, seconds, rate, reason)
        states.append(BagState(*known, "; ".join(bag.warnings)))
    return states


def total(bags: Sequence[BagState], stage: str) -> Total:
    """Sum over bags."""
    timed = [bag for bag in bags if bag.seconds is not None]
    seconds = sum(bag.seconds for bag in timed if bag.seconds is not None)
    return Total(
        stage,
        len(bags),
        **Counter(bag.state for bag in bags),
        instances=sum(bag.n for bag in bags),
        bad_tiles=sum(bag.bad_tiles for bag in bags),
        unused_outlines=sum(bag.unused_outlines for bag in bags),
        seconds=round(seconds, 3) if timed else None,
        tiles_per_second=round(sum(bag.n for bag in timed) / seconds, 2) if seconds and timed else None,
    )


def summarise(
    dataset: str, rows: Sequence[BagRow], report: ListReport, stages: Mapping[str, StageStatus]
) -> tuple[Status, list[BagState]]:
    """Return the content of `status.json` and the rows of `status.csv`; `stages` are in the order to show."""
    # imported here, because they load OpenCV and OpenSlide, for which --help would wait
    from preprocessing.qc.counts import compare
    from preprocessing.qc.facts import BagFacts

    tables = {stage: bag_states(rows, stage, status) for stage, status in stages.items()}
    every = [bag for table in tables.values() for bag in table]
    instances = tables.get("instances") or bag_states(rows, "instances", StageStatus({}, {}))
    facts = [
        BagFacts(row.bag_id, row.modality, row.label, row.split, bag.state, bag.n)
        for row, bag in zip(rows, instances, strict=True)
    ]
    summary = Status(
        dataset=dataset,
        listed=len(rows),
        stages=[total(table, stage) for stage, table in tables.items()],
        # A rate over different stages has no meaning.
        total=replace(total(every, "all stages"), instances=sum(bag.n for bag in instances), tiles_per_second=None),
        expected=compare(report.expected, facts),
        missing=report.missing,
        excluded=report.excluded,
        problems=[StageProblem(bag.stage, bag.bag_id, bag.state, bag.reason) for bag in every if bag.state != "ok"],
        warnings=[
            StageWarning(stage, row.bag_id, text)
            for stage, status in stages.items()
            for row in rows
            if row.bag_id in status.outcomes
            for text in status.outcomes[row.bag_id].warnings
        ],
        unreadable_lines=sum(status.unreadable for status in stages.values()),
    )
    return summary, every


def to_markdown(status: Status) -> str:
    """Return a page for people: stages and their total, counts against the published ones, and what is not ok."""
    lines = [f"# {status.dataset}", ""]
    left = f"{len(status.excluded)} excluded, {len(status.missing)} missing"
    lines += [f"{status.listed} bags listed; by the list itself {left}.", ""]
    lines += _table([field.name for field in fields(Total)], [*status.stages, status.total])
    if status.expected:
        lines += ["", *_table(("what", "published", "found"), status.expected)]
    if status.problems:
        lines += ["", *_table(("stage", "bag_id", "state", "reason"), status.problems)]
    if status.warnings:
        lines += ["", *_table(("stage", "bag_id", "warning"), status.warnings)]
    for name, omitted in (("excluded", status.excluded), ("missing", status.missing)):
        if omitted:
            more = len(omitted) - LISTED
            lines += ["", f"{name}:", "", *[f"- {entry.name}: {entry.reason}" for entry in omitted[:LISTED]]]
            lines += [f"- and {more} more, all in status.json"] if more > 0 else []
    if status.unreadable_lines:
        lines += ["", f"{status.unreadable_lines} status lines are cut off (a full disk, or a job that was killed)."]
    return "\n".join(lines) + "\n"


def _table(head: Sequence[str], records: Sequence[object]) -> list[str]:
    values = [record if isinstance(record, tuple) else vars(record).values() for record in records]
    cells = [["" if value is None else str(value).replace("|", "\\|") for value in row] for row in values]
    lines = [" | ".join(row) for row in ([name.replace("_", " ") for name in head], ["---"] * len(head), *cells)]
    return [f"| {line} |" for line in lines]


@guard
def main(argv: Sequence[str] | None = None) -> int:
    """Write the status of one dataset; see the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m preprocessing.status", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="results of one dataset, e.g. results/panda")
    parser.add_argument("--dataset", help="its name (default: the folder's)")
    parser.add_argument("--encoders", help="encoders to list, separated by commas (default: those that left a trace)")
    parser.add_argument("--out", type=Path, help="folder to write (default: FOLDER/status)")
    args = parser.parse_args(argv)
    rows = read_bags(args.folder / "bags.csv")
    report_path = args.folder / "bags.report.json"
    report = ListReport.read(report_path) if report_path.is_file() else ListReport()
    if args.encoders is None:
        names = find_stages(args.folder)
    else:
        names = ["instances", *(f"features/{name}" for name in dict.fromkeys(args.encoders.split(",")) if name)]
    stages = {name: read_stage(args.folder, name) for name in names}
    summary, bags = summarise(args.dataset or args.folder.resolve().name, rows, report, stages)
    out = args.out or args.folder / "status"
    table = io.StringIO()
    writer = csv.DictWriter(table, [entry.name for entry in fields(BagState)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(vars(bag) for bag in bags)
    write_text(out / "status.csv", table.getvalue())
    write_text(out / "status.md", to_markdown(summary))
    write_json(out / "status.json", asdict(summary))
    log.info("%s: %s", out / "status.md", {name: n for name, n in asdict(summary.total).items() if n})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
