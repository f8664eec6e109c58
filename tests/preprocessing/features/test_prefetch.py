"""Memory of decoded tiles: filled again, never under somebody's hands, and resizing where they are decoded."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from preprocessing.features import pixel_kernel
from preprocessing.features.extraction import BagPlan, Extraction
from preprocessing.features.prefetch import Prefetcher, segments
from preprocessing.features.transforms import Resize, resized


class Watched:
    """An encoder that keeps what it gets."""

    device = torch.device("cpu")

    def __init__(self, resize: Resize) -> None:
        self.resize = resize
        self.seen: list[torch.Tensor] = []
        self.sizes: set[int] = set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x.clone())
        self.sizes.add(x.shape[-1])
        return x.float().mean(dim=(1, 2, 3))[:, None]


def test_memory_given_back_is_filled_again():
    """The next tile's memory is sent to the generator; a block nobody gave back is left alone."""
    sent: list[np.ndarray | None] = []

    def tiles(start: int, stop: int) -> Iterator[np.ndarray]:
        memory = None
        for index in range(start, stop):
            tile = memory if memory is not None and index % 3 else np.empty((2, 2, 3), np.uint8)
            tile[:] = index
            memory = yield tile
            sent.append(memory)

    kept, seen = [], set()
    with Prefetcher(segments("a", 203, tiles), 1) as prefetcher:
        for number, block in enumerate(prefetcher):
            expected = np.arange(block.start, block.start + len(block.tiles))
            assert (block.tiles == expected[:, None, None, None]).all()
            seen.add(block.tiles.ctypes.data)
            if number % 2:
                prefetcher.release(block.tiles)
            else:
                kept.append((block.tiles, expected))
    for block_tiles, expected in kept:
        assert (block_tiles == expected[:, None, None, None]).all()
    assert len(sent) >= 202 and all(memory is not None for memory in sent[:202])
    assert len(seen) < 26


def test_tiles_of_two_sizes_in_one_bag_are_refused():
    def tiles(start: int, stop: int) -> Iterator[np.ndarray]:
        for index in range(start, stop):
            yield np.zeros((2, 2 + (index == 11), 3), np.uint8)

    with Prefetcher(segments("a", 20, tiles), 2) as prefetcher:
        blocks = list(prefetcher)
    assert [block.error is None for block in blocks] == [True, False]
    assert "those before" in str(blocks[1].error)


@pytest.mark.parametrize("early", [True, False])
def test_where_tiles_are_resized_does_not_matter(monkeypatch, early):
    """Threads with the compiled loop, or torch on the batch: the encoder sees the same bytes."""
    if early and not pixel_kernel.can_resize():
        pytest.skip("no C compiler, or a processor without AVX2")
    monkeypatch.setattr(pixel_kernel, "can_resize", lambda: early)
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (19, 60, 60, 3), np.uint8)
    encoder = Watched(Resize(28))
    encoders: Any = {"e": encoder}
    plan = BagPlan("a", 19, lambda start, stop: iter(pictures[start:stop]), frozenset({"e"}))
    with Extraction([plan], encoders, 5, 2) as extraction:
        features = extraction.result("a")["e"]
    expected = resized(torch.from_numpy(pictures), Resize(28))
    assert torch.equal(torch.cat(encoder.seen)[:19], expected)
    np.testing.assert_array_equal(features[:, 0], expected.float().mean(dim=(1, 2, 3)).numpy())
    assert encoder.sizes == {28}
