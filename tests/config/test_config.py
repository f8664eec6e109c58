"""The configuration: schema and defaults in step, unknown keys refused, problems named by key."""

import inspect
import json
import re

import pytest
import yaml
from snakemake.utils import update_config

from preprocessing.features.encoders import get_encoder
from smmil.config.__main__ import main
from smmil.config.experiment import Config, json_schema, load_yaml, parse_config, read_settings, training_options
from smmil.config.methods import METHODS, method_arguments
from smmil.config.outputs import all_pairings
from smmil.models import build_model, model_factory


@pytest.fixture
def paper(repository):
    return yaml.safe_load((repository / "config.yaml").read_text())


def test_the_committed_schema_is_the_one_the_code_makes(repository):
    committed = (repository / "workflow/schemas/config.schema.json").read_text()
    assert committed == json_schema(), "run `make schema`"


def test_editors_find_the_schema_from_every_config(repository):
    for path in [repository / "config.yaml", *(repository / "workflow").glob("*.yaml")]:
        name = path.read_text().splitlines()[0].removeprefix("# yaml-language-server: $schema=")
        assert (path.parent / name).samefile(repository / "workflow/schemas/config.schema.json"), path


@pytest.mark.parametrize("names", ["demo", "miniature", "miniature miniature-pretrained", "rehearsal"])
def test_the_overrides_that_come_along_are_valid(repository, paper, names):
    for name in names.split():
        update_config(paper, yaml.safe_load((repository / f"workflow/{name}.yaml").read_text()))
    named = {name for dataset in parse_config(paper).datasets.values() for name in dataset.encoders}
    assert {get_encoder(name).name for name in named} == named


def test_every_key_of_the_config_has_a_description():
    def missing(schema, path=""):
        for name, entry in schema.get("properties", {}).items():
            if "description" not in entry and "$ref" not in entry:
                yield f"{path}.{name}"

    whole = json.loads(json_schema())
    assert not [m for name, part in whole["$defs"].items() for m in missing(part, name)]


def test_the_config_file_spells_out_the_defaults(paper):
    config = parse_config(paper)
    bare = {
        "datasets": {
            k: {"kind": v["kind"], "root": v["root"], "encoders": v["encoders"]} for k, v in paper["datasets"].items()
        }
    }
    defaults = Config.model_validate({**bare, "methods": paper["methods"]})
    for section in ("weights", "features", "training", "report", "results", "protocol"):
        assert getattr(config, section) == getattr(defaults, section), section


def test_the_paper_values(paper):
    config = parse_config(paper)
    smtap = training_options(config, "camelyon16", "smtap")
    assert (smtap.epochs, smtap.batch_size, smtap.learning_rates) == (50, 1, [1e-4, 1e-5])
    assert smtap.splits == [1, 2, 3, 4, 5]
    assert training_options(config, "camelyon16", "abmil").batch_size == 4
    weighted = [name for name in config.datasets if training_options(config, name, "abmil").class_weight]
    assert weighted == ["rsna"] and config.datasets["camelyon16"].table_encoder == "resnet50_bt"


PROBLEMS = [
    ("", {"learning_rate": 1}, r"learning_rate: unknown key"),
    ("datasets.panda", {"rooot": "x"}, r"datasets\.panda\.rooot: unknown key"),
    (
        "datasets.panda",
        {"kind": "tcga"},
        r"panda\.kind: .*expected one of camelyon16, custom, panda, rsna.*found \"tcga\"",
    ),
    ("training", {"epochs": 0}, r"training\.epochs: .*greater than or equal to 1.*found 0"),
    ("", {"methods": ["abmill"]}, r"unknown methods \['abmill'\]"),
    ("training", {"split_jobs": ["abmill"]}, r"split_jobs: .*unknown methods \['abmill'\]"),
    ("", {"use": ["camelion"]}, r"unknown datasets \['camelion'\]"),
    ("datasets.rsna", {"main_encoder": "vgg"}, r"main_encoder 'vgg' is not in encoders"),
    ("datasets.rsna", {"instances": {"ct": {"preset": "lung"}}}, r"preset: found 'lung'"),
    ("datasets.rsna", {"instances": {"wsi": {"tile": 3}}}, r"tile: Extra inputs"),
    (
        "datasets.panda",
        {"encoders": ["resnet-50"]},
        r"panda\.encoders: encoder 'resnet-50' \(did you mean 'resnet50'\?\)",
    ),
    ("datasets.panda", {"source": {"partiton": "x"}}, r"unknown \['partiton'\] \(did you mean 'partition'\?\)"),
    ("datasets.rsna", {"source": {"scans": "many"}}, r"datasets\.rsna: .*scans: found 'many'"),
    ("datasets.rsna", {"root": "a\nb"}, r"datasets\.rsna\.root: .*without line breaks"),
    ("", {"results": "~/results"}, r"results: .*write the whole path"),
    ("datasets.rsna", {"batch_sizes": {"abmil": 0}}, r"batch_sizes\.abmil: .*greater than or"),
    ("features", {"device": "gpu"}, r"features\.device: .*found \"gpu\""),
    ("features", {"resize_policy": "resize"}, r"features\.resize_policy: .*expected resize224"),
    ("features", {"resize_policy": "native"}, r"encoders: encoder vit_b_32 takes 224 px only"),
    ("training", {"lerning_rates": [1]}, r"unknown key \(did you mean 'learning_rates'\?\)"),
    ("", {"use": []}, r"use: found \[\], expected some of camelyon16"),
    ("", {"methods": ["abmil", "abmil"]}, r"methods: .*found abmil twice"),
    ("method_options", {"abmil": {"foo": 1}}, r"method_options\.abmil: abmil has no argument 'foo'"),
    ("method_options", {"abmil": {"gated": "yes"}}, r"abmil\.gated: found 'yes', expected bool"),
    ("method_options", {"abmil": {"pos_weight": 2}}, r"no argument 'pos_weight'"),
    ("sweeps.steps", {"argument": "t"}, r"sweeps\.steps: .*'t' \(did you mean 'T'\?\)"),
    ("sweeps.alpha", {"values": [True]}, r"sweeps\.alpha\.alpha: found True, expected float"),
    (
        "datasets.rsna",
        {"score_with": {"dataset": "x", "encoder": "y", "method": "abmil"}},
        r"no runs of x/abmil are trained",
    ),
]


@pytest.mark.parametrize(("section", "change", "message"), PROBLEMS)
def test_problems_are_named_by_key_with_what_was_found(paper, section, change, message):
    part = paper
    for key in filter(None, section.split(".")):
        part = part[key]
    part.update(change)
    with pytest.raises(ValueError, match=message) as caught:
        parse_config(paper, "config.yaml")
    assert "config.yaml: 1 problem" in str(caught.value)


def refusal(key: str, argument: str) -> str:
    """What a method says to an argument with a value of no known type."""
    try:
        build_model(key, 8, **{argument: object()})
    except (TypeError, ValueError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize("key", METHODS)
def test_the_arguments_of_a_method_are_those_of_its_code(key):
    signature = inspect.signature(model_factory(key)).parameters.values()
    arguments = method_arguments(key)
    assert {p.name for p in signature if p.kind is p.KEYWORD_ONLY} - {"pos_weight"} <= arguments.keys()
    assert {"width", "embed_act"} <= arguments.keys() or "**" in arguments
    assert not [name for name in arguments.keys() - {"**"} if "unexpected keyword" in refusal(key, name)]
    assert "unexpected keyword" in refusal(key, "no_such_argument")


OVERRIDE = """
use: [mine]
datasets:
  mine: {kind: custom, root: slides, source: {manifest: m.csv}, encoders: [resnet18]}
training: {splits: [1]}
"""


def test_an_override_file_is_checked_as_snakemake_merges_it(tmp_path, repository, capsys):
    mine, more = tmp_path / "mine.yaml", tmp_path / "more.yaml"
    mine.write_text(OVERRIDE)
    rows = [f"b{i},b{i}.svs,{i % 2},{'test' if i > 3 else 'train'}" for i in range(6)]
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides/m.csv").write_text("bag_id,image,label,split\n" + "\n".join(rows) + "\n")
    more.write_text("training: {epochs: 3}\nmethods: [abmil]\n")
    assert main([str(mine), str(more)]) == 0
    merged = {}
    for path in (repository / "config.yaml", mine, more):
        update_config(merged, yaml.safe_load(path.read_text()))
    assert json.loads(capsys.readouterr().out) == parse_config(merged).model_dump(mode="json")
    mine.write_text(OVERRIDE.replace("resnet18", "uni"))
    assert main([str(mine)]) == 2
    assert "1 problem(s)\n  datasets.mine.encoders: encoder 'uni', expected" in capsys.readouterr().err
    assert main([str(repository / "config.yaml")]) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("use: [rsna]\ntraining: {epochs: 1}\nuse: [panda]\n", r"twice in one section.*use \(line 3\)"),
        ("training:\n  epochs: 1\n  epochs: 2\n", r"epochs \(line 3\)"),
        ("- a\n", "found list, expected keys"),
        ("a: [\n", "not YAML"),
    ],
)
def test_files_that_yaml_would_read_otherwise_than_meant(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"mine.yaml: .*{message}"):
        load_yaml(path)
    path.write_text("# nothing\n")
    assert load_yaml(path) == {}


def test_every_problem_is_told_at_once(paper):
    paper["training"]["epochs"], paper["weights"]["mode"] = 0, "none"
    with pytest.raises(ValueError, match="2 problem") as caught:
        parse_config(paper)
    assert len(re.findall(r"^  ", str(caught.value), re.M)) == 2


STUDY = """preset: study
datasets:
  mine: {kind: custom, root: slides, source: {manifest: m.csv}, encoders: [resnet18]}
"""


def test_a_study_has_its_own_datasets_two_methods_and_whatever_its_file_says(tmp_path, paper):
    mine = tmp_path / "mine.yaml"
    mine.write_text(STUDY)
    study = parse_config(read_settings([mine]))
    assert [*study.used] == ["mine"] and study.methods == ["abmil", "smap_early"] and not study.more_methods
    assert study.sweeps == {} and study.training.learning_rates == [1e-4] and study.training.epochs == 50
    assert {method for *_, method in all_pairings(study)} == {"abmil", "smap_early"}
    assert study.report.tables[0] == "table2" and not {"table3", "table4", "table5"} & {*study.report.tables}
    mine.write_text(STUDY + "methods: [clam]\ntraining: {learning_rates: [0.01], epochs: 3}\nreport: {map_bags: 1}\n")
    more = tmp_path / "more.yaml"
    more.write_text("training: {epochs: 4}\n")
    changed = parse_config(read_settings([mine, more], {"results": "elsewhere"}))
    assert (changed.methods, changed.training.learning_rates, changed.training.epochs) == (["clam"], [0.01], 4)
    assert changed.report.map_bags == 1 and changed.report.tables == study.report.tables
    assert changed.results == "elsewhere" and changed.features == study.features
    assert parse_config(read_settings([])) == parse_config(paper)


def test_config_yaml_among_the_files_stays_below_the_preset(tmp_path, repository):
    mine = tmp_path / "mine.yaml"
    mine.write_text(STUDY)
    assert read_settings([repository / "config.yaml", mine]) == read_settings([mine])
    with pytest.raises(ValueError, match="preset: found 'studdy', expected one of paper, study"):
        read_settings([], {"preset": "studdy"})
    with pytest.raises(ValueError, match=r"datasets: found none, expected yours"):
        parse_config(read_settings([], {"preset": "study"}))
