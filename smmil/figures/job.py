"""Inputs and outputs shared by all figures: the rows to show with their runs and metrics, and the frame of a picture.

A run is one split of one method on one dataset. A run of the layout without metrics is missing; missing runs are
counted in the picture and in `{figure}.json`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

from smmil.artifacts.chosen_runs import ChosenRun, load_chosen
from smmil.artifacts.records import Metrics, PredictionIndex
from smmil.artifacts.results import inverted, split_values
from smmil.config.definitions import preset_quirks, protocol_text, shared_quirks
from smmil.config.layouts import FigureDataset, FigureLayout
from smmil.config.methods import METHODS, marked_name
from smmil.config.outputs import pairings, title_of
from smmil.config.quirks import active_quirks
from smmil.config.variants import base_method
from smmil.figures.entries import FigureEntry, MissingRuns
from smmil.figures.plotting import headline, new_figure, save, style

if TYPE_CHECKING:
    from smmil.config.experiment import Config

Key = tuple[str, str, str]
# quirks that change a figure
FIGURE_QUIRKS = {"sm_alpha_rule", "sm_spectral_norm", "eval_histogram"}


@dataclass(frozen=True)
class Job:
    """One figure to draw; the fields are the arguments of the command line.

    Metrics and their files are by (dataset, encoder, method), folders of the instances stage by dataset.
    """

    figure: str
    layout: FigureLayout
    metrics: Mapping[Key, Metrics]
    out: Path
    metrics_files: Mapping[Key, Path] = field(default_factory=dict)
    indexes: Sequence[Path] = ()
    runs: Sequence[Path] = ()
    instances: Mapping[str, Path] = field(default_factory=dict)
    seed: int | None = None
    bag_ids: Sequence[str] = ()

    @property
    def protocol(self) -> str:
        """Protocol of the runs with the quirks that differ from its preset; without runs the layout's."""
        protocol, quirks = shared_quirks(self.metrics.values(), "figure")
        return protocol_text(protocol, quirks) if protocol else self.layout.protocol

    def quirk(self, name: str) -> bool:
        """Return whether a key of `smmil.config.quirks.QUIRKS` is in force."""
        recorded = any(metrics.quirks is not None for metrics in self.metrics.values())
        if self.layout.quirks is not None and not recorded:
            return name in self.layout.quirks
        protocol, quirks = shared_quirks(self.metrics.values(), "figure")
        return name in (quirks if protocol else preset_quirks(self.layout.protocol))

    @property
    def random_weights(self) -> bool:
        """Whether the features of any run come from an untrained encoder."""
        return any(metrics.random_weights for metrics in self.metrics.values())

    @property
    def n_splits(self) -> int:
        """Number of splits of a complete row."""
        return len(self.layout.splits) or max((len(metrics.splits) for metrics in self.metrics.values()), default=1)

    def metrics_of(self, dataset: FigureDataset, method: str) -> Metrics | None:
        """Return the metrics of a row, None without a run."""
        return self.metrics.get((dataset.name, dataset.encoder, method))

    def values(self, dataset: FigureDataset, method: str, metric: str) -> list[float]:
        """Return a test metric of a row, one value for each split that defines it."""
        return [value for _, value in split_values(self.metrics_of(dataset, method), metric)]

    def rows(self) -> Iterator[tuple[FigureDataset, str, list[str]]]:
        """Iterate over dataset, method and the names of its runs, in the order of the tables."""
        for dataset in self.layout.datasets:
            for method in in_order(dataset.methods):
                metrics = self.metrics_of(dataset, method)
                yield dataset, method, [split.run for split in metrics.splits] if metrics else []

    @property
    def missing(self) -> MissingRuns:
        """Runs of the layout without metrics."""
        where, rows = dict[str, tuple[tuple[str, int], ...]](), list(self.rows())
        for dataset, method, runs in rows:
            if gap := max(0, self.n_splits - len(runs)):
                where[dataset.title] = (*where.get(dataset.title, ()), (method, gap))
        missing = sum(gap for gaps in where.values() for _, gap in gaps)
        return MissingRuns(expected=len(rows) * self.n_splits, missing=missing, where=where)


@dataclass(frozen=True)
class PictureText:
    """Texts of a finished picture; `runs` are the runs it shows, None = all runs of the layout.

    `empty` says why it shows nothing although there are runs, "" otherwise.
    """

    title: str
    caption: str
    notes: Sequence[str]
    runs: Sequence[str] | None = None
    empty: str = ""


@contextmanager
def picture(job: Job, width: float, height: float, *lines: str, grid: bool = True) -> Iterator[Any]:
    """Yield an empty figure (sizes in inches) to draw into; then add warnings and missing runs on top, and save it.

    A title would repeat that of the page; `lines` are what a reader of the picture alone must know.
    """
    with style(grid=grid):
        figure = new_figure(width, height)
        yield figure
        headline(figure, *lines, job.missing.text, random=job.random_weights)
        save(figure, job.out)


def figure_layout(
    config: "Config", figure: str, dataset: str | None = None, encoder: str | None = None
) -> FigureLayout:
    """Return the layout of a figure of `smmil.config.targets.FIGURES`.

    `dataset` restricts it to one dataset, `encoder` replaces the main feature extractor.
    """
    rows: dict[tuple[str, str], list[str]] = {}
    for name, main_encoder, method in pairings(config, figure):
        if dataset in (None, name):
            rows.setdefault((name, encoder or main_encoder), []).append(method)
    datasets = [
        FigureDataset(name=name, title=title_of(name), encoder=used, methods=tuple(in_order(methods)))
        for (name, used), methods in rows.items()
    ]
    return FigureLayout(
        datasets=tuple(datasets),
        figure=figure,
        protocol=config.protocol,
        quirks=tuple(sorted(active_quirks(config.protocol, config.quirks) & FIGURE_QUIRKS)),
        splits=tuple(config.training.splits),
    )


def in_order(methods: Sequence[str]) -> list[str]:
    """Sort methods into the order of the tables, variants after their method in the order given."""
    order = list(METHODS)
    return sorted(dict.fromkeys(methods), key=lambda name: (order.index(base_method(name)), "__" in name))


def by_key(files: Sequence[Path], layout: FigureLayout) -> tuple[dict[Key, Metrics], dict[Key, Path]]:
    """Read the metrics files that belong to a layout.

    Raises:
        ValueError: two files for one row, rows of two protocols or of different quirks.
    """
    expected = {(dataset.name, dataset.encoder, method) for dataset in layout.datasets for method in dataset.methods}
    metrics: dict[Key, Metrics] = {}
    paths: dict[Key, Path] = {}
    for path in files:
        record = Metrics.read(path)
        key = (record.dataset, record.encoder, record.method)
        if key in metrics:
            raise ValueError(f"{path}: found a second file for {' / '.join(key)} beside {paths[key]}, expected one")
        if key in expected:
            metrics[key], paths[key] = record, path
    shared_quirks(metrics.values(), "figure")
    return metrics, paths


def spread_text(metrics: Metrics | None) -> str:
    """Return the spread of an AUROC over runs as `median 0.93 · worst 0.41 · ⇅ 1/5`; ⇅ counts inverted runs."""
    pairs = split_values(metrics, "instance_auroc")
    if not pairs:
        return ""
    values, n = [value for _, value in pairs], len(inverted(pairs))
    count = f" · ⇅ {n}/{len(values)}" if n else ""
    return f"median {median(values):.2f} · worst {min(values):.2f}{count}"


def inverted_note(job: Job) -> list[str]:
    """Return a line that names the rows with inverted runs and their sign-aware score, [] without any."""
    names = []
    for dataset, method, _ in job.rows():
        areas = split_values(job.metrics_of(dataset, method), "instance_auroc")
        signed = job.values(dataset, method, "signed_instance_auroc")
        aware = f", sign-aware mean {mean(signed):.2f}" if signed else ""
        if n := len(inverted(areas)):
            names.append(f"{marked_name(method)} on {dataset.title} ({n} of {len(areas)}{aware})")
    return [f"Inverted runs, instance AUROC < 0.5: {'; '.join(names)}."] if names else []


def chosen_run(job: Job, dataset: FigureDataset, method: str) -> ChosenRun | None:
    """Return the run that represents a row in pictures of single runs, None without a run."""
    metrics, key = job.metrics_of(dataset, method), (dataset.name, dataset.encoder, method)
    if metrics is None or (job.seed is not None and job.seed not in [split.seed for split in metrics.splits]):
        return None
    # the command line names index files of all rows, in any order
    listed = [(path, PredictionIndex.read(path)) for path in job.indexes]
    indexes = [path for path, index in listed if (index.dataset, index.encoder, index.method) == key]
    return load_chosen(indexes, [job.metrics_files[key]], dataset=dataset.name, seed=job.seed)[0]


def describe(job: Job, text: PictureText, command: str, version: int) -> FigureEntry:
    """Return the record beside a figure."""
    notes = [*job.missing.notes, *text.notes]
    if job.random_weights:
        notes.insert(0, "† Random encoder weights: the picture only shows that the pipeline runs.")
    runs = [f"{d.name}/{d.encoder}/{method}/{run}" for d, method, names in job.rows() for run in names]
    return FigureEntry(
        figure=job.figure,
        title=text.title,
        caption=text.caption,
        notes=tuple(notes),
        datasets=tuple(dataset.name for dataset in job.layout.datasets),
        protocol=job.protocol,
        random_weights=job.random_weights,
        missing=job.missing,
        empty=text.empty,
        runs=tuple(runs if text.runs is None else text.runs),
        files=(job.out.name, job.out.with_suffix(".pdf").name),
        command=command,
        stage_version=version,
    )
