"""Windows through the table of values: the same bits as computing every pixel, whatever the header says."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preprocessing import pixel_kernel
from preprocessing.ct_windows import windowed
from preprocessing.dicom import read_slice, read_stored, to_hu, window_channels
from tests.dicoms import write_slice

WINDOWS = [(40.0, 80.0), (80.0, 200.0), (30.0, 30.0), (600.0, 2800.0)]
TAGS: list[dict[str, Any]] = [
    {},
    {"RescaleSlope": 0.75, "RescaleIntercept": -3.5},
    {"BitsStored": 12, "HighBit": 11, "RescaleIntercept": 0},  # unsigned: wrapped around, repaired
    {"BitsStored": 12, "HighBit": 11, "RescaleIntercept": -1024},
    {"PixelPaddingValue": 0},
    {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1900},
]


@pytest.mark.parametrize("tags", TAGS)
@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
def test_every_possible_value(tmp_path: Path, tags: dict[str, Any], dtype: type) -> None:
    if dtype == np.uint16 and tags.get("PixelPaddingValue", 0) < 0:
        pytest.skip("a negative padding value needs a signed slice")
    pixels: np.ndarray = np.arange(1 << 16, dtype=np.uint16).view(dtype).reshape(256, 256)
    raw, header = read_slice(write_slice(tmp_path / "a.dcm", pixels, **tags))
    before = raw.copy()
    found = windowed(raw, header, WINDOWS)
    expected = window_channels(to_hu(raw, header), WINDOWS)
    assert found.dtype == np.float32 and np.array_equal(found, expected) and np.array_equal(raw, before)
    found += 1  # belongs to the caller
    assert np.array_equal(windowed(raw, header, WINDOWS), expected)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (700, 300)])
def test_any_number_of_windows_and_pixels(tmp_path: Path, count: int, shape: tuple[int, int]) -> None:
    """Also slices that fill no block, or more than one."""
    pixels = np.random.default_rng(0).integers(0, 2500, shape).astype(np.int16)
    raw, header = read_stored(write_slice(tmp_path / "a.dcm", pixels))
    found = windowed(raw, header, WINDOWS[:count])
    expected = window_channels(to_hu(raw.astype(np.int32), header), WINDOWS[:count])
    assert found.shape == (*shape, count) and found.flags.c_contiguous
    assert np.array_equal(found, expected)
    assert np.array_equal(windowed(raw.T, header, WINDOWS[:count]), expected.transpose(1, 0, 2))


@pytest.mark.parametrize("compiled", [True, False])
def test_the_compiled_loop_and_the_other_agree(tmp_path: Path, monkeypatch, compiled: bool) -> None:
    """700 x 300 px are more than one block of the other."""
    if compiled and not pixel_kernel.available():
        pytest.skip("no C compiler")
    monkeypatch.setattr(pixel_kernel, "available", lambda: compiled)
    pixels = np.random.default_rng(0).integers(-1024, 3000, (700, 300)).astype(np.int16)
    raw, header = read_stored(write_slice(tmp_path / "a.dcm", pixels))
    for count in (1, 3, 4):
        expected = window_channels(to_hu(raw.astype(np.int32), header), WINDOWS[:count])
        out = np.full(expected.shape, 7, np.float32)
        assert windowed(raw, header, WINDOWS[:count], out) is out
        assert np.array_equal(out, expected)
        unfit = np.empty((300, 700, count), np.float32)
        assert np.array_equal(windowed(raw, header, WINDOWS[:count], unfit), expected)


def test_threads_do_not_mix_slices(tmp_path: Path) -> None:
    slices, expected = [], []
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 2500, (512, 512)).astype(np.int16)
        slices.append(read_stored(write_slice(tmp_path / f"{number}.dcm", pixels)))
        expected.append(window_channels(to_hu(pixels.astype(np.int32), slices[-1][1]), WINDOWS[:3]))
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = list(pool.map(lambda one: windowed(one[0], one[1], WINDOWS[:3]), slices))
            assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_values_beyond_16_bits_are_computed_one_by_one(tmp_path: Path) -> None:
    raw, header = read_slice(write_slice(tmp_path / "a.dcm"))
    for value in (-40_000, 40_000):
        wide = np.full_like(raw, value)
        assert np.array_equal(windowed(wide, header, WINDOWS), window_channels(to_hu(wide, header), WINDOWS))


def test_a_table_is_not_shared_between_rescalings(tmp_path: Path) -> None:
    results = []
    for number, intercept in enumerate((-1024, -1000)):
        raw, header = read_slice(write_slice(tmp_path / f"{number}.dcm", RescaleIntercept=intercept))
        results.append(windowed(raw, header, WINDOWS))
    assert not np.array_equal(results[0], results[1])


def test_a_slice_without_rescale_values_is_named(tmp_path: Path) -> None:
    raw, header = read_slice(write_slice(tmp_path / "a.dcm"))
    from dataclasses import replace

    with pytest.raises(ValueError, match=r"a\.dcm: no RescaleSlope"):
        windowed(raw, replace(header, slope=None), WINDOWS)
