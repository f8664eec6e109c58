"""Quality control of one dataset: look at the masks before paying for features.

Writes `index.html` (one file, readable on a phone: every bag or, of a large dataset, the oddest and a sample),
`contact-sheet.jpg` (the first 48 at a glance) and `counts.json` (states, counts against what the dataset is known to
hold). Sorted by oddness (`preprocessing.qc.facts`); bags that failed or are empty come first, with their reason.

Run alone:
    python -m preprocessing.qc --dataset D --bags bags.csv --report bags.report.json --instances results/D/instances
        --manifests results/D/instances/shards/*.json --out results/D/qc
"""

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path

from preprocessing.bags.manifests import read_entries
from preprocessing.bags.report import ListReport
from preprocessing.bags.table import read_bags
from preprocessing.qc.counts import Counts, count
from preprocessing.qc.facts import BagFacts, choose_shown, collect

log = logging.getLogger(__name__)

THUMBNAIL_PX = 440


@dataclass(frozen=True)
class Sheet:
    """What the sheet of a dataset shows.

    Attributes:
        counts: of all bags.
        bags: all bags, in the order to show.
        shown: those with a card.
    """

    counts: Counts
    bags: list[BagFacts]
    shown: list[BagFacts]


def gather(args: argparse.Namespace, command: str) -> Sheet:
    """Read everything that the command line names; `command` is recorded.

    Raises:
        ValueError: A file is missing or damaged.
    """
    bags = collect(read_bags(args.bags), args.instances, read_entries(args.manifests))
    shown = choose_shown(bags, args.max_bags)
    report = ListReport.read(args.report)
    return Sheet(count(args.dataset, bags, report, shown=len(shown), command=command), bags, shown)


def sheet_page(sheet: Sheet, instances: Path) -> str:
    """Return the HTML of a sheet; `instances` is the folder with `store/` and `thumbnails/`."""
    from preprocessing.common.webpage import data_uri, render
    from preprocessing.qc.draw import COLOURS, LEGEND, draw_bag, jpeg

    drawn = {bag.bag_id: draw_bag(instances, bag, THUMBNAIL_PX) for bag in sheet.shown if bag.state in ("ok", "empty")}
    return render(
        "sheet.html.j2",
        Path(__file__).parent / "templates",
        title=f"Quality control: {sheet.counts.dataset}",
        **vars(sheet),
        pictures={name: data_uri(jpeg(picture), "jpeg") for name, picture in drawn.items() if picture is not None},
        colours={text: COLOURS[name] for name, text in LEGEND.items()},
    )
