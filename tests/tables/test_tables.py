"""Tables 1 and 2 and ranks against hand-made metrics: cells, ties, missing runs, spread, the sign-aware section."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from smmil.artifacts.records import Metrics
from smmil.config.layouts import TableLayout
from smmil.config.methods import GROUPS
from smmil.config.quirks import active_quirks
from smmil.evaluate.ranks import mean_ranks
from smmil.tables import build
from smmil.tables.__main__ import main
from smmil.tables.cells import Cell, Row, Table, clear_places, is_clear
from smmil.tables.formats import cell_text, left_out, to_csv, to_html
from smmil.tables.specs import Column
from tests.helpers.predictions import metrics_object

KEYS: dict[str, Any] = {
    "datasets": [
        {"name": "rsna", "title": "RSNA", "encoder": "resnet18"},
        {"name": "c16", "title": "CAMELYON16", "encoder": "resnet18"},
    ],
    "methods": ["smap_early", "abmil", "clam", "smtap"],
}
LAYOUT = TableLayout.parse(KEYS)


def column(kind: str = "mean", metric: str = "instance_auroc") -> Column:
    """A column over one pairing."""
    return Column(kind, (metric,), keys=(("rsna", "resnet18"),))


def build_table(name: str, metrics: Sequence[Metrics | dict[str, Any]], layout: TableLayout) -> Table:
    """The table of these metrics, records or objects."""
    return build.build_table(name, [Metrics.model_validate(entry) for entry in metrics], layout)


def rows(table: Table, section: int = 0) -> dict[str, Row]:
    """The rows of one section by method."""
    return {row.method: row for row in table.sections[section].rows}


def texts(table: Table, key: str, method: str) -> list[str]:
    """How the cells of one row read, in the section of this key."""
    i = [section.key for section in table.sections].index(key)
    cells = rows(table, i)[method].cells
    return [cell_text(c, cell, table.n_splits) for c, cell in zip(table.sections[i].columns, cells, strict=True)]


def with_values(metrics: dict[str, Any], **values: list[float | None]) -> dict[str, Any]:
    """Adds test metrics to the splits of a metrics object."""
    for name, numbers in values.items():
        for split, value in zip(metrics["splits"], numbers, strict=True):
            split["test"][name] = value
    return metrics


@pytest.mark.parametrize(
    ("columns", "ranks"),
    [
        ([[0.9, 0.8, 0.8, 0.1]], [1, 2.5, 2.5, 4]),
        ([[0.5, None, 0.7]], [2, None, 1]),
        ([[2.0, 1.0]] + [[1.0, 2.0]] * 5, [pytest.approx(11 / 6), pytest.approx(7 / 6)]),
        # a method with an empty cell has no mean rank, and columns without any value do not count
        ([[0.9, 0.8, None], [None, None, None], [0.1, 0.2, 0.3]], [(1 + 3) / 2, (2 + 2) / 2, None]),
    ],
)
def test_mean_ranks_by_hand(columns: list[list[float | None]], ranks: list[float | None]) -> None:
    assert mean_ranks(columns) == ranks


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4]), min_size=1, max_size=8))
def test_ranks_sum_to_the_triangle_number_and_equal_scipy(values: list[float]) -> None:
    from scipy.stats import rankdata

    ranks = mean_ranks([values])
    assert ranks == rankdata([-v for v in values]).tolist()
    assert sum(r for r in ranks if r is not None) == len(values) * (len(values) + 1) / 2


def over_splits(*values: float, ci: tuple[float, float] | None = None, larger: bool = True) -> Cell:
    """A cell of seeds 1, 2, ..."""
    return Cell(values, len(values), ci, larger=larger, by_split=dict(enumerate(values, 1)))


def test_only_gaps_that_exceed_their_uncertainty_are_marked() -> None:
    high, middle, low = over_splits(0.9, 0.91, 0.92), over_splits(0.8, 0.81, 0.82), over_splits(0.5, 0.51, 0.52)
    assert clear_places([middle, low, high]) == [2, None, 1]
    # two methods: a second one that is the last is not marked
    assert clear_places([high, low]) == [1, None] and clear_places([high]) == [None] == clear_places([Cell()])
    # paired: the splits differ more than the methods, which agree about them
    assert clear_places([over_splits(0.6, 0.7, 0.9), over_splits(0.5, 0.6, 0.8)]) == [1, None]
    # the order of the splits decides: the same values, unpaired
    assert clear_places([over_splits(0.9, 0.7, 0.6), over_splits(0.5, 0.6, 0.8)]) == [None, None]
    assert clear_places([high, high, low]) == [None, None, None], "a tie at the top is no best one"
    down = [over_splits(*(1 - value for value in cell.values), larger=False) for cell in (high, middle, low)]
    assert clear_places(down) == [1, 2, None]


def test_a_gap_is_judged_as_scipy_judges_it() -> None:
    random = np.random.default_rng(0)
    for _ in range(60):
        a, b = random.normal(0.55, 0.1, 5), random.normal(0.5, 0.1, 5)
        low = ttest_rel(a, b).confidence_interval(0.95).low
        assert is_clear(over_splits(*a), over_splits(*b)) == (low > 0)


def test_two_splits_need_the_test_bags_to_agree_and_one_is_never_marked() -> None:
    better, worse = (0.98, 1.0), (0.48, 0.5)
    apart, wide = ((0.9, 1.0), (0.4, 0.6)), ((0.5, 1.0), (0.4, 0.8))
    assert not is_clear(over_splits(*better), over_splits(*worse)), "no bootstrap"
    assert is_clear(over_splits(*better, ci=apart[0]), over_splits(*worse, ci=apart[1]))
    assert not is_clear(over_splits(1.0, 1.0, ci=(1.0, 1.0)), over_splits(0.918, 0.918, ci=(0.7, 1.0)))
    assert is_clear(over_splits(*better, ci=wide[0]), over_splits(*worse, ci=wide[1])), "no mean in the other's"
    # a spread above the gap
    assert not is_clear(over_splits(0.041, 0.963, ci=(0.4, 0.6)), over_splits(0.4, 0.42, ci=(0.3, 0.45)))
    assert not is_clear(over_splits(0.9, ci=apart[0]), over_splits(0.1, ci=apart[1]))


def test_signs_name_inverted_runs_and_thresholds_that_call_nothing() -> None:
    entry = metrics_object("rsna", "abmil", {"bag_auroc": [0.9, 0.4], "bag_f1": [0.0, 0.5], "instance_f1": [0.0, 0.2]})
    table = build_table("table2", [entry], LAYOUT)
    assert texts(table, "", "abmil")[:2] == ["0.650 (0.400–0.900) ⇅", "0.250 (0.000–0.500) ‡"]
    notes = "\n".join(table.notes)
    assert "⇅ AUROC below 0.5" in notes and "‡ F1 of 0" in notes and "(a–b): smallest and largest split" in notes
    # an F1 of 0 where nothing is ranked right, either
    poor = metrics_object("rsna", "abmil", {"bag_auroc": [0.5, 0.5], "bag_f1": [0.0, 0.5]})
    table = build_table("table2", [poor], LAYOUT)
    assert "‡" not in "".join([*texts(table, "", "abmil"), *table.notes])


ENERGY = column(metric="dirichlet_raw")


@pytest.mark.parametrize(
    ("of", "cell", "n_splits", "text"),
    [
        # mean .8, deviation sqrt((.01 + 0 + .01) / 2) = .1
        (column(), Cell((0.7, 0.8, 0.9), 3), 3, "0.800 ± 0.100"),
        (column(), Cell((0.7,), 1), 1, "0.700 ± -"),
        (column(), Cell((0.7, 0.9), 2), 5, "0.800 ± 0.141 [2]"),
        (column(), Cell(), 5, ""),
        (column(), Cell(applies=False), 5, "–"),
        (column("difference"), Cell((0.1, 0.3)), 2, "+0.200 ± 0.141"),
        (column("difference"), Cell((-0.1, -0.1)), 2, "-0.100 ± 0.000"),
        # a spread that leaves the range of its metric is shown as range
        (column(), Cell((0.041, 0.963), 2), 2, "0.502 (0.041–0.963)"),
        (column(metric="dirichlet_normalised"), Cell((1.0, 1.5), 2), 2, "1.25 ± 0.354"),
        (column("difference"), Cell((-0.5, 0.7), 2), 2, "+0.100 ± 0.849"),
        # energies have three digits and no point at the end
        (ENERGY, Cell((123.4,), 1), 1, "123 ± -"),
        (ENERGY, Cell((0.0, 400.0), 2), 2, "200 (0.00–400)"),
        (ENERGY, Cell((1000.0, 2820.0), 2), 2, "1910 ± 1287"),
        (ENERGY, Cell((999.7, 2e6), 2), 2, "1.00e+06 (1000–2.00e+06)"),
        (column("difference", "dirichlet_raw"), Cell((1234.0, 1234.0), 2), 2, "+1234 ± 0.00"),
        # median, worst and inverted runs: .2 and .4 lie below a half, .5 does not
        (column("spread"), Cell((0.9, 0.2, 0.8, 0.5, 0.4), 5), 5, "0.500 / 0.200 / 2"),
        (column("spread", "instance_f1"), Cell((0.9, 0.2, 0.8, 0.5, 0.4), 5), 6, "0.500 / 0.200 [5]"),
        (column("spread", "dirichlet_raw"), Cell((100.0, 999.0), 2, larger=False), 2, "550 / 999"),
    ],
)
def test_cells_by_hand(of: Column, cell: Cell, n_splits: int, text: str) -> None:
    assert cell_text(of, cell, n_splits) == text


def metrics() -> list[dict[str, Any]]:
    return [
        metrics_object("rsna", "smap_early", {"instance_auroc": [0.9, 0.7], "instance_f1": [0.5, 0.5]}),
        metrics_object("rsna", "abmil", {"instance_auroc": [0.8, 0.8], "instance_f1": [0.6, 0.6]}),
        metrics_object("c16", "smap_early", {"instance_auroc": [0.4, None], "instance_f1": [0.3, 0.1]}),
        metrics_object("c16", "abmil", {"instance_auroc": [0.2, 0.3], "instance_f1": [0.1, 0.1]}),
        metrics_object("rsna", "smtap", {"instance_auroc": [0.6, 0.8], "instance_f1": [0.2, 0.2]}),
    ]


def test_table_by_hand_with_ties_missing_runs_and_undefined_splits() -> None:
    table = build_table("table1", metrics(), LAYOUT)
    entries = rows(table)
    assert list(table.sections[0].blocks) == list(GROUPS)
    # rsna AUROC .8 tie (1.5 each, nothing to mark), F1 2 and 1; c16 AUROC 1 and 2, F1 1 and 2
    assert entries["smap_early"].cells[-1].mean == pytest.approx((1.5 + 2 + 1 + 1) / 4)
    assert entries["abmil"].cells[-1].mean == pytest.approx((1.5 + 1 + 2 + 2) / 4)
    assert entries["smap_early"].places == (None,) * 7, "two splits and intervals that overlap"
    assert entries["clam"].cells[-1].mean is None and entries["clam"].cells[0].values == ()
    # alone in its group: ranked 1 where it has values; c16 is empty for the whole group and does not count
    assert entries["smtap"].cells[-1].mean == 1 and entries["smtap"].places == (None,) * 7
    notes = "\n".join(table.notes)
    assert "9 of 24 cells are empty. RSNA: CLAM (no metrics file); CAMELYON16: CLAM, SmTAP (no metrics file)." in notes
    assert "Fewer than 2 splits, number in brackets: SmAP CAMELYON16 AUROC 1." in notes
    inverted = "SmAP on CAMELYON16 (split 1); ABMIL on CAMELYON16 (split 1, 2)."
    # 9 defined values: five times two less one undefined
    assert f"Inverted runs, instance AUROC < 0.5: 3 of 9, in: {inverted}" in notes
    assert "Protocol: as_written" in notes and "threshold" in notes and "RANDOM" not in notes


def test_the_sign_aware_score_has_a_section_of_its_own_and_leaves_the_papers_alone() -> None:
    plain = metrics()
    without = build_table("table1", plain, LAYOUT)
    more: dict[str, list[float | None]] = {f"instance_{name}": [0.5, 0.5] for name in ("auprc", "froc", "dice")}
    more |= {"signed_instance_auroc_within": [0.7, 0.9], "signed_sm_instance_auroc": [0.96, 0.4]}
    signed = [
        with_values(record, signed_instance_auroc=[0.95, 0.85], signed_instance_f1=[0.1 * i, 0.1 * i], **more)
        for i, record in enumerate(metrics())
    ]
    table = build_table("table1", signed, LAYOUT)
    beside = ["spread", "signed", "signed-spread", "more", "more-spread"]
    assert [section.key for section in table.sections] == ["", *beside]
    assert [section.key for section in without.sections] == ["", "spread"]
    assert without.notes[-1].startswith("Left out, without any value: The same with the sign-aware score (")
    assert table.sections[0] == without.sections[0]
    # .95 and .85: median .9, none inverted
    assert texts(table, "signed-spread", "smap_early")[0] == "0.900 / 0.850 / 0"
    assert texts(table, "signed-spread", "smap_early")[1::2] == ["0.800 / 0.700 / 0", "0.680 / 0.400 / 1"] * 2
    assert texts(table, "more-spread", "smap_early")[0] == "0.500 / 0.500"
    assert rows(table, 2)["smap_early"].cells[0].mean == pytest.approx(0.9)
    # F1 0 against .1 on rsna, .2 against .3 on c16; AUROC is equal
    assert rows(table, 2)["abmil"].cells[-1].mean == pytest.approx((1.5 + 1 + 1.5 + 1) / 4)
    assert "Further metrics (not in the metrics file)" in without.notes[-1]
    assert "Beside" not in "\n".join([*table.notes, *without.notes])


def test_a_table_without_any_value_is_one_line_of_html_and_whole_elsewhere() -> None:
    unlabelled: dict[str, list[float | None]] = {f"instance_{n}": [None] for n in ("auroc", "auroc_within", "f1")}
    entries = [metrics_object("c16", method, unlabelled) for method in ("abmil", "smap_early")]
    table = build_table("table1", entries, LAYOUT)
    line = "Table 1. Localisation: instance level. No cell has a value: one class only."
    assert table.left_out == "one class only" and left_out(to_html(table)) == line
    assert "<table" not in to_html(table) and len(to_csv(table).splitlines()) == 1 + len(table.sections[0].rows)
    bags = build_table("table2", entries, LAYOUT)
    assert not bags.left_out and not left_out(to_html(bags))
    # no run yet is no reason to leave a table out
    assert not build_table("table1", [], LAYOUT).left_out


def test_a_sign_that_validation_does_not_support_is_named_by_run() -> None:
    entries = [with_values(record, signed_instance_auroc=[0.3, 0.9]) for record in metrics()]
    for record in entries:
        abmil = record["method"] == "abmil"
        # of 5 and 5 bags, .81 is 1.62 and .82 1.67 standard deviations above chance
        areas = (0.82, 0.81 if record["dataset"] == "c16" and not abmil else 0.9)
        for split, agreement, area in zip(record["splits"], (0.9, -0.6 if abmil else 0.1), areas, strict=True):
            split["signed_agreement"] = agreement
            split["val"] = {"bag_auroc": area, "n_bags": 10, "n_positive_bags": 5}
    table = build_table("table1", entries, LAYOUT)
    low = next(note for note in table.notes if note.startswith("Sign-aware score not to be trusted"))
    where = "SmAP on CAMELYON16 (split 2); ABMIL on CAMELYON16 (split 2); ABMIL on RSNA (split 2)."
    assert f"3 of 10, in: {where}" in low
    assert rows(table, 2)["abmil"].cells[0].agreement == (0.9, -0.6)
    assert rows(table)["abmil"].cells[0].agreement == ()
    bag = build_table("table2", entries, LAYOUT)
    assert not [note for note in bag.notes if "Sign-aware" in note]


def test_bags_without_an_in_bag_auroc_are_counted() -> None:
    entries = [record for record in metrics() if record["method"] == "abmil"]
    for record, (ranked, unranked) in zip(entries, ((4, 2), (3, 0)), strict=True):
        for split in record["splits"]:
            split["test"] |= {"n_in_bag": ranked, "n_not_in_bag": unranked}
    notes = build_table("table1", entries, LAYOUT).notes
    counted = "In-bag AUROC over positive test bags: 4 of 6 (RSNA), 3 of 3 (CAMELYON16)"
    assert f"{counted}; the others lack labels or hold instances of one class." in notes
    whole = build_table("table7", entries[1:], LAYOUT)
    assert "In-bag AUROC over positive test bags: 3 of 3 (CAMELYON16)." in whole.notes
    assert [section.key for section in whole.sections][:3] == ["", "within", "spread"]


def test_the_protocol_line_names_the_quirks_that_differ_from_the_preset() -> None:
    def lines(protocol: str, quirks: list[str]) -> tuple[Table, str]:
        entries = [{**record, "protocol": protocol, "quirks": quirks} for record in metrics()]
        table = build_table("table1", entries, LAYOUT)
        return table, next(note for note in table.notes if note.startswith("Protocol"))

    assert lines("as_written", [])[1] == "Protocol: as_written (the paper's text)."
    table, line = lines("as_written", ["eval_gate_by_bag"])
    assert line == "Protocol: as_written (the paper's text) with eval_gate_by_bag."
    assert table.protocol == "as_written with eval_gate_by_bag"
    assert any(note.startswith("Instance AUROC: gated instance scores") for note in table.notes)
    assert not any("ungated" in note for note in table.notes)
    preset = active_quirks("as_released", {})
    assert lines("as_released", sorted(preset))[1] == "Protocol: as_released (the released code)."
    most = sorted(preset - {"train_lr", "softmax"})
    assert lines("as_released", most)[1] == "Protocol: as_released (the released code) without softmax, train_lr."


def test_notes_name_arguments_that_the_configuration_sets_and_sampled_splits() -> None:
    plain = build_table("table1", metrics(), LAYOUT).notes
    assert not [note for note in plain if "Arguments" in note or note.startswith("Split of")]
    options = {"smap_early": {"T": 5, "alpha": 0.5, "quirks": ["sm_alpha_rule"]}, "abmil": {"gated": True}}
    changed = [{**record, "method_options": options.get(record["method"], {})} for record in metrics()]
    rsna, c16 = KEYS["datasets"]
    layout = TableLayout.parse({**KEYS, "datasets": [{**rsna, "split_note": "all scans are sampled"}, c16]})
    notes = build_table("table1", changed, layout).notes
    assert "Arguments set by the configuration: ABMIL (gated = True); SmAP (T = 5, alpha = 0.5)." in notes
    assert "Split of RSNA: all scans are sampled." in notes


def test_the_choice_of_learning_rates_is_named_and_not_mixed() -> None:
    def cells(entries: Sequence[dict[str, Any]]) -> str:
        return next(note for note in build_table("table1", entries, LAYOUT).notes if note.startswith("Cells:"))

    assert "Learning rate chosen per split on validation, never on test." in cells(metrics())
    one = [{**record, "learning_rate_choice": "method"} for record in metrics()]
    assert "One learning rate per method for all its splits" in cells(one)


def test_a_missing_interval_is_told_and_a_present_one_is_not() -> None:
    entries = [with_values(record, bag_auprc=[0.5, 0.5], bag_ece=[0.1, 0.1]) for record in metrics()]
    for record in entries[:3]:
        record["bootstrap"]["intervals"]["bag_ece"] = [0.0, 0.2]
    notes = build_table("table2", entries, LAYOUT).notes
    assert "No bootstrap interval in the CSV: bag_auprc (5 of 5 cells), bag_ece (2 of 5 cells)." in notes


def test_a_calibration_error_is_better_when_it_is_smaller() -> None:
    three = [metrics_object("rsna", method, {"bag_f1": [0.5] * 3}) for method in ("smap_early", "abmil")]
    entries = [with_values(record, bag_ece=[e, e + 0.01, e]) for record, e in zip(three, (0.3, 0.1), strict=True)]
    table = build_table("table2", entries, TableLayout.parse({**KEYS, "datasets": KEYS["datasets"][:1]}))
    cells = {row.method: row for row in table.sections[1].blocks[GROUPS[0]]}
    assert [column.label for column in table.sections[1].columns] == ["AUPRC", "ECE"]
    assert (cells["smap_early"].places[1], cells["abmil"].places[1]) == (None, 1)
    assert any(note.startswith("Bag calibration error") for note in table.notes)


def test_two_encoders_of_one_dataset_are_two_columns_not_one() -> None:
    layout = {"datasets": [{"name": "rsna", "encoders": ["resnet18", "vit_b_32"]}], "methods": ["abmil"]}
    other = metrics_object("rsna", "abmil", {"instance_auroc": [0.1]}, encoder="vit_b_32")
    table = build_table("table7", [metrics()[1], other], TableLayout.parse(layout))
    assert [cell.mean for cell in rows(table)["abmil"].cells] == [0.8, 0.1]
    assert [c.head for c in table.sections[0].columns] == ["ResNet18", "ViT-B-32"]


def test_random_encoders_are_noted_first() -> None:
    random = [{**record, "random_weights": record["dataset"] == "rsna"} for record in metrics()]
    table = build_table("table1", random, LAYOUT)
    assert table.notes[0].startswith("† RANDOM ENCODER WEIGHTS: the features of RSNA")
    assert table.random_keys == {("rsna", "resnet18")}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"protocol": "as_released"}, "protocols"),
        ({"quirks": ["eval_histogram"]}, "as_written with eval_histogram.*expected one per table"),
        (
            {"learning_rate_choice": "method"},
            "learning_rate_choice: found .*'method', 'split'.*, expected one per table",
        ),
        ({"method": "smap_early"}, "two files for rsna / resnet18 / smap_early"),
    ],
)
def test_rows_that_do_not_belong_together_are_refused(changed: dict[str, Any], message: str) -> None:
    first, second = metrics()[:2]
    build_table("table1", [first, second], LAYOUT)
    with pytest.raises(ValueError, match=message):
        build_table("table1", [first, {**second, **changed}], LAYOUT)


def test_a_layout_without_rows_or_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="found no methods, expected datasets .*, methods"):
        build_table("table1", [], TableLayout.parse({"datasets": KEYS["datasets"]}))
    with pytest.raises(ValueError, match="found no datasets, expected datasets"):
        build_table("table3", [], TableLayout.parse({"datasets": []}))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"methods": ["abmill"]}, "methods.0: .*expected a key of smmil.config.methods.METHODS, found 'abmill'"),
        ({"typo": 1}, "typo: .*, found 1; expected datasets .*, methods"),
        ({"datasets": [{"name": "rsna"}]}, "datasets.0.encoders: .*expected datasets \\(each with name, encoders"),
        ({"datasets": [{"encoder": "x"}]}, "datasets.0.name: .*expected datasets"),
        ({"datasets": 1}, "datasets: .*expected datasets"),
    ],
)
def test_wrong_layouts_are_refused_with_the_key(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"--layout: {message}"):
        TableLayout.parse({**KEYS, **keys})


def test_metrics_that_no_cell_shows_are_named(caplog: pytest.LogCaptureFixture) -> None:
    build_table("table1", [*metrics(), metrics_object("rsna", "dsmil", {})], LAYOUT)
    assert "rsna / resnet18 / dsmil are not in the layout" in caplog.text


def test_command_line_takes_layout_as_text_or_file_and_no_metrics_at_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "layout.json"
    file.write_text(LAYOUT.to_json())
    texts = []
    for name, layout in (("a", LAYOUT.to_json()), ("b", str(file))):
        out = [text for kind in ("csv", "md", "tex") for text in (f"--out-{kind}", str(tmp_path / f"{name}.{kind}"))]
        assert main(["--table", "table2", "--metrics", "--layout", layout, *out]) == 0
        texts.append([(tmp_path / f"{name}.{kind}").read_text() for kind in ("csv", "md", "tex")])
    assert texts[0] == texts[1] and all("16 of 16 cells are empty" in text for text in texts[0][1:])
    assert main(["--table", "table2", "--layout", LAYOUT.to_json()]) == 2
    assert "expected at least one" in capsys.readouterr().err
