"""Download raw data into a folder: `python -m preprocessing.raw DATASET --out DIR`.

The registry `datasets/raw.csv` lists the source of each dataset. Open data (CAMELYON16) is downloaded file by file and
verified against the provider's list of MD5 sums; an interrupted run resumes. For data behind a registration (Kaggle)
the command fetches the published split, prints what to download by hand, and checks the folder. It needs a network, so
it never runs inside a compute job.
"""

import argparse
import csv
import logging
import re
import sys
import urllib.parse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from preprocessing.common.cli import guard
from preprocessing.common.download import TRANSIENT, Record, fetch, file_hash, join, open_url
from preprocessing.common.download import download as download_file

log = logging.getLogger("preprocessing.raw")

REGISTRY = Path(__file__).parent / "datasets" / "raw.csv"
INCLUDE = ("images/", "annotations/", "evaluation/")
_SUM = re.compile(r"([0-9a-fA-F]{32})\s+\*?(\S.*)")


@dataclass(frozen=True)
class Source:
    """One line of the registry; the fields are its columns."""

    dataset: str
    version: str
    source: str
    url: str
    licence: str
    checksums: str
    access: str
    contents: str
    split_url: str
    split_sha256: str
    split_source: str


def registry() -> dict[str, Source]:
    """Read `datasets/raw.csv`: dataset -> source."""
    with REGISTRY.open(encoding="utf-8", newline="") as stream:
        return {row["dataset"]: Source(**row) for row in csv.DictReader(stream)}


def parse_checksums(text: str, *, source: str) -> dict[str, str]:
    """Parse a list as `md5sum` writes it: relative path -> MD5 in lower case; messages call it `source`.

    A leading "./" or "CAMELYON16/" of a path is dropped.

    Raises:
        ValueError: a line of another form, or a path that leaves the folder.
    """
    sums: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        match = _SUM.fullmatch(line.strip())
        if match is None:
            raise ValueError(f"{source}, line {number}: found {line[:60]!r}, expected an MD5 sum and a path")
        path = match[2].removeprefix("./").removeprefix("CAMELYON16/")
        if path.startswith("/") or ".." in path.split("/") or "\\" in path:
            raise ValueError(f"{source}, line {number}: the path {path!r} leads out of the folder")
        sums[path] = match[1].lower()
    return sums


def check_url(url: str) -> str:
    """Return a URL with a trailing slash; raise unless it is https, file, or http on this machine."""
    parts = urllib.parse.urlsplit(url)
    loopback = parts.hostname in ("127.0.0.1", "localhost", "::1")
    if parts.scheme not in ("https", "file") and not (parts.scheme == "http" and loopback):
        raise ValueError(f"--url: found {url!r}, expected https:// or file://")
    return url if url.endswith("/") else url + "/"


def download(source: Source, folder: Path, base: str, include: Sequence[str], workers: int) -> int:
    """Download and verify the files of an open dataset whose paths begin as `include` says, or at the top level.

    `base` is the URL of the folder with the list of sums, `workers` the number of simultaneous downloads.

    Returns:
        0, or 1 if a file could not be downloaded.

    Raises:
        ValueError: the list of sums cannot be read, or names no selected file.
    """
    from tqdm import tqdm

    url = join(base, source.checksums)
    try:
        with open_url(url) as response:
            text = response.read().decode("utf-8")
    except (*TRANSIENT, UnicodeDecodeError) as error:
        raise ValueError(f"{url}: the list of checksums cannot be read ({error}); check the network or --url") from None
    sums = parse_checksums(text, source=url)
    selected = {n: s for n, s in sorted(sums.items()) if "/" not in n or n.startswith(tuple(include))}
    if not any("/" in name for name in selected):
        raise ValueError(f"{url}: no file below {', '.join(include)} among {len(sums)}; check --include")
    folder.mkdir(parents=True, exist_ok=True)
    record = Record(folder)
    log.info("%s: %d files from %s, licence %s", source.dataset, len(selected), base, source.licence)
    failed: dict[str, str] = {}
    total, hidden = len(selected), not sys.stderr.isatty()
    with ThreadPoolExecutor(workers) as pool, tqdm(total=total, unit="file", disable=hidden) as bar:
        results = pool.map(lambda item: fetch(base, item[0], item[1], folder, record), selected.items())
        for number, (name, reason) in enumerate(zip(selected, results, strict=True), start=1):
            bar.update()
            if hidden:
                log.info("%d/%d %s %s", number, total, name, "FAILED" if reason else "ok")
            if reason:
                failed[name] = reason
    for name, reason in failed.items():
        log.error("%s: %s", name, reason)
    log.info("%d of %d files are there and verified", total - len(failed), total)
    return 1 if failed else 0


def fetch_split(source: Source, folder: Path, base: str | None = None) -> bool:
    """Download the published split of a dataset, from another folder than the published one if `base` is its URL.

    Its SHA-256 is verified, and the outcome printed. Another file of the same name is left alone.

    Returns:
        Whether the published file is there.
    """
    name = source.split_url.rpartition("/")[2]
    path, what = folder / name, f"  {name}, {source.split_source}:"
    if not path.is_file():
        url = source.split_url if base is None else join(base, name)
        try:
            download_file(url, path, source.split_sha256, "sha256")
        except ValueError as error:
            print(f"{what} NOT FETCHED from {url} ({error}); download it by hand into {folder}")
            return False
    elif (sha256 := file_hash(path, "sha256")) != source.split_sha256:
        print(
            f"{what} found another file (SHA-256 {sha256[:12]}..., expected {source.split_sha256[:12]}...) in {folder};"
            " move it away to fetch the published one"
        )
        return False
    print(f"{what} verified")
    return True


def by_hand(source: Source, folder: Path, base: str | None = None) -> int:
    """Fetch the published split; print what to download by hand and what is already there.

    Returns:
        0 if a complete copy is there, otherwise 1.
    """
    from preprocessing.datasets import MissingRaw, get_dataset
    from preprocessing.datasets.base import list_files

    dataset = get_dataset(source.dataset)
    print(f"{dataset.title}: {source.source}\n  version: {source.version}\n  licence: {source.licence}")
    complete = fetch_split(source, folder, base)
    print(f"  1. accept the rules at {source.url}\n  2. download the whole archive and unpack it into {folder}")
    print("  3. what belongs there:")
    print("\n".join(f"       {line}" for line in dataset.layout.strip().splitlines()))
    print(f"     {dataset.source}")
    print(f"  now, in {folder}:")
    for item in source.contents.split():
        name, number = item.split("=")
        n_files = len(list_files(folder / name, ("",)))
        print(f"     {name}: {n_files} files, about {number} in a complete copy")
        complete &= n_files >= 0.99 * int(number)
    try:
        dataset.count(folder, {})
    except MissingRaw as error:
        print(f"     {str(error).splitlines()[0]}")
        return 1
    return 0 if complete else 1


@guard
def main(argv: Sequence[str] | None = None) -> int:
    """Download one dataset; see the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m preprocessing.raw", description="Download raw data into a folder.")
    parser.add_argument("dataset", choices=sorted(registry()), help="which dataset")
    parser.add_argument("--out", required=True, type=Path, help="folder it goes into (the dataset's root)")
    parser.add_argument(
        "--url", help="another copy of the same folder, or of the published split's (https:// or file://)"
    )
    parser.add_argument("--include", nargs="+", default=list(INCLUDE), help="path prefixes to download")
    parser.add_argument("--workers", type=int, default=4, help="simultaneous downloads (default 4)")
    args = parser.parse_args(argv)
    source = registry()[args.dataset]
    if args.workers < 1:
        raise ValueError(f"--workers: found {args.workers}, expected at least 1")
    if source.access != "download":
        return by_hand(source, args.out, check_url(args.url) if args.url else None)
    return download(source, args.out, check_url(args.url or source.url), args.include, args.workers)


if __name__ == "__main__":
    raise SystemExit(main())
