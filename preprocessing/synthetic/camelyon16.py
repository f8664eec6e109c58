"""A miniature CAMELYON16 in the layout of the public bucket.

`images/{normal,tumor,test}_NNN.tif` (tiled JPEG pyramids, factors 1 2 4 8, mpp of the two centres in turn),
`annotations/*.xml` (ASAP: groups `_0`, `_1`, `_2` in training, `Tumor`, `Exclusion` in test; cut-outs and a
self-intersecting outline occur) and `evaluation/reference.csv` (no header: name, Normal or Tumor, type, size).
As in the real set, `PARTLY_ANNOTATED` slides with several lesions lack one in their XML, and `EXCLUDED` slides do not
occur. Source of names and formats: the CAMELYON16 readme.
"""

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import shapely

from preprocessing.datasets.camelyon16 import EXCLUDED, PARTLY_ANNOTATED
from preprocessing.synthetic.cohort import Item, Plan, put, stream
from preprocessing.synthetic.lymph_node import NodeSpec, Outlines, draw_node
from preprocessing.synthetic.sizes import Camelyon16Size
from preprocessing.synthetic.tiff import encode_pyramid

# um/px of the scanners of the two centres
MPP = (0.243, 0.2263)
LESION_SHARES = (0.05, 0.40)


@dataclass(frozen=True)
class SlideSpec:
    """One slide: its name, seed, picture and pyramid, and whether an outline crosses itself."""

    name: str
    seed: int
    node: NodeSpec
    levels: int
    tile: int
    twisted: bool


def numbered(kind: str, count: int) -> list[str]:
    """Return the first `count` names of a kind, skipping the numbers that the real set lacks."""
    names = (f"{kind}_{n:03d}" for n in range(1, count + 1 + len(EXCLUDED)))
    return [name for name in names if name not in EXCLUDED][:count]


def slide_labels(size: Camelyon16Size, seed: int) -> dict[str, bool]:
    """Map each slide with tissue to whether it has a lesion; both classes occur in both parts."""
    test = max(2, round(size.slides * size.test_share))
    train = size.slides - test
    tumors = {"train": max(2, round(train * size.tumor_share)), "test": max(1, round(test * size.tumor_share))}
    labels = dict.fromkeys(numbered("normal", train - tumors["train"]), False)
    labels |= dict.fromkeys(numbered("tumor", tumors["train"]), True)
    positive = set(stream(seed, "camelyon16", "test").permutation(test)[: tumors["test"]].tolist())
    return labels | {name: k in positive for k, name in enumerate(numbered("test", test))}


def slide_spec(size: Camelyon16Size, seed: int, name: str, tumor: bool, special: str) -> SlideSpec:
    """Draw the parameters of one slide."""
    rng = stream(seed, "camelyon16", "spec", name)
    unit = 2 ** max(size.levels - 1, 3)
    w, h = (int(round(size.side * f / unit)) * unit for f in (rng.uniform(0.88, 1.16), rng.uniform(0.86, 1.10)))
    low, high = LESION_SHARES
    share = float(np.exp(rng.uniform(np.log(low), np.log(high)))) if tumor else 0.0
    # a lesion fills at least six 128-px tiles; tissue is a little under half of a slide
    share = max(share, 6 * 128**2 / (0.45 * w * h)) if tumor else 0.0
    lesions = int(rng.choice([1, 2, 3], p=[0.55, 0.30, 0.15])) if share > 0.1 else 1
    if name in PARTLY_ANNOTATED:
        lesions = max(lesions, 2)
    # tests need each fault of the outlines once, so it is certain on the first positive slides and rare elsewhere
    number = int(name.split("_")[1])
    cut_out = tumor and (name == "tumor_001" or special == "cut_out" or (share > 0.2 and rng.random() < 0.4))
    if cut_out:
        share, lesions = max(share, 0.22), 1
    twisted = tumor and (name == "tumor_002" or rng.random() < 0.08)
    node = NodeSpec((w, h), number % 2, share, lesions, cut_out, "" if special == "cut_out" else special)
    return SlideSpec(name, seed, node, size.levels, size.tile, twisted)


def specials(labels: dict[str, bool]) -> dict[str, str]:
    """Map names to artefacts. Pen and pale stain occur in both classes, so that neither predicts the label."""
    test_positive = [n for n, tumor in labels.items() if n.startswith("test") and tumor]
    chosen = {"normal_001": "pen", "normal_002": "two_pieces", "tumor_002": "pale", test_positive[0]: "cut_out"}
    extra = {"normal_005": "pale", "tumor_005": "pen", "tumor_006": "two_pieces"}
    return {name: look for name, look in (chosen | extra).items() if name in labels}


def twist(polygon: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Swap two neighbouring vertices of a polygon (n, 2) so that it crosses itself, as hand-drawn outlines do."""
    for k in rng.permutation(np.arange(1, len(polygon) - 2)).tolist():
        a, b, c, d = polygon[k - 1 : k + 3]
        # swapping b and c makes the edges a-c and b-d
        if shapely.LineString([a, c]).crosses(shapely.LineString([b, d])):
            out = polygon.copy()
            out[[k, k + 1]] = out[[k + 1, k]]
            return out
    return polygon


def asap_xml(outlines: Outlines, *, test: bool) -> bytes:
    """Encode outlines as an ASAP file: one `Annotation` per polygon, level-0 coordinates."""
    root = ElementTree.Element("ASAP_Annotations")
    annotations = ElementTree.SubElement(root, "Annotations")
    groups = [("Tumor" if test else f"_{min(k, 1)}", p) for k, p in enumerate(outlines.tumor)]
    groups += [("Exclusion" if test else "_2", p) for p in outlines.cut]
    for k, (group, polygon) in enumerate(groups):
        annotation = ElementTree.SubElement(
            annotations, "Annotation", Name=f"Annotation {k}", Type="Polygon", PartOfGroup=group, Color="#F4FA58"
        )
        coordinates = ElementTree.SubElement(annotation, "Coordinates")
        for order, (x, y) in enumerate(polygon):
            ElementTree.SubElement(coordinates, "Coordinate", Order=str(order), X=f"{x:.4f}", Y=f"{y:.4f}")
    names = ElementTree.SubElement(root, "AnnotationGroups")
    for group in sorted({g for g, _ in groups}):
        entry = ElementTree.SubElement(names, "Group", Name=group, PartOfGroup="None", Color="#00ff00")
        ElementTree.SubElement(entry, "Attributes")
    ElementTree.indent(root, "\t")
    return f'<?xml version="1.0"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'.encode()


def make_slide(folder: Path, spec: SlideSpec) -> None:
    """Write one slide and, if it has a lesion, its annotation."""
    rng = stream(spec.seed, "camelyon16", "draw", spec.name)
    rgb, outlines = draw_node(rng, spec.node)
    if outlines.tumor:
        if spec.twisted:
            outlines.tumor[0] = twist(outlines.tumor[0], rng)
        if spec.name in PARTLY_ANNOTATED and len(outlines.tumor) > 1:
            outlines.tumor.pop()
        xml = asap_xml(outlines, test=spec.name.startswith("test"))
        put(folder / "annotations" / f"{spec.name}.xml", xml)
    factors = [2**k for k in range(spec.levels)]
    data = encode_pyramid(rgb, factors, MPP[spec.node.centre], spec.tile, lossless=False)
    put(folder / "images" / f"{spec.name}.tif", data)


def plan(size: Camelyon16Size, seed: int) -> Plan:
    """Plan the slides and the label table of the test part, which has CR LF line ends and no header."""
    labels = slide_labels(size, seed)
    look = specials(labels)
    if size.empty_slide:
        empty = numbered("normal", sum(n.startswith("normal") for n in labels) + 1)[-1]
        labels[empty], look[empty] = False, "empty"
    items, lines = [], []
    for name, tumor in labels.items():
        spec = slide_spec(size, seed, name, tumor, look.get(name, ""))
        items.append(Item(name, make_slide, spec))
        if name.startswith("test"):
            extent = "Macro" if spec.node.lesion_share > 0.15 else "Micro"
            lines.append(f"{name},Tumor,IDC,{extent}\r\n" if tumor else f"{name},Normal,None,None\r\n")
    return Plan(items, {"evaluation/reference.csv": "".join(lines)})
