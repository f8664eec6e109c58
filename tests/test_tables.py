"""Tables and ranks against hand-made metrics."""

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smmil.methods_table import GROUPS, METHODS
from smmil.ranks import mean_ranks, places, rank_column
from smmil.table_formats import cell_text, to_csv, to_html, to_markdown
from smmil.tables import Cell, build_table, main
from tests.predictions import metrics_object

LAYOUT = {
    "datasets": [
        {"name": "rsna", "title": "RSNA", "encoder": "resnet18"},
        {"name": "c16", "title": "CAMELYON16", "encoder": "resnet18"},
    ],
    "methods": ["smap_early", "abmil", "clam", "smtap"],
}


def test_tied_methods_share_the_average_rank() -> None:
    assert rank_column([0.9, 0.8, 0.8, 0.1]) == [1, 2.5, 2.5, 4]
    assert rank_column([0.5, None, 0.7]) == [2, None, 1]


def test_six_columns_of_first_and_second_places_give_eleven_sixths() -> None:
    columns = [[2.0, 1.0]] + [[1.0, 2.0]] * 5
    assert mean_ranks(columns)[0] == pytest.approx(11 / 6)
    assert f"{11 / 6:.3f}" == "1.833"


def test_a_method_with_an_empty_cell_has_no_mean_rank_and_empty_columns_do_not_count() -> None:
    assert mean_ranks([[0.9, 0.8, None], [None, None, None], [0.1, 0.2, 0.3]]) == [(1 + 3) / 2, (2 + 2) / 2, None]


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4]), min_size=1, max_size=8))
def test_ranks_sum_to_the_triangle_number_and_equal_scipy(values: list[float]) -> None:
    from scipy.stats import rankdata

    ranks = rank_column(values)
    assert ranks == rankdata([-v for v in values]).tolist()
    assert sum(r for r in ranks if r is not None) == len(values) * (len(values) + 1) / 2


def test_marks_share_the_better_place_and_need_company() -> None:
    assert places([0.9, 0.9, 0.8]) == [1, 1, 3]
    assert places([1.5, 2.0, None], larger=False) == [1, 2, None]
    assert places([0.9, None]) == [None, None]
    assert places([0.0, 0.0, 0.0]) == [None, None, None]


def test_cells_show_mean_and_sample_deviation() -> None:
    # mean .8, deviation sqrt((.01 + 0 + .01) / 2) = .1
    assert cell_text(Cell((0.7, 0.8, 0.9), 3), 3) == "0.800 ± 0.100"
    assert cell_text(Cell((0.7,), 1), 1) == "0.700 ± -"
    assert cell_text(Cell((0.7, 0.9), 2), 5) == "0.800 ± 0.141 [2]"
    assert cell_text(Cell(), 5) == ""


def metrics() -> list[dict]:
    return [
        metrics_object("rsna", "smap_early", {"instance_auroc": [0.9, 0.7], "instance_f1": [0.5, 0.5]}),
        metrics_object("rsna", "abmil", {"instance_auroc": [0.8, 0.8], "instance_f1": [0.6, 0.6]}),
        metrics_object("c16", "smap_early", {"instance_auroc": [0.4, None], "instance_f1": [0.3, 0.1]}),
        metrics_object("c16", "abmil", {"instance_auroc": [0.2, 0.3], "instance_f1": [0.1, 0.1]}),
        metrics_object("rsna", "smtap", {"instance_auroc": [0.6, 0.8], "instance_f1": [0.2, 0.2]}),
    ]


def test_table_by_hand_with_ties_missing_runs_and_undefined_splits() -> None:
    table = build_table("table1", metrics(), LAYOUT)
    rows = {row.method: row for rows in table.groups.values() for row in rows}
    assert list(table.groups) == list(GROUPS)
    # rsna AUROC .8 tie (1.5 each, nothing to mark), F1 2 and 1; c16 AUROC 1 and 2, F1 1 and 2
    assert rows["smap_early"].rank == pytest.approx((1.5 + 2 + 1 + 1) / 4)
    assert rows["abmil"].rank == pytest.approx((1.5 + 1 + 2 + 2) / 4)
    assert rows["smap_early"].places == (None, 2, 1, 1) and rows["smap_early"].rank_place == 1
    assert rows["clam"].rank is None and rows["clam"].cells[0].values == ()
    # alone in its group: ranked 1 where it has values; c16 is empty for the whole group and does not count
    assert rows["smtap"].rank == 1 and rows["smtap"].places == (None,) * 4
    notes = "\n".join(table.notes)
    assert "6 of 16 cells are empty. RSNA: CLAM (no metrics file); CAMELYON16: CLAM, SmTAP (no metrics file)." in notes
    assert "Fewer than 2 splits, number in brackets: SmAP CAMELYON16 AUROC 1." in notes
    assert (
        "Inverted scores, instance AUROC < 0.5, in: SmAP on CAMELYON16 (split 1); ABMIL on CAMELYON16 (split 1, 2)"
        in notes
    )
    assert "Protocol: as_written" in notes and "threshold" in notes and "RANDOM" not in notes


def test_markdown_is_a_rectangle_with_marks_and_definitions() -> None:
    text = to_markdown(build_table("table1", metrics(), LAYOUT))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1 and len(lines) == 2 + 2 + 4
    assert "| SmAP ◆ | 0.800 ± 0.141 | <u>0.500 ± 0.000</u> | **0.400 ± - [1]** |" in text
    assert "| CLAM |  |  |  |  |  |" in text and "- Instance AUROC: raw, ungated" in text


def test_csv_holds_every_number_in_full() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(build_table("table2", metrics(), LAYOUT)))))
    assert [row["method"] for row in rows] == ["smap_early", "abmil", "clam", "smtap"]
    first = rows[0]
    assert first["rsna.resnet18.bag_auroc.mean"] == "0.5" and first["rsna.resnet18.bag_auroc.n_splits"] == "2"
    assert (first["rsna.resnet18.bag_auroc.ci95_low"], first["rsna.resnet18.bag_auroc.ci95_high"]) == ("0.25", "0.75")
    assert first["protocol"] == "as_written" and rows[2]["c16.resnet18.bag_f1.mean"] == ""


def test_random_encoders_are_marked_where_they_were_used() -> None:
    random = [{**one, "random_weights": one["dataset"] == "rsna"} for one in metrics()]
    table = build_table("table1", random, LAYOUT)
    assert table.notes[0].startswith("† RANDOM ENCODER WEIGHTS: the features of RSNA")
    text = to_markdown(table)
    assert "RSNA†<br>" in text and "CAMELYON16†" not in text


def test_html_escapes_names_and_carries_the_runs() -> None:
    layout = {**LAYOUT, "datasets": [{"name": "rsna", "title": "<b>R&D</b>", "encoder": "resnet18"}]}
    page = to_html(build_table("table1", metrics(), layout))
    assert "<b>R" not in page and "&lt;b&gt;R&amp;D" in page and "split1_lr0.0001" in page


def test_mistakes_are_refused_with_the_key() -> None:
    with pytest.raises(ValueError, match="protocols"):
        build_table("table1", [metrics()[0], {**metrics()[1], "protocol": "as_released"}], LAYOUT)
    with pytest.raises(ValueError, match="two files for rsna / resnet18 / abmil"):
        build_table("table1", [metrics()[1]] * 2, LAYOUT)
    with pytest.raises(ValueError, match="methods: found \\['abmill'\\]"):
        build_table("table1", [], {**LAYOUT, "methods": ["abmill"]})
    with pytest.raises(ValueError, match="expected datasets, methods"):
        build_table("table1", [], {**LAYOUT, "typo": 1})


def test_every_method_stands_in_one_of_the_two_groups_and_names_are_unique() -> None:
    assert {value[1] for value in METHODS.values()} == set(GROUPS)
    assert len({value[0] for value in METHODS.values()}) == len(METHODS)


def test_command_line_takes_layout_as_text_or_file_and_no_metrics_at_all(tmp_path: Path) -> None:
    file = tmp_path / "layout.json"
    file.write_text(json.dumps(LAYOUT))
    texts = []
    for name, layout in (("a", json.dumps(LAYOUT)), ("b", str(file))):
        out = ["--out-csv", str(tmp_path / f"{name}.csv"), "--out-md", str(tmp_path / f"{name}.md")]
        assert main(["--table", "table2", "--metrics", "--layout", layout, *out]) == 0
        texts.append((tmp_path / f"{name}.md").read_text())
    assert texts[0] == texts[1] and "16 of 16 cells are empty" in texts[0]
