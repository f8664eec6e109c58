"""The compiled pixel loops: equal to torch, no access beyond a tile, and a fallback without a compiler."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from preprocessing.common import compiled
from preprocessing.features import pixel_kernel
from preprocessing.features.transforms import Resize, TileResize, resized, tile_resize

needs_resize = pytest.mark.skipif(not pixel_kernel.can_resize(), reason="no C compiler, or a processor without AVX2")
needs_compiler = pytest.mark.skipif(not pixel_kernel.available(), reason="no C compiler")
SIZES = st.integers(1, 90)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def by_torch(tile: np.ndarray, height: int, width: int) -> np.ndarray:
    x = torch.from_numpy(tile).permute(2, 0, 1)[None]
    out = torch.nn.functional.interpolate(x, (height, width), mode="bilinear", align_corners=False, antialias=True)
    return out[0].permute(1, 2, 0).numpy()


@needs_resize
@settings(max_examples=150, deadline=None)
@given(height=SIZES, width=SIZES, out_height=SIZES, out_width=SIZES, seed=st.integers(0, 9))
@example(512, 512, 224, 224, 0)
@example(1024, 256, 224, 224, 0)
@example(2000, 3, 2, 2, 0)
@example(3, 2000, 2, 1, 0)
def test_every_size_has_the_bits_of_torch(height, width, out_height, out_width, seed) -> None:
    tile, out = noise(height, width, seed), np.empty((out_height, out_width, 3), np.uint8)
    pixel_kernel.resize(tile, out)
    np.testing.assert_array_equal(out, by_torch(tile, out_height, out_width))


@needs_resize
@pytest.mark.parametrize("value", [0, 255])
def test_flat_tiles_stay_flat(value: int) -> None:
    out = np.empty((224, 224, 3), np.uint8)
    pixel_kernel.resize(np.full((500, 300, 3), value, np.uint8), out)
    assert (out == value).all()


@needs_resize
def test_nothing_beyond_the_tile_is_read_or_written() -> None:
    """Tile and result each end at a protected page, so that an access beyond ends the process."""
    program = """
import ctypes, mmap, numpy as np
from preprocessing.features import pixel_kernel
libc, kept = ctypes.CDLL(None, use_errno=True), []
def at_the_end(shape):
    size = int(np.prod(shape)); pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    area = mmap.mmap(-1, pages + mmap.PAGESIZE); kept.append(area)
    whole = np.frombuffer(area, np.uint8)
    last = ctypes.c_void_p(whole.ctypes.data + pages)
    assert libc.mprotect(last, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    return whole[pages - size : pages].reshape(shape)
for h, w, oh, ow in ((512, 512, 224, 224), (64, 64, 64, 31), (33, 5, 7, 3), (1, 1, 1, 1), (2, 1, 9, 9), (7, 90, 3, 2)):
    tile, out = at_the_end((h, w, 3)), at_the_end((oh, ow, 3))
    tile[:] = 200
    pixel_kernel.resize(tile, out)
    assert (out == 200).all()
print("alive")
"""
    root = Path(__file__).resolve().parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "alive"), done.stderr


@needs_resize
def test_arrays_of_another_kind_are_refused() -> None:
    tile, out = noise(8, 8), np.empty((4, 4, 3), np.uint8)
    read_only = out.copy()
    read_only.flags.writeable = False
    for bad in ((tile[:, ::2], out), (tile.astype(np.int8), out), (tile[..., 0], out), (tile, out[:0])):
        with pytest.raises(ValueError, match="resize"):
            pixel_kernel.resize(*bad)
    with pytest.raises(ValueError, match="writable"):
        pixel_kernel.resize(tile, read_only)


def test_tiles_are_resized_early_only_where_one_square_fits_all(monkeypatch) -> None:
    monkeypatch.setattr(pixel_kernel, "can_resize", lambda: True)
    square = tile_resize([Resize(224), Resize(224)])
    assert square is not None and square.side == 224
    for policies in ([], [Resize()], [Resize(256, shorter=True, crop=224)], [Resize(224), Resize(96)]):
        assert tile_resize(policies) is None
    monkeypatch.setattr(pixel_kernel, "can_resize", lambda: False)
    assert tile_resize([Resize(224)]) is None


@needs_resize
@pytest.mark.parametrize("side", [100, 224, 512])
def test_the_early_resize_is_the_late_one(side: int) -> None:
    tile, early = noise(side, side), TileResize(224)
    out = np.empty(early.shape(tile.shape, tile.dtype), np.uint8)
    early(tile, out)
    late = resized(torch.from_numpy(tile)[None], Resize(224))
    assert torch.equal(resized(torch.from_numpy(out)[None], Resize(224)), late)
    slices = tile.astype(np.float32) / 255
    same = np.empty(early.shape(slices.shape, slices.dtype), np.float32)
    early(slices, same)
    np.testing.assert_array_equal(same, slices)


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """Start with an empty cache and no loaded library."""
    monkeypatch.setenv("SMMIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SMMIL_NATIVE", raising=False)
    compiled.library.cache_clear()
    yield tmp_path
    compiled.library.cache_clear()


def source(folder: Path, text: str) -> Path:
    path = folder / "answer.c"
    path.write_text(text)
    return path


@needs_compiler
def test_a_library_is_built_once(fresh, monkeypatch) -> None:
    path = source(fresh, "int answer(void) { return 42; }")
    loaded = compiled.library(path)
    assert loaded is not None and loaded.answer() == 42
    built = list((fresh / "cache").iterdir())
    assert len(built) == 1 and built[0].suffix == ".so"
    assert not built[0].stat().st_mode & stat.S_IWOTH
    compiled.library.cache_clear()
    monkeypatch.setenv("PATH", "")
    assert compiled.library(path) is not None, "what is built needs no compiler"


def test_without_a_compiler_or_when_switched_off_there_is_none(fresh, monkeypatch, caplog) -> None:
    path = source(fresh, "int answer(void) { return 42; }")
    monkeypatch.setenv("SMMIL_NATIVE", "0")
    assert compiled.library(path) is None and not (fresh / "cache").exists()
    compiled.library.cache_clear()
    monkeypatch.delenv("SMMIL_NATIVE")
    monkeypatch.setenv("PATH", "")
    with caplog.at_level("INFO"):
        assert compiled.library(path) is None
    assert "answer.c is not compiled" in caplog.text and "no C compiler found" in caplog.text


@needs_compiler
def test_a_source_that_does_not_compile_is_none(fresh, caplog) -> None:
    with caplog.at_level("INFO"):
        assert compiled.library(source(fresh, "no C at all")) is None
    assert "answer.c is not compiled" in caplog.text and list((fresh / "cache").iterdir()) == []
