"""Quality control of one dataset: look at the masks before paying for features.

Writes `index.html` (one file, readable on a phone: every bag or, of a large dataset, the oddest and a sample),
`contact-sheet.jpg` (the first 48 at a glance) and `counts.json` (states, counts against what the dataset is known to
hold). Bags that failed or are empty come first, with their reason, then those with warnings
(`preprocessing.instances.checks`), then the oddest (`preprocessing.qc.facts`).

Run alone:
    python -m preprocessing.qc --dataset D --bags bags.csv --report bags.report.json --instances results/D/instances
        --manifests results/D/instances/shards/*.json --out results/D/qc
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from preprocessing.bags.manifests import read_entries
from preprocessing.bags.report import ListReport
from preprocessing.bags.table import read_bags
from preprocessing.common.files import write_bytes, write_json, write_text
from preprocessing.common.webpage import data_uri, render
from preprocessing.qc.counts import Counts, count
from preprocessing.qc.draw import COLOURS, LEGEND, contact_sheet, draw_bag, jpeg
from preprocessing.qc.facts import BagFacts, choose_shown, collect

log = logging.getLogger(__name__)

THUMBNAIL_PX = 440


@dataclass(frozen=True)
class Sheet:
    """What the sheet of a dataset shows.

    Attributes:
        counts: of all bags.
        bags: all bags, in the order to show.
        cards: those with a card.
    """

    counts: Counts
    bags: list[BagFacts]
    cards: list[BagFacts]


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
) -> Sheet:
    """Write page, contact sheet and counts of a dataset.

    Args:
        dataset: its name.
        bags: bags.csv.
        report: bags.report.json.
        instances: folder of the instances stage.
        manifests: its shard manifests.
        out: folder to write.
        max_bags: thumbnails in the page, the oddest and a sample.
        command: recorded with the counts.

    Raises:
        ValueError: a file is missing or damaged.
    """
    facts = collect(read_bags(bags), instances, read_entries(manifests))
    cards = choose_shown(facts, max_bags)
    counts = count(dataset, facts, ListReport.read(report), shown=len(cards), command=command)
    sheet = Sheet(counts, facts, cards)
    title = f"{dataset}: {len(facts)} bags, {counts.instances:,} instances; oddest first"
    write_bytes(out / "contact-sheet.jpg", jpeg(contact_sheet(instances, cards, title), 82))
    write_json(out / "counts.json", asdict(counts))
    write_text(out / "index.html", sheet_page(sheet, instances))
    log.info("%s: %d bags, %d shown, states %s", out / "index.html", len(facts), counts.shown, counts.states)
    return sheet


def sheet_page(sheet: Sheet, instances: Path) -> str:
    """Return the HTML of a sheet; `instances` is the folder with `store/` and `thumbnails/`."""
    intact = [bag for bag in sheet.cards if bag.state in ("ok", "empty")]
    thumbnails = {bag.bag_id: draw_bag(instances, bag, THUMBNAIL_PX) for bag in intact}
    return render(
        "sheet.html.j2",
        Path(__file__).parent / "templates",
        title=f"Quality control: {sheet.counts.dataset}",
        **vars(sheet),
        pictures={name: data_uri(jpeg(picture), "jpeg") for name, picture in thumbnails.items() if picture is not None},
        colours={text: COLOURS[name] for name, text in LEGEND.items()},
    )
