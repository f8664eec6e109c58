"""The project itself: environments in step with the lock, quick imports, quick help, files a reader can hold."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from smmil.config.methods import METHODS
from tests.helpers.workflows import shell_rules

ROOT = Path(__file__).resolve().parents[2]
# names on conda-forge that differ from the names in the lock
CONDA_NAMES = {"pytorch": "torch", "py-opencv": "opencv-python-headless", "openslide": "openslide-bin"}
CLIS = sorted(
    str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__main__")
    for package in ("preprocessing", "smmil")
    for path in (ROOT / package).rglob("*.py")
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
)


def locked() -> dict[str, str]:
    """Package -> version of the lock."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = (re.match(r"([A-Za-z0-9_.-]+)==([^ ;]+)", line) for line in lines)
    return {m[1].lower().replace("_", "-"): m[2] for m in pins if m}


@pytest.mark.parametrize("env", sorted((ROOT / "envs").glob("*.yaml")), ids=lambda path: path.stem)
def test_conda_environments_carry_the_locked_versions(env):
    versions = locked()
    for entry in yaml.safe_load(env.read_text())["dependencies"]:
        name, version = entry.split("=")
        if name == "python":
            continue
        expected = versions[CONDA_NAMES.get(name, name)]
        # conda-forge's openslide is the C library, opencv drops the wheel's build number
        depth = {"openslide": 1, "py-opencv": 3}.get(name, len(version.split(".")))
        assert version.split(".")[:depth] == expected.split(".")[:depth], (
            f"{env.name}: {entry}, the lock has {expected}"
        )


def test_every_dependency_of_the_project_is_locked():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["test"]
    names = {re.match(r"[A-Za-z0-9_.-]+", entry)[0].lower().replace("_", "-") for entry in wanted}
    assert not names - set(locked())


def imported_modules(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return run.stdout.strip()


@pytest.mark.parametrize("package", ["smmil", "preprocessing", "smmil.planning", "preprocessing.datasets"])
def test_importing_a_package_loads_nothing_heavy(package):
    heavy = set("torch cv2 zarr openslide pydicom sklearn skimage matplotlib shapely timm torchvision".split())
    found = imported_modules(f"import sys, {package}; print(' '.join(sorted(set(sys.modules) & {heavy!r})))")
    assert found == ""


@pytest.mark.parametrize("module", CLIS)
def test_help_is_quick_because_it_loads_nothing_heavy(module):
    code = (
        "import sys, runpy\n"
        f"sys.argv = [{module!r}, '--help']\n"
        f"try:\n    runpy.run_module({module!r}, run_name='__main__')\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "heavy = set('torch cv2 zarr openslide pydicom sklearn skimage matplotlib shapely scipy'.split())\n"
        "print('LOADED', *sorted(set(sys.modules) & heavy))"
    )
    assert imported_modules(code).splitlines()[-1] == "LOADED"


@pytest.mark.parametrize("folder", ["smmil", "preprocessing", "bench", "tests"])
def test_every_file_says_what_it_is(folder):
    silent = [
        str(path.relative_to(ROOT))
        for path in (ROOT / folder).rglob("*.py")
        if path.read_text(encoding="utf-8").strip()
        and not path.read_text(encoding="utf-8").lstrip("r").startswith(chr(34) * 3)
    ]
    assert not silent


def test_source_files_stay_short():
    long = {
        str(path.relative_to(ROOT)): n
        for folder in ("smmil", "preprocessing", "workflow")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".smk") and (n := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert not long


# imported inside functions that the rules of these environments never call: listing raw data, reading a YAML file,
# building a graph or an encoder, reading through Zarr's own API (the stages read by path), and the parts of the run
# store that need tensors
NEVER_CALLED = {
    "report": {"pydicom", "imagecodecs", "openpyxl", "torch", "safetensors", "torchvision", "timm", "yaml"},
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


def third_party(start: str) -> set[str]:
    """Packages that a module can import, itself or through other modules of this project."""
    import ast

    seen, found, todo = set(), set(), [start]
    while todo:
        name = todo.pop()
        path = module_file(name)
        if name in seen or path is None:
            continue
        seen.add(name)
        if name == "smmil.models":  # it imports the methods by name
            todo += [method.build.partition(":")[0] for method in METHODS.values()]
        tree = ast.parse(path.read_text(encoding="utf-8"))
        typing_only = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            for statement in node.body
            for inner in ast.walk(statement)
        }
        for node in ast.walk(tree):
            if id(node) in typing_only:
                continue
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
            own = [n for n in names if n.split(".")[0] in ("smmil", "preprocessing")]
            todo += own
            found |= {n.split(".")[0] for n in names if n not in own} - set(sys.stdlib_module_names)
    return found


def test_conda_environments_hold_what_their_rules_import():
    for module, env in sorted({(rule.module, rule.environment) for rule in shell_rules().values()}):
        entries = yaml.safe_load((ROOT / f"envs/{env}.yaml").read_text())["dependencies"]
        listed = {entry.split("=")[0] for entry in entries}
        needed = {PACKAGE_OF.get(name, name) for name in third_party(module) - NEVER_CALLED[env]}
        assert needed <= listed, f"envs/{env}.yaml lacks {sorted(needed - listed)} for {module}"
