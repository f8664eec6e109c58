"""Shared layers against obvious loops and against torch's own attention."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smmil.layers.attention import packed_attention
from smmil.layers.pooling import attend, attend_reference
from smmil.layers.segments import segment_max, segment_mean, segment_softmax, segment_sum
from tests.helpers.models import F64, randn


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), seed=st.integers(0, 999))
def test_segment_operations_equal_a_loop_over_bags(sizes, seed):
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    x, f = randn(int(offsets[-1]), 3, seed=seed), randn(int(offsets[-1]), seed=seed + 1)
    parts, scores = x.split(sizes), f.split(sizes)
    torch.testing.assert_close(segment_sum(x, offsets), torch.stack([p.sum(0) for p in parts]))
    torch.testing.assert_close(segment_mean(x, offsets), torch.stack([p.mean(0) for p in parts]))
    torch.testing.assert_close(segment_max(x, offsets), torch.stack([p.amax(0) for p in parts]))
    torch.testing.assert_close(segment_softmax(f, offsets), torch.cat([s.softmax(0) for s in scores]))
    torch.testing.assert_close(attend(f, x, offsets), attend_reference(f, x, offsets))


def test_segment_softmax_survives_extreme_values_and_gives_finite_gradients():
    f = torch.tensor([1e3, -1e3, 1e3, -1e4, 5.0], dtype=F64, requires_grad=True)
    weights = segment_softmax(f, torch.tensor([0, 3, 5]))
    weights.square().sum().backward()
    torch.testing.assert_close(weights[:3], torch.tensor([0.5, 0, 0.5], dtype=F64))
    assert torch.isfinite(f.grad).all()


def test_segment_softmax_gradients():
    offsets = torch.tensor([0, 4, 5, 9])
    assert torch.autograd.gradcheck(lambda f: segment_softmax(f, offsets), (randn(9).requires_grad_(),))


def test_packed_attention_equals_multi_head_attention_of_torch_bag_by_bag():
    width, heads, sizes = 16, 4, [5, 1, 7]
    peer = torch.nn.MultiheadAttention(width, heads, bias=False, batch_first=True, dtype=F64)
    with torch.no_grad():
        peer.out_proj.weight.copy_(torch.eye(width))
    x, offsets = randn(13, width), torch.tensor([0, *sizes]).cumsum(0)
    q, k, v = (x @ peer.in_proj_weight.T).chunk(3, -1)
    expected = torch.cat([peer(p[None], p[None], p[None], need_weights=False)[0][0] for p in x.split(sizes)])
    bounds, scale = offsets.tolist(), (width // heads) ** -0.5
    torch.testing.assert_close(packed_attention(q, k, v, bounds, heads, scale=scale), expected)
