"""Memory of decoded tiles: where rows begin."""

import numpy as np
import pytest

from preprocessing.slides.regions import tile_memory


@pytest.mark.parametrize("shape", [(512, 512, 3), (8, 256, 16, 3), (5, 48, 3), (0, 16, 3)])
def test_no_row_begins_where_a_codec_would_write_past_the_cache(shape):
    for _ in range(8):
        tile = tile_memory(shape)
        assert (tile.shape, tile.dtype) == (shape, np.uint8) and tile.flags.c_contiguous and tile.flags.writeable
        starts = tile.ctypes.data + shape[-2] * 3 * np.arange(tile.size // (shape[-2] * 3))
        assert (starts % 16 == 8).all()
        tile[:] = 7
