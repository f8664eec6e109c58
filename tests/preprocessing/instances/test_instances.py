"""The instances stage: what redoes a bag and what does not, failures, empty bags, pictures."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from preprocessing import check
from preprocessing.bags.manifests import ShardManifest
from preprocessing.bags.rows import BagRow
from preprocessing.bags.table import write_bags
from preprocessing.common import stage_versions
from preprocessing.common.options import parse_instance_options
from preprocessing.instances import __main__ as instances
from preprocessing.instances import stage
from preprocessing.instances.graph import grid_neighbors
from preprocessing.store.arrays import Instances
from preprocessing.store.attrs import AnnotationCounts
from preprocessing.store.bags import InstanceAttrs, read_instance_attrs, validate_bag
from preprocessing.store.outlines import Outlines
from tests.faults.damage import flip

OPTIONS = '{"wsi": {"tile_px": 64, "step_px": 64}}'


class Cohort:
    """Files that stand for slides; computing a bag is counted and makes one tile per byte of the first line."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.raw, self.out = folder / "raw", folder / "results/instances"
        self.raw.mkdir()
        self.computed: list[str] = []
        self.rows: dict[str, BagRow] = {}
        for name, text in {"a": "12345", "b": "1234567", "empty": "", "bad": "bad"}.items():
            (self.raw / f"{name}.tif").write_text(text + "\n" + "pixels" * 50_000)
            (self.raw / f"{name}.xml").write_text("<annotation/>")
            self.rows[name] = BagRow(name, "wsi", (f"{name}.tif",), 1, "train", annotation=f"{name}.xml")
        monkeypatch.setattr(stage, "compute", self.compute)

    def compute(self, row: BagRow, options: object, root: Path) -> Instances:
        self.computed.append(row.bag_id)
        if row.bag_id == "bad":
            raise ValueError("bad.tif: no mpp found, expected one")
        n = len((root / row.images[0]).read_text().split("\n")[0])
        grid = np.stack([np.arange(n), np.zeros(n)], axis=1).astype(np.int32)
        reason = "" if n else "no tissue found"
        attrs = InstanceAttrs(
            tile_px=64, annotation_counts=AnnotationCounts(lesion=len(row.annotation)), empty_reason=reason
        )
        picture = np.full((20, 30, 3), 200, np.uint8)
        share = np.full(n, row.label or 0, np.float32)
        return Instances(grid[:, ::-1] * 64, grid, grid_neighbors(grid), share, attrs, picture)

    def run(self, *names: str, options: str = OPTIONS, allowed: int = 0, compare: str = "time") -> int:
        """Exit code; `computed` then lists the bags that were redone."""
        self.computed.clear()
        bags = self.raw.parent / "bags.csv"
        write_bags(bags, [self.rows[name] for name in names])
        return instances.main(
            [
                *("--dataset", "demo", "--bags", str(bags), "--root", str(self.raw), "--shard", "0000"),
                *("--bags-per-shard", "9", "--options", options, "--out", str(self.out)),
                *("--manifest", str(self.manifest), "--allowed-failures", str(allowed)),
                *("--compare-files", compare),
            ]
        )

    @property
    def manifest(self) -> Path:
        return self.out / "shards/0000.json"


@pytest.fixture
def cohort(tmp_path, monkeypatch) -> Cohort:
    return Cohort(tmp_path, monkeypatch)


def test_a_shard_is_stored_with_pictures_manifest_and_status(cohort):
    assert cohort.run("a", "b", "empty") == 0
    entries = ShardManifest.read(cohort.manifest).by_id
    assert {name: (e.state, e.n) for name, e in entries.items()} == {
        "a": ("ok", 5),
        "b": ("ok", 7),
        "empty": ("empty", 0),
    }
    assert entries["empty"].reason == "no tissue found"
    attrs = validate_bag(cohort.out / "store", "a", schema="instances")
    assert (attrs.dataset, attrs.label, attrs.stage_version) == ("demo", 1, stage_versions.INSTANCES)
    assert attrs.store.content == entries["a"].hash
    assert (cohort.out / "thumbnails/a.jpg").read_bytes()[:2] == b"\xff\xd8"
    assert Outlines.read(cohort.out, "a") == Outlines(tissue=[], holes=[], lesion=[])
    status = (cohort.out.parent / "status/instances/0000.jsonl").read_text().splitlines()
    assert [json.loads(line)["redone"] for line in status] == [True, True, True]


def test_a_second_run_redoes_nothing_and_writes_the_same_manifest(cohort):
    cohort.run("a", "b", "empty")
    first = cohort.manifest.read_bytes()
    cohort.manifest.unlink()
    assert cohort.run("a", "b", "empty") == 0
    assert cohort.computed == [] and cohort.manifest.read_bytes() == first


def touch(cohort: Cohort) -> None:
    os.utime(cohort.raw / "a.tif", (1, 1))


def change_image(cohort: Cohort) -> None:
    (cohort.raw / "a.tif").write_text("123\n" + "pixels" * 50_000)


def change_middle(cohort: Cohort) -> None:
    """Replace bytes far from head and tail and keep the length."""
    path = cohort.raw / "a.tif"
    content = bytearray(path.read_bytes())
    content[150_000] ^= 1
    path.write_bytes(content)


def change_tail(cohort: Cohort) -> None:
    path = cohort.raw / "a.tif"
    path.write_bytes(path.read_bytes()[:-1] + b"X")


def change_annotation(cohort: Cohort) -> None:
    (cohort.raw / "a.xml").write_text("<annotation>more</annotation>")


def change_row(**values: object):
    def change(cohort: Cohort) -> None:
        cohort.rows["a"] = replace(cohort.rows["a"], **values)

    return change


def lose_outlines(cohort: Cohort) -> None:
    (cohort.out / "thumbnails/a.json").unlink()


def cut_chunk(cohort: Cohort) -> None:
    os.truncate(cohort.out / "store/a/coverage/c.0", 3)


@pytest.mark.parametrize(
    ("change", "redone", "same_pixels"),
    [
        (touch, True, True),
        (change_middle, True, True),
        (change_row(split="test", group="g1", note="seen"), False, True),
        (change_row(label=0), True, True),
        (change_annotation, True, True),
        (change_row(annotation_complete=False), True, True),
        (change_row(mpp=0.25), True, False),
        (change_image, True, False),
        (change_tail, True, False),
        (lose_outlines, True, True),
        (cut_chunk, True, True),
    ],
)
def test_what_redoes_a_bag_and_what_its_features_depend_on(cohort, change, redone, same_pixels):
    cohort.run("a", "b")
    before = read_instance_attrs(cohort.out / "store", "a").pixels_key
    change(cohort)
    assert cohort.run("a", "b") == 0
    assert cohort.computed == (["a"] if redone else [])
    assert (read_instance_attrs(cohort.out / "store", "a").pixels_key == before) is same_pixels


def test_by_content_a_copy_is_the_same_image_and_any_edit_another(cohort):
    cohort.run("a", "b", compare="content")
    before = read_instance_attrs(cohort.out / "store", "a").pixels_key
    touch(cohort)
    assert cohort.run("a", "b", compare="content") == 0 and cohort.computed == []
    change_middle(cohort)
    touch(cohort)
    assert cohort.run("a", "b", compare="content") == 0 and cohort.computed == ["a"]
    assert read_instance_attrs(cohort.out / "store", "a").pixels_key != before


def test_settings_and_stage_version_redo_every_bag(cohort, monkeypatch):
    cohort.run("a", "b")
    cohort.run("a", "b", options='{"wsi": {"tile_px": 32, "step_px": 64}}')
    assert cohort.computed == ["a", "b"]
    cohort.run("a", "b", options='{"wsi": {"tile_px": 32, "step_px": 64}}')
    assert cohort.computed == []
    monkeypatch.setattr(stage_versions, "INSTANCES", 99)
    cohort.run("a", "b", options='{"wsi": {"tile_px": 32, "step_px": 64}}')
    assert cohort.computed == ["a", "b"]


def test_a_bag_records_its_resolved_settings(cohort):
    given = '{"wsi": {"preset": "20x", "target_mpp": 0.7, "tile_px": 64, "tissue": {"sthresh": 9}}}'
    assert cohort.run("a", options=given) == 0
    recorded = read_instance_attrs(cohort.out / "store", "a").instance_options
    assert recorded == parse_instance_options(given).wsi
    assert recorded.target_mpp == 0.7 and recorded.lattice == "global"


def test_a_bad_or_missing_slide_is_recorded_and_tried_again_while_others_stay(cohort):
    assert cohort.run("a", "b", "bad") == 1
    assert not cohort.manifest.exists()
    assert cohort.run("a", "b", "bad") == 1 and cohort.computed == ["bad"]
    assert cohort.run("a", "b", "bad", allowed=1) == 0
    assert ShardManifest.read(cohort.manifest).by_id["bad"].reason == "bad.tif: no mpp found, expected one"
    (cohort.raw / "b.tif").unlink()
    assert cohort.run("a", "b", allowed=1) == 0
    assert "b.tif: no such file" in ShardManifest.read(cohort.manifest).by_id["b"].reason


def test_wrong_settings_stop_before_the_first_bag(cohort, capsys):
    assert cohort.run("a", options='{"wsi": {"tile_pixels": 3}}') == 2
    assert "tile_pixels" in capsys.readouterr().err and cohort.computed == []


def test_a_damaged_bag_is_found_removed_and_redone(cohort, capsys):
    cohort.run("a", "b")
    assert check.main([str(cohort.out)]) == 0
    chunk = cohort.out / "store/b/coords/c.0.0"
    flip(chunk, 0)
    assert "coords/c.0.0" in check.check_store(cohort.out)["b"]
    assert check.main([str(cohort.out), "--remove"]) == 1
    assert not cohort.manifest.exists() and (cohort.out / "store/a").exists()
    assert cohort.run("a", "b") == 0 and cohort.computed == ["b"]
    assert check.main([str(cohort.out)]) == 0
    assert check.main([str(cohort.out.parent)]) == 2
