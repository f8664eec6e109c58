"""Synthetic slides: pyramids that OpenSlide opens, annotations and masks that agree with the pixels."""

import csv
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import openpyxl
import openslide
import pytest
import tifffile
from shapely.geometry import Polygon

from preprocessing.synthetic import camelyon16, panda
from preprocessing.synthetic.sizes import resolve_size
from tests.helpers.dataset_files import read_table


def picture(path: Path, level: int = 0) -> np.ndarray:
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level]).convert("RGB"))


def saturation(rgb: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)[..., 1])


def polygons(xml: Path) -> list[tuple[str, np.ndarray]]:
    """Groups and corners (n, 2), which stand in their order."""
    return [
        (
            outline.attrib["PartOfGroup"],
            np.array([[float(c.attrib[k]) for k in "XY"] for c in outline.iter("Coordinate")]),
        )
        for outline in ElementTree.parse(xml).iter("Annotation")
    ]


def lesion_mask(xml: Path, shape: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    for group, xy in sorted(polygons(xml), key=lambda p: p[0] in ("_2", "Exclusion")):
        cv2.fillPoly(mask, [xy.astype(np.int32)], 0 if group in ("_2", "Exclusion") else 1)
    return mask > 0


@pytest.mark.parametrize(
    ("dataset", "folder", "downsamples", "mpps"),
    [
        ("camelyon16", "images", (1, 2, 4), set(camelyon16.MPP)),
        ("panda", "train_images", (1, 4, 16), {m for ms in panda.MPP.values() for m in ms}),
        ("panda", "train_label_masks", (1, 4, 16), {m for ms in panda.MPP.values() for m in ms}),
    ],
)
def test_openslide_opens_every_pyramid(tiny, dataset, folder, downsamples, mpps):
    seen = set()
    for path in sorted((tiny[dataset] / folder).iterdir()):
        with openslide.OpenSlide(path) as slide:
            assert slide.properties["openslide.vendor"] == "generic-tiff"
            assert slide.level_downsamples == pytest.approx(downsamples)
            x, y = (float(slide.properties[f"openslide.mpp-{axis}"]) for axis in "xy")
            assert x == y
            seen.add(round(x, 6))
    assert seen == {round(m, 6) for m in mpps}


def test_pictures_are_subsampled_jpeg_and_masks_are_lossless(tiny):
    for folder, compression in (("camelyon16/images", 7), ("panda/train_images", 7), ("panda/train_label_masks", 8)):
        path = sorted((tiny["panda"].parent / folder).iterdir())[0]
        with tifffile.TiffFile(path) as tiff:
            for page in tiff.pages:
                assert page.compression == compression and page.is_tiled
                assert not {"DateTime", "Software", "ImageDescription"} & {tag.name for tag in page.tags}
                if compression == 7:
                    assert page.photometric == 6 and page.subsampling == (2, 2)


def test_camelyon16_names_labels_and_annotations_agree(tiny):
    root = tiny["camelyon16"]
    images = {p.stem for p in (root / "images").iterdir()}
    annotated = {p.stem for p in (root / "annotations").iterdir()}
    with (root / "evaluation" / "reference.csv").open(newline="") as stream:
        reference = {row[0]: row[1] for row in csv.reader(stream)}
    assert set(reference) == {n for n in images if n.startswith("test")}
    assert set(reference.values()) == {"Normal", "Tumor"}
    tumors = {n for n in images if n.startswith("tumor")} | {n for n, label in reference.items() if label == "Tumor"}
    assert annotated == tumors
    assert any(n.startswith("normal") for n in images)


def test_camelyon16_skips_the_numbers_that_the_real_set_lacks():
    plan = camelyon16.plan(resolve_size("benchmark", "camelyon16"), 0)
    assert not {item.name for item in plan.items} & set(camelyon16.EXCLUDED) and len(plan.items) == 181
    assert "normal_086" not in camelyon16.numbered("normal", 100) and len(camelyon16.numbered("normal", 100)) == 100


def test_lesions_lie_on_tissue_and_look_different(tiny):
    root = tiny["camelyon16"]
    differences = []
    for xml in sorted((root / "annotations").iterdir()):
        rgb = picture(root / "images" / f"{xml.stem}.tif")
        tissue = saturation(rgb) > 15
        lesion = lesion_mask(xml, rgb.shape[:2])
        share = (lesion & tissue).sum() / tissue.sum()
        assert 0.02 < share < 0.55, xml.stem
        assert tissue[lesion].mean() > 0.85, xml.stem
        red = rgb[..., 0].astype(float)
        differences.append(red[tissue & ~lesion].mean() - red[tissue & lesion].mean())
    # Haematoxylin takes red away: lesions are darker as a rule, though not on every slide.
    assert np.median(differences) > 5


def test_annotations_have_the_shapes_that_readers_must_survive(tiny):
    groups: dict[str, set[str]] = defaultdict(set)
    valid = []
    for xml in sorted((tiny["camelyon16"] / "annotations").iterdir()):
        for group, xy in polygons(xml):
            groups["test" if xml.stem.startswith("test") else "train"].add(group)
            valid.append(Polygon(xy).is_valid)
            assert len(xy) >= 4
    assert groups["train"] <= {"_0", "_1", "_2"} and {"_0", "_2"} <= groups["train"]
    assert groups["test"] == {"Tumor", "Exclusion"}
    assert not all(valid) and any(valid)


def test_a_pen_is_drawn_and_an_empty_slide_is_bare_glass(tiny, tmp_path):
    pen = picture(tiny["camelyon16"] / "images" / "normal_001.tif").astype(int)
    assert ((pen[..., 1] - pen[..., 0] > 40) & (saturation(pen.astype(np.uint8)) > 80)).sum() > 2000
    spec = camelyon16.slide_spec(resolve_size("tiny", "camelyon16"), 0, "normal_009", False, "empty")
    camelyon16.make_slide(tmp_path, spec)
    assert (saturation(picture(tmp_path / "images" / "normal_009.tif", 2)) > 15).mean() < 0.001


def test_panda_masks_agree_with_the_grades(tiny):
    root, missing = tiny["panda"], []
    table = read_table(root / "train.csv")
    assert {r["data_provider"] for r in table} == {"radboud", "karolinska"}
    assert {"negative", "0+0"} <= {r["gleason_score"] for r in table}
    for row in table:
        path = root / "train_label_masks" / f"{row['image_id']}_mask.tiff"
        if not path.exists():
            missing.append(row["image_id"])
            continue
        mask = picture(path)
        assert not mask[..., 1:].any()
        assert set(np.unique(picture(path, 1))) <= set(np.unique(mask))
        assert mask.shape == picture(root / "train_images" / f"{row['image_id']}.tiff").shape
        values = set(np.unique(mask[..., 0]).tolist())
        patterns = set() if row["isup_grade"] == "0" else {int(g) for g in row["gleason_score"].split("+")}
        if row["data_provider"] == "karolinska":
            assert values == ({0, 1, 2} if patterns else {0, 1})
        else:
            assert values - {0, 1, 2} == patterns
    assert len(missing) == 1


def test_panda_tissue_is_where_the_mask_says(tiny):
    root = tiny["panda"]
    for path in sorted((root / "train_label_masks").iterdir()):
        label = picture(path)[..., 0]
        coloured = saturation(picture(root / "train_images" / path.name.replace("_mask", ""))) > 20
        assert coloured[label > 0].mean() > 0.7
        assert coloured[label == 0].mean() < 0.15


def test_panda_split_file_has_the_published_columns(tiny, shared_data):
    book = openpyxl.load_workbook(shared_data / "panda" / "partition_PANDA.xlsx", read_only=True)
    header = [value or "" for value in next(iter(book.worksheets[0].iter_rows(max_row=1, values_only=True)))]
    book.close()
    assert header == panda.PARTITION_COLUMNS
    assert (tiny["panda"] / "partition_PANDA.csv").read_text().split("\n")[0] == ",".join(header)


def test_panda_split_is_stratified_and_consistent(tiny):
    labels = {r["image_id"]: int(r["isup_grade"]) for r in read_table(tiny["panda"] / "train.csv")}
    split = read_table(tiny["panda"] / "partition_PANDA.csv")
    assert {r["slide_name"] for r in split} == set(labels)
    parts: dict[str, set[bool]] = defaultdict(set)
    for row in split:
        grade = labels[row["slide_name"]]
        parts[row["Partition"]].add(grade > 0)
        assert [row[f"isup_{k}"] for k in range(6)] == [str(int(k == grade)) for k in range(6)]
    assert parts["train"] == parts["test"] == {True, False}
    demo = panda.slide_specs(resolve_size("demo", "panda"), 0)  # type: ignore[arg-type]
    assert {s.part for s in demo} == {"train", "val", "test"}
    assert {s.isup for s in demo} == set(range(6))
