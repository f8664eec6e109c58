"""Artefacts drawn on made-up tissue are found where they are, and only there."""

from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import pytest

from preprocessing.common.options import ArtefactName, TissueOptions, WsiOptions, wsi_options
from preprocessing.instances.slide_bag import tiles_without_artefacts
from preprocessing.slides.slide import open_slide
from preprocessing.store.outlines import ArtefactArea
from preprocessing.tiling.artefacts import (
    ARTEFACTS,
    Mask,
    View,
    find_artefacts,
    outline_areas,
    patch_focus,
    slide_artefacts,
    tissue_on,
)
from tests.helpers.pyramids import write_tiff

GLASS = np.array([243, 242, 244])
# Optical densities of nuclei and stroma as scanners record them, per unit.
HAEMATOXYLIN, EOSIN = np.array([0.65, 0.80, 0.45]), np.array([0.25, 0.95, 0.60])


def tissue_picture(shape: tuple[int, int] = (400, 400), seed: int = 0, strength: float = 1.0) -> np.ndarray:
    """Stroma with nuclei of a few px inside a disk, (h, w, 3) uint8."""
    rng = np.random.default_rng(seed)
    h, w = shape
    nuclei = cv2.GaussianBlur((rng.random(shape) > 0.96).astype(np.float32), (0, 0), 1.5)
    eosin = 0.35 + 0.15 * cv2.GaussianBlur(rng.random(shape).astype(np.float32), (0, 0), 2)
    od = strength * (6 * nuclei[..., None] * HAEMATOXYLIN + eosin[..., None] * EOSIN + 0.15 * HAEMATOXYLIN)
    disk = np.hypot(*np.mgrid[-h / 2 : h / 2, -w / 2 : w / 2]) < 0.46 * min(h, w)
    return np.clip(GLASS * np.exp(-od * disk[..., None]) - rng.integers(0, 4, (h, w, 1)), 0, 255).astype(np.uint8)


def band(shape: tuple[int, int], width: int) -> Mask:
    """A bent band across the middle."""
    mask = np.zeros(shape, np.uint8)
    x = np.arange(60, shape[1] - 60)
    points = np.stack([x, shape[0] / 2 + 20 * np.sin(x / 40)], axis=1).astype(np.int32)
    cv2.polylines(mask, [points], False, 1, width)
    return mask > 0


def absorbed(picture: np.ndarray, mask: Mask, od: np.ndarray) -> np.ndarray:
    soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.8)[..., None]
    return np.clip(picture * np.exp(-soft * od), 0, 255).astype(np.uint8)


def view(picture: np.ndarray, um_per_px: float = 8.0) -> View:
    tissue = np.hypot(*np.mgrid[-200:200, -200:200]) < 180
    return View(picture, tissue, np.full(tissue.shape, np.nan, np.float32), um_per_px)


def shares(picture: np.ndarray) -> dict[str, float]:
    return {name: area.share for name, area in find_artefacts(view(picture), 2.0).items()}


def test_the_registry_has_one_entry_per_name_of_the_options() -> None:
    assert list(ARTEFACTS) == list(get_args(ArtefactName)) == [kind.name for kind in ARTEFACTS.values()]
    assert len({kind.colour for kind in ARTEFACTS.values()}) == len(ARTEFACTS)


@pytest.mark.parametrize("seed", [0, 1])
def test_clean_tissue_has_no_artefacts(seed: int) -> None:
    assert shares(tissue_picture(seed=seed)) == dict.fromkeys(ARTEFACTS, 0.0)


@pytest.mark.parametrize("ink", [(40, 90, 190), (30, 140, 90), (200, 40, 50), (40, 40, 45)])
def test_ink_is_found_where_it_is_drawn(ink: tuple[int, int, int]) -> None:
    mask = band((400, 400), 14)
    seen = view(absorbed(tissue_picture(), mask, -np.log(np.array(ink) / 255)))
    pen = seen.pen & seen.tissue
    assert pen[mask & seen.tissue].mean() > 0.9
    assert not pen[~(cv2.dilate(mask.astype(np.uint8), np.ones((9, 9))) > 0)].any()
    assert ARTEFACTS["fold"].find(seen).sum() == 0


def test_a_fold_is_found_and_a_fold_of_one_dye_is_not() -> None:
    mask = band((400, 400), 12)
    folded = view(absorbed(tissue_picture(), mask, 0.65 * EOSIN + 0.5 * HAEMATOXYLIN))
    fold = ARTEFACTS["fold"].find(folded)
    assert fold[mask].mean() > 0.7 and fold[~mask].mean() < 0.02
    epithelium = view(absorbed(tissue_picture(), mask, 0.9 * HAEMATOXYLIN))
    assert not ARTEFACTS["fold"].find(epithelium).any()


def test_pale_tissue_and_gaps_are_told_apart() -> None:
    picture, corner = tissue_picture(), np.s_[150:200, 150:250]
    picture[corner] = GLASS
    assert shares(picture)["air"] == pytest.approx(5000 / (np.pi * 180**2), rel=0.1) and shares(picture)["pale"] < 0.02
    picture[corner] = tissue_picture(strength=0.12)[corner]
    assert shares(picture)["pale"] == pytest.approx(5000 / (np.pi * 180**2), rel=0.15)


def test_focus_falls_with_blur_and_ignores_contrast() -> None:
    sharp = tissue_picture((128, 128), seed=3)
    focus = [patch_focus(cv2.GaussianBlur(sharp, (0, 0), sigma) if sigma else sharp) for sigma in (0, 1, 2, 4)]
    assert focus == sorted(focus, reverse=True) and focus[0] > 4 * focus[2]
    dull = np.round(230 + (sharp.astype(float) - 230) * 0.4).astype(np.uint8)
    assert patch_focus(dull) == pytest.approx(focus[0], rel=0.2)
    assert patch_focus(np.full((128, 128, 3), 200, np.uint8)) == 0


def test_the_blurred_half_of_a_slide_is_found(tmp_path: Path) -> None:
    picture = np.tile(tissue_picture((400, 400))[100:300, 100:300], (8, 8, 1))
    picture[:, 800:] = cv2.GaussianBlur(picture, (0, 0), 5)[:, 800:]
    write_tiff(tmp_path / "s.tif", [picture], tile=128, mpp=1.0)
    with open_slide(tmp_path / "s.tif") as slide:
        thumbnail, downsample = slide.thumbnail(400)
        coords = np.array([[x, y] for y in range(0, 1600, 200) for x in range(0, 1600, 200)])
        found = slide_artefacts(slide, thumbnail, downsample, tissue_on(thumbnail, downsample, [], coords, 200, None))
    assert found["blur"].share == pytest.approx(0.5, abs=0.07)
    options = TissueOptions(exclude=("blur",))
    keep = tiles_without_artefacts(found, options, coords, 200)
    assert coords[keep][:, 0].max() == 600 and keep.sum() == 32


def test_outlines_keep_their_holes_and_exclusion_leaves_them_in() -> None:
    mask = np.zeros((100, 100), np.bool_)
    mask[10:90, 10:90] = True
    mask[30:70, 30:70] = False
    areas = outline_areas(mask, 10.0)
    assert len(areas) == 1 and len(areas[0]) == 2
    coords = np.array([[100, 100], [400, 400], [700, 700]])
    keep = tiles_without_artefacts({"pen": ArtefactArea(areas=areas)}, TissueOptions(exclude=("pen",)), coords, 150)
    assert keep.tolist() == [False, True, False]
    assert tiles_without_artefacts({}, TissueOptions(exclude=("pen",)), coords, 150).all()


def test_an_unused_exclusion_leaves_the_settings_as_they_were() -> None:
    before = WsiOptions().model_dump(mode="json")["tissue"]
    assert not {"exclude", "exclude_share"} & before.keys()
    options = wsi_options({"tissue": {"exclude": ["pen", "blur"]}})
    assert options.model_dump(mode="json")["tissue"]["exclude"] == ["pen", "blur"]
    with pytest.raises(ValueError, match="exclude"):
        wsi_options({"tissue": {"exclude": ["ink"]}})
