"""Layouts: which datasets, feature extractors and methods a table or figure shows; JSON on the command lines."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from preprocessing.common.options import Options
from smmil.config.methods import METHODS
from smmil.config.variants import base_method


def _known(method: str) -> str:
    if base_method(method) not in METHODS:
        raise ValueError("expected a key of smmil.config.methods.METHODS")
    return method


MethodKey = Annotated[str, AfterValidator(_known)]


class Layout(Options):
    """Base of all layouts; `EXPECTED` lists the keys for error messages."""

    EXPECTED: ClassVar[str] = ""

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> Self:
        """Validate a JSON object given as `--layout`; ValueError names every key that is wrong."""
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}, found {e['input']!r}" for e in error.errors()]
            raise ValueError(f"--layout: {'; '.join(problems)}; expected {cls.EXPECTED}") from error

    def to_json(self) -> str:
        """Return the keys that were given as JSON, sorted."""
        return json.dumps(self.model_dump(exclude_unset=True), sort_keys=True)


class Dataset(Options):
    """A dataset, its title, by default its name, and how its bags were sampled, "" where its split is given."""

    name: str
    title: str = Field(default_factory=lambda data: str(data["name"]))
    split_note: str = ""


class TableDataset(Dataset):
    """A dataset of a table with its feature extractors; `encoder` is accepted for a single one."""

    encoders: tuple[str, ...] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _single_encoder(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and "encoder" in value and "encoders" not in value:
            return {**{k: v for k, v in value.items() if k != "encoder"}, "encoders": [value["encoder"]]}
        return value


class TableLayout(Layout):
    """Datasets and methods of a table: its columns, and its rows where the paper does not fix them.

    Attributes:
        splits: splits of a complete cell; None = the largest number in the metrics.
        note: first line under the table.
    """

    EXPECTED = "datasets (each with name, encoders [, title, split_note]), methods [, splits, note]"

    datasets: tuple[TableDataset, ...]
    methods: tuple[MethodKey, ...] = ()
    splits: int | None = None
    note: str = ""

    @property
    def pairings(self) -> tuple[tuple[str, str, str], ...]:
        """(dataset, encoder, method) of every run in the table; tables with fixed rows list them as `methods`."""
        return tuple((d.name, encoder, m) for d in self.datasets for encoder in d.encoders for m in self.methods)


class PairDataset(Dataset):
    """A dataset of the table `comparisons`: its main feature extractor, and pairs of a method with Sm and its base."""

    encoder: str
    pairs: tuple[tuple[MethodKey, MethodKey], ...] = Field(min_length=1)


class PairLayout(Layout):
    """Pairs of methods in the table `comparisons`; `splits` is the number of splits of a complete cell."""

    EXPECTED = "datasets (each with name, encoder, pairs [, title, split_note]) and splits"

    datasets: tuple[PairDataset, ...]
    splits: int

    @property
    def pairings(self) -> tuple[tuple[str, str, str], ...]:
        """(dataset, encoder, method) of every run in the table, each once."""
        methods = {dataset: dict.fromkeys(m for pair in dataset.pairs for m in pair) for dataset in self.datasets}
        return tuple((dataset.name, dataset.encoder, m) for dataset, names in methods.items() for m in names)


def parse_table_layout(table: str, value: Mapping[str, Any]) -> TableLayout | PairLayout:
    """Validate the layout of a table of `smmil.config.targets.TABLES` as `Layout.parse` does."""
    return (PairLayout if table == "comparisons" else TableLayout).parse(value)


class FigureDataset(Dataset):
    """A dataset of a figure: its feature extractor, and its methods and variants."""

    encoder: str
    methods: tuple[MethodKey, ...]


class FigureLayout(Layout):
    """Datasets and methods of a figure.

    Attributes:
        protocol: protocol of the configuration, shown without any run.
        quirks: quirks of the configuration that change a figure, for runs that do not record theirs; None = those of
            the runs' protocol.
        splits: seeds of a complete row; () = the largest number of splits in the metrics.
    """

    EXPECTED = "datasets (each with name, encoder, methods [, title]) [, figure, protocol, quirks, splits]"

    datasets: tuple[FigureDataset, ...]
    figure: str = ""
    protocol: str = "as_written"
    quirks: tuple[str, ...] | None = None
    splits: tuple[int, ...] = ()

    def single(self) -> FigureDataset:
        """Return the dataset of a layout of one; ValueError for a layout of several."""
        if len(self.datasets) != 1:
            raise ValueError(f"--layout: found {len(self.datasets)} datasets, expected one; draw one picture each")
        return self.datasets[0]
