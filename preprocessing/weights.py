"""Download encoder weights, or copy them from an installed package, and verify their SHA-256; nothing is fetched again.

`python -m preprocessing.weights --encoder resnet18 --out weights` writes `weights/resnet18.pth` and its hash
(`resnet18.pth.sha256`). Published hashes are checked; where none is published, the hash of the first download is
recorded and every later use is checked against it. Files copied by hand from another machine are verified and kept.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from preprocessing.common.cli import guard
from preprocessing.common.download import download, file_hash
from preprocessing.common.files import write_text
from preprocessing.features.encoders import (
    PACKAGE,
    Encoder,
    check_weights,
    get_encoder,
    packaged_weights,
    recorded_hash,
)

log = logging.getLogger(__name__)


def fetch_weights(name: str, out: Path | str, *, url: str = "") -> Path:
    """Download the weights of an encoder into the folder `out` unless they are there and verified; return the file.

    Another source of the same file, `url`, has to have the same hash.

    Raises:
        ValueError: a failed download or a wrong hash; a file with a wrong hash never gets the name.
    """
    encoder = get_encoder(name)
    path = encoder.file(out)
    recorded = recorded_hash(path)
    is_there = path.is_file()
    digest = file_hash(path, "sha256") if is_there else _download(encoder, url or _source(encoder), path, recorded)
    check_weights(encoder, path, digest, recorded)
    log.info("%s: %s is verified (%s)", name, path, digest)
    if not recorded:
        if not encoder.sha256:
            log.warning("%s: no published hash; %s is recorded and checked from now on", name, digest)
        write_text(path.with_name(path.name + ".sha256"), f"{digest}  {path.name}\n")
    return path


def _source(encoder: Encoder) -> str:
    if packaged := packaged_weights(encoder):
        return packaged.as_uri()
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


def _download(encoder: Encoder, source: str, path: Path, recorded: str) -> str:
    """Return the SHA-256 of the downloaded file."""
    try:
        return download(source, path, recorded or encoder.sha256, "sha256", progress=True)
    except ValueError as error:
        origin = " (recorded at the first download)" if recorded else ""
        again = "Run `snakemake weights --cores 1` on a machine with network"
        if encoder.url.startswith(PACKAGE):
            again = f"Install {encoder.url.removeprefix(PACKAGE).partition('/')[0]} again"
        raise ValueError(
            f"weights of encoder {encoder.name}: download of {source} failed: {error}{origin}. {again}, or copy the "
            f"file to {path} by hand"
        ) from error


@guard
def main(argv: Sequence[str] | None = None) -> int:
    """Fetch the weights named; see the top of this file."""
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


if __name__ == "__main__":
    raise SystemExit(main())
