"""The miniature workflow on SLURM with the profile and interruptions: results equal a local run to the byte.

One run is shared by the tests of this file. During it, one training is cancelled, SLURM requeues another (as in a
preemption), and one extraction requests too little memory. The same workflow runs on this machine without SLURM.
"""

import json
import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.faults.evidence import differences
from tests.helpers.workflows import ROOT, demo_config, make_cohorts, start_snakemake, write_config

pytestmark = [pytest.mark.slow, pytest.mark.slurm]
HERE = Path(__file__).resolve().parent
LIMIT_SECONDS = 1500  # about ten times what a quiet machine needs
PROFILE = ROOT / "workflow/profiles/slurm"
EPOCHS = 40
CANCELLED, REQUEUED = "camelyon16/abmil", "rsna/abmil"
GPU_MODULES = {"preprocessing.features", "smmil.train", "smmil.predictions"}


class Job(NamedTuple):
    """A line of `squeue`: state, requested memory, and the comment that Snakemake sets."""

    job_id: str
    state: str
    memory: str
    comment: str


def output_of(*command: str) -> str:
    """Run a command and return what it prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def list_jobs(states: str = "all", comment: str = "") -> list[Job]:
    """Return the jobs whose comment has this prefix, oldest first."""
    lines = output_of("squeue", "--noheader", f"--states={states}", "--sort=i", "--format=%i|%T|%m|%k").splitlines()
    jobs = [Job(*line.split("|", 3)) for line in lines]
    return [job for job in jobs if job.comment.startswith(comment)]


def python_processes(directory: Path) -> dict[int, tuple[str, str, str]]:
    """Return the processes `python -m MODULE` of SLURM jobs with this working directory.

    Returns:
        Process id -> module, SLURM job id, value of CUDA_VISIBLE_DEVICES, "" if unset.
    """
    processes = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if len(arguments) < 3 or arguments[1] != "-m" or Path(os.readlink(entry / "cwd")) != directory:
                continue
            lines = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue  # the process has ended
        environment = dict(line.split("=", 1) for line in lines if "=" in line)
        if "SLURM_JOB_ID" in environment:
            devices = environment.get("CUDA_VISIBLE_DEVICES", "")
            processes[int(entry.name)] = (arguments[2], environment["SLURM_JOB_ID"], devices)
    return processes


def comment(pairing: str) -> str:
    """Return the comment that Snakemake gives the training job of `dataset/method`."""
    dataset, method = pairing.split("/")
    return f"rule_train_runs_wildcards_{dataset}_resnet18_{method}"


def tiny() -> dict:
    """Return the overrides of the demo with two methods, on the CPU, whose results are deterministic."""
    config = demo_config()
    config["use"] = ["camelyon16", "rsna"]
    config["methods"] = ["abmil", "smap_early"]
    config["training"] |= {"epochs": EPOCHS, "device": "cpu", "checkpoint_seconds": 0}
    config["features"]["device"] = "cpu"
    config["report"] = {"bootstrap": 50, "map_bags": 1, "tables": ["table1", "resources"], "figures": ["fig4", "cd"]}
    return config


@dataclass
class Watch:
    """Monitor a run on SLURM and interrupt two of its trainings once each."""

    directory: Path
    seen: dict[int, tuple[str, str, str]] = field(default_factory=dict)
    shared: list[tuple[str, ...]] = field(default_factory=list)
    before: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)

    def look(self) -> None:
        """Record the processes, and interrupt trainings that have saved a state."""
        now = python_processes(self.directory)
        self.seen |= now
        # by job: a forked child has the command line of its parent until it starts its program
        users = {(job, device) for module, job, device in now.values() if device and module in GPU_MODULES}
        devices = [device for _, device in sorted(users)]
        if len(devices) != len(set(devices)):
            self.shared.append(tuple(devices))
        for pairing in (CANCELLED, REQUEUED):
            if pairing not in self.ids and (jobs := list_jobs("RUNNING", comment(pairing))):
                self.ids[pairing] = jobs[0].job_id
            if pairing in self.ids and pairing not in self.before and self.files(pairing, "state.pt"):
                self.disturb(pairing)

    def files(self, pairing: str, name: str) -> list[Path]:
        """Return the files of a name of all runs of `dataset/method`."""
        dataset, method = pairing.split("/")
        return sorted(self.directory.glob(f"results/{dataset}/runs/resnet18/{method}/*/{name}"))

    def disturb(self, pairing: str) -> None:
        """Store the logs of a job, then cancel or requeue it."""
        self.before[pairing] = {p.parent.name: p.read_text().splitlines() for p in self.files(pairing, "log.jsonl")}
        output_of(*(("scancel",) if pairing == CANCELLED else ("scontrol", "requeue")), self.ids[pairing])


def follow(process: subprocess.Popen, watch: Watch) -> None:
    """Watch until Snakemake ends; start requeued jobs at once instead of after two minutes."""
    end = time.monotonic() + LIMIT_SECONDS
    while process.poll() is None:
        if time.monotonic() > end:
            process.send_signal(signal.SIGINT)  # SIGTERM would wait for the jobs
            process.wait(60)
            text = (watch.directory / "snakemake.txt").read_text()
            pytest.fail(f"not finished after {LIMIT_SECONDS} s:\n{text[-4000:]}")
        watch.look()
        for job in list_jobs("PENDING"):
            if job.job_id == watch.ids.get(REQUEUED):
                subprocess.run(["scontrol", "update", f"JobId={job.job_id}", "StartTime=now"], capture_output=True)
        time.sleep(0.15)


@pytest.fixture(scope="module")
def slurm_node():
    """Start a cluster, or skip the tests with the reason; one that ran before goes on afterwards."""
    ran_before = subprocess.run("scontrol ping", shell=True, capture_output=True).returncode == 0
    up = subprocess.run([str(HERE / "slurm-up.sh")], capture_output=True, text=True, timeout=600)
    if up.returncode == 3:
        pytest.skip(up.stderr.strip())
    assert up.returncode == 0, up.stderr
    yield
    if not ran_before:
        output_of(str(HERE / "slurm-down.sh"))


@pytest.fixture(scope="module")
def run(slurm_node, tmp_path_factory):
    """Return the watch of a finished run on SLURM and the folder of the same run without SLURM."""
    base = tmp_path_factory.mktemp("slurm").resolve()
    make_cohorts(base, datasets=["camelyon16", "rsna"])
    folders = {}
    for name in ("slurm", "local"):
        folder = folders[name] = base / name
        folder.mkdir()
        (folder / "raw").symlink_to(base / "raw")
        write_config(folder, tiny())
    local = start_snakemake(folder, folder / "snakemake.txt", "--cores", "1", "--configfile", "mine.yaml")
    # 350 MB are too little to extract features but enough for the two Snakemakes of a job
    too_little = "extract_features:mem_mb=350 * attempt ** 2 if wildcards.dataset == 'rsna' else 8000 * attempt"
    on_slurm = start_snakemake(
        folders["slurm"],
        folders["slurm"] / "snakemake.txt",
        *("--workflow-profile", str(PROFILE), "--configfile", "mine.yaml", "--set-resources", too_little),
        *("--cores", "2", "--slurm-status-command", "squeue", "--slurm-no-account"),
        *("--slurm-init-seconds-before-status-checks", "3", "--latency-wait", "20"),
        *("--max-jobs-per-timespan", "1000/2s"),  # with the profile's it would end a minute later
    )
    watch = Watch(folders["slurm"])
    try:
        follow(on_slurm, watch)
        local.wait(LIMIT_SECONDS)
    finally:
        for process in (on_slurm, local):
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.wait(60)
    for name, process in (("slurm", on_slurm), ("local", local)):
        assert process.returncode == 0, (folders[name] / "snakemake.txt").read_text()[-6000:]
    return watch, folders["local"]


def test_every_shard_and_every_training_was_a_job_of_its_own(run):
    done = [job.comment for job in list_jobs("COMPLETED")]
    for dataset in ("camelyon16", "rsna"):
        assert f"rule_cut_instances_wildcards_{dataset}_0000" in done
        assert f"rule_extract_features_wildcards_{dataset}_resnet18_0000" in done
        for method in ("abmil", "smap_early"):
            assert done.count(comment(f"{dataset}/{method}")) == 1
            assert f"rule_predict_runs_wildcards_{dataset}_resnet18_{method}" in done
    # the four measurements share one job
    assert sum(text.startswith("rule_measure") for text in done) == 1
    assert any(text.startswith("rule_report") for text in done)


def test_a_gpu_job_sees_one_gpu_of_its_own_and_the_others_see_none(run):
    watch, _ = run
    assert {module for module, _, _ in watch.seen.values()} >= GPU_MODULES
    for module, job, devices in watch.seen.values():
        if module == "snakemake":
            continue  # the one inside every job, with that job's devices
        if module in GPU_MODULES:
            assert re.fullmatch(r"\d+", devices), f"{module} in job {job} saw {devices!r}, expected one GPU"
        else:
            assert devices in ("", "NoDevFiles"), f"{module} in job {job} asked for no GPU and saw {devices!r}"
    assert not watch.shared, f"two processes on one GPU: {watch.shared}"


def test_a_job_killed_for_memory_came_back_with_more(run):
    attempts = list_jobs(comment="rule_extract_features_wildcards_rsna")
    assert [job.memory for job in attempts[:2]] == ["350M", "1400M"]
    assert attempts[0].state in ("OUT_OF_MEMORY", "FAILED", "CANCELLED") and attempts[-1].state == "COMPLETED"
    (first_log,) = (run[0].directory / ".snakemake/slurm_logs").rglob(f"{attempts[0].job_id}.log")
    assert re.search(r"exceeded memory limit|oom|out of memory|Exceeded job memory", first_log.read_text(), re.I)


def test_a_cancelled_training_went_on_in_a_new_job_where_it_stopped(run):
    first, second = list_jobs(comment=comment(CANCELLED))
    assert (first.state, second.state) == ("CANCELLED", "COMPLETED")
    (first_log,) = (run[0].directory / ".snakemake/slurm_logs").rglob(f"{first.job_id}.log")
    assert "stopped by signal 15, state saved" in first_log.read_text()
    check_continued(run[0], CANCELLED)


def test_a_requeued_training_went_on_in_the_same_job_where_it_stopped(run):
    (job,) = list_jobs(comment=comment(REQUEUED))
    assert job.state == "COMPLETED" and " Restarts=1 " in output_of("scontrol", "--oneliner", "show", "job", job.job_id)
    check_continued(run[0], REQUEUED)


def check_continued(watch: Watch, pairing: str) -> None:
    """Check that every epoch is logged once and that rows from before the interruption have kept their times."""
    before = watch.before[pairing]
    assert any(before.values()), "disturbed before its first epoch"
    for path in watch.files(pairing, "log.jsonl"):
        rows = path.read_text().splitlines()
        assert [json.loads(row)["epoch"] for row in rows] == [*range(1, EPOCHS + 1)]
        # the last row may have been incomplete
        kept = before.get(path.parent.name, [])[:-1]
        assert rows[: len(kept)] == kept


def test_the_results_are_those_of_a_run_without_slurm_to_the_byte(run):
    watch, local = run
    assert len([*(local / "results").rglob("*")]) > 100
    assert differences(watch.directory / "results", local / "results") == []
