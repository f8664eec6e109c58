"""Feature extraction: one pass for four encoders against four passes, the split of time, idle time, 16-bit error.

In: nothing (slides and seeded random weights are made), `--slide PATH` for the tiles, `--device cuda` for a GPU. Out: a
table, or with `--json` a list of {name, ours, peer, ratio, target, unit}. Everything runs through the code of the
features stage (`preprocessing.extraction` with its decoding threads); its steps are timed from outside.
- pass: time per tile for all encoders (CPU time; on a GPU the wall clock), ours in one pass, the peer's in one pass per
  encoder; equal features. The row `decoded` counts tiles decoded per tile of the slide: what is paid once.
- split: milliseconds of CPU time per tile of opening and decoding, of resizing, of normalising, of each network.
- idle: share of the wall clock between the second and the last batch in which the device had nothing to do, percent.
  Meaningful on a machine that does nothing else: on a CPU the decoding threads and the network share the cores.
- rate: tiles per second of each encoder with decoded tiles in memory, and with decoding.
- error: smallest cosine of bf16 features and of float16 storage to float32, as millionths of 1 - cosine; at most 1000.
"""

import argparse
import logging
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

from bench.timing import Row, add_arguments, as_line, scale_of, show
from bench.trials import Different
from preprocessing.cli import guard, setup_logging

if TYPE_CHECKING:
    from preprocessing.encoder_model import LoadedEncoder

log = logging.getLogger(__name__)
ENCODERS = ("resnet18", "resnet50", "vit_b_32", "resnet50_bt")
GROUPS = ("pass", "split", "idle", "rate", "error")
TILES, BATCH, IDLE_PERCENT, COSINE = 256, 32, 5.0, 1000.0
ROUNDS = 5
Features = dict[str, npt.NDArray[np.float32]]


class Source:
    """Tiles of a slide as the features stage opens them; counts what is decoded."""

    def __init__(self, path: Path, n: int) -> None:
        from bench.slide_files import attributes, lattice
        from preprocessing.slide import open_slide

        with open_slide(path, require_mpp=False) as slide:
            self.coords = lattice(slide.dimensions, most=n)
        self.path, self.attrs, self.decoded = path, attributes(), 0

    def tiles(self, start: int, stop: int) -> Iterator[npt.NDArray[np.uint8]]:
        """The tiles start..stop."""
        from preprocessing.tile_reader import iter_tiles

        for tile in iter_tiles(self.path, self.attrs, self.coords[start:stop]):
            self.decoded += 1
            yield tile


def extract(source: Source, encoders: "dict[str, LoadedEncoder]", workers: int) -> Features:
    """One pass of the features stage."""
    from preprocessing.extraction import BagPlan, Extraction

    plan = BagPlan("slide", len(source.coords), source.tiles, frozenset(encoders))
    # several batches also of few tiles: a steady state needs a second one
    with Extraction([plan], encoders, min(BATCH, max(1, plan.n // 4)), workers) as extraction:
        return extraction.result("slide")


def timed(work: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> tuple[float, Any]:
    """Seconds and result."""
    start = clock()
    result = work()
    return clock() - start, result


def pass_rows(source: Source, encoders: "dict[str, LoadedEncoder]", workers: int) -> list[Row]:
    """One pass against one pass per encoder; raises `Different` unless the features are equal."""
    n, source.decoded = len(source.coords), 0
    on_cpu = all(encoder.device.type == "cpu" for encoder in encoders.values())
    clock = time.process_time if on_cpu else time.perf_counter
    one, together = timed(lambda: extract(source, encoders, workers), clock)
    once, source.decoded = source.decoded / n, 0
    four, apart = timed(
        lambda: {name: extract(source, {name: encoder}, workers)[name] for name, encoder in encoders.items()}, clock
    )
    often = source.decoded / n
    for name in encoders:
        if not np.array_equal(together[name], apart[name]):
            raise Different(f"{name}: features of the common pass differ from those of its own pass")
    title = f"{len(encoders)} encoders in one pass, {n} tiles"
    return [
        Row(title, 1e3 * one / n, 1e3 * four / n, four / one, None, "ms per tile"),
        Row(f"{title}, decoded", once, often, often / once, float(len(encoders)), "times"),
    ]


def split_rows(source: Source, encoders: "dict[str, LoadedEncoder]") -> list[Row]:
    """Where the CPU time of a pass goes."""
    import torch

    from preprocessing.transforms import normalised

    n, any_encoder = min(len(source.coords), 2 * BATCH), next(iter(encoders.values()))
    held = np.stack(list(source.tiles(0, n)))
    batches = [torch.from_numpy(part) for part in np.split(held, range(BATCH, n, BATCH))]
    small = [_resized(b, any_encoder) for b in batches]
    entry = any_encoder.encoder
    work: dict[str, Callable[[], Any]] = {
        "open, decode": lambda: deque(source.tiles(0, n), maxlen=0),
        "resize": lambda: deque((_resized(b, any_encoder) for b in batches), maxlen=0),
        "normalise (each encoder)": lambda: deque((normalised(x, entry.mean, entry.std) for x in small), maxlen=0),
        **{name: partial(_forward_all, encoder, small) for name, encoder in encoders.items()},
    }
    # the self-check is in none of them: it is made once per file
    parts = {
        name: min(timed(step, time.process_time)[0] for _ in range(1 if name in encoders else ROUNDS))
        for name, step in work.items()
    }
    return [Row(f"split: {name}", 1e3 * s / n, None, None, None, "ms CPU per tile") for name, s in parts.items()]


def _resized(tiles: Any, encoder: "LoadedEncoder") -> Any:
    """A batch resized as a pass on this encoder's device does it."""
    import torch

    from preprocessing.transforms import resized, tile_resize

    early = tile_resize([encoder.resize]) if encoder.device.type == "cpu" else None
    if early is not None:
        small = np.empty((len(tiles), *early.shape(tuple(tiles.shape[1:]), np.dtype(np.uint8))), np.uint8)
        for tile, place in zip(tiles.numpy(), small, strict=True):
            early(tile, place)
        tiles = torch.from_numpy(small)
    return resized(tiles, encoder.resize)


def _forward_all(encoder: "LoadedEncoder", batches: list[Any]) -> None:
    for x in batches:
        encoder.forward(x.to(encoder.device)).cpu()


@contextmanager
def busy_times() -> Iterator[list[tuple[float, float]]]:
    """Start and end of the device's work on every batch while the block runs."""
    import torch

    from preprocessing import extraction

    spans: list[tuple[float, float]] = []
    forward = extraction._forward

    def watched(batch: Any, encoders: Any) -> Any:
        start = time.perf_counter()
        out = forward(batch, encoders)
        if any(encoder.device.type == "cuda" for encoder in encoders.values()):
            torch.cuda.synchronize()
        spans.append((start, time.perf_counter()))
        return out

    with patch.object(extraction, "_forward", watched):
        yield spans


def idle_rows(source: Source, encoders: "dict[str, LoadedEncoder]", workers: int) -> list[Row]:
    """Idle share of the device, by the first encoder alone (the least work per tile) and by all."""
    out = []
    first = next(iter(encoders))
    for title, some in ((first, {first: encoders[first]}), (f"{len(encoders)} encoders", encoders)):
        with busy_times() as spans:
            extract(source, some, workers)
        steady = spans[1:] if len(spans) > 2 else spans
        whole = steady[-1][1] - steady[0][0]
        idle = 100 * (1 - sum(end - start for start, end in steady) / whole)
        out.append(Row(f"device idle, {title}", idle, None, None, IDLE_PERCENT, "%"))
    return out


def rate_rows(source: Source, encoders: "dict[str, LoadedEncoder]", workers: int) -> list[Row]:
    """Tiles per second of each encoder on its device; the ratio is what decoding leaves of the bare rate."""
    import torch

    n = len(source.coords)
    held = torch.from_numpy(np.stack(list(source.tiles(0, min(n, BATCH)))))
    out = []
    for name, encoder in encoders.items():
        repeats = -(-n // len(held))
        bare = partial(_repeat, encoder, held.to(encoder.device), repeats)
        bare()
        without = repeats * len(held) / timed(bare)[0]
        rate = n / timed(partial(extract, source, {name: encoder}, workers))[0]
        out.append(Row(f"{name}, with decoding / decoded before", rate, without, None, None, "tiles/s"))
    return out


def _repeat(encoder: "LoadedEncoder", tiles: Any, times: int) -> None:
    for _ in range(times):
        result = encoder(tiles)
    result.cpu()


def error_rows(source: Source, encoders: "dict[str, LoadedEncoder]", device: str) -> list[Row]:
    """What bf16 networks and float16 storage cost, by the worst tile."""
    import torch

    from preprocessing.store import as_stored

    tiles = torch.from_numpy(np.stack(list(source.tiles(0, min(len(source.coords), BATCH)))))
    out = []
    for name, encoder in encoders.items():
        exact = encoder(tiles).cpu()
        stored = torch.from_numpy(as_stored(exact.numpy(), "float16").astype(np.float32))
        fast = load(name, device, "bf16")(tiles).cpu()
        for kind, found in (("bf16 network", fast), ("float16 storage", stored)):
            off = 1e6 * (1 - float(torch.cosine_similarity(exact.double(), found.double()).min()))
            out.append(Row(f"{name}, {kind}, 1 - cosine to float32", max(0.0, off), None, None, COSINE, "1e-6"))
    return out


def load(name: str, device: str, precision: str = "float32") -> "LoadedEncoder":
    """An encoder with seeded random weights: the arithmetic is that of trained ones."""
    from preprocessing.encoder_model import load_encoder

    return load_encoder(name, mode="random", device=device, precision=precision)


def rows(source: Source, arguments: argparse.Namespace, groups: Sequence[str]) -> list[Row]:
    """The chosen groups of rows."""
    encoders = {name: load(name, arguments.device, arguments.precision) for name in arguments.encoders.split(",")}
    workers = arguments.threads
    makers: dict[str, Callable[[], list[Row]]] = {
        "pass": lambda: pass_rows(source, encoders, workers),
        "split": lambda: split_rows(source, encoders),
        "idle": lambda: idle_rows(source, encoders, workers),
        "rate": lambda: rate_rows(source, encoders, workers),
        "error": lambda: error_rows(source, encoders, arguments.device),
    }
    out = []
    for group in groups:
        for row in makers[group]():
            log.info("%s: %s %s", group, row.name, as_line(row))
            out.append(row)
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Command line, see the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m bench.encoders", description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    parser.add_argument("--slide", type=Path, help="a slide to read, instead of a generated one")
    parser.add_argument("--encoders", default=",".join(ENCODERS), help="comma-separated (default: the paper's four)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--precision", default="float32", choices=("float32", "bf16"), help="of the networks")
    arguments = parser.parse_args(argv)
    setup_logging()
    groups = arguments.cases.split(",") if arguments.cases else list(GROUPS)
    if unknown := sorted(set(groups) - set(GROUPS)):
        raise ValueError(f"--cases: found {', '.join(unknown)}, expected some of {', '.join(GROUPS)}")
    n = max(4, round(TILES * scale_of(arguments)))
    import torch

    from bench.slide_files import TILE_PX, write_slide

    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory(prefix="bench-encoders-") as folder:
        side = TILE_PX * max(2, round(n**0.5))
        source = Source(arguments.slide or write_slide(Path(folder) / "slide.tif", side), n)
        show(rows(source, arguments, groups), as_json=arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(guard(main)())
