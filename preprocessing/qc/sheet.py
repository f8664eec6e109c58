"""Quality control of one dataset: look at the masks before paying for features.

Writes `index.html` (one file, readable on a phone: every bag or, of a large dataset, the oddest and a sample),
`contact-sheet.jpg` (the first 48 at a glance) and `counts.json` (states, counts against what the dataset is known to
hold). Bags that failed or are empty come first, with their reason, then those with warnings
(`preprocessing.instances.checks`), then the oddest (`preprocessing.qc.facts`).
"""

import csv
import io
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median_low
from typing import NamedTuple

from preprocessing.bags.manifests import read_entries
from preprocessing.bags.report import ListReport
from preprocessing.bags.rows import SPLITS
from preprocessing.bags.table import read_bags
from preprocessing.common.files import write_bytes, write_json, write_text
from preprocessing.common.webpage import data_uri, render
from preprocessing.qc.counts import Counts, count, without_numbers
from preprocessing.qc.draw import COLOURS, LEGEND, contact_sheet, draw_bag, jpeg
from preprocessing.qc.facts import LABELS, BagFacts, choose_shown, collect
from preprocessing.qc.plots import HEIGHT, WIDTH, plots
from preprocessing.tiling.artefacts import ARTEFACTS

log = logging.getLogger(__name__)

THUMBNAIL_PX = 640
# One header for all lines, so that lines of several bags can be pasted below each other.
CORRECTION_COLUMNS = ("bag_id", "skip", "exclude", "mask", "sthresh", "fallback", "mpp")
HEADER = ",".join(CORRECTION_COLUMNS)
STRICTER, LOOSER = "30", "8"


def write_sheet(
    dataset: str,
    bags: Path,
    report: Path,
    instances: Path,
    manifests: Sequence[Path],
    out: Path,
    *,
    max_bags: int = 200,
    command: str = "",
) -> None:
    """Write page, contact sheet and counts of a dataset into the folder `out`; the command line says what the rest is.

    `command` is recorded with the counts.
    """
    facts = collect(read_bags(bags), instances, read_entries(manifests))
    cards = choose_shown(facts, max_bags)
    counts = count(dataset, facts, ListReport.read(report), shown=len(cards), command=command)
    title = f"{dataset}: {len(facts)} bags, {counts.instances:,} instances; oddest first"
    write_bytes(out / "contact-sheet.jpg", jpeg(contact_sheet(instances, cards, title), 82))
    write_json(out / "counts.json", asdict(counts))
    write_text(out / "index.html", sheet_page(counts, facts, cards, instances))
    log.info("%s: %d bags, %d shown, states %s", out / "index.html", len(facts), counts.shown, counts.states)


def sheet_page(counts: Counts, bags: Sequence[BagFacts], cards: Sequence[BagFacts], instances: Path) -> str:
    """Return the HTML of a sheet of all bags, in the order to show, and those of them with a card."""
    intact = [bag for bag in cards if bag.state in ("ok", "empty")]
    thumbnails = {bag.bag_id: draw_bag(instances, bag, THUMBNAIL_PX) for bag in intact}
    recipe = next((bag.recipe for bag in bags if bag.recipe), "clam")
    mpp = [bag.mpp for bag in bags if bag.mpp is not None]
    median_mpp = median_low(mpp) if mpp else None
    kinds = {name for bag in cards for name in bag.artefact_warnings}
    artefacts = {kind.title: kind.colour for name, kind in ARTEFACTS.items() if name in kinds}
    return render(
        "sheet.html.j2",
        Path(__file__).parent / "templates",
        title=f"Quality control: {counts.dataset}",
        counts=counts,
        bags=bags,
        cards=cards,
        pictures={name: data_uri(jpeg(picture), "jpeg") for name, picture in thumbnails.items() if picture is not None},
        colours={text: COLOURS[name] for name, text in LEGEND.items()},
        artefacts=artefacts,
        places={bag.bag_id: number for number, bag in enumerate(cards)},
        plots=plots(bags),
        plot_size=(WIDTH, HEIGHT),
        header=HEADER,
        corrections={bag.bag_id: corrections(bag, recipe, median_mpp) for bag in cards},
        groups={bag.bag_id: [without_numbers(text) for text in bag.warnings] for bag in cards},
        warned=sorted(counts.warned.items(), key=lambda item: (-len(item[1]), item[0])),
        table=split_table(bags),
    )


def split_table(bags: Sequence[BagFacts]) -> list[tuple[str | int, ...]]:
    """Count bags by split and label: a row of headings, one row per split, and the sum if there are several."""
    counted = Counter((bag.split or "no split", LABELS[bag.label]) for bag in bags)
    labels = [label for label in LABELS.values() if any(key[1] == label for key in counted)]
    known = {split: place for place, split in enumerate(SPLITS)}
    splits = sorted({split for split, _ in counted}, key=lambda split: (known.get(split, len(known)), split))
    rows: list[tuple[str | int, ...]] = [("", *labels)]
    rows += [(split, *(counted[split, label] for label in labels)) for split in splits]
    if len(splits) > 1:
        rows.append(("all", *(sum(counted[split, label] for split in splits) for label in labels)))
    return rows


class Correction(NamedTuple):
    """One way to correct a bag: what it does, and a line of the CSV file."""

    text: str
    line: str


def _line(**cells: str) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="").writerow([cells.get(name, "") for name in CORRECTION_COLUMNS])
    return stream.getvalue()


def corrections(bag: BagFacts, recipe: str, mpp: float | None) -> list[Correction]:
    """Return the corrections that make sense for a bag, the most likely first.

    `recipe` is "clam", or "panda", whose windows have no thresholds; `mpp` is the median of the dataset, um per px.
    """
    is_cut = bag.modality == "wsi" and bag.state in ("ok", "empty")
    excluded = " ".join(bag.artefact_warnings)
    odd = bag.odd_in == "tissue share" and bag.is_odd
    low = bag.state == "empty" or (odd and bag.odd_value < bag.odd_median)
    ways = (
        (is_cut and excluded, f"leave out the tiles on {excluded}", {"exclude": excluded}),
        (is_cut and bag.odd_resolution and mpp, "if the file states a wrong resolution", {"mpp": f"{mpp or 0:.4g}"}),
        (is_cut and recipe == "clam" and low, "find paler tissue", {"sthresh": LOOSER, "fallback": "true"}),
        (is_cut and recipe == "clam" and odd and not low, "take less glass for tissue", {"sthresh": STRICTER}),
        (is_cut, "outline the tissue yourself in QuPath", {"mask": f"masks/{bag.bag_id}.geojson"}),
        (True, "leave it out (write why)", {"skip": bag.reason or "looked at: not usable"}),
    )
    return [Correction(text, _line(bag_id=bag.bag_id, **cells)) for applies, text, cells in ways if applies]
