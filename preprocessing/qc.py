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
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from preprocessing.cli import guard, write_bytes, write_json, write_text

log = logging.getLogger(__name__)

STAGE_VERSION = 1
THUMBNAIL_PX = 440


def sheet_page(
    dataset: str, bags: Sequence[Any], shown: Sequence[Any], counts: Mapping[str, Any], instances: Path
) -> str:
    """The HTML of the sheet.

    Args:
        dataset: its name.
        bags: all `BagFacts`.
        shown: those to embed.
        counts: of `preprocessing.qc_facts.count`.
        instances: folder with `store/` and `thumbnails/`.
    """
    from preprocessing import webpage
    from preprocessing.qc_draw import COLOURS

    colours = {name: f"rgb{value}" for name, value in COLOURS.items()}
    names = {"tissue": "tissue", "holes": "hole", "tiles": "kept tile", "lesion": "lesion"}
    key = "".join(f'<i style="border-color:{colours[name]}"></i>{text}' for name, text in names.items())
    part = (
        f"All {len(bags)} bags"
        if len(shown) == len(bags)
        else f"{len(shown)} of {len(bags)} bags, the oddest and a sample"
    )
    order = "failed and empty bags first, then by oddness (largest robust z-score of tissue share, size, lesion share)"
    cards = "".join(card(bag, instances) for bag in shown)
    slides = any(bag.modality == "wsi" for bag in shown)
    legend = f'<p class="key">Outlines:{key}</p>' if slides else "<p>Red frames: positive slices.</p>"
    body = counts_section(counts) + f"<h2>Bags</h2><p>{escape(part)}; {escape(order)}.</p>{legend}"
    return webpage.page(f"Quality control: {dataset}", f'{body}<div class="cards">{cards}</div>', header=_alarm(counts))


def _alarm(counts: Mapping[str, Any]) -> str:
    from preprocessing import webpage

    bad = [f"{number} {state}" for state, number in sorted(counts["states"].items()) if state != "ok"]
    return webpage.warning(f"Bags without instances: {', '.join(bad)}. See below.", bad=True) if bad else ""


def counts_section(counts: Mapping[str, Any], heading: str = "<h2>Counts</h2>") -> str:
    """Counts, differences and exclusions as markup below `heading`; also used by the report."""
    from preprocessing import webpage

    states, total = counts["states"], sum(counts["states"].values())
    rows: list[tuple[str, object]] = [("bags", total), *((f"… {state}", n) for state, n in sorted(states.items()))]
    rows += [("instances", counts["instances"]), ("median per bag", counts["median_instances"])]
    rows += [(name.replace("_", ", "), number) for name, number in counts["splits"].items()]
    text = heading + webpage.table(["what", "found"], rows)
    if counts["expected"]:
        marked = [
            (name, expected, "not counted here" if found is None else found)
            for name, expected, found in counts["expected"]
        ]
        text += "<p>Against the published dataset:</p>" + webpage.table(["what", "published", "found"], marked)
    problems = [(one["bag_id"], one["state"], one["reason"]) for one in counts["problems"]]
    lists: dict[str, tuple[list[str], list[tuple[Any, ...]]]] = {
        "Bags without instances": (["bag", "state", "reason"], problems),
        "Missing from the folder": (["name", "reason"], [(one["name"], one["reason"]) for one in counts["missing"]]),
        "Excluded": (["name", "reason"], [(one["name"], one["reason"]) for one in counts["excluded"]]),
        "Warnings": (["warning", "bags"], sorted(counts["warnings"].items())),
    }
    for title, (head, lines) in lists.items():
        if lines:
            cut = f"<p>… and {len(lines) - 50} more, all in counts.json.</p>" if len(lines) > 50 else ""
            text += f"<details{' open' if title.startswith('Bags') else ''}><summary>{title} ({len(lines)})</summary>"
            text += f"{webpage.table(head, lines[:50])}{cut}</details>"
    return text + "".join(f"<p>{escape(note)}</p>" for note in counts["notes"])


def card(bag: Any, instances: Path) -> str:
    """One bag: picture (or reason), name, facts, warnings."""
    from preprocessing import webpage
    from preprocessing.qc_draw import draw_bag, jpeg, short_caption
    from preprocessing.qc_facts import ODD

    drawn = draw_bag(instances, bag, THUMBNAIL_PX) if bag.state in ("ok", "empty") else None
    if drawn is None:
        top = f'<div class="none">{escape(bag.reason or "no thumbnail")}</div>'
    else:
        source = webpage.data_uri(jpeg(drawn), "jpeg")
        top = f'<img src="{source}" alt="{escape(bag.bag_id, quote=True)}" loading="lazy">'
    odd = bag.oddness >= ODD
    label = {0: "negative", 1: "positive", None: "unlabelled"}[bag.label]
    unit = "slices" if bag.modality == "ct" else "tiles"
    chips = [(label, " pos" if bag.label == 1 else ""), (bag.split, ""), (f"{bag.n:,} {unit}", "")]
    lines = [short_caption(bag)[1], *bag.facts[:2]] if bag.state == "ok" else [bag.state.upper(), bag.reason]
    if bag.mpp is not None:
        lines.append(f"{bag.mpp:.4g} µm/px ({bag.mpp_source or 'source unknown'})")
    alerts = [*([f"odd {bag.odd_in}: z = {bag.oddness:.1f}"] if odd else []), *bag.warnings]
    text = "".join(f"<p>{escape(line)}</p>" for line in dict.fromkeys(lines) if line)
    text += "".join(f'<p class="alert">⚠ {escape(alert)}</p>' for alert in alerts)
    marks = "".join(f'<span class="chip{style}">{escape(chip)}</span>' for chip, style in chips if chip)
    kinds = f"card {bag.modality}{' odd' if odd or bag.warnings else ''} {bag.state if bag.state != 'ok' else ''}"
    text = f'<div class="text"><b>{escape(bag.bag_id)}</b><p>{marks}</p>{text}</div>'
    return f'<div class="{kinds.strip()}">{top}{text}</div>'


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
    import json

    from preprocessing.bags import read_bags
    from preprocessing.qc_draw import contact_sheet, jpeg
    from preprocessing.qc_facts import choose_shown, collect, count
    from preprocessing.shards import read_manifest

    entries: dict[str, dict[str, Any]] = {}
    for path in args.manifests:
        entries |= read_manifest(path)
    bags = collect(read_bags(args.bags), args.instances, entries)
    counts = count(bags, json.loads(args.report.read_text(encoding="utf-8")))
    shown = choose_shown(bags, args.max_bags)
    command = shlex.join(["python", "-m", "preprocessing.qc", *given])
    title = f"{args.dataset}: {len(bags)} bags, {counts['instances']:,} instances; oddest first"
    write_bytes(args.out / "contact-sheet.jpg", jpeg(contact_sheet(args.instances, shown, title), 82))
    write_json(args.out / "counts.json", {"dataset": args.dataset, "shown": len(shown), "command": command, **counts})
    write_text(args.out / "index.html", sheet_page(args.dataset, bags, shown, counts, args.instances))
    log.info("%s: %d bags, %d shown, states %s", args.out / "index.html", len(bags), len(shown), counts["states"])
    return 0


main = guard(_main)

if __name__ == "__main__":
    raise SystemExit(main(None))
