"""Two Snakemakes on one results folder, and times of files that lie: nothing damaged, nothing done twice.

One working directory with a tiny CT cohort is shared by the tests of this file, in the order of the file.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.evidence import identity
from tests.helpers.workflows import ROOT, planned, snakemake, write_config

pytestmark = pytest.mark.slow
TARGET = "results/rsna/instances/shards/0000.json"
DAY = 86_400


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with twelve scans and a configuration for their instances."""
    folder = tmp_path_factory.mktemp("house")
    command = [sys.executable, "-m", "preprocessing.synthetic", "--out", str(folder / "raw"), "--size", "tiny"]
    subprocess.run([*command, "--datasets", "rsna"], check=True, cwd=ROOT, capture_output=True)
    source = {"test_list": "raw/rsna/test_scans.csv", "scans": 12}
    own = {"root": "raw/rsna", "source": source, "instances": {"ct": {"preset": "paper", "slice_px": 64}}}
    values = {"results": "results", "use": ["rsna"], "datasets": {"rsna": own | {"encoders": ["resnet18"]}}}
    write_config(folder, values)
    return folder


def contents(house: Path) -> dict[str, bytes]:
    """Results by name, but logs, times and locks."""
    found = [p for p in (house / "results").rglob("*") if p.is_file()]
    volatile = {"logs", "benchmarks", "status", ".locks"}
    return {str(p): p.read_bytes() for p in found if not volatile & set(p.parts)}


def test_the_second_snakemake_refuses_and_the_first_ends_as_if_alone(house: Path) -> None:
    config = str(house / "mine.yaml")
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "1", TARGET]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with (house / "first.txt").open("w") as said:
        first = subprocess.Popen(
            [*command, "--directory", str(house), "--configfile", config],
            env=environment,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        end = time.monotonic() + 120
        while not list(house.glob(".snakemake/locks/*")) and first.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        # it holds the lock; stopped, it cannot be quicker than the second
        os.killpg(first.pid, signal.SIGSTOP)
        assert list(house.glob(".snakemake/locks/*")) and first.poll() is None
        before = contents(house)
        second = snakemake(house, TARGET, "--configfile", config, check=False, timeout=120)
        assert second.returncode != 0 and "cannot be locked" in second.stdout, second.stdout
        assert "rule " not in second.stdout and contents(house) == before
        os.killpg(first.pid, signal.SIGCONT)
        first.wait(240)
    finally:
        if first.poll() is None:
            os.killpg(first.pid, signal.SIGKILL)
            first.wait()
    assert first.returncode == 0, (house / "first.txt").read_text()
    assert planned(house, TARGET, "--configfile", config) == {}


@pytest.mark.parametrize("days", [-9000, 9000], ids=["past", "future"])
def test_a_result_of_any_time_costs_no_bag_again(house: Path, days: int) -> None:
    """Snakemake starts the job again where its output looks older than its input; the job finds every bag finished."""
    before, bags = contents(house), stored(house)
    at = time.time() + days * DAY
    os.utime(house / TARGET, (at, at))
    snakemake(house, TARGET, "--configfile", str(house / "mine.yaml"))
    snakemake(house, TARGET, "--forcerun", "cut_instances", "--configfile", str(house / "mine.yaml"))
    assert contents(house) == before and stored(house) == bags
    lines = (house / "results/rsna/status/instances/0000.jsonl").read_text().splitlines()
    assert not any(json.loads(line)["redone"] for line in lines[-12:])


def test_an_input_from_the_future_is_refused_until_the_clock_is_right(house: Path) -> None:
    """What the job makes would look older than what it was made from, for ever: Snakemake says so and keeps nothing."""
    before, bags, config = contents(house), stored(house), str(house / "mine.yaml")
    now = time.time()
    os.utime(house / "results/rsna/bags.csv", (now + DAY, now + DAY))
    run = snakemake(house, TARGET, "--forcerun", "cut_instances", "--configfile", config, check=False)
    assert run.returncode != 0 and "clock skew" in run.stdout and not (house / TARGET).exists()
    os.utime(house / "results/rsna/bags.csv", (now, now))
    snakemake(house, TARGET, "--configfile", config)
    assert contents(house) == before and stored(house) == bags


def stored(house: Path) -> dict[str, str]:
    """The bags, with what changes when one is written again."""
    found = {path.parent.name: identity(path) for path in house.glob("results/rsna/instances/store/[!.]*/zarr.json")}
    assert len(found) == 12
    return found
