"""The project itself: quick imports, quick help, files a reader can hold."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# in one process: what stays unloaded after all commands was loaded by none
PROGRAM = """
import contextlib, importlib, io, runpy, sys

def check(name):
    heavy = "torch cv2 zarr openslide pydicom sklearn skimage matplotlib shapely scipy timm torchvision"
    loaded = set(sys.modules) & set(heavy.split())
    assert not loaded, f"{name} loads {loaded}"

for package in ("smmil", "preprocessing", "smmil.planning", "preprocessing.datasets"):
    importlib.import_module(package)
    check(package)
for module in sys.argv[1:]:
    sys.argv = [module, "--help"]
    sys.modules.pop(module, None)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            runpy.run_module(module, run_name="__main__")
    except SystemExit as stop:
        assert not stop.code, (module, stop.code)
    check(module)
"""


def test_imports_and_help_are_quick_because_they_load_nothing_heavy():
    commands = [
        str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__main__")
        for package in ("preprocessing", "smmil")
        for path in (ROOT / package).rglob("*.py")
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    ]
    run = subprocess.run([sys.executable, "-c", PROGRAM, *commands], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0 and len(commands) > 20, run.stderr


@pytest.mark.parametrize("folder", ["smmil", "preprocessing", "bench", "tests"])
def test_every_file_says_what_it_is(folder):
    silent = [
        str(path.relative_to(ROOT))
        for path in (ROOT / folder).rglob("*.py")
        if path.read_text(encoding="utf-8").strip()
        and not path.read_text(encoding="utf-8").lstrip("r").startswith(chr(34) * 3)
    ]
    assert not silent
