"""Write `analysis.json` and its pictures for one dataset and encoder."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from smmil.analysis.build import analyse
from smmil.analysis.charts import draw_charts
from smmil.analysis.long_tables import prediction_rows
from smmil.analysis.records import WrongBag
from smmil.artifacts.records import PredictionIndex
from smmil.config import stage_versions


def write_analysis(
    out: Path, indexes: Sequence[Path], bags: Mapping[str, Path], instances: Path | None, command: str = ""
) -> None:
    """Write the analysis of the predictions of some methods.

    Args:
        out: JSON to write; the pictures are written beside it.
        indexes: `index.json` of each method, at least one, on one dataset and encoder.
        bags: bags.csv by dataset, for the patients.
        instances: folder with `thumbnails/`; None = no thumbnails.
        command: command line, for the record.
    """
    records = [PredictionIndex.read(index) for index in indexes]
    analysis = analyse(records[0].dataset, records[0].encoder, prediction_rows(indexes, bags))
    random = any(record.random_weights for record in records)
    wrong = tuple(_with_picture(bag, instances, out.parent) for bag in analysis.wrong_bags)
    analysis = analysis.model_copy(update={"random_weights": random, "wrong_bags": wrong})
    out.parent.mkdir(parents=True, exist_ok=True)
    charts = draw_charts(analysis, out.parent)
    stamps = {"charts": charts, "command": command, "stage_version": stage_versions.ANALYSIS}
    analysis.model_copy(update=stamps).write(out)


def _with_picture(bag: WrongBag, instances: Path | None, folder: Path) -> WrongBag:
    path = instances / "thumbnails" / f"{bag.bag}.jpg" if instances else None
    if path is None or not path.is_file():
        return bag
    return bag.model_copy(update={"picture": Path(os.path.relpath(path, folder)).as_posix()})
