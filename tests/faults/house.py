"""The raw cohorts and the settings of the campaign: small, and with a job of every kind of rule."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.helpers.workflows import ROOT


def settings(datasets: Sequence[str], size: str) -> dict[str, Any]:
    """The demo's overrides with two methods and few tables and figures, and own slides that are only scored."""
    import yaml

    config: dict[str, Any] = yaml.safe_load((ROOT / "workflow/demo.yaml").read_text().replace("demo/", ""))
    config |= {"use": [*datasets, "mine"], "methods": ["abmil", "smap_early"]}
    config["training"] |= {"epochs": 8 if size == "tiny" else 25, "device": "cpu", "checkpoint_seconds": 0}
    config["features"]["device"] = "cpu"
    config["report"] = {"bootstrap": 50, "map_bags": 1}
    config["report"] |= {"tables": ["table1", "resources", "comparisons"], "figures": ["fig4", "fig5", "cd", "curves"]}
    config["datasets"]["mine"] = {
        **{"kind": "custom", "root": "raw", "source": {"manifest": "raw/own.csv"}, "encoders": ["resnet18"]},
        **{"instances": config["datasets"]["camelyon16"]["instances"], "train": False, "allowed_failures": 1},
        **{"score_with": {"dataset": "camelyon16", "encoder": "resnet18", "method": "abmil"}},
    }
    return config


def make_raw(folder: Path, datasets: Sequence[str], size: str) -> None:
    """Raw cohorts below `folder/raw`, and a manifest of two good slides and a text file."""
    command = [sys.executable, "-m", "preprocessing.synthetic", "--out", str(folder / "raw"), "--size", size]
    subprocess.run([*command, "--datasets", ",".join(datasets)], check=True, cwd=ROOT, capture_output=True)
    slides = sorted((folder / "raw/camelyon16/images").glob("test_*.tif"))[:2]
    (folder / "raw/notes.tif").write_text("this is no slide\n")
    rows = [f"own_{i},{s.relative_to(folder / 'raw')},,," for i, s in enumerate(slides)]
    text = "\n".join(["bag_id,image,label,split,mpp", *rows, "broken,notes.tif,,,"]) + "\n"
    (folder / "raw/own.csv").write_text(text)
