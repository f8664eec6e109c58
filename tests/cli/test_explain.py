"""`smmil explain`: cells by the names that tables print, and its verdict."""

from pathlib import Path

import pytest

from smmil.provenance import locate, summary
from tests.cli import code_of

HEAD = (
    "group,method,name,camelyon16.resnet18.bag_auroc.mean,camelyon16.vit_b_32.bag_auroc.mean,mine.resnet18.bag_f1.std"
)


def test_the_folder_of_a_method_stands_for_its_chosen_runs(tmp_path):
    folder = tmp_path / "results/mine/runs/resnet18/abmil"
    folder.mkdir(parents=True)
    (folder / "runs.json").touch()
    place = locate(folder, None)
    assert (place.dataset, place.encoder, place.method, place.run) == ("mine", "resnet18", "abmil", None)


@pytest.fixture
def table(tmp_path) -> Path:
    """A table of two methods, two datasets and two encoders."""
    path = tmp_path / "results/tables/table2.csv"
    path.parent.mkdir(parents=True)
    path.write_text(f"{HEAD}\ng,smap_early,SmAP,1,1,1\ng,t_ap,T+AP,1,1,1\n")
    return path


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (("smap_early", "mine"), ("smap_early", "mine", "resnet18")),
        (("SmAP", "CAMELYON16", "ResNet18"), ("smap_early", "camelyon16", "resnet18")),
        (("SmAP ◆", "CAMELYON16†", "ViT-B-32"), ("smap_early", "camelyon16", "vit_b_32")),
        (("t+ap", "Mine"), ("t_ap", "mine", "resnet18")),
    ],
)
def test_a_cell_is_named_as_the_table_prints_it(table, cell, expected):
    for name in (table, table.with_suffix(".md")):
        name.touch()
        place = locate(name, cell)
        assert (place.method, place.dataset, place.encoder) == expected
        assert place.root == table.parents[1]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (("TAP", "mine"), r"no method 'TAP'.*t_ap \(T\+AP\)"),
        (("SmAP", "panda"), r"0 columns.*camelyon16 \(CAMELYON16\), mine"),
        (("SmAP", "CAMELYON16"), r"2 columns.*resnet18 \(ResNet18\), vit_b_32 \(ViT-B-32\)"),
        (("SmAP",), "add --cell METHOD DATASET"),
        (None, "add --cell METHOD DATASET"),
    ],
)
def test_another_cell_is_refused_with_keys_and_names(table, cell, message):
    with pytest.raises(ValueError, match=message):
        locate(table, cell)


def test_the_verdict_comes_first_and_says_whether_the_result_still_holds(tmp_path, capsys):
    pairing = {"dataset": "a", "encoder": "e", "method": "m", "protocol": "as_written", "method_options": {}}
    run = {"run": "split1", "best_epoch": 2, "test": {"bag_auroc": 0.91, "bag_f1": None}, "weights_sha256": "0" * 64}
    bags = {"listed": 4, "states": {"ok": 3, "failed": 1}, "inputs": {"bags": "x"}}
    facts = {"pairing": pairing, "runs": [run], "features": {"encoder": "e"}, "bags": bags, "checks": None}
    lines = summary(facts).splitlines()
    assert lines[0] == "verdict: recorded with 1 run on 3 bags; --verify recomputes the hashes"
    assert lines[2] == "run split1: best epoch 2, bag_auroc 0.910, weights 0000000000000000..." and len(lines) == 6
    facts["checks"] = {"computed": 7, "different": []}
    assert summary(facts).startswith("verdict: unchanged, all 7 hashes of 1 run on 3 bags are as recorded\n")
    facts["checks"] = {"computed": 7, "different": ["bag x: changed"]}
    assert summary(facts).startswith("verdict: CHANGED, 1 of 7 hashes differ") and "\nbag x: changed\n" in summary(
        facts
    )
    assert code_of("explain", str(tmp_path / "none.csv")) == 2
    assert "none.csv: no such file" in capsys.readouterr().err
