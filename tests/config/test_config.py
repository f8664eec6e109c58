"""The configuration: schema and defaults in step, unknown keys refused, problems named by key."""

import copy
import json
import re

import pytest
import yaml
from snakemake.utils import update_config

from preprocessing.features.encoders import get_encoder
from smmil.config.experiment import Config, json_schema, parse_config, training_options


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
    assert (smtap.epochs, smtap.batch_size, smtap.learning_rates, smtap.splits) == (
        50,
        1,
        [1e-4, 1e-5],
        [1, 2, 3, 4, 5],
    )
    assert training_options(config, "camelyon16", "abmil").batch_size == 4
    assert (
        training_options(config, "rsna", "smtap").class_weight
        and not training_options(config, "panda", "abmil").class_weight
    )
    assert config.datasets["camelyon16"].table_encoder == "resnet50_bt"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(learning_rate=1), r"learning_rate: unknown key"),
        (lambda c: c["datasets"]["panda"].update(rooot="x"), r"datasets\.panda\.rooot: unknown key"),
        (
            lambda c: c["datasets"]["panda"].update(kind="tcga"),
            r"datasets\.panda\.kind: .*expected one of camelyon16, custom, panda, rsna.*found \"tcga\"",
        ),
        (lambda c: c["training"].update(epochs=0), r"training\.epochs: .*greater than or equal to 1.*found 0"),
        (lambda c: c.update(methods=["abmill"]), r"unknown methods \['abmill'\]"),
        (lambda c: c["training"].update(split_jobs=["abmill"]), r"split_jobs: .*unknown methods \['abmill'\]"),
        (lambda c: c.update(use=["camelion"]), r"unknown datasets \['camelion'\]"),
        (lambda c: c["datasets"]["rsna"].update(main_encoder="vgg"), r"main_encoder 'vgg' is not in encoders"),
        (lambda c: c["datasets"]["rsna"].update(instances={"ct": {"preset": "lung"}}), r"preset: found 'lung'"),
        (lambda c: c["datasets"]["rsna"].update(instances={"wsi": {"tile": 3}}), r"tile: Extra inputs"),
        (
            lambda c: c["datasets"]["rsna"].update(score_with={"dataset": "x", "encoder": "y", "method": "abmil"}),
            r"no runs of x/abmil are trained",
        ),
    ],
)
def test_problems_are_named_by_key_with_what_was_found(paper, change, message):
    broken = copy.deepcopy(paper)
    change(broken)
    with pytest.raises(ValueError, match=message) as caught:
        parse_config(broken, "config.yaml")
    assert "config.yaml: 1 problem" in str(caught.value)


def test_every_problem_is_told_at_once(paper):
    paper["training"]["epochs"], paper["weights"]["mode"] = 0, "none"
    with pytest.raises(ValueError, match="2 problem") as caught:
        parse_config(paper)
    assert len(re.findall(r"^  ", str(caught.value), re.M)) == 2
