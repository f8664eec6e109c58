"""Build cohort folders, and rebuild them when the parameters change.

A cohort is built in a hidden folder inside its own, which may be a link or a mount, and moved up when it is complete.
`.complete.json` holds the parameters of a whole cohort. Every item has its own random stream.
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from preprocessing.common.files import write_json
from preprocessing.synthetic.sizes import GENERATOR_VERSION, RehearsalSize, Size, resolve_size

COMPLETE, BUILDING = ".complete.json", ".building"
DATASETS = ("camelyon16", "panda", "rsna")
log = logging.getLogger("synthetic")


@dataclass(frozen=True)
class Item:
    """One slide or scan: its name in the log, and a function of a module, `make(folder, spec)`."""

    name: str
    make: Callable[[Path, Any], None]
    spec: Any


@dataclass(frozen=True)
class Plan:
    """The items of a folder, and the tables to write after them (relative path -> text)."""

    items: list[Item]
    tables: Mapping[str, str]


def stream(*key: object) -> np.random.Generator:
    """Return the random stream of a key such as (seed, "panda", 3), the same on every machine."""
    # Python's own hash of a text differs between processes
    digest = hashlib.sha256(repr(key).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def hex_id(length: int, *key: object) -> str:
    """Return a fake identifier of `length` hexadecimal digits, determined by the key."""
    return hashlib.sha256(("id" + repr(key)).encode()).hexdigest()[:length]


def put(path: Path, data: bytes) -> None:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def matches(marker: Path, parameters: Mapping[str, Any]) -> bool:
    """Return whether a marker exists, is intact and holds exactly these parameters."""
    try:
        return bool(json.loads(marker.read_text(encoding="utf-8")) == json.loads(json.dumps(parameters)))
    except (FileNotFoundError, json.JSONDecodeError):
        return False


def build(
    out: Path | str,
    size: str = "tiny",
    seed: int = 0,
    datasets: Sequence[str] = DATASETS,
    overrides: Mapping[str, object] | None = None,
) -> dict[str, Path]:
    """Build cohorts, except those already complete.

    Args:
        out: folder for one folder per data set.
        size: "tiny", "demo", "benchmark" or "rehearsal".
        seed: random seed.
        datasets: names out of `DATASETS`.
        overrides: parameter -> value, replacing the preset's wherever the data set has that parameter.

    Returns:
        Data set -> its folder.

    Raises:
        ValueError: unknown names, unusable sizes, or a folder with files of another origin.
    """
    sizes: dict[str, Size] = {name: resolve_size(size, name, overrides) for name in datasets}
    folders = {name: Path(out) / name for name in sizes}
    for name, folder in folders.items():
        parameters = {"dataset": name, "generator": GENERATOR_VERSION, "seed": seed, "size": asdict(sizes[name])}
        if matches(folder / COMPLETE, parameters):
            log.info("%s: complete, nothing to do (%s)", name, folder)
            continue
        new = folder / BUILDING
        if folder.exists() and any(folder.iterdir()) and not ((folder / COMPLETE).exists() or new.exists()):
            raise ValueError(
                f"{folder}: not empty and not made by the generator (no {COMPLETE}); choose another --out or remove it"
            )
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        # imported here, because the modules that draw need OpenCV, for which --help would wait
        if isinstance(sizes[name], RehearsalSize):
            plan = import_module("preprocessing.synthetic.rehearsal").PLANS[name](sizes[name], seed)
        else:
            plan = import_module(f"preprocessing.synthetic.{name}").plan(sizes[name], seed)
        start, items = time.monotonic(), plan.items
        for done, item in enumerate(items, 1):
            item.make(new, item.spec)
            if done % max(1, len(items) // 6) == 0 or done == len(items):
                log.info("%s: %d/%d (%s), %.1f s", name, done, len(items), item.name, time.monotonic() - start)
        for relative, text in plan.tables.items():
            put(new / relative, text.encode())
        # without the marker first and with it last, so that a killed run leaves no mixture that passes for complete
        (folder / COMPLETE).unlink(missing_ok=True)
        for entry in folder.iterdir():
            if entry != new:
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        for entry in new.iterdir():
            entry.rename(folder / entry.name)
        write_json(folder / COMPLETE, parameters)
        new.rmdir()
    return folders
