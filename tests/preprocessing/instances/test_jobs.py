"""Killed, starved and colliding jobs: no hang, nothing half-written counted, all of it in the table of states."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from preprocessing.bags.shards import Abort
from preprocessing.features.prefetch import Prefetcher, segments
from preprocessing.instances import stage
from preprocessing.store.bags import bag_path, validate_bag
from tests.helpers.cohorts import Cohort, write_slide

PROGRAM = """
import errno, fcntl, json, os, resource, signal, sys
from preprocessing.instances import __main__ as instances, stage
from preprocessing.store import files as store_files
argv = json.loads(sys.argv[1])
{setup}
raise SystemExit(instances.main(argv))
"""


def start(cohort: Cohort, repository: Path, setup: str = "") -> subprocess.Popen[str]:
    """The instances stage in a process of its own, with something done to it first."""
    program = PROGRAM.format(setup=textwrap.dedent(setup))
    command = [sys.executable, "-c", program, json.dumps(cohort.argv())]
    return subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(repository)}, stderr=subprocess.PIPE, text=True
    )


def tree(cohort: Cohort) -> dict[str, bytes]:
    """Everything the stage made but locks, by name."""
    folder = cohort.results / "instances"
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and ".locks" not in p.parts
    }


@pytest.fixture
def three(tmp_path) -> Cohort:
    made = Cohort(tmp_path)
    for name in ("a", "b", "c"):
        write_slide(made.raw / f"{name}.tif")
        made.add(name, f"{name}.tif")
    assert made.list_bags() == 0
    return made


def undisturbed(cohort: Cohort) -> dict[str, bytes]:
    """What one quiet run gives, from a fresh start."""
    for name in ("instances", "status"):
        shutil.rmtree(cohort.results / name)
    assert cohort.cut() == 0
    return tree(cohort)


KILL = """
original = stage.compute
def compute(row, *rest):
    if row.bag_id == "b":
        os.kill(os.getpid(), signal.SIGKILL)
    return original(row, *rest)
stage.compute = compute
"""


def test_a_job_that_the_kernel_kills_is_seen_and_goes_on_where_it_was(three, repository) -> None:
    job = start(three, repository, KILL)
    job.communicate(timeout=60)
    assert job.returncode == -signal.SIGKILL and not three.manifest().exists()
    found = three.status()
    assert [found["total"][state] for state in ("ok", "interrupted", "pending")] == [1, 1, 1]
    assert [(one["bag_id"], one["state"]) for one in found["problems"]] == [("b", "interrupted"), ("c", "pending")]
    assert three.cut() == 0
    assert [line["redone"] for line in three.status_lines()[-3:]] == [False, True, True]
    assert three.status()["total"]["ok"] == 3 and not list(three.results.glob("status/**/*.working"))
    assert tree(three) == undisturbed(three)


FULL = {
    # a limit of the kernel on file sizes: writes break off in the middle, as on a full disk
    "kernel": "resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))",
    "no space": """
        original = store_files.write_synced
        def write_synced(path, data):
            if "/b." in str(path) and "coverage" in str(path):
                path.write_bytes(bytes(data)[:10])
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            original(path, data)
        store_files.write_synced = write_synced
    """,
}


@pytest.mark.parametrize("case", FULL)
def test_a_full_disk_ends_the_job_and_leaves_nothing_half_written(three, repository, case: str) -> None:
    job = start(three, repository, FULL[case])
    _, text = job.communicate(timeout=60)
    assert job.returncode == 1 and not three.manifest().exists() and "Traceback" not in text
    last = text.splitlines()[-1]
    assert last.startswith("error: bag ") and "make room" in last and "finished bags are kept" in last
    done = [p.name for p in (three.results / "instances/store").glob("[!.]*")]
    assert done == (["a"] if case == "no space" else [])
    for name in done:
        validate_bag(three.results / "instances/store", name, schema="instances")
    assert not list((three.results / "instances/store/.tmp").glob("*"))
    found = three.status()
    failed = [one for one in found["problems"] if one["state"] == "failed"]
    assert len(failed) == 1 and "cannot write" in failed[0]["reason"]
    assert found["total"]["ok"] == len(done) and found["total"]["pending"] == 2 - len(done)
    assert three.cut() == 0 and three.status()["total"]["ok"] == 3
    assert tree(three) == undisturbed(three)


def test_a_full_disk_is_not_excused_by_allowed_failures(three, monkeypatch, capsys) -> None:
    def full(*args: object, **kwargs: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stage, "write_bag", full)
    assert three.cut(allowed=99) == 1 and "make room" in capsys.readouterr().err
    assert not three.manifest().exists()


def test_a_half_status_line_spoils_no_other(three) -> None:
    path = three.results / "status/instances/0000.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text('{"bag_id": "a", "sta')
    assert three.cut() == 0
    found = three.status()
    assert found["unreadable_lines"] == 1 and found["total"]["ok"] == 3
    assert found["stages"][0]["seconds"] > 0


WITHOUT_LOCKS = """
def refuse(*args):
    raise OSError(errno.ENOLCK, "no locks here")
fcntl.flock = refuse
"""


@pytest.mark.parametrize("setup", ["", WITHOUT_LOCKS], ids=["locked", "file system without locks"])
def test_two_jobs_on_one_shard_both_finish_with_the_bytes_of_one(three, repository, setup: str) -> None:
    jobs = [start(three, repository, setup) for _ in range(2)]
    texts = [job.communicate(timeout=120)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], texts
    lines = three.status_lines()
    assert len(lines) == 6 and (setup or sum(line["redone"] for line in lines) == 3)
    assert three.status()["total"]["ok"] == 3
    assert tree(three) == undisturbed(three)


def test_a_bag_that_another_job_is_replacing_is_done_all_the_same(three, monkeypatch) -> None:
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
    assert tree(three) == undisturbed(three)


def test_no_thread_to_decode_with_ends_the_job(monkeypatch) -> None:
    def tiles(start: int, stop: int):
        yield from (np.zeros((2, 2, 3), np.uint8) for _ in range(start, stop))

    with Prefetcher(segments("a", 20, tiles), 2) as prefetcher:
        monkeypatch.setattr(prefetcher._pool, "submit", _no_thread)
        with pytest.raises(Abort, match=r"features\.workers"):
            list(prefetcher)


def _no_thread(*args: object) -> None:
    raise RuntimeError("can't start new thread")
