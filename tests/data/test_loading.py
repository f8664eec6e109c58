"""From stores and tables to bags: states, pairing, labels by hand, MUSK1."""

import shutil

import numpy as np
import pytest
import torch

from smmil.config.training_options import DataOptions
from smmil.data.batch import pack
from smmil.data.csv_table import load_table
from smmil.data.loading import (
    drop_inconsistent,
    feature_distance_weights,
    feature_facts,
    instance_labels,
    list_usable,
    load_listed,
)
from tests.helpers.train_helpers import FACTS, FEATURES, make_dataset, write_manifest

NAN = float("nan")


def manifests(folder):
    return [folder / stage / "shards" / "0000.json" for stage in ("instances", "features/tiny")]


def test_failed_and_empty_bags_are_left_out_and_named_and_the_worse_of_two_stages_holds(dataset, tmp_path, caplog):
    states = {**{f"bag{i:02d}": "ok" for i in range(16)}, "bag02": "empty"}
    write_manifest(tmp_path / "0.json", states)
    write_manifest(tmp_path / "1.json", {**states, "bag01": "failed"})
    listing = list_usable(dataset / "bags.csv", [tmp_path / "1.json", tmp_path / "0.json"])
    assert listing.excluded == {"failed": ["bag01"], "skipped": [], "empty": ["bag02"]}
    assert {"bag01", "bag02"}.isdisjoint(info.bag_id for info in listing.bags) and len(listing.bags) == 14
    assert "1 failed bags of 16" in caplog.text
    del states["bag15"]
    write_manifest(tmp_path / "0.json", states)
    with pytest.raises(ValueError, match=r"1 of 16 bags are in no manifest \(e.g. bag15\)"):
        list_usable(dataset / "bags.csv", [tmp_path / "0.json"])


def test_stored_arrays_reach_the_bag(dataset):
    listing = list_usable(dataset / "bags.csv", manifests(dataset))
    bags, thresholds = load_listed(listing.bags, dataset / "instances", dataset / "features" / "tiny")
    assert thresholds == {}
    assert [bag.bag_id for bag in bags] == [f"bag{i:02d}" for i in range(16)]
    for i, bag in enumerate(bags):
        assert bag.x.dtype == torch.float16 and bag.x.shape[1] == FEATURES, "kept in memory as it is stored"
        assert bag.y == i % 2 and bag.split == ("train" if i < 12 else "test")
        assert bag.y_inst.tolist() == [i % 2] + [0] * (len(bag) - 1)
    packed = pack(bags)
    assert packed.x.dtype == torch.float32 and torch.equal(packed.x, torch.cat([bag.x.float() for bag in bags]))
    assert feature_facts(dataset / "features" / "tiny", "bag00") == FACTS


def test_features_of_other_coordinates_and_missing_bags_are_refused(tmp_path):
    make_dataset(tmp_path)
    infos = list_usable(tmp_path / "bags.csv", manifests(tmp_path)).bags
    store = tmp_path / "features" / "tiny" / "store"
    sizes = {info.bag_id: len(np.fromfile(store / info.bag_id / "features" / "c.0.0", np.float16)) for info in infos}
    other = next(name for name, size in sizes.items() if size != sizes["bag00"])
    shutil.rmtree(store / "bag00")
    with pytest.raises(ValueError, match="bag bag00 is missing although its manifest calls it ok"):
        load_listed(infos, tmp_path / "instances", tmp_path / "features" / "tiny")
    shutil.copytree(store / other, store / "bag00")
    with pytest.raises(ValueError, match="bag bag00: the features .* belong to other coordinates"):
        load_listed(infos, tmp_path / "instances", tmp_path / "features" / "tiny")


@pytest.mark.parametrize(
    ("rule", "label", "coverage", "expected", "used"),
    [
        ("strict", 1, [0.5, 0.51, NAN, 0.0], [0, 1, -1, 0], 0.5),
        ("strict", 1, [0.2, 0.1], [0, 0], 0.5),
        # .5 -> .25 -> .125: the first threshold below .2
        ("halving", 1, [0.2, 0.1], [1, 0], 0.125),
        # strictly above: .25 itself needs .125
        ("halving", 1, [0.25, 0.2], [1, 1], 0.125),
        ("halving", 1, [0.9, 0.3], [1, 0], 0.5),
        ("halving", 1, [0.0, 0.0], [0, 0], 0.5),
        ("halving", 0, [0.2, 0.1], [0, 0], 0.5),
        ("halving", 1, [NAN, NAN], [-1, -1], 0.5),
        ("strict", NAN, [0.7, NAN], [1, -1], 0.5),
    ],
)
def test_label_rules_by_hand(rule, label, coverage, expected, used):
    labels, threshold = instance_labels(np.array(coverage, np.float32), label, DataOptions(label_rule=rule))
    assert labels.tolist() == expected and threshold == used


def test_bags_that_contradict_their_instances_are_dropped_on_request(dataset):
    listing = list_usable(dataset / "bags.csv", manifests(dataset))
    # coverage .8 everywhere a bag is positive: consistent at .5, all positives contradict at .9
    assert drop_inconsistent(listing, dataset / "instances", DataOptions()).excluded["inconsistent"] == []
    dropped = drop_inconsistent(listing, dataset / "instances", DataOptions(label_threshold=0.9))
    assert dropped.excluded["inconsistent"] == [f"bag{i:02d}" for i in range(1, 16, 2)]


def test_feature_distance_weights_by_hand():
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
    weights = feature_distance_weights(x, torch.tensor([[1, -1], [0, 2], [1, -1]]))
    near = float(np.exp(-2.5))
    np.testing.assert_allclose(weights, [[near, 0], [near, near], [near, 0]], rtol=1e-6)


def test_musk1_has_its_published_counts(shared_data):
    bags = load_table(shared_data / "mil" / "musk1.csv", graph="chain")
    sizes = [len(bag) for bag in bags]
    assert (len(bags), sum(sizes), min(sizes), max(sizes)) == (92, 476, 2, 40)
    assert sum(bag.y for bag in bags) == 47 and bags[0].x.shape[1] == 166
    assert float(min(bag.x.min() for bag in bags)) == -348 and float(max(bag.x.max() for bag in bags)) == 336
    assert all((bag.y_inst == -1).all() for bag in bags)
    assert bags[0].neighbors.tolist() == [[1, -1], [0, 2], [1, 3], [2, -1]]


def test_a_table_with_a_header(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("f1,label,bag_id,split,y_inst,f2\n1,1,b,test,1,2\n3,0,a,train,,4\n5,1,b,test,0,6\n")
    a, b = load_table(path)
    assert (a.bag_id, a.y, a.split, a.x.tolist(), a.y_inst.tolist()) == ("a", 0.0, "train", [[3, 4]], [-1])
    assert (b.bag_id, b.split, b.x.tolist(), b.y_inst.tolist()) == ("b", "test", [[1, 2], [5, 6]], [1, 0])
    assert b.neighbors.shape == (2, 0)


def test_a_chain_of_one_instance_has_no_neighbour(tmp_path):
    (tmp_path / "t.csv").write_text("1,only,0.5\n")
    (bag,) = load_table(tmp_path / "t.csv", graph="chain")
    assert bag.neighbors.tolist() == [[-1, -1]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("1,a,2\n1,a\n", "line 2: found 2 cells, expected 3"),
        ("1,a,2\n0,a,2\n", r"bag a has several values of label \['0', '1'\]"),
        ("1,a,x\n", "line 1: .*features must be numbers"),
        ("1,a,nan\n", "line 1: a feature is NaN"),
        ("2,a,1\n", "label '2'"),
        ("bag_id,label\na,1\n", "at least one feature"),
    ],
)
def test_bad_tables_name_the_line(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_table(tmp_path / "t.csv")
