"""Every row of the registry keeps the contract of a method: batches, sizes, gradients, signs, files."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from smmil.config.methods import METHODS
from smmil.data.batch import EVERYTHING, Bag, pack
from smmil.models import build_model
from tests.helpers.graphs import make_bag, path, permute
from tests.helpers.models import apart, assert_same

P = 12
# methods whose bag logit depends on the order of the instances by design: TransMIL by its position encoding on a
# square, both by the value convolution along the sequence (and by landmarks, in bags with more tokens than those)
ORDER_DEPENDENT: frozenset[str] = frozenset({"transmil", "camil"})
# fewer landmarks, so that bags of a few hundred instances are not padded to one length
LEVEL_OPTIONS: dict[str, dict[str, int]] = {"transmil": {"n_landmarks": 16}}
# methods that draw pseudo-bags by the place of an instance: the bag logit depends on the order, the scores do not
SPLIT_BY_PLACE: frozenset[str] = frozenset({"dftd", "dftd_maxmin", "dftd_max", "smdftd"})
TRANSFORMERS = ("t_ap", "smt_ap", "t_smap", "smtap", "t_penalty", "transmil")
# small forms of the methods whose sixty steps would take many seconds
PLANTED_OPTIONS: dict[str, dict[str, float]] = {
    **dict.fromkeys(TRANSFORMERS, {"width": 128}),
    **dict.fromkeys(("transmil", "camil"), {"width": 128, "n_landmarks": 16}),
    **{"pathgcn": {"width": 128, "hidden": 64}, "deepgraphsurv": {"width": 128}, "iibmil": {"depth": 1, "z": 32}},
    "setmil": {"width": 128, "depth": 2, "token_dim": 16, "level_dim": 16, "n_heads": 4},
    # at lambda = 1 a flat f is the minimum as soon as the transformer separates the bags without attention
    "t_penalty": {"width": 128, "penalty": 0.1},
}
# initial weights; from those of seed 1, some transformers learn to attend to the other instances
PLANTED_SEEDS: dict[str, int] = dict.fromkeys(TRANSFORMERS, 2)
# terms of a loss that compare a logit with the label of its bag; the others know no label, or those of instances
OF_BAG_LABELS: frozenset[str] = frozenset({"bce", "critical", "pseudo"})


def build(name: str, seed: int = 0, **options):
    torch.manual_seed(seed)
    return build_model(name, P, **options)


def bags(*sizes: int) -> list[Bag]:
    return [make_bag(n, seed, features=P, y=float(seed % 2)) for seed, n in enumerate(sizes)]


def step(name: str, batch) -> list[torch.Tensor]:
    """The loss of a training step and all gradients, which are finite where there are any."""
    model = build(name).train()
    loss = sum(model.loss(batch, model(batch)).values())
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(torch.isfinite(part).all() for part in (loss, *gradients))
    return [loss.detach(), *gradients]


pytestmark = pytest.mark.parametrize("name", sorted(METHODS))


def test_a_ragged_batch_equals_one_by_one_and_saved_weights_give_the_same_bits(name, tmp_path):
    model, other, batch = build(name).eval(), build(name, seed=99).eval(), pack(bags(7, 1, 30, 2))
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    with torch.no_grad():
        whole = model(batch)
        assert_same(whole, apart(model, batch), rtol=1e-5, atol=1e-5)
        assert_same(whole, other(batch), rtol=0, atol=0)
    assert whole.bag_logit.shape == (4,) and whole.instance_score.shape == (40,)


def test_permuting_instances_permutes_scores_and_keeps_the_logit(name):
    model, bag = build(name).eval(), make_bag(20, 3, features=P)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        straight, mixed = model(pack([bag])), model(pack([permute(bag, order)]))
    if name in ORDER_DEPENDENT:
        assert not torch.allclose(mixed.bag_logit, straight.bag_logit, atol=1e-7)
        return
    torch.testing.assert_close(mixed.instance_score, straight.instance_score[order], rtol=1e-4, atol=1e-5)
    if name not in SPLIT_BY_PLACE:
        torch.testing.assert_close(mixed.bag_logit, straight.bag_logit, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_tiny_bags_train_with_finite_gradients(name, n):
    step(name, pack([make_bag(n, 0, features=P)]))


def test_every_parameter_gets_a_gradient_from_the_fields_that_the_method_needs_and_a_seed_repeats_the_step(name):
    made = bags(40, 35, 50, 45)
    whole, needed = step(name, pack(made, EVERYTHING)), step(name, pack(made, build(name).needs))
    # a bias in front of a softmax, or keys of a single token, have an exactly zero gradient: only absence is a fault
    assert len(whole) == len(needed) == 1 + len(list(build(name).parameters()))
    assert all(map(torch.equal, whole, needed))


@pytest.mark.parametrize("scale", [1e3, 0.0])
def test_extreme_inputs_give_no_nan(name, scale):
    model, batch = build(name).train(), pack([make_bag(12, 0, features=P), make_bag(5, 1, features=P)])
    batch.x.mul_(scale)
    output = model(batch)
    assert torch.isfinite(output.bag_logit).all() and torch.isfinite(output.instance_score).all()
    assert math.isfinite(float(sum(model.loss(batch, output).values()).detach()))


def test_a_forward_pass_in_half_precision_trains(name):
    model, batch = build(name).train(), pack(bags(9, 12))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(batch)
    # as the training loop does: logits and scores are raised, losses are computed outside
    output.bag_logit, output.instance_score = output.bag_logit.float(), output.instance_score.float()
    total = sum(model.loss(batch, output).values())
    total.backward()
    assert math.isfinite(float(total.detach()))
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_the_level_of_scores_depends_on_the_bag_exactly_where_the_registry_says_that_scores_do_not_compare(name):
    """Between bags of 25 and of 300 alike instances, against the spread within a bag."""
    model, sizes = build(name, **LEVEL_OPTIONS.get(name, {})).eval(), (25, 300)
    with torch.no_grad():
        scores = [model(pack([make_bag(n, seed, features=P) for seed in range(4)])).instance_score for n in sizes]
    small, large = (score.view(4, n).double() for score, n in zip(scores, sizes, strict=True))
    shift = (small.mean() - large.mean()).abs() / max(small.std(1).mean(), large.std(1).mean())
    assert shift < 0.7 if METHODS[name].scores_compare else shift > 3
    if name in ("setmil", "transmil"):
        assert small.mean() / large.mean() == pytest.approx(300 / 25, rel=0.2)


def loss_terms(name: str, weight: float | None, *labels: float, training: bool = False) -> dict[str, torch.Tensor]:
    """The method's own loss() on bags with the given labels; same weights, bags and draws whatever the class weight."""
    model = build(name, pos_weight=weight).train(training)
    batch = pack([make_bag(7 + i, i, features=P, y=y) for i, y in enumerate(labels)])
    torch.manual_seed(5)
    return {key: term.detach() for key, term in model.loss(batch, model(batch)).items()}


@pytest.mark.parametrize("training", [True, False])
def test_class_weight_multiplies_every_bag_label_term_of_positive_bags_in_the_methods_own_loss(name, training):
    """Cross entropies of bag labels grow threefold, other terms stay; no term of a negative bag moves."""
    for labels, factor in (((1, 1), 3.0), ((0, 0), 1.0)):
        plain, weighted = (loss_terms(name, weight, *labels, training=training) for weight in (None, 3.0))
        assert plain.keys() == weighted.keys() and plain["bce"] > 0
        for term, value in plain.items():
            expected = factor * value if term in OF_BAG_LABELS else value
            torch.testing.assert_close(weighted[term], expected, rtol=1e-6, atol=0)


def test_class_weight_counts_a_positive_bag_among_negative_ones_by_its_share_of_the_mean(name):
    """One positive of three bags: (3 p + n + n') / 3 against (p + n + n') / 3, p the term of the positive bag alone."""
    plain, weighted = (loss_terms(name, weight, 1, 0, 0) for weight in (None, 3.0))
    alone = loss_terms(name, None, 1)
    for term, value in plain.items():
        more = 2 * alone[term] / 3 if term in OF_BAG_LABELS else 0.0
        torch.testing.assert_close(weighted[term], value + more, rtol=1e-5, atol=1e-6)


def planted(seed: int, positive: bool) -> Bag:
    """A chain of 16 instances; positive bags hold 4 neighbouring ones that are shifted in three features."""
    bag = make_bag(16, seed, features=P, y=float(positive))
    truth = torch.zeros(16, dtype=torch.int64)
    if positive:
        truth[6:10] = 1
    x = bag.x * 0.5 + 2.5 * truth[:, None] * (torch.arange(P) < 3)
    grid = torch.stack([torch.arange(16), torch.zeros(16, dtype=torch.int64)], 1)
    return Bag(bag.bag_id, x, path(16), grid, bag.coords, bag.y, truth, truth.float())


def test_planted_instances_score_higher_after_overfitting(name):
    model = build(name, PLANTED_SEEDS.get(name, 1), **PLANTED_OPTIONS.get(name, {})).train()
    batch = pack([planted(seed, seed % 2 == 1) for seed in range(12)])
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-4)
    torch.manual_seed(0)
    for _ in range(60):
        optimiser.zero_grad()
        sum(model.loss(batch, model(batch)).values()).backward()
        optimiser.step()
    model.eval()
    fresh = pack([planted(100 + seed, seed % 2 == 1) for seed in range(10)])
    with torch.no_grad():
        output = model(fresh)
    assert ((output.bag_logit > 0) == (fresh.y == 1)).all()
    positive = output.instance_score[fresh.y_inst == 1]
    assert positive.mean() > output.instance_score[fresh.y_inst == 0].mean()
