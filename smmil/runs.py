"""Run directories: names, keys, atomic files, the JSONL log and the code version.

`results/{dataset}/runs/{encoder}/{method}/split{seed}_lr{lr:g}/` holds

| file | what |
|---|---|
| `config.json` | everything needed to rebuild the run: resolved options, seed, learning rate, versions, input hashes |
| `log.jsonl` | one line per epoch, no epoch twice |
| `state.pt` | model, optimiser, random generators, position: while the run is unfinished (`weights_only` loadable) |
| `best.safetensors` | weights of the selected epoch |
| `direction.safetensors` | where the bag logit rises, for the sign-aware score (`smmil.signed`); not in older runs |
| `done.json` | written last; a run counts as finished only if its key is the one asked for |

Log and state of an epoch are written while the next one computes, each synced, the state after the log.

A key is the hash of everything that decides the numbers. Device, threads and the code version are not part of it (they
stand in `config.json`): a cosmetic edit never redoes a training, an increment of `RUN_STAGE_VERSION` redoes all.
"""

import functools
import hashlib
import io
import json
import logging
import os
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from preprocessing.cli import name_in_errors, write_bytes, write_text

log = logging.getLogger(__name__)

RUN_STAGE_VERSION = 1


@dataclass(frozen=True)
class RunSpec:
    """Everything that decides a run's numbers.

    Attributes:
        dataset: name of the data set.
        encoder: name of the encoder.
        method: key of `smmil.models.MODELS`.
        method_options: keyword arguments of the method.
        training: training options that matter (no device, no lists of splits or learning rates).
        data: label rule, edge weights and whatever else decides what is loaded.
        inputs: content hashes of the inputs.
        seed: split seed, also the seed of initialisation and order.
        learning_rate: base learning rate.
    """

    dataset: str
    encoder: str
    method: str
    method_options: dict[str, Any]
    training: dict[str, Any]
    data: dict[str, Any]
    inputs: dict[str, str]
    seed: int
    learning_rate: float

    @property
    def name(self) -> str:
        """Directory name, e.g. `split1_lr0.0001`."""
        return f"split{self.seed}_lr{self.learning_rate:g}"

    @property
    def key(self) -> str:
        """Hash of this description and of the stage version."""
        return hash_json({**asdict(self), "stage_version": RUN_STAGE_VERSION})


def hash_json(value: Any) -> str:
    """sha256 of the canonical JSON of a value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: Path | str) -> str:
    """sha256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_files(paths: Iterable[Path | str]) -> str:
    """One hash of several files; neither their order nor their names matter."""
    return hash_json(sorted(hash_file(path) for path in paths))


def save_state(path: Path | str, state: Mapping[str, Any]) -> None:
    """Writes a resumable state (tensors, numbers, strings, containers of them) atomically."""
    import torch

    # given a path, torch tells a full disk as an error of its own archive
    stream = io.BytesIO()
    torch.save(dict(state), stream)
    write_bytes(path, stream.getbuffer())


def load_state(path: Path | str) -> dict[str, Any] | None:
    """Reads `save_state` onto the CPU; None if there is no file or a damaged one. Executes nothing (`weights_only`)."""
    import torch

    if not Path(path).exists():
        return None
    # torch itself reads changed bytes without a word
    if damage := zip_damage(path):
        log.warning("%s: damaged (%s); this run starts again from its first epoch", path, damage)
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def zip_damage(path: Path | str) -> str:
    """What is wrong with a zip file (a state, an npz) by the checksums in it; empty if nothing is."""
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.testzip()
    # what zipfile makes of changed headers
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, RuntimeError, OSError) as error:
        return str(error) or type(error).__name__
    return f"{member} fails its checksum" if member else ""


def save_weights(path: Path | str, weights: Mapping[str, Any]) -> str:
    """Writes the tensors of a state dict as safetensors, atomically.

    Entries that are no tensors (a module's extra state: what it needs to go on training, not to predict) are left out.

    Returns:
        sha256 of the file; equal weights give equal bytes.
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


def load_weights(model: Any, path: Path | str) -> None:
    """Loads `save_weights` into a module.

    Raises:
        ValueError: the file's tensors are not those of the module.
    """
    from safetensors.torch import load_file

    try:
        missing, unexpected = model.load_state_dict(load_file(path), strict=False)
    except RuntimeError as error:
        raise ValueError(f"{path}: the weights do not fit the model: {error}") from error
    missing = [name for name in missing if not name.endswith("_extra_state")]
    if missing or unexpected:
        raise ValueError(f"{path}: the weights do not fit the model: missing {missing[:3]}, unknown {unexpected[:3]}")


# what a log row says of the machine rather than of the run: it differs from one time to the next
MEASURED = frozenset({"seconds", "memory_mib", "device_memory_mib"})


def append_log(path: Path, row: Mapping[str, Any]) -> None:
    """Appends one JSON line and makes it durable."""
    with name_in_errors(path), open(path, "a", encoding="utf-8") as stream:
        stream.write(json.dumps(dict(row), allow_nan=False) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def read_log(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a log; a last line cut by a crash is dropped, a missing file is an empty log."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def numbers(rows: Iterable[Mapping[str, Any]], name: str) -> list[float]:
    """What rows of logs say under a name, where they say a number."""
    return [float(row[name]) for row in rows if isinstance(row.get(name), int | float)]


def truncate_log(path: Path, first_epoch: int) -> None:
    """Drops the rows of epochs that will run (again): `epoch >= first_epoch`."""
    rows = [row for row in read_log(path) if row["epoch"] < first_epoch]
    write_text(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def read_done(folder: Path, key: str) -> dict[str, Any] | None:
    """The `done.json` of a run that is finished with exactly this key and whose weights are whole, else None."""
    path, weights = folder / "done.json", folder / "best.safetensors"
    if not path.exists() or not weights.exists():
        return None
    try:
        done: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        log.warning("%s: damaged (%s); this run is trained again", path, error)
        return None
    if done.get("key") != key:
        return None
    if hash_file(weights) != done.get("weights_sha256"):
        log.warning("%s: not the weights that %s names; this run is trained again", weights, path.name)
        return None
    return done


@functools.cache
def code_version() -> str:
    """`git describe` of the checkout this package lies in, else the package's version; git may be absent.

    Asked once: what this process runs was read when it started.
    """
    from smmil import __version__

    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return __version__
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--tags"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return __version__
    described = found.stdout.strip()
    return f"{__version__}+{described}" if found.returncode == 0 and described else __version__


def versions() -> dict[str, str]:
    """Versions of everything that decides the numbers."""
    import platform

    import numpy
    import torch

    return {
        "smmil": code_version(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
    }
