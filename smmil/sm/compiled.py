"""The C file of Sm as a shared library, compiled once per machine where a C compiler is installed.

Without the library `smmil.sm.operator` computes the same in torch. `SMMIL_NATIVE=0` in the environment disables it;
`SMMIL_CACHE` is the folder of the compiled file (default `~/.cache/smmil`).
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

log = logging.getLogger(__name__)
# No -march: machines may share a cache, so instruction sets are chosen at run time.
FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared")


@cache
def library(source: Path, *, flags: tuple[str, ...] = FLAGS, wished: tuple[str, ...] = ()) -> ctypes.CDLL | None:
    """Load the library of a C file, compiling it if necessary; None if that fails (logged once).

    The `wished` compiler flags are dropped if the compiler rejects them.
    """
    if os.environ.get("SMMIL_NATIVE", "1") == "0":
        return None
    try:
        return ctypes.CDLL(str(_build(source, flags, wished)))
    except (OSError, subprocess.SubprocessError) as error:
        log.info("%s is not compiled (%s); a slower path is used", source.name, str(error).strip().splitlines()[-1:])
        return None


def _build(source: Path, flags: Sequence[str], wished: Sequence[str]) -> Path:
    inputs = source.read_bytes() + " ".join([*flags, *wished]).encode() + platform.platform().encode()
    folder = Path(os.environ.get("SMMIL_CACHE") or Path.home() / ".cache" / "smmil")
    target = folder / f"{source.stem}-{hashlib.sha256(inputs).hexdigest()[:16]}.so"
    if target.exists():
        return target
    # conda's compilers have no plain name; their environment sets CC
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", ""), "cc", "gcc", "clang"))), None)
    if compiler is None:
        raise OSError("no C compiler found")
    folder.mkdir(parents=True, exist_ok=True)
    # compiled under a temporary name and renamed, so that concurrent jobs never load a partial library
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        compiled = Path(scratch) / target.name
        for extra in dict.fromkeys((tuple(wished), ())):
            command = [compiler, *flags, *extra, str(source), "-o", str(compiled)]
            run = subprocess.run(command, capture_output=True, text=True, timeout=120)
            if run.returncode == 0:
                os.replace(compiled, target)
                return target
    raise OSError(f"{compiler}: {run.stderr.strip() or 'failed'}")
