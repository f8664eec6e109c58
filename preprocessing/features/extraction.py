"""Extract features with all encoders in one decode pass: one matrix (N, P) per bag and encoder.

Batches have a fixed size and may span bags. The last one is padded with zeros, so that every tile runs through the same
kernels whatever the number of tiles, threads or bags. Tiles are copied to the device once. Encoders with the same
resize share its result; on a CPU the decoding threads compute it if all encoders need the same square. On a GPU a batch
is collected after the next one has been sent.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from preprocessing.common.cli import Abort
from preprocessing.features.encoder_model import LoadedEncoder
from preprocessing.features.prefetch import Block, OpenTiles, Prefetcher, segments
from preprocessing.features.transforms import resized, tile_resize

if TYPE_CHECKING:
    from torch import Tensor

Features = npt.NDArray[np.float32]
# rows of a batch that belong to one bag: (bag, first row in the batch, first row in the bag, number of rows)
Part = tuple["BagPlan", int, int, int]
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
    error: BaseException | None = None


class Extraction:
    """Run encoders over bags; `result(bag_id)` advances the pass until that bag is done."""

    def __init__(
        self, plans: Sequence[BagPlan], encoders: Mapping[str, LoadedEncoder], batch_size: int, workers: int
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch size {batch_size}, expected at least 1")
        self._plans = {plan.bag_id: plan for plan in plans}
        self._encoders = dict(encoders)
        self._batch_size = batch_size
        todo = [segment for plan in plans for segment in segments(plan.bag_id, plan.n, plan.open)]
        on_cpu = all(encoder.device.type == "cpu" for encoder in self._encoders.values())
        early = tile_resize(encoder.resize for encoder in self._encoders.values()) if on_cpu else None
        self._prefetcher = Prefetcher(todo, workers, early)
        self._blocks = iter(self._prefetcher)
        self._buffer: npt.NDArray[Any] | None = None
        self._spare: npt.NDArray[Any] | None = None
        self._parts: list[Part] = []
        self._filled = 0
        self._sent: deque[tuple[list[Part], dict[str, Tensor]]] = deque()
        self._bar = _progress(sum(plan.n for plan in plans))

    def __enter__(self) -> Extraction:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._prefetcher.__exit__(kind, error, trace)
        self._bar.close()

    def result(self, bag_id: str) -> dict[str, Features]:
        """Return the missing features of a bag, (N, P) float32 per encoder; only once per bag.

        Raises:
            Exception: the error of reading its images.
        """
        plan = self._plans[bag_id]
        while plan.error is None and plan.collected < plan.n:
            block = next(self._blocks, None)
            if block is not None:
                self._add(block)
            elif self._filled or self._sent:
                self._send()
                self._collect(keep=0)
            else:
                raise RuntimeError(f"bag {bag_id}: the pass ended after {plan.collected} of {plan.n} tiles")
        features, plan.features = plan.features, {}
        if plan.error is not None:
            raise plan.error
        return features

    def _add(self, block: Block) -> None:
        plan = self._plans[block.bag_id]
        if block.tiles is None:
            plan.error, plan.features = block.error, {}
            self._prefetcher.drop(plan.bag_id)
            return
        taken = 0
        while taken < len(block.tiles):
            buffer = self._buffer_for(block.tiles)
            count = min(self._batch_size - self._filled, len(block.tiles) - taken)
            buffer[self._filled : self._filled + count] = block.tiles[taken : taken + count]
            self._parts.append((plan, self._filled, block.start + taken, count))
            self._filled += count
            taken += count
            if self._filled == self._batch_size:
                self._send()
        self._prefetcher.release(block.tiles)

    def _buffer_for(self, tiles: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the current batch; tiles of another size or type start a new one."""
        shape = (self._batch_size, *tiles.shape[1:])
        if self._buffer is not None and (self._buffer.shape != shape or self._buffer.dtype != tiles.dtype):
            self._send()
        if self._buffer is None:
            # reuse the last batch's memory: new pages for every batch cost as much as resizing it
            spare, self._spare = self._spare, None
            fits = spare is not None and spare.shape == shape and spare.dtype == tiles.dtype
            self._buffer = spare if spare is not None and fits else np.empty(shape, tiles.dtype)
        return self._buffer

    def _send(self) -> None:
        if self._buffer is None or not self._filled:
            return
        batch, parts = self._buffer, self._parts
        batch[self._filled :] = 0
        self._buffer, self._parts, self._filled = None, [], 0
        needed = {name for plan, *_ in parts for name in plan.encoders if plan.error is None}
        self._sent.append((parts, _forward(batch, {name: self._encoders[name] for name in sorted(needed)})))
        self._spare = batch
        self._collect(keep=1)

    def _collect(self, keep: int) -> None:
        """Copy finished batches, all but the last `keep`, into the matrices of their bags."""
        while len(self._sent) > keep:
            parts, outputs = self._sent.popleft()
            with _device_errors(self._batch_size):
                host = {name: out.cpu().numpy() for name, out in outputs.items()}
            for plan, row, start, count in parts:
                for name in plan.encoders if plan.error is None else ():
                    matrix = plan.features.get(name)
                    if matrix is None:
                        matrix = plan.features[name] = np.empty((plan.n, host[name].shape[1]), np.float32)
                    matrix[start : start + count] = host[name][row : row + count]
                plan.collected += count
                self._bar.update(count)


@contextlib.contextmanager
def _device_errors(size: int) -> Iterator[None]:
    """Turn errors of the device or of an encoder into errors that end the job.

    Raises:
        MemoryError: the device has too little memory for the batch.
        Abort: any other error of the encoders.
    """
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(f"a batch of {size} tiles does not fit the device: lower features.batch_size") from error
    except (RuntimeError, ValueError) as error:
        raise Abort(f"the encoders failed on a batch of {size} tiles: {error}") from error


def _forward(batch: npt.NDArray[Any], encoders: Mapping[str, LoadedEncoder]) -> dict[str, Tensor]:
    """Compute the features of one batch on the device, per encoder."""
    import torch

    out: dict[str, Tensor] = {}
    shared: dict[Any, Tensor] = {}
    with _device_errors(len(batch)), torch.inference_mode():
        host = torch.from_numpy(batch)
        for name, encoder in encoders.items():
            if encoder.resize not in shared:
                on_gpu = encoder.device.type == "cuda"
                pinned = host.pin_memory() if on_gpu else host  # a copy: the caller may reuse the batch's memory
                shared[encoder.resize] = resized(pinned.to(encoder.device, non_blocking=on_gpu), encoder.resize)
            out[name] = encoder.forward(shared[encoder.resize])
    return out


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
