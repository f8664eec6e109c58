"""Overrides of single bags: settings that differ from the dataset's, or the reason why a bag is skipped.

They are further columns of a custom manifest or, for every kind of dataset, a CSV file named by the source key
`overrides` (column bag_id and any field of `BagOverrides`). An empty cell means no override.

Overrides cannot change tile size, level or lattice: all bags of a dataset have one scale. Unknown columns, bags and
values are rejected when the bags are listed. Overrides are part of the bag's key, so only that bag is redone.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from pydantic import Field, ValidationError, field_validator, model_validator

from preprocessing.bags.rows import BagRow, resolve
from preprocessing.common.cli import nearest, raise_all
from preprocessing.common.csv_files import read_csv
from preprocessing.common.limits import MPP_MAX, MPP_MIN
from preprocessing.common.options import TISSUE_PRESETS, ArtefactName, Options, TissueOptions, WsiOptions

# `exclude` applies to tiles of any origin, all others to the thresholded mask.
_TISSUE = tuple(n for n in TissueOptions.model_fields if n not in ("anchor_corrected", "exclude", "exclude_share"))
_MASKS = (".png", ".geojson")


class BagOverrides(Options):
    """The overrides of one bag; None or empty = not overridden. The columns of the files are its fields."""

    skip: str = Field("", max_length=300, description="reason to leave the bag out")
    mpp: float | None = Field(None, ge=MPP_MIN, le=MPP_MAX, description="um per px at level 0, replaces the file's")
    preset: str | None = Field(None, description="set of tissue thresholds, see TISSUE_PRESETS")
    mask: str = Field("", description="tissue mask below the root: GeoJSON, or PNG in which > 0 is tissue")
    exclude: str = Field("", description="artefacts whose tiles are left out, separated by spaces; none = none")
    min_tissue: float | None = Field(None, ge=0, le=1, description="panda recipe: minimum tissue share of a window")
    seg_level: int | None = Field(None, ge=-1, description="pyramid level of the tissue mask; -1 = chosen")
    sthresh: int | None = Field(None, ge=0, le=255, description="saturation threshold, grey levels")
    mthresh: int | None = Field(None, ge=1, description="side of the median filter, px, odd")
    close: int | None = Field(None, ge=0, description="side of the closing kernel, px")
    use_otsu: bool | None = Field(None, description="Otsu's threshold instead of sthresh")
    a_t: float | None = Field(None, ge=0, description="smallest tissue area, 512 x 512 px level-0 patches")
    a_h: float | None = Field(None, ge=0, description="smallest hole area, same unit")
    max_n_holes: int | None = Field(None, ge=0, description="holes kept per contour")
    fallback: bool | None = Field(None, description="try loosened thresholds where nothing is found")

    @field_validator("preset")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        if name is not None and name not in TISSUE_PRESETS:
            raise ValueError(f"expected one of {', '.join(sorted(TISSUE_PRESETS))}")
        return name

    @field_validator("skip")
    @classmethod
    def _reason(cls, reason: str) -> str:
        if reason.lower() in ("0", "no", "false", "n", "nan", "none", "null", "na", "n/a", "-"):
            raise ValueError("expected a reason to leave the bag out, or nothing to keep it")
        return reason

    @field_validator("exclude")
    @classmethod
    def _artefacts(cls, names: str) -> str:
        kinds = get_args(ArtefactName)
        if names != "none" and set(names.split()) - set(kinds):
            raise ValueError(f"expected some of {' '.join(kinds)}, separated by spaces, or none")
        return " ".join(names.split())

    @field_validator("mthresh")
    @classmethod
    def _odd(cls, side: int | None) -> int | None:
        if side is not None and side % 2 == 0:
            raise ValueError("expected an odd number")
        return side

    @model_validator(mode="after")
    def _consistent(self) -> "BagOverrides":
        tissue = sorted({"preset", *_TISSUE} & self.as_dict().keys())
        if self.mask and tissue:
            raise ValueError(f"mask replaces the whole tissue mask: leave {', '.join(tissue)} empty")
        if self.use_otsu and self.sthresh is not None:
            raise ValueError("use_otsu chooses the threshold: leave sthresh empty")
        return self

    def as_dict(self) -> dict[str, Any]:
        """Return the overridden settings, by name."""
        return {name: value for name, value in self.model_dump().items() if value is not None and value != ""}


COLUMNS = tuple(BagOverrides.model_fields)


def parse_overrides(cells: Mapping[str, str]) -> BagOverrides:
    """Parse the cells of one row, whose other columns are ignored; raise `ValueError` for an invalid value."""
    return _validated({name: cells[name].strip() for name in COLUMNS if cells.get(name, "").strip()})


def _validated(values: Mapping[str, Any]) -> BagOverrides:
    try:
        return BagOverrides.model_validate(values)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            where = ".".join(map(str, item["loc"]))
            text = item["msg"].removeprefix("Value error, ")
            lines.append(f"{where}: found {item['input']!r}, {text}" if where else text)
        raise ValueError("; ".join(lines)) from None


def read_overrides(path: Path) -> dict[str, BagOverrides]:
    """Read an overrides file; one `ValueError` names all of its problems by line."""
    overrides: dict[str, BagOverrides] = {}
    problems: list[str] = []
    for line in read_csv(path, ("bag_id",), optional=COLUMNS):
        name = line.cells["bag_id"]
        try:
            if not name or name in overrides:
                raise ValueError("bag_id occurs twice, expected one line per bag" if name else "bag_id is empty")
            overrides[name] = parse_overrides(line.cells)
        except ValueError as error:
            problems.append(f"line {line.number} ({name!r}): {error}")
    raise_all(problems, str(path))
    return overrides


def apply_overrides(
    rows: Iterable[BagRow], overrides: Mapping[str, BagOverrides], root: Path, source: str
) -> list[BagRow]:
    """Return rows with their overrides, by bag id; one `ValueError` names all problems of their `source`."""
    listed = {row.bag_id: row for row in rows}
    problems = [
        f"{name!r}: no such bag{nearest(name, listed)}, expected one of the {len(listed)} listed ones (excluded or "
        "missing bags have none)"
        for name in overrides
        if name not in listed
    ]
    for name in overrides.keys() & listed.keys():
        try:
            listed[name] = override(listed[name], overrides[name], root)
        except ValueError as error:
            problems.append(f"{name!r}: {error}")
    raise_all(sorted(problems), source)
    return list(listed.values())


def override(row: BagRow, overrides: BagOverrides, root: Path) -> BagRow:
    """Return one row with its overrides; raise `ValueError` if it cannot take one, or has the value already."""
    values = overrides.as_dict()
    before = overrides_of(row).as_dict() | {n: getattr(row, n) for n in ("skip", "mpp") if getattr(row, n)}
    twice = sorted(values.keys() & before.keys())
    if twice:
        raise ValueError(f"{', '.join(twice)}: given twice, in the manifest and in the overrides; keep one")
    if row.modality == "ct" and set(values) - {"skip"}:
        raise ValueError(f"{', '.join(sorted(set(values) - {'skip'}))}: a CT scan takes no override but skip")
    if overrides.mask:
        path = resolve(root, overrides.mask)
        if not path.is_file() or path.suffix.lower() not in _MASKS:
            raise ValueError(f"mask: found {overrides.mask!r}, expected a PNG or GeoJSON file below {root}")
        values["mask"] = path.relative_to(Path(root).resolve()).as_posix()
    skip, mpp = values.pop("skip", row.skip), values.pop("mpp", row.mpp)
    merged = {**json.loads(row.overrides or "{}"), **values}
    # values of two files may be inconsistent with each other
    _validated(merged)
    text = json.dumps(merged, sort_keys=True, separators=(",", ":")) if merged else ""
    return replace(row, skip=skip, mpp=mpp, overrides=text)


def overrides_of(row: BagRow) -> BagOverrides:
    """Parse the overrides of a row of `bags.csv`, without `skip` and `mpp`, which are fields of the row."""
    if not row.overrides:
        return BagOverrides()
    try:
        return _validated(json.loads(row.overrides))
    except ValueError as error:
        raise ValueError(
            f"{row.bag_id}: overrides {row.overrides!r} in bags.csv: {error}; list the bags again"
        ) from None


def bag_options(options: WsiOptions, row: BagRow) -> WsiOptions:
    """Return the dataset's settings with the overrides of one slide; raise `ValueError` for one without effect."""
    overrides = overrides_of(row)
    values = overrides.as_dict()
    if not values:
        return options
    unused = {"preset", *_TISSUE} if options.recipe == "panda" else {"min_tissue"}
    if unused & values.keys():
        raise ValueError(
            f"{row.bag_id}: override of {', '.join(sorted(unused & values.keys()))} has no effect on windows of the "
            f"recipe {options.recipe!r}; remove it"
        )
    preset = TISSUE_PRESETS[overrides.preset].model_dump(exclude_unset=True) if overrides.preset else {}
    tissue = {**options.tissue.model_dump(), **preset, **{name: values[name] for name in _TISSUE if name in values}}
    tissue["exclude_share"] = options.tissue.exclude_share
    if overrides.exclude:
        tissue["exclude"] = () if overrides.exclude == "none" else tuple(overrides.exclude.split())
    share = {"min_tissue": values["min_tissue"]} if "min_tissue" in values else {}
    return WsiOptions.model_validate({**options.model_dump(), **share, "tissue": tissue})
