"""The section of the report that shows results bag by bag: curves, calibration, confusion, wrong bags, patients."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from markupsafe import Markup

from preprocessing.common.webpage import thumbnail
from smmil.analysis.records import Analysis, MethodAnalysis, PatientAnalysis, WrongBag
from smmil.config.methods import marked_name

MOST_BAGS = 12
THUMBNAIL_BOX = (150, 120)
CAPTIONS = {
    "roc": "Mean over the splits, with the mean AUROC; band: smallest and largest split. Runs are not pooled, because "
    "their logits have no common scale.",
    "precision-recall": "Mean over the splits, with the mean average precision. Dotted: share of positive bags.",
    "reliability": "Bags of all splits in bins of equal size. On the diagonal, probabilities are as large as the share "
    "of positive bags; grey: 95 % of perfectly calibrated bins of that size.",
    "confusion": "Test bags called positive where the logit is above 0, mean over the splits; share of each row below.",
    "distribution": "Test bags of all splits by probability. Dotted: the threshold.",
}


@dataclass(frozen=True)
class Picture:
    """An inline SVG and its file."""

    svg: Markup
    path: Path


@dataclass(frozen=True)
class BagLine:
    """A wrong bag: its record, its thumbnail as (data URI, width, height), if any, and the command that opens it."""

    bag: WrongBag
    picture: tuple[str, int, int] | None
    command: str

    @property
    def methods(self) -> list[str]:
        """Each method with its mean probability and its wrong runs."""
        texts = []
        for calls in self.bag.methods:
            wrong = f" ({calls.wrong} of {calls.runs} wrong)" if calls.wrong else ""
            texts.append(f"{marked_name(calls.method)} {calls.probability:.2f}{wrong}")
        return texts


@dataclass(frozen=True)
class BagResults:
    """The part of one dataset.

    Attributes:
        rows, patient_rows: method, AUROC, sensitivity and specificity, by bag and by patient.
        groups: the charts by group of methods.
        captions: how to read each kind of chart, by its title.
        bags: the worst wrong bags.
        path: `predictions.csv` of the results.
    """

    analysis: Analysis
    title: str
    rows: Sequence[Sequence[str]]
    patient_rows: Sequence[Sequence[str]]
    groups: Mapping[str, Sequence[Picture]]
    captions: Mapping[str, str]
    bags: Sequence[BagLine]
    path: Path


def bag_results(path: Path, analysis: Analysis, titles: Mapping[str, str]) -> BagResults:
    """Prepare the part of one dataset from its `analysis.json`, with the pictures beside; `titles` by dataset."""
    folder, results = path.parent, results_folder(path, "analysis")
    groups: dict[str, list[Picture]] = {}
    for chart in analysis.charts:
        svg = inline_svg(folder / chart.file, f"{chart.title}. {chart.group}")
        groups.setdefault(chart.group, []).append(Picture(svg, folder / chart.file))
    bags = [
        BagLine(
            bag, thumbnail(folder / bag.picture, THUMBNAIL_BOX) if bag.picture else None, view_command(results, bag.bag)
        )
        for bag in analysis.wrong_bags[:MOST_BAGS]
    ]
    return BagResults(
        analysis,
        titles.get(analysis.dataset, analysis.dataset),
        [_row(entry) for entry in analysis.methods],
        [_row(entry) for entry in analysis.patients],
        groups,
        {chart.title: CAPTIONS[chart.kind] for chart in analysis.charts},
        bags,
        results / "tables/predictions.csv",
    )


def results_folder(path: Path, stage: str) -> Path:
    """Return RESULTS of a file RESULTS/DATASET/STAGE/ENCODER/FILE."""
    # the name of an encoder of timm has a slash, so its folders are two
    return next((parent for parent in path.parents if parent.name == stage), path.parent).parent.parent


def view_command(results: Path, bag_id: str) -> str:
    """Return the command that opens a bag in the viewer."""
    return shlex.join(["smmil", "view", str(results), "--bag", bag_id])


def _row(entry: MethodAnalysis | PatientAnalysis) -> tuple[str, ...]:
    sensitivities = [split.sensitivity for split in entry.confusion if split.sensitivity is not None]
    specificities = [split.specificity for split in entry.confusion if split.specificity is not None]
    return marked_name(entry.method), *map(_spread, (entry.auroc, sensitivities, specificities))


def _spread(values: Sequence[float]) -> str:
    """Return the mean and the range over the splits, "–" without values."""
    if not values:
        return "–"
    low, high = min(values), max(values)
    return f"{fmean(values):.3f}" + (f" ({low:.3f} to {high:.3f})" if high > low else "")


def inline_svg(path: Path, label: str) -> Markup:
    """Return an SVG file of matplotlib for a page: without prolog, size and names that nothing refers to.

    Raises:
        ValueError: the file is missing or holds no SVG.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such picture; draw it again")
    text = path.read_text("utf-8")
    start = text.find("<svg")
    if start < 0:
        raise ValueError(f"{path}: not an SVG file; draw it again")
    used = set(re.findall(r"#([\w-]+)", text))
    body = re.sub(r' id="([\w-]+)"', lambda match: match[0] if match[1] in used else "", text[start:])
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    view = re.search(r'viewBox="[^"]+"', body)
    head = Markup('<svg {} role="img" aria-label="{}" xmlns:xlink="http://www.w3.org/1999/xlink">').format(
        Markup(view[0] if view else ""), label
    )
    # a file of this program, not input
    return head + Markup(body[body.index(">") + 1 :].strip())  # noqa: S704
