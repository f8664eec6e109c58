"""A small folder of results: slides and scans cut by the stages, with hand-made predictions of two methods."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from preprocessing.store.bags import read_arrays
from smmil.view.catalogue import find_cohorts
from smmil.view.server import Server
from smmil.view.site import Site
from tests.helpers.cohorts import Cohort, picture, write_scan, write_slide
from tests.helpers.dicoms import write_dicom_slide
from tests.helpers.predictions import metrics_object, write_index, write_run

# an outline from (200, 150) to (330, 290), closed
LESION = [[200, 150], [330, 150], [330, 290], [200, 290], [200, 150]]
LOGITS = {"abmil": {"tumour": -1.0, "normal": -2.0}, "smap_early": {"tumour": 3.0, "normal": -2.5}}


@dataclass
class Results:
    """The folder of results, its raw files, and the scores of every bag by method and seed."""

    folder: Path
    raw: Path
    scores: dict[tuple[str, int], dict[str, np.ndarray]]

    def store(self, dataset: str) -> Path:
        return self.folder / dataset / "instances" / "store"


def predict(results: Path, dataset: str, logits: dict[str, dict[str, float]]) -> dict:
    """Write predictions of two splits for every method; scores are random but fixed."""
    rng, made = np.random.default_rng(0), {}
    for method, bags in logits.items():
        folder = results / dataset / "predictions/resnet18" / method
        runs = []
        for seed in (1, 2):
            entries = []
            for bag, logit in bags.items():
                n = len(read_arrays(results / dataset / "instances/store", bag, ["coords"])["coords"])
                scores = rng.normal(size=n).astype(np.float32)
                made.setdefault((method, seed), {})[bag] = scores
                entries.append((bag, "test", float(logit > 0), logit + seed / 10, scores.tolist(), [0] * n))
            runs.append(write_run(folder, entries, dataset=dataset, method=method, seed=seed))
        write_index(folder, runs)
        path = results / dataset / "metrics/resnet18" / f"{method}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(metrics_object(dataset, method, {"bag_auroc": [1.0, 1.0]})))
    return made


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("view")
    slides = Cohort(folder / "slides")
    outline = {"type": "Polygon", "coordinates": [LESION]}
    feature = {"type": "Feature", "properties": {"classification": {"name": "Tumor"}}, "geometry": outline}
    (slides.raw / "lesion.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    for name in ("tumour", "unused"):
        write_slide(slides.raw / f"{name}.tif", description=name)
    write_dicom_slide(slides.raw / "normal/level.dcm", [picture()[:448], picture()[:448:2, ::2]], 0.5)
    (slides.raw / "broken.tif").write_text("this is no slide\n")
    slides.add("tumour", "tumour.tif", label="1", split="test", annotation="lesion.geojson")
    slides.add("normal", "normal", split="test")
    slides.add("unused", "unused.tif")
    slides.add("broken", "broken.tif")
    assert slides.list_bags() == slides.cut(allowed=1) == 0
    scans = Cohort(folder / "scans")
    write_scan(scans.raw / "bleed", slices=5, PixelSpacing=[1.0, 0.5])
    write_scan(scans.raw / "clear", slices=4)
    scans.add("bleed", "bleed", label="1", split="test")
    scans.add("clear", "clear", split="test")
    assert scans.list_bags() == scans.cut() == 0
    target = folder / "results"
    target.mkdir()
    for name, cohort in (("slides", slides), ("scans", scans)):
        cohort.results.rename(target / name)
    made = predict(target, "slides", LOGITS)
    for key, values in predict(target, "scans", {"abmil": {"bleed": 1.0, "clear": -1.0}}).items():
        made.setdefault(key, {}).update(values)
    return Results(target, slides.raw, made)


@pytest.fixture
def site(results: Results) -> Site:
    return Site("results", find_cohorts(results.folder))


@pytest.fixture
def server(site: Site) -> Iterator[Server]:
    with Server(site) as running:
        thread = Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()
