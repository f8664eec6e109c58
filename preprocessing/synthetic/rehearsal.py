"""The three data sets at the paper's numbers of bags, with the smallest possible bags, to rehearse jobs and files.

The layouts, tables, splits and exclusions are those of the real sets: CAMELYON16 has 399 slides and the excluded
test_049; PANDA has 10,616 slides, of which 10,503 remain (one is blank, 100 have no mask, 3 a broken one, 9 no tissue);
RSNA has 1,150 scans, 150 of them for testing. A slide is one file tile and a scan three slices. The files of a class
share a few pictures, so that thousands are written in seconds; each slide ends in its own name, so that no two are
equal. `fraction` scales every count, to at least 1. Sources of the counts: `preprocessing.datasets`.
"""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from preprocessing.datasets.panda import BLANK, BROKEN_MASKS
from preprocessing.synthetic import camelyon16, panda, rsna
from preprocessing.synthetic.biopsy import BiopsySpec
from preprocessing.synthetic.cohort import Item, Plan, hex_id, put, stream
from preprocessing.synthetic.head_ct import Bleed
from preprocessing.synthetic.lymph_node import Outlines
from preprocessing.synthetic.sizes import RehearsalSize
from preprocessing.synthetic.tiff import encode_pyramid

U8 = npt.NDArray[np.uint8]
Box = tuple[slice, slice]
PICTURES = 8
GLASS, TISSUE, LESION = (244, 242, 243), (204, 140, 178), (130, 78, 150)

# camelyon16: the lesion fills the left of two tiles of 32 px
CAMELYON = {"normal": 159, "tumor": 111, "test": 129, "test_positive": 49}
NODE_BOX, LESION_BOX = np.s_[16:48, 16:80], np.s_[16:48, 16:48]
OUTLINE = np.array([[16, 16], [48, 16], [48, 48], [16, 48]], np.float64)
# panda: two windows of 32 px, 16 px apart; cancer covers more than half of the first and less of the second
PARTS = {"train": 8_469, "val": 353, "test": 1_794}
UNMASKED, WHITE = 100, 9
STRIP_BOX, CANCER_BOX = np.s_[2:30, 0:48], np.s_[2:30, 0:24]
# rsna
SCANS = {"train": 1_000, "test": 150}
POSITIVE_SCANS = 72 / 150
SLICES, MATRIX = 3, 32


def share(count: int, fraction: float) -> int:
    """Return a share of a count, at least 1."""
    return max(1, round(count * fraction))


def stained(shape: tuple[int, int], number: int, tissue: Box | None, lesion: Box | None) -> U8:
    """Draw picture `number` (h, w, 3): glass, a rectangle of tissue, one of lesion in it, and grain."""
    rng = stream("rehearsal", shape, number)
    rgb = np.full((*shape, 3), GLASS, np.float64)
    for box, colour in ((tissue, TISSUE), (lesion, LESION)):
        if box:
            rgb[box] = np.add(colour, rng.uniform(-14, 14, 3)) + rng.normal(0, 12, rgb[box].shape)
    return np.asarray(np.clip(np.rint(rgb), 0, 255), np.uint8)


@cache
def slide_bytes(kind: str, number: int, positive: bool, mpp: float) -> bytes:
    """Encode a slide: kind camelyon16, panda, white (no tissue), or a PANDA provider for a label mask."""
    if kind == "camelyon16":
        image = stained((64, 96), number, NODE_BOX, LESION_BOX if positive else None)
    elif kind == "white":
        image = stained((32, 48), number, None, None)
    elif kind == "panda":
        image = stained((32, 48), number, STRIP_BOX, CANCER_BOX if positive else None)
    else:
        image = np.zeros((32, 48, 3), np.uint8)
        benign, cancer = (2, 3) if kind == "radboud" else (1, 2)
        image[(*STRIP_BOX, 0)] = benign
        image[(*CANCER_BOX, 0)] = cancer if positive else benign
    return encode_pyramid(image, (1,), mpp, 96, lossless=kind in ("radboud", "karolinska"))


def make_node(folder: Path, spec: tuple[str, int, bool]) -> None:
    """Write one CAMELYON16 slide (name, number, whether it has a lesion) and its annotation."""
    name, number, positive = spec
    if positive:
        xml = camelyon16.asap_xml(Outlines([OUTLINE]), test=name.startswith("test"))
        put(folder / "annotations" / f"{name}.xml", xml)
    data = slide_bytes("camelyon16", number % PICTURES, positive, camelyon16.MPP[number % 2])
    put(folder / "images" / f"{name}.tif", data + name.encode())


def plan_camelyon16(size: RehearsalSize, seed: int) -> Plan:
    """Plan 399 slides, and test_049, which the real set's rules exclude."""
    counts = {kind: share(count, size.fraction) for kind, count in CAMELYON.items()}
    counts["test"] = max(counts["test"], counts["test_positive"] + 1)
    labels = dict.fromkeys(camelyon16.numbered("normal", counts["normal"]), False)
    labels |= dict.fromkeys(camelyon16.numbered("tumor", counts["tumor"]), True)
    tests = camelyon16.numbered("test", counts["test"])
    positive = set(stream(seed, "rehearsal", "test").permutation(len(tests))[: counts["test_positive"]].tolist())
    labels |= {name: k in positive for k, name in enumerate(tests)} | {"test_049": False}
    items = [Item(name, make_node, (name, k, lesion)) for k, (name, lesion) in enumerate(labels.items())]
    columns = {True: "Tumor,IDC,Macro", False: "Normal,None,None"}
    reference = "".join(f"{n},{columns[lesion]}\r\n" for n, lesion in labels.items() if n.startswith("test"))
    return Plan(items, {"evaluation/reference.csv": reference})


def make_biopsy(folder: Path, spec: tuple[panda.SlideSpec, int, str]) -> None:
    """Write one PANDA slide (spec, number, kind panda or white) and, if it has one, its mask."""
    slide, number, kind = spec
    positive, provider = slide.isup > 0, slide.biopsy.provider
    if slide.mask:
        data = slide_bytes(provider, 0, positive and kind == "panda", slide.mpp)
        put(folder / "train_label_masks" / f"{slide.name}_mask.tiff", data + slide.name.encode())
    data = slide_bytes(kind, number % PICTURES, positive, slide.mpp)
    put(folder / "train_images" / f"{slide.name}.tiff", data + slide.name.encode())


def panda_names(size: RehearsalSize, seed: int) -> Iterator[tuple[str, str, bool]]:
    """Yield (name, kind, whether it has a mask) of every slide: blank, broken masks, unmasked, white, all others."""
    total = sum(share(count, size.fraction) for count in PARTS.values())
    unmasked, white = (share(count, size.fraction) for count in (UNMASKED, WHITE))
    yield BLANK, "white", True
    for name in sorted(BROKEN_MASKS):
        yield name, "panda", True
    for k in range(max(0, total - 1 - len(BROKEN_MASKS))):
        yield hex_id(32, seed, "rehearsal", k), "white" if unmasked <= k < unmasked + white else "panda", k >= unmasked


def panda_specs(size: RehearsalSize, seed: int) -> list[tuple[panda.SlideSpec, int, str]]:
    """Draw the parameters of every slide, sorted by name.

    Slides without a usable mask show cancer, because a benign slide without a mask is not excluded.
    """
    rng = stream(seed, "rehearsal", "panda")
    slides = [*panda_names(size, seed)]
    parts = [part for part, count in PARTS.items() for _ in range(share(count, size.fraction))]
    parts = [parts[k] for k in rng.permutation(len(slides))]
    specs = []
    for k, ((name, kind, mask), part) in enumerate(zip(slides, parts, strict=True)):
        usable = mask and name not in BROKEN_MASKS
        grade = k % 5 + 1 if not usable or k % 100 >= 100 * panda.BENIGN_SHARE else 0
        provider = ("radboud", "karolinska")[k // 5 % 2]
        gleason = panda.GLEASON[grade][0] if grade else None
        biopsy = BiopsySpec(provider, gleason, 0.5 if grade else 0.0, 1, 48, 28, False)
        mpp = panda.MPP[provider][0]
        specs.append((panda.SlideSpec(name, seed, grade, part, biopsy, mpp, 96, mask), k, kind))
    return sorted(specs, key=lambda spec: spec[0].name)


def plan_panda(size: RehearsalSize, seed: int) -> Plan:
    """Plan 10,616 slides, of which 10,503 remain after exclusions."""
    specs = panda_specs(size, seed)
    items = [Item(spec[0].name, make_biopsy, spec) for spec in specs]
    return panda.plan_slides(items, [slide for slide, *_ in specs])


def head(number: int, positive: bool) -> npt.NDArray[np.float32]:
    """Draw one slice (m, m) float32 in HU: air, skull, brain with noise, and blood if positive."""
    axis = np.linspace(-1, 1, MATRIX)
    radius = np.hypot(axis[:, None], axis[None, :])
    rng = stream("rehearsal", "head", number)
    hu = np.where(radius < 0.8, 34 + rng.normal(0, 6, radius.shape), np.where(radius < 0.95, 900.0, -1000.0))
    if positive:
        hu[12:20, 6:14] = 75
    return np.asarray(hu, np.float32)


def make_scan(folder: Path, spec: rsna.ScanSpec) -> None:
    """Write the slices of one scan."""
    for k, labels in enumerate(spec.labels()):
        hu = head((spec.index + k) % PICTURES, bool(labels.any()))
        stored = rsna.encode(hu, spec.encoding, -1024, np.zeros(hu.shape, bool))
        rsna.write_slice(folder / "stage_2_train", spec, k, stored, -1024, [-120.0, -120.0, 5.0 * k])


def plan_rsna(size: RehearsalSize, seed: int) -> Plan:
    """Plan 1,150 scans, 150 of them for testing; the middle one of three slices shows blood in positive scans."""
    specs: list[rsna.ScanSpec] = []
    for part, count in SCANS.items():
        scans = share(count, size.fraction)
        positive = share(round(scans * POSITIVE_SCANS), 1.0)
        for k in range(scans):
            key = (seed, "rehearsal", part, k)
            specs.append(
                rsna.ScanSpec(
                    seed=seed,
                    index=len(specs),
                    patient=f"ID_{hex_id(8, *key)}",
                    study=f"ID_{hex_id(10, *key, 'study')}",
                    series=f"ID_{hex_id(10, *key, 'series')}",
                    files=tuple(f"ID_{hex_id(9, *key, i)}" for i in range(SLICES)),
                    matrix=MATRIX,
                    spacing=(5.0,) * SLICES,
                    test=part == "test",
                    bleeds=(Bleed("epidural", 1, 1),) if k < positive else (),
                )
            )
    return rsna.plan_scans(specs, seed, make_scan)


PLANS: dict[str, Callable[[RehearsalSize, int], Plan]] = {
    "camelyon16": plan_camelyon16,
    "panda": plan_panda,
    "rsna": plan_rsna,
}
