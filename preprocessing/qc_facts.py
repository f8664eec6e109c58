"""What there is to say about every bag before anyone pays for features, and how odd each bag is.

Oddness of a bag: the largest robust z-score |x - median| / (1.4826 MAD) over its tissue share, the logarithm of its
number of instances, and its lesion share (among bags that have a lesion), each against the other bags of its modality.
Where more than half of the bags are equal (MAD 0) the mean absolute deviation x 1.2533 takes its place. Fewer than
eight bags are not compared. 3.5 and more is called odd (Iglewicz and Hoaglin).
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from preprocessing.bags import BagRow

ODD = 3.5
LEAST_BAGS = 8


@dataclass
class BagFacts:
    """One bag as the sheet shows it.

    Attributes:
        bag_id: its name.
        modality: "wsi" or "ct".
        label: 0, 1 or None.
        split: train, val, test or "".
        state: "ok", "empty", "skipped", "failed" or "missing" (not in any manifest).
        n: number of instances.
        reason: why it is empty or failed.
        tissue_share: tissue area / slide area, None if unknown.
        lesion_share: mean coverage of the instances whose coverage is known, None if none is.
        mpp: um per px at level 0 (slides), None if unknown.
        mpp_source: where it came from.
        warnings: texts.
        oddness: largest robust z-score.
        odd_in: what is odd, e.g. "tissue share".
        facts: further lines for the caption.
    """

    bag_id: str
    modality: str
    label: int | None
    split: str
    state: str
    n: int = 0
    reason: str = ""
    tissue_share: float | None = None
    lesion_share: float | None = None
    mpp: float | None = None
    mpp_source: str = ""
    warnings: list[str] = field(default_factory=list)
    oddness: float = 0.0
    odd_in: str = ""
    facts: list[str] = field(default_factory=list)


def collect(
    rows: Sequence["BagRow"], instances: Path, entries: Mapping[str, Mapping[str, Any]], *, in_progress: bool = False
) -> list[BagFacts]:
    """Reads the store for every bag and scores oddness.

    Args:
        rows: of bags.csv.
        instances: folder with `store/`.
        entries: manifest entry (state, n, reason) per bag id.
        in_progress: True if bags without an entry are simply not done yet.

    Returns:
        One `BagFacts` per row: bags without a picture to trust first (failed, missing, empty), then the oddest first.

    Raises:
        ValueError: a stored bag that is damaged or gone.
    """
    found = []
    for row in rows:
        entry = entries.get(row.bag_id, {"state": "missing", "n": 0, "reason": "in no manifest"})
        if in_progress and entry["state"] == "missing":
            continue
        facts = BagFacts(row.bag_id, row.modality, row.label, row.split, entry["state"], entry["n"], entry["reason"])
        if row.note:
            facts.warnings.append(row.note)
        if not row.annotation_complete:
            facts.warnings.append("annotation incomplete")
        if entry["state"] == "ok":
            _describe(facts, row, instances)
        found.append(facts)
    score_oddness(found)
    first = {"failed": 0, "missing": 1, "empty": 2, "skipped": 3}
    return sorted(found, key=lambda bag: (first.get(bag.state, 4), -bag.oddness, bag.bag_id))


def _describe(facts: BagFacts, row: "BagRow", instances: Path) -> None:
    from preprocessing.check import read_stored
    from preprocessing.store import read_arrays, read_attrs

    attrs = read_stored(read_attrs, instances / "store", facts.bag_id)
    coverage = read_stored(read_arrays, instances / "store", facts.bag_id, ["coverage"], verify=True)["coverage"]
    known = coverage[~np.isnan(coverage)]
    facts.lesion_share = float(known.mean()) if len(known) else None
    if facts.label == 0 and facts.lesion_share:
        facts.warnings.append("negative bag with lesion")
    if facts.label == 1 and row.annotation and row.annotation_complete and facts.lesion_share == 0:
        facts.warnings.append("positive bag, no instance inside the lesion")
    if row.modality == "ct":
        _describe_ct(facts, attrs, coverage)
    else:
        _describe_wsi(facts, attrs, instances / "thumbnails" / f"{facts.bag_id}.json")


def _describe_wsi(facts: BagFacts, attrs: Mapping[str, Any], outlines_path: Path) -> None:
    facts.mpp, facts.mpp_source = attrs.get("mpp"), str(attrs.get("mpp_source") or "")
    outlines = json.loads(outlines_path.read_text(encoding="utf-8")) if outlines_path.is_file() else {}
    facts.tissue_share = tissue_share(outlines, attrs, facts.n)
    marks = [*attrs.get("marks", []), *attrs.get("tissue", {}).get("marks", [])]
    if attrs.get("unreadable_tiles"):
        facts.warnings.append(f"{attrs['unreadable_tiles']} unreadable places of the slide counted as white")
    if attrs.get("overrides"):
        given = (f"{name} {value}" for name, value in sorted(attrs["overrides"].items()))
        facts.facts.append(f"overrides: {', '.join(given)}")
    if "fallback" in marks:
        facts.warnings.append("tissue found only with loosened thresholds")
    if attrs.get("zero_edges"):
        facts.warnings.append("no two tiles are neighbours")
    if facts.mpp is None:
        facts.warnings.append("resolution unknown")
    counts = attrs.get("annotation_counts", {})
    told = [f"{counts[name]} {name}" for name in ("repaired", "dropped") if counts.get(name)]
    if told:
        facts.facts.append(f"lesion outlines: {', '.join(told)}")


def tissue_share(outlines: Mapping[str, Any], attrs: Mapping[str, Any], n: int) -> float | None:
    """Tissue area (contours less holes) / slide area; without contours, tile steps / slide area; None if unknown."""
    # the scanned region, not the canvas around it
    width, height = attrs["bounds"][2:] if "bounds" in attrs else attrs.get("dimensions", (0, 0))
    if not width * height:
        return None
    if outlines.get("tissue"):
        area = sum(map(_area, outlines["tissue"])) - sum(map(_area, outlines.get("holes", [])))
    else:
        area = n * float(attrs.get("l0_step_px", 0)) ** 2
    return float(min(1.0, max(0.0, area / (width * height))))


def _area(ring: Sequence[Sequence[float]]) -> float:
    x, y = np.array(ring, np.float64).reshape(-1, 2).T
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


def _describe_ct(facts: BagFacts, attrs: Mapping[str, Any], coverage: npt.NDArray[np.float32]) -> None:
    spacing = attrs.get("spacing_mm", {})
    low, middle, high = (spacing.get(f"slices_{name}") for name in ("min", "median", "max"))
    if middle is not None:
        facts.facts.append(f"{middle:g} mm apart" if low == high else f"{low:g} to {high:g} mm apart")
    facts.facts.append(f"{int(np.sum(coverage > 0))} of {len(coverage)} slices positive")
    if low is not None and high > 1.5 * max(low, 1e-6):
        facts.warnings.append("unequal slice spacing")
    if attrs.get("slices_at_one_position"):
        facts.warnings.append(f"{attrs['slices_at_one_position']} slices at the position of another")
    if attrs.get("slices_repaired_12bit"):
        facts.warnings.append(f"{attrs['slices_repaired_12bit']} slices repaired (12-bit)")


def robust_z(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Robust z-scores (n,), NaN where the value is NaN, 0 everywhere if all values are equal."""
    known = values[~np.isnan(values)]
    if len(known) == 0:
        return np.full(values.shape, np.nan)
    distance = np.abs(values - np.median(known))
    spread = 1.4826 * float(np.nanmedian(distance)) or 1.2533 * float(np.nanmean(distance))
    return np.asarray(distance / spread if spread else distance * 0.0, np.float64)


def score_oddness(bags: Sequence[BagFacts]) -> None:
    """Fills `oddness` and `odd_in` of all bags in place, per modality; only bags in state "ok" take part."""
    for modality in {bag.modality for bag in bags}:
        own = [bag for bag in bags if bag.modality == modality and bag.state == "ok"]
        columns = {
            "tissue share": [_number(bag.tissue_share) for bag in own],
            "number of instances": [float(np.log(max(bag.n, 1))) for bag in own],
            "lesion share": [_number(bag.lesion_share or None) for bag in own],
        }
        for name, values in columns.items():
            if np.sum(~np.isnan(values)) < LEAST_BAGS:
                continue
            for bag, z in zip(own, robust_z(np.array(values, np.float64)), strict=True):
                if z > bag.oddness:
                    bag.oddness, bag.odd_in = float(z), name


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def choose_shown(bags: Sequence[BagFacts], limit: int) -> list[BagFacts]:
    """At most `limit` bags in the given order: two thirds from its head (the oddest), the rest evenly from the tail."""
    if len(bags) <= limit:
        return list(bags)
    head = (2 * limit + 2) // 3
    tail, rest = list(bags[head:]), limit - head
    return list(bags[:head]) + [tail[(2 * i + 1) * len(tail) // (2 * rest)] for i in range(rest)]


def count(bags: Sequence[BagFacts], report: Mapping[str, Any]) -> dict[str, Any]:
    """Counts of the sheet against what the dataset is known to hold; JSON-able.

    Args:
        bags: all bags.
        report: `bags.report.json`.

    Returns:
        `states`, `splits`, `instances`, `median_instances`, `expected` rows [name, expected, found or None], `problems`
        (bags not ok, with reason), `missing` and `excluded` by name with reason, `notes`, `warnings` (text: bags).
    """
    label = {0: "negative", 1: "positive", None: "unlabelled"}
    found: Counter[str] = Counter({"bags": len(bags), "positive": 0, "negative": 0})
    for bag in bags:
        found.update([bag.split, label[bag.label], f"{bag.split}_{label[bag.label]}"])
        if bag.modality == "ct":
            found.update({"slices": bag.n, f"{bag.split}_slices": bag.n})
    sizes = [bag.n for bag in bags if bag.state == "ok"]
    # a paper counts what it used: bags with instances
    found.update({"paper_bags": len(sizes), "paper_instances": sum(sizes)})
    expected = [[name, number, found.get(name)] for name, number in report.get("expected", {}).items()]
    return {
        "states": dict(Counter(bag.state for bag in bags)),
        "splits": {
            name: n for name, n in sorted(found.items()) if "_" in name and not name.startswith(("_", "paper_"))
        },
        "instances": sum(sizes),
        "median_instances": float(np.median(sizes)) if sizes else 0.0,
        "expected": expected,
        "problems": [
            {"bag_id": bag.bag_id, "state": bag.state, "reason": bag.reason} for bag in bags if bag.state != "ok"
        ],
        "missing": report.get("missing", []),
        "excluded": report.get("excluded", []),
        "notes": report.get("notes", []),
        "warnings": dict(Counter(text for bag in bags for text in bag.warnings)),
    }
