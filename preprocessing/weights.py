"""Fetches encoder weights: download to a temporary name, verify SHA-256, rename; offline ever after.

`python -m preprocessing.weights --encoder resnet18 --out weights` leaves `weights/resnet18.pth` and its hash beside it
(`resnet18.pth.sha256`). Published hashes are checked; where none is published, the hash of the first download is
recorded and every later use is checked against it. A file that is there and verifies is not fetched again, so files
copied by hand from another machine do as well.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import logging
import os
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from preprocessing.cli import guard, write_text
from preprocessing.encoders import Encoder, check_weights, get_encoder, recorded_hash

log = logging.getLogger(__name__)

_BLOCK = 1 << 20
_TIMEOUT_S = 60.0


def fetch_weights(name: str, out: Path | str, *, url: str = "") -> Path:
    """Makes sure the weights of an encoder are in a folder, verified.

    Args:
        name: encoder, see `preprocessing.encoders`.
        out: folder of the weight files.
        url: another source of the same file (a mirror, or file://...); the hash has to be the same.

    Returns:
        The weight file.

    Raises:
        ValueError: no network and no file, a failed download, or a wrong hash (nothing is left under the name then).
    """
    encoder = get_encoder(name)
    path = encoder.file(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    source = ""
    if path.is_file():
        with open(path, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        check_weights(encoder, path, digest, recorded_hash(path))
        log.info("%s: %s is there and verified", name, path)
    else:
        source = url or _source(encoder)
        digest = _download(encoder, source, path)
        log.info("%s: %s fetched and verified (%s)", name, path, digest)
    if not recorded_hash(path):
        if not encoder.sha256:
            log.warning("%s: no published hash; %s is recorded and checked from now on", name, digest)
        write_text(path.with_name(path.name + ".sha256"), f"{digest}  {path.name}\n")
    return path


def _source(encoder: Encoder) -> str:
    if encoder.url:
        return encoder.url
    import timm

    model = encoder.name.removeprefix("timm/")
    settings = timm.get_pretrained_cfg(model) if timm.is_model(model.split(".")[0]) else None
    hub = getattr(settings, "hf_hub_id", None)
    if not hub:
        raise ValueError(f"encoder {encoder.name}: timm publishes no weights for {model!r}; give --url")
    repository = f"{hub}{model}" if hub.endswith("/") else hub
    return f"https://huggingface.co/{repository}/resolve/main/model.safetensors"


def _download(encoder: Encoder, source: str, path: Path) -> str:
    """Downloads to a temporary name, verifies, renames; returns the hash."""
    digest = hashlib.sha256()
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as target, _opened(encoder, source) as response:
            total = int(response.headers.get("Content-Length") or 0)
            received = 0
            with _progress(path.name, total) as bar:
                while block := response.read(_BLOCK):
                    digest.update(block)
                    received += target.write(block)
                    bar.update(len(block))
            if total and received != total:
                raise ValueError(f"{source}: {received} of {total} bytes came; run the target again")
            target.flush()
            os.fsync(target.fileno())
        check_weights(encoder, path, digest.hexdigest(), recorded_hash(path))
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise ValueError(f"{source}: download failed ({error}); run the target again") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    return digest.hexdigest()


def _opened(encoder: Encoder, source: str) -> Any:
    try:
        return urllib.request.urlopen(source, timeout=_TIMEOUT_S)
    except (urllib.error.URLError, TimeoutError) as error:
        raise ValueError(
            f"weights of encoder {encoder.name}: cannot reach {source} ({error}). Run `snakemake weights --cores 1` on "
            f"a machine with network, or copy the file to {encoder.file('WEIGHTS')} by hand"
        ) from error


def _progress(name: str, total: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=total or None, desc=name, unit="B", unit_scale=True, disable=not sys.stderr.isatty() or None)


def _main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m preprocessing.weights", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--encoder", required=True, help="encoder, or several separated by commas")
    parser.add_argument("--out", required=True, type=Path, help="folder of the weight files")
    parser.add_argument("--url", default="", help="another source of the same file (one encoder only)")
    args = parser.parse_args(argv)
    names = [name for name in args.encoder.split(",") if name]
    if args.url and len(names) != 1:
        raise ValueError(f"--url goes with one encoder, found {names}")
    for name in names:
        fetch_weights(name, args.out, url=args.url)
    return 0


main = guard(_main)

if __name__ == "__main__":
    raise SystemExit(main())
