"""RSNA 2019: group slices into scans and choose the scans for training and test.

Sampling sorts by a hash of seed and name, which gives the same scans on every machine and version. All scans of a
patient are in one part; patient identifiers are used for nothing else.
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

from pydantic import Field

from preprocessing.datasets.base import Findings, Options
from preprocessing.scans.dicom import read_identity

log = logging.getLogger(__name__)

_PARALLEL_FROM = 4_000


class RsnaOptions(Options):
    """Options of RSNA: lists of scans, and what is sampled without them."""

    test_list: str | None = Field(None, description="the path of a CSV list of scans")
    train_list: str | None = Field(None, description="the path of a CSV list of scans")
    scans: int = Field(1_150, ge=1, description="an integer >= 1")
    seed: int = Field(0, ge=0, description="an integer >= 0")
    test_share: float = Field(150 / 1_150, gt=0, lt=1, description="a share between 0 and 1")


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


def _identity(folder: Path, name: str) -> tuple[str, str, str] | str:
    try:
        return read_identity(folder / name, name)
    except ValueError as error:
        return str(error)


def _identities(folder: Path, names: Sequence[str]) -> list[tuple[str, str, str] | str]:
    """Return study, series and patient of every file, or the reason why it cannot be read."""
    read: Callable[[str], tuple[str, str, str] | str] = partial(_identity, folder)
    workers = min(8, os.cpu_count() or 1)
    if len(names) >= _PARALLEL_FROM and workers > 1:
        try:
            with ProcessPoolExecutor(workers) as pool:
                return list(pool.map(read, names, chunksize=500))
        except BrokenProcessPool:
            log.warning("a process that read headers was killed (out of memory?); reading them one after the other")
    return [read(name) for name in names]


def group_scans(folder: Path, names: Sequence[str]) -> tuple[list[Scan], dict[str, str]]:
    """Group the named slices of a folder by study and series, from their headers.

    Returns:
        Scans sorted by bag_id (a hash of the study, numbered if it has several series), and the unreadable files with
        the reason.
    """
    studies: dict[str, dict[str, list[str]]] = {}
    patients: dict[tuple[str, str], str] = {}
    broken: dict[str, str] = {}
    for name, identity in zip(names, _identities(folder, names), strict=True):
        if isinstance(identity, str):
            broken[name] = identity
            continue
        study, uid, patient = identity
        patients[study, uid] = patient
        studies.setdefault(study, {}).setdefault(uid, []).append(name)
    scans = []
    for study, series in studies.items():
        stem = "scan_" + hashlib.sha1(study.encode(), usedforsecurity=False).hexdigest()[:12]
        for number, (uid, slices) in enumerate(sorted(series.items()), start=1):
            bag_id = stem if len(series) == 1 else f"{stem}.{number}"
            scans.append(Scan(bag_id, tuple(sorted(slices)), patients[study, uid]))
    return sorted(scans, key=lambda scan: scan.bag_id), broken


def scans_of_list(listed: Iterable[Listed], scans: Sequence[Scan], findings: Findings) -> list[Scan]:
    """Return the listed scans that are on disk, with the list's names and only the slices it lists."""
    by_slice = {name: scan for scan in scans for name in scan.slices}
    matched = []
    for item in listed:
        slices = [name for name in item.slices if name in by_slice]
        sources = {by_slice[name].bag_id: by_slice[name] for name in slices}
        if len(sources) != 1:
            reason = f"its slices belong to {len(sources)} series" if sources else "none of its slices is readable"
            findings.excluded[item.name] = f"listed scan, {reason}"
            continue
        (scan,) = sources.values()
        if len(slices) < len(scan.slices):
            findings.notes.append(f"{item.name}: the list has {len(slices)} of the {len(scan.slices)} slices on disk")
        order = item.slices if item.ordered else ()
        matched.append(Scan(item.name, tuple(sorted(slices)), scan.patient, order, item.label))
    return matched


def choose(
    scans: Sequence[Scan],
    labels: Mapping[str, int],
    test: Sequence[Scan] | None,
    train: Sequence[Scan] | None,
    options: RsnaOptions,
    findings: Findings,
) -> dict[str, tuple[Scan, str]]:
    """Choose the scans to use: bag_id -> (scan, "train" or "test").

    Args:
        scans: all scans on disk.
        labels: slice name without suffix -> 0 or 1.
        test: scans of the test list; None = sampled.
        train: scans of the training list; None = sampled.
        options: number of scans, seed, share of a sampled test part.
        findings: receives the scans left out, with the reason.
    """
    held_out = [scan for scan in test or () if _labelled(scan, labels, findings)]
    if train is not None:
        rest = [scan for scan in train if _labelled(scan, labels, findings)]
    else:
        taken = {name for scan in held_out for name in scan.slices}
        rest = [s for s in scans if taken.isdisjoint(s.slices) and _labelled(s, labels, findings)]
    patients = {scan.patient for scan in held_out if scan.patient}
    leaking = {scan.bag_id for scan in rest if scan.patient in patients}
    findings.excluded |= dict.fromkeys(leaking, "its patient is also in the test part")
    rest = [scan for scan in rest if scan.bag_id not in findings.excluded]
    if test is None:
        rest = _sample(rest, labels, options.scans, options.seed)
        held_out = _part(rest, labels, round(options.test_share * len(rest)), options.seed)
    elif train is None:
        rest = _sample(rest, labels, max(0, options.scans - len(held_out)), options.seed)
    return {scan.bag_id: (scan, "train") for scan in rest} | {scan.bag_id: (scan, "test") for scan in held_out}


def _labelled(scan: Scan, labels: Mapping[str, int], findings: Findings) -> bool:
    if any(Path(name).stem in labels for name in scan.slices):
        return True
    findings.excluded[scan.bag_id] = "no slice of it has a label"
    return False


def _label(scan: Scan, labels: Mapping[str, int]) -> int:
    return max(labels.get(Path(name).stem, 0) for name in scan.slices)


def _rank(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()


def _quota(scans: Sequence[Scan], labels: Mapping[str, int], number: int) -> dict[int, int]:
    """Return label -> scans for a sample of `number` scans with the label shares of all."""
    positives = sum(_label(scan, labels) for scan in scans)
    share = round(number * positives / len(scans)) if scans else 0
    return {1: min(share, positives), 0: min(number - share, len(scans) - positives)}


def _sample(scans: Sequence[Scan], labels: Mapping[str, int], number: int, seed: int) -> list[Scan]:
    """Draw `number` scans with the label shares of all."""
    if number >= len(scans):
        return list(scans)
    quota = _quota(scans, labels, number)
    sample = []
    for scan in sorted(scans, key=lambda s: _rank(seed, s.bag_id)):
        label = _label(scan, labels)
        if quota[label] > 0:
            quota[label] -= 1
            sample.append(scan)
    return sample


def _part(scans: Sequence[Scan], labels: Mapping[str, int], number: int, seed: int) -> list[Scan]:
    """Draw about `number` scans of whole patients, never more of a label than its share."""
    patients: dict[str, list[Scan]] = {}
    for scan in scans:
        patients.setdefault(scan.patient or scan.bag_id, []).append(scan)
    quota = _quota(scans, labels, number)
    part: list[Scan] = []
    # ranked by the first scan, not by the identifier, so that no identifier decides the split
    for group in sorted(patients.values(), key=lambda group: min(_rank(seed + 1, s.bag_id) for s in group)):
        needed = {label: sum(_label(s, labels) == label for s in group) for label in quota}
        if all(needed[label] <= quota[label] for label in quota):
            part += group
            quota = {label: quota[label] - needed[label] for label in quota}
    return part
