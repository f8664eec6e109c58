"""What the project needs: the lock, the conda environments, the container."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from smmil.config.methods import METHODS
from tests.helpers.workflows import shell_rules

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = sorted((ROOT / "envs").glob("*.yaml"))
# names on conda-forge that differ from the names in the lock
CONDA_NAMES = {"pytorch": "torch", "py-opencv": "opencv-python-headless", "openslide": "openslide-bin"}
# versions that the recipes of conda-forge had on the date given
ON_CONDA_FORGE = {
    "filelock": "3.32.3",  # 2026-08-14
    "imagecodecs": "2026.6.26",  # 2026-07
    "jinja2": "3.1.6",  # 2025-03-06
    "matplotlib": "3.11.0",  # 2026-06-30
    "numpy": "2.5.1",  # 2026-07-05
    "openslide": "4.0.0",  # 2026-04-22
    "openslide-python": "1.4.3",  # 2026-04
    "pillow": "12.0.0",  # 2025-10-28
    "py-opencv": "5.0.0",  # 2026-07-03
    "pydantic": "2.13.4",  # 2026-05-06
    "pydicom": "3.0.2",  # 2026-04-22
    "pytorch": "2.13.0",  # 2026-08-13
    "safetensors": "0.7.0",  # 2026-04-23
    "scikit-image": "0.26.0",  # 2026-03-17
    "scikit-learn": "1.8.0",  # 2025-12-24
    "scipy": "1.18.0",  # 2026-06-20
    "shapely": "2.1.2",  # 2026-04-23
    "tifffile": "2026.5.15",  # 2026-05-16
    "timm": "1.0.26",  # 2026-04
    "torchvision": "0.28.0",  # 2026-08-01
    "tqdm": "4.70.0",  # 2026-07-27
    "zarr": "3.2.1",  # 2026-05-05
}


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def locked() -> list[Requirement]:
    """The lines of the lock."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / "requirements.lock").read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def versions() -> dict[str, str]:
    """Package -> version of the lock, for this platform."""
    return {
        canonicalize_name(entry.name): str(entry.specifier).removeprefix("==")
        for entry in locked()
        if entry.marker is None or entry.marker.evaluate()
    }


def requirements(name: str) -> list[Requirement]:
    if name == "smmil":
        listed = [Requirement(entry) for entry in project()["dependencies"]]
        for extra, entries in project()["optional-dependencies"].items():
            for entry in map(Requirement, entries):
                marker = f"({entry.marker}) and " if entry.marker else ""
                entry.marker = Marker(f"{marker}extra == '{extra}'")
                listed.append(entry)
        return listed
    try:
        return [Requirement(entry) for entry in importlib.metadata.requires(name) or []]
    except importlib.metadata.PackageNotFoundError:
        raise AssertionError(f"{name} is not installed; run pip install -r requirements.lock") from None


def closure(extras: set[str]) -> tuple[set[str], set[str]]:
    """Packages that the project needs on this platform, and those that one of them needs on some platform."""
    needed: set[tuple[str, str]] = set()
    elsewhere: set[str] = set()
    todo = [("smmil", extra) for extra in extras | {""}]
    while todo:
        name, extra = todo.pop()
        if (name, extra) in needed:
            continue
        needed.add((name, extra))
        for entry in requirements(name):
            other = canonicalize_name(entry.name)
            elsewhere.add(other)
            if entry.marker is None or entry.marker.evaluate({"extra": extra}):
                todo += [(other, wanted) for wanted in {"", *entry.extras}]
    return {name for name, _ in needed} - {"smmil"}, elsewhere


def test_the_lock_holds_what_the_project_needs_and_nothing_else():
    needed, elsewhere = closure(set(project()["optional-dependencies"]))
    assert set(versions()) == needed, "run make lock"
    assert {canonicalize_name(entry.name) for entry in locked()} <= needed | elsewhere
    assert not re.search("://|index-url|find-links", (ROOT / "requirements.lock").read_text())


def test_the_lock_satisfies_the_project():
    pins = versions()
    for entry in requirements("smmil"):
        pin = pins.get(canonicalize_name(entry.name))
        assert pin is None or pin in entry.specifier, entry
    # CUDA libraries exist for Linux only
    for entry in locked():
        if entry.name.startswith(("nvidia-", "cuda-", "triton")):
            assert entry.marker and not entry.marker.evaluate({"sys_platform": "darwin"}), entry


def ranges(environment: Path) -> dict[str, SpecifierSet]:
    """Package -> accepted versions of a conda environment."""
    entries = yaml.safe_load(environment.read_text())["dependencies"]
    return {re.match("[a-z0-9-]+", entry)[0]: SpecifierSet(re.sub("^[a-z0-9-]+", "", entry)) for entry in entries}


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda path: path.stem)
def test_conda_ranges_admit_the_lock_and_what_conda_forge_has(environment):
    pins = versions()
    for name, accepted in ranges(environment).items():
        if name == "python":
            assert all(version in accepted for version in ("3.11", "3.12"))
        elif name != "c-compiler":
            assert pins[CONDA_NAMES.get(name, name)] in accepted, f"{name}: the lock has {pins[name]}"
            assert ON_CONDA_FORGE.get(name, pins[CONDA_NAMES.get(name, name)]) in accepted, name


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda path: path.stem)
def test_conda_ranges_lie_within_those_of_the_project(environment):
    accepted = {canonicalize_name(entry.name): entry.specifier for entry in requirements("smmil")}
    for name, versions_ in ranges(environment).items():
        (lowest,) = (bound.version for bound in versions_ if bound.operator == ">=")
        assert lowest in accepted.get(CONDA_NAMES.get(name, name), SpecifierSet()), name


def test_the_environment_that_builds_the_kernel_of_sm_has_a_compiler():
    assert {path.stem for path in ENVIRONMENTS if "c-compiler" in ranges(path)} == {"train"}


# imported inside functions that the rules of these environments never call: listing raw data, reading a YAML file,
# finding artefacts, building a graph or an encoder, reading through Zarr's own API (the stages read by path), and the
# parts of the run store that need tensors
NEVER_CALLED = {
    "report": {"openpyxl", "torch", "safetensors", "skimage", "torchvision", "timm", "yaml"},
    "train": {"pydicom", "openpyxl", "scipy", "PIL", "yaml"},
    "preprocess": set(),
}
PACKAGE_OF = {
    "sklearn": "scikit-learn",
    "cv2": "py-opencv",
    "PIL": "pillow",
    "torch": "pytorch",
    "openslide": "openslide-python",
}


def module_file(name: str) -> Path | None:
    """The file of a module of this project."""
    stem = ROOT / name.replace(".", "/")
    return next((p for p in (stem.with_suffix(".py"), stem / "__init__.py", stem / "__main__.py") if p.exists()), None)


@cache
def imported(path: Path) -> list[str]:
    """What a file imports at run time, modules and names in them."""
    nodes, names = [ast.parse(path.read_text(encoding="utf-8"))], []
    for node in nodes:
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)):
            nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def third_party(start: str) -> set[str]:
    """Packages that a module can import, itself or through other modules of this project."""
    seen, packages, todo = set(), set(), [start]
    while todo:
        name = todo.pop()
        path = module_file(name)
        if name in seen or path is None:
            continue
        seen.add(name)
        if name == "smmil.models":  # it imports the methods by name
            todo += [method.build.partition(":")[0] for method in METHODS.values()]
        names = imported(path)
        todo += [n for n in names if n.split(".")[0] in ("smmil", "preprocessing")]
        packages |= {n.split(".")[0] for n in names}
    return packages - {"smmil", "preprocessing"} - set(sys.stdlib_module_names)


def test_conda_environments_hold_what_their_rules_import():
    for module, env in sorted({(rule.module, rule.environment) for rule in shell_rules().values()}):
        listed = set(ranges(ROOT / f"envs/{env}.yaml"))
        needed = {PACKAGE_OF.get(name, name) for name in third_party(module) - NEVER_CALLED[env]}
        assert needed <= listed, f"envs/{env}.yaml lacks {sorted(needed - listed)} for {module}"
