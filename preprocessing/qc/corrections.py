"""How to correct a bag: lines for the file of `source: {overrides: FILE.csv}`, see `preprocessing.bags.overrides`."""

import csv
import io
from typing import NamedTuple

from preprocessing.qc.facts import BagFacts

# One header for all lines, so that lines of several bags can be pasted below each other.
COLUMNS = ("bag_id", "skip", "exclude", "mask", "sthresh", "fallback", "mpp")
HEADER = ",".join(COLUMNS)
STRICTER, LOOSER = 30, 8


class Correction(NamedTuple):
    """One way to correct a bag: what it does, and a line of the CSV file."""

    text: str
    line: str


def _line(**cells: str) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="").writerow([cells.get(name, "") for name in COLUMNS])
    return stream.getvalue()


def corrections(bag: BagFacts, recipe: str, mpp: float | None) -> list[Correction]:
    """Return the corrections that make sense for a bag, the most likely first.

    Args:
        bag: the bag.
        recipe: "clam", or "panda", whose windows have no thresholds.
        mpp: median of the dataset, um per px.
    """
    name, ways = bag.bag_id, list[Correction]()
    if bag.modality == "wsi" and bag.state in ("ok", "empty"):
        if bag.artefact_warnings:
            excluded = " ".join(bag.artefact_warnings)
            ways.append(Correction(f"leave out the tiles on {excluded}", _line(bag_id=name, exclude=excluded)))
        if bag.odd_resolution and mpp is not None:
            ways.append(Correction("if the file states a wrong resolution", _line(bag_id=name, mpp=f"{mpp:.4g}")))
        odd = bag.odd_in == "tissue share" and bag.is_odd
        if recipe == "clam" and (bag.state == "empty" or (odd and bag.odd_value < bag.odd_median)):
            ways.append(Correction("find paler tissue", _line(bag_id=name, sthresh=str(LOOSER), fallback="true")))
        elif recipe == "clam" and odd:
            ways.append(Correction("take less glass for tissue", _line(bag_id=name, sthresh=str(STRICTER))))
        drawn = _line(bag_id=name, mask=f"masks/{name}.geojson")
        ways.append(Correction("outline the tissue yourself in QuPath", drawn))
    ways.append(Correction("leave it out (write why)", _line(bag_id=name, skip=bag.reason or "looked at: not usable")))
    return ways
