"""RSNA 2019: slices into scans, and the choice of scans for training and test.

Sampling sorts by a hash of seed and name, so the same scans come out on every machine and version. No patient stands on
both sides; patient identifiers serve only to see that.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from preprocessing.datasets.base import Report

log = logging.getLogger(__name__)

_PARALLEL_FROM = 4_000


@dataclass(frozen=True)
class Listed:
    """A scan of a published list: its slices (in anatomical order if `ordered`), `label` "0", "1" or ""."""

    name: str
    slices: tuple[str, ...]
    ordered: bool
    label: str


@dataclass(frozen=True)
class Scan:
    """One series on disk: slices sorted by name; `order` and `label` as a list claims them."""

    bag_id: str
    slices: tuple[str, ...]
    patient: str
    order: tuple[str, ...] = ()
    label: str = ""


class Settings(Protocol):
    """What `choose` needs of the options."""

    @property
    def test(self) -> tuple[Listed, ...] | None:
        """Published test scans."""

    @property
    def train(self) -> tuple[Listed, ...] | None:
        """Published training scans."""

    @property
    def scans(self) -> int:
        """Scans in all."""

    @property
    def seed(self) -> int:
        """Seed of the sample."""

    @property
    def test_share(self) -> float:
        """Share of the scans that a sampled test part gets."""


def _identity(folder: Path, name: str) -> tuple[str, str, str] | str:
    from preprocessing.scans.dicom import read_identity

    try:
        return read_identity(folder / name, name)
    except ValueError as error:
        return str(error)


def _identities(folder: Path, names: Sequence[str]) -> list[tuple[str, str, str] | str]:
    read: Callable[[str], tuple[str, str, str] | str] = partial(_identity, folder)
    workers = min(8, os.cpu_count() or 1)
    if len(names) < _PARALLEL_FROM or workers == 1:
        return [read(name) for name in names]
    try:
        with ProcessPoolExecutor(workers) as pool:
            return list(pool.map(read, names, chunksize=500))
    except BrokenProcessPool:
        log.warning("a process that read headers was killed (too little memory?); reading them one after the other")
        return [read(name) for name in names]


def group_scans(folder: Path, names: Sequence[str]) -> tuple[list[Scan], dict[str, str]]:
    """Groups slices by study and series, from their headers.

    Args:
        folder: where the files are.
        names: their names.

    Returns:
        Scans sorted by bag_id (a hash of the study, with a running number if it has several series), and the
        unreadable files with the reason.
    """
    series: dict[tuple[str, str], list[str]] = {}
    patients: dict[tuple[str, str], str] = {}
    broken: dict[str, str] = {}
    for name, found in zip(names, _identities(folder, names), strict=True):
        if isinstance(found, str):
            broken[name] = found
            continue
        series.setdefault(found[:2], []).append(name)
        patients[found[:2]] = found[2]
    studies: dict[str, list[str]] = {}
    for study, uid in sorted(series):
        studies.setdefault(study, []).append(uid)
    scans = []
    for study, uids in studies.items():
        stem = "scan_" + hashlib.sha1(study.encode(), usedforsecurity=False).hexdigest()[:12]
        for number, uid in enumerate(uids, start=1):
            bag_id = stem if len(uids) == 1 else f"{stem}.{number}"
            scans.append(Scan(bag_id, tuple(sorted(series[study, uid])), patients[study, uid]))
    return sorted(scans, key=lambda scan: scan.bag_id), broken


def scans_of_list(listed: Iterable[Listed], scans: Sequence[Scan], report: Report) -> list[Scan]:
    """Finds the listed scans on disk; they keep the list's name, and only the slices it lists."""
    by_slice = {name: scan for scan in scans for name in scan.slices}
    found = []
    for item in listed:
        kept = [name for name in item.slices if name in by_slice]
        homes = {by_slice[name].bag_id: by_slice[name] for name in kept}
        if len(homes) != 1:
            reason = "none of its slices is readable" if not homes else f"its slices belong to {len(homes)} series"
            report.excluded[item.name] = f"listed scan, {reason}"
            continue
        (home,) = homes.values()
        if len(kept) < len(home.slices):
            report.notes.append(f"{item.name}: the list has {len(kept)} of the {len(home.slices)} slices on disk")
        order = item.slices if item.ordered else ()
        found.append(Scan(item.name, tuple(sorted(kept)), home.patient, order, item.label))
    return found


def choose(
    scans: Sequence[Scan],
    labels: Mapping[str, int],
    test: Sequence[Scan],
    train: Sequence[Scan],
    settings: Settings,
    report: Report,
) -> dict[str, tuple[Scan, str]]:
    """Decides which scans are used, and in which part.

    Args:
        scans: all scans on disk.
        labels: slice name without suffix -> 0 or 1.
        test: scans of the test list, if there is one.
        train: scans of the training list, if there is one.
        settings: the options.
        report: gets the scans left out for a reason.

    Returns:
        bag_id -> (scan, "train" or "test").
    """
    held = [scan for scan in test if _labelled(scan, labels, report)]
    if settings.train is not None:
        rest = [scan for scan in train if _labelled(scan, labels, report)]
    else:
        taken = {name for scan in held for name in scan.slices}
        rest = [s for s in scans if taken.isdisjoint(s.slices) and _labelled(s, labels, report)]
    patients = {scan.patient for scan in held if scan.patient}
    for scan in rest:
        if scan.patient in patients:
            report.excluded[scan.bag_id] = "its patient is also in the test part"
    rest = [scan for scan in rest if scan.bag_id not in report.excluded]
    if settings.test is None:
        rest = _sample(rest, labels, settings.scans, settings.seed)
        held = _part(rest, labels, round(settings.test_share * len(rest)), settings.seed)
        chosen = {scan.bag_id for scan in held}
        rest = [scan for scan in rest if scan.bag_id not in chosen]
    elif settings.train is None:
        rest = _sample(rest, labels, max(0, settings.scans - len(held)), settings.seed)
    picked = {scan.bag_id: (scan, "train") for scan in rest}
    return picked | {scan.bag_id: (scan, "test") for scan in held}


def _labelled(scan: Scan, labels: Mapping[str, int], report: Report) -> bool:
    if any(Path(name).stem in labels for name in scan.slices):
        return True
    report.excluded[scan.bag_id] = "no slice of it has a label"
    return False


def _label(scan: Scan, labels: Mapping[str, int]) -> int:
    return max(labels.get(Path(name).stem, 0) for name in scan.slices)


def _rank(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()


def _quota(scans: Sequence[Scan], labels: Mapping[str, int], number: int) -> dict[int, int]:
    positives = sum(_label(scan, labels) for scan in scans)
    share = round(number * positives / len(scans)) if scans else 0
    return {1: min(share, positives), 0: min(number - share, len(scans) - positives)}


def _sample(scans: Sequence[Scan], labels: Mapping[str, int], number: int, seed: int) -> list[Scan]:
    """`number` scans with the label shares of all."""
    if number >= len(scans):
        return list(scans)
    left = _quota(scans, labels, number)
    taken = []
    for scan in sorted(scans, key=lambda s: _rank(seed, s.bag_id)):
        label = _label(scan, labels)
        if left[label] > 0:
            left[label] -= 1
            taken.append(scan)
    return taken


def _part(scans: Sequence[Scan], labels: Mapping[str, int], number: int, seed: int) -> list[Scan]:
    """About `number` scans of whole patients, never more of a label than its share."""
    patients: dict[str, list[Scan]] = {}
    for scan in scans:
        patients.setdefault(scan.patient or scan.bag_id, []).append(scan)
    left = _quota(scans, labels, number)
    taken: list[Scan] = []
    # ranked by the first scan, not by the identifier, so that no identifier decides the split
    for own in sorted(patients.values(), key=lambda group: min(_rank(seed + 1, s.bag_id) for s in group)):
        need = {label: sum(_label(s, labels) == label for s in own) for label in left}
        if all(need[label] <= left[label] for label in left):
            taken += own
            left = {label: left[label] - need[label] for label in left}
    return taken
