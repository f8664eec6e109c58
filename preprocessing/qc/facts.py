"""Facts about every bag before features are computed, and how much each bag differs from the others.

Oddness of a bag: the largest robust z-score |x - median| / (1.4826 MAD) over its tissue share, the logarithm of its
number of instances, and its lesion share (among bags that have a lesion), each against the other bags of its modality.
Where more than half of the bags are equal (MAD 0) the mean absolute deviation x 1.2533 takes its place. Fewer than
eight bags are not compared. 3.5 and more is called odd (Iglewicz and Hoaglin).
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median_low

import numpy as np
import numpy.typing as npt

from preprocessing.bags.manifests import ManifestEntry
from preprocessing.bags.rows import BagRow
from preprocessing.common.options import ArtefactName
from preprocessing.instances.checks import warnings_of
from preprocessing.store.attrs import AnnotationCounts, InstanceAttrs, SliceSpacing
from preprocessing.store.bags import read_arrays, read_instance_attrs, read_stored
from preprocessing.store.outlines import Outlines, Ring
from preprocessing.tiling.artefacts import ARTEFACTS, warnings_of_artefacts

ODD = 3.5
# Objectives of 40x and 20x differ by 2, of 40x and 10x by 4; mistaken units by 10 or 2.54.
RESOLUTION_SPREAD = 5.0
LEAST_BAGS = 8
LABELS = {0: "negative", 1: "positive", None: "unlabelled"}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BagFacts:
    """One bag as the sheet shows it.

    Attributes:
        state: of the manifest, or "missing" (not in any manifest).
        n: number of instances.
        tissue_share: tissue area / slide area, None if unknown.
        lesion_share: mean coverage of the instances whose coverage is known, None if none is.
        mpp: um per px at level 0 (slides), None if unknown; `mpp_source` is where it came from.
        oddness: largest robust z-score.
        odd_in: what is odd, e.g. "tissue share".
        odd_value, odd_median: of the bag and of the bags it was compared with.
        recipe: "clam" or "panda", "" if unknown.
        artefacts: share of the tissue by kind; None = nobody looked.
        odd_resolution: whether its resolution is far from that of the others.
        facts: further lines for the caption.
        annotation: what became of the objects of its annotation file.
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
    warnings: tuple[str, ...] = ()
    oddness: float = 0.0
    odd_in: str = ""
    odd_value: float = 0.0
    odd_median: float = 0.0
    recipe: str = ""
    artefacts: Mapping[ArtefactName, float] | None = None
    odd_resolution: bool = False
    facts: tuple[str, ...] = ()
    annotation: AnnotationCounts = AnnotationCounts()

    @property
    def is_odd(self) -> bool:
        """Whether it differs from the other bags."""
        return self.oddness >= ODD

    @property
    def why_odd(self) -> str:
        """Why it is odd."""
        sizes = self.odd_in not in ("tissue share", "lesion share")
        value, median = (f"{v:,.0f}" if sizes else f"{v:.2g}" for v in (self.odd_value, self.odd_median))
        return f"{self.odd_in} {value}, median of the cohort {median}"

    @property
    def artefact_warnings(self) -> list[ArtefactName]:
        """Kinds of artefacts that cover much of the tissue."""
        return [name for name, share in (self.artefacts or {}).items() if ARTEFACTS[name].warning(share)]

    @property
    def label_text(self) -> str:
        """Its label for people."""
        return LABELS[self.label]

    @property
    def chips(self) -> list[str]:
        """Label, split and size."""
        unit = "slices" if self.modality == "ct" else "tiles"
        return [text for text in (self.label_text, self.split, f"{self.n:,} {unit}") if text]

    @property
    def summary(self) -> str:
        """Tissue and lesion in percent, where they are known, or the state of a bag that is not ok."""
        if self.state != "ok":
            return self.state
        lesion = "positive" if self.modality == "ct" else "lesion"
        shares = (("tissue", self.tissue_share), (lesion, self.lesion_share))
        texts = [f"{name} {100 * share:.3g} %" for name, share in shares if share is not None]
        return " · ".join(texts or self.facts[:1])

    @property
    def lines(self) -> list[str]:
        """What its card says, without the alerts; artefacts are named from one percent of the tissue on."""
        shares = [(ARTEFACTS[name].title, share) for name, share in (self.artefacts or {}).items()]
        artefacts = ", ".join(f"{title} {100 * share:.2g} %" for title, share in shares if share >= 0.01)
        source = "from the file" if self.mpp_source.startswith("openslide") else self.mpp_source or "source unknown"
        mpp = "" if self.mpp is None else f"{self.mpp:.4g} µm/px ({source})"
        more = self.facts[:2] if self.state == "ok" else [self.reason]
        return [line for line in dict.fromkeys([self.summary, artefacts, *more, mpp]) if line]

    @property
    def alerts(self) -> list[str]:
        """What is odd about it, and its warnings."""
        return [*([self.why_odd] if self.is_odd else []), *self.warnings]


def collect(rows: Sequence[BagRow], instances: Path, entries: Mapping[str, ManifestEntry]) -> list[BagFacts]:
    """Read the store in the folder `instances` for every row of bags.csv, and score oddness.

    Returns:
        One `BagFacts` per row: bags without a picture to trust first (failed, missing, empty), then those with most
        warnings, then the oddest.

    Raises:
        ValueError: A stored bag is damaged or gone.
    """
    bags = []
    # without any outlines, none is expected
    outlined = any(row.annotation for row in rows)
    for row in rows:
        entry = entries.get(row.bag_id)
        warnings = [row.note] if row.note else []
        if outlined and not row.annotation_complete:
            warnings.append("annotation incomplete")
        outcome = ("missing", 0, "in no manifest") if entry is None else (entry.state, entry.n, entry.reason)
        warnings += entry.warnings if entry else ()
        bag = BagFacts(row.bag_id, row.modality, row.label, row.split, *outcome, warnings=tuple(warnings))
        bags.append(_describe(bag, row, instances) if bag.state == "ok" else bag)
    first = {"failed": 0, "missing": 1, "empty": 2, "skipped": 3}
    scored = score_oddness(compare_resolution(bags))
    return sorted(scored, key=lambda bag: (first.get(bag.state, 4), -len(bag.warnings), -bag.oddness, bag.bag_id))


def _describe(bag: BagFacts, row: BagRow, instances: Path) -> BagFacts:
    attrs = read_stored(read_instance_attrs, instances / "store", bag.bag_id)
    coverage = read_stored(read_arrays, instances / "store", bag.bag_id, ["coverage"], verify=True)["coverage"]
    known = coverage[~np.isnan(coverage)]
    share = float(known.mean()) if len(known) else None
    warnings = [*bag.warnings, *warnings_of(attrs)]
    if bag.label == 0 and share:
        warnings.append("negative bag with lesion")
    if bag.label == 1 and row.annotation and row.annotation_complete and share == 0:
        warnings.append("positive bag, no instance inside the lesion")
    if row.modality == "ct":
        texts = tuple(dict.fromkeys(warnings))
        return replace(bag, lesion_share=share, warnings=texts, facts=_facts_of_scan(attrs, coverage))
    outlines = Outlines.read(instances, bag.bag_id)
    warnings += warnings_of_artefacts(outlines.artefacts)
    return replace(
        bag,
        lesion_share=share,
        warnings=tuple(dict.fromkeys(warnings)),
        facts=_facts_of_slide(attrs),
        mpp=attrs.mpp,
        mpp_source=attrs.mpp_source,
        tissue_share=tissue_share(outlines, attrs, bag.n),
        annotation=attrs.annotation_counts,
        recipe=attrs.recipe,
        artefacts=None if outlines.artefacts is None else {k: area.share for k, area in outlines.artefacts.items()},
    )


def _facts_of_slide(attrs: InstanceAttrs) -> tuple[str, ...]:
    counts = attrs.annotation_counts
    overrides = ", ".join(f"{name} {value}" for name, value in sorted(attrs.overrides.items()))
    drawn = {"self-crossing": counts.self_crossing, **{f"{k} ignored": n for k, n in counts.ignored_classes.items()}}
    outlines = ", ".join(f"{n} {text}" for text, n in drawn.items() if n)
    return tuple(f"{what}: {text}" for what, text in (("overrides", overrides), ("annotation", outlines)) if text)


def _facts_of_scan(attrs: InstanceAttrs, coverage: npt.NDArray[np.float32]) -> tuple[str, ...]:
    """Return the distance of the slices, where it is known, and how many are positive; `coverage` is (N,)."""
    spacing = attrs.spacing_mm or SliceSpacing()
    ends = [f"{value:.4g}" for value in (spacing.slices_min, spacing.slices_max) if value is not None]
    apart = [] if spacing.slices_median is None else [f"{' to '.join(dict.fromkeys(ends))} mm apart"]
    return (*apart, f"{int(np.sum(coverage > 0))} of {len(coverage)} slices positive")


def tissue_share(outlines: Outlines, attrs: InstanceAttrs, n: int) -> float | None:
    """Return the tissue's share of the scanned area, in [0, 1], or None if it is unknown.

    Without outlines of tissue, the area of `n` tile steps counts.
    """
    width, height = attrs.bounds[2:] if attrs.bounds else attrs.dimensions or (0, 0)
    if not width * height:
        return None
    if outlines.tissue:
        area = sum(map(_area, outlines.tissue)) - sum(map(_area, outlines.holes))
    else:
        area = n * float(attrs.l0_step_px) ** 2
    return float(min(1.0, max(0.0, area / (width * height))))


def compare_resolution(bags: Sequence[BagFacts]) -> list[BagFacts]:
    """Add a warning to the slides far from the median, if resolutions differ by more than a factor of five.

    Far is a factor of sqrt(5), so at least one of the two extremes is named.
    """
    known = [bag.mpp for bag in bags if bag.mpp is not None]
    if not known or max(known) <= RESOLUTION_SPREAD * min(known):
        return list(bags)
    median, far, compared = median_low(known), math.sqrt(RESOLUTION_SPREAD), list[BagFacts]()
    for bag in bags:
        if bag.mpp is not None and not 1 / far <= bag.mpp / median <= far:
            warning = f"{bag.mpp:.4g} um/px, but the median of all slides is {median:.4g}: is the resolution right?"
            log.warning("%s: %s", bag.bag_id, warning)
            bag = replace(bag, warnings=(*bag.warnings, warning), odd_resolution=True)
        compared.append(bag)
    return compared


def _area(ring: Ring) -> float:
    x, y = np.array(ring, np.float64).reshape(-1, 2).T
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


def robust_z(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return robust z-scores (n,), NaN where the value is NaN, 0 everywhere if all values are equal."""
    distance = np.abs(values - np.nanmedian(values))
    # 1.4826 and 1.2533 make both equal to the standard deviation of a normal distribution
    spread = 1.4826 * float(np.nanmedian(distance)) or 1.2533 * float(np.nanmean(distance))
    return np.asarray(distance / spread if spread else distance * 0.0, np.float64)


def score_oddness(bags: Sequence[BagFacts]) -> list[BagFacts]:
    """Return the bags with `oddness` and `odd_in` set, per modality; only bags in state "ok" take part."""
    scored = list(bags)
    for modality in {bag.modality for bag in bags}:
        where = [i for i, bag in enumerate(bags) if bag.modality == modality and bag.state == "ok"]
        columns = {
            "tissue share": [bags[i].tissue_share for i in where],
            "number of instances": [float(np.log(max(bags[i].n, 1))) for i in where],
            "lesion share": [bags[i].lesion_share or None for i in where],
        }
        for name, column in columns.items():
            values = np.array(column, np.float64)
            if np.sum(~np.isnan(values)) < LEAST_BAGS:
                continue
            middle = float(np.nanmedian(values))
            for i, z, value in zip(where, robust_z(values), values.tolist(), strict=True):
                if z > scored[i].oddness:
                    logarithmic = name == "number of instances"
                    of_bag, of_all = (math.exp(value), math.exp(middle)) if logarithmic else (value, middle)
                    scored[i] = replace(scored[i], oddness=float(z), odd_in=name, odd_value=of_bag, odd_median=of_all)
    return scored


def choose_shown(bags: Sequence[BagFacts], limit: int) -> list[BagFacts]:
    """Return at most `limit` bags in order: two thirds from the head (the oddest), the rest evenly from the tail."""
    if len(bags) <= limit:
        return list(bags)
    head = (2 * limit + 2) // 3
    tail, rest = list(bags[head:]), limit - head
    return list(bags[:head]) + [tail[(2 * i + 1) * len(tail) // (2 * rest)] for i in range(rest)]
