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
@settings(max_examples=60, deadline=None)
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


def test_shard_arguments() -> None:
    with pytest.raises(ValueError, match="shard"):
        shard_rows([], -1, 5)
    with pytest.raises(ValueError, match="size"):
        shard_rows([], 0, 0)


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


def test_validation_reports_everything_at_once(tmp_path: Path) -> None:
    good = slide(tmp_path, "good", group="p1")
    rows = [
        good,
        slide(tmp_path, "GOOD"),
        slide(tmp_path, "leak", split="test", group="p1"),
        replace(good, bag_id="gone", images=("slides/nowhere.tif",), group=""),
        slide(tmp_path, "lab", label=2),
        slide(tmp_path, "spl", split="holdout"),
        slide(tmp_path, "nolabel", label=None, split="test"),
        slide(tmp_path, "-bad id"),
        replace(good, bag_id="out", images=("../x.tif",), group=""),
        replace(good, bag_id="pipe", images=("a|b.tif",), group=""),
        slide(tmp_path, "scale", mpp=-1.0),
        slide(tmp_path, "mod", modality="mri"),
        slide(tmp_path, "states", annotation="slices:01"),
        slide(tmp_path, "outline", annotation="gone.xml"),
    ]
    with pytest.raises(ValueError) as caught:
        validate_bags(rows, tmp_path, source="list.csv")
    message = str(caught.value)
    for text in (
        "list.csv: 13 problems",
        "occurs 2 times (GOOD, good)",
        "'leak' (test), 'good' (train): the same group",
        "missing file 'slides/nowhere.tif'",
        "label: found 2",
        "split: found 'holdout'",
        "label: empty, but split is test",
        "'-bad id': bag_id",
        "leaves the dataset's root",
        "'|' and control characters",
        "mpp: found -1.0",
        "modality: found 'mri'",
        "each of 1 CT slices",
        "missing file 'gone.xml'",
    ):
        assert text in message, text
    assert "p1" not in message


def test_validation_is_short_and_accepts_what_is_right(tmp_path: Path) -> None:
    good = [slide(tmp_path, f"b{i}", split=s) for i, s in enumerate(("train", "val", "test"))]
    validate_bags([*good, slide(tmp_path, "score", label=None, split="")], tmp_path, source="list.csv")
    bad = [slide(tmp_path, f"x{i}", split="?") for i in range(50)]
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
    with pytest.raises(ValueError, match=r"bags\.csv") as caught:
        read_bags(path)
    assert text in str(caught.value)


def test_no_list() -> None:
    with pytest.raises(ValueError, match="no such file"):
        read_bags("nowhere/bags.csv")


def manifest(root: Path, text: str) -> Path:
    root.mkdir(exist_ok=True)
    path = root / "manifest.csv"
    path.write_text(text)
    return path


def run(root: Path, out: Path, *more: str, options: dict | None = None) -> int:
    options = {"manifest": "manifest.csv"} if options is None else options
    fixed = ["--dataset", "mine", "--kind", "custom", "--root", str(root), "--options", json.dumps(options)]
    return main([*fixed, "--out", str(out), *more])


def test_command_line_writes_list_and_report(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    manifest(root, "bag_id,image,label,split\nb,b.svs,1,train\na,a.svs,0,test\nc,c.svs,,\n")
    for name in "abc":
        (root / f"{name}.svs").touch()
    out = tmp_path / "out" / "bags.csv"
    assert run(root, out, "--max-bags", "3") == 0
    assert [row.bag_id for row in read_bags(out)] == ["a", "b", "c"]
    report = json.loads((tmp_path / "out" / "bags.report.json").read_text())
    assert report["found"]["bags"] == 3 and report["dataset"] == "mine"
    assert report["found"]["by_split"] == {
        "train": {"positive": 1},
        "test": {"negative": 1},
        "score_only": {"unlabelled": 1},
    }
    first = out.read_bytes()
    assert run(root, out) == 0 and out.read_bytes() == first


def test_command_line_errors_are_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "raw"
    manifest(root, "bag_id,image,label,split\na,a.svs,1,train\nb,b.svs,1,train\n")
    (root / "a.svs").touch()
    out = tmp_path / "bags.csv"
    assert run(root, out) == 2
    assert "missing file 'b.svs'" in capsys.readouterr().err
    (root / "b.svs").touch()
    assert run(root, out, "--max-bags", "1") == 2
    assert "found 2 bags, but the workflow planned for 1" in capsys.readouterr().err
    assert run(root, out, options={"manifets": "x"}) == 2
    assert "unknown ['manifets']" in capsys.readouterr().err
    assert main(["--dataset", "d", "--kind", "nope", "--root", str(root), "--out", str(out)]) == 2
    assert "camelyon16, custom, panda, rsna" in capsys.readouterr().err
    assert not out.exists()
