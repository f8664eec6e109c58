"""Two Snakemakes on one results folder, and wrong file times: nothing is damaged and nothing is repeated.

One working directory with a tiny CT cohort is shared by the tests of this file, in the order of the file.
"""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from preprocessing.bags.table import read_bags
from tests.faults.evidence import identity
from tests.helpers.workflows import make_cohorts, planned, snakemake, start_snakemake, write_config

pytestmark = pytest.mark.slow
TARGET = "results/rsna/instances/shards/0000.json"
DAY = 86_400


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """Return a working directory with twelve scans and a configuration for their instances."""
    folder = tmp_path_factory.mktemp("experiment")
    make_cohorts(folder, datasets=["rsna"])
    source = {"test_list": "raw/rsna/test_scans.csv", "scans": 12}
    own = {"root": "raw/rsna", "source": source, "instances": {"ct": {"preset": "paper", "slice_px": 64}}}
    values = {"results": "results", "use": ["rsna"], "datasets": {"rsna": own | {"encoders": ["resnet18"]}}}
    write_config(folder, values)
    return folder


def contents(directory: Path) -> dict[str, bytes]:
    """Return the results by name, without logs, times and locks."""
    found = [p for p in (directory / "results").rglob("*") if p.is_file()]
    volatile = {"logs", "benchmarks", "status", ".locks"}
    return {str(p): p.read_bytes() for p in found if not volatile & set(p.parts)}


def test_the_second_snakemake_refuses_and_the_first_ends_as_if_alone(directory):
    config = str(directory / "mine.yaml")
    first = start_snakemake(directory, directory / "first.txt", "--cores", "1", TARGET, "--configfile", config)
    try:
        end = time.monotonic() + 120
        while not list(directory.glob(".snakemake/locks/*")) and first.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        # stop the first, which holds the lock, so that it cannot finish before the second starts
        os.killpg(first.pid, signal.SIGSTOP)
        assert list(directory.glob(".snakemake/locks/*")) and first.poll() is None
        before = contents(directory)
        second = snakemake(directory, TARGET, "--configfile", config, check=False, timeout=120)
        assert second.returncode != 0 and "cannot be locked" in second.stdout, second.stdout
        assert "rule " not in second.stdout and contents(directory) == before
        os.killpg(first.pid, signal.SIGCONT)
        first.wait(240)
    finally:
        if first.poll() is None:
            os.killpg(first.pid, signal.SIGKILL)
            first.wait()
    assert first.returncode == 0, (directory / "first.txt").read_text()
    assert planned(directory, TARGET, "--configfile", config) == {}


@pytest.mark.parametrize("days", [-9000, 9000], ids=["past", "future"])
def test_a_result_of_any_time_costs_no_bag_again(directory, days):
    """Snakemake repeats a job whose output looks older than its input; the job skips finished bags."""
    before, bags = contents(directory), stored(directory)
    at = time.time() + days * DAY
    os.utime(directory / TARGET, (at, at))
    snakemake(directory, TARGET, "--configfile", str(directory / "mine.yaml"))
    snakemake(directory, TARGET, "--forcerun", "cut_instances", "--configfile", str(directory / "mine.yaml"))
    assert contents(directory) == before and stored(directory) == bags
    lines = (directory / "results/rsna/status/instances/0000.jsonl").read_text().splitlines()
    assert not any(json.loads(line)["redone"] for line in lines[-12:])


def test_a_replaced_slice_redoes_its_scan_alone(directory):
    """A new time is enough for Snakemake to look; only the scan of the file is cut again, into the same bytes."""
    before, bags, config = contents(directory), stored(directory), str(directory / "mine.yaml")
    assert planned(directory, TARGET, "--configfile", config) == {}
    row = read_bags(directory / "results/rsna/bags.csv")[3]
    os.utime(next(directory.rglob(Path(row.images[0]).name)), (1, 1))
    snakemake(directory, TARGET, "--configfile", config)
    assert contents(directory).keys() == before.keys()
    assert {name for name, kept in bags.items() if stored(directory)[name] != kept} == {row.bag_id}
    assert planned(directory, TARGET, "--configfile", config) == {}


def stored(directory: Path) -> dict[str, str]:
    """Return the identity of every stored bag; it changes when a bag is written again."""
    found = {
        path.parent.name: identity(path) for path in directory.glob("results/rsna/instances/store/[!.]*/zarr.json")
    }
    assert len(found) == 12
    return found
