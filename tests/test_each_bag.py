"""Bags too large for the device, injected: host memory, then the CPU, then one message; the numbers stay."""

import dataclasses
import logging

import pytest
import torch

from smmil.bag_scores import score_bag
from smmil.batches import BagCache
from smmil.data import Bag
from smmil.each_bag import each_bag, in_groups
from smmil.memory import OutOfMemory
from smmil.models import build_model
from smmil.predictions import predict_bags
from tests.graphs import make_bag

P = 6
CPU = torch.device("cpu")


def bags(dtype: torch.dtype = torch.float64) -> list[Bag]:
    made = [make_bag(2 + 3 * (i % 4), i, features=P, y=float(i % 2)) for i in range(7)]
    return [dataclasses.replace(bag, x=bag.x.to(dtype)) for bag in made]


def test_features_that_no_longer_fit_stay_in_host_memory(monkeypatch, caplog):
    made = bags()
    cache, to = BagCache(made, CPU), torch.Tensor.to

    def full(tensor: torch.Tensor, *arguments):
        if tensor.shape[0] > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return to(tensor, *arguments)

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(torch.Tensor, "to", full)
        cache.to_device()
    assert not cache.resident and len(caplog.records) == 1
    assert torch.equal(cache.batch([3]).x, made[3].x) and not cache.to_host()


def far_away(made: list[Bag]) -> BagCache:
    """A cache for a device that is not the CPU; its batches are on the CPU all the same."""
    cache = BagCache(made, CPU)
    cache.to_device()
    cache.device = torch.device("meta")
    return cache


def test_a_bag_too_large_for_the_device_is_scored_on_the_cpu(monkeypatch, caplog):
    made, model = bags(dtype=torch.float32), build_model("smap_early", P).eval()
    expected = predict_bags(model, BagCache(made, CPU), made, range(7), ["test"] * 7)
    cache, tried = far_away(made), []

    def small_device(asked, batch, direction=None):
        if asked is model:
            tried.append(batch.bag_ids[0])
            if len(batch.x) > 7:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return score_bag(asked, batch, direction)

    monkeypatch.setattr(cache, "batches", lambda index: map(cache.packed, index))
    monkeypatch.setattr("smmil.bag_scores.score_bag", small_device)
    with caplog.at_level(logging.WARNING):
        found = predict_bags(model, cache, made, range(7), ["test"] * 7)
    # bag 2 has 8 instances, bag 3 has 11, bag 6 has 8: tried once on the device, once from host memory, then no more
    assert tried == ["bag0", "bag1", "bag2", "bag2", "bag4", "bag5"]
    assert ["host memory" in record.message for record in caplog.records] == [True, False]
    assert not cache.resident and found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name] == array).all(), name


def test_a_bag_that_fits_nowhere_is_named():
    made, model = bags(), build_model("abmil", P).double()

    def refuse(asked, batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    for cache in (BagCache(made, CPU), far_away(made)):
        with pytest.raises(OutOfMemory, match="bag bag3.*11 x 6 features"):
            list(each_bag(model, cache, [3, 1], refuse))
    with pytest.raises(RuntimeError, match="size"):
        list(each_bag(model, BagCache(made, CPU), [0], lambda *_: torch.zeros(2) @ torch.zeros(3)))


def test_small_bags_share_a_pass_and_go_one_by_one_where_that_does_not_fit(monkeypatch):
    made, model, tried = bags(), build_model("abmil", P).double(), []
    monkeypatch.setattr("smmil.batches.AHEAD", 20 * P)

    def names(asked, batch):
        tried.append(batch.bag_ids)
        if len(batch.bag_ids) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return batch.bag_ids

    # 2, 5, 8, 11, 2, 5, 8 instances
    together = [("bag0", "bag1", "bag2"), ("bag3", "bag4", "bag5"), ("bag6",)]
    limit = 3
    assert list(in_groups(model, BagCache(made, CPU), range(7), names)) == together == tried
    limit, tried[:] = 1, []
    assert list(in_groups(model, BagCache(made, CPU), range(7), names)) == [(bag.bag_id,) for bag in made]
    assert tried[:5] == [together[0], ("bag0",), ("bag1",), ("bag2",), together[1]]
    with pytest.raises(RuntimeError, match="size"):
        list(in_groups(model, BagCache(made, CPU), [0, 1], lambda *_: torch.zeros(2) @ torch.zeros(3)))
