"""Packed batches: packing and splitting are inverse, neighbours follow their bag, bad bags are named."""

import dataclasses

import pytest
import torch

from smmil.data.batch import pack
from tests.helpers.graphs import make_bag


def test_splitting_a_batch_gives_the_bags_back():
    bags = [make_bag(n, seed) for seed, n in enumerate((5, 1, 8))]
    for bag, single in zip(bags, pack(bags).split(), strict=True):
        assert torch.equal(single.x, bag.x)
        assert torch.equal(single.neighbors[:, : bag.neighbors.shape[1]], bag.neighbors)
        assert (single.neighbors[:, bag.neighbors.shape[1] :] == -1).all()
        assert torch.equal(single.grid, bag.grid)
        assert single.y.item() == bag.y
        assert single.bag_ids == (bag.bag_id,)


def test_neighbours_stay_inside_their_bag():
    batch = pack([make_bag(n, seed) for seed, n in enumerate((5, 3, 8))])
    owner = batch.bag_index
    rows, columns = (batch.neighbors >= 0).nonzero(as_tuple=True)
    assert torch.equal(owner[rows], owner[batch.neighbors[rows, columns]])
    assert batch.sizes.tolist() == [5, 3, 8]


def test_edge_weights_are_packed_and_split_with_their_edges():
    bags = [make_bag(n, seed) for seed, n in enumerate((4, 6))]
    weighted = [dataclasses.replace(b, edge_weight=(b.neighbors >= 0).float() * (i + 2)) for i, b in enumerate(bags)]
    batch = pack(weighted)
    assert torch.equal((batch.edge_weight > 0), (batch.neighbors >= 0))
    assert batch.split()[1].edge_weight.max() == 3


@pytest.mark.parametrize(
    ("bags", "message"),
    [
        (lambda: [], "found no bag"),
        (lambda: [make_bag(3, 0), make_bag(0, 7)], "'bag7' has no instance"),
        (lambda: [make_bag(3, 0), make_bag(3, 1, features=9)], "'bag1' has 9 features per instance, 'bag0' has 6"),
        (lambda: [dataclasses.replace(make_bag(3, 0), edge_weight=torch.ones(3, 1)), make_bag(3, 1)], "edge weights"),
    ],
)
def test_bad_bags_are_named(bags, message):
    with pytest.raises(ValueError, match=message):
        pack(bags())


def test_fields_that_are_not_asked_for_stay_out():
    bags = [make_bag(n, seed, y=float(seed)) for seed, n in enumerate((4, 6))]
    bags = [dataclasses.replace(bag, edge_weight=(bag.neighbors >= 0).float()) for bag in bags]
    whole, bare, linked = pack(bags), pack(bags, ()), pack(bags, {"neighbors"})
    for name in ("x", "offsets", "y"):
        assert torch.equal(getattr(bare, name), getattr(whole, name))
    assert [len(getattr(bare, name)) for name in ("neighbors", "grid", "coords", "y_inst")] == [10] * 4
    assert bare.neighbors.numel() == bare.grid.numel() == bare.coords.numel() == 0
    assert bare.edge_weight is None and set(bare.y_inst.tolist()) == {-1}
    assert torch.equal(linked.neighbors, whole.neighbors) and torch.equal(linked.edge_weight, whole.edge_weight)
    assert linked.grid.numel() == 0 and bare.to("cpu").neighbors.shape == (10, 0)
