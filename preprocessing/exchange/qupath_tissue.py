"""QuPath: the tissue of a slide with its holes, and its artefacts, as annotations to edit (GeoJSON, level-0 px).

`preprocessing.tiling.mask_file` reads the edited file back as the slide's mask. The tissue is computed from the
slide with the settings of the stored bag, because the store keeps outlines only as fine as the thumbnail.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import numpy as np

from preprocessing.bags.rows import resolve
from preprocessing.common.files import write_text
from preprocessing.common.options import WsiOptions
from preprocessing.exchange.model import Bag
from preprocessing.instances.slide_bag import slide_tissue
from preprocessing.slides.slide import open_slide
from preprocessing.store.outlines import Outlines
from preprocessing.tiling.artefacts import ARTEFACTS
from preprocessing.tiling.mask_file import TISSUE_CLASS

TISSUE_COLOUR = (0, 114, 178)
_NAMESPACE = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")


def write_tissue(path: Path, bag: Bag, root: Path, instances: Path) -> None:
    """Write the outlines of one slide, whole or not at all.

    Args:
        path: the .geojson file.
        bag: a stored slide.
        root: the dataset's root folder.
        instances: folder of the instances stage.

    Raises:
        ValueError: a scan, an imported slide, PANDA's recipe, or a slide that has changed since it was cut.
    """
    row, options = bag.row, bag.attrs.instance_options
    if not isinstance(options, WsiOptions) or options.recipe == "panda":
        raise ValueError(f"{row.bag_id}: no tissue outlines (a scan, an imported bag or windows of the recipe 'panda')")
    image = resolve(root, row.images[0])
    with open_slide(image, mpp_override=row.mpp) as slide:
        tissue = slide_tissue(slide, options, row, root)
        left, top = slide.bounds[:2]
    holes = sum(len(contour.holes) for contour in tissue.contours)
    stored = bag.attrs.tissue
    if stored is not None and (stored.contours, stored.holes) != (len(tissue.contours), holes):
        raise ValueError(
            f"{image}: {len(tissue.contours)} pieces of tissue with {holes} holes, but bag {row.bag_id} was cut from "
            f"{stored.contours} with {stored.holes}; run the instances stage again"
        )
    areas = [(TISSUE_CLASS, TISSUE_COLOUR, [contour.outer, *contour.holes]) for contour in tissue.contours]
    for kind, artefact in (Outlines.read(instances, row.bag_id).artefacts or {}).items():
        areas += [(kind.capitalize(), ARTEFACTS[kind].colour, [np.array(r) for r in rings]) for rings in artefact.areas]
    lines = []
    for number, (name, colour, rings) in enumerate(areas):
        closed = [(np.concatenate([ring, ring[:1]]) - (left, top)).tolist() for ring in rings]
        feature = _annotation(f"{row.bag_id}/{number}", name, colour, closed)
        lines.append(json.dumps(feature, separators=(",", ":")))
    write_text(path, '{"type":"FeatureCollection","features":[\n' + ",\n".join(lines) + "\n]}\n")


def _annotation(key: str, name: str, colour: tuple[int, int, int], rings: list[list[list[int]]]) -> dict[str, object]:
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(_NAMESPACE, f"{key}/{name}")),
        "geometry": {"type": "Polygon", "coordinates": rings},
        "properties": {
            "objectType": "annotation",
            "classification": {"name": name, "color": list(colour)},
            "isLocked": False,
        },
    }
