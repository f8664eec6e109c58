"""Predict many slides or scans with one run or several, and write one table.

Every image has a folder of its own with the files of `smmil.predict.pipeline`; with several runs, a folder per run in
it. The table is written again after every image, so that what is finished is kept.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Literal

from preprocessing.bags.rows import printable
from preprocessing.bags.shards import one_line
from preprocessing.common.cli import Abort, raise_all
from preprocessing.common.csv_files import read_csv
from preprocessing.common.files import DISK_ERRORS
from preprocessing.datasets.custom import WSI_SUFFIXES
from preprocessing.exchange.tables import bag_id_of, write_csv
from preprocessing.scans.folder import DICOM_SUFFIXES, is_dicom
from smmil.predict.pipeline import Preparation, check_models, predict_runs
from smmil.predict.settings import Model

log = logging.getLogger(__name__)

TABLE = "predictions.csv"


@dataclass(frozen=True)
class Image:
    """One image to predict.

    Attributes:
        path: slide file, folder of DICOM files (`FOLDER#3`: SeriesNumber 3), or a .dcm file.
        bag_id: its name in table and folders, unique.
        mpp: um per px at level 0, None = the file's.
    """

    path: Path
    bag_id: str
    mpp: float | None = None


@dataclass(frozen=True)
class Row:
    """One line of `predictions.csv`.

    Attributes:
        state: "ok", "empty" without tissue, "refused", or "failed" with an error that nobody expected.
        probabilities: run -> probability.
        reason: why there is none.
    """

    image: Image
    state: Literal["ok", "empty", "refused", "failed"]
    probabilities: Mapping[str, float | None] = field(default_factory=dict)
    reason: str = ""
    warnings: tuple[str, ...] = ()


def find_images(paths: Iterable[Path], *, bag_id: str | None = None, mpp: float | None = None) -> list[Image]:
    """Return the images of a command line.

    Args:
        paths: images; folders with slides and scans at any depth; CSV tables with the column `image`, relative to the
            table, and optional `bag_id` and `mpp`.
        bag_id: name of the image, of a single one.
        mpp: um per px at level 0 of images whose table has none.

    Raises:
        ValueError: a faulty table, a name twice, or `bag_id` for several images.
    """
    listed: list[tuple[Path, str, float | None]] = []
    for path in paths:
        if path.suffix.lower() == ".csv":
            listed += _in_table(path, mpp)
            continue
        inside = [*_in_folder(path)] if path.is_dir() and not path.name.lower().endswith(WSI_SUFFIXES) else []
        # A folder without any image is left to its reader, which says what is wrong with it.
        listed += [(image, "", mpp) for image in inside or [path]]
    if bag_id is not None and len(listed) != 1:
        raise ValueError(f"--bag-id {bag_id}: found {len(listed)} images, expected one; name them in a CSV table")
    images: dict[str, Image] = {}
    for path, name, resolution in listed:
        stem = bag_id or name or bag_id_of(path.stem if _is_file(path) else path.name)
        if name and name in images:
            raise ValueError(f"bag_id {name!r}: found two images of this name, expected one")
        unique, number = stem, 1
        while unique in images:
            number += 1
            unique = f"{stem}_{number}"
        images[unique] = Image(path, unique, resolution)
    return [*images.values()]


def _is_file(path: Path) -> bool:
    return path.is_file() or path.name.lower().endswith((*WSI_SUFFIXES, *DICOM_SUFFIXES))


def _in_table(table: Path, mpp: float | None) -> list[tuple[Path, str, float | None]]:
    """Return path, given name ("" = none) and resolution of every image."""
    lines, images, problems = read_csv(table, ("image",)), [], []
    for line in lines:
        text = line.cells.get("mpp", "")
        try:
            resolution = float(text) if text else mpp
        except ValueError:
            problems.append(f"line {line.number}: mpp: found {text!r}, expected um per px, e.g. 0.25")
            continue
        if not line.cells["image"]:
            problems.append(f"line {line.number}: image: empty, expected a path")
        images.append((table.parent / line.cells["image"], line.cells.get("bag_id", ""), resolution))
    raise_all(problems, str(table))
    if not images:
        raise ValueError(f"{table}: no rows, expected one per image")
    return images


def _in_folder(folder: Path) -> Iterator[Path]:
    """Yield slide files, and folders with DICOM files, in the order of their names; hidden ones are left out."""
    for place, folders, names in os.walk(folder):
        files = [name for name in sorted(names) if not name.startswith(".") and name != "DICOMDIR"]
        # companions of a slide, such as those of slide.mrxs in the folder slide
        slides = [name for name in files if name.lower().endswith(WSI_SUFFIXES)]
        companions = {Path(name).stem for name in slides}
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in companions)
        yield from (Path(place, name) for name in slides)
        others = (Path(place, name) for name in files if name not in slides)
        if any(path.name.lower().endswith(DICOM_SUFFIXES) or is_dicom(path) for path in others):
            yield Path(place)
            # what lies deeper belongs to the same study, as in a manifest
            folders.clear()


def predict_images(
    images: Sequence[Image], models: Sequence[Model], out: Path, settings: Preparation, *, flat: bool = False
) -> list[Row]:
    """Predict images with runs, and write `out/predictions.csv` and a folder per image.

    Args:
        images: from `find_images`, at least one.
        models: runs of one dataset, from `smmil.predict.settings.load_model`, at least one.
        out: folder to write to.
        settings: how images are prepared.
        flat: put the files of a single image into `out` itself.

    Raises:
        ValueError: runs that do not fit together; a refused image is a row, not an error.
    """
    check_models(models, settings)
    rows: list[Row] = []
    for image in images:
        row = _predict_image(image, models, out if flat else out / image.bag_id, settings)
        rows.append(row)
        numbers = [_number(value, ".4f") for value in row.probabilities.values()]
        # Refusals are printed as errors, with their reason; an image without tissue is not.
        text = ", ".join([row.state, *([row.reason] if row.state == "empty" else numbers)])
        log.info("%d of %d images, %s: %s", len(rows), len(images), image.bag_id, text)
        write_table(out / TABLE, rows, models)
    return rows


def _predict_image(image: Image, models: Sequence[Model], out: Path, settings: Preparation) -> Row:
    folders = {out / model.name.replace("/", "_"): model for model in models} if len(models) > 1 else {out: models[0]}
    try:
        predictions = predict_runs(image.path, folders, out, settings, bag_id=image.bag_id, mpp=image.mpp)
    except ValueError as error:
        return Row(image, "refused", reason=one_line(error))
    except (MemoryError, Abort):
        raise
    except Exception as error:
        # a full disk would stop every other image, too
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise
        log.exception("%s failed", image.path)
        return Row(image, "failed", reason=one_line(error))
    first = predictions[0]
    pairs = zip(models, predictions, strict=True) if first.state == "ok" else ()
    warnings = tuple(dict.fromkeys(warning for prediction in predictions for warning in prediction.warnings))
    return Row(image, first.state, {m.name: p.probability for m, p in pairs}, first.reason, warnings)


def write_table(path: Path, rows: Sequence[Row], models: Sequence[Model]) -> None:
    """Write a line per image; the columns of single runs stand last, where there are several."""
    runs = [model.name for model in models] if len(models) > 1 else []
    header = ["image", "bag_id", "state", "probability", "predicted", "runs", "reason", "warnings"]
    lines = []
    for row in rows:
        values = [value for value in row.probabilities.values() if value is not None]
        mean = fmean(values) if values else None
        call = "" if mean is None else int(mean > 0.5)
        line = [printable(str(row.image.path)), row.image.bag_id, row.state, _number(mean), call, len(values)]
        singles = [_number(row.probabilities.get(run)) for run in runs]
        lines.append([*line, row.reason, "; ".join(row.warnings), *singles])
    write_csv(path, [*header, *(f"probability {run}" for run in runs)], lines)


def _number(value: float | None, form: str = ".9g") -> str:
    return "" if value is None else format(value, form)
