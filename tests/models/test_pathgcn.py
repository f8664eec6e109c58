"""PathGCN: GEN aggregation by hand and by loops, residual layers, the plain variant against torchmil."""

import torch

from bench.peers import features
from smmil.layers.graph_layers import GEN, plain_adjacency
from tests.helpers.graphs import path, random_table
from tests.helpers.models import F64, P, assert_outputs, batch_of, build


def test_aggregation_on_a_path_of_three():
    x = torch.tensor([[1.0], [2.0], [3.0]], dtype=F64)
    expected = torch.tensor([[3.0000001], [4.7615943], [5.0000001]], dtype=F64)
    torch.testing.assert_close(x + GEN(1).double().aggregate(x, path(3)), expected, rtol=0, atol=5e-8)


def test_aggregation_equals_a_loop_over_nodes_and_has_right_gradients():
    neighbors, layer = random_table(8, 1, 0.4), GEN(3).double()
    with torch.no_grad():
        layer.t.fill_(0.7)
    x = torch.randn(8, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    actual = layer.aggregate(x, neighbors)
    for i, row in enumerate(neighbors.tolist()):
        m = torch.relu(x[[j for j in row if j >= 0]]) + 1e-7
        expected = (torch.softmax(0.7 * m, 0) * m).sum(0)
        torch.testing.assert_close(actual[i], expected)
    # away from the kink of ReLU
    inside = (x.abs() + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda u: layer.aggregate(u, neighbors), (inside,))
    layer.aggregate(x, neighbors).sum().backward()
    assert layer.t.grad is not None and layer.t.grad != 0


def test_far_apart_messages_do_not_underflow():
    x = torch.tensor([[0.0], [1.0], [5e4], [2e4]])
    actual = GEN(1).aggregate(x, path(4))
    torch.testing.assert_close(actual[:, 0], torch.tensor([1.0, 5e4, 2e4, 5e4]))


def test_the_plain_variant_agrees_with_torchmil():
    from torchmil.models import PatchGCN

    ours, batch = build("pathgcn", variant="gcn"), batch_of(11)
    peer = PatchGCN((P,), n_gcn_layers=4, feat_ext=features(ours)).double().eval()
    with torch.no_grad():
        for layer, linear, norm in zip(peer.gcn_layers, ours.layers, ours.norms, strict=True):
            layer.conv.fc.module.load_state_dict(linear.state_dict())
            layer.norm.load_state_dict(norm.state_dict())
        peer.mlp[0][0].module.load_state_dict(ours.join[0].state_dict())
        peer.pool.fc1.module.load_state_dict(ours.pool.W.state_dict())
        peer.pool.fc2.load_state_dict(ours.pool.w.state_dict())
        peer.classifier.module.load_state_dict(ours.classifier.state_dict())
        adjacency = plain_adjacency(batch.neighbors, dtype=F64).dense()
        assert_outputs(ours(batch), *peer(batch.x[None], adjacency[None], return_att=True), rtol=0, atol=1e-5)
