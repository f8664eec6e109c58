"""Every table and figure is a target that asks for exactly the trainings it shows, for the paper and the demo.

Which those are is spelled out here from the configuration's own keys and the paper, beside
`smmil.config.outputs.pairings`.

The plan is Snakemake's own (`--summary`: the jobs of a dry run without their printing, half the time), of one target of
every rule and kind. All plans share one interpreter that has Snakemake loaded and forks once per target.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from smmil.config.experiment import Config, load_yaml, parse_config
from smmil.config.layouts import PairLayout, TableLayout
from smmil.config.methods import METHODS, bases
from smmil.config.outputs import compared, pairings, table_layout
from smmil.config.targets import BLOCKS, FIGURES, TABLES
from smmil.tables.specs import TABLES as SPECS
from tests.helpers.workflows import ROOT, fake_raw, planned, snakemake, touch, write_config

PLANS = """
import os, sys
import snakemake.cli, snakemake.dag, snakemake.workflow
import preprocessing.datasets, preprocessing.features, preprocessing.qc
import smmil.comparison_table, smmil.config, smmil.evaluate, smmil.figures, smmil.maps, smmil.predictions
import smmil.report, smmil.tables
snakemake.cli.get_argument_parser()  # loads the plugins
folder, targets, common = sys.argv[1], sys.argv[2].split(","), sys.argv[3:]
for target in targets:
    child = os.fork()
    if child == 0:
        file = os.open(f"{folder}/{target}.txt", os.O_CREAT | os.O_WRONLY)
        os.dup2(file, 1)
        os.dup2(file, 2)
        snakemake.cli.main([target, "--summary", *common])
    if os.waitpid(child, 0)[1]:
        sys.exit(open(f"{folder}/{target}.txt").read()[-3000:])
"""
# tests need no thousands of shards: how bags are cut does not touch what is trained
FEW_SHARDS = {"datasets": {name: {"bags_per_shard": 500} for name in ("camelyon16", "panda", "rsna")}}


def merged(*layers: dict[str, Any]) -> dict[str, Any]:
    """Configurations over one another as Snakemake merges them."""
    from snakemake.utils import update_config

    values: dict[str, Any] = {}
    for layer in layers:
        update_config(values, layer)
    return values


def plans(directory: Path, targets: list[str], *common: str) -> dict[str, list[tuple[str, ...]]]:
    """The (dataset, encoder, method) of every planned training, per target."""
    logs = directory / "logs"
    logs.mkdir()
    command = [sys.executable, "-c", PLANS, str(logs), ",".join(targets)]
    settings = ["--snakefile", str(ROOT / "Snakefile"), "--cores", "1", *common]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run([*command, *settings], cwd=directory, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    pattern = re.compile(r"^\S*results/(\w+)/runs/(\S+)/(\w+)/runs\.json\t-\ttrain_runs\t.*\tupdate pending$", re.M)
    return {target: pattern.findall((logs / f"{target}.txt").read_text()) for target in targets}


ABLATED = {
    "table3": ["smap_early", "smap_mid", "smap_late", "abmil", "smtap", "smt_ap", "t_smap", "t_ap"],
    "table4": ["clam", "smclam", "dsmil", "smdsmil", "dftd", "smdftd"],
    "table5": ["smap_early", "abmil_penalty", "abmil", "smtap", "t_penalty", "t_ap"],
}
SWEPT = {"fig6a": "alpha", "fig12": "alpha", "fig6b": "spectral_norm", "fig7": "T"}
# which method is compared with which
PAIRED = {
    **{"smap_early": "abmil", "smap_mid": "abmil", "smap_late": "abmil"},
    **{"smtap": "t_ap", "smt_ap": "t_ap", "t_smap": "t_ap"},
    **{"smclam": "clam", "smdsmil": "dsmil", "smdftd": "dftd"},
}


def needed(values: dict[str, Any], target: str) -> set[tuple[str, str, str]]:
    """The trainings of a table or figure from the keys of a configuration that uses all three datasets."""
    datasets = values["datasets"]
    main = {name: one.get("main_encoder") or one["encoders"][0] for name, one in datasets.items()}
    rows, more = values["methods"], values["methods"] + values["more_methods"]
    if target == "comparisons":
        trained = {(name, encoder, method) for name, encoder in main.items() for method in more}
        for table in set(values["report"]["tables"]) - {"comparisons"}:
            trained |= {one for one in needed(values, table) if one[1] == main[one[0]]}
        both = [(d, e, m, PAIRED[m]) for d, e, m in trained if (d, e, PAIRED.get(m)) in trained]
        return {(d, e, m) for d, e, *pair in both for m in pair}
    if target in SWEPT:
        found = set()
        for sweep in values["sweeps"].values():
            if sweep["argument"] == SWEPT[target]:
                points = [str(value).lower().replace(".", "p") for value in sweep["values"]]
                variants = [f"{sweep['method']}__{sweep['argument'].lower()}_{point}" for point in points]
                names = ["abmil", sweep["method"], *variants]
                found |= {(name, main[name], method) for name in sweep["datasets"] for method in names}
        swept = {name for name, _, _ in found}
        methods = {s["method"] for s in values["sweeps"].values() if s["argument"] == SWEPT[target]}
        return found | {(name, main[name], method) for name in swept for method in methods}
    if target in ABLATED:
        names = ["camelyon16"] if target == "table4" else [*datasets]
        return {(name, main[name], method) for name in names for method in ABLATED[target]}
    if target in ("table6", "table7", "table8", "table9", "table10", "resources"):
        return {(name, encoder, m) for name, one in datasets.items() for encoder in one["encoders"] for m in more}
    methods = {"cd": more, "curves": more}.get(target, rows)
    return {(name, encoder, method) for name, encoder in main.items() for method in methods}


TARGETS = [*TABLES, *FIGURES]
PLANNED = ("table1", "table7", "resources", "comparisons", "fig6a", "curves")


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, dict[str, list[tuple[str, ...]]], dict[str, Any]]:
    """The paper's configuration, the trainings of every table and figure, and the configuration's keys."""
    directory = tmp_path_factory.mktemp("paper")
    fake_raw(directory, panda=150, scans=60)
    changes = merged(FEW_SHARDS, {"datasets": {"panda": {"source": {"partition": "raw/panda/partition_PANDA.csv"}}}})
    found = plans(directory, [*PLANNED], "--configfile", write_config(directory, changes))
    values = merged(dict(load_yaml(ROOT / "config.yaml")), changes)
    return parse_config(values), found, values


@pytest.mark.parametrize("target", PLANNED)
def test_a_target_of_the_paper_trains_what_it_shows_and_nothing_else(paper: Any, target: str) -> None:
    config, planned_trainings, _ = paper
    trainings = planned_trainings[target]
    assert len(trainings) == len(set(trainings)), "a training is planned twice"
    assert set(trainings) == set(pairings(config, target))


def test_the_trainings_of_a_target_are_those_of_the_paper(paper: Any) -> None:
    config, _, values = paper
    counts = {target: len(set(pairings(config, target))) for target in TARGETS}
    assert {target: set(pairings(config, target)) for target in TARGETS} == {t: needed(values, t) for t in TARGETS}
    extractors = 4 + 3 + 3
    assert counts["table1"] == counts["table2"] == 10 * 3
    assert counts["table3"] == 8 * 3 and counts["table4"] == 6 and counts["table5"] == 6 * 3
    assert {counts[f"table{n}"] for n in range(6, 11)} | {counts["resources"]} == {13 * extractors}
    assert {name for _, name, _ in pairings(config, "table1")} == {"resnet50_bt", "resnet18"}
    # 6 methods with Sm and 2 bases on all datasets, 3 and 3 on CAMELYON16: no training that no other table asks for
    assert counts["comparisons"] == 8 * 3 + 6 and counts["curves"] == counts["cd"] == 13 * 3
    others = {training for table in TABLES if table != "comparisons" for training in pairings(config, table)}
    assert set(pairings(config, "comparisons")) <= others


def test_a_target_of_the_demo_trains_what_it_shows_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_raw(tmp_path / "demo", panda=20, scans=10)
    (tmp_path / "demo/raw/rsna/test_scans.csv").write_text("instance_name,bag_name\n")
    monkeypatch.chdir(tmp_path)
    demo = dict(load_yaml(ROOT / "workflow/demo.yaml"))
    values = merged(dict(load_yaml(ROOT / "config.yaml")), demo)
    config = parse_config(values)
    trainings = {target: set(pairings(config, target)) for target in TARGETS}
    assert trainings == {target: needed(values, target) for target in TARGETS}
    assert len(trainings["table1"]) == len(demo["methods"]) * 3 and len(trainings["comparisons"]) == 4 * 3


def test_layouts_are_accepted_by_the_tables_and_hold_the_pairings(paper: Any) -> None:
    config = paper[0]
    for table in SPECS:
        layout = table_layout(config, table)
        assert isinstance(layout, TableLayout) and TableLayout.parse(json.loads(layout.to_json())) == layout
        assert set(layout.pairings) == set(pairings(config, table))
    assert table_layout(config, "table1").splits == 5
    # every learning rate of a split is a training of its own
    assert table_layout(config, "resources").splits == 10
    comparisons = table_layout(config, "comparisons")
    assert isinstance(comparisons, PairLayout) and PairLayout.parse(json.loads(comparisons.to_json())) == comparisons
    assert [len(dataset.pairs) for dataset in comparisons.datasets] == [9, 6, 6]
    assert set(comparisons.pairings) == set(pairings(config, "comparisons"))


def test_every_table_of_a_dataset_says_what_was_sampled(paper: Any) -> None:
    config = paper[0]
    sampled = config.datasets["rsna"].model_copy(update={"source": {"test_list": None}})
    changed = config.model_copy(update={"datasets": {**config.datasets, "rsna": sampled}})
    for table in (*SPECS, "comparisons"):
        given, drawn = ({d.name: d.split_note for d in table_layout(c, table).datasets} for c in (config, changed))
        assert all(not note for name, note in given.items() if name != "rsna")
        if "rsna" in given:
            assert "testing_example.csv; the training scans" in given["rsna"]
            assert "not the published split" in drawn["rsna"]


def test_the_pairs_are_those_of_tables_3_and_4(paper: Any) -> None:
    assert bases() == PAIRED
    # without a table that asks for more, the rows of Tables 1 and 6 alone
    config = paper[0].model_copy(update={"report": paper[0].report.model_copy(update={"tables": ["comparisons"]})})
    assert {compared(config, dataset) for dataset in config.trained} == {(("smap_early", "abmil"),)}


def test_every_target_has_a_specification_and_fixed_rows_are_known_methods() -> None:
    # the table of paired differences is made from predictions, not from a specification
    assert set(SPECS) == set(TABLES) - {"comparisons"}
    for table, blocks in BLOCKS.items():
        rows = [method for methods in blocks.values() for method in methods]
        assert SPECS[table].blocks == blocks and set(rows) <= set(METHODS) and len(set(rows)) == len(rows)


def test_table_4_takes_what_is_trained_where_camelyon16_is_not(paper: Any) -> None:
    config = paper[0].model_copy(update={"use": ["panda"]})
    assert {dataset for dataset, _, _ in pairings(config, "table4")} == {"panda"}


def test_a_table_asked_for_where_nothing_is_trained_says_so(tmp_path: Path) -> None:
    touch(tmp_path / "slides", ["a.svs"])
    (tmp_path / "slides/manifest.csv").write_text("bag_id,image,label,split\na,a.svs,,\n")
    custom = {"kind": "custom", "root": "slides", "source": {"manifest": "slides/manifest.csv"}, "train": False}
    config = write_config(tmp_path, {"use": ["mine"], "datasets": {"mine": {**custom, "encoders": ["resnet18"]}}})
    run = snakemake(tmp_path, "table3", "--dry-run", "--configfile", config, check=False)
    assert run.returncode != 0 and "table3: no dataset in use is trained" in run.stdout


def test_comparisons_without_a_pair_say_so_and_do_not_stop_the_other_tables(tmp_path: Path) -> None:
    fake_raw(tmp_path, panda=1, scans=10)
    rsna = {"encoders": ["resnet18"], "source": {"scans": 10}}
    report = {"tables": ["table1", "comparisons"], "figures": []}
    given = {"use": ["rsna"], "datasets": {"rsna": rsna}, "methods": ["abmil"], "more_methods": [], "report": report}
    config = write_config(tmp_path, given)
    run = snakemake(tmp_path, "comparisons", "--dry-run", "--configfile", config, check=False)
    assert run.returncode != 0 and "comparisons: no method with Sm is trained beside its base" in run.stdout
    jobs = planned(tmp_path, "--configfile", config)
    assert jobs["make_table"] == jobs["write_report"] == 1 and "make_comparisons" not in jobs
