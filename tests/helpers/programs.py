"""C kernels as programs of their own: with sanitizers, or for an emulated ARM processor."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from smmil.sm import native
from tests.helpers.workflows import ROOT

SANITIZED = ("cc", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Wno-unknown-pragmas")
ARM = ("aarch64-linux-gnu-gcc", "-O3", "-static")


def program(source: str, folder: Path, compiler: tuple[str, ...]) -> Path:
    """A built C file below `tests/`; skips where the compiler is missing or cannot do what it is asked."""
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"no {compiler[0]} on this machine")
    built = folder / Path(source).stem
    flags = [flag for flag in native.FLAGS if flag not in ("-fPIC", "-shared", "-O3")]
    command = [*compiler, *flags, str(ROOT / "tests" / source), "-o", str(built), "-lm"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if "-fsanitize=address,undefined" in compiler and "cannot find" in run.stderr:
        pytest.skip("this compiler comes without the sanitizers")
    assert run.returncode == 0, run.stderr
    return built


def run_program(command: list[str], text: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Runs it on a text."""
    # looking for leaks takes rights that a container may not give
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    return subprocess.run(command, input=text, capture_output=True, check=False, env=environment)
