"""The list of bags: round trip, shards, paths that may not leave the root, and validation that reports everything."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.bags.__main__ import main
from preprocessing.bags.rows import BagRow
from preprocessing.bags.table import read_bags, resolve, shard_rows, validate_bags, write_bags

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc"), exclude_characters="|"), max_size=12)
NAME = st.text("abcXYZ019._-/ é,\"'", min_size=1, max_size=12)
ROWS = st.lists(
    st.builds(
        BagRow,
        bag_id=st.text("abcDEF0123._-", min_size=1, max_size=8),
        modality=st.sampled_from(["wsi", "ct"]),
        images=st.lists(NAME, min_size=1, max_size=3).map(tuple),
        label=st.sampled_from([0, 1, None]),
        split=st.sampled_from(["train", "val", "test", ""]),
        group=st.sampled_from(["", "g0001"]),
        annotation=st.one_of(st.just(""), NAME, st.just("slices:01x")),
        annotation_complete=st.booleans(),
        provider=st.sampled_from(["", "radboud"]),
        mpp=st.one_of(st.none(), st.floats(0.05, 10)),
        note=TEXT,
    ),
    max_size=6,
    unique_by=lambda row: row.bag_id,
)


def slide(root: Path, bag_id: str, **kwargs: object) -> BagRow:
    name = f"slides/{bag_id}.tif"
    (root / "slides").mkdir(exist_ok=True)
    (root / name).touch()
    return replace(BagRow(bag_id, "wsi", (name,), 0, "train"), **kwargs)  # type: ignore[arg-type]


@given(ROWS)
@settings(max_examples=20, deadline=None)
def test_round_trip_and_equal_bytes(tmp_path_factory: pytest.TempPathFactory, rows: list[BagRow]) -> None:
    folder = tmp_path_factory.mktemp("bags")
    write_bags(folder / "a.csv", rows)
    write_bags(folder / "b.csv", rows[::-1])
    assert read_bags(folder / "a.csv") == sorted(rows, key=lambda r: r.bag_id)
    assert (folder / "a.csv").read_bytes() == (folder / "b.csv").read_bytes()
    assert sorted(p.name for p in folder.iterdir()) == ["a.csv", "b.csv"]


@given(st.integers(0, 60), st.integers(1, 30))
def test_shards_partition_the_list(n: int, size: int) -> None:
    rows = [BagRow(f"b{i}", "wsi", ("x",)) for i in range(n)]
    shards = [shard_rows(rows, k, size) for k in range(-(-n // size) + 2)]
    assert [row for shard in shards for row in shard] == rows
    assert all(len(shard) <= size for shard in shards) and shards[-1] == []
    for shard, size in ((-1, 5), (0, 0)):
        with pytest.raises(ValueError, match="expected shard >= 0 and size >= 1"):
            shard_rows(rows, shard, size)


def test_resolve_stays_inside(tmp_path: Path) -> None:
    root = tmp_path / "real"
    (root / "in").mkdir(parents=True)
    (root / "in" / "a.tif").touch()
    (tmp_path / "secret.tif").touch()
    (root / "leak.tif").symlink_to(tmp_path / "secret.tif")
    linked = tmp_path / "linked"
    linked.symlink_to(root)
    for base in (root, linked):
        assert resolve(base, "in/a.tif") == root / "in" / "a.tif"
        assert resolve(base, "in/../in/a.tif") == root / "in" / "a.tif"
        assert resolve(base, str(base / "in" / "a.tif")) == root / "in" / "a.tif"
        for bad in ("../secret.tif", "in/../../secret.tif", str(tmp_path / "secret.tif"), "leak.tif"):
            with pytest.raises(ValueError, match="leaves the dataset's root"):
                resolve(base, bad)


def test_validation_finds_what_no_manifest_lets_through_and_reports_it_at_once(tmp_path: Path) -> None:
    """What a manifest may contain is in `test_manifest_faults`."""
    good = slide(tmp_path, "good", group="p1")
    faults = {
        "label: found 2": replace(good, bag_id="lab", label=2),
        "'|' and control characters": replace(good, bag_id="pipe", images=("a|b.tif",)),
        "modality: found 'mri'": replace(good, bag_id="mod", modality="mri"),
        "each of 1 CT slices": replace(good, bag_id="states", annotation="slices:01"),
        "found 2 files, expected one": replace(good, bag_id="two", images=good.images * 2),
        "'leak' (test), 'good' (train): the same group": replace(good, bag_id="leak", split="test"),
    }
    with pytest.raises(ValueError, match="list.csv: 6 problems") as caught:
        validate_bags([good, *faults.values()], tmp_path, source="list.csv")
    assert all(text in str(caught.value) for text in faults) and "p1" not in str(caught.value)
    bad = [replace(good, bag_id=f"x{i}", split="?") for i in range(50)]
    with pytest.raises(ValueError, match="and 30 more") as caught:
        validate_bags(bad, tmp_path, source="list.csv")
    assert len(str(caught.value).splitlines()) == 22


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s: s.replace("bag_id", "name", 1), "columns"),
        (lambda s: s.replace(",0,train", ",7,train"), "label '7'"),
        (lambda s: s.replace("true", "yes"), "annotation_complete 'yes'"),
        (lambda s: s.rstrip("\n").rsplit(",", 1)[0] + "\n", "number of cells"),
    ],
)
def test_damaged_lists_are_refused(tmp_path: Path, change: object, text: str) -> None:
    path = tmp_path / "bags.csv"
    write_bags(path, [slide(tmp_path, "a")])
    path.write_text(change(path.read_text()))  # type: ignore[operator]
    with pytest.raises(ValueError, match=rf"bags\.csv.*{text}"):
        read_bags(path)
    with pytest.raises(ValueError, match="no such file"):
        read_bags(tmp_path / "nowhere.csv")


def run(root: Path, out: Path, *more: str, options: dict | None = None) -> int:
    options = {"manifest": "manifest.csv"} if options is None else options
    fixed = ["--dataset", "mine", "--kind", "custom", "--root", str(root), "--options", json.dumps(options)]
    return main([*fixed, "--out", str(out), *more])


def test_command_line_writes_list_and_report_or_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = tmp_path / "raw", tmp_path / "out" / "bags.csv"
    root.mkdir()
    (root / "manifest.csv").write_text("bag_id,image,label,split\nb,b.svs,1,train\na,a.svs,0,test\nc,c.svs,,\n")
    for name in "abc":
        (root / f"{name}.svs").touch()
    assert run(root, out, "--max-bags", "1") == 2
    assert "found 3 bags, but the workflow planned for 1" in capsys.readouterr().err
    assert run(root, out, options={"manifets": "x"}) == 2
    assert "unknown ['manifets']" in capsys.readouterr().err
    assert main(["--dataset", "d", "--kind", "nope", "--root", str(root), "--out", str(out)]) == 2
    assert "camelyon16, custom, panda, rsna" in capsys.readouterr().err
    assert not out.exists()
    assert run(root, out, "--max-bags", "3") == 0
    assert [row.bag_id for row in read_bags(out)] == ["a", "b", "c"]
    report = json.loads(out.with_suffix(".report.json").read_text())
    assert report["found"]["bags"] == 3 and report["dataset"] == "mine"
    splits = {"train": {"positive": 1}, "test": {"negative": 1}, "score_only": {"unlabelled": 1}}
    assert report["found"]["by_split"] == splits
