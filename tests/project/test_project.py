"""The project itself: quick imports, quick help, files a reader can hold."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CLIS = sorted(
    str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__main__")
    for package in ("preprocessing", "smmil")
    for path in (ROOT / package).rglob("*.py")
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
)


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
