"""The rules of the released code, written out from its lines, beside what this code does under each quirk.

Names begin with the rows of docs/reference/protocol.md, which cites the lines. Rows that change settings only are in
`test_protocol.py`.
"""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.model_selection import train_test_split
from torch.nn.functional import linear

from smmil.config.training_options import DataOptions
from smmil.data.batch import pack
from smmil.data.labels import instance_labels, is_consistent, labels_by_name
from smmil.data.loading import feature_distance_weights
from smmil.data.splits import make_split, read_splits, write_splits
from smmil.evaluate.metrics import run_metrics
from smmil.evaluate.runs import as_evaluated
from smmil.figures.histograms import histogram
from smmil.layers.pooling import AttentionPool
from smmil.models import build_model
from smmil.models.base import graph_of
from smmil.sm.operator import Sm, normalise_adjacency
from tests.helpers.graphs import make_bag, path, random_table
from tests.helpers.predictions import BAGS, part

F64 = torch.float64
N = 9


def released_adjacency(neighbors, weights=None):
    """D^-1/2 A D^-1/2 with zeros for nodes without an edge; a bag of one node gets a self loop of weight 1."""
    n = len(neighbors)
    a = torch.zeros(n, n, dtype=F64)
    for i, row in enumerate(neighbors.tolist()):
        for k, j in enumerate(row):
            if j >= 0:
                a[i, j] = 1 if weights is None else weights[i, k]
    scale = a.sum(0).pow(-0.5)
    scale[scale.isinf()] = 0
    normalised = scale[:, None] * a * scale[None, :]
    return normalised + torch.eye(1, dtype=F64) if n == 1 else normalised


def released_steps(f, a, alpha=None, coefficient=None, steps=10):
    """A fixed alpha gives the coefficient 1 / (1 - alpha) - 1, a trained one starts at 1; the steps use 1 / (1 + c)."""
    if alpha == 0:
        return f
    c = 1 / (1 - alpha) - 1 if coefficient is None else coefficient
    used = 1 / (1 + c)
    g = f
    for _ in range(steps):
        g = (1 - used) * f + used * (a @ g)
    return g


def smooth(sm, u, neighbors):
    return sm(u, normalise_adjacency(neighbors, dtype=F64), torch.tensor([0, len(u)]))


@pytest.fixture
def u():
    return torch.randn(N, 3, dtype=F64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 0.9])
def test_1_a_fixed_alpha_in_steps_and_exact(u, alpha):
    a = released_adjacency(path(N))
    sm, exact = Sm(alpha), Sm(alpha, "exact")
    for module in (sm, exact):
        module.use_released(swapped=True, ratio=False)
    torch.testing.assert_close(smooth(sm, u, path(N)), released_steps(u, a, alpha))
    c = 1 / (1 - alpha) - 1
    solved = torch.linalg.solve((1 + c) * torch.eye(N, dtype=F64) - c * a, u)
    torch.testing.assert_close(smooth(exact, u, path(N)), solved)


@pytest.mark.parametrize("method", ["smap_early", "smap_late", "t_smap"])
def test_1_alpha_of_0_switches_sm_off_in_a_whole_model(method):
    batch, outputs = pack([make_bag(7, 1), make_bag(4, 2)]), []
    for options in ({"alpha": 0.0, "quirks": ["sm_alpha_rule"]}, {"T": 0}, {"alpha": 0.9}):
        torch.manual_seed(0)
        model = build_model(method, 6, spectral_norm=False, **options).eval()
        outputs.append(model(batch).instance_score.detach())
    torch.testing.assert_close(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2])


@pytest.mark.parametrize("coefficient", [1.0, 0.2, 4.0, -0.5])
def test_2_a_trained_coefficient_and_its_gradient(u, coefficient):
    ours = Sm("trainable").double()
    ours.use_released(swapped=False, ratio=True)
    assert ours.a.item() == 1.0
    with torch.no_grad():
        ours.a.fill_(coefficient)
    theirs = torch.tensor(coefficient, dtype=F64, requires_grad=True)
    expected = released_steps(u, released_adjacency(path(N)), coefficient=theirs)
    smoothed = smooth(ours, u, path(N))
    torch.testing.assert_close(smoothed, expected)
    for output in (expected, smoothed):
        (output * torch.arange(N, dtype=F64)[:, None]).sum().backward()
    torch.testing.assert_close(ours.a.grad, theirs.grad)


def test_5_scores_of_bags_predicted_negative_are_minus_5_and_then_pooled():
    released = {}
    for name, bags in (("val", BAGS[:2]), ("test", BAGS[2:])):
        scores = [s if logit > 0 else [-5.0] * len(s) for _, _, _, logit, s, _ in bags]
        released[name] = np.concatenate(scores).astype(np.float32), np.concatenate([bag[5] for bag in bags])
    (val_f, val_y), (test_f, test_y) = released["val"], released["test"]
    fpr, tpr, thresholds = roc_curve(val_y, val_f)
    arrays = [as_evaluated(["eval_gate_by_bag"], part(bags)) for bags in (BAGS[2:], BAGS[:2])]
    found = run_metrics(*arrays)
    assert found.test.values["instance_auroc"] == pytest.approx(roc_auc_score(test_y, test_f))
    assert found.thresholds[""] == pytest.approx(thresholds[np.argmax(tpr * (1 - fpr))])


def test_6_edge_weights_are_exp_of_minus_the_distance_over_the_features():
    bag = make_bag(N, 4)
    weights = feature_distance_weights(bag.x, bag.neighbors)
    x = bag.x.numpy()
    for i, row in enumerate(bag.neighbors.tolist()):
        for k, j in enumerate(row):
            expected = np.exp(-np.linalg.norm(x[i] - x[j]) / x.shape[1]) if j >= 0 else 0
            assert weights[i, k].item() == pytest.approx(expected, rel=1e-5)
    batch = pack([replace(bag, edge_weight=weights)])
    dense = graph_of(batch).dense().double()
    connected = (bag.neighbors >= 0).any(1)
    expected = released_adjacency(bag.neighbors, weights)
    torch.testing.assert_close(dense[connected], expected[connected], rtol=1e-5, atol=1e-6)


def test_7_a_slice_is_joined_with_itself_and_both_sides(u):
    edges = [[i, i + j] for i in range(N) for j in (-1, 0, 1) if 0 <= i + j < N]
    a = torch.zeros(N, N, dtype=F64)
    for i, j in edges:
        a[i, j] = 1
    d = a.sum(0)
    neighbors = torch.cat([torch.arange(N)[:, None], path(N)], 1)
    dense = normalise_adjacency(neighbors, dtype=F64).dense()
    torch.testing.assert_close(dense, a / torch.sqrt(d[:, None] * d[None, :]))


def test_12_attention_is_exp_over_the_sum_of_exp():
    torch.manual_seed(0)
    pool = AttentionPool(6, 4, sm=None).double()
    pool.plain_softmax = True
    x = torch.randn(N, 6, dtype=F64)
    f = linear(torch.tanh(linear(x, pool.W.weight, pool.W.bias)), pool.w.weight)[:, 0]
    s = torch.exp(f) / torch.exp(f).sum()
    scores, z = pool(x, torch.tensor([0, N]))
    torch.testing.assert_close(scores, f)
    torch.testing.assert_close(z[0], s @ x)


@pytest.mark.parametrize("n", [1, 8])
def test_13_rows_of_isolated_nodes_are_zero_unless_the_bag_is_one_node(n):
    neighbors, alpha = random_table(n, 3, p=0.15), 0.3
    u = torch.randn(n, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    sm = Sm(alpha)
    sm.use_released(swapped=True, ratio=False, isolated=True)
    assert n == 1 or not (neighbors >= 0).any(1).all()
    torch.testing.assert_close(smooth(sm, u, neighbors), released_steps(u, released_adjacency(neighbors), alpha))


def test_15_names_are_sorted_as_text_and_labels_are_not():
    grid = np.array([(i, j) for i in range(12) for j in range(11) if (i + j) % 3])
    labels = np.arange(len(grid))
    names = [f"0005f7aaab2800f6170c399693a96917_{i}_{j}" for i, j in grid]
    lattice = {tuple(map(int, name.split("_")[1:])): label for name, label in zip(sorted(names), labels, strict=True)}
    moved = labels_by_name(labels, grid)
    assert moved.tolist() == [lattice[i, j] for i, j in grid.tolist()]
    assert (moved != labels).mean() > 0.5
    # up to ten rows and columns text sorts as numbers do, and a list sorted as text changes nothing
    small = grid[(grid < 10).all(1)]
    assert labels_by_name(labels[: len(small)], small).tolist() == labels[: len(small)].tolist()
    as_text = grid[np.argsort(names)]
    assert labels_by_name(labels, as_text).tolist() == labels.tolist()


@pytest.mark.parametrize("labels", [[-1, -1], [0, -1, 0], [0, 1, -1], [1, 1], [0]])
@pytest.mark.parametrize("grade", [0, 1, 5])
def test_16_slides_without_patch_labels_or_against_their_grade_are_dropped(labels, grade):
    bag_label = max(labels)
    dropped = bag_label == -1 or bag_label != (0 if grade == 0 else 1)
    coverage = np.array([np.nan if label < 0 else float(label) for label in labels])
    assert is_consistent(coverage, float(grade > 0), DataOptions()) == (not dropped)


@pytest.mark.parametrize("slide_label", [0, 1])
@pytest.mark.parametrize("largest", [1.0, 0.5, 0.3, 0.25, 0.01])
def test_17_the_share_is_halved_until_a_tumour_slide_has_a_patch(largest, slide_label):
    share = np.array([0.0, largest, largest / 2]) * slide_label
    threshold, labels = 0.5, np.zeros(3, int)
    while slide_label == 1:
        labels = (share > threshold).astype(int)
        if labels.sum() > 0:
            break
        threshold *= 0.5
    found, used = instance_labels(share, float(slide_label), DataOptions(label_rule="halving"))
    assert found.tolist() == labels.tolist() and used == threshold


def test_18_every_class_has_its_own_bins():
    rng = np.random.default_rng(0)
    y, f = np.arange(60) % 2, rng.normal(size=60)
    for label in (0, 1):
        counts, bins = np.histogram(f[y == label], bins=20, density=False)
        shares, edges = histogram(y, f, label, own_bins=True)
        assert np.array_equal(shares, counts / counts.sum()) and np.array_equal(edges, bins)


@dataclass(frozen=True)
class Row:
    bag_id: str
    y: float
    group: str = ""
    split: str = "train"


@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
def test_19_splits_are_those_of_scikit_learn_over_the_bags_by_name(seed, tmp_path):
    rng = np.random.default_rng(seed)
    bags = [Row(f"b{i:03d}", float(rng.random() < 0.3), f"g{i // 3}") for i in range(97)]
    names, labels = [bag.bag_id for bag in bags], [bag.y for bag in bags]
    places = list(range(len(names)))
    train, val = train_test_split(places, test_size=0.15, random_state=seed, stratify=labels)
    shuffled = [*(bags[i] for i in rng.permutation(97)), Row("t", 1.0, split="test")]
    split = make_split(shuffled, seed, 0.15, released=True)
    assert split.train == tuple(names[i] for i in train) and split.val == tuple(names[i] for i in val)
    assert split != make_split(bags, seed, 0.15)
    write_splits(tmp_path / "splits.csv", shuffled, [split])
    stored = read_splits(tmp_path / "splits.csv")[seed]
    assert {name for name, side in stored.items() if side == "val"} == set(split.val)


def test_19_patients_on_both_sides_are_counted_and_impossible_splits_are_refused(caplog):
    bags = [Row(f"b{i:02d}", float(i % 2), "one patient") for i in range(20)]
    make_split(bags, 1, 0.2, released=True)
    assert "1 groups lie in training and in validation" in caplog.text
    with pytest.raises(ValueError, match=r"19 negative and 1 positive.*quirks: \{splits: false\}"):
        make_split([Row(f"b{i:02d}", float(i == 0)) for i in range(20)], 1, 0.2, released=True)
    with pytest.raises(ValueError, match="validation part would hold 3 negative and 0 positive"):
        make_split([Row(f"b{i:02d}", float(i < 2)) for i in range(30)], 1, 0.1, released=True)


def test_19_given_validation_bags_stay_whatever_the_quirk():
    bags = [*(Row(f"b{i}", float(i % 2)) for i in range(8)), Row("v0", 0.0, split="val"), Row("v1", 1.0, split="val")]
    assert make_split(bags, 3, 0.2, released=True) == make_split(bags, 3, 0.2)
