"""The JSON beside a picture: `FigureEntry` per figure, `MapEntry` per map and `MapsFile` per folder of maps."""

from collections.abc import Mapping

from smmil.artifacts.records import Record
from smmil.config.methods import marked_name


class Picture(Record):
    """A picture as the report shows it; `files` starts with the PNG, `runs` are the runs in the picture."""

    title: str
    caption: str
    notes: tuple[str, ...] = ()
    files: tuple[str, ...]
    runs: tuple[str, ...] = ()
    protocol: str = ""
    random_weights: bool = False
    command: str = ""
    stage_version: int = 0


class MissingRuns(Record):
    """How many runs of a layout have no metrics; `where` has (method, number of its missing runs) by dataset title."""

    expected: int
    missing: int
    where: Mapping[str, tuple[tuple[str, int], ...]]

    @property
    def text(self) -> str:
        """One line for the head of the picture, "" if nothing is missing."""
        return f"{self.missing} of {self.expected} runs are missing" if self.missing else ""

    @property
    def notes(self) -> list[str]:
        """The same with names, for the caption."""
        parts = [
            f"{title}: {', '.join(f'{marked_name(method)} ({n})' for method, n in rows)}"
            for title, rows in self.where.items()
        ]
        return [f"{self.text}. {'; '.join(parts)}."] if self.missing else []


class FigureEntry(Picture):
    """`{figure}.json`; `figure` is a key of `smmil.figures.__main__.DRAWERS`.

    `empty` says why the picture of existing runs shows nothing, "" otherwise; the report leaves such a figure out.
    """

    figure: str
    datasets: tuple[str, ...]
    missing: MissingRuns
    empty: str = ""


class MapEntry(Picture):
    """`{bag}.json`: the map of one bag; in `maps.json` without command and stage version."""

    bag_id: str
    label: int | None
    file: str


class MapsFile(Record):
    """`maps.json`: the maps of one dataset and encoder."""

    dataset: str
    encoder: str
    maps: tuple[MapEntry, ...]
    notes: tuple[str, ...] = ()
    command: str
    stage_version: int = 0
