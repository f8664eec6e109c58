"""Windows through the table of 16-bit values: the same bits as computing every pixel, whatever the header says."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preprocessing.scans.dicom import read_slice
from preprocessing.scans.windows import to_hu, window_channels, window_slice
from tests.helpers.dicoms import write_slice

WINDOWS = [(40.0, 80.0), (80.0, 200.0), (30.0, 30.0), (600.0, 2800.0)]
TAGS: list[dict[str, Any]] = [
    {},
    {"RescaleSlope": 0.75, "RescaleIntercept": -3.5},
    {"BitsStored": 12, "HighBit": 11, "RescaleIntercept": 0},  # unsigned: wrapped around, repaired
    {"BitsStored": 12, "HighBit": 11, "RescaleIntercept": -1024},
    {"RescaleSlope": 0.1, "RescaleIntercept": 0},
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
    expected = window_channels(to_hu(raw, header), WINDOWS)
    for values in (raw, raw.astype(np.int32)):
        channels = window_slice(values, header, WINDOWS)
        assert channels.dtype == np.float32 and np.array_equal(channels, expected)
        channels += 1  # belongs to the caller
    assert np.array_equal(raw, before)
    assert np.array_equal(window_slice(raw.T, header, WINDOWS), expected.transpose(1, 0, 2))


def test_a_table_is_not_shared_between_rescalings(tmp_path: Path) -> None:
    raw, header = read_slice(write_slice(tmp_path / "a.dcm"))
    other = replace(header, intercept=-1000.0)
    assert not np.array_equal(window_slice(raw, header, WINDOWS), window_slice(raw, other, WINDOWS))


def test_a_slice_without_rescale_values_is_named(tmp_path: Path) -> None:
    raw, header = read_slice(write_slice(tmp_path / "a.dcm"))
    with pytest.raises(ValueError, match=r"a\.dcm: no RescaleSlope"):
        window_slice(raw, replace(header, slope=None), WINDOWS)
