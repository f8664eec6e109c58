"""Files that each target of the workflow needs, and the JSON arguments of its jobs.

The rules in `workflow/rules/` ask a `Plan`. No image is opened: the names in a raw folder give the number of shards,
sizes and times of the raw files say what has changed, and under `report.partial` the runs.json files that exist say
which trainings have ended.
"""

import json
import logging
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from preprocessing.bags.cohort import Cohort
from preprocessing.bags.identity import listing_stamp, raw_stamp
from preprocessing.bags.rows import BagRow
from preprocessing.bags.table import read_bags, shard_rows
from preprocessing.common.files import brace_free
from preprocessing.datasets import DATASETS, MissingRaw
from preprocessing.datasets.base import source_files
from preprocessing.features.encoders import ENCODERS, check_timm_name, needs_download
from smmil.config.experiment import Config
from smmil.config.outputs import pairings, table_layout
from smmil.config.targets import REPEATS, Pairing
from smmil.config.variants import base_method

log = logging.getLogger(__name__)

# steps per epoch, below which a study is warned
FEWEST_STEPS = 3
# the one file of a training in the folders of each kind
RESULT_FILES = {"metrics": ".json", "runs": "/runs.json", "predictions": "/index.json"}
# pictures of single datasets that belong to a figure
COMPANIONS = {
    "fig4": ("figures/{}/histograms.json", "figures/{}/resources.json"),
    "fig5": ("maps/{}/maps.json",),
    "curves": ("figures/{}/curves.json",),
}


@dataclass(frozen=True)
class Plan:
    """The files of an experiment; paths are relative to the working directory.

    `counts` are bags by dataset, filled when a raw folder is first looked at.
    """

    config: Config
    counts: dict[str, int] = field(default_factory=dict, init=False, repr=False)

    @property
    def results(self) -> str:
        """Return the folder of everything that is computed, as Snakemake may call it."""
        return brace_free(self.config.results).rstrip("/")

    @property
    def weights_folder(self) -> str:
        """Return the folder of the encoder weights, as Snakemake may call it."""
        return brace_free(self.config.weights.folder).rstrip("/")

    # ---- preprocessing

    def shards(self, dataset: str) -> list[str]:
        """Return the names of the shards of a dataset: `0000`, `0001`, ...; as many as published without raw data."""
        chosen = self.config.datasets[dataset]
        if dataset not in self.counts:
            try:
                self.counts[dataset] = self._count(dataset)
            except MissingRaw:
                # A dry run then shows the size of the paper to everybody, also to those without its data.
                self.counts[dataset] = DATASETS[chosen.kind].expected.get("bags", 1)
        return [f"{i:04d}" for i in range(max(1, -(-self.counts[dataset] // chosen.bags_per_shard)))]

    def _count(self, dataset: str) -> int:
        chosen = self.config.datasets[dataset]
        return DATASETS[chosen.kind].count(Path(chosen.root), chosen.source)

    def capacity(self, dataset: str) -> int:
        """Return the number of bags that the shards of a dataset can hold."""
        return len(self.shards(dataset)) * self.config.datasets[dataset].bags_per_shard

    def listing_stamp(self, dataset: str) -> str:
        """Return a hash of the tables and folders that a dataset's list of bags is made from."""
        chosen = self.config.datasets[dataset]
        root = Path(chosen.root)
        return listing_stamp([*source_files(root, chosen.source), *DATASETS[chosen.kind].reads(root, chosen.source)])

    def raw_stamp(self, dataset: str, shard: str) -> str:
        """Return a hash of size and time of the raw files of a shard, "" as long as no bags are listed."""
        chosen, bags = self.config.datasets[dataset], Path(f"{self.results}/{dataset}/bags.csv")
        if not bags.is_file():
            return ""
        rows = _bags(bags, bags.stat().st_mtime_ns)
        return raw_stamp(chosen.root, shard_rows(rows, int(shard), chosen.bags_per_shard))

    def missing_raw(self) -> list[str]:
        """Return one message per dataset in use without raw data.

        Raises:
            ValueError: raw data that cannot be listed, for example a faulty manifest; one message for all datasets.
        """
        missing, faulty = [], []
        for dataset in self.config.used:
            try:
                self.counts[dataset] = self._count(dataset)
            except MissingRaw as error:
                missing.append(f"datasets.{dataset}: {error}")
                self.shards(dataset)
                log.warning("datasets.%s: no raw data yet, planned for %d bags", dataset, self.counts[dataset])
            except ValueError as error:
                faulty.append(f"datasets.{dataset}: {error}")
        if faulty:
            raise ValueError("\n\n".join(faulty))
        return missing

    def instances(self, *names: str) -> list[str]:
        """Return the instance manifests of datasets."""
        return [f"{self.results}/{name}/instances/shards/{shard}.json" for name in names for shard in self.shards(name)]

    def features(self, dataset: str, *encoders: str) -> list[str]:
        """Return the feature manifests of a dataset, of all its encoders unless some are named."""
        return [
            f"{self.results}/{dataset}/features/{encoder}/shards/{shard}.json"
            for encoder in encoders or self.config.datasets[dataset].encoders
            for shard in self.shards(dataset)
        ]

    def earlier_encoder(self, dataset: str, encoder: str, shard: str) -> list[str]:
        """Return the manifest of the preceding encoder in the list.

        The job of the first encoder decodes the pixels of a shard once for all encoders, so the jobs run in this order.
        """
        encoders = self.config.datasets[dataset].encoders
        position = encoders.index(encoder) if encoder in encoders else 0
        return [
            f"{self.results}/{dataset}/features/{name}/shards/{shard}.json"
            for name in encoders[max(0, position - 1) : position]
        ]

    def instance_bytes(self, dataset: str) -> int:
        """Return the bytes of the features of one instance, all encoders together; unknown sizes count as 1024."""
        encoders = [ENCODERS.get(name) for name in self.config.datasets[dataset].encoders]
        numbers = sum((encoder.dim if encoder else 0) or 1024 for encoder in encoders)
        return numbers * (2 if self.config.features.dtype == "float16" else 4)

    def weights(self, encoders: Iterable[str]) -> list[str]:
        """Return the files of encoder weights, none where weights are random."""
        if self.config.weights.mode == "random":
            return []
        return [f"{self.weights_folder}/{encoder}.pth" for encoder in encoders]

    # ---- training

    def trained_bags(self, dataset: str) -> str:
        """Return bags.csv of a dataset that is trained.

        ValueError: its labels and splits, where they are known without opening an image, cannot be trained on.
        """
        cohort = self._cohort(dataset)
        if cohort and cohort.problems:
            raise ValueError(f"datasets.{dataset}: {'; '.join(cohort.problems)}")
        return f"{self.results}/{dataset}/bags.csv"

    def _cohort(self, dataset: str) -> Cohort | None:
        """Return the counts of the bags, None where they are known only when the bags are listed."""
        chosen = self.config.datasets[dataset]
        count = DATASETS[chosen.kind].cohort
        try:
            return count(Path(chosen.root), chosen.source) if count else None
        except MissingRaw:
            return None

    def listed_splits(self, dataset: str) -> int:
        """Return the training splits that listing checks labels for; 0 where nothing is trained or it is done here."""
        chosen = self.config.datasets[dataset]
        return len(self.config.training.splits) if chosen.train and not DATASETS[chosen.kind].cohort else 0

    def remarks(self) -> list[str]:
        """Return what will need a network, and what will leave cells of the tables empty or weak.

        Only what is known without opening an image.

        Raises:
            ValueError: weights of an encoder that cannot be used, or a folder of results that cannot be made.
        """
        remarks = []
        self._check_results()
        # imported features have encoders of other names
        named = {name for dataset in self.config.used.values() for name in dataset.encoders}
        encoders = sorted(name for name in named if name in ENCODERS or name.startswith("timm/"))
        for encoder in encoders:
            if encoder.startswith("timm/"):
                check_timm_name(encoder)
        files = zip(encoders, self.weights(encoders), strict=False)
        if absent := [file for encoder, file in files if needs_download(encoder, Path(file))]:
            remarks.append(f"encoder weights are downloaded first, which needs a network: {', '.join(absent)}")
        for dataset in self.config.trained:
            cohort = self._cohort(dataset)
            if cohort and not cohort.problems:
                lines = [*cohort.remarks(len(self.config.training.splits)), *self._study_remarks(dataset, cohort)]
                remarks += [f"datasets.{dataset}: {line}" for line in lines]
        return remarks

    def _study_remarks(self, dataset: str, cohort: Cohort) -> list[str]:
        """Return what the authors of a published dataset have settled, and those of an own study have to."""
        if self.config.preset != "study":
            return []
        chosen, remarks = self.config.datasets[dataset], []
        if not cohort.grouped:
            remarks.append("no bag has a group, so slides of one patient can be on both sides of a split")
        share = 1 if any(cohort.labels("val")) else 1 - chosen.val_share
        steps = math.ceil(share * sum(cohort.labels("train")) / chosen.batch_size)
        if steps < FEWEST_STEPS:
            remarks.append(
                f"{sum(cohort.labels('train'))} training bags make {steps} steps of {chosen.batch_size} bags per "
                f"epoch; methods may learn little{', so lower batch_size' if chosen.batch_size > 1 else ''}"
            )
        return remarks

    def _check_results(self) -> None:
        """Raise if the folder of the results is a file, lies in one, or cannot be written."""
        folder = Path(self.config.results).absolute()
        nearest = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
        if not nearest.is_dir():
            raise ValueError(f"results: {nearest} is no folder, so {folder} cannot be made; name another one")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise ValueError(f"results: no permission to write in {nearest}; name another folder")

    def training_parts(self, dataset: str, encoder: str, method: str) -> list[str]:
        """Return one file per split where `training.split_jobs` trains the splits of a method in jobs of their own."""
        training = self.config.training
        folder = f"{self.results}/{dataset}/runs/{encoder}/{method}/parts"
        return [f"{folder}/split{seed}.json" for seed in training.splits] if training.is_split(method) else []

    def method_options(self, dataset: str, method: str) -> str:
        """Return the arguments of a method as JSON; a variant of a sweep adds the argument that it varies."""
        options = {**self.config.method_options.get(base_method(method), {})}
        variant = self.config.variants_on(dataset).get(method)
        if variant is not None:
            options[variant.argument] = variant.value
        return json.dumps(options, sort_keys=True)

    def is_trained(self, training: Pairing) -> bool:
        """Return whether runs.json of a training exists."""
        dataset, encoder, method = training
        return Path(f"{self.results}/{dataset}/runs/{encoder}/{method}/runs.json").exists()

    def files(self, kind: str, trainings: Iterable[Pairing]) -> list[str]:
        """Return one file per training, of a kind in `RESULT_FILES`; under `report.partial` only of the finished."""
        return [
            f"{self.results}/{dataset}/{kind}/{encoder}/{method}{RESULT_FILES[kind]}"
            for dataset, encoder, method in trainings
            if not self.config.report.partial or self.is_trained((dataset, encoder, method))
        ]

    def scores(self) -> list[str]:
        """Return scores.csv of each dataset that is scored with runs of another one."""
        chosen = [(name, dataset.score_with) for name, dataset in self.config.used.items() if dataset.score_with]
        return [
            f"{self.results}/{name}/scores/{runs.dataset}/{runs.encoder}/{runs.method}/scores.csv"
            for name, runs in chosen
            if self.files("runs", [(runs.dataset, runs.encoder, runs.method)])
        ]

    # ---- tables and figures

    def of_target(self, kind: str, target: str) -> list[str]:
        """Return the files of the trainings that a table or figure shows."""
        return self.files(kind, pairings(self.config, target))

    def of_table(self, kind: str, table: str) -> list[str]:
        """Return the files of the trainings that a table shows.

        Raises:
            ValueError: the configuration trains nothing for this table.
        """
        if pairings(self.config, table):
            return self.of_target(kind, table)
        if self.config.trained:
            raise ValueError(
                f"{table}: no method with Sm is trained beside its base (methods, report.tables), so there is nothing "
                "to compare"
            )
        raise ValueError(f"{table}: no dataset in use is trained (datasets.*.train), so there is nothing to show")

    def of_dataset(self, kind: str, figure: str, dataset: str, encoder: str) -> list[str]:
        """Return the files of the methods of a figure on one dataset, with one encoder."""
        methods = [method for name, _, method in pairings(self.config, figure) if name == dataset]
        return self.files(kind, [(dataset, encoder, method) for method in methods])

    def table_files(self, table: str) -> list[str]:
        """Return the files of a table."""
        suffixes = ["csv", "md", "tex", "html", *(["json"] if table == "comparisons" else [])]
        return [f"{self.results}/tables/{table}.{suffix}" for suffix in suffixes]

    def figure_files(self, figure: str) -> list[str]:
        """Return the files of a figure and its companions; learning curves are drawn per dataset only."""
        suffixes = [] if figure == "curves" else ["png", "pdf", "json"]
        return [f"{self.results}/figures/{figure}.{suffix}" for suffix in suffixes] + self.companions(figure)

    def companions(self, figure: str) -> list[str]:
        """Return the pictures of single datasets that belong to a figure."""
        return [
            f"{self.results}/{dataset}/{name.format(chosen.table_encoder)}"
            for dataset, chosen in self.config.trained.items()
            for name in COMPANIONS.get(figure, ())
        ]

    # ---- report

    @property
    def tables(self) -> list[str]:
        """Return the tables of `report.tables` that show any training; a study repeats no table."""
        config = self.config
        tables = [table for table in config.report.tables if pairings(config, table)]
        if config.preset != "study" or config.more_methods or any(len(d.encoders) > 1 for d in config.trained.values()):
            return tables
        return [table for table in tables if REPEATS.get(table) not in tables]

    @property
    def figures(self) -> list[str]:
        """Return the figures of `report.figures` that show any training."""
        return [figure for figure in self.config.report.figures if pairings(self.config, figure)]

    def of_report(self, kind: str) -> list[str]:
        """Return the files of all trainings that the tables of the report show."""
        return self.files(kind, self._trainings)

    @property
    def _trainings(self) -> tuple[Pairing, ...]:
        return tuple(dict.fromkeys(training for table in self.tables for training in pairings(self.config, table)))

    def of_analysis(self, dataset: str, encoder: str) -> list[str]:
        """Return the prediction indexes that the analysis of a dataset shows: `methods` of it that the report shows."""
        trainings = [training for training in self._trainings if training[:2] == (dataset, encoder)]
        main = [training for training in trainings if training[2] in self.config.methods]
        return self.files("predictions", main or trainings)

    def analyses(self) -> list[str]:
        """Return the analyses of the report: of every dataset with results, at its main encoder."""
        main = [(dataset, chosen.table_encoder) for dataset, chosen in self.config.trained.items()]
        return [f"{self.results}/{d}/analysis/{e}/analysis.json" for d, e in main if self.of_analysis(d, e)]

    def report_figures(self) -> list[str]:
        """Return the JSON files of the figures of the report; histograms and costs are always among them."""
        companions = [file for figure in [*self.figures, "fig4"] for file in self.companions(figure)]
        files = companions + [file for figure in self.figures for file in self.figure_files(figure)]
        return [file for file in dict.fromkeys(files) if file.endswith(".json") and not file.endswith("maps.json")]

    def table_layouts(self) -> str:
        """Return the layouts of the tables of the report as one JSON object."""
        layouts = {table: json.loads(table_layout(self.config, table).to_json()) for table in self.tables}
        return json.dumps(layouts, sort_keys=True)


@lru_cache(maxsize=8)
def _bags(path: Path, mtime_ns: int) -> tuple[BagRow, ...]:
    """Read bags.csv once per version of the file; one that cannot be read is left to the jobs."""
    try:
        return tuple(read_bags(path))
    except ValueError:
        return ()
