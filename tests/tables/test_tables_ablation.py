"""Tables 3 to 6 and resources by hand: fixed rows, energies, differences, ranks per extractor, time and memory."""

import json
from pathlib import Path
from typing import Any

import pytest

from smmil.config.layouts import TableLayout
from smmil.tables.__main__ import main
from smmil.tables.resources import read_resources
from tests.helpers.predictions import log_row, metrics_object, runs_object
from tests.tables.test_tables import build_table, rows, texts, with_values

KEYS: dict[str, Any] = {"datasets": [{"name": "c16", "title": "CAMELYON16", "encoder": "resnet18"}], "splits": 2}
ONE = TableLayout.parse(KEYS)


def test_table_3_has_two_blocks_and_the_lower_energy_is_the_better() -> None:
    entries = [
        with_values(
            metrics_object("c16", method, {"bag_f1": [0.5, 0.7, 0.6]}),
            dirichlet_raw=[raw] * 3,
            dirichlet_normalised=[normal] * 3,
        )
        for method, raw, normal in (("smap_early", 2.0, 0.3), ("abmil", 8.0, 0.2), ("smap_late", 4.0, 0.1))
    ]
    table = build_table("table3", entries, ONE)
    assert [[row.name for row in block] for block in table.sections[0].blocks.values()] == [
        ["SmAP-early", "SmAP-mid", "SmAP-late", "ABMIL"],
        ["SmT+SmAP", "SmT+AP", "T+SmAP", "T+AP"],
    ]
    main_rows, energy = rows(table), rows(table, 1)
    assert [column.label for column in table.sections[0].columns][-1] == "Energy"
    assert [main_rows[m].places[-1] for m in ("smap_early", "smap_late", "abmil")] == [1, 2, None]
    # the scale divided out, the order may be another
    assert [energy[m].places[0] for m in ("smap_late", "abmil", "smap_early")] == [1, 2, None]
    assert main_rows["abmil"].cells[-1].worst == 8 and main_rows["smap_early"].cells[3].mean == pytest.approx(0.6)
    assert texts(table, "energy-spread", "abmil") == ["8.00 / 8.00", "0.200 / 0.200"]
    # five of eight rows have no file, five columns each
    assert any(note.startswith("25 of 40 cells are empty.") for note in table.notes)
    notes = "\n".join(table.notes)
    assert "lower is smoother" in notes.lower() and "SmAP-mid" in notes


def test_table_4_differences_are_taken_split_by_split() -> None:
    plain = metrics_object("c16", "dsmil", {"instance_auroc": [0.7, 0.5, 0.6], "bag_auroc": [0.9, 0.9, 0.9]})
    smooth = metrics_object("c16", "smdsmil", {"instance_auroc": [0.9, 0.8, None], "bag_auroc": [0.8, 0.9, 0.7]})
    table = build_table("table4", [plain, smooth], TableLayout.parse({**KEYS, "splits": 3}))
    labels = [column.label for column in table.sections[0].columns]
    assert labels[:4] == ["Inst. AUROC", "Δ AUROC", "Inst. F1", "Δ F1"]
    cells = dict(zip(labels[:2], rows(table)["smdsmil"].cells[:2], strict=True))
    # .9 - .7 and .8 - .5; the split that one of the two does not define drops out
    assert cells["Δ AUROC"].values == pytest.approx((0.2, 0.3))
    bag = rows(table)["smdsmil"].cells[5]
    assert bag.mean == pytest.approx((-0.1 + 0 - 0.2) / 3) and bag.std == pytest.approx(0.1)
    base = rows(table)["dsmil"].cells[1]
    assert not base.applies and rows(table)["smclam"].cells[1].note == "no metrics file"
    assert rows(table)["smdsmil"].places[1] is None, "differences are not marked"
    # CLAM and DFTD without and with Sm are missing, four metrics each; differences are not counted twice
    assert any(note.startswith("16 of 24 cells are empty.") for note in table.notes)


def test_differences_pair_by_seed_not_by_position() -> None:
    plain = metrics_object("c16", "clam", {"instance_auroc": [0.1, 0.2]})
    smooth = metrics_object("c16", "smclam", {"instance_auroc": [0.5, 0.9]})
    smooth["splits"].reverse()
    smooth["splits"][0]["seed"], smooth["splits"][1]["seed"] = 2, 1
    shuffled = rows(build_table("table4", [plain, smooth], ONE))["smclam"].cells[1].values
    assert shuffled == pytest.approx((0.4, 0.7))
    smooth["splits"][0]["seed"] = 3
    assert rows(build_table("table4", [plain, smooth], ONE))["smclam"].cells[1].values == pytest.approx((0.4,))


def test_table_5_shows_penalty_and_sm_in_the_papers_blocks() -> None:
    table = build_table("table5", [], ONE)
    blocks = {title: [row.method for row in numbers] for title, numbers in table.sections[0].blocks.items()}
    assert blocks == {
        "Without global interactions": ["smap_early", "abmil_penalty", "abmil"],
        "With global interactions": ["smtap", "t_penalty", "t_ap"],
    }
    assert any(note.startswith("24 of 24 cells are empty.") for note in table.notes)


def by_encoder(**more: Any) -> tuple[list[dict[str, Any]], TableLayout]:
    """Two methods, two datasets with ResNet18, one of them also with ResNet50-BT."""
    areas = {("c16", "resnet50_bt"): (0.4, 0.9), ("c16", "resnet18"): (0.8, 0.7), ("rsna", "resnet18"): (0.6, 0.6)}
    entries = [
        metrics_object(dataset, method, {"instance_auroc": [areas[dataset, encoder][i]]}, encoder=encoder)
        for dataset, encoder in areas
        for i, method in enumerate(("smap_early", "abmil"))
    ]
    datasets = [
        {"name": "c16", "title": "CAMELYON16", "encoders": ["resnet50_bt", "resnet18"]},
        {"name": "rsna", "title": "RSNA", "encoders": ["resnet18"]},
    ]
    return entries, TableLayout.parse({"datasets": datasets, "methods": ["smap_early", "abmil"], **more})


def test_table_6_ranks_inside_one_extractor() -> None:
    table = build_table("table6", *by_encoder())
    # the extractor of all datasets first, that of CAMELYON16 alone last
    assert [(c.head, c.label) for c in table.sections[0].columns] == [
        ("ResNet18", "Inst."),
        ("ResNet18", "Bag"),
        ("ResNet50-BT", "Inst."),
        ("ResNet50-BT", "Bag"),
    ]
    assert [len(c.keys) for c in table.sections[0].columns] == [2, 2, 1, 1]
    # ResNet18: AUROC 1 on c16, a tie on rsna; F1 ties. ResNet50-BT: AUROC 2, F1 a tie
    ranks = [cell.mean for cell in rows(table)["smap_early"].cells]
    assert ranks == pytest.approx([(1 + 1.5 + 1.5 + 1.5) / 4, 1.5, (2 + 1.5) / 2, 1.5])
    inverted = [rows(table, 1)["smap_early"].cells[i] for i in (1, 4)]
    assert [(cell.mean, cell.n_splits) for cell in inverted] == [(0, 2), (1, 1)]
    cells = next(note for note in table.notes if note.startswith("Cells"))
    assert cells.startswith("Cells: ranks of means over") and "standard deviation" not in " ".join(table.notes)


def test_table_6_marks_ranks_that_rest_on_few_splits() -> None:
    entries, layout = by_encoder(splits=3)
    whole = []
    for record in entries:
        area = record["splits"][0]["test"]["instance_auroc"]
        more = {"encoder": record["encoder"]}
        whole.append(metrics_object(record["dataset"], record["method"], {"instance_auroc": [area] * 3}, **more))
    full = build_table("table6", whole, layout)
    assert not [note for note in full.notes if "fewer than" in note]
    # SmAP on CAMELYON16 with ResNet18: one of three splits
    few = [*whole[:2], entries[2], *whole[3:]]
    table = build_table("table6", few, layout)
    assert texts(table, "", "smap_early") == ["1.375 [1]", "1.500 [1]", "1.750", "1.500"]
    assert not [text for text in texts(table, "", "abmil") if "[" in text]
    line = next(note for note in table.notes if note.startswith("Behind the ranks"))
    assert line.startswith(
        "Behind the ranks, values of fewer than 3 splits: SmAP CAMELYON16 ResNet18 instance_auroc 1;"
    )
    assert line.count("ResNet18") == 4


def test_table_6_counts_the_cells_behind_its_ranks() -> None:
    entries, layout = by_encoder()
    table = build_table("table6", entries[1:], layout)
    # SmAP lacks ResNet50-BT on CAMELYON16: four metrics of 2 methods x 3 pairings x 4
    assert rows(table)["smap_early"].cells[2].mean is None and rows(table)["smap_early"].cells[0].mean is not None
    assert "4 of 24 cells behind the ranks are empty. CAMELYON16 ResNet50-BT: SmAP (no metrics file)." in table.notes


def test_tables_7_to_10_show_one_metric_by_extractor_and_dataset() -> None:
    entries, layout = by_encoder()
    for name, metric in (("table7", "instance_auroc"), ("table10", "bag_f1")):
        table = build_table(name, entries, layout)
        columns = table.sections[0].columns
        assert [(c.head, c.label) for c in columns] == [
            ("ResNet18", "CAMELYON16"),
            ("ResNet18", "RSNA"),
            ("ResNet50-BT", "CAMELYON16"),
        ]
        assert {c.metrics for c in columns} == {(metric,)}
    cells = rows(build_table("table7", entries, layout))["smap_early"].cells
    assert [cell.mean for cell in cells] == [0.8, 0.6, 0.4]


def write_runs(folder: Path, method: str, epochs: list[list[dict[str, float]] | None], **more: Any) -> Path:
    """A runs.json with one run per list of epochs, each given by some fields of its log row; None writes no log."""
    names = [f"split{i}_lr0.001" for i in range(1, len(epochs) + 1)]
    for name, log in zip(names, epochs, strict=True):
        if log is not None:
            (folder / method / name).mkdir(parents=True)
            lines = [json.dumps(log_row(epoch, **values)) for epoch, values in enumerate(log, 1)]
            (folder / method / name / "log.jsonl").write_text("\n".join(lines) + "\n")
    (folder / method).mkdir(parents=True, exist_ok=True)
    (folder / method / "runs.json").write_text(json.dumps(runs_object("c16", method, names, **more)))
    return folder / method / "runs.json"


def row(seconds: float, memory: int, gpu: int | None = None) -> dict[str, float]:
    return {"seconds": seconds, "memory_mib": memory} | ({} if gpu is None else {"device_memory_mib": gpu})


def test_time_is_the_sum_of_the_epochs_and_memory_the_most_of_any_process(tmp_path: Path) -> None:
    """Two splits that were trained by two jobs: the second held more."""
    path = write_runs(tmp_path / "runs", "abmil", [[row(1.0, 400), row(2.0, 512)], [row(4.0, 500), row(1.0, 600)]])
    record = read_resources(path)
    assert [split.test.values["train_seconds"] for split in record.splits] == [3, 5]
    assert record.job == {"memory_mib": 600.0, "device_memory_mib": None}
    out = ["--out-csv", str(tmp_path / "t.csv"), "--out-md", str(tmp_path / "t.md")]
    layout = json.dumps({**KEYS, "methods": ["abmil", "clam"]})
    assert main(["--table", "resources", "--runs", str(path), "--layout", layout, *out]) == 0
    text = (tmp_path / "t.md").read_text()
    assert "| ABMIL | 4.0 ± 1.4 |" in text and "| ABMIL | 600 |" in text and "| CLAM |  |" in text
    assert "1 of 2 cells are empty. CAMELYON16: CLAM (no metrics file)." in text
    assert "Peak memory: 1 of 2 cells are empty" in text and "GPU" not in text
    header, first, _ = (tmp_path / "t.csv").read_text().splitlines()
    record = dict(zip(header.split(","), first.split(","), strict=True))
    assert record["c16.resnet18.train_seconds.mean"] == "4.0" and record["c16.resnet18.memory_mib"] == "600.0"


def test_memory_of_a_gpu_has_a_section_of_its_own_where_one_was_used(tmp_path: Path) -> None:
    path = write_runs(tmp_path, "abmil", [[row(1.0, 400, 70), row(1.0, 400, 90)], None])
    table = build_table("resources", [read_resources(path)], TableLayout.parse({**KEYS, "methods": ["abmil"]}))
    assert [section.key for section in table.sections] == ["", "memory", "gpu"]
    assert [cell.mean for cell in next(iter(table.sections[2].blocks.values()))[0].cells] == [90.0]
    assert any(note.startswith("Peak GPU memory: ") for note in table.notes)


def test_records_that_are_missing_or_cut_off_leave_empty_cells(tmp_path: Path) -> None:
    path = write_runs(tmp_path, "abmil", [[{"seconds": 1.5}], None])
    log = tmp_path / "abmil/split1_lr0.001/log.jsonl"
    log.write_text(log.read_text() + '{"epoch": 2, "sec')
    record = read_resources(path)
    assert [split.test.values["train_seconds"] for split in record.splits] == [1.5, None]
    assert record.job == {"memory_mib": None, "device_memory_mib": None}
    table = build_table("resources", [record], TableLayout.parse({**KEYS, "methods": ["abmil"]}))
    assert "Fewer than 2 runs, number in brackets: ABMIL ResNet18 CAMELYON16 1." in table.notes
    assert [section.key for section in table.sections] == [""]
    assert table.notes[-1] == "Left out, without any value: Peak memory of the training process, MiB (not recorded)."
    (tmp_path / "runs.json").write_text("{}")
    with pytest.raises(ValueError, match=r"runs\.json: .*dataset: Field required"):
        read_resources(tmp_path / "runs.json")


def test_the_table_of_time_names_the_quirks_of_its_runs_and_refuses_to_mix_them(tmp_path: Path) -> None:
    quirks: dict[str, Any] = {"abmil": {"quirks": ["sm_alpha_rule"]}, "clam": {}}
    paths = [write_runs(tmp_path / "runs", method, [[row(1.0, 400)]], **more) for method, more in quirks.items()]
    table = build_table("resources", [read_resources(paths[0])], TableLayout.parse({**KEYS, "methods": ["abmil"]}))
    assert any("with sm_alpha_rule" in note for note in table.notes)
    with pytest.raises(ValueError, match="sm_alpha_rule"):
        build_table(
            "resources",
            [read_resources(path) for path in paths],
            TableLayout.parse({**KEYS, "methods": ["abmil", "clam"]}),
        )
