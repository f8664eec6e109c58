"""The state of a dataset: what became of every bag in every stage, why, and how fast.

`python -m preprocessing.status results/panda` reads `bags.csv` and its report, the shard manifests, and the status
lines that jobs append (the only trace of a job that failed), and writes into `results/panda/status/`:

* `status.csv`: a row per stage and bag: state, instances, unreadable tiles, seconds, tiles per second, reason;
* `status.json`, `status.md`: a line per stage and one in all, counts against what the dataset is known to hold, and
  every bag that is not ok with its reason.

States: ok, empty, skipped (as an override says), failed; interrupted (a job was at this bag when it was killed, or
still is), pending (no job has come to it). A bag in a manifest is what the manifest says; otherwise its last status
line counts. Only seconds and rates differ between equal runs; bags found finished have none.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preprocessing.cli import guard, write_json, write_text

if TYPE_CHECKING:
    from preprocessing.bags import BagRow

log = logging.getLogger(__name__)

STAGE_VERSION = 1
STATES = ("ok", "empty", "skipped", "failed", "interrupted", "pending")
COLUMNS = ("stage", "bag_id", "modality", "state", "n", "bad_tiles", "seconds", "tiles_per_second", "reason")
REASONS = {
    "interrupted": "a job was at this bag when it ended without a word (killed? memory or time ran out), or still is",
    "pending": "no job has come to it",
}
LISTED = 50
_TOTALS = ("bags", *STATES, "instances", "bad_tiles", "seconds", "tiles_per_second")


@dataclass(frozen=True)
class StageStatus:
    """What files tell about one stage.

    Attributes:
        manifests: entry of a shard manifest by bag id.
        lines: last status line by bag id.
        worked: last status line by bag id of a job that did the work (did not find it finished).
        working: bags named by jobs that did not come back.
        unreadable: status lines that are no JSON (cut off by a crash).
    """

    manifests: dict[str, dict[str, Any]]
    lines: dict[str, dict[str, Any]]
    worked: dict[str, dict[str, Any]]
    working: set[str]
    unreadable: int


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
    """Reads manifests and status lines of one stage.

    Args:
        folder: of the dataset's results.
        stage: "instances" or "features/ENCODER".

    Raises:
        ValueError: a manifest that is none; the file is named.
    """
    from preprocessing.shards import read_manifest

    manifests: dict[str, dict[str, Any]] = {}
    for path in sorted((folder / stage / "shards").glob("*.json")):
        manifests |= read_manifest(path)
    found = StageStatus(manifests, {}, {}, set(), 0)
    unreadable = 0
    for path in sorted((folder / "status" / stage).glob("*.jsonl")):
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
                bag_id, redone = str(line["bag_id"]), bool(line["redone"])
            except (ValueError, KeyError, TypeError):
                unreadable += bool(text.strip())
                continue
            found.lines[bag_id] = line
            if redone:
                found.worked[bag_id] = line
    for path in (folder / "status" / stage).glob("*.working"):
        found.working.add(path.read_text(encoding="utf-8", errors="replace").strip())
    return StageStatus(manifests, found.lines, found.worked, found.working, unreadable)


def bag_states(rows: Sequence[BagRow], stage: str, found: StageStatus) -> list[dict[str, Any]]:
    """One dictionary with the keys `COLUMNS` per bag of the list."""
    out = []
    for row in rows:
        entry = found.manifests.get(row.bag_id)
        if entry is None and row.bag_id in found.working:
            entry = {"state": "interrupted"}
        entry = entry or found.lines.get(row.bag_id) or {"state": "pending"}
        state, n, work = str(entry["state"]), int(entry.get("n", 0)), found.worked.get(row.bag_id)
        seconds = float(work["seconds"]) if work and state in ("ok", "empty", "failed") else None
        out.append(
            {
                "stage": stage,
                "bag_id": row.bag_id,
                "modality": row.modality,
                "state": state,
                "n": n,
                "bad_tiles": int(entry.get("bad_tiles", 0)),
                "seconds": seconds,
                "tiles_per_second": round(n / seconds, 2) if seconds and n else None,
                "reason": str(entry.get("reason") or REASONS.get(state, "")),
            }
        )
    return out


def total(bags: Iterable[Mapping[str, Any]], stage: str) -> dict[str, Any]:
    """Sums over bags: a number per state, instances, unreadable tiles, seconds of the work done, and its rate."""
    bags = list(bags)
    states = Counter(bag["state"] for bag in bags)
    timed = [bag for bag in bags if bag["seconds"] is not None]
    seconds = sum(bag["seconds"] for bag in timed)
    tiles = sum(bag["n"] for bag in timed)
    return {
        "stage": stage,
        "bags": len(bags),
        **{state: states.get(state, 0) for state in STATES},
        "instances": sum(bag["n"] for bag in bags),
        "bad_tiles": sum(bag["bad_tiles"] for bag in bags),
        "seconds": round(seconds, 3) if timed else None,
        "tiles_per_second": round(tiles / seconds, 2) if seconds and tiles else None,
    }


def summarise(
    dataset: str, rows: Sequence[BagRow], report: Mapping[str, Any], stages: Mapping[str, StageStatus]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The content of `status.json` and the rows of `status.csv`.

    Args:
        dataset: its name.
        rows: of bags.csv.
        report: bags.report.json.
        stages: by name, in the order to show.
    """
    tables = {stage: bag_states(rows, stage, found) for stage, found in stages.items()}
    every = [bag for table in tables.values() for bag in table]
    keys = ("stage", "bag_id", "state", "reason")
    # an instance is counted once, and a rate over different stages says nothing
    once = {"instances": sum(bag["n"] for bag in tables.get("instances", [])), "tiles_per_second": None}
    summary = {
        "dataset": dataset,
        "listed": len(rows),
        "expected": _expected(rows, tables.get("instances", []), report),
        "missing": report.get("missing", []),
        "excluded": report.get("excluded", []),
        "stages": [total(table, stage) for stage, table in tables.items()],
        "total": {**total(every, "all stages"), **once},
        "problems": [{key: bag[key] for key in keys} for bag in every if bag["state"] != "ok"],
        "unreadable_lines": sum(found.unreadable for found in stages.values()),
    }
    return summary, every


def _expected(
    rows: Sequence[BagRow], instances: Sequence[Mapping[str, Any]], report: Mapping[str, Any]
) -> list[list[Any]]:
    """Rows [name, published, found or None], counted as the contact sheet counts them."""
    from preprocessing.qc_facts import BagFacts, count

    states = {bag["bag_id"]: bag for bag in instances}
    facts = [
        BagFacts(row.bag_id, row.modality, row.label, row.split, found["state"], found["n"])
        for row in rows
        if (found := states.get(row.bag_id, {"state": "pending", "n": 0}))
    ]
    expected: list[list[Any]] = count(facts, report)["expected"]
    return expected


def to_csv(bags: Sequence[Mapping[str, Any]]) -> str:
    """Rows of `bag_states` as CSV."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in bag.items()} for bag in bags)
    return stream.getvalue()


def to_markdown(summary: Mapping[str, Any]) -> str:
    """A page for people: stages and their total, counts against the published ones, and what is not ok."""
    lines = [f"# {summary['dataset']}", ""]
    left = ", ".join(f"{len(summary[name])} {name}" for name in ("excluded", "missing"))
    lines += [f"{summary['listed']} bags listed; by the list itself {left}.", ""]
    lines += _table(("stage", *_TOTALS), [*summary["stages"], summary["total"]])
    if summary["expected"]:
        named = [dict(zip(("what", "published", "found"), row, strict=True)) for row in summary["expected"]]
        lines += ["", *_table(("what", "published", "found"), named)]
    if summary["problems"]:
        lines += ["", *_table(("stage", "bag_id", "state", "reason"), summary["problems"])]
    for name in ("excluded", "missing"):
        if summary[name]:
            shown = [f"- {one['name']}: {one['reason']}" for one in summary[name][:LISTED]]
            more = len(summary[name]) - LISTED
            lines += ["", f"{name}:", "", *shown, *([f"- and {more} more, all in status.json"] if more > 0 else [])]
    if summary["unreadable_lines"]:
        lines += [
            "",
            f"{summary['unreadable_lines']} status lines are cut off (a full disk, or a job that was killed).",
        ]
    return "\n".join(lines) + "\n"


def _table(head: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> list[str]:
    cells = [["" if row[name] is None else str(row[name]).replace("|", "\\|") for name in head] for row in rows]
    lines = [" | ".join(one) for one in ([name.replace("_", " ") for name in head], ["---"] * len(head), *cells)]
    return [f"| {line} |" for line in lines]


def _main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m preprocessing.status", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="results of one dataset, e.g. results/panda")
    parser.add_argument("--dataset", help="its name (default: the folder's)")
    parser.add_argument("--encoders", help="encoders to list, separated by commas (default: those that left a trace)")
    parser.add_argument("--out", type=Path, help="folder to write (default: FOLDER/status)")
    args = parser.parse_args(argv)
    from preprocessing.bags import read_bags

    rows = read_bags(args.folder / "bags.csv")
    report_path = args.folder / "bags.report.json"
    report = json.loads(report_path.read_text(encoding="utf-8")) if report_path.is_file() else {}
    if args.encoders is None:
        names = find_stages(args.folder)
    else:
        names = ["instances", *(f"features/{name}" for name in dict.fromkeys(args.encoders.split(",")) if name)]
    stages = {name: read_stage(args.folder, name) for name in names}
    summary, bags = summarise(args.dataset or args.folder.resolve().name, rows, report, stages)
    out = args.out or args.folder / "status"
    write_text(out / "status.csv", to_csv(bags))
    write_text(out / "status.md", to_markdown(summary))
    write_json(out / "status.json", summary)
    log.info("%s: %s", out / "status.md", {name: n for name, n in summary["total"].items() if n})
    return 0


main = guard(_main)

if __name__ == "__main__":
    raise SystemExit(main())
