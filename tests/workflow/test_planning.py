"""Files that targets need: shards, orders of jobs, partial reports, tables without trainings."""

import json
from pathlib import Path

import pytest

from smmil.config.experiment import parse_config
from smmil.config.outputs import pairings, table_layout
from smmil.planning import Plan
from tests.helpers.workflows import fake_raw, touch


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw folders that hold names only."""
    folder = tmp_path_factory.mktemp("names")
    fake_raw(folder, panda=1, scans=200)
    return folder / "raw"


@pytest.fixture
def plan(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A plan of 20 scans in shards of 8."""
    monkeypatch.chdir(tmp_path)
    Path("raw").symlink_to(raw)
    dataset = {"kind": "rsna", "root": "raw/rsna", "source": {"scans": 20}, "encoders": ["resnet18", "resnet50"]}
    sweep = {"method": "smap_early", "argument": "alpha", "values": [0.2], "datasets": ["rsna"]}
    return Plan(
        parse_config(
            {
                **{"results": "out/", "datasets": {"rsna": {**dataset, "bags_per_shard": 8}}},
                **{"methods": ["abmil", "smap_early"], "sweeps": {"alpha": sweep}},
                "report": {"tables": ["table1", "comparisons"], "figures": ["fig4", "fig5", "curves"]},
            }
        )
    )


def with_(plan: Plan, **changes: object) -> Plan:
    return Plan(parse_config(plan.config.model_dump() | changes))


def custom(plan: Plan, table: str, preset: str = "paper", **changes: object) -> Plan:
    """A plan of the one dataset `mine`, with a manifest in the folder `slides`; `changes` are keys of the dataset."""
    Path("slides").mkdir(exist_ok=True)
    Path("slides/m.csv").write_text(table)
    mine = {"kind": "custom", "root": "slides", "source": {"manifest": "m.csv"}, "encoders": ["resnet18"], **changes}
    return with_(plan, datasets={"mine": mine}, sweeps={}, weights={"mode": "random"}, preset=preset)


def test_shards_hold_every_bag(plan: Plan) -> None:
    assert plan.shards("rsna") == ["0000", "0001", "0002"] and plan.capacity("rsna") == 24
    assert plan.instances("rsna") == [f"out/rsna/instances/shards/000{i}.json" for i in range(3)]
    assert plan.features("rsna") == plan.features("rsna", "resnet18") + plan.features("rsna", "resnet50")


def test_missing_raw_data_is_one_message_per_dataset(plan: Plan) -> None:
    datasets = plan.config.model_dump()["datasets"]
    moved = {name: {**datasets["rsna"], "root": f"nowhere/{name}"} for name in ("a", "b")}
    problems = with_(plan, datasets=moved, sweeps={}).missing_raw()
    assert [problem.split(":")[0] for problem in problems] == ["datasets.a", "datasets.b"]
    assert "nowhere/b" in problems[1] and plan.missing_raw() == []


def test_extractors_of_a_shard_follow_one_another(plan: Plan) -> None:
    (earlier,) = plan.earlier_encoder("rsna", "resnet50", "0001")
    assert earlier == plan.features("rsna", "resnet18")[1]
    assert plan.earlier_encoder("rsna", "resnet18", "0001") == plan.earlier_encoder("rsna", "vit_b_32", "0001") == []


SPLITS = {
    "no test": ("train,0 train,0 train,1 train,1", "", "no bag has split test"),
    "one class in test": ("train,0 train,0 train,1 train,1 test,1", "", "0 negative and 1 positive test bags"),
    "few": ("train,0 train,0 train,1 train,1 test,1 test,0", "", "training bags for 5 splits"),
    "one class": ("train,1 train,1 train,1 test,0 test,1", "found 0 negative and 3 positive bags with split train", ""),
    "none for validation": ("train,1 train,0 test,0 test,1", "expected at least 2 of each", ""),
    "given validation": ("train,1 train,0 val,1 val,0 test,0 test,1", "", ""),
    "one class in validation": ("train,1 train,0 val,1 test,0 test,1", "", "0 negative and 1 positive validation bags"),
    "unlabelled": (", ,", "found 0 negative and 0 positive .*2 bags have no label, so fill it in", ""),
    "labelled, no split": ("train,1 train,1 train,0 train,0 test,0 test,1 ,1", "", "1 labelled bags have no split"),
    "skipped": ("train,1,pen train,1 train,0 train,0 test,0 test,1", "2 negative and 1 positive", ""),
}


@pytest.mark.parametrize("case", SPLITS)
def test_labels_and_splits_that_leave_tables_empty_are_seen_before_the_first_job(plan: Plan, case: str) -> None:
    lines, refusal, remark = SPLITS[case]
    rows = [f"b{i},{i}.svs,{line}" for i, line in enumerate(lines.split())]
    table = "bag_id,image,split,label,skip\n" + "".join(f"{row}{',' * (4 - row.count(','))}\n" for row in rows)
    mine = custom(plan, table)
    if refusal:
        with pytest.raises(ValueError, match=rf"datasets\.mine: .*{refusal}"):
            mine.trained_bags("mine")
    else:
        assert mine.trained_bags("mine") == "out/mine/bags.csv"
    assert "\n".join(mine.remarks()).count(remark) == 1 if remark else mine.remarks() == []
    assert custom(plan, table, train=False).remarks() == []


def test_labels_and_splits_that_no_bag_can_have_are_named_before_the_first_job(plan: Plan) -> None:
    mine = custom(plan, "bag_id,image,label,split\na,a.svs,1.0,train\nb,b.svs,0,training\n")
    problems = r"line 2 \('a'\): label: found '1.0', (?s:.*)line 3 \('b'\): split: found 'tr"
    with pytest.raises(ValueError, match=problems):
        mine.trained_bags("mine")
    # the labels of the published datasets are right
    assert plan.trained_bags("rsna") == "out/rsna/bags.csv"


def test_a_folder_that_snakemake_would_take_for_a_wildcard_has_a_link(plan: Plan) -> None:
    odd = with_(plan, results="out/{2020}/", weights={"folder": "{w}"})
    for folder, link in (("out/{2020}", odd.results), ("{w}", odd.weights_folder)):
        assert "{" not in link and Path(link).samefile(folder) and Path(link).is_symlink()
    assert odd.results == odd.results and plan.results == "out"


def test_what_cannot_be_made_is_seen_before_the_first_job(plan: Plan) -> None:
    Path("file").touch()
    for folder in ("file", "file/out/x"):
        with pytest.raises(ValueError, match=r"results: \S*/file is no folder"):
            with_(plan, results=folder).remarks()
    Path("link").symlink_to("nowhere")
    with pytest.raises(ValueError, match=r"results: \S*/link is no folder"):
        with_(plan, results="link/out").remarks()


def test_random_weights_need_no_files(plan: Plan) -> None:
    assert plan.weights(["resnet18"]) == [f"{plan.config.weights.folder}/resnet18.pth"]
    random = with_(plan, weights={"mode": "random"})
    assert random.weights(["resnet18"]) == random.remarks() == []


def test_weights_are_looked_at_before_the_first_job(plan: Plan) -> None:
    file = Path(plan.weights(["resnet18"])[0])
    assert [remark for remark in plan.remarks() if "needs a network" in remark and str(file) in remark]
    file.parent.mkdir()
    file.touch()
    with pytest.raises(ValueError, match="not a weight file"):
        plan.remarks()
    file.write_bytes(b"weights")
    assert str(file) not in plan.remarks()[0]
    file.with_name(f"{file.name}.sha256").write_text("0123 resnet18.pth")
    with pytest.raises(ValueError, match="SHA-256 is 0123, expected f37072fd"):
        plan.remarks()


def test_parts_and_options_of_variants_are_those_of_their_method(plan: Plan) -> None:
    split = with_(plan, training={"split_jobs": ["smap_early"], "splits": [1, 2]})
    (variant,) = plan.config.variants_on("rsna")
    folder = f"out/rsna/runs/resnet18/{variant}/parts"
    assert split.training_parts("rsna", "resnet18", variant) == [f"{folder}/split1.json", f"{folder}/split2.json"]
    assert split.training_parts("rsna", "resnet18", "abmil") == []
    options = with_(plan, method_options={"smap_early": {"T": 5}})
    assert json.loads(options.method_options("rsna", "smap_early")) == {"T": 5}
    assert json.loads(options.method_options("rsna", variant)) == {"T": 5, "alpha": 0.2}


def test_a_partial_report_asks_for_finished_trainings_only(plan: Plan) -> None:
    trainings = pairings(plan.config, "table1")
    assert len(plan.files("metrics", trainings)) == len(trainings) == 2
    partial = with_(plan, report=plan.config.report.model_dump() | {"partial": True})
    assert partial.of_report("runs") == []
    touch(Path("out/rsna/runs/resnet18/abmil"), ["runs.json"])
    for kind, name in {"metrics": "abmil.json", "runs": "abmil/runs.json", "predictions": "abmil/index.json"}.items():
        assert partial.of_table(kind, "table1") == [f"out/rsna/{kind}/resnet18/{name}"]
    assert partial.of_dataset("runs", "fig4", "rsna", "resnet50") == []


def test_tables_and_figures_without_trainings_are_left_out_of_the_report(plan: Plan) -> None:
    assert (plan.tables, plan.figures) == (["table1", "comparisons"], ["fig4", "fig5", "curves"])
    alone = with_(plan, methods=["abmil"], sweeps={})
    assert alone.tables == ["table1"] and list(json.loads(alone.table_layouts())) == ["table1"]
    with pytest.raises(ValueError, match=r"comparisons: no method with Sm .* nothing to compare"):
        alone.of_table("predictions", "comparisons")
    datasets = plan.config.model_dump()["datasets"]
    untrained = with_(plan, datasets={"rsna": datasets["rsna"] | {"train": False}}, sweeps={})
    assert untrained.tables == untrained.figures == untrained.companions("fig4") == []
    with pytest.raises(ValueError, match=r"table1: no dataset in use is trained"):
        untrained.of_table("metrics", "table1")


def test_the_analysis_shows_the_methods_of_the_report_and_asks_for_no_other_training(plan: Plan) -> None:
    (file,) = plan.analyses()
    assert file == "out/rsna/analysis/resnet18/analysis.json"
    methods = ("abmil", "smap_early")
    expected = [f"out/rsna/predictions/resnet18/{method}/index.json" for method in methods]
    assert plan.of_analysis("rsna", "resnet18") == expected
    ablation = with_(plan, report={"tables": ["table5"], "figures": []})
    shown = ablation.of_analysis("rsna", "resnet18")
    assert shown == expected[::-1] and set(shown) < set(ablation.of_report("predictions"))
    assert with_(plan, report={"tables": [], "figures": ["fig4"]}).analyses() == []


def test_the_report_shows_every_picture_once_and_maps_apart(plan: Plan) -> None:
    pictures = plan.report_figures()
    assert len(pictures) == len(set(pictures))
    assert {*pictures} == {
        *(f"out/rsna/figures/resnet18/{name}.json" for name in ("histograms", "resources", "curves")),
        *(f"out/figures/{name}.json" for name in ("fig4", "fig5")),
    }
    assert plan.companions("fig5") == ["out/rsna/maps/resnet18/maps.json"]
    assert plan.figure_files("curves") == ["out/rsna/figures/resnet18/curves.json"]


def test_scores_follow_the_runs_that_make_them(plan: Plan) -> None:
    datasets = plan.config.model_dump()["datasets"]
    runs = {"dataset": "rsna", "encoder": "resnet18", "method": "abmil"}
    datasets["mine"] = datasets["rsna"] | {"train": False, "score_with": runs}
    scored = with_(plan, datasets=datasets)
    assert scored.scores() == ["out/mine/scores/rsna/resnet18/abmil/scores.csv"] and plan.scores() == []
    partial = with_(plan, datasets=datasets, report=plan.config.report.model_dump() | {"partial": True})
    assert partial.scores() == []


def study(plan: Plan, labels: str, header: str = "bag_id,image,label", **changes: object) -> Plan:
    """A plan of `preset: study`; each of the rows is `label[,more]`."""
    rows = [f"b{i},{i}.svs,{label}" for i, label in enumerate(labels.split())]
    made = custom(plan, "\n".join([header, *rows]) + "\n", "study", **changes)
    return with_(made, report={"tables": ["table2", "table1", "table9", "resources"], "figures": ["curves"]})


def test_a_study_repeats_no_table_and_is_told_of_patients_and_of_too_few_steps(plan: Plan) -> None:
    labels = "0 0 0 0 0 0 0 0 1 1 1 1 1 1 1 1"
    one = study(plan, labels)
    assert one.tables == ["table2", "table1", "resources"]
    assert study(plan, labels, encoders=["resnet18", "resnet50"]).tables == one.config.report.tables
    remarks = [line.split(": ", 1)[1][:25] for line in one.remarks()]
    assert remarks == ["no bag has a group, so sl", "12 training bags make 1 s"]
    grouped = study(plan, " ".join(f"{i % 2},p{i}" for i in range(16)), "bag_id,image,label,group", batch_size=4)
    assert grouped.remarks() == []


def test_without_a_column_split_test_bags_are_drawn_and_the_tables_say_so(plan: Plan) -> None:
    drawn = study(plan, "0 0 0 0 1 1 1 1", batch_size=2)
    assert drawn.trained_bags("mine") and not any("split test" in line for line in drawn.remarks())
    (shown,) = table_layout(drawn.config, "table2").datasets
    assert "25 % of the patients of each label are drawn for the test (seed 0)" in shown.split_note
    # two bags of a label are needed for training
    few = study(plan, "0 0 1 1", batch_size=2)
    assert few.trained_bags("mine") and any("no bag has split test" in line for line in few.remarks())
    with pytest.raises(ValueError, match="found 0 negative and 2 positive bags with split train"):
        study(plan, "1 1 1").trained_bags("mine")


def test_listing_checks_what_planning_cannot_know(plan: Plan) -> None:
    assert plan.listed_splits("rsna") == 5 and study(plan, "0 1").listed_splits("mine") == 0
