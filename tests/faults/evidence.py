"""Inspect results folders: finished work, whether it was repeated, and whether two folders are equal.

A finished piece has an identity that changes when it is made again: inode and time of a file that is always replaced
as a whole, or the line of an epoch in a log, which includes the seconds that the epoch took.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from smmil.artifacts.runs import load_state
from tests.helpers.train_helpers import timeless

# wall times, names of processes, and hidden files of killed writers, which are never read
VOLATILE = re.compile(
    r"/(logs|benchmarks|status|\.locks|\.tmp)/|/\.[^/]+\.tmp$|/resources\.|/report/|/log\.jsonl$|/state\.pt$"
)
FILES = {
    "bag": ("*/instances/store/[!.]*/zarr.json", "*/features/*/store/[!.]*/zarr.json"),
    "prediction": ("*/predictions/*/*/*.npz",),
}


def finished_work(results: Path) -> dict[str, str]:
    """Return the identity of every finished bag, epoch, run and prediction by `kind path`; no job may be running."""
    found = {
        f"{kind} {path.relative_to(results)}": identity(path)
        for kind, patterns in FILES.items()
        for pattern in patterns
        for path in results.glob(pattern)
    }
    for log in results.glob("*/runs/*/*/*/log.jsonl"):
        name = str(log.parent.relative_to(results))
        rows = [line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
        if (log.parent / "done.json").exists():
            found[f"run {name}"] = identity(log.parent / "best.safetensors")
            reached = len(rows) + 1
        else:
            state = load_state(log.parent / "state.pt")
            reached = state["cursor"]["epoch"] if state else 1
        # the state of the last row may not have been saved; only that epoch may be lost
        assert len(rows) < reached + 1, f"{name}: {len(rows)} epochs logged, the state begins with {reached}"
        found |= {f"epoch {name} {number}": row for number, row in enumerate(rows[: reached - 1], start=1)}
    return found


def identity(path: Path) -> str:
    """Return a text that changes when the file is replaced or written."""
    stat = path.stat()
    return f"{stat.st_ino} {stat.st_mtime_ns}"


def redone(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Return the pieces that are missing or were made again."""
    return sorted(name for name, kept in before.items() if after.get(name) != kept)


def kinds(names: Iterable[str]) -> Counter[str]:
    """Count finished pieces by kind."""
    return Counter(name.split(" ")[0] for name in names)


def differences(ours: Path, theirs: Path) -> list[str]:
    """Return the result files that differ or exist on one side only; epoch logs are compared without their seconds."""
    trees = [{str(p.relative_to(root)): p for p in root.rglob("*") if p.is_file()} for root in (ours, theirs)]
    mine, others = ({name: path for name, path in tree.items() if not VOLATILE.search(f"/{name}")} for tree in trees)
    wrong = [f"{name}: on one side only" for name in sorted(mine.keys() ^ others.keys())]
    wrong += [n for n in sorted(mine.keys() & others.keys()) if mine[n].read_bytes() != others[n].read_bytes()]
    logs = [{n: timeless(p) for n, p in tree.items() if n.endswith("/log.jsonl")} for tree in trees]
    return wrong + [name for name in sorted(logs[0].keys() | logs[1].keys()) if logs[0].get(name) != logs[1].get(name)]


def usual_seconds(house: Path, rule: str) -> float:
    """Return the shortest duration of the jobs of a rule from its benchmark files, 1 s without any."""
    found = []
    for path in (house / "results/benchmarks" / rule).rglob("*.tsv"):
        with path.open(encoding="utf-8") as stream:
            found += [float(row["s"]) for row in csv.DictReader(stream, delimiter="\t")]
    return min(found, default=1.0)
