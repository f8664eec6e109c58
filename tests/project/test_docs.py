"""The pages on adding a method, a dataset and an encoder are tried out; the tables of input files follow the tests."""

import csv
import json
import re
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml

import preprocessing.datasets
import smmil.models
from preprocessing.bags.__main__ import main as list_bags
from preprocessing.bags.table import read_bags
from preprocessing.datasets import DATASETS
from preprocessing.features import encoders
from preprocessing.features.__main__ import main as extract
from preprocessing.store.bags import read_arrays
from smmil.config import methods
from smmil.config.experiment import parse_config, training_options
from smmil.config.methods import METHODS
from smmil.config.quirks import QUIRKS, method_changes
from smmil.data.batch import pack
from smmil.models import MODEL_QUIRKS, build_model
from smmil.sm.operator import Sm
from tests import corpus
from tests.helpers import grids
from tests.helpers.cohorts import Cohort, write_scan
from tests.helpers.graphs import make_bag
from tests.helpers.train_helpers import make_dataset

P = 12


def blocks(repository: Path, page: str, language: str = "python") -> list[str]:
    """The code of a page."""
    text = (repository / "docs" / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def add_module(package, name: str, source: str, folder: Path, monkeypatch):
    """Import a file as a module of a package, without writing into the package."""
    assert len(source.splitlines()) < 70
    (folder / f"{name}.py").write_text(source, encoding="utf-8")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    monkeypatch.delitem(__import__("sys").modules, f"{package.__name__}.{name}", raising=False)
    return import_module(f"{package.__name__}.{name}")


@pytest.fixture
def lse(repository, tmp_path, monkeypatch) -> str:
    """The key of the method of the page, registered."""
    source, entry = blocks(repository, "howto/adding-a-method")
    add_module(smmil.models, "lse", source, tmp_path, monkeypatch)
    method = eval(entry, vars(methods))
    monkeypatch.setitem(METHODS, method.key, method)
    return method.key


def test_a_new_method_keeps_the_contract(lse):
    torch.manual_seed(0)
    model = build_model(lse, P, pos_weight=2.0).eval()
    batch = pack([make_bag(n, n, features=P) for n in (7, 1, 20)])
    with torch.no_grad():
        whole, singles = model(batch), [model(single) for single in batch.split()]
    torch.testing.assert_close(whole.bag_logit, torch.cat([s.bag_logit for s in singles]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(whole.instance_score, torch.cat([s.instance_score for s in singles]))
    # the sharper, the closer to the maximum; a bag of one instance is its instance
    sharp = build_model(lse, P, r=200.0).eval()
    sharp.load_state_dict(model.state_dict())
    output = sharp(batch)
    top = torch.stack([part.max() for part in output.instance_score.split(batch.sizes.tolist())])
    torch.testing.assert_close(output.bag_logit, top, rtol=0, atol=0.02)
    assert output.bag_logit[1].item() == pytest.approx(output.instance_score[7].item(), abs=1e-6)


def test_a_new_method_with_sm_gets_every_quirk_of_sm_by_its_trait(lse, repository):
    paper = yaml.safe_load((repository / "config.yaml").read_text())
    config = parse_config({**paper, "protocol": "as_released", "methods": ["abmil", lse]})
    options = training_options(config, "rsna", lse)
    assert (options.edge_weight, options.self_loop) == ("feature_distance", True)
    changes = method_changes(config.active_quirks, lse, {"alpha": 0.2})
    assert changes["spectral_norm"] is False and changes["quirks"] == ["graph_isolated", "sm_alpha_rule"]
    sm = build_model(lse, P, **changes).sm
    assert sm.alpha == 0.8 and sm.isolated
    assert method_changes(frozenset(QUIRKS), lse, {})["quirks"] == ["graph_isolated", "sm_alpha_param"]
    # the same for every registered method: what carries Sm is told so, and takes the three arguments
    for key, method in METHODS.items():
        given = {"alpha": 0.2, "T": 3, "spectral_norm": False, "quirks": MODEL_QUIRKS} if method.carries_sm else {}
        layers = [module for module in build_model(key, P, **given).modules() if isinstance(module, Sm)]
        assert bool(layers) == method.carries_sm, key
        assert all(layer.alpha == 0.8 and layer.T == 3 and layer.isolated for layer in layers), key


def test_a_new_method_is_trained_and_shown_in_a_table(lse, tmp_path, monkeypatch):
    monkeypatch.setattr(grids, "METHODS", ("abmil", lse))
    monkeypatch.setattr(grids, "TRAINING", {"epochs": 1, "splits": [1], "learning_rates": [0.01]})
    data = make_dataset(tmp_path / "data")
    grids.train_grid(data, tmp_path)
    grids.finish_grid(data, tmp_path)
    with open(tmp_path / "table1.csv", encoding="utf-8", newline="") as stream:
        assert "Sm log-mean-exp" in [cell for row in csv.reader(stream) for cell in row]


def test_a_new_dataset_is_listed_and_accepted_by_the_configuration(repository, tmp_path, monkeypatch):
    source, registration = blocks(repository, "howto/adding-a-dataset")
    add_module(preprocessing.datasets, "folders", source, tmp_path, monkeypatch)
    registered: dict[str, object] = {}
    exec(registration, registered)
    assert set(registered["DATASETS"]) == {*DATASETS, "folders"}
    for kind, dataset in registered["DATASETS"].items():
        monkeypatch.setitem(DATASETS, kind, dataset)
    for name in ("normal/a.svs", "normal/b.svs", "tumour/c.svs"):
        path = tmp_path / "data/biopsies" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    (commands,) = blocks(repository, "howto/adding-a-dataset", "bash")
    assert list_bags(commands.splitlines()[0].split()[3:]) == 0
    bags = [(row.bag_id, row.label, row.split) for row in read_bags(tmp_path / "bags.csv")]
    assert bags == [("normal_a", 0, "test"), ("normal_b", 0, "train"), ("tumour_c", 1, "test")]
    (section,) = blocks(repository, "howto/adding-a-dataset", "yaml")
    config = parse_config({**yaml.safe_load(section), "methods": ["abmil"]})
    assert config.datasets["biopsies"].kind == "folders"


@pytest.mark.parametrize(("position", "dim", "title"), [(0, 576, "MobileNetV3-Small"), (1, 512, "Lab net")])
def test_a_new_encoder_computes_features(repository, tmp_path, monkeypatch, position, dim, title):
    encoder = eval(blocks(repository, "howto/adding-an-encoder")[position], vars(encoders))
    monkeypatch.setitem(encoders.ENCODERS, encoder.name, encoder)
    assert encoders.encoder_title(encoder.name) == title
    cohort = Cohort(tmp_path)
    write_scan(cohort.raw / "scan", slices=2)
    cohort.add("scan", "scan")
    assert cohort.list_bags() == cohort.cut() == 0
    out = cohort.results / "features"
    argv = [*cohort.argv()[:10], "--instances", str(cohort.results / "instances"), "--instances-manifest"]
    argv += [str(cohort.manifest()), "--encoder", encoder.name, "--weights-mode", "random", "--device", "cpu"]
    assert extract([*argv, "--out", str(out), "--manifest", str(out / "0000.json")]) == 0
    assert read_arrays(out / encoder.name / "store", "scan")["features"].shape == (2, dim)
    assert json.loads((out / "0000.json").read_text())["bags"][0]["state"] == "ok"


def test_the_tables_of_input_files_are_those_of_the_tests():
    page = corpus.PAGE.read_text(encoding="utf-8")
    assert page == corpus.updated(page), "run python -m tests.corpus"
