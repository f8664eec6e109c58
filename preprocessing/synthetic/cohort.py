"""Build cohort folders: write missing files, mark the folder complete, rebuild it when the parameters change.

A data set's folder holds `.building.json` (the parameters) while it is built and `.complete.json` afterwards. Files are
renamed into place and every item has its own random stream, so an interrupted run resumes with the same result.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from preprocessing.common.files import write_json
from preprocessing.synthetic.sizes import GENERATOR_VERSION, RehearsalSize, Size, resolve_size

COMPLETE, BUILDING = ".complete.json", ".building.json"
DATASETS = ("camelyon16", "panda", "rsna")
log = logging.getLogger("synthetic")


@dataclass(frozen=True)
class Item:
    """One slide or scan.

    Attributes:
        name: its name in the log.
        files: paths relative to the folder; the item is finished when all exist.
        make: module-level function `make(folder, spec)` that writes them.
        spec: description of the item, including the seed.
    """

    name: str
    files: tuple[str, ...]
    make: Callable[[Path, Any], None]
    spec: Any


@dataclass(frozen=True)
class Plan:
    """The items of a folder, and the tables to write after them (relative path -> text)."""

    items: list[Item]
    tables: Mapping[str, str]


def stream(*key: object) -> np.random.Generator:
    """Return the random stream of a key such as (seed, "panda", 3), the same on every machine."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def hex_id(length: int, *key: object) -> str:
    """Return a fake identifier of `length` hexadecimal digits, determined by the key."""
    return hashlib.sha256(("id" + repr(key)).encode()).hexdigest()[:length]


def put(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, without fsync, which would dominate the time for thousands of small files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)


def matches(marker: Path, parameters: Mapping[str, Any]) -> bool:
    """Return whether a marker exists, is intact and holds exactly these parameters."""
    try:
        return bool(json.loads(marker.read_text(encoding="utf-8")) == json.loads(json.dumps(parameters)))
    except (FileNotFoundError, json.JSONDecodeError):
        return False


def prepare(folder: Path, parameters: Mapping[str, Any]) -> None:
    """Prepare the folder: keep one that was interrupted with these parameters, clear one with other parameters.

    Raises:
        ValueError: the folder holds files that the generator did not write.
    """
    generated = (folder / COMPLETE).exists() or (folder / BUILDING).exists()
    if folder.exists() and any(folder.iterdir()) and not generated:
        raise ValueError(
            f"{folder}: not empty and not made by the generator (no {COMPLETE} or {BUILDING}); "
            "choose another --out or remove the folder yourself"
        )
    old = folder.with_name(f".{folder.name}.old")
    if old.exists():
        shutil.rmtree(old)
    if generated and not matches(folder / BUILDING, parameters):
        # renamed before it is removed, so that an interrupted removal leaves nothing that looks complete
        folder.rename(old)
        shutil.rmtree(old)
    for temporary in folder.rglob(".*.tmp"):
        temporary.unlink()
    write_json(folder / BUILDING, parameters)


def make_items(folder: Path, items: Sequence[Item], workers: int, dataset: str) -> None:
    """Write the items whose files are missing and log the progress."""
    missing = [item for item in items if not all((folder / name).exists() for name in item.files)]
    if len(missing) < len(items):
        log.info("%s: %d of %d already there", dataset, len(items) - len(missing), len(items))
    start, every = time.monotonic(), max(1, len(missing) // 6)
    # spawn: forking a process that has OpenCV threads can hang
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) if workers > 1 else nullcontext() as pool:
        made = (pool.map if pool else map)(partial(make_item, folder), missing)
        for done, (item, _) in enumerate(zip(missing, made, strict=True), 1):
            if done % every == 0 or done == len(missing):
                log.info("%s: %d/%d (%s), %.1f s", dataset, done, len(missing), item.name, time.monotonic() - start)


def make_item(folder: Path, item: Item) -> None:
    """Write one item on one core."""
    import cv2

    cv2.setNumThreads(1)
    item.make(folder, item.spec)


def make_plan(name: str, size: Size, seed: int) -> Plan:
    """Plan the items and tables of one data set."""
    # imported here, because the modules that draw need OpenCV, for which --help would wait
    if isinstance(size, RehearsalSize):
        plan = import_module("preprocessing.synthetic.rehearsal").PLANS[name]
    else:
        plan = import_module(f"preprocessing.synthetic.{name}").plan
    result: Plan = plan(size, seed)
    return result


def build(
    out: Path | str,
    size: str = "tiny",
    seed: int = 0,
    datasets: Sequence[str] = DATASETS,
    overrides: Mapping[str, object] | None = None,
    workers: int = 1,
) -> dict[str, Path]:
    """Build cohorts, except those already complete.

    Args:
        out: folder for one folder per data set.
        size: "tiny", "demo", "benchmark" or "rehearsal".
        seed: random seed.
        datasets: names out of `DATASETS`.
        overrides: parameter -> value, replacing the preset's wherever the data set has that parameter.
        workers: processes; the result is the same for any number.

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
        prepare(folder, parameters)
        plan = make_plan(name, sizes[name], seed)
        make_items(folder, plan.items, workers, name)
        for relative, text in plan.tables.items():
            put(folder / relative, text.encode())
        write_json(folder / COMPLETE, parameters)
        (folder / BUILDING).unlink()
    return folders
