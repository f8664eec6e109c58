"""Run directories: names, keys, atomic files, the JSONL log and the code version.

`results/{dataset}/runs/{encoder}/{method}/split{seed}_lr{lr:g}/` holds

| file | what |
|---|---|
| `config.json` | everything needed to rebuild the run: resolved options, seed, learning rate, versions, input hashes |
| `log.jsonl` | one line per epoch, no epoch twice |
| `state.pt` | model, optimiser, random generators, position; only while unfinished, loadable with `weights_only` |
| `best.safetensors` | weights of the selected epoch |
| `direction.safetensors` | direction of the sign-aware score (`smmil.predictions.signed`) |
| `done.json` | written last; a run is finished only if this file has its key |

The log is written after every epoch, the state at most every `checkpoint_seconds`, always after the log.

A key is the hash of everything that decides the numbers. Device, threads and code version are not part of it (they are
in `config.json`): cosmetic edits redo no training, an increment of `stage_versions.RUNS` redoes all.
"""

import io
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preprocessing.common.files import name_in_errors, write_bytes, write_text
from smmil.artifacts.hashes import hash_file, hash_json, zip_damage
from smmil.artifacts.records import LogRow, RunDone, RunFields
from smmil.config import stage_versions

if TYPE_CHECKING:
    from torch.nn import Module

log = logging.getLogger(__name__)


class RunSpec(RunFields):
    """Everything that decides the numbers of a run; `inputs` are content hashes."""

    @property
    def name(self) -> str:
        """Directory name, e.g. `split1_lr0.0001`."""
        return f"split{self.seed}_lr{self.learning_rate:g}"

    @property
    def key(self) -> str:
        """Hash of this description and of the stage version."""
        return hash_json({**self.as_json(), "stage_version": stage_versions.RUNS})


def save_state(path: Path | str, state: Mapping[str, Any]) -> None:
    """Write a resumable state (tensors, numbers, strings, containers of them) atomically."""
    import torch

    # Given a path, torch would report a full disk as an error of its archive.
    stream = io.BytesIO()
    torch.save(dict(state), stream)
    write_bytes(path, stream.getbuffer())


def load_state(path: Path | str) -> dict[str, Any] | None:
    """Read `save_state` onto the CPU; None if the file is missing or damaged. Executes no code (`weights_only`)."""
    import torch

    if not Path(path).exists():
        return None
    # torch does not verify checksums.
    if damage := zip_damage(path):
        log.warning("%s: damaged (%s); the run restarts at its first epoch", path, damage)
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def save_weights(path: Path | str, weights: Mapping[str, Any]) -> str:
    """Write the tensors of a state dict as safetensors, atomically; extra state of modules is left out.

    Returns:
        SHA-256 of the file; equal weights give equal bytes.
    """
    import torch
    from safetensors.torch import save

    tensors = {
        name: value.detach().cpu().contiguous().clone()
        for name, value in sorted(weights.items())
        if isinstance(value, torch.Tensor)
    }
    write_bytes(path, save(tensors))
    return hash_file(path)


def load_weights(model: "Module", path: Path | str) -> None:
    """Load `save_weights` into a module; ValueError if the tensors do not match those of the module."""
    from safetensors.torch import load_file

    try:
        missing, unexpected = model.load_state_dict(load_file(path), strict=False)
    except RuntimeError as error:
        raise ValueError(f"{path}: the weights do not fit the model: {error}") from error
    missing = [name for name in missing if not name.endswith("_extra_state")]
    if missing or unexpected:
        raise ValueError(f"{path}: the weights do not fit the model: missing {missing[:3]}, unknown {unexpected[:3]}")


def append_log(path: Path, row: LogRow) -> None:
    """Append one JSON line and sync it."""
    with name_in_errors(path), open(path, "a", encoding="utf-8") as stream:
        stream.write(_line(row))
        stream.flush()
        os.fsync(stream.fileno())


def read_log(path: Path) -> list[LogRow]:
    """Read the complete lines of a log; a last line cut by a crash is dropped, a missing file is an empty log."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [LogRow.parse(line, path) for line in lines if line.endswith("\n")]


def truncate_log(path: Path, first_epoch: int) -> None:
    """Drop the rows of epochs that will run again: `epoch >= first_epoch`."""
    write_text(path, "".join(_line(row) for row in read_log(path) if row.epoch < first_epoch))


def _line(row: LogRow) -> str:
    return json.dumps(row.as_json(), allow_nan=False) + "\n"


def read_done(folder: Path, key: str) -> RunDone | None:
    """Return the `done.json` of a run that is finished with this key and intact weights, else None."""
    path, weights = folder / "done.json", folder / "best.safetensors"
    if not path.exists() or not weights.exists():
        return None
    try:
        done = RunDone.read(path)
    except ValueError as error:
        log.warning("%s: damaged (%s); the run is trained again", path, error)
        return None
    if done.key != key:
        return None
    if hash_file(weights) != done.weights_sha256:
        log.warning("%s: another hash than in %s; the run is trained again", weights, path.name)
        return None
    return done
