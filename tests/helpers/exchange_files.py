"""Files as CLAM, TRIDENT and torchmil write them, a small bag store to export, and imports as a command line."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from preprocessing.bags.rows import BagRow
from preprocessing.bags.table import write_bags
from preprocessing.exchange.__main__ import main
from preprocessing.instances.graph import chain_neighbors, distance_neighbors
from preprocessing.store.bags import FeatureAttrs, InstanceAttrs, coords_hash, read_arrays, write_bag

FEATURES = 6
FACTS = {
    **{"encoder": "resnet18@random-0", "weights_sha256": "random-0", "random_weights": True},
    **{"resize_policy": "native", "precision": "float32"},
}


def save_like_clam(path: Path, assets: dict[str, np.ndarray], attrs: dict[str, dict[str, Any]], rows: int = 1) -> None:
    """Appendable datasets with attributes, chunk by chunk, as CLAM's and TRIDENT's own writers make them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, value in assets.items():
            shape = value.shape
            made = file.create_dataset(
                name, shape=shape, maxshape=(None, *shape[1:]), chunks=(rows, *shape[1:]), dtype=value.dtype
            )
            made[:] = value
            for key, one in attrs.get(name, {}).items():
                made.attrs[key] = one


def clam_slide(
    folder: Path,
    name: str,
    coords: np.ndarray,
    features: np.ndarray,
    *,
    patch: int = 256,
    level: int = 1,
    ds: float = 2,
) -> None:
    """One slide in CLAM's two folders."""
    attrs = {
        **{"patch_size": patch, "patch_level": 1, "downsample": (ds, ds), "downsampled_level_dim": (5000, 4000)},
        **{"level_dim": (5000, 4000), "name": name, "save_path": "results/patches"},
    }
    save_like_clam(folder / "patches" / f"{name}.h5", {"coords": coords.astype(np.int64)}, {"coords": attrs})
    assets = {"features": features.astype(np.float32), "coords": coords.astype(np.int32)}
    save_like_clam(folder / "h5_files" / f"{name}.h5", assets, {}, rows=32)


def trident_slide(folder: Path, name: str, coords: np.ndarray, features: np.ndarray, **changes: Any) -> None:
    """One slide in TRIDENT's `20x_256px_0px_overlap` of a 40x slide."""
    attrs: dict[str, Any] = {
        **{"patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40, "target_magnification": 20},
        **{"overlap": 0, "name": name, "savetodir": "job", "level0_width": 9000, "level0_height": 8000, **changes},
    }
    attrs = {key: value for key, value in attrs.items() if value is not None}
    base = folder / "20x_256px_0px_overlap"
    coords = coords.astype(np.int64)
    save_like_clam(base / "patches" / f"{name}_patches.h5", {"coords": coords}, {"coords": attrs})
    assets = {"features": features.astype(np.float32), "coords": coords}
    told = {"coords": attrs, "features": {"name": name, "savetodir": "job"}}
    save_like_clam(base / "features_uni_v1" / f"{name}.h5", assets, told)


def torchmil_slide(
    root: Path, name: str, coords: np.ndarray, features: np.ndarray, label: int, patch_labels: np.ndarray, ps: int = 512
) -> None:
    """One slide in torchmil's tree."""
    parts = {
        "features/features_UNI": features.astype(np.float32),
        "labels": np.array([label]),
        "patch_labels": patch_labels.astype(np.int64),
        "coords": coords.astype(np.int64),
    }
    for part, array in parts.items():
        path = root / f"patches_{ps}" / part / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, array)


def table(path: Path, header: str, *lines: str) -> Path:
    """A CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def lattice(n: int, step: int = 512, *, x0: int = 0, y0: int = 0, width: int = 5) -> np.ndarray:
    """N positions (x, y) on one lattice, row by row."""
    return np.stack([x0 + np.arange(n) % width * step, y0 + np.arange(n) // width * step], 1)


def learnable(n: int, label: int, seed: int) -> np.ndarray:
    """Features (n, 6): those of the first instance of a positive bag are shifted."""
    features = np.random.default_rng(seed).normal(size=(n, FEATURES))
    features[0] += 4.0 * label
    return features.astype(np.float32)


class Store:
    """A stored dataset of slides on CLAM's overlapping lattices, on one shifted lattice, and (on demand) scans."""

    def __init__(self, folder: Path, *, scans: bool = False) -> None:
        self.folder, self.rows = folder, []
        self.features_folder = folder / "features" / "resnet18"
        for i in range(6):
            label = None if i == 5 else i % 2
            split = ("train", "train", "train", "val", "test", "")[i]
            row = BagRow(f"bag{i}", "ct" if scans else "wsi", (f"bag{i}.tif",), label, split, f"g000{'001234'[i]}")
            self.rows.append(row)
            self.write(row, i, scans)
        write_bags(folder / "bags.csv", self.rows)
        entries = [{"bag_id": r.bag_id, "state": "ok", "n": 1, "hash": "", "reason": ""} for r in self.rows]
        for stage in ("instances", "features/resnet18"):
            path = folder / stage / "shards" / "0000.json"
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps({"bags": entries}))

    def write(self, row: BagRow, i: int, scans: bool) -> None:
        rng = np.random.default_rng(i)
        if scans:
            n = 4 + i
            grid = np.stack([np.arange(n), np.zeros(n)], 1).astype(np.int32)
            coords = np.cumsum(rng.uniform(1, 6, n)).astype(np.float32)[:, None]
            neighbors, attrs = chain_neighbors(n), {"modality": "ct", "slice_px": 64}
        else:
            coords, grid, attrs = self.slide(i)
            neighbors = distance_neighbors(coords, np.sqrt(2) * 256)
        n = len(coords)
        # a share just above a float16 step and the unknown must survive; positives of a scan are 0 or 1
        coverage = rng.uniform(0, 1, n).astype(np.float32)
        coverage = np.round(coverage) if scans else coverage
        coverage[-1] = np.nan
        arrays = {"coords": coords, "grid": grid, "neighbors": neighbors, "coverage": coverage.astype(np.float32)}
        write_bag(self.folder / "instances/store", row.bag_id, arrays, InstanceAttrs(**attrs))
        features = learnable(n, row.label or 0, i).astype(np.float16)
        facts = {**FACTS, "coords_hash": coords_hash(coords, grid)}
        write_bag(self.features_folder / "store", row.bag_id, {"features": features}, FeatureAttrs(**facts))

    @staticmethod
    def slide(i: int) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        """Two overlapping contour lattices (even i, with one position twice), or one lattice with padding (odd i)."""
        shared = {"modality": "wsi", "tile_px": 256, "read_px": 512, "read_level": 0, "l0_footprint_px": 512}
        shared |= {"l0_step_px": 256, "mpp": 0.25, "mpp_source": "openslide.mpp", "dimensions": [6000, 5000]}
        if i % 2:
            coords = lattice(14 + i, 256, x0=-100, y0=-30)
            grid = ((coords + [100, 30]) // 256)[:, ::-1]
            return coords.astype(np.int32), np.ascontiguousarray(grid).astype(np.int32), shared
        first, second = lattice(12, 256, x0=40, y0=8), lattice(9, 256, x0=40 + 256, y0=8 + 256, width=3)
        both = np.concatenate([np.c_[first, np.zeros(12)], np.c_[second + (i > 0) * np.array([77, 13]), np.ones(9)]])
        both = both[np.lexsort((both[:, 2], both[:, 0], both[:, 1]))].astype(np.int64)
        coords = both[:, :2].astype(np.int32)
        grid = np.ascontiguousarray((coords // 256)[:, ::-1]).astype(np.int32)
        return coords, grid, {**shared, "lattice": "contour", "contour_of_tile": both[:, 2].tolist()}

    def arguments(self) -> list[str]:
        """What the export's command line needs to find it."""
        names = {"--bags": "bags.csv", "--instances": "instances", "--features": "features/resnet18"}
        return [text for name, part in names.items() for text in (name, str(self.folder / part))]


def run_import(kind: str, source: Path, out: Path, encoder: str, *more: str) -> int:
    argv = ["import", "--format", kind, "--source", str(source), "--dataset", "theirs", "--encoder", encoder]
    return main([*argv, "--out", str(out), *more])


def reason(out: Path, bag: str) -> str:
    """Why a bag failed, from the status that outlives the manifest."""
    lines = (out / "status/instances/0000.jsonl").read_text().splitlines()
    return next(entry["reason"] for entry in map(json.loads, reversed(lines)) if entry["bag_id"] == bag)


def both(folder: Path, encoder: str, bag: str) -> dict[str, np.ndarray]:
    """All arrays of a bag."""
    return {
        **read_arrays(folder / "instances/store", bag, verify=True),
        **read_arrays(folder / "features" / encoder / "store", bag, verify=True),
    }


def small_clam(folder: Path) -> Path:
    for i in range(10):
        n = 4 + i % 3
        clam_slide(folder, f"s{i}", lattice(n), learnable(n, i % 2, i))
    table(folder / "dataset.csv", "case_id,slide_id,label", *(f"c{i},s{i},{i % 2}" for i in range(10)))
    lines = [f"{i},s{i},,{f's{i + 8}' if i < 2 else ''}" for i in range(8)]
    table(folder / "splits/splits_0.csv", ",train,val,test", *lines)
    return folder
