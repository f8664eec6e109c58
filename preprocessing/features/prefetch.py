"""Decode tiles of many bags ahead of the device with a pool of threads, in a deterministic order.

Bags are split into segments of consecutive tiles. A fixed number of segments ("lanes") is open at a time, each an
iterator over one slide. Every lane has one block that is being decoded or waits, so the queue is bounded. Blocks are
yielded lane by lane in turn. Which tiles share a batch therefore depends on the list of bags alone, not on timing, and
a rerun gives the same bytes. A segment that fails yields its error in turn; the others continue. Tiles can be resized
in the thread that decoded them, while they are in the cache. Allocating memory for every tile would cost a tenth of
decoding it, so generators are sent memory for the next tile and blocks returned with `release` are reused.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessing.common.cli import Abort
from preprocessing.features.transforms import TileResize
from preprocessing.slides.tile_memory import tile_memory

Tile = npt.NDArray[Any]
OpenTiles = Callable[[int, int], Iterator[Tile]]

BLOCK_TILES = 8
SEGMENT_TILES = 256
# A fixed number, not a multiple of the threads: the order of the tiles must not depend on the machine.
LANES = 32


@dataclass(frozen=True)
class Segment:
    """Consecutive tiles of one bag; `open(start, stop)` iterates over them."""

    bag_id: str
    start: int
    stop: int
    open: OpenTiles


@dataclass(frozen=True)
class Block:
    """Tiles of a bag from position `start` on, (b, H, W, 3), or the error that ended the segment."""

    bag_id: str
    start: int
    tiles: Tile | None
    error: BaseException | None = None


def segments(bag_id: str, n: int, open_tiles: OpenTiles) -> list[Segment]:
    """Split a bag of n tiles: long enough for the reader's locality, short enough to fill the lanes."""
    length = max(SEGMENT_TILES, -(-n // LANES))
    return [Segment(bag_id, start, min(start + length, n), open_tiles) for start in range(0, n, length)]


class _Memory(threading.local):
    """A thread's memory for a tile before its resize; shared by all lanes, so that it stays in the cache."""

    tile: Tile | None = None


class _Lane:
    """An open segment: its iterator and the block that is being decoded."""

    def __init__(self, segment: Segment, resize: TileResize | None, spare: deque[Tile], memory: _Memory) -> None:
        self.segment = segment
        self.position = segment.start
        self._resize, self._spare, self._memory = resize, spare, memory
        self._tiles: Iterator[Tile] | None = None
        self._form: tuple[tuple[int, ...], np.dtype[Any]] | None = None

    def decode(self) -> Tile:
        """Decode the next block (b, H, W, 3); runs in a thread of the pool, one call at a time per lane."""
        length = min(BLOCK_TILES, self.segment.stop - self.position)
        block = None if self._form is None else self._block(length, *self._form)
        for row in range(length):
            place = None if block is None else block[row]
            tile = self._next(row, place if self._resize is None else self._memory.tile)
            form = tile.shape, tile.dtype
            if self._form is None:
                self._form = form
            if form != self._form:
                raise ValueError(f"bag {self.segment.bag_id}: a tile is {form}, those before {self._form}")
            if block is None:
                block = self._block(length, *form)
            self._place(tile, block[row] if place is None else place)
        assert block is not None
        return block

    def _next(self, row: int, memory: Tile | None) -> Tile:
        """Return the next tile, which may be in `memory`."""
        try:
            if self._tiles is None:
                self._tiles = self.segment.open(self.segment.start, self.segment.stop)
                return next(self._tiles)
            # generators that do not reuse memory ignore it
            return self._tiles.send(memory) if isinstance(self._tiles, Generator) else next(self._tiles)
        except StopIteration:
            raise ValueError(
                f"bag {self.segment.bag_id}: the images gave {self.position - self.segment.start + row} tiles, "
                f"the bag has {self.segment.stop - self.segment.start}; run the instances stage again"
            ) from None

    def _block(self, length: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tile:
        """Return memory for a block of tiles."""
        shape = (length, *(shape if self._resize is None else self._resize.shape(shape, dtype)))
        if length == BLOCK_TILES:
            with contextlib.suppress(IndexError):  # no spare block
                block = self._spare.pop()
                if block.shape == shape and block.dtype == dtype:
                    return block
        return tile_memory(shape) if dtype == np.uint8 else np.empty(shape, dtype)

    def _place(self, tile: Tile, place: Tile) -> None:
        if self._resize is not None:
            self._resize(tile, place)
            if self._memory.tile is None or self._memory.tile.shape != tile.shape:
                self._memory.tile = tile_memory(tile.shape) if tile.dtype == np.uint8 else np.empty_like(tile)
        elif tile is not place:
            place[...] = tile

    def close(self) -> None:
        """Close the iterator, which closes its slide."""
        close = getattr(self._tiles, "close", None)
        if close is not None:
            close()


class Prefetcher:
    """Iterate over the blocks of all segments; a context manager that ends its threads.

    Args:
        pending: the segments, in order.
        workers: number of decoding threads.
        resize: applied to every tile by the thread that decoded it.
    """

    def __init__(self, pending: Sequence[Segment], workers: int, resize: TileResize | None = None) -> None:
        self._pending = deque(pending)
        self._resize, self._spare, self._memory = resize, deque[Tile](maxlen=LANES), _Memory()
        self._pool = ThreadPoolExecutor(max(1, workers), thread_name_prefix="decode")
        self._lanes: deque[tuple[_Lane, Future[Tile]]] = deque()
        self._dropped: set[str] = set()

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        for lane, _ in self._lanes:
            lane.close()

    def drop(self, bag_id: str) -> None:
        """Stop decoding a bag that has failed and discard its pending blocks."""
        self._dropped.add(bag_id)

    def release(self, tiles: Tile) -> None:
        """Return the memory of a block (b, H, W, 3) that is no longer used, for another block."""
        if len(tiles) == BLOCK_TILES:
            self._spare.append(tiles)

    def __iter__(self) -> Iterator[Block]:
        self._fill()
        while self._lanes:
            lane, future = self._lanes.popleft()
            error, bag = future.exception(), lane.segment.bag_id
            if error is not None and (isinstance(error, MemoryError) or not isinstance(error, Exception)):
                raise error
            tiles = None if error is not None else future.result()
            start = lane.position
            lane.position += 0 if tiles is None else len(tiles)
            if tiles is None or lane.position == lane.segment.stop or bag in self._dropped:
                lane.close()
            else:
                self._lanes.append((lane, self._submit(lane)))
            self._fill()
            if bag not in self._dropped:
                yield Block(bag, start, tiles, error)

    def _fill(self) -> None:
        while self._pending and len(self._lanes) < LANES:
            segment = self._pending.popleft()
            if segment.bag_id not in self._dropped:
                lane = _Lane(segment, self._resize, self._spare, self._memory)
                self._lanes.append((lane, self._submit(lane)))

    def _submit(self, lane: _Lane) -> Future[Tile]:
        try:
            return self._pool.submit(lane.decode)
        except RuntimeError as error:
            # a limit of the machine, not an error of one bag
            raise Abort(f"no decoding thread can be started ({error}); lower features.workers") from error
