"""Start and stop the cluster of the tests, query its queue, and list the GPUs that its processes see."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Job:
    """A line of `squeue`: state, requested memory, and the comment that Snakemake sets."""

    job_id: str
    state: str
    memory: str
    comment: str


def start() -> tuple[bool, str]:
    """Start the cluster.

    Returns:
        Whether this call started it, and the reason if it cannot run here, else "".

    Raises:
        RuntimeError: the cluster did not start although it can run here.
    """
    ran_before = running()
    up = subprocess.run([str(HERE / "slurm-up.sh")], capture_output=True, text=True, timeout=600)
    if up.returncode == 3:
        return False, up.stderr.strip()
    if up.returncode:
        raise RuntimeError(up.stderr)
    return not ran_before, ""


def stop() -> None:
    """Stop the daemons and remove their state."""
    subprocess.run([str(HERE / "slurm-down.sh")], check=True, capture_output=True, timeout=120)


def running() -> bool:
    """Return whether a controller answers."""
    try:
        return subprocess.run(["scontrol", "ping"], capture_output=True, timeout=20).returncode == 0
    except FileNotFoundError:
        return False


def jobs(states: str = "all") -> list[Job]:
    """Return the jobs that the controller knows, oldest first."""
    run = subprocess.run(
        ["squeue", "--noheader", f"--states={states}", "--sort=i", "--format=%i|%T|%m|%k"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return [Job(*line.split("|", 3)) for line in run.stdout.splitlines()]


def running_job(comment: str) -> str:
    """Return the id of the running job with this comment, or ""."""
    return next((job.job_id for job in jobs("RUNNING") if job.comment == comment), "")


def run_command(*command: str) -> None:
    """Run a command such as `scancel 7`."""
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def field(job_id: str, name: str) -> str:
    """Return a field of `scontrol show job`."""
    run = subprocess.run(["scontrol", "--oneliner", "show", "job", job_id], capture_output=True, text=True, check=True)
    return next((part.split("=", 1)[1] for part in run.stdout.split() if part.startswith(f"{name}=")), "")


def python_processes(directory: Path) -> dict[int, tuple[str, str, str]]:
    """Return the processes `python -m MODULE` of SLURM jobs with this working directory.

    Returns:
        Process id -> module, SLURM job id, value of CUDA_VISIBLE_DEVICES, "" if unset.
    """
    processes = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
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
