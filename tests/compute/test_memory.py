"""Injected out-of-memory errors: host memory, then the CPU (scoring), then one message; the numbers stay the same."""

import dataclasses
import logging

import pytest
import torch

from smmil.data.batch import Bag
from smmil.data.cache import BagCache
from smmil.models import build_model
from smmil.predictions.memory import OutOfMemory, each_bag, in_groups
from smmil.predictions.one_bag import score_bag
from smmil.predictions.runs import predict_bags
from smmil.train import __main__ as train
from smmil.train import fit as training
from tests.helpers.graphs import make_bag
from tests.helpers.train_helpers import timeless, train_arguments

P = 6
CPU = torch.device("cpu")
RUN = "split1_lr0.01"
pytestmark = pytest.mark.usefixtures("noisy")
FILES = ("best.safetensors", "direction.safetensors", "done.json", "config.json")


@pytest.fixture
def resident(monkeypatch):
    """Keep features apart from the bags, as on a GPU."""
    init = BagCache.__init__

    def moved(cache, *arguments, **options):
        init(cache, *arguments, **options)
        cache.to_device()

    monkeypatch.setattr(BagCache, "__init__", moved)


def fail_at(monkeypatch, owner, name, call: int, error: BaseException | None = None) -> None:
    """Make one call of a function raise after it has run."""
    function, calls = getattr(owner, name), []

    def failing(*arguments, **options):
        result = function(*arguments, **options)
        calls.append(1)
        if len(calls) == call:
            raise error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nsecond line")
        return result

    monkeypatch.setattr(owner, name, failing)


@pytest.mark.parametrize(
    ("owner", "name", "call", "method", "checkpoint_seconds"),
    [
        *((training.Fit, "_step", 5, method, 60) for method in ("noisy", "smap_early", "iibmil", "gtp")),
        *((training, "forward", 5, "iibmil", 0), (training, "forward", 5, "noisy", 60)),
        *((BagCache, "batch", 6, "noisy", 0), (training, "validate", 2, "noisy", 60)),
    ],
)
def test_a_run_that_moves_to_host_memory_ends_in_the_same_bytes(
    dataset, tmp_path, monkeypatch, caplog, resident, owner, name, call, method, checkpoint_seconds
):
    """Random draws, power iterations, soft labels and running means of the failed step leave no trace."""
    settings = {"checkpoint_seconds": checkpoint_seconds, "warmup_epochs": 0}
    small = ["--method-options", '{"z": 8, "width": 16}' if method == "iibmil" else "{}"]
    assert train.main([*train_arguments(dataset, tmp_path / "whole", method, **settings), *small]) == 0
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        fail_at(patch, owner, name, call)
        assert train.main([*train_arguments(dataset, tmp_path / "moved", method, **settings), *small]) == 0
    (message,) = [record.getMessage() for record in caplog.records if "out of memory" in record.getMessage()]
    assert f"run {RUN}" in message and "host memory" in message and "second line" not in message
    for file in FILES:
        assert (tmp_path / "whole" / RUN / file).read_bytes() == (tmp_path / "moved" / RUN / file).read_bytes(), file
    logs = [timeless(tmp_path / side / RUN / "log.jsonl") for side in ("whole", "moved")]
    assert logs[0] == logs[1] and len(logs[0]) == 4


def test_a_job_without_a_fallback_ends_with_one_line(dataset, tmp_path, monkeypatch, capsys, resident):
    steps = []

    def refuse(*_):
        steps.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training.Fit, "_step", refuse)
    assert train.main(train_arguments(dataset, tmp_path, "abmil")) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    for part in ("run split1_lr0.01: out of memory on cpu", "method abmil", "largest bag bag", "with 4 x 5 features"):
        assert part in line
    for part in ("features in host memory", "batch_size", "T of Sm", "linear", "device cpu", "bf16"):
        assert part in line
    assert len(steps) == 2


def test_other_errors_pass(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(training.Fit, "_step", lambda *_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        train.main(train_arguments(dataset, tmp_path))


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

    def small_device(used_model, batch, direction=None):
        if used_model is model:
            tried.append(batch.bag_ids[0])
            if len(batch.x) > 7:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return score_bag(used_model, batch, direction)

    monkeypatch.setattr(cache, "batches", lambda index: map(cache.packed, index))
    monkeypatch.setattr("smmil.predictions.runs.score_bag", small_device)
    with caplog.at_level(logging.WARNING):
        arrays = predict_bags(model, cache, made, range(7), ["test"] * 7)
    # Bags 2, 3 and 6 have 8, 11 and 8 instances; the first of them is tried again from host memory.
    assert tried == ["bag0", "bag1", "bag2", "bag2", "bag3", "bag4", "bag5", "bag6"]
    messages = [record.getMessage() for record in caplog.records]
    assert ["host memory" in message for message in messages] == [True, False, False, False]
    assert all(f"bag bag{i} " in message for i, message in zip((2, 2, 3, 6), messages, strict=True))
    assert not cache.resident and arrays.keys() == expected.keys()
    for name, array in expected.items():
        assert (arrays[name] == array).all(), name


def test_a_bag_that_fits_nowhere_is_named():
    made, model = bags(), build_model("abmil", P).double()

    def refuse(used_model, batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    for cache in (BagCache(made, CPU), far_away(made)):
        with pytest.raises(OutOfMemory, match="bag bag3.*11 x 6 features") as caught:
            list(each_bag(model, cache, [3, 1], refuse))
        assert caught.value.__context__ is None
    with pytest.raises(RuntimeError, match="size"):
        list(each_bag(model, BagCache(made, CPU), [0], lambda *_: torch.zeros(2) @ torch.zeros(3)))


def test_small_bags_share_a_pass_and_go_one_by_one_where_that_does_not_fit(monkeypatch):
    made, model, tried = bags(), build_model("abmil", P).double(), []
    monkeypatch.setattr("smmil.data.cache.AHEAD", 20 * P)

    def names(used_model, batch):
        tried.append(batch.bag_ids)
        if len(batch.bag_ids) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return batch.bag_ids

    # The bags have 2, 5, 8, 11, 2, 5 and 8 instances.
    together = [("bag0", "bag1", "bag2"), ("bag3", "bag4", "bag5"), ("bag6",)]
    limit = 3
    assert list(in_groups(model, BagCache(made, CPU), range(7), names)) == together == tried
    limit, tried[:] = 1, []
    assert list(in_groups(model, BagCache(made, CPU), range(7), names)) == [(bag.bag_id,) for bag in made]
    assert tried[:5] == [together[0], ("bag0",), ("bag1",), ("bag2",), together[1]]
    with pytest.raises(RuntimeError, match="size"):
        list(in_groups(model, BagCache(made, CPU), [0, 1], lambda *_: torch.zeros(2) @ torch.zeros(3)))
