"""The rehearsal of scale: counts and exclusions of the paper, bags that the stages can cut, jobs of the paper."""

from collections import Counter
from pathlib import Path

import pytest

from preprocessing.bags.table import validate_bags
from preprocessing.common.options import parse_instance_options
from preprocessing.datasets import DATASETS
from preprocessing.datasets.panda import BLANK, BROKEN_MASKS, EXPECTED
from preprocessing.instances.stage import compute
from preprocessing.synthetic import cohort
from preprocessing.synthetic.__main__ import main
from preprocessing.synthetic.rehearsal import PLANS, SCANS, SLICES, panda_specs
from preprocessing.synthetic.sizes import RehearsalSize
from smmil.config.experiment import Config, load_yaml, parse_config
from smmil.config.outputs import all_pairings
from smmil.config.training_options import DataOptions
from smmil.data.labels import is_consistent
from smmil.planning import Plan
from tests.helpers.workflows import ROOT
from tests.tables.test_tables_targets import merged

FRACTION = 0.01
REHEARSAL = ROOT / "workflow" / "rehearsal.yaml"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a working directory with a hundredth of the bags."""
    folder = tmp_path_factory.mktemp("rehearsal")
    cohort.build(folder / "rehearsal" / "raw", "rehearsal", overrides={"fraction": FRACTION})
    return folder


@pytest.fixture(scope="module")
def config() -> Config:
    return parse_config(merged(load_yaml(ROOT / "config.yaml"), load_yaml(REHEARSAL)))


def test_counts_are_the_papers() -> None:
    size = RehearsalSize(1.0)
    slides = {item.name: item.spec[2] for item in PLANS["camelyon16"](size, 0).items}
    kinds = Counter((name.split("_")[0], lesion) for name, lesion in slides.items() if name != "test_049")
    expected = {("normal", False): 159, ("tumor", True): 111, ("test", False): 80, ("test", True): 49}
    assert kinds == expected and len(slides) == 399 + 1
    specs = panda_specs(size, 0)
    parts = Counter(spec.part for spec, *_ in specs)
    assert len(specs) == len({spec.name for spec, *_ in specs}) == 10_616
    assert parts == {part: EXPECTED[f"table_{part}"] for part in ("train", "val", "test")}
    used = [spec for spec, _, kind in specs if spec.mask and spec.name not in BROKEN_MASKS and kind != "white"]
    assert len(used) == EXPECTED["paper_bags"] and BLANK not in {spec.name for spec in used}
    scans = PLANS["rsna"](size, 0)
    assert len(scans.items) == sum(SCANS.values()) == DATASETS["rsna"].expected["bags"]
    rows = scans.tables["test_scans.csv"].splitlines()[1:]
    positive = {row.split(",")[2] for row in rows if row.split(",")[3] == "1"}
    assert len(rows) == SCANS["test"] * SLICES and len(positive) == DATASETS["rsna"].expected["test_positive"]


@pytest.mark.parametrize(("kind", "n"), [("camelyon16", 2), ("panda", 2), ("rsna", 3)])
def test_readers_and_rules_take_every_bag(
    directory: Path, monkeypatch: pytest.MonkeyPatch, config: Config, kind: str, n: int
) -> None:
    monkeypatch.chdir(directory)
    chosen = config.datasets[kind]
    root = Path(chosen.root)
    table = DATASETS[kind].list_bags(root, chosen.source)
    validate_bags(table.rows, root, source=kind)
    excluded = {item.name for item in table.report.excluded}
    assert excluded == {"camelyon16": {"test_049"}, "panda": {BLANK}, "rsna": set()}[kind]
    assert len(table.rows) <= DATASETS[kind].count(root, chosen.source)
    options = parse_instance_options(chosen.instances.model_dump_json())
    rule = DataOptions(label_rule=chosen.label_rule, label_threshold=chosen.label_threshold)
    left_out = []
    for row in table.rows:
        bag = compute(row, options.of(row.modality), root)
        usable = len(bag.coords) and is_consistent(bag.coverage, float(row.label or 0), rule)
        left_out += [] if usable else [(row.bag_id, len(bag.coords))]
        assert len(bag.coords) in (0, n)
        if usable:
            assert (bag.neighbors >= 0).any() and (bag.coverage > 0.5).sum() == row.label
    # PANDA: the broken masks, one without a mask, and one without tissue (which is benign or not)
    assert Counter(size for _, size in left_out) == ({2: 4, 0: 1} if kind == "panda" else {})
    assert {(row.split, row.label) for row in table.rows} == {(s, y) for s in ("train", "test") for y in (0, 1)}


def test_trainings_are_those_of_the_paper(directory: Path, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all_pairings(config) == all_pairings(parse_config(load_yaml(ROOT / "config.yaml")))
    monkeypatch.chdir(directory)
    few = {"datasets": {name: {"bags_per_shard": 25} for name in config.datasets}}
    plan = Plan(parse_config(merged(config.model_dump(), few)))
    # 5 slides and 11 or 12 scans in one shard each, 106 slides in five
    assert [len(plan.shards(name)) for name in config.datasets] == [1, 5, 1]


def test_every_run_is_one_step_with_the_papers_splits_and_rates(config: Config) -> None:
    paper = parse_config(load_yaml(ROOT / "config.yaml"))
    assert config.training.epochs == 1
    assert (config.training.splits, config.training.learning_rates) == (
        paper.training.splits,
        paper.training.learning_rates,
    )
    for name, chosen in config.datasets.items():
        sizes = {chosen.batch_size_of(method) for _, _, method in all_pairings(config)}
        assert min(sizes) > max(DATASETS[chosen.kind].expected.get("bags", 0), 10_616), name
        assert chosen.bags_per_shard == paper.datasets[name].bags_per_shard


@pytest.mark.parametrize("fraction", ["0", "1.5"])
def test_impossible_fractions_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], fraction: str) -> None:
    assert main(["--out", str(tmp_path / "out"), "--size", "rehearsal", "--fraction", fraction]) == 2
    assert "--fraction" in capsys.readouterr().err and not (tmp_path / "out").exists()
