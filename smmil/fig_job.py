"""What every figure has in common: which rows it should show, which runs are there, which are missing, its JSON file.

Layout (JSON, from the configuration by `figure_layout`):
    {"figure": "fig6a", "protocol": "as_written", "quirks": [], "splits": [1, 2, 3, 4, 5],
     "datasets": [{"name": "camelyon16", "title": "CAMELYON16", "encoder": "resnet50_bt", "methods": ["abmil", ...]}]}
`quirks` are the differences of `smmil.protocol` in force that change a figure, for runs that do not say theirs; without
the key they follow from the runs' protocol. A run is one split of one method on one dataset; a run of the layout
without metrics is missing, and is counted in the picture and in `{figure}.json`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smmil.definitions import protocol_text, shared_quirks
from smmil.methods_table import METHODS
from smmil.variants import base_method

if TYPE_CHECKING:
    from smmil.chosen_runs import ChosenRun
    from smmil.config import Config

Key = tuple[str, str, str]
Metrics = dict[str, Any]
SHOWN_QUIRKS = {"sm_alpha_rule", "sm_spectral_norm", "eval_histogram"}
TITLES = {"camelyon16": "CAMELYON16", "panda": "PANDA", "rsna": "RSNA"}


@dataclass(frozen=True)
class Job:
    """One figure to draw.

    Attributes:
        figure: its name.
        layout: see the module docstring.
        metrics: metrics objects by (dataset, encoder, method).
        metrics_files: where they came from.
        indexes: index.json of predictions.
        runs: runs.json files of training.
        instances: folder of the instances stage by dataset.
        seed: split whose run is shown; None = the first.
        bag_ids: bags of a map; empty = chosen by lesion share.
        out: PNG to write.
    """

    figure: str
    layout: dict[str, Any]
    metrics: dict[Key, Metrics]
    out: Path
    metrics_files: dict[Key, Path] = field(default_factory=dict)
    indexes: tuple[Path, ...] = ()
    runs: tuple[Path, ...] = ()
    instances: dict[str, Path] = field(default_factory=dict)
    seed: int | None = None
    bag_ids: tuple[str, ...] = ()

    @property
    def datasets(self) -> list[dict[str, Any]]:
        """Datasets of the layout."""
        return list(self.layout["datasets"])

    @property
    def protocol(self) -> str:
        """The protocol of the runs (they must agree) with the quirks that differ from its preset, else the layout's."""
        protocol, quirks = shared_quirks(self.metrics.values(), "figure")
        return protocol_text(protocol, quirks) if protocol else str(self.layout.get("protocol", "as_written"))

    def quirk(self, name: str) -> bool:
        """Whether a difference between the protocols is in force, a key of `smmil.protocol.QUIRKS`."""
        recorded = any("quirks" in one for one in self.metrics.values())
        if "quirks" in self.layout and not recorded:
            return name in self.layout["quirks"]
        rows = list(self.metrics.values()) or [{"protocol": self.protocol}]
        return name in shared_quirks(rows, "figure")[1]

    @property
    def random_weights(self) -> bool:
        """Whether any run's features come from an untrained encoder."""
        return any(one.get("random_weights") for one in self.metrics.values())

    def of(self, dataset: Mapping[str, Any], method: str) -> Metrics | None:
        """The metrics of a row, None = no run."""
        return self.metrics.get((dataset["name"], dataset["encoder"], method))

    def n_splits(self) -> int:
        """Splits of a complete row."""
        given = self.layout.get("splits")
        return len(given) if given else max((len(one["splits"]) for one in self.metrics.values()), default=1)

    def behind(self) -> list[str]:
        """The chosen runs behind the figure, as dataset/method/run."""
        rows = [(d, method) for d in self.datasets for method in in_order(d["methods"])]
        return [
            f"{d['name']}/{d['encoder']}/{method}/{split['run']}"
            for d, method in rows
            for split in (self.of(d, method) or {"splits": ()})["splits"]
        ]


@dataclass(frozen=True)
class Drawn:
    """What a drawing function says about its picture."""

    title: str
    caption: str
    notes: list[str]
    runs: list[str] | None = None


def figure_layout(config: "Config", figure: str, dataset: str | None = None) -> dict[str, Any]:
    """The layout of a figure, from the configuration.

    Args:
        config: the experiment.
        figure: key of `smmil.outputs.FIGURES`.
        dataset: only this one (a companion of the figure).
    """
    from smmil.outputs import pairings
    from smmil.protocol import active_quirks

    rows: dict[tuple[str, str], list[str]] = {}
    for name, encoder, method in pairings(config, figure):
        if dataset in (None, name):
            rows.setdefault((name, encoder), []).append(method)
    return {
        "figure": figure,
        "protocol": config.protocol,
        "quirks": sorted(active_quirks(config.protocol, config.quirks) & SHOWN_QUIRKS),
        "splits": list(config.training.splits),
        "datasets": [
            {"name": name, "title": TITLES.get(name, name), "encoder": encoder, "methods": in_order(methods)}
            for (name, encoder), methods in rows.items()
        ],
    }


def check_layout(layout: Mapping[str, Any]) -> None:
    """Checks a layout.

    Raises:
        ValueError: with what was found and what is expected.
    """
    unknown = sorted(set(layout) - {"figure", "protocol", "quirks", "splits", "datasets"})
    if unknown or not isinstance(layout.get("datasets"), list):
        raise ValueError(f"--layout: found the keys {sorted(layout)}, expected datasets [, figure, protocol, splits]")
    for dataset in layout["datasets"]:
        if not {"name", "encoder", "methods"} <= set(dataset) <= {"name", "encoder", "methods", "title"}:
            raise ValueError(f"--layout: datasets: found {dataset}, expected name, encoder, methods [, title]")
        strange = [method for method in dataset["methods"] if base_method(method) not in METHODS]
        if strange:
            raise ValueError(f"--layout: methods: found {strange}, expected keys of smmil.methods_table.METHODS")


def in_order(methods: Sequence[str]) -> list[str]:
    """Methods in the order of the tables, the variants of one behind it in the order given."""
    order = list(METHODS)
    return sorted(dict.fromkeys(methods), key=lambda name: (order.index(base_method(name)), "__" in name))


def by_key(files: Sequence[Path], layout: Mapping[str, Any]) -> tuple[dict[Key, Metrics], dict[Key, Path]]:
    """The metrics files that belong to a layout.

    Raises:
        ValueError: two files for one row, or rows of two protocols or of different quirks in one figure.
    """
    from smmil.results import read_metrics

    wanted = {(d["name"], d["encoder"], method) for d in layout["datasets"] for method in d["methods"]}
    metrics: dict[Key, Metrics] = {}
    paths: dict[Key, Path] = {}
    for path in files:
        one = read_metrics(path)
        key = (one["dataset"], one["encoder"], one["method"])
        if key in metrics:
            raise ValueError(f"{path}: found a second file for {' / '.join(key)} beside {paths[key]}, expected one")
        if key in wanted:
            metrics[key], paths[key] = one, path
    shared_quirks(metrics.values(), "figure")
    return metrics, paths


def missing_runs(job: Job) -> dict[str, Any]:
    """Which runs of the layout have no metrics.

    Returns:
        `expected` and `missing` runs, and `where`: per dataset title, (method, missing runs of it).
    """
    n = job.n_splits()
    expected, absent = 0, 0
    where: dict[str, list[list[Any]]] = {}
    for dataset in job.datasets:
        for method in in_order(dataset["methods"]):
            few = max(0, n - len((job.of(dataset, method) or {"splits": ()})["splits"]))
            expected += n
            absent += few
            if few:
                where.setdefault(dataset.get("title", dataset["name"]), []).append([method, few])
    return {"expected": expected, "missing": absent, "where": where}


def missing_text(missing: Mapping[str, Any]) -> str:
    """One line for the picture's head, "" when nothing is missing."""
    return f"{missing['missing']} of {missing['expected']} runs are missing" if missing["missing"] else ""


def missing_note(missing: Mapping[str, Any]) -> list[str]:
    """The same with names, for the caption."""
    from smmil.plotting import shown_name

    if not missing["missing"]:
        return []
    parts = [
        f"{title}: {', '.join(f'{shown_name(method)} ({n})' for method, n in rows)}"
        for title, rows in missing["where"].items()
    ]
    return [f"{missing_text(missing)}. {'; '.join(parts)}."]


def spread_text(metrics: Mapping[str, Any], metric: str = "instance_auroc") -> str:
    """`median 0.93 · worst 0.41 · ⇅ 1/5`: the spread of a metric over a method's runs, "" if undefined; ⇅ inverted."""
    from statistics import median

    values = [v for split in metrics["splits"] if (v := split["test"].get(metric)) is not None]
    if not values:
        return ""
    inverted = sum(value < 0.5 for value in values)
    count = f" · ⇅ {inverted}/{len(values)}" if inverted else ""
    return f"median {median(values):.2f} · worst {min(values):.2f}{count}"


def inverted_note(job: Job) -> list[str]:
    """Which rows hold inverted runs, with the sign-aware score beside where it was measured."""
    from statistics import mean

    from smmil.plotting import shown_name

    odd = []
    for dataset in job.datasets:
        for method in in_order(dataset["methods"]):
            tests = [split["test"] for split in (job.of(dataset, method) or {"splits": ()})["splits"]]
            areas = [v for test in tests if (v := test.get("instance_auroc")) is not None]
            n = sum(area < 0.5 for area in areas)
            signed = [v for test in tests if (v := test.get("signed_instance_auroc")) is not None]
            aware = f", sign-aware mean {mean(signed):.2f}" if signed else ""
            if n:
                title = dataset.get("title", dataset["name"])
                odd.append(f"{shown_name(method)} on {title} ({n} of {len(areas)}{aware})")
    return [f"Inverted runs, instance AUROC < 0.5: {'; '.join(odd)}."] if odd else []


def chosen_run(job: Job, dataset: Mapping[str, Any], method: str) -> "ChosenRun | None":
    """The run that stands for a row in pictures of single runs; None = no run.

    Raises:
        ValueError: metrics without their predictions, or no such split.
    """
    from smmil.chosen_runs import load_chosen
    from smmil.results import read_json

    key = (dataset["name"], dataset["encoder"], method)
    if key not in job.metrics:
        return None
    if job.seed is not None and job.seed not in [split["seed"] for split in job.metrics[key]["splits"]]:
        return None
    own = []
    for path in job.indexes:
        facts = read_json(path)
        says = tuple(facts.get(name) for name in ("dataset", "encoder", "method"))
        if says == key or (None in says and path.resolve().parent.name == method):
            own.append(path)
    return load_chosen(own, [job.metrics_files[key]], dataset=dataset["name"], seed=job.seed)[0]


def describe(job: Job, drawn: Drawn, command: str, version: int) -> dict[str, Any]:
    """The JSON object beside a figure."""
    missing = missing_runs(job)
    notes = [*missing_note(missing), *drawn.notes]
    if job.random_weights:
        notes.insert(0, "† Random encoder weights: the picture only shows that the pipeline runs.")
    return {
        "figure": job.figure,
        "title": drawn.title,
        "caption": drawn.caption,
        "notes": notes,
        "datasets": [dataset["name"] for dataset in job.datasets],
        "protocol": job.protocol,
        "random_weights": job.random_weights,
        "missing": missing,
        "runs": job.behind() if drawn.runs is None else drawn.runs,
        "files": [job.out.name, job.out.with_suffix(".pdf").name],
        "command": command,
        "stage_version": version,
    }
