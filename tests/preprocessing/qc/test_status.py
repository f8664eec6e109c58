"""The table of states: every bag in every stage counted once, rates by hand, features and their bad tiles included."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from preprocessing import status
from preprocessing.bags.manifests import ShardManifest
from preprocessing.bags.rows import BagRow
from preprocessing.bags.table import write_bags
from preprocessing.common.files import write_json
from preprocessing.features import __main__ as features
from preprocessing.features.encoders import ENCODERS
from preprocessing.store.bags import read_feature_attrs
from tests.helpers.cohorts import Cohort, write_scan, write_slide
from tests.helpers.pyramids import corrupt

# --- counting ---------------------------------------------------------------------------------------------------


def put(folder: Path, stage: str, shard: str, bags: list[dict], lines: list[dict]) -> Path:
    """A shard as its job left it: manifest (none if it failed) and status lines, whose file is returned."""
    if bags:
        write_json(folder / stage / f"shards/{shard}.json", {"dataset": "d", "stage": stage, "bags": bags})
    path = folder / "status" / stage / f"{shard}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def line(bag_id: str, state: str, seconds: float, n: int = 0, *, redone: bool = True, **more: object) -> dict:
    return {"bag_id": bag_id, "state": state, "seconds": seconds, "n": n, "reason": "", "redone": redone, **more}


def entry(bag_id: str, state: str, n: int = 0, reason: str = "", **more: object) -> dict:
    return {"bag_id": bag_id, "state": state, "n": n, "hash": "", "reason": reason, **more}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [BagRow(name, "wsi", (f"{name}.tif",), int(name < "c"), "train") for name in "abcdefg"]
    write_bags(tmp_path / "bags.csv", rows)
    report = {"expected": {"bags": 9, "paper_bags": 3, "paper_instances": 20, "train_positive": 2}}
    write_json(tmp_path / "bags.report.json", {**report, "missing": [{"name": "z.tif", "reason": "not on disk"}]})
    done = [
        entry("a", "ok", 10, bad_tiles=2, unused_outlines=3),
        entry("b", "empty", 0, "no tissue", warnings=["this slide has no colour", "single|shade"]),
        entry("c", "skipped", 0, "pen|ink"),
    ]
    first = [line("a", "failed", 9.0), line("a", "ok", 4.0, 10), line("b", "empty", 0.5)]
    put(tmp_path, "instances", "0000", done, [*first, line("a", "ok", 0.01, 10, redone=False)])
    failed = [line("d", "failed", 1.0, reason="broken"), line("e", "ok", 2.0, 6)]
    put(tmp_path, "instances", "0001", [], failed).with_suffix(".working").write_text("f\n")
    put(tmp_path, "features/timm/x", "0000", done, [line("a", "ok", 0.0, 10, redone=False)])
    return tmp_path


def run(folder: Path, *more: str) -> dict:
    """The content of status.json, made now."""
    assert status.main([str(folder), "--dataset", "d", *more]) == 0
    return dict(json.loads((folder / "status/status.json").read_text()))


def test_every_bag_has_one_state_per_stage(folder: Path) -> None:
    found = run(folder)
    instances, features_ = found["stages"]
    assert [instances[state] for state in status.STATES] == [2, 1, 1, 1, 1, 1] and instances["bags"] == 7
    assert [features_[state] for state in status.STATES] == [1, 1, 1, 0, 0, 4]
    assert features_["stage"] == "features/timm/x"
    assert found["total"]["bags"] == 14 and found["total"]["ok"] == 3
    states = {(one["bag_id"], one["state"]): one["reason"] for one in found["problems"] if one["stage"] == "instances"}
    assert states["d", "failed"] == "broken" and states["c", "skipped"] == "pen|ink"
    assert "killed" in states["f", "interrupted"] and states["g", "pending"] == status.REASONS["pending"]


def test_times_are_those_of_the_work_and_rates_follow(folder: Path) -> None:
    found = run(folder)
    instances, features_ = found["stages"]
    # a 4.0 s (its last work, not the look at the finished bag), b 0.5, d 1.0, e 2.0
    assert instances["seconds"] == 7.5 and instances["tiles_per_second"] == round(16 / 7.5, 2)
    assert instances["instances"] == 16 and instances["bad_tiles"] == 2 and instances["unused_outlines"] == 3
    assert features_["seconds"] is None and features_["tiles_per_second"] is None
    assert found["total"]["instances"] == 16 and found["total"]["seconds"] == 7.5
    table = csv.DictReader((folder / "status/status.csv").read_text().splitlines())
    rows = {(row["stage"], row["bag_id"]): row for row in table}
    assert len(rows) == 14 and rows["instances", "a"]["tiles_per_second"] == "2.5"
    assert rows["features/timm/x", "a"]["seconds"] == ""
    # warnings stand in every form of the status
    texts = ["this slide has no colour", "single|shade"]
    assert rows["instances", "b"]["warnings"] == "; ".join(texts) and rows["instances", "a"]["warnings"] == ""
    warned = [{"stage": "instances", "bag_id": "b", "warning": text} for text in texts]
    assert [entry for entry in found["warnings"] if entry["stage"] == "instances"] == warned


def test_counts_stand_against_the_published_ones(folder: Path) -> None:
    found = run(folder)
    expected = [["bags", 9, 7], ["paper_bags", 3, 2], ["paper_instances", 20, 16], ["train_positive", 2, 2]]
    assert sorted(found["expected"]) == expected
    text = (folder / "status/status.md").read_text()
    assert "| paper_bags | 3 | 2 |" in text and "- z.tif: not on disk" in text and "pen\\|ink" in text
    assert "all stages" in text and "| instances | b | single\\|shade |" in text


def test_only_times_differ_between_equal_runs(folder: Path) -> None:
    path = folder / "status/instances/0000.jsonl"
    runs = [run(folder), run(folder)]
    path.write_text(path.read_text().replace("4.0", "8.0"))
    runs.append(run(folder))
    assert runs[0] == runs[1] != runs[2]
    for status_ in runs:
        for stage in (*status_["stages"], status_["total"]):
            del stage["seconds"], stage["tiles_per_second"]
    assert runs[0] == runs[2]


def test_named_encoders_are_listed_even_without_a_trace(folder: Path) -> None:
    found = run(folder, "--encoders", "resnet18,timm/x,resnet18")
    assert [stage["stage"] for stage in found["stages"]] == ["instances", "features/resnet18", "features/timm/x"]
    assert found["stages"][1]["pending"] == 7


def test_before_anything_has_run_all_bags_are_pending(tmp_path: Path, capsys) -> None:
    assert status.main([str(tmp_path)]) == 2 and "bags.csv" in capsys.readouterr().err
    write_bags(tmp_path / "bags.csv", [BagRow("a", "wsi", ("a.tif",), 0, "train")])
    assert run(tmp_path)["stages"] == []
    assert run(tmp_path, "--encoders", "")["stages"][0]["pending"] == 1


# --- with real stages -------------------------------------------------------------------------------------------


def tiny() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def extract(cohort: Cohort, allowed: int = 0) -> int:
    """The features stage with a small encoder; exit code."""
    out = cohort.results / "features"
    argv = cohort.argv()
    argv[argv.index("--out") + 1] = str(out)
    argv[argv.index("--manifest") + 1] = str(out / "tiny/shards/0000.json")
    argv[argv.index("--allowed-failures") + 1] = str(allowed)
    more = ["--instances", str(cohort.results / "instances"), "--instances-manifest", str(cohort.manifest())]
    more += ["--encoder", "tiny", "--weights-mode", "random", "--resize-policy", "resize32", "--device", "cpu"]
    return features.main([*argv, *more])


@pytest.fixture(name="encoder")
def tiny_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = replace(ENCODERS["resnet18"], name="tiny", dim=4, build=tiny)
    monkeypatch.setitem(ENCODERS, "tiny", replace(entry, cut=lambda model: model))


def test_unreadable_tiles_are_white_counted_and_limited_in_the_features(tmp_path: Path, encoder: None) -> None:
    cohort = Cohort(tmp_path)
    for name in ("good", "x"):
        write_slide(cohort.raw / f"{name}.tif")
        cohort.add(name, f"{name}.tif")
    corrupt(cohort.raw / "x.tif", 0, 6)  # level 0, not seen by the tissue mask of level 1
    cohort.options["wsi"] = {**cohort.options["wsi"], "max_bad_tiles": 9}
    assert cohort.list_bags() == 0 and cohort.cut() == 0 and extract(cohort) == 0
    manifest = ShardManifest.read(cohort.results / "features/tiny/shards/0000.json").by_id
    bad = read_feature_attrs(cohort.results / "features/tiny/store", "x").unreadable_tiles
    # four tiles of 64 px to a file tile of 128 px, if lattice and file tiles agree; up to nine if not
    assert 4 <= len(bad) <= 9 and manifest["x"].bad_tiles == len(bad) and not manifest["good"].bad_tiles
    found = cohort.status()
    assert found["stages"][1]["bad_tiles"] == len(bad) and found["total"]["ok"] == 4
    cohort.options["wsi"] = {**cohort.options["wsi"], "max_bad_tiles": 1}
    assert cohort.cut() == 0 and extract(cohort) == 1 and extract(cohort, allowed=1) == 0
    (problem,) = cohort.status()["problems"]
    assert problem["stage"] == "features/tiny" and "1 allowed by max_bad_tiles" in problem["reason"]


def test_states_pass_from_stage_to_stage(tmp_path: Path, encoder: None) -> None:
    cohort = Cohort(tmp_path)
    write_scan(cohort.raw / "scan")
    write_scan(cohort.raw / "mr", Modality="MR")
    cohort.add("scan", "scan")
    cohort.add("left", "gone.tif", skip="no consent")
    cohort.add("mr", "mr")
    assert cohort.list_bags() == 0 and cohort.cut(allowed=1) == 0 and extract(cohort) == 0
    table = cohort.status()
    for stage in table["stages"]:
        assert [stage[s] for s in ("ok", "skipped", "failed")] == [1, 1, 1], stage
    reasons = {(one["stage"], one["bag_id"]): one["reason"] for one in table["problems"]}
    assert reasons["features/tiny", "left"] == "no consent"
    assert reasons["features/tiny", "mr"].startswith("no instances: ") and "Modality" in reasons["instances", "mr"]


def test_the_published_counts_are_those_of_the_papers() -> None:
    from preprocessing.datasets import DATASETS

    assert DATASETS["camelyon16"].expected["bags"] == 399
    panda, rsna = DATASETS["panda"].expected, DATASETS["rsna"].expected
    assert (panda["paper_bags"], panda["paper_instances"]) == (10_503, 1_107_931)
    assert (rsna["bags"], rsna["slices"]) == (1_150, 39_750)
