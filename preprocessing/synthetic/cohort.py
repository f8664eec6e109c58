"""Folders that finish once: build what is missing, mark complete last, rebuild when the parameters change.

A data set's folder holds `.building.json` (parameters) from the first file on and `.complete.json` when everything is
there. Every file is written under a temporary name and renamed, and every item draws from its own random stream, so
that a killed run goes on with the items that are missing and ends with the same bytes.
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from preprocessing.cli import write_json
from preprocessing.synthetic.sizes import GENERATOR_VERSION, RehearsalSize, Size, resolve_size

COMPLETE, BUILDING = ".complete.json", ".building.json"
DATASETS: dict[str, str] = {
    "camelyon16": "preprocessing.synthetic.camelyon16",
    "panda": "preprocessing.synthetic.panda",
    "rsna": "preprocessing.synthetic.rsna",
}
REHEARSAL = "preprocessing.synthetic.rehearsal"
log = logging.getLogger("synthetic")


@dataclass(frozen=True)
class Item:
    """One slide or scan.

    Attributes:
        name: for the log.
        files: paths relative to the folder; the item is finished when all exist.
        make: module-level function `make(folder, spec)` that writes them.
        spec: what to draw; carries its own seed.
    """

    name: str
    files: tuple[str, ...]
    make: Callable[[Path, Any], None]
    spec: Any


@dataclass(frozen=True)
class Plan:
    """Items, and the tables written after them (relative path -> text)."""

    items: list[Item]
    tables: Mapping[str, str]


def stream(*key: object) -> np.random.Generator:
    """Random stream of a key such as (seed, "panda", 3); independent of every other key and of the machine."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def hex_id(length: int, *key: object) -> str:
    """Fake identifier of `length` hexadecimal digits, fixed by the key."""
    return hashlib.sha256(("id" + repr(key)).encode()).hexdigest()[:length]


def is_complete(folder: Path, parameters: Mapping[str, Any]) -> bool:
    """Whether the folder was finished with exactly these parameters."""
    return bool(read_marker(folder / COMPLETE) == json.loads(json.dumps(parameters)))


def read_marker(path: Path) -> dict[str, Any] | None:
    """Parameters stored in a marker; None when it is missing or torn."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return value if isinstance(value, dict) else None


def prepare(folder: Path, parameters: Mapping[str, Any]) -> None:
    """Make the folder ready for the parameters: keep a matching half-built one, clear one built otherwise.

    Raises:
        ValueError: the folder holds files the generator did not write.
    """
    ours = [m for m in (folder / COMPLETE, folder / BUILDING) if m.exists()]
    if folder.exists() and any(folder.iterdir()) and not ours:
        raise ValueError(
            f"{folder}: not empty and not made by the generator (no {COMPLETE} or {BUILDING}); "
            "choose another --out or remove the folder yourself"
        )
    if read_marker(folder / BUILDING) != json.loads(json.dumps(parameters)):
        # Unfinished from here on, also for the old parameters, and known as ours until the last file is gone.
        write_json(folder / BUILDING, {"state": "clearing"})
        (folder / COMPLETE).unlink(missing_ok=True)
        for entry in folder.iterdir():
            if entry.name != BUILDING:
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    for torn in folder.rglob(".*.tmp"):
        torn.unlink()
    write_json(folder / BUILDING, parameters)


def make_items(folder: Path, items: Sequence[Item], workers: int, dataset: str) -> None:
    """Write the items whose files are missing, with a log line every few."""
    todo = [item for item in items if not all((folder / name).exists() for name in item.files)]
    if len(todo) < len(items):
        log.info("%s: %d of %d already there", dataset, len(items) - len(todo), len(items))
    start, every = time.monotonic(), max(1, len(todo) // 6)

    def tell(done: int, name: str) -> None:
        if done % every == 0 or done == len(todo):
            log.info("%s: %d/%d (%s), %.1f s", dataset, done, len(todo), name, time.monotonic() - start)

    if workers <= 1:
        for done, item in enumerate(todo, 1):
            make_one(folder, item)
            tell(done, item.name)
        return
    # spawn: forking a process that has OpenCV threads can hang
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        pending: dict[Future[None], Item] = {pool.submit(make_one, folder, item): item for item in todo}
        for done, future in enumerate(as_completed(pending), 1):
            future.result()
            tell(done, pending[future].name)


def make_one(folder: Path, item: Item) -> None:
    """Write one item on one core."""
    import cv2

    cv2.setNumThreads(1)
    item.make(folder, item.spec)


def make_plan(name: str, size: Size, seed: int) -> Plan:
    """What a data set's folder gets."""
    if isinstance(size, RehearsalSize):
        rehearsed: Plan = import_module(REHEARSAL).PLANS[name](size, seed)
        return rehearsed
    drawn: Plan = import_module(DATASETS[name]).plan(size, seed)
    return drawn


def build(
    out: Path | str,
    size: str = "tiny",
    seed: int = 0,
    datasets: Sequence[str] = ("camelyon16", "panda", "rsna"),
    overrides: Mapping[str, object] | None = None,
    workers: int = 1,
) -> dict[str, Path]:
    """Build the cohorts asked for; what is finished is not touched.

    Args:
        out: folder that gets one folder per data set.
        size: "tiny", "demo", "benchmark" or "rehearsal".
        seed: of everything.
        datasets: names out of `DATASETS`.
        overrides: parameter -> value, replacing the preset's wherever the data set has that parameter.
        workers: processes; the bytes do not depend on it.

    Returns:
        Data set -> its folder.

    Raises:
        ValueError: unknown names, unusable sizes, or a folder with foreign files.
    """
    sizes: dict[str, Size] = {name: resolve_size(size, name, overrides) for name in datasets}
    folders = {}
    for name, preset in sizes.items():
        folder = folders[name] = Path(out) / name
        parameters = {"dataset": name, "generator": GENERATOR_VERSION, "seed": seed, "size": asdict(preset)}
        if is_complete(folder, parameters):
            log.info("%s: complete, nothing to do (%s)", name, folder)
            continue
        prepare(folder, parameters)
        plan = make_plan(name, preset, seed)
        make_items(folder, plan.items, workers, name)
        for relative, text in plan.tables.items():
            target = folder / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.tmp")
            temporary.write_text(text, encoding="utf-8", newline="")
            temporary.replace(target)
        write_json(folder / COMPLETE, parameters)
        (folder / BUILDING).unlink()
    return folders
