"""A small custom dataset of generated slides and scans, run through the real command lines of the stages.

Slides are 640 x 512 px tiled JPEG pyramids with tissue in a box; scans are folders of CT slices.
"""

import csv
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from preprocessing import status
from preprocessing.bags.__main__ import main as list_bags
from preprocessing.bags.manifests import ManifestEntry, ShardManifest
from preprocessing.bags.rows import BagRow
from preprocessing.bags.table import read_bags
from preprocessing.instances import __main__ as instances
from tests.helpers.dicoms import write_slice
from tests.helpers.pyramids import texture, write_tiff

WSI = {"tile_px": 64, "step_px": 64, "tissue": {"seg_level": 1, "mthresh": 3, "close": 0, "a_t": 0, "a_h": 0}}
BOX = (128, 128, 512, 448)


def picture(box: tuple[int, int, int, int] | None = BOX) -> np.ndarray:
    """White, (512, 640, 3), with textured tissue in a box (x0, y0, x1, y1)."""
    image = np.full((512, 640, 3), 255, np.uint8)
    if box is not None:
        x0, y0, x1, y1 = box
        image[y0:y1, x0:x1] = np.minimum(texture(y1 - y0, x1 - x0), [230, 140, 190])
    return image


def write_slide(path: Path, image: np.ndarray | None = None, **options: Any) -> Path:
    """A pyramid of downsamples 1 and 2."""
    image = picture() if image is None else image
    half = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_tiff(path, [image, half], **{"tile": 128, "mpp": 0.5, **options})


def write_scan(folder: Path, slices: int = 4, **tags: Any) -> Path:
    """A folder of CT slices, named against their order."""
    for k in range(slices):
        pixels = np.full((16, 16), 1024 + 10 * k, np.int16)
        write_slice(folder / f"{slices - k}.dcm", pixels, z=5.0 * k, InstanceNumber=k + 1, **tags)
    return folder


class Cohort:
    """Raw files below `raw`, results below `results/mine`; rows of the manifest are dictionaries."""

    def __init__(self, folder: Path) -> None:
        self.raw, self.results = folder / "raw", folder / "results/mine"
        self.raw.mkdir(parents=True)
        self.rows: list[dict[str, str]] = []
        self.options: dict[str, Any] = {"wsi": WSI, "ct": {"slice_px": 32}}
        self.source: dict[str, str] = {"manifest": str(folder / "manifest.csv")}
        self.bags_per_shard = 99

    def add(self, bag_id: str, image: str, **cells: str) -> None:
        """A row of the manifest."""
        self.rows.append({"bag_id": bag_id, "image": image, "label": "0", "split": "train", **cells})

    def list_bags(self) -> int:
        """Lists the bags; exit code."""
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        with open(self.source["manifest"], "w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, names, restval="")
            writer.writeheader()
            writer.writerows(self.rows)
        argv = ["--dataset", "mine", "--kind", "custom", "--root", str(self.raw), "--options", json.dumps(self.source)]
        return list_bags([*argv, "--out", str(self.results / "bags.csv")])

    def bags(self) -> dict[str, BagRow]:
        """The list, by bag id."""
        return {row.bag_id: row for row in read_bags(self.results / "bags.csv")}

    def argv(self, *, shard: int = 0, allowed: int = 0) -> list[str]:
        """Arguments of the instances stage."""
        return [
            *("--dataset", "mine", "--bags", str(self.results / "bags.csv"), "--root", str(self.raw)),
            *("--shard", str(shard), "--bags-per-shard", str(self.bags_per_shard)),
            *("--options", json.dumps(self.options), "--out", str(self.results / "instances")),
            *("--manifest", str(self.manifest(shard)), "--allowed-failures", str(allowed)),
        ]

    def cut(self, *, shard: int = 0, allowed: int = 0) -> int:
        """Runs the instances stage; exit code."""
        return instances.main(self.argv(shard=shard, allowed=allowed))

    def manifest(self, shard: int = 0) -> Path:
        """The manifest of a shard of instances."""
        return self.results / f"instances/shards/{shard:04d}.json"

    def entries(self, shard: int = 0) -> dict[str, ManifestEntry]:
        """Its bags, by id."""
        return ShardManifest.read(self.manifest(shard)).by_id

    def status_lines(self, shard: int = 0) -> list[dict[str, Any]]:
        """Status lines of a shard of instances, oldest first."""
        path = self.results / f"status/instances/{shard:04d}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    def status(self) -> dict[str, Any]:
        """Content of status.json, written now."""
        assert status.main([str(self.results)]) == 0
        return dict(json.loads((self.results / "status/status.json").read_text()))
