"""`smmil init` on generated slides and scans: what it finds, names and writes, and what it refuses to overwrite."""

import csv
from pathlib import Path

import numpy as np
import pytest
import yaml

from preprocessing.datasets.custom import list_bags
from smmil.cli.init import bag_ids, config_text, plan_datasets
from smmil.cli.pipeline import read_config
from smmil.cli.survey import Finding, Survey, survey
from tests.cli import code_of
from tests.helpers.cohorts import write_scan, write_slide
from tests.helpers.dicoms import write_slice


def manifest(path: Path) -> dict[str, dict[str, str]]:
    """Return the rows of a manifest by image."""
    with path.open(encoding="utf-8", newline="") as stream:
        return {row["image"]: row for row in csv.DictReader(stream)}


@pytest.fixture
def mixed(tmp_path) -> Path:
    """A folder as people have it: slides and scans at several depths, and files that are neither."""
    root = tmp_path / "data"
    write_slide(root / "slides/case 1.tif", mpp=0.25)
    write_slide(root / "slides/case_2.tif", mpp=0.5)
    write_slide(root / "more/case_2.tif", mpp=None)
    (root / "slides/broken.tif").write_bytes((root / "slides/case_2.tif").read_bytes()[:900])
    (root / "slides/case 1.geojson").write_text("{}")
    (root / "notes.docx").write_text("x")
    write_scan(root / "scans/a/head", slices=3, PatientID="p")
    write_scan(root / "scans/b", slices=4, PatientID="p", SeriesInstanceUID="1.2.3.4")
    two = root / "scans/two"
    for number, uid in ((3, "1.2.1"), (7, "1.2.2")):
        write_scan(two / str(number), slices=2, SeriesNumber=number, SeriesInstanceUID=uid, PatientID="q")
    write_slice(
        two / "first.dcm", np.zeros((16, 16), np.int16), SeriesNumber=9, SeriesInstanceUID="1.2.9", PatientID="q"
    )
    return root


def test_every_slide_and_series_is_found_with_resolution_slices_and_patient(mixed):
    seen = survey(mixed)
    found = {finding.image: finding for finding in seen.findings}
    assert seen.others == {".docx": 1}
    assert found["slides/case 1.tif"].mpp == pytest.approx(0.25) and found["slides/case_2.tif"].mpp == pytest.approx(
        0.5
    )
    assert found["slides/case 1.tif"].outlines == "slides/case 1.geojson" and not found["slides/case_2.tif"].outlines
    assert found["more/case_2.tif"].mpp is None and "no resolution" in found["more/case_2.tif"].file_info
    assert "damaged" in found["slides/broken.tif"].fault and str(mixed) not in found["slides/broken.tif"].fault
    assert found["scans/b"].size == "4 slices" and found["scans/a/head"].patient == found["scans/b"].patient
    assert {name for name in found if "two" in name} == {"scans/two#3", "scans/two#7", "scans/two#9"}
    assert found["scans/two#3"].patient not in (None, found["scans/b"].patient)


def test_init_writes_a_configuration_that_is_valid_and_manifests_that_can_be_read(mixed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert code_of("init", "data") == 0
    shown = capsys.readouterr().out
    assert "cannot be read: slides/broken.tif" in shown and "1 x .docx" in shown and "fill in `label`" in shown
    text = (tmp_path / "mine.yaml").read_text()
    assert text.count("#") > 8 and "1 of the slides without resolution" in text
    config = read_config([Path("mine.yaml")])
    assert [*config.used] == ["slides", "scans"] and config.methods == ["abmil", "smap_early"]
    assert config.training.learning_rates == [1e-4] and config.used["slides"].instances.wsi == {"preset": "20x"}
    slides = manifest(tmp_path / "manifest_slides.csv")
    assert {row["bag_id"] for row in slides.values()} == {"case_1", "slides_case_2", "more_case_2", "broken"}
    assert slides["slides/broken.tif"]["skip"] and not slides["slides/case_2.tif"]["skip"]
    assert slides["slides/case_2.tif"]["file_info"] == "generic-tiff, 0.5 um/px, 640 x 512 px"
    assert code_of("config", "mine.yaml") == 2
    assert "found 0 negative and 0 positive bags" in capsys.readouterr().err, "labels are to be filled in"
    # the run reads the same manifests
    for name, dataset in config.used.items():
        rows = list_bags(Path(dataset.root), dataset.source).rows
        assert len(rows) == len(manifest(tmp_path / f"manifest_{name}.csv")) and all(row.label is None for row in rows)
        assert not any(row.note for row in rows), "quality control would show it as a warning"
    assert len({row.group for row in rows}) == 2 and not any(row.skip for row in rows)


def test_files_are_overwritten_only_if_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_slide(tmp_path / "data/a.tif")
    assert code_of("init", "data") == 0
    (tmp_path / "manifest.csv").write_text("labels of a week")
    assert code_of("init", "data") == 2
    assert "mine.yaml, manifest.csv: exists" in capsys.readouterr().err
    assert (tmp_path / "manifest.csv").read_text() == "labels of a week"
    assert code_of("init", "data", "--force") == 0
    assert [*manifest(tmp_path / "manifest.csv")] == ["a.tif"]
    assert code_of("init", "data", "-o", "liver-7.yaml", "--force") == 0
    assert [*read_config([Path("liver-7.yaml")]).used] == ["liver_7"] and "-c liver-7.yaml" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("files", "message"),
    [(None, "no such folder"), ([], "found no readable slide or scan"), (["x.svs"], "x.svs: ")],
)
def test_a_folder_without_images_is_refused(files, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if files is not None:
        (tmp_path / "data").mkdir()
        for name in files:
            (tmp_path / "data" / name).write_text("no slide")
    assert code_of("init", "data") == 2
    assert message in capsys.readouterr().err and not (tmp_path / "mine.yaml").exists()


@pytest.mark.parametrize(("coarsest", "target"), [(0.54, None), (0.6, 1.0), (1.05, 1.0), (1.8, 2.0), (5.0, 8.0)])
def test_the_coarsest_slide_decides_the_resolution_because_tiles_are_never_enlarged(coarsest, target):
    findings = [Finding("a.svs", "wsi", mpp=0.25), Finding("b.svs", "wsi", mpp=coarsest), Finding("c.svs", "wsi")]
    root = Path('it\'s "mine": {x} #1')
    values = yaml.safe_load(
        config_text(root, Path("mine.yaml"), plan_datasets(Survey(root, findings), Path("mine.yaml")))
    )
    assert values["datasets"]["mine"]["root"] == str(root), "special characters of paths survive"
    settings = values["datasets"]["mine"]["instances"]["wsi"]
    assert settings == {"preset": "20x", **({"target_mpp": target} if target else {})}


def test_names_are_unique_and_take_folders_only_where_needed():
    assert bag_ids(["x/a.svs", "x/b.1.svs", "y/a.svs", "z/c#3"]) == ["x_a", "b.1", "y_a", "c_3"]
    assert bag_ids(["ä ö/Ü.tif", ".hidden/-b.tif"]) == ["bag", "b"]
    names = bag_ids(["a b.svs", "a_b.svs", "A_b.svs"])
    assert len({name.casefold() for name in names}) == 3
    assert bag_ids(["a" * 200 + ".svs"]) == ["a" * 150]
