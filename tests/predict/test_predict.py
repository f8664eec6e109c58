"""One new slide or scan, end to end through the command lines: the same numbers as the workflow's, and refusals."""

import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile

from preprocessing.bags.table import read_bags
from preprocessing.common.options import ct_options, wsi_options
from preprocessing.store.attrs import InstanceAttrs, TissueAttrs
from preprocessing.store.bags import read_instance_attrs
from smmil.data.splits import read_splits
from smmil.evaluate.signs import UNSUPPORTED
from smmil.predict import __main__ as predict
from smmil.predict.pipeline import FILES
from smmil.predict.records import Prediction
from smmil.predict.settings import instance_options
from smmil.predictions.reference import Reference, check_like_training
from tests.faults.damage import flip
from tests.helpers.cohorts import picture
from tests.helpers.dataset_files import read_table
from tests.helpers.dicoms import write_dicom_slide, write_slice
from tests.helpers.pyramids import write_tiff
from tests.predict.house import OPTIONS, RUN, House


@pytest.fixture(autouse=True)
def _quiet(caplog):
    caplog.set_level(logging.ERROR)


def run(image: Path | str, model: Path, out: Path, *more: str) -> int:
    argv = [str(image), "--model", str(model), "--out", str(out), "--device", "cpu", "--threads", "1"]
    return predict.main([*argv, "--batch-size", "16", *more])


def is_png(path: Path) -> bool:
    from matplotlib.image import imread

    return path.read_bytes()[:4] == b"\x89PNG" and float(np.asarray(imread(path)).std()) > 0.01


def test_a_slide_gets_the_numbers_of_the_workflow(slides, tmp_path):
    row = slides.row()
    metrics = {"dataset": "camelyon16", "encoder": "resnet18", "method": "smap_early", "protocol": "as_written"}
    expected = slides.predictions().bag(row.bag_id)
    threshold = float(np.median(expected["instance_score"]))
    path = slides.results / "metrics/resnet18/smap_early.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    split = {"seed": 1, "lr": 1e-3, "run": RUN, "threshold": threshold, "test": {}}
    path.write_text(json.dumps({**metrics, "splits": [split]}))
    assert run(slides.raw / row.images[0], slides.run, tmp_path / "one") == 0
    found = json.loads((tmp_path / "one/prediction.json").read_text())
    assert found["logit"] == pytest.approx(float(expected["bag_logit"][0]), abs=1e-6)
    assert found["probability"] == pytest.approx(1 / (1 + np.exp(-found["logit"])), abs=1e-9)
    assert found["predicted"] == int(found["probability"] > 0.5) and found["instances"] == len(expected["y_inst"])
    assert found["random_weights"] and found["model"]["run"] == RUN and found["warnings"] == []
    assert wsi_options(found["options"]["wsi"]) == wsi_options(OPTIONS["camelyon16"]["wsi"])
    assert found["instances_above_threshold"] == (expected["instance_score"] > threshold).sum()
    lines = read_table(tmp_path / "one/instances.csv")
    scores = np.array([float(line["score"]) for line in lines])
    np.testing.assert_allclose(scores, expected["instance_score"], rtol=0, atol=1e-6)
    assert sum(int(line["positive"]) for line in lines) == found["instances_above_threshold"]
    signed = [float(line["signed_score"]) for line in lines]
    np.testing.assert_allclose(signed, expected["signed_score"], rtol=0, atol=1e-6)
    assert found["signed_agreement"] == pytest.approx(slides.predictions().meta.signed_agreement, abs=1e-6)
    tiles = json.loads((tmp_path / "one/tiles.geojson").read_text())["features"]
    assert tiles[3]["properties"]["measurements"]["Signed score"] == pytest.approx(signed[3], rel=1e-6)
    corner = tiles[3]["geometry"]["coordinates"][0][0]
    assert corner == [int(lines[3]["x"]), int(lines[3]["y"])]
    assert tiles[3]["properties"]["measurements"]["Score"] == pytest.approx(scores[3], rel=1e-6)
    assert is_png(tmp_path / "one/heatmap.png") and is_png(tmp_path / "one/top_tiles.png")
    assert not (tmp_path / "one/bag/features").exists() and len(read_table(tmp_path / "one/predictions.csv")) == 1
    assert Prediction.read(tmp_path / "one/prediction.json").logit == found["logit"]


def test_a_scan_gets_the_numbers_of_the_workflow(scans, tmp_path):
    row = scans.row()
    # names in other encodings, and an object that is no image
    folder, suffix = tmp_path / os.fsdecode(b"Sch\xe4del"), os.fsdecode(b"\xe4.dcm")
    write_slice(folder / "sr.dcm", Modality="SR")
    for i, name in enumerate(reversed(row.images)):
        shutil.copyfile(scans.raw / name, folder / f"{i:03d}{suffix}")
    assert run(folder, scans.run, tmp_path / "one") == 0
    expected = scans.predictions().bag(row.bag_id)
    found = json.loads((tmp_path / "one/prediction.json").read_text())
    assert found["logit"] == pytest.approx(float(expected["bag_logit"][0]), abs=1e-6)
    lines = read_table(tmp_path / "one/instances.csv")
    np.testing.assert_allclose([float(li["score"]) for li in lines], expected["instance_score"], rtol=0, atol=1e-6)
    # anatomical order whatever the files are called
    stored = read_instance_attrs(scans.results / "instances/store", row.bag_id).files
    order = [row.images[::-1].index(name) for name in stored]
    assert [line["file"] for line in lines] == [rf"Sch\xe4del/{i:03d}\xe4.dcm" for i in order]
    assert found["warnings"] == [r"left out: 1 x Modality SR (Sch\xe4del/sr.dcm)"]
    assert is_png(tmp_path / "one/heatmap.png") and is_png(tmp_path / "one/top_tiles.png")
    assert not (tmp_path / "one/tiles.geojson").exists()


def test_the_map_may_show_the_signed_score_where_the_run_has_one(slides, tmp_path, monkeypatch, capsys):
    shown = []
    monkeypatch.setattr("smmil.predict.pipeline.draw_heatmap", lambda path, bag, thumbnails: shown.append(bag))
    monkeypatch.setattr("smmil.predict.pipeline.draw_extremes", lambda path, bag, source: None)
    image, signed = slides.raw / slides.row().images[0], ["--map", "signed"]
    for more in ([], signed, ["--map", "signed_sm"]):
        assert run(image, slides.run, tmp_path / "a", "--keep-features", *more) == 0
    expected = slides.predictions().bag(slides.row().bag_id)
    maps = {"instance_score": "raw", "signed_score": "sign-aware", "signed_sm_score": "smoothed sign-aware"}
    for bag, (array, name) in zip(shown, maps.items(), strict=True):
        np.testing.assert_allclose(bag.scores, expected[array], rtol=0, atol=1e-6)
        assert bag.name == f"{name} score"
    lines = read_table(tmp_path / "a/instances.csv")
    smoothed = [float(line["signed_sm_score"]) for line in lines]
    np.testing.assert_allclose(smoothed, expected["signed_sm_score"], rtol=0, atol=1e-6)
    alone = copy_run(slides, tmp_path)
    (alone / "direction.safetensors").unlink()
    given = ["--dataset-folder", str(slides.results)]
    assert run(image, alone, tmp_path / "b", *given, *signed) == 2 and not (tmp_path / "b").exists()
    assert "--map signed" in capsys.readouterr().err
    assert run(image, alone, tmp_path / "b", *given) == 0
    assert not {"signed_score", "signed_sm_score"} & read_table(tmp_path / "b/instances.csv")[0].keys()
    told = json.loads((tmp_path / "b/prediction.json").read_text())
    assert told["signed_agreement"] is None and told["map"] == "score"


def test_an_image_that_the_run_has_learned_from_is_a_warning(slides, tmp_path, no_picture):
    parts = read_splits(slides.run.parent / "splits.csv")[1]
    learned = next(row for row in read_bags(slides.results / "bags.csv") if parts.get(row.bag_id) == "train")
    copy = tmp_path / Path(learned.images[0]).name
    shutil.copy(slides.raw / learned.images[0], copy)
    assert run(copy, slides.run, tmp_path / "same") == 0
    assert "a training image of the run" in json.loads((tmp_path / "same/prediction.json").read_text())["warnings"][-1]
    # another slide of the same name
    shutil.copy(slides.raw / slides.row().images[0], copy)
    assert run(copy, slides.run, tmp_path / "other") == 0
    assert not json.loads((tmp_path / "other/prediction.json").read_text())["warnings"]


def test_a_sign_that_validation_does_not_support_is_a_warning(slides, tmp_path, no_picture):
    path = slides.results / "metrics/resnet18/smap_early.json"
    before = path.read_bytes() if path.exists() else None
    names = {"dataset": "camelyon16", "encoder": "resnet18", "method": "smap_early", "protocol": "as_written"}
    path.parent.mkdir(parents=True, exist_ok=True)
    for area, warnings in ((0.5, [UNSUPPORTED]), (1.0, [])):
        val = {"bag_auroc": area, "n_bags": 8, "n_positive_bags": 4}
        split = {"seed": 1, "lr": 1e-3, "run": RUN, "signed_agreement": 0.3, "test": {}, "val": val}
        path.write_text(json.dumps({**names, "splits": [split]}))
        assert run(slides.raw / slides.row().images[0], slides.run, tmp_path, "--keep-features") == 0
        assert json.loads((tmp_path / "prediction.json").read_text())["warnings"] == warnings
    path.unlink() if before is None else path.write_bytes(before)


def test_a_full_disk_leaves_no_prediction_behind_and_says_so_in_one_line(
    slides, tmp_path, monkeypatch, capsys, no_picture
):
    def full(path, *_):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("smmil.predict.outputs.write_csv", full)
    assert run(slides.raw / slides.row().images[0], slides.run, tmp_path) == 1
    told = capsys.readouterr().err
    assert f"error: cannot write {tmp_path / 'instances.csv'}: No space left" in told and "make room" in told
    assert not (tmp_path / "prediction.json").exists()


def test_a_second_run_cuts_and_encodes_nothing_again_and_names_a_damaged_bag(slides, tmp_path, capsys, no_picture):
    image = slides.raw / slides.row().images[0]
    assert run(image, slides.run, tmp_path, "--keep-features") == 0
    files = [*(tmp_path / "bag/instances/store").rglob("zarr.json"), *(tmp_path / "bag/features").rglob("zarr.json")]
    before = {path: path.stat().st_mtime_ns for path in files}
    first = (tmp_path / "instances.csv").read_bytes()
    assert run(image, slides.run, tmp_path, "--keep-features") == 0
    assert before == {path: path.stat().st_mtime_ns for path in files}
    assert (tmp_path / "instances.csv").read_bytes() == first
    (chunk,) = (tmp_path / "bag/instances/store").glob("*/coords/c.*")
    flip(chunk, 0)
    assert run(image, slides.run, tmp_path, "--keep-features") == 2
    assert str(chunk) in capsys.readouterr().err and not (tmp_path / "prediction.json").exists()


def test_a_folder_bag_of_the_user_is_refused_and_stays(slides, tmp_path, capsys, no_picture):
    (tmp_path / "bag").mkdir()
    image = Path(shutil.copy(slides.raw / slides.row().images[0], tmp_path / "bag"))
    assert run(image, slides.run, tmp_path) == 2
    assert "bag: holds other files" in capsys.readouterr().err and image.is_file()
    # a bag of an earlier call is written anew, and goes with its other files if the next image is refused
    out = tmp_path / "out"
    assert run(image, slides.run, out) == run(image, slides.run, out) == 0
    assert {"bag", "prediction.json"} < {path.name for path in out.iterdir()} and any(
        (out / "bag/scores").rglob("*.npz")
    )
    (tmp_path / "bad.tif").write_bytes(b"no slide")
    assert run(tmp_path / "bad.tif", slides.run, out) == 2
    assert [path.name for path in out.iterdir()] == ["predictions.csv"]


def copy_run(house: House, folder: Path) -> Path:
    """The run alone, without its dataset around it."""
    return Path(shutil.copytree(house.run, folder / RUN))


def test_a_run_away_from_its_dataset_asks_for_what_it_does_not_know(slides, tmp_path, capsys, no_picture):
    image, alone = slides.raw / slides.row().images[0], copy_run(slides, tmp_path)
    assert run(image, alone, tmp_path / "out") == 2
    assert "give --dtype" in capsys.readouterr().err
    stated = ["--dtype", "float16", "--precision", "float32"]
    assert run(image, alone, tmp_path / "out", *stated) == 2
    assert "--dataset-folder" in capsys.readouterr().err
    options = ["--options", json.dumps(OPTIONS["camelyon16"])]
    predictions = []
    for more in ([*stated, *options], ["--dataset-folder", str(slides.results)]):
        assert run(image, alone, tmp_path / "out", "--keep-features", *more) == 0
        predictions.append(Prediction.read(tmp_path / "out/prediction.json"))
    assert "could not be compared" in predictions[0].warnings[0] and predictions[1].warnings == ()
    assert predictions[0].logit == predictions[1].logit


def test_other_sizes_types_and_resolutions_are_refused(slides, tmp_path, capsys, no_picture):
    image = slides.raw / slides.row().images[0]
    wrong = {"wsi": {**OPTIONS["camelyon16"]["wsi"], "tile_px": 64, "step_px": 64}}
    assert run(image, slides.run, tmp_path, "--options", json.dumps(wrong)) == 2
    assert "tile_px: 64 here, 96 trained" in capsys.readouterr().err
    assert not (tmp_path / "prediction.json").exists()
    assert run(image, slides.run, tmp_path, "--dtype", "float32") == 2
    assert run(image, slides.run, tmp_path, "--mpp", "0.5") == 2
    errors = capsys.readouterr().err
    assert "the run's features are float16" in errors and "--any-resolution" in errors
    assert run(image, slides.run, tmp_path, "--mpp", "0.5", "--any-resolution") == 0
    told = json.loads((tmp_path / "prediction.json").read_text())
    assert "0.5 um/px" in told["warnings"][0] and told["mpp_source"] == "manifest"


def change_config(**values: object):
    def change(run: Path) -> None:
        config = json.loads((run / "config.json").read_text())
        config["features"].update(values)
        (run / "config.json").write_text(json.dumps(config))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_config(weights_sha256="random-7"), "the run learned from random-7"),
        (change_config(encoder="resnet18", weights_sha256="f3" * 32), "weights of encoder resnet18 are missing"),
        (change_config(weights_sha256="unknown"), "encoder or weights are not recorded"),
        (change_config(encoder="resnet99"), "encoder 'resnet99' (did you mean 'resnet50'?), expected one of"),
        (lambda run: (run / "done.json").unlink(), "not a finished run"),
    ],
)
def test_other_weights_are_refused_before_the_image_is_opened(slides, tmp_path, capsys, change, message):
    alone = copy_run(slides, tmp_path)
    change(alone)
    more = ["--dataset-folder", str(slides.results), "--weights", str(tmp_path / "none")]
    assert run(slides.raw / slides.row().images[0], alone, tmp_path / "out", *more) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out/bag").exists()


def test_a_dicom_slide_is_a_slide_by_its_folder_and_its_file(slides, scans, tmp_path, capsys, no_picture):
    write_dicom_slide(tmp_path / "slide/level.dcm", [picture(), picture()[::2, ::2]], 0.5)
    for image in (tmp_path / "slide", tmp_path / "slide/level0.dcm"):
        assert run(image, slides.run, tmp_path / image.name, "--any-resolution") == 0
        found = Prediction.read(tmp_path / image.name / "prediction.json")
        assert found.modality == "wsi" and found.instances > 5
        assert run(image, scans.run, tmp_path / "b") == 2
        assert "a wsi image, but the run learned from ct bags" in capsys.readouterr().err


def test_an_odd_slide_file_is_read_right_and_said_in_the_prediction(slides, tmp_path, capsys, no_picture):
    row = slides.row()
    image = tmp_path / Path(row.images[0]).name
    shutil.copy(slides.raw / row.images[0], image)
    macro = np.full((60, 120, 3), 90, np.uint8)
    tifffile.imwrite(image, macro, append=True, tile=(64, 64), photometric="rgb", subfiletype=1, metadata=None)
    assert run(image, slides.run, tmp_path / "odd") == 0
    found = json.loads((tmp_path / "odd/prediction.json").read_text())
    logit = float(slides.predictions().bag(row.bag_id)["bag_logit"][0])
    assert found["logit"] == pytest.approx(logit, abs=1e-6) and "(120 x 60 px)" in found["warnings"][0]
    plain = write_tiff(tmp_path / "plain.tif", [np.full((512, 512, 3), 250, np.uint8)], mpp=None)
    assert run(plain, slides.run, tmp_path / "plain") == 2
    assert "no physical resolution found" in (error := capsys.readouterr().err) and "--mpp" in error


def test_a_refusal_says_what_the_file_is_and_names_it_once(slides, tmp_path, capsys):
    (tmp_path / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "empty.svs").mkdir()
    (tmp_path / "scan").mkdir()
    (tmp_path / "cut.dcm").write_bytes(b"")
    reasons = {
        "photo.png": "not a slide but a PNG picture; convert it",
        "empty.svs": "a folder, expected a slide file",
        "scan": "no DICOM file in the folder 'scan'",
        "cut.dcm": "an empty one (0 bytes); copy it again",
        "nothing.svs": "no such file or folder",
    }
    for name, reason in reasons.items():
        assert run(tmp_path / name, slides.run, tmp_path / "out") == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"error: {tmp_path / name}: ") and reason in error and "modality" not in error
        assert error.count(str(tmp_path)) == 1


@pytest.mark.parametrize("stage", ["cut_bag", "extract"])
def test_a_stage_that_fails_in_any_way_ends_in_one_line(slides, tmp_path, capsys, monkeypatch, stage):
    def fail(*arguments, **options):
        raise KeyError("no such directory entry")

    monkeypatch.setattr(f"smmil.predict.pipeline.{stage}", fail)
    image = slides.raw / slides.row().images[0]
    assert run(image, slides.run, tmp_path) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert str(image) in error and "KeyError: 'no such directory entry'" in error
    assert not (tmp_path / "prediction.json").exists()


def test_warnings_about_the_pixels_are_predicted_with_printed_and_drawn(slides, tmp_path, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr("smmil.predict.pipeline.draw_heatmap", lambda path, bag, thumbnails: drawn.append(bag.warnings))
    monkeypatch.setattr("smmil.predict.pipeline.draw_extremes", lambda path, bag, source: None)
    slide = write_tiff(tmp_path / "negative.tif", [255 - picture(), 255 - picture()[::2, ::2]], mpp=0.243)
    assert run(slide, slides.run, tmp_path / "one") == 0
    warnings = Prediction.read(tmp_path / "one/prediction.json").warnings
    assert drawn == [warnings] and any("is it inverted" in text for text in warnings)
    assert capsys.readouterr().out.splitlines() == [f"warning: {text}" for text in warnings]


def test_a_slide_without_tissue_is_an_outcome(slides, tmp_path, capsys):
    level = np.full((512, 512, 3), 250, np.uint8)
    slide = write_tiff(tmp_path / "white.tif", [level, level[::2, ::2]], mpp=0.243)
    for name in FILES:
        (tmp_path / name).touch()
    (tmp_path / "bag").mkdir()
    (tmp_path / "bag/manifest.csv").touch()
    assert run(slide, slides.run, tmp_path) == 0
    told = json.loads((tmp_path / "prediction.json").read_text())
    assert (told["state"], told["probability"]) == ("empty", None)
    (warning,) = told["warnings"]
    assert "single shade" in warning and capsys.readouterr().out == f"warning: {warning}\n"
    assert not any((tmp_path / name).exists() for name in (*FILES, "bag"))


@pytest.mark.parametrize(
    ("modality", "resolve", "values"),
    [
        ("wsi", wsi_options, {"preset": "20x", "target_mpp": 0.7, "mpp_tolerance": 0.02, "max_bad_tiles": 3}),
        ("ct", ct_options, {"preset": "bone", "slice_px": 64, "resize_slices": False}),
    ],
)
def test_recorded_settings_are_used_unless_others_are_given(modality, resolve, values):
    options = resolve(values)
    attrs = InstanceAttrs.model_validate({"modality": modality, "instance_options": options.model_dump(mode="json")})
    recorded = instance_options(modality, Reference((attrs, attrs)), None)
    assert resolve(recorded[modality]) == options
    given = instance_options(modality, Reference((attrs,)), {modality: {"preset": "paper"}})
    assert given == {modality: {"preset": "paper"}}


def test_settings_that_differ_or_were_not_recorded_are_asked_for():
    bags = tuple(InstanceAttrs(instance_options=wsi_options({"tile_px": px})) for px in (64, 96))
    with pytest.raises(ValueError, match=r"different settings \(tile_px\)"):
        instance_options("wsi", Reference(bags), None)
    imported = Reference((InstanceAttrs(imported_from="clam", tile_mpp=0.5),))
    with pytest.raises(ValueError, match="was imported.*--options"):
        instance_options("wsi", imported, None)


TISSUE, OTHER_TISSUE = TissueAttrs(sthresh=15), TissueAttrs(sthresh=20)
HEAD, BONE = (InstanceAttrs(modality="ct", windows=((w, 80), (80, 200), (40, 380))) for w in (40, 600))
CLAM = InstanceAttrs(recipe="clam", tile_px=512, tissue=TISSUE)
# with settings of its own
OVERRIDDEN = CLAM.updated(tissue=OTHER_TISSUE, overrides={"sthresh": 20})


@pytest.mark.parametrize(
    ("here", "trained", "message"),
    [
        (CLAM.updated(tissue=OTHER_TISSUE), CLAM, "tissue.sthresh: 20 here, 15 trained"),
        (OVERRIDDEN, CLAM, ""),
        (OVERRIDDEN.updated(tile_px=256), CLAM, "tile_px: 256 here, 512 trained"),
        # imported bags do not record everything
        (InstanceAttrs(imported_from="clam", tile_px=512), CLAM, ""),
        (InstanceAttrs(imported_from="clam", tile_px=256), CLAM, "tile_px: 256 here"),
        (BONE, HEAD, r"windows: .* here, .* trained\); cut it with the same settings"),
        (InstanceAttrs(), HEAD, "a wsi bag, but the run learned from ct bags"),
        (InstanceAttrs(tile_mpp=0.6), InstanceAttrs(), ""),
        (InstanceAttrs(tile_mpp=0.53), InstanceAttrs(tile_mpp=0.5), ""),
    ],
)
def test_a_bag_is_compared_with_those_of_the_training(here, trained, message):
    reference = Reference((trained,))
    if not message:
        assert check_like_training(here, reference) == []
        return
    with pytest.raises(ValueError, match=message):
        check_like_training(here, reference, any_resolution=True)


@pytest.mark.parametrize(("tile_mpp", "text"), [(0.6, "0.6 um/px"), (None, "unknown resolution")])
def test_an_unknown_or_other_resolution_is_refused_or_a_warning(tile_mpp, text):
    reference = Reference((InstanceAttrs(tile_mpp=0.25), InstanceAttrs(tile_mpp=0.5)))
    with pytest.raises(ValueError, match=f"tiles of {text}, the run learned from 0.25..0.5 um/px.*--any-resolution"):
        check_like_training(InstanceAttrs(tile_mpp=tile_mpp), reference)
    assert text in check_like_training(InstanceAttrs(tile_mpp=tile_mpp), reference, any_resolution=True)[0]
