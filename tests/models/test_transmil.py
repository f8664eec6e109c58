"""TransMIL: position encoding, and bags of one square together; all else by the original's numbers."""

import pytest
import torch

from smmil.models.transmil import PPEG
from tests.helpers.models import F64, assert_same, batch_of, build


def test_position_encoding_is_three_convolutions_and_with_zero_kernels_the_identity():
    encode, x = PPEG(6).double(), torch.randn(2, 9, 6, dtype=F64)
    torch.testing.assert_close(encode(x, 3), encode.forward_reference(x, 3))
    for parameter in encode.parameters():
        torch.nn.init.zeros_(parameter)
    assert torch.equal(encode(x, 3), x)


@pytest.mark.parametrize("options", [{}, {"n_landmarks": 4}, {"small_bags": "exact"}])
def test_bags_of_one_square_run_together_and_change_nothing(options):
    model, batch = build("transmil", **options), batch_of(14, 3, 16, 10, 4, 1)
    assert_same(model(batch), model.forward_reference(batch))
