"""Quality control of one dataset: look at the masks before paying for features.

Writes `index.html` (one file, readable on a phone: every bag or, of a large dataset, the oddest and a sample),
`contact-sheet.jpg` (the first 48 at a glance) and `counts.json` (states, counts against what the dataset is known to
hold). Sorted by oddness (`preprocessing.qc_facts`); bags that failed or are empty come first, with their reason.

Run alone:
    python -m preprocessing.qc --dataset D --bags bags.csv --report bags.report.json --instances results/D/instances
        --manifests results/D/instances/shards/*.json --out results/D/qc
"""

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from preprocessing.cli import guard, read_record, write_bytes, write_json, write_text
from preprocessing.qc_counts import Counts, ListReport, count
from preprocessing.qc_facts import BagFacts, choose_shown, collect

log = logging.getLogger(__name__)

STAGE_VERSION = 2
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
    from preprocessing.bags import read_bags
    from preprocessing.shards import read_manifest

    entries: dict[str, dict[str, Any]] = {}
    for path in args.manifests:
        entries |= read_manifest(path)
    bags = collect(read_bags(args.bags), args.instances, entries)
    shown = choose_shown(bags, args.max_bags)
    report = read_record(ListReport, args.report)
    return Sheet(count(args.dataset, bags, report, shown=len(shown), command=command), bags, shown)


def sheet_page(sheet: Sheet, instances: Path) -> str:
    """Return the HTML of a sheet; `instances` is the folder with `store/` and `thumbnails/`."""
    from preprocessing.qc_draw import COLOURS, LEGEND, draw_bag, jpeg
    from preprocessing.webpage import data_uri, render

    drawn = {bag.bag_id: draw_bag(instances, bag, THUMBNAIL_PX) for bag in sheet.shown if bag.state in ("ok", "empty")}
    return render(
        "sheet.html.j2",
        title=f"Quality control: {sheet.counts.dataset}",
        **vars(sheet),
        pictures={name: data_uri(jpeg(picture), "jpeg") for name, picture in drawn.items() if picture is not None},
        colours={text: COLOURS[name] for name, text in LEGEND.items()},
    )


def _main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m preprocessing.qc", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--dataset", required=True, help="its name")
    parser.add_argument("--bags", required=True, type=Path, help="bags.csv")
    parser.add_argument("--report", required=True, type=Path, help="bags.report.json")
    parser.add_argument("--instances", required=True, type=Path, help="folder of the instances stage")
    parser.add_argument("--manifests", nargs="*", default=[], type=Path, help="shard manifests of the instances stage")
    parser.add_argument("--max-bags", type=int, default=200, help="thumbnails in the page, the oddest and a sample")
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    given = sys.argv[1:] if argv is None else list(argv)
    args = parser.parse_args(given)
    if args.max_bags < 1:
        raise ValueError(f"--max-bags: found {args.max_bags}, expected at least 1")
    from preprocessing.qc_draw import contact_sheet, jpeg

    sheet = gather(args, shlex.join(["python", "-m", "preprocessing.qc", *given]))
    counts = sheet.counts
    title = f"{args.dataset}: {len(sheet.bags)} bags, {counts.instances:,} instances; oddest first"
    write_bytes(args.out / "contact-sheet.jpg", jpeg(contact_sheet(args.instances, sheet.shown, title), 82))
    write_json(args.out / "counts.json", asdict(counts))
    write_text(args.out / "index.html", sheet_page(sheet, args.instances))
    log.info("%s: %d bags, %d shown, states %s", args.out / "index.html", len(sheet.bags), counts.shown, counts.states)
    return 0


main = guard(_main)

if __name__ == "__main__":
    raise SystemExit(main(None))
