"""Many images and several runs in one call: means of the single predictions, a row per image, refusals in one line."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from preprocessing.common.files import write_text
from smmil.predict import __main__ as command
from smmil.predict import batch
from smmil.predict.batch import find_images, predict_images
from smmil.predict.pipeline import Preparation, check_models, predict
from smmil.predict.settings import load_model
from smmil.predictions.scoring import runs_in
from smmil.view.catalogue import find_cohorts
from tests.helpers.dataset_files import read_table, touch
from tests.helpers.dicoms import write_slice
from tests.helpers.pyramids import write_tiff
from tests.predict.house import House

LIMITS = Preparation(device="cpu", threads=1, batch_size=16)


def put(slides: House, folder: Path, n: int = 2) -> list[Path]:
    """Copy test slides into a folder."""
    files = [slides.raw / row.images[0] for row in slides.rows if row.split == "test"][:n]
    folder.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copy(file, folder)) for file in files]


@pytest.mark.usefixtures("no_picture")
def test_an_ensemble_over_a_folder_gives_the_means_and_refuses_one_image_in_one_line(
    slides: House, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    (image,) = put(slides, tmp_path / "in/deeper", n=1)
    (tmp_path / "in/text.tif").write_text("no slide\n")
    white = np.full((512, 512, 3), 250, np.uint8)
    write_tiff(tmp_path / "in/white.tif", [white, white[::2, ::2]], mpp=0.243)
    runs = slides.run.parent
    argv = [str(tmp_path / "in"), "--model", str(runs), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert command.main([*argv, "--threads", "1", "--batch-size", "16"]) == 2
    # the log has a line per image, and says once what an untrained encoder means
    assert caplog.text.count("RANDOM ENCODER WEIGHTS") == 1 and "white: empty, no tissue found" in caplog.text
    lines = [record.getMessage() for record in caplog.records if record.levelname == "INFO"]
    assert [line.split(",")[0] for line in lines] == [f"{i} of 3 images" for i in range(1, 4)]
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and errors[0].count("text.tif") == 1 and "Traceback" not in printed.err
    assert printed.out.splitlines()[-1].endswith("predictions.csv: 3 images, 1 refused, 1 empty, 1 ok")
    rows = {row["bag_id"]: row for row in read_table(tmp_path / "out/predictions.csv")}
    assert {name: row["state"] for name, row in rows.items()} == {image.stem: "ok", "text": "refused", "white": "empty"}
    assert rows["text"]["reason"] and not rows["text"]["probability"] and rows["white"]["reason"]
    names = [path.name for path in runs_in([runs])]
    assert len(names) == 2
    limits = {"device": "cpu", "threads": 1, "batch_size": 16, "keep_features": True}
    alone = [predict(image, runs / name, tmp_path / "one", **limits) for name in names]
    row = rows[image.stem]
    for name, prediction in zip(names, alone, strict=True):
        assert float(row[f"probability smap_early/{name}"]) == pytest.approx(prediction.probability, abs=1e-8)
        assert (tmp_path / "out" / image.stem / f"smap_early_{name}/instances.csv").is_file()
    mean = (alone[0].probability + alone[1].probability) / 2
    assert float(row["probability"]) == pytest.approx(mean, abs=1e-8) and row["runs"] == "2"
    assert row["predicted"] == str(int(mean > 0.5))
    # tiles and scores of every image stay for the viewer, features and scratch folders do not
    (cohort,) = find_cohorts(tmp_path / "out").values()
    assert [store.folder.parent.name for store in cohort.stores] == [image.stem]
    left = [path for path in (tmp_path / "out").rglob("*") if path.name.startswith(".bag") or path.name == "features"]
    assert not left and not (tmp_path / "out/text").exists()


@pytest.mark.usefixtures("no_picture")
def test_an_error_that_nobody_expected_is_a_row_and_the_others_go_on(
    slides: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = find_images(put(slides, tmp_path / "in"))
    model = load_model(slides.run, Path("weights"))
    score, calls = batch.predict_runs, iter([RuntimeError("no such kernel"), None])

    def fail_once(*arguments, **options):
        if error := next(calls):
            raise error
        return score(*arguments, **options)

    monkeypatch.setattr(batch, "predict_runs", fail_once)
    rows = predict_images(images, [model], tmp_path / "out", LIMITS)
    assert [row.state for row in rows] == ["failed", "ok"] and "RuntimeError: no such kernel" in rows[0].reason
    assert (tmp_path / "out" / images[1].bag_id / "prediction.json").is_file()
    monkeypatch.setattr(batch, "predict_runs", lambda *a, **o: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space left"):
        predict_images(images, [model], tmp_path / "full", LIMITS)


def test_folders_and_tables_name_their_images(tmp_path: Path) -> None:
    touch(tmp_path, "in/b.svs", "in/a.mrxs", "in/a/Slide0.tif", "in/.hidden.svs", "in/notes.txt", "in/c/b.svs")
    write_slice(tmp_path / "in/scan/1.dcm")
    write_slice(tmp_path / "in/scan/more/2.dcm")
    touch(tmp_path, "in/empty/x.txt")
    images = find_images([tmp_path / "in"])
    assert [str(image.path.relative_to(tmp_path / "in")) for image in images] == ["a.mrxs", "b.svs", "c/b.svs", "scan"]
    assert [image.bag_id for image in images] == ["a", "b", "b_2", "scan"]
    # a folder without any is left to the reader, which says what is wrong with it
    assert find_images([tmp_path / "in/empty"])[0].path == tmp_path / "in/empty"
    table = tmp_path / "list.csv"
    table.write_text("image,bag_id,mpp,label\nin/b.svs,first,0.5,1\nin/scan,,,\n")
    first, second = find_images([table], mpp=0.25)
    assert (first.path, first.bag_id, first.mpp) == (tmp_path / "in/b.svs", "first", 0.5)
    assert (second.bag_id, second.mpp) == ("scan", 0.25)
    assert find_images([tmp_path / "in/b.svs"], bag_id="mine")[0].bag_id == "mine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,bag_id\na.svs,x\nb.svs,x\n", "bag_id 'x': found two images"),
        ("image,mpp\na.svs,a quarter\n", r"line 2: mpp: found 'a quarter'"),
        ("image\n", "no rows"),
        ("file\na.svs\n", r"expected also \['image'\]"),
    ],
)
def test_faulty_tables_are_refused_before_the_first_image(tmp_path: Path, text: str, message: str) -> None:
    write_text(tmp_path / "list.csv", text)
    with pytest.raises(ValueError, match=message):
        find_images([tmp_path / "list.csv"])


def test_what_fits_no_image_is_refused_at_the_door(slides: House, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--bag-id x: found 2 images, expected one"):
        find_images([tmp_path / "a.svs", tmp_path / "b.svs"], bag_id="x")
    model = load_model(slides.run, Path("weights"))
    other = replace(model, config=model.config.model_copy(update={"dataset": "other"}))
    wide = replace(model, features=replace(model.features, dtype="float32"))
    for what, second in (("dataset", other), ("dtype", wide)):
        with pytest.raises(ValueError, match=f"has another {what} than"):
            check_models([model, second], LIMITS)
