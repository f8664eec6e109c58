"""Size presets of the synthetic cohorts.

Counts are bags; lengths are px at level 0 for slides and px of the matrix for scans. "rehearsal" has as many bags as
the paper, each as small as possible. Finished folders record `GENERATOR_VERSION`: raise it whenever the same parameters
give other bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

GENERATOR_VERSION = 1


@dataclass(frozen=True)
class Camelyon16Size:
    """Lymph-node slides: `slides` with tissue, shares of the test part and of lesions in both parts, pyramid, tile px.

    Attributes:
        side: mean side of a slide, px at level 0.
        levels: number of pyramid levels, each half the size of the previous one.
        empty_slide: whether to add a normal training slide without tissue.
    """

    slides: int
    test_share: float
    tumor_share: float
    side: int
    levels: int
    tile: int
    empty_slide: bool


@dataclass(frozen=True)
class PandaSize:
    """Prostate biopsies: `slides`, including the one without a mask, shares of the parts, strips, side of a file tile.

    Attributes:
        strips: minimum and maximum number of tissue strips per slide.
        length, width: means of a strip, px at level 0.
        cancer_share: minimum and maximum share of the strips' length with cancer.
    """

    slides: int
    test_share: float
    val_share: float
    strips: tuple[int, int]
    length: int
    width: int
    tile: int
    cancer_share: tuple[float, float]


@dataclass(frozen=True)
class RsnaSize:
    """Head CT scans: number of studies, shares of the test list and of haemorrhages, geometry.

    Attributes:
        slices: minimum and maximum number of slices per scan.
        matrix: rows and columns of a slice, px.
        bleed_slices: minimum and maximum number of neighbouring slices with a haemorrhage.
        bleed_scale: in-plane size of a haemorrhage, 1 = small to moderate.
        blood_hu: minimum and maximum density of blood, HU.
    """

    scans: int
    test_share: float
    positive_share: float
    slices: tuple[int, int]
    matrix: int
    bleed_slices: tuple[int, int]
    bleed_scale: float
    blood_hu: tuple[float, float]


@dataclass(frozen=True)
class RehearsalSize:
    """Tiny bags, as many as a `fraction` of the paper's."""

    fraction: float


Size = Camelyon16Size | PandaSize | RsnaSize | RehearsalSize

SIZES: dict[str, dict[str, Size]] = {
    "tiny": {
        "camelyon16": Camelyon16Size(12, 1 / 3, 0.5, 960, 3, 256, False),
        "panda": PandaSize(12, 1 / 3, 0.0, (1, 1), 900, 330, 256, (0.12, 0.60)),
        "rsna": RsnaSize(12, 1 / 3, 0.5, (10, 14), 96, (3, 8), 1.0, (47.0, 66.0)),
    },
    "demo": {
        "camelyon16": Camelyon16Size(72, 0.35, 0.47, 1400, 4, 256, False),
        "panda": PandaSize(96, 0.36, 0.06, (1, 1), 1500, 400, 512, (0.45, 0.8)),
        "rsna": RsnaSize(60, 0.33, 0.5, (12, 18), 128, (5, 9), 2.2, (65.0, 90.0)),
    },
    "benchmark": {
        "camelyon16": Camelyon16Size(180, 0.33, 0.41, 2400, 4, 512, True),
        "panda": PandaSize(180, 0.2, 0.04, (1, 3), 2200, 420, 512, (0.12, 0.60)),
        "rsna": RsnaSize(240, 0.25, 0.5, (24, 40), 192, (5, 9), 2.2, (65.0, 90.0)),
    },
    "rehearsal": {name: RehearsalSize(1.0) for name in ("camelyon16", "panda", "rsna")},
}


def resolve_size(size: str, dataset: str, overrides: Mapping[str, object] | None = None) -> Size:
    """Return the preset of one data set; None and parameters that it does not have are ignored among the overrides.

    Raises:
        ValueError: unknown size or data set, or a cohort too small to be usable.
    """
    for option, name, known in (("size", size, SIZES), ("datasets", dataset, SIZES["tiny"])):
        if name not in known:
            raise ValueError(f"--{option} {name}: unknown; choose from {', '.join(known)}")
    preset = SIZES[size][dataset]
    changes = {k: v for k, v in (overrides or {}).items() if v is not None and hasattr(preset, k)}
    preset = replace(preset, **changes)  # type: ignore[arg-type]
    if isinstance(preset, RehearsalSize):
        if not 0 < preset.fraction <= 1:
            raise ValueError(f"--fraction {preset.fraction}: expected a share above 0, at most 1")
        return preset
    bags = preset.scans if isinstance(preset, RsnaSize) else preset.slides
    if bags < 8:
        raise ValueError(f"{dataset}: {bags} bags asked for; at least 8 are needed for both classes in train and test")
    if isinstance(preset, Camelyon16Size) and preset.side < 512:
        raise ValueError(f"camelyon16: side {preset.side} px; at least 512 px are needed for one lesion and some tiles")
    if isinstance(preset, RsnaSize) and preset.matrix < 64:
        raise ValueError(f"rsna: matrix {preset.matrix}; at least 64 px are needed")
    return preset
