"""Outlines beside the thumbnail of a bag, `{stage}/thumbnails/{bag_id}.json`."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from preprocessing.common.cli import read_record
from preprocessing.common.files import write_text
from preprocessing.common.options import ArtefactName

Ring = list[tuple[int | float, int | float]]


class Montage(BaseModel):
    """Layout of the montage of a scan.

    Attributes:
        columns: cells per row.
        cell_px: side of a cell, px.
        slices: index of the slice in each cell, row by row.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    columns: int
    cell_px: int
    slices: list[int]


class ArtefactArea(BaseModel):
    """Where a slide has artefacts of one kind.

    Attributes:
        share: of the tissue, 0 to 1.
        areas: outer ring and holes of every area, level-0 px.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: float = 0.0
    areas: list[list[Ring]] = []


class Outlines(BaseModel):
    """Outlines of a slide in level-0 px, or the layout of a scan's montage.

    Attributes:
        downsample: level-0 px per px of the thumbnail; None = no thumbnail.
        tissue: rings of points (x, y).
        holes: rings inside the tissue.
        lesion: rings; empty where only a mask is known.
        artefacts: by kind, see `preprocessing.tiling.artefacts`; None = nobody looked.
        montage: of a scan.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    downsample: float | None = None
    tissue: list[Ring] = []
    holes: list[Ring] = []
    lesion: list[Ring] = []
    artefacts: dict[ArtefactName, ArtefactArea] | None = None
    montage: Montage | None = None

    @classmethod
    def read(cls, stage: Path, bag_id: str) -> "Outlines":
        """Read the outlines of a bag in the folder of the instances stage; empty if there are none.

        Raises:
            ValueError: the file is not JSON, or a value has another type; file and key are named.
        """
        path = stage / "thumbnails" / f"{bag_id}.json"
        return read_record(cls, path) if path.is_file() else cls()

    def write(self, path: Path) -> None:
        """Write the outlines atomically."""
        write_text(path, self.model_dump_json(exclude_none=True) + "\n")
