"""Memory of tiles and batches: where rows begin, used again, never under somebody's hands."""

import ctypes
import gc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.common.compiled import FLAGS, library
from preprocessing.features import pixel_kernel
from preprocessing.features.encoders import IMAGENET_MEAN, IMAGENET_STD, LUNIT_MEAN, LUNIT_STD
from preprocessing.features.transforms import normalised
from preprocessing.slides.tile_memory import Reused, tile_memory

needs_normalise = pytest.mark.skipif(not pixel_kernel.available(), reason="no C compiler")


@pytest.mark.parametrize("shape", [(512, 512, 3), (8, 256, 16, 3), (5, 48, 3), (0, 16, 3)])
def test_no_row_begins_where_a_codec_would_write_past_the_cache(shape):
    for _ in range(8):
        tile = tile_memory(shape)
        assert (tile.shape, tile.dtype) == (shape, np.uint8) and tile.flags.c_contiguous and tile.flags.writeable
        starts = tile.ctypes.data + shape[-2] * 3 * np.arange(tile.size // (shape[-2] * 3))
        assert (starts % 16 == 8).all()
        tile[:] = 7


def test_memory_is_used_again_only_when_nobody_holds_it():
    memory = Reused()
    first = memory.tensor((2, 3))
    place = first.data_ptr()
    del first
    gc.collect()
    second = memory.tensor((2, 3))
    assert second.data_ptr() == place
    for holds in (lambda t: t[1:], lambda t: t.permute(1, 0), lambda t: t.numpy(), lambda t: t.detach()):
        held = holds(memory.tensor((2, 3)).fill_(1))
        other = memory.tensor((2, 3)).fill_(2)
        assert float(held.max()) == 1 and float(other.min()) == 2
        del held, other
    kept = memory.tensor((2, 3))
    assert memory.tensor((4, 3)).shape == (4, 3) and memory.tensor((2, 3)).data_ptr() != kept.data_ptr()


def by_torch(pixels: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """The same arithmetic, step by step."""
    shift, scale = (torch.tensor(v).mul(255).view(3, 1, 1) for v in (mean, std))
    return (pixels.float() - shift) / scale


@settings(max_examples=60, deadline=None)
@given(batch=st.integers(1, 3), height=st.integers(1, 20), width=st.integers(1, 20), last=st.booleans())
def test_normalised_bytes_have_the_bits_of_torch(batch, height, width, last):
    rng = np.random.default_rng(0)
    tiles = torch.from_numpy(rng.integers(0, 256, (batch, height, width, 3), np.uint8)).permute(0, 3, 1, 2)
    x = tiles if last else tiles.contiguous()
    for mean, std in ((IMAGENET_MEAN, IMAGENET_STD), (LUNIT_MEAN, LUNIT_STD)):
        out = normalised(x, mean, std)
        # one column of planes is the same to torch in either order
        assert width == 1 or out.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(out, by_torch(tiles, mean, std))


def test_every_byte_is_normalised_alike_with_and_without_the_compiled_loop(monkeypatch):
    x = torch.arange(256, dtype=torch.uint8).repeat(3, 1).view(1, 3, 16, 16)
    compiled = normalised(x, LUNIT_MEAN, LUNIT_STD)
    monkeypatch.setattr(pixel_kernel, "available", lambda: False)
    plain = normalised(x, LUNIT_MEAN, LUNIT_STD)
    assert torch.equal(compiled, plain) and compiled.stride() == plain.stride()


@needs_normalise
@pytest.mark.parametrize("flags", [(), ("-DPLAIN",)])
@pytest.mark.parametrize("count", [0, 7, 8, 1000])
def test_the_loop_of_every_machine_ends_with_the_pixels(flags, count):
    """Also the loop of machines that are no x86: PLAIN leaves out what x86 has."""
    loaded = library(pixel_kernel._SOURCE, flags=(*FLAGS, *flags))
    assert loaded is not None
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3), np.uint8)
    shift, scale = np.array([3, 140.5, 77], np.float32), np.array([60.1, 50, 0.3], np.float32)
    out = np.full((count + 1, 3), -1, np.float32)
    places = [ctypes.c_void_p(array.ctypes.data) for array in (pixels, out, shift, scale)]
    loaded.normalise_u8(places[0], places[1], ctypes.c_int64(count), *places[2:])
    np.testing.assert_array_equal(out[:count], (pixels.astype(np.float32) - shift) / scale)
    assert (out[count] == -1).all()
