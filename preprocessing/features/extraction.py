"""Extract features with all encoders in one decode pass: one matrix (N, P) per bag and encoder.

Threads decode the bags ahead of the encoders. Bags are split into lanes of consecutive tiles; a fixed number of lanes
is open at a time, each an iterator over one slide with one block that is being decoded or waits, so the queue is
bounded. Blocks are taken lane by lane in turn. Which tiles share a batch therefore depends on the list of bags alone,
not on timing or the number of threads, and a rerun gives the same bytes. A lane that fails ends its bag; the others
continue.

Batches have a fixed size and may span bags. The last one is padded with zeros, so that every tile runs through the same
kernels whatever the number of tiles, threads or bags. On a GPU a batch is collected after the next one has been sent.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from preprocessing.common.cli import Abort
from preprocessing.features.encoder_model import LoadedEncoder
from preprocessing.features.transforms import Resize, resized

if TYPE_CHECKING:
    from torch import Tensor

Features = npt.NDArray[np.float32]
Tile = npt.NDArray[Any]
OpenTiles = Callable[[int, int], Iterator[Tile]]
BLOCK_TILES = 8
# Long enough for the reader's locality, short enough that a large bag fills several lanes.
LANE_TILES = 256
# A fixed number, not a multiple of the threads: the order of the tiles must not depend on the machine.
LANES = 32
SECONDS_BETWEEN_LINES = 5.0

log = logging.getLogger(__name__)


@dataclass
class BagPlan:
    """A bag whose features are to be extracted.

    Attributes:
        bag_id: name.
        n: number of tiles, at least 1.
        open: iterates over the tiles start..stop, (H, W, 3) uint8 or float32 in [0, 1].
        encoders: names of the encoders whose features are missing.
    """

    bag_id: str
    n: int
    open: OpenTiles
    encoders: frozenset[str]
    features: dict[str, Features] = field(default_factory=dict)
    collected: int = 0
    error: Exception | None = None


@dataclass
class _Lane:
    """Tiles `start` to `stop` of a bag, those that are not decoded yet."""

    plan: BagPlan
    start: int
    stop: int
    tiles: Iterator[Tile] | None = None

    def decode(self, resize: Resize | None) -> Tile:
        """Return the next block (b, H, W, 3), resized if there is a resize; one call at a time per lane."""
        if self.tiles is None:
            self.tiles = self.plan.open(self.start, self.stop)
        count = min(BLOCK_TILES, self.stop - self.start)
        block = [tile if resize is None else _resized_tile(tile, resize) for tile in islice(self.tiles, count)]
        if len(block) < count:
            raise ValueError(
                f"bag {self.plan.bag_id}: its images end after {self.start + len(block)} of {self.plan.n} tiles; "
                "run the instances stage again"
            )
        return np.stack(block)

    def close(self) -> None:
        """Close the iterator, which closes its slide."""
        if isinstance(self.tiles, Generator):
            self.tiles.close()


def _resized_tile(tile: Tile, resize: Resize) -> Tile:
    """Resize one tile (H, W, 3)."""
    import torch

    return resized(torch.from_numpy(tile)[None], resize)[0].permute(1, 2, 0).numpy()


def decoded(
    plans: Sequence[BagPlan], workers: int, resize: Resize | None = None
) -> Generator[tuple[BagPlan, int, Tile]]:
    """Yield the blocks of all bags in turn: bag, position of the first tile, tiles (b, H, W, 3).

    A bag that cannot be read gets its `error` and no further blocks.

    Args:
        plans: the bags, in order.
        workers: number of decoding threads, at least 1.
        resize: applied to every tile by the thread that decoded it.

    Raises:
        Abort: no thread can be started.
    """
    pending, open_lanes = deque(_lanes(plans)), deque[tuple[_Lane, Future[Tile]]]()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")

    def submit(lane: _Lane) -> None:
        try:
            open_lanes.append((lane, pool.submit(lane.decode, resize)))
        except RuntimeError as error:
            # a limit of the machine, not an error of one bag
            raise Abort(f"no decoding thread can be started ({error}); lower features.workers") from error

    try:
        while pending or open_lanes:
            while pending and len(open_lanes) < LANES:
                lane = pending.popleft()
                if lane.plan.error is None:
                    submit(lane)
            if not open_lanes:
                return
            lane, future = open_lanes.popleft()
            plan, start, error = lane.plan, lane.start, future.exception()
            if isinstance(error, Exception) and not isinstance(error, MemoryError):
                # Other lanes of the bag may fail too; the first error is the reason that is recorded.
                plan.error = plan.error or error
            else:
                tiles = future.result()  # raises what is no fault of the bag
            if plan.error is not None:
                lane.close()
                continue
            lane.start += len(tiles)
            if lane.start < lane.stop:
                submit(lane)
            else:
                lane.close()
            yield plan, start, tiles
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for lane, _ in open_lanes:
            lane.close()


def _lanes(plans: Sequence[BagPlan]) -> Iterator[_Lane]:
    for plan in plans:
        length = max(LANE_TILES, -(-plan.n // LANES))
        for start in range(0, plan.n, length):
            yield _Lane(plan, start, min(start + length, plan.n))


class Extraction:
    """Run encoders over bags; `result(bag_id)` advances the pass until that bag is done.

    On a CPU torch is limited to `workers` threads, because jobs run side by side, each on its share of the cores.

    Args:
        plans: the bags, in the order in which their results are asked for.
        encoders: by name.
        batch_size: tiles per batch.
        workers: number of decoding threads.
    """

    def __init__(
        self, plans: Sequence[BagPlan], encoders: Mapping[str, LoadedEncoder], batch_size: int, workers: int
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch size {batch_size}, expected at least 1")
        self._plans = {plan.bag_id: plan for plan in plans}
        self._encoders, self._batch_size = encoders, batch_size
        resizes = {encoder.resize for encoder in encoders.values()}
        self._on_cpu = all(encoder.device.type == "cpu" for encoder in encoders.values())
        self._workers = max(1, workers)
        # A tile is resized by the thread that decoded it, while it is in the cache, if all encoders need the same.
        self._early = resizes.pop() if self._on_cpu and len(resizes) == 1 else None
        self._blocks = decoded(plans, self._workers, self._early)
        self._batch: Tile | None = None
        # Rows of the batch, in order: bag, first row in the bag, number of rows.
        self._parts: list[tuple[BagPlan, int, int]] = []
        self._filled = 0
        self._sent: deque[tuple[list[tuple[BagPlan, int, int]], dict[str, Tensor]]] = deque()
        self._bar = _progress(sum(plan.n for plan in plans))

    def __enter__(self) -> Self:
        import torch

        self._threads_before = torch.get_num_threads()
        if self._on_cpu:
            torch.set_num_threads(self._workers)
        return self

    def __exit__(self, *_: object) -> None:
        import torch

        torch.set_num_threads(self._threads_before)
        self._blocks.close()
        self._bar.close()

    def result(self, bag_id: str) -> dict[str, Features]:
        """Return the missing features of a bag, (N, P) float32 per encoder, once; or raise what its images raised."""
        plan = self._plans[bag_id]
        while plan.error is None and plan.collected < plan.n:
            block = next(self._blocks, None)
            if block is not None:
                self._add(*block)
            elif self._filled or self._sent:
                self._send()
                self._collect(keep=0)
            elif plan.error is None:
                raise RuntimeError(f"bag {bag_id}: the pass ended after {plan.collected} of {plan.n} tiles")
        features, plan.features = plan.features, {}
        if plan.error is not None:
            raise plan.error
        return features

    def _add(self, plan: BagPlan, start: int, tiles: Tile) -> None:
        """Append tiles (b, H, W, 3) to the batch; tiles of another size or type start a new one."""
        shape = (self._batch_size, *tiles.shape[1:])
        if self._batch is None or self._batch.shape != shape or self._batch.dtype != tiles.dtype:
            self._send()
            self._batch = np.empty(shape, tiles.dtype)
        while len(tiles):
            count = min(self._batch_size - self._filled, len(tiles))
            self._batch[self._filled : self._filled + count] = tiles[:count]
            self._parts.append((plan, start, count))
            self._filled += count
            start, tiles = start + count, tiles[count:]
            if self._filled == self._batch_size:
                self._send()

    def _send(self) -> None:
        """Run the encoders on the batch, whose memory is free for the next one afterwards."""
        if self._batch is None or not self._filled:
            return
        # A full batch runs through the same kernels as the others, so the bytes do not depend on where it ends.
        self._batch[self._filled :] = 0
        needed = {name for plan, *_ in self._parts for name in plan.encoders if plan.error is None}
        self._sent.append((self._parts, self._forward(self._batch, sorted(needed))))
        self._parts, self._filled = [], 0
        self._collect(keep=1)

    def _forward(self, batch: Tile, names: Sequence[str]) -> dict[str, Tensor]:
        """Compute the features (B, P) of one batch (B, H, W, 3) on the device, per encoder."""
        import torch

        out: dict[str, Tensor] = {}
        shared: dict[Resize, Tensor] = {}
        with self._device_errors(), torch.inference_mode():
            host = torch.from_numpy(batch)
            for name in names:
                encoder = self._encoders[name]
                resize = encoder.resize if self._early is None else Resize()
                if resize not in shared:
                    on_gpu = encoder.device.type == "cuda"
                    pinned = host.pin_memory() if on_gpu else host  # a copy: the batch's memory is filled again
                    shared[resize] = resized(pinned.to(encoder.device, non_blocking=on_gpu), resize)
                out[name] = encoder.forward(shared[resize])
        return out

    def _collect(self, keep: int) -> None:
        """Copy finished batches, all but the last `keep`, into the matrices of their bags."""
        while len(self._sent) > keep:
            parts, outputs = self._sent.popleft()
            with self._device_errors():
                host = {name: out.cpu().numpy() for name, out in outputs.items()}
            row = 0
            for plan, start, count in parts:
                for name in plan.encoders if plan.error is None else ():
                    if name not in plan.features:
                        plan.features[name] = np.empty((plan.n, host[name].shape[1]), np.float32)
                    plan.features[name][start : start + count] = host[name][row : row + count]
                row += count
                plan.collected += count
                self._bar.update(count)

    @contextlib.contextmanager
    def _device_errors(self) -> Iterator[None]:
        """Turn errors of the device or of an encoder into a MemoryError or Abort, which end the job."""
        import torch

        try:
            yield
        except torch.OutOfMemoryError as error:
            raise MemoryError(
                f"a batch of {self._batch_size} tiles does not fit the device: lower features.batch_size"
            ) from error
        except (RuntimeError, ValueError) as error:
            raise Abort(f"the encoders failed on a batch of {self._batch_size} tiles: {error}") from error


def _progress(total: int) -> Any:
    """Return a bar on a terminal; a log gets a line at most every few seconds."""
    from tqdm import tqdm

    if sys.stderr.isatty():
        return tqdm(total=total, unit="tile", smoothing=0.05)
    line = "{n_fmt}/{total_fmt} tiles, {rate_noinv_fmt}, left {remaining}"
    return tqdm(total=total, file=_LogLines(), mininterval=SECONDS_BETWEEN_LINES, bar_format=line, unit=" tiles")


class _LogLines(io.StringIO):
    """A stream whose lines go to the log; tqdm starts its first one before there is a rate."""

    def write(self, text: str) -> int:
        line = text.strip()
        if line and "?" not in line:
            log.info("%s", line)
        return len(text)
