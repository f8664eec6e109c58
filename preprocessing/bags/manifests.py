"""Manifest of a shard: every bag with its state, size and content hash, in one JSON file per stage and shard."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_serializer

from preprocessing.common.cli import validation_problems
from preprocessing.common.files import write_json

State = Literal["ok", "empty", "skipped", "failed"]
STATES: tuple[State, ...] = ("ok", "empty", "skipped", "failed")


class BagOutcome(BaseModel):
    """What a job made of one bag.

    Attributes:
        state: "ok", "empty" (no instances, which is not an error), "skipped" (by an override) or "failed".
        n: number of instances.
        reason: one line, empty for "ok".
        bad_tiles: unreadable tiles that were replaced by white; left out of the file if there are none.
        unused_outlines: objects of the annotation that were not used; likewise.
        warnings: what looks wrong with the bag although it was stored, one line each; likewise.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bag_id: str
    state: State
    n: int = 0
    reason: str = ""
    bad_tiles: int = 0
    unused_outlines: int = 0
    warnings: tuple[str, ...] = ()

    @model_serializer
    def _serialised(self) -> dict[str, Any]:
        rare = ("bad_tiles", "unused_outlines", "warnings")
        return {name: value for name, value in self if name not in rare or value}


class ManifestEntry(BagOutcome):
    """One bag in the manifest of its shard, with the content hash of the stored bag; "" = nothing is stored."""

    hash: str = ""


class StatusLine(BagOutcome):
    """One line of the status of a shard (JSONL): `redone` is False if the bag was already finished."""

    seconds: float
    redone: bool
    time: str = ""


class ShardManifest(BaseModel):
    """What one job of a stage made of the bags of its shard.

    Attributes:
        stage: "instances" or "features/ENCODER".
        shard: number of the shard as in file names, e.g. "0003".
        bags: sorted by bag_id.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str = ""
    stage: str = ""
    stage_version: int | None = None
    shard: str = ""
    bags: tuple[ManifestEntry, ...]

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Read a manifest; raise `ValueError` for no or another file."""
        try:
            return cls.model_validate_json(Path(path).read_bytes())
        except FileNotFoundError:
            raise ValueError(f"{path}: no such manifest; run the stage that writes it") from None
        except ValidationError as error:
            raise ValueError(f"{path}: not a shard manifest ({validation_problems(error)})") from error

    def write(self, path: Path | str) -> None:
        """Write the manifest atomically; equal content gives equal bytes."""
        write_json(path, self.model_dump())

    @property
    def by_id(self) -> dict[str, ManifestEntry]:
        """Entries by bag id."""
        return {entry.bag_id: entry for entry in self.bags}


def read_entries(paths: Iterable[Path | str]) -> dict[str, ManifestEntry]:
    """Read several manifests of one stage, entries by bag id; the last one counts where two list a bag."""
    return {entry.bag_id: entry for path in paths for entry in ShardManifest.read(path).bags}
