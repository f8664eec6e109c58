"""Killed, starved and colliding jobs: no hang, nothing half-written counted, all of it in the table of states."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from preprocessing.instances import stage
from preprocessing.store import files as store_files
from preprocessing.store.bags import bag_path, validate_bag
from tests.helpers.cohorts import Cohort, write_slide

PROGRAM = """
import errno, fcntl, json, os, signal, sys
from preprocessing.instances import __main__ as instances, stage
argv = json.loads(sys.argv[1])
{setup}
raise SystemExit(instances.main(argv))
"""
Tree = dict[str, bytes]


def start(cohort: Cohort, repository: Path, setup: str = "") -> subprocess.Popen[str]:
    """The instances stage in a process of its own, with something done to it first."""
    command = [sys.executable, "-c", PROGRAM.format(setup=setup), json.dumps(cohort.argv())]
    return subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(repository)}, stderr=subprocess.PIPE, text=True
    )


def tree(cohort: Cohort) -> Tree:
    """Everything the stage made but locks, by name."""
    folder = cohort.results / "instances"
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and ".locks" not in p.parts]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.fixture(scope="module")
def quiet(tmp_path_factory) -> tuple[Cohort, Tree]:
    """Three slides, and what one undisturbed run gives."""
    made = Cohort(tmp_path_factory.mktemp("quiet"))
    for name in ("a", "b", "c"):
        write_slide(made.raw / f"{name}.tif")
        made.add(name, f"{name}.tif")
    assert made.list_bags() == 0 and made.cut() == 0
    return made, tree(made)


@pytest.fixture
def three(tmp_path, quiet) -> Cohort:
    """The same slides, not yet cut."""
    made = Cohort(tmp_path)
    shutil.copytree(quiet[0].raw, made.raw, dirs_exist_ok=True)
    made.results.mkdir(parents=True)
    shutil.copy(quiet[0].results / "bags.csv", made.results)
    return made


KILL = """
original = stage.compute
def compute(row, *rest):
    if row.bag_id == "b":
        os.kill(os.getpid(), signal.SIGKILL)
    return original(row, *rest)
stage.compute = compute
"""


def test_a_job_that_the_kernel_kills_is_seen_and_goes_on_where_it_was(three, quiet, repository) -> None:
    job = start(three, repository, KILL)
    job.communicate(timeout=60)
    assert job.returncode == -signal.SIGKILL and not three.manifest().exists()
    status = three.status()
    assert [status["total"][state] for state in ("ok", "interrupted", "pending")] == [1, 1, 1]
    assert [(bag["bag_id"], bag["state"]) for bag in status["problems"]] == [("b", "interrupted"), ("c", "pending")]
    assert three.cut() == 0
    assert [line["redone"] for line in three.status_lines()[-3:]] == [False, True, True]
    assert three.status()["total"]["ok"] == 3 and not list(three.results.glob("status/**/*.working"))
    assert tree(three) == quiet[1]


def test_a_full_disk_ends_the_job_whatever_is_allowed_and_leaves_nothing_half_written(
    three, quiet, monkeypatch, capsys
) -> None:
    original = store_files.write_synced

    def full(path: Path, data: bytes) -> None:
        if "/b." in str(path) and "coverage" in str(path):
            path.write_bytes(bytes(data)[:10])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        original(path, data)

    monkeypatch.setattr(store_files, "write_synced", full)
    assert three.cut(allowed=99) == 1 and not three.manifest().exists()
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: bag b") and "make room" in last and "finished bags are kept" in last
    store = three.results / "instances/store"
    assert [p.name for p in store.glob("[!.]*")] == ["a"] and not list((store / ".tmp").glob("*"))
    validate_bag(store, "a", schema="instances")
    status = three.status()
    (failed,) = [bag for bag in status["problems"] if bag["state"] == "failed"]
    assert "cannot write" in failed["reason"] and (status["total"]["ok"], status["total"]["pending"]) == (1, 1)
    monkeypatch.undo()
    assert three.cut() == 0 and three.status()["total"]["ok"] == 3
    assert tree(three) == quiet[1]


def test_a_half_status_line_spoils_no_other(three) -> None:
    path = three.results / "status/instances/0000.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text('{"bag_id": "a", "sta')
    assert three.cut() == 0
    status = three.status()
    assert status["unreadable_lines"] == 1 and status["total"]["ok"] == 3
    assert status["stages"][0]["seconds"] > 0


WITHOUT_LOCKS = """
def refuse(*args):
    raise OSError(errno.ENOLCK, "no locks here")
fcntl.flock = refuse
"""


@pytest.mark.parametrize("setup", ["", WITHOUT_LOCKS], ids=["locked", "file system without locks"])
def test_two_jobs_on_one_shard_both_finish_with_the_bytes_of_one(three, quiet, repository, setup: str) -> None:
    jobs = [start(three, repository, setup) for _ in range(2)]
    texts = [job.communicate(timeout=120)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], texts
    lines = three.status_lines()
    assert len(lines) == 6 and (setup or sum(line["redone"] for line in lines) == 3)
    assert three.status()["total"]["ok"] == 3
    assert tree(three) == quiet[1]


def test_a_bag_that_another_job_is_replacing_is_done_all_the_same(three, quiet, monkeypatch) -> None:
    original = stage.write_bag

    def write_and_lose(folder, bag_id, *args, **kwargs) -> str:
        content = original(folder, bag_id, *args, **kwargs)
        # the moment in which another job has moved this bag away and not yet put its own in place
        shutil.rmtree(bag_path(folder, bag_id))
        return content

    monkeypatch.setattr(stage, "write_bag", write_and_lose)
    assert three.cut() == 0
    lost = three.manifest().read_bytes()
    monkeypatch.undo()
    assert three.cut() == 0 and three.manifest().read_bytes() == lost
    assert tree(three) == quiet[1]
