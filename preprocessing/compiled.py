"""C files of this project as libraries: built once per machine with the compiler that is there, or left out.

Who uses one has another path to the same result. `SMMIL_NATIVE=0` in the environment switches all of them off;
`SMMIL_CACHE` moves the built files (default: `.cache/smmil` of the home folder).
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
# no -march: what a machine has is asked at run time, as a cache can be shared by machines
FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared")


@cache
def library(
    source: Path, *, flags: tuple[str, ...] = FLAGS, included: tuple[str, ...] = (), wished: tuple[str, ...] = ()
) -> ctypes.CDLL | None:
    """The loaded library of a C file, built if need be; None where it cannot be had (logged once).

    Args:
        source: the C file.
        flags: of the compiler.
        included: files beside it that it includes; a change of theirs builds it again too.
        wished: further flags, left out where the compiler refuses them.
    """
    if os.environ.get("SMMIL_NATIVE", "1") == "0":
        return None
    try:
        return ctypes.CDLL(str(_built(source, flags, included, wished)))
    except (OSError, subprocess.SubprocessError) as error:
        log.info("%s is not compiled (%s); a slower path is used", source.name, str(error).strip().splitlines()[-1:])
        return None


def _built(source: Path, flags: Sequence[str], included: Sequence[str], wished: Sequence[str]) -> Path:
    text = b"".join(path.read_bytes() for path in (source, *map(source.with_name, included)))
    made_from = text + " ".join([*flags, *wished]).encode() + platform.platform().encode()
    folder = Path(os.environ.get("SMMIL_CACHE") or Path.home() / ".cache" / "smmil")
    target = folder / f"{source.stem}-{hashlib.sha256(made_from).hexdigest()[:16]}.so"
    if target.exists():
        return target
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None:
        raise OSError("no C compiler found")
    folder.mkdir(parents=True, exist_ok=True)
    # built under a name of its own and renamed, so that jobs that start together never load half a library
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = Path(scratch) / target.name
        for more in dict.fromkeys((tuple(wished), ())):
            command = [compiler, *flags, *more, str(source), "-o", str(made)]
            run = subprocess.run(command, capture_output=True, text=True, timeout=120)
            if run.returncode == 0:
                os.replace(made, target)
                return target
    raise OSError(f"{compiler}: {run.stderr.strip() or 'failed'}")
