"""The one-node cluster of the tests: start and stop, what its queue says, and which GPUs its processes see."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Job:
    """One line of `squeue`: state, memory in MB as asked for, and the comment that Snakemake writes."""

    job_id: str
    state: str
    memory: str
    comment: str


def start() -> tuple[bool, str]:
    """Starts the cluster.

    Returns:
        Whether it was started now (False: it ran before), and an empty string or why it cannot run here.

    Raises:
        RuntimeError: it should run here and did not come up.
    """
    ran_before = running()
    up = subprocess.run([str(HERE / "slurm-up.sh")], capture_output=True, text=True, timeout=600)
    if up.returncode == 3:
        return False, up.stderr.strip()
    if up.returncode:
        raise RuntimeError(up.stderr)
    return not ran_before, ""


def stop() -> None:
    """Ends the daemons and removes their state."""
    subprocess.run([str(HERE / "slurm-down.sh")], check=True, capture_output=True, timeout=120)


def running() -> bool:
    """Whether a controller answers."""
    try:
        return subprocess.run(["scontrol", "ping"], capture_output=True, timeout=20).returncode == 0
    except FileNotFoundError:
        return False


def jobs(states: str = "all") -> list[Job]:
    """Every job that the controller remembers, oldest first."""
    run = subprocess.run(
        ["squeue", "--noheader", f"--states={states}", "--sort=i", "--format=%i|%T|%m|%k"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return [Job(*line.split("|", 3)) for line in run.stdout.splitlines()]


def running_job(comment: str) -> str:
    """The id of the running job with this comment, or an empty string."""
    return next((job.job_id for job in jobs("RUNNING") if job.comment == comment), "")


def order(*command: str) -> None:
    """Gives SLURM an order such as `scancel 7`."""
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def field(job_id: str, name: str) -> str:
    """One field of `scontrol show job`."""
    run = subprocess.run(["scontrol", "--oneliner", "show", "job", job_id], capture_output=True, text=True, check=True)
    return next((part.split("=", 1)[1] for part in run.stdout.split() if part.startswith(f"{name}=")), "")


def python_processes(directory: Path) -> dict[int, tuple[str, str, str]]:
    """Processes `python -m MODULE` with this working directory inside a SLURM job.

    Returns:
        Process id -> module, SLURM job id, value of CUDA_VISIBLE_DEVICES ("" where it is not set).
    """
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if len(words) < 3 or words[1] != "-m" or Path(os.readlink(entry / "cwd")) != directory:
                continue
            lines = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while it was looked at
        environment = dict(line.split("=", 1) for line in lines if "=" in line)
        if "SLURM_JOB_ID" in environment:
            seen = environment.get("CUDA_VISIBLE_DEVICES", "")
            found[int(entry.name)] = (words[2], environment["SLURM_JOB_ID"], seen)
    return found
