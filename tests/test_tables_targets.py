"""Every table is a target that asks for exactly the trainings of `smmil.outputs.pairings`, for the paper and the demo.

The plan is Snakemake's own (`--summary`: the jobs of a dry run without their printing, half the time). All plans of a
configuration share one interpreter that has Snakemake loaded and forks once per target.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from smmil.config import Config, load_yaml, parse_config
from smmil.outputs import BLOCKS, TABLES, pairings, table_layout
from smmil.table_specs import TABLES as SPECS
from smmil.tables import check_layout
from tests.workflows import ROOT, fake_raw, snakemake, touch, write_config

PLANS = """
import os, sys
import snakemake.cli, snakemake.dag, snakemake.workflow
import preprocessing.datasets, preprocessing.features, preprocessing.qc
import smmil.config, smmil.evaluate, smmil.figures, smmil.maps, smmil.predictions, smmil.report, smmil.tables
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


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, dict[str, list[tuple[str, ...]]], Path]:
    """The paper's configuration, the trainings of every table, and the working directory."""
    directory = tmp_path_factory.mktemp("paper")
    fake_raw(directory, panda=150, scans=60)
    changes = merged(FEW_SHARDS, {"datasets": {"panda": {"source": {"partition": "raw/panda/partition_PANDA.csv"}}}})
    found = plans(directory, [*TABLES], "--configfile", write_config(directory, changes))
    return parse_config(merged(dict(load_yaml(ROOT / "config.yaml")), changes)), found, directory


@pytest.mark.parametrize("table", TABLES)
def test_a_table_of_the_paper_trains_what_it_shows_and_nothing_else(paper: Any, table: str) -> None:
    config, found, _ = paper
    assert len(found[table]) == len(set(found[table])), "a training is planned twice"
    assert set(found[table]) == set(pairings(config, table))


def test_the_paper_needs_as_many_trainings_as_its_tables_have_cells(paper: Any) -> None:
    found = {table: len(trainings) for table, trainings in paper[1].items()}
    extractors = 4 + 3 + 3
    assert found["table1"] == found["table2"] == 10 * 3
    assert found["table3"] == 8 * 3 and found["table4"] == 6 and found["table5"] == 6 * 3
    assert {found[f"table{n}"] for n in range(6, 11)} | {found["resources"]} == {13 * extractors}
    assert {name for _, name, _ in paper[1]["table1"]} == {"resnet50_bt", "resnet18"}
    assert {dataset for dataset, _, _ in paper[1]["table4"]} == {"camelyon16"}


def test_a_table_of_the_demo_trains_what_it_shows_and_nothing_else(tmp_path: Path) -> None:
    fake_raw(tmp_path / "demo", panda=20, scans=10)
    (tmp_path / "demo/raw/rsna/test_scans.csv").write_text("instance_name,bag_name\n")
    demo = dict(load_yaml(ROOT / "workflow/demo.yaml"))
    files = [str(ROOT / "workflow/demo.yaml"), write_config(tmp_path, FEW_SHARDS)]
    found = plans(tmp_path, [*TABLES], "--configfile", *files)
    config = parse_config(merged(dict(load_yaml(ROOT / "config.yaml")), demo, FEW_SHARDS))
    assert {table: set(trainings) for table, trainings in found.items()} == {
        table: set(pairings(config, table)) for table in TABLES
    }
    assert len(found["table1"]) == len(demo["methods"]) * 3 and len(found["table3"]) == 8 * 3


def test_layouts_are_accepted_by_the_tables_and_hold_the_pairings(paper: Any) -> None:
    config = paper[0]
    for table in TABLES:
        layout = table_layout(config, table)
        check_layout(layout, fixed_rows="blocks" in SPECS[table])
        shown = {
            (d["name"], encoder, method)
            for d in layout["datasets"]
            for encoder in d.get("encoders", [d.get("encoder")])
            for method in layout["methods"]
        }
        assert shown == set(pairings(config, table))
    assert table_layout(config, "table1")["splits"] == 5
    # every learning rate of a split is a training of its own
    assert table_layout(config, "resources")["splits"] == 10


def test_every_target_has_a_specification_and_fixed_rows_are_known_methods() -> None:
    from smmil.methods_table import METHODS

    assert set(SPECS) == set(TABLES)
    for table, blocks in BLOCKS.items():
        rows = [method for methods in blocks.values() for method in methods]
        assert SPECS[table]["blocks"] == blocks and set(rows) <= set(METHODS) and len(set(rows)) == len(rows)


def test_table_4_takes_what_is_trained_where_camelyon16_is_not(paper: Any) -> None:
    config = paper[0].model_copy(update={"use": ["panda"]})
    assert {dataset for dataset, _, _ in pairings(config, "table4")} == {"panda"}


def test_a_table_asked_for_where_nothing_is_trained_says_so(tmp_path: Path) -> None:
    touch(tmp_path / "slides", ["a.svs"])
    (tmp_path / "slides/manifest.csv").write_text("bag_id,image,label,split\na,a.svs,,\n")
    own = {"kind": "own", "root": "slides", "source": {"manifest": "slides/manifest.csv"}, "train": False}
    config = write_config(tmp_path, {"use": ["mine"], "datasets": {"mine": {**own, "encoders": ["resnet18"]}}})
    run = snakemake(tmp_path, "table3", "--dry-run", "--configfile", config, check=False)
    assert run.returncode != 0 and "table3: no dataset in use is trained" in run.stdout
