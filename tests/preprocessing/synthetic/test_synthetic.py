"""Folders of synthetic cohorts: reproducible, whole, rebuilt for other parameters, never over foreign files."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from preprocessing.synthetic import cohort
from preprocessing.synthetic.__main__ import main

SEED = 3
SMALL = {"slides": 8, "side": 512, "length": 500, "scans": 8, "matrix": 64}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> dict[str, Path]:
    return cohort.build(tmp_path_factory.mktemp("cohorts"), "tiny", SEED, overrides=SMALL)


def hashes(folder: Path) -> dict[str, str]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def dies(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(small, tmp_path):
    again = cohort.build(tmp_path / "a", "tiny", SEED, overrides=SMALL)
    assert all(hashes(again[name]) == hashes(folder) for name, folder in small.items())
    cohort.build(tmp_path / "b", "tiny", SEED + 1, ["rsna"], SMALL)
    assert not set(hashes(tmp_path / "b" / "rsna").values()) & set(hashes(small["rsna"]).values())


def test_second_call_touches_nothing(small):
    out = small["rsna"].parent
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    cohort.build(out, "tiny", SEED, overrides=SMALL)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before


@pytest.mark.parametrize("moment", ["preprocessing.synthetic.rsna.make_scan", "shutil.rmtree", "pathlib.Path.rename"])
def test_a_killed_run_leaves_nothing_that_passes_for_complete_and_other_parameters_replace_it(
    small, tmp_path, monkeypatch, moment
):
    cohort.build(tmp_path, "tiny", SEED + 1, ["rsna"], SMALL)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(moment, dies)
        cohort.build(tmp_path, "tiny", SEED, ["rsna"], SMALL)
    cohort.build(tmp_path, "tiny", SEED, ["rsna"], SMALL)
    assert hashes(tmp_path / "rsna") == hashes(small["rsna"]) and not (tmp_path / "rsna" / cohort.BUILDING).exists()


def test_a_link_to_another_disk_stays_one(small, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    (tmp_path / "rsna").symlink_to(disk)
    for seed in (SEED + 1, SEED):
        cohort.build(tmp_path, "tiny", seed, ["rsna"], SMALL)
    assert (tmp_path / "rsna").is_symlink() and hashes(disk) == hashes(small["rsna"])


def test_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "rsna").mkdir()
    (tmp_path / "rsna" / "precious.dcm").write_bytes(b"mine")
    with pytest.raises(ValueError, match="not made by the generator"):
        cohort.build(tmp_path, "tiny", 0, ["rsna"])
    assert (tmp_path / "rsna" / "precious.dcm").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--datasets", "kvasir"], "kvasir"), (["--scans", "2"], "at least 8"), (["--side", "100"], "at least 512")],
)
def test_user_errors_are_one_line(tmp_path, capsys, arguments, message):
    assert main(["--out", str(tmp_path / "out"), "--size", "tiny", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_command_line_imports_nothing_heavy(repository):
    code = (
        "import sys; from preprocessing.synthetic.__main__ import parser; parser();"
        "heavy = {'torch', 'cv2', 'tifffile', 'pydicom', 'openslide'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=repository, check=True)
