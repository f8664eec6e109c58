"""What a folder of results or predictions holds: cohorts of bags, where their raw files are, and the runs of each.

A store is a folder with `bags.csv` and `instances/store`: `results/D` of the workflow, or `bag` in the folder of a
prediction. `results/D` is a cohort of its own; the stores of predictions in one folder form one cohort.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from preprocessing.bags.manifests import ManifestEntry, read_entries
from preprocessing.bags.report import ListReport
from preprocessing.bags.rows import BagRow, resolve
from preprocessing.bags.table import read_bags
from preprocessing.common.files import json_hash
from preprocessing.store.attrs import InstanceAttrs
from preprocessing.store.bags import read_instance_attrs
from smmil.artifacts.records import Metrics, PredictionIndex, PredictionMeta
from smmil.config.methods import METHODS, marked_name
from smmil.config.outputs import title_of
from smmil.config.variants import base_method
from smmil.figures.plotting import colour_of
from smmil.view.records import BagEntry, BagList, CohortEntry, Packed, RunEntry

DEPTH = 3
PREDICTION_STORE = "bag"


@dataclass(frozen=True)
class Store:
    """One folder with `bags.csv` and stored bags, links resolved, and the root of its raw files, None = not found."""

    folder: Path
    root: Path | None

    @property
    def instances(self) -> Path:
        """Folder of the instances stage."""
        return self.folder / "instances"

    @cached_property
    def rows(self) -> dict[str, BagRow]:
        """Rows of `bags.csv` by bag id."""
        return {row.bag_id: row for row in read_bags(self.folder / "bags.csv")}

    @cached_property
    def outcomes(self) -> dict[str, ManifestEntry]:
        """What became of the bags; empty for a prediction, which has no manifests."""
        return read_entries(sorted((self.instances / "shards").glob("*.json")))

    def raw(self, name: str) -> Path:
        """Return a raw file that `bags.csv` or a stored bag names, checked to be there and below the root."""
        if self.root is None:
            raise ValueError(f"the raw files of {self.folder} were not found; name their folder with --raw")
        path = resolve(self.root, name)
        if not path.exists():
            raise ValueError(f"{name}: no such file below {self.root}; name the folder of the raw files with --raw")
        return path

    def heads(self, problems: list[str]) -> list[Head]:
        """Return what the predictions of chosen runs say; what cannot be read is added to `problems`."""
        heads = []
        for index in [
            path for kind in ("predictions", "scores") for path in sorted((self.folder / kind).glob("*/**/index.json"))
        ]:
            try:
                runs = [run for run in PredictionIndex.read(index).runs if run.chosen is not False]
            except ValueError as error:
                problems.append(str(error))
                continue
            for path in (index.parent / run.file for run in runs):
                try:
                    heads.append(read_head(path, path.stat().st_mtime_ns))
                except (ValueError, OSError) as error:
                    problems.append(str(error))
        return heads


@dataclass(frozen=True)
class Bag:
    """One bag of a store."""

    store: Store
    id: str

    @property
    def row(self) -> BagRow:
        """Its row of `bags.csv`."""
        return self.store.rows[self.id]

    @property
    def stored(self) -> bool:
        """Whether it was cut."""
        return (self.store.instances / "store" / self.id).is_dir()

    @property
    def attrs(self) -> InstanceAttrs:
        """Attributes of its stored instances."""
        return read_instance_attrs(self.store.instances / "store", self.id)

    @property
    def state(self) -> str:
        """Its state: that of its manifest, else what is on disk."""
        if outcome := self.store.outcomes.get(self.id):
            return outcome.state
        return "ok" if self.stored else "skipped" if self.row.skip else "not cut yet"

    @property
    def thumbnail(self) -> Path:
        """Its thumbnail, whether there is one or not."""
        return self.store.instances / "thumbnails" / f"{self.id}.jpg"


@dataclass(frozen=True)
class Head:
    """What a predictions file says about bags, without their instances."""

    path: Path
    meta: PredictionMeta
    logits: Mapping[str, float]
    parts: Mapping[str, str]


@dataclass(frozen=True)
class Run:
    """One run with its predictions in each store, by folder; `id` names it in addresses."""

    id: str
    meta: PredictionMeta
    heads: Mapping[Path, Head]

    def predictions(self, bag: Bag) -> Path | None:
        """Return the file with its predictions of a bag, None without any."""
        head = self.heads.get(bag.store.folder)
        return head.path if head and bag.id in head.logits else None


@dataclass
class Cohort:
    """Bags that are listed together, by name; in a cohort of predictions a repeated name gets a number."""

    key: str
    title: str
    bags: dict[str, Bag] = field(default_factory=dict)

    def add(self, store: Store) -> None:
        """Add the bags of a store."""
        # two predictions may be of images of one name
        for bag_id in store.rows:
            name, number = bag_id, 2
            while name in self.bags:
                name, number = f"{bag_id}-{number}", number + 1
            self.bags[name] = Bag(store, bag_id)

    @property
    def stores(self) -> list[Store]:
        """The stores, each once."""
        return list({bag.store.folder: bag.store for bag in self.bags.values()}.values())

    @property
    def entry(self) -> CohortEntry:
        """What the menu shows."""
        modality = next((bag.row.modality for bag in self.bags.values()), "wsi")
        return CohortEntry(self.key, self.title, modality, len(self.bags))

    def runs(self, problems: list[str] | None = None) -> list[Run]:
        """Return the runs by encoder, then as in the tables; read anew, so that a finished run appears at once.

        Runs that cannot be read are left out and named in `problems`.
        """
        problems = [] if problems is None else problems
        heads: dict[tuple[str, ...], dict[Path, Head]] = {}
        for store in self.stores:
            for head in store.heads(problems):
                key = (head.meta.dataset, head.meta.encoder, head.meta.method, head.meta.run)
                heads.setdefault(key, {})[store.folder] = head
        runs = [Run(json_hash(key)[:12], [*by_store.values()][-1].meta, by_store) for key, by_store in heads.items()]
        order = {method: rank for rank, method in enumerate(METHODS)}

        def place(run: Run) -> tuple[object, ...]:
            meta = run.meta
            return meta.encoder, order.get(base_method(meta.method), len(order)), meta.method, meta.dataset, meta.seed

        return sorted(runs, key=place)

    def listing(self) -> BagList:
        """Return all bags and what every run says about them."""
        problems: list[str] = []
        runs = self.runs(problems)
        several = len({run.meta.dataset for run in runs}) > 1
        entries = tuple(self._run(run, several, problems) for run in runs)
        bags = [
            BagEntry(name, bag.row.label, bag.row.split, bag.state, bag.thumbnail.is_file())
            for name, bag in self.bags.items()
        ]
        return BagList(tuple(bags), entries, tuple(problems))

    def _run(self, run: Run, several: bool, problems: list[str]) -> RunEntry:
        """Describe a run; its dataset is named if the runs learned from `several`."""
        meta, name, position = run.meta, marked_name(run.meta.method), dict[int, tuple[float, str]]()
        # a run may predict bags that --bags leaves out of an export
        places = {(bag.store.folder, bag.id): i for i, bag in enumerate(self.bags.values())}
        for folder, head in run.heads.items():
            for bag_id, logit in head.logits.items():
                if (folder, bag_id) in places:
                    position[places[folder, bag_id]] = logit, head.parts[bag_id]
        return RunEntry(
            id=run.id,
            encoder=meta.encoder,
            method=f"{meta.dataset}/{meta.method}" if several else meta.method,
            name=f"{name} ({title_of(meta.dataset)})" if several else name,
            colour=colour_of(meta.method),
            seed=meta.seed,
            random_weights=meta.random_weights,
            bags=Packed.of(np.array([*position], np.int32), "i4"),
            logits=Packed.of(np.array([logit for logit, _ in position.values()]), "f8"),
            parts="".join(part[0] for _, part in position.values()),
            thresholds=_thresholds(next(iter(run.heads)), meta, problems),
        )


def _thresholds(folder: Path, meta: PredictionMeta, problems: list[str]) -> dict[str, float]:
    path = folder / "metrics" / meta.encoder / f"{meta.method}.json"
    try:
        splits = Metrics.read(path).splits if path.is_file() else ()
    except ValueError as error:
        problems.append(str(error))
        return {}
    split = next((split for split in splits if split.run == meta.run), None)
    names = {"score": "threshold", "signed": "signed_threshold", "signed_sm": "signed_sm_threshold"}
    values = {kind: getattr(split, name, None) for kind, name in names.items()}
    return {kind: value for kind, value in values.items() if value is not None}


# every request reads the runs anew, and a results folder may hold thousands of them
@lru_cache(maxsize=4096)
def read_head(path: Path, mtime_ns: int) -> Head:
    """Read what a predictions file says about bags; `mtime_ns` ends the validity of a stored answer."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            meta = PredictionMeta.parse(str(archive["meta"]), f"{path}: meta")
            ids, parts = archive["bag_id"].tolist(), archive["split"].tolist()
            logits = archive["bag_logit"].astype(float).tolist()
    except (OSError, KeyError, EOFError, ValueError, BadZipFile) as error:
        reason = "no archive of arrays" if "pickle" in str(error) else str(error)
        raise ValueError(f"{path}: not a readable predictions file ({reason}); run the workflow again") from error
    return Head(path, meta, dict(zip(ids, logits, strict=True)), dict(zip(ids, parts, strict=True)))


def find_cohorts(folder: Path, raw: Sequence[str] = ()) -> dict[str, Cohort]:
    """Return the cohorts in a folder by key.

    `folder` is `results`, one dataset of it, or the folder of one or more predictions; `raw` has the folders of raw
    files, `DATASET=FOLDER` or `FOLDER`, where those that are recorded have moved.

    Raises:
        ValueError: no such folder, nothing in it, or a link that leads out of it.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder, expected results/ of the workflow or --out of a prediction")
    base = folder.resolve()
    roots: dict[str, str] = {}
    for entry in raw:
        dataset, separator, place = entry.partition("=")
        roots[dataset if separator else ""] = place = place if separator else entry
        if not Path(place).is_dir():
            raise ValueError(f"--raw {place}: no such folder")
    cohorts: dict[str, Cohort] = {}
    for path in _stores(base, DEPTH):
        if not path.resolve().is_relative_to(base):
            raise ValueError(f"{path}: a link that leads out of {folder}; name {path.resolve()} itself")
        named = path.parent if path.name == PREDICTION_STORE else path
        title = named.name
        if named != path and named != base:
            # predictions beside one another are listed together
            named, title = named.parent, named.parent.name
        relative = named.relative_to(base).as_posix()
        key = re.sub(r"[^A-Za-z0-9_-]+", "_", named.name if relative == "." else relative).strip("_") or "bags"
        root = roots.get(path.name, roots.get("")) if roots else None
        store = Store(path.resolve(), Path(root) if root else find_root(path.resolve()))
        cohorts.setdefault(key, Cohort(key, title_of(title))).add(store)
    if not cohorts and any(base.glob("**/prediction.json")):
        raise ValueError(f"{folder}: predictions without their tiles (bag/); predict again to look at them")
    if not cohorts:
        raise ValueError(
            f"{folder}: no bags.csv with instances/store in it or {DEPTH} folders down; expected results/ of the "
            "workflow (after `snakemake qc` at least), or the folder of a prediction"
        )
    unknown = sorted(roots.keys() - {"", *(store.folder.name for c in cohorts.values() for store in c.stores)})
    if unknown:
        raise ValueError(f"--raw {unknown[0]}=...: no such dataset, found {', '.join(cohorts)}")
    return cohorts


def _stores(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / "bags.csv").is_file() and (folder / "instances" / "store").is_dir():
        yield folder
    elif depth:
        for child in sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_dir()):
            if not child.name.startswith("."):
                yield from _stores(child, depth - 1)


def find_root(store: Path) -> Path | None:
    """Return the folder of the raw files of a store, None if it is not recorded or has moved.

    A relative folder counts from the working directory, then from the folders above the store.
    """
    report = store / "bags.report.json"
    recorded = ListReport.read(report).root if report.is_file() else ""
    if not recorded:
        return None
    image = next((row.images[0] for row in read_bags(store / "bags.csv") if row.images), "")
    candidates = [Path(recorded), *(parent / recorded for parent in store.parents)]
    # an absolute path replaces its parents
    return next((path.resolve() for path in candidates if path.is_dir() and (path / image).exists()), None)
