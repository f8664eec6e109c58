"""Shards: one bad bag never hides the others, manifests are deterministic, failures survive, locks hold."""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from preprocessing.bags.manifests import ManifestEntry, ShardManifest
from preprocessing.bags.rows import BagRow
from preprocessing.bags.shards import Abort, Outcome, Shard, one_line, run_shard, shard_lock

SHARD = Shard("demo", "instances", 3, 12)
ROWS = [BagRow(bag_id=name, modality="wsi", images=(f"{name}.tif",)) for name in ("a", "b", "c", "d")]


def mixed(row: BagRow) -> Outcome:
    if row.bag_id == "b":
        raise ValueError("b.tif: found\nno mpp")
    if row.bag_id == "c":
        return Outcome("empty", reason="no tissue")
    return Outcome("ok", n=7, hash="abc")


def run(tmp_path: Path, work, allowed=0, rows=ROWS, name="m"):
    return run_shard(rows, work, tmp_path / f"{name}.json", allowed, tmp_path / "status/s.jsonl", shard=SHARD)


def status(tmp_path: Path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "status/s.jsonl").read_text().splitlines()]


def test_every_bag_is_tried_and_the_shard_fails_afterwards(tmp_path, caplog):
    (tmp_path / "m.json").write_text("of an earlier run")
    assert run(tmp_path, mixed) == 1
    assert not (tmp_path / "m.json").exists()
    lines = status(tmp_path)
    states = {"a": "ok", "b": "failed", "c": "empty", "d": "ok"}
    assert {line["bag_id"]: line["state"] for line in lines} == states
    assert lines[1]["reason"] == "b.tif: found no mpp" and lines[0]["seconds"] >= 0
    assert "Traceback" in caplog.text and "1 of 4 bags failed, 0 allowed" in caplog.text


def test_allowed_failures_are_in_the_manifest_with_their_reason(tmp_path):
    assert run(tmp_path, mixed, allowed=1) == 0
    entries = ShardManifest.read(tmp_path / "m.json").by_id
    assert entries["b"] == ManifestEntry(bag_id="b", state="failed", reason="b.tif: found no mpp")
    assert entries["c"].state == "empty" and entries["d"].n == 7
    head = json.loads((tmp_path / "m.json").read_text())
    assert (head["dataset"], head["stage"], head["stage_version"], head["shard"]) == ("demo", "instances", 3, "0012")
    assert run(tmp_path, mixed, rows=[], name="none") == 0
    assert ShardManifest.read(tmp_path / "none.json").by_id == {}


def test_equal_results_give_equal_bytes_whatever_the_order_and_the_clock(tmp_path):
    run(tmp_path, mixed, allowed=1)
    time.sleep(0.01)
    run(tmp_path, mixed, allowed=1, rows=ROWS[::-1], name="again")
    assert (tmp_path / "m.json").read_bytes() == (tmp_path / "again.json").read_bytes()
    assert len(status(tmp_path)) == 8


@pytest.mark.parametrize("fatal", [MemoryError, KeyboardInterrupt, Abort])
def test_what_is_no_fault_of_a_bag_ends_the_job(tmp_path, fatal):
    def work(row: BagRow) -> Outcome:
        raise fatal("x")

    with pytest.raises(fatal):
        run(tmp_path, work, allowed=99)
    assert not (tmp_path / "m.json").exists()


def test_a_failure_of_an_earlier_stage_is_not_counted_twice(tmp_path):
    assert run(tmp_path, lambda row: Outcome("failed", reason="no instances", counted=False)) == 0
    assert ShardManifest.read(tmp_path / "m.json").by_id["a"].state == "failed"


def test_reasons_are_one_line_and_name_unexpected_errors():
    assert one_line(ValueError("a\n  b")) == "a b"
    assert one_line(RuntimeError("x")) == "RuntimeError: x"
    assert one_line(KeyError()) == "KeyError"
    assert len(one_line(ValueError("x" * 9999))) == 500


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"bags": [{"bag_id": "a", "state": "fine"}]}'])
def test_a_broken_manifest_is_named(tmp_path, text):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(ValueError, match=r"m\.json"):
        ShardManifest.read(tmp_path / "m.json")
    with pytest.raises(ValueError, match="no such manifest"):
        ShardManifest.read(tmp_path / "absent.json")


def _hold(path: Path, events: Path) -> None:
    with shard_lock(path), events.open("a", buffering=1) as stream:
        stream.write("in\n")
        time.sleep(0.1)
        stream.write("out\n")


def test_two_jobs_on_one_shard_take_turns(tmp_path):
    lock, events = tmp_path / "locks/0003.lock", tmp_path / "events"
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(_hold, [lock] * 2, [events] * 2))
    assert events.read_text() == "in\nout\n" * 2


def test_a_killed_job_leaves_no_lock(tmp_path):
    lock = tmp_path / "0003.lock"
    code = "import sys, time; from preprocessing.bags.shards import shard_lock\n"
    code += "with shard_lock(sys.argv[1]): print('in', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, lock], stdout=subprocess.PIPE) as job:
        assert job.stdout is not None and job.stdout.readline() == b"in\n"
        job.kill()
    with shard_lock(lock):
        assert lock.exists()
