"""The tables of docs/reference/input.md, made from the cases of the tests.

`python -m tests.corpus` writes them into the page.
"""

import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydicom.uid import UID

from tests.preprocessing.datasets import test_dicom_folders as folders
from tests.preprocessing.datasets import test_manifest_faults as manifests
from tests.preprocessing.scans import test_codecs as codecs
from tests.preprocessing.scans import test_dicom as slices
from tests.preprocessing.scans import test_series as series
from tests.preprocessing.slides import test_inspect as slides
from tests.preprocessing.slides import test_mpp as resolutions
from tests.preprocessing.slides import test_pyramid as levels
from tests.preprocessing.tiling import test_outline_files as outlines

PAGE = Path(__file__).resolve().parents[1] / "docs/reference/input.md"
START, END = "<!-- tables of the tests: `python -m tests.corpus` -->\n", "<!-- end of the tables -->\n"
READ = "read"
Table = dict[str, str]


def saying(outcome: str, pattern: str) -> str:
    """Return an outcome with its message, from the pattern by which a test knows the message."""
    text = pattern.replace("(?s)", "").replace(".*", " ... ")
    text = re.sub(r"\s+", " ", re.sub(r"\\(.)", r"\1", text)).strip()
    return f"{outcome}: " + (f"`` {text} ``" if "`" in text else f"`{text}`")


def refused(case: str | tuple[Any, ...]) -> str:
    """Return the refusal of a case, which is its message or ends with it."""
    return saying("refused", case if isinstance(case, str) else case[-1])


def each(cases: Mapping[str, Any], outcome: Callable[[Any], str] = refused) -> Table:
    """Return property -> outcome of a table of cases."""
    return {name: outcome(case) for name, case in cases.items()}


def level(case: levels.Levels) -> str:
    return saying("read without that level, warned", case.warned.rpartition(".*")[2]) if case.warned else READ


def shape(case: tuple[Any, float, dict[str, int] | None]) -> str:
    _, area, numbers = case
    unused = sorted(set(numbers or {}) - {"lesion", "exclusion"})
    counted = f"counted as {', '.join(f'`{name}`' for name in unused)}" if unused else ""
    return "; ".join(filter(None, ["used" if area else "", counted])) or "no lesion"


def named(uid: str) -> str:
    """Return the name of a transfer syntax and its UID."""
    return f"{UID(uid).keyword} `{uid}`".strip()


def syntaxes() -> Table:
    read = [*slices.UNCOMPRESSED, codecs.RLELossless, *(case[0] for case in (codecs.LOSSLESS | codecs.LOSSY).values())]
    table = {named(uid): READ for uid in read}
    unreadable = {named(uid): refused("transfer syntax ... gdcmconv --raw") for uid in codecs.NO_DECODER}
    return table | unreadable


def litter() -> Table:
    with tempfile.TemporaryDirectory() as folder:
        reasons = folders.litter(Path(folder))
    others = {name: reason for name, reason in reasons.items() if reason not in ("localizer", "Modality SR")}
    return {f"`{name}`": saying("left out", reason) for name, reason in others.items()}


def tables() -> dict[str, Table]:
    """Return all tables by their title."""
    reconstructions = {
        f"{name} ({case[0]})": refused("two reconstructions or acquisitions in one series")
        for name, case in series.RECONSTRUCTIONS.items()
    }
    return {
        "Slides: resolution": each(
            resolutions.ACCEPTED, lambda case: saying("used, warned", case[2]) if case[2] else "used"
        )
        | each(resolutions.REFUSED),
        "Slides: pictures and levels": each(levels.LEVELS, level) | each(slides.PICTURES),
        "Slides: samples": each(
            slides.SAMPLES, lambda case: refused(case.result) if isinstance(case.result, str) else READ
        ),
        "Slides: compression": each(slides.LOSSLESS, lambda _: READ)
        | {"JPEG": READ}
        | each(slides.UNREADABLE, lambda case: refused(case[1].partition(") ")[2])),
        "Slides: files that are none": each(slides.NO_SLIDES) | {"slide that is cut off": refused(slides.CUT_OFF)},
        "Scans: slices and series": {
            **each(slices.REFUSED),
            **reconstructions,
            "two reconstructions, one above the other": READ,
        },
        "Scans: what else lies in the folder": each(series.LEFT_OUT, lambda case: saying("left out", case[1]))
        | litter(),
        "Scans: transfer syntaxes": syntaxes(),
        "Annotations: objects": each(outlines.SHAPES, shape),
        "Annotations: files": each(outlines.FAULTS),
        "Manifests": {
            **each(manifests.HARMLESS, lambda _: READ),
            **each(manifests.NOTED, lambda message: saying("read, noted in the report", message)),
            **each(manifests.REFUSED),
            **each(manifests.SLICE_LABELS),
        },
        "Paths": {
            **{f"DICOM files with names that hold {', '.join(folders.NAMES)}": READ},
            **each(manifests.PATHS),
            **each(manifests.UNREADABLE, lambda case: saying("this bag fails", f"no readable image: ... {case[1]}")),
        },
    }


def rows(table: Table) -> Iterable[str]:
    """Yield the lines of a table; properties with one outcome share a line."""
    by_outcome: dict[str, list[str]] = {}
    for name, outcome in table.items():
        by_outcome.setdefault(outcome, []).append(name)
    yield "| property | what happens |\n|---|---|\n"
    for outcome, names in by_outcome.items():
        yield f"| {'; '.join(names)} | {outcome} |\n"


def markdown() -> str:
    """Return the tables as they stand between the marks."""
    return "\n".join(f"### {title}\n\n{''.join(rows(table))}" for title, table in tables().items())


def updated(page: str) -> str:
    """Return the page with the tables of now."""
    head, _, rest = page.partition(START)
    return head + START + "\n" + markdown() + "\n" + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
