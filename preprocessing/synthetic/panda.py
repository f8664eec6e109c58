"""A miniature PANDA in the layout of the challenge's download.

`train_images/{id}.tiff` (JPEG, factors 1 4 16, resolution per cm), `train_label_masks/{id}_mask.tiff` (lossless, same
levels, label in the red channel, coded by provider), `train.csv` (image_id, data_provider, isup_grade, gleason_score;
benign is "negative" at Radboud and "0+0" at Karolinska) and `partition_PANDA.csv` with the columns of the split that
Silva-Rodriguez et al. 2021 publish as xlsx. One slide has no mask and one carries a pen mark.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from preprocessing.synthetic.biopsy import BiopsySpec, draw_biopsy
from preprocessing.synthetic.cohort import Item, Plan, hex_id, put, stream
from preprocessing.synthetic.sizes import PandaSize
from preprocessing.synthetic.tiff import encode_pyramid

FACTORS = (1, 4, 16)
# um/px at the first level; Karolinska used two scanners
MPP = {"radboud": (0.48,), "karolinska": (0.452, 0.503)}
BENIGN_SHARE = 0.42
GLEASON: dict[int, tuple[tuple[int, int], ...]] = {
    1: ((3, 3),),
    2: ((3, 4),),
    3: ((4, 3),),
    4: ((4, 4), (3, 5), (5, 3)),
    5: ((4, 5), (5, 4), (5, 5)),
}
PARTITION_COLUMNS = (
    ["", "slide_name", "Partition", "NC", "G3", "G4", "G5"]
    + [f"isup_{k}" for k in range(6)]
    + [f"gs_{k}" for k in (0, 6, 7, 8, 9, 10)]
)


@dataclass(frozen=True)
class SlideSpec:
    """One slide: identifier, seed, ISUP grade (0..5), part of the split, picture, and whether it has a mask."""

    name: str
    seed: int
    isup: int
    part: str
    biopsy: BiopsySpec
    mpp: float
    tile: int
    mask: bool


def parts(size: PandaSize, isup: npt.NDArray[np.int64], rng: np.random.Generator) -> list[str]:
    """Return the part of every slide, stratified by cancer, from the ISUP grades (n,)."""
    out = ["train"] * len(isup)
    for positive in (False, True):
        members = rng.permutation(np.flatnonzero((isup > 0) == positive)).tolist()
        test = max(1, round(size.test_share * len(members)))
        val = round(size.val_share * len(members))
        for k in members[:test]:
            out[k] = "test"
        for k in members[test : test + val]:
            out[k] = "val"
    return out


def gleason_score(spec: SlideSpec) -> str:
    """Format the Gleason score; the two centres write benign differently."""
    if spec.biopsy.gleason is None:
        return "negative" if spec.biopsy.provider == "radboud" else "0+0"
    return "{}+{}".format(*spec.biopsy.gleason)


def slide_specs(size: PandaSize, seed: int) -> list[SlideSpec]:
    """Draw the parameters of every slide, sorted by identifier."""
    rng = stream(seed, "panda", "plan")
    benign = max(3, round(size.slides * BENIGN_SHARE))
    isup = np.concatenate([np.zeros(benign, np.int64), 1 + np.arange(size.slides - benign) % 5])
    part = parts(size, isup, rng)
    benign_train = [k for k in range(benign) if part[k] == "train"]
    specs = []
    for k, grade in enumerate(isup.tolist()):
        slide_rng = stream(seed, "panda", "spec", k)
        turn = k if grade == 0 else (k - benign) // 5 + (k - benign) % 5
        provider = ("radboud", "karolinska")[turn % 2]
        gleason = GLEASON[grade][int(slide_rng.integers(len(GLEASON[grade])))] if grade else None
        strips = int(slide_rng.integers(size.strips[0], size.strips[1] + 1))
        low, high = size.cancer_share
        share = float(np.exp(slide_rng.uniform(np.log(low), np.log(high)))) if grade else 0.0
        # both patterns need room for some glands, and some windows must be covered by more than half
        least = (460 if gleason and gleason[0] != gleason[1] else 340) / (strips * size.length)
        share = min(0.85, max(share, least)) if grade else 0.0
        pen = k == benign_train[-1] or (grade == 2 and k == int(np.flatnonzero(isup == 2)[0]))
        biopsy = BiopsySpec(provider, gleason, share, strips, size.length, size.width, pen)
        mpp = MPP[provider][k % len(MPP[provider])]
        mask = k != benign_train[0]
        specs.append(SlideSpec(hex_id(32, seed, "panda", k), seed, grade, part[k], biopsy, mpp, size.tile, mask))
    return sorted(specs, key=lambda spec: spec.name)


def make_slide(folder: Path, spec: SlideSpec) -> None:
    """Write one slide and, if it has one, its mask."""
    rgb, label = draw_biopsy(stream(spec.seed, "panda", "draw", spec.name), spec.biopsy)
    if spec.mask:
        channels = np.zeros((*label.shape, 3), np.uint8)
        channels[..., 0] = label
        mask = encode_pyramid(channels, FACTORS, spec.mpp, spec.tile, lossless=True)
        put(folder / "train_label_masks" / f"{spec.name}_mask.tiff", mask)
    slide = encode_pyramid(rgb, FACTORS, spec.mpp, spec.tile, lossless=False)
    put(folder / "train_images" / f"{spec.name}.tiff", slide)


def plan_slides(items: list[Item], specs: list[SlideSpec]) -> Plan:
    """Return the plan of the slides with the label table and the split table.

    The latter has the part, the patterns present, the one-hot grade and the one-hot Gleason sum.
    """
    labels = ["image_id,data_provider,isup_grade,gleason_score"]
    parts = [",".join(PARTITION_COLUMNS)]
    for k, spec in enumerate(specs):
        labels.append(f"{spec.name},{spec.biopsy.provider},{spec.isup},{gleason_score(spec)}")
        patterns = spec.biopsy.gleason or ()
        flags = [not patterns, *(g in patterns for g in (3, 4, 5))]
        flags += [spec.isup == grade for grade in range(6)]
        flags += [sum(patterns) == score for score in (0, 6, 7, 8, 9, 10)]
        parts.append(",".join([str(k), spec.name, spec.part, *(str(int(f)) for f in flags)]))
    tables = {"train.csv": labels, "partition_PANDA.csv": parts}
    return Plan(items, {name: "\n".join(lines) + "\n" for name, lines in tables.items()})


def plan(size: PandaSize, seed: int) -> Plan:
    """Plan the slides and the two tables."""
    specs = slide_specs(size, seed)
    return plan_slides([Item(spec.name, make_slide, spec) for spec in specs], specs)
