"""The sign-aware score: what it is by hand, for every method, and on attention that looks away from the lesion."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from smmil.artifacts.records import PartMetrics, SplitMetrics
from smmil.config.methods import METHODS
from smmil.data.batch import Bag, BagBatch, pack
from smmil.data.cache import BagCache
from smmil.evaluate.metrics import auroc, bag_metrics
from smmil.evaluate.signs import is_unsupported
from smmil.layers.segments import segment_mean
from smmil.models import build_model
from smmil.models.abmil import ABMIL
from smmil.models.base import MILModel, Output
from smmil.predictions import signed
from smmil.predictions.signed import find_direction, signed_score
from tests.helpers.graphs import make_bag

CPU = torch.device("cpu")
P = 6


def cached(bags: list[Bag]) -> BagCache:
    return BagCache(bags, CPU)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_gives_finite_scores_whatever_shares_a_pass_and_is_left_as_it_was(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = build_model(name, P).double()
    bags = [make_bag(n, seed, features=P) for seed, n in enumerate((7, 1, 12, 5))]
    flat = dataclasses.replace(bags[3], x=bags[3].x[:1].expand(5, P).clone())
    bags = [dataclasses.replace(bag, x=bag.x.double()) for bag in (*bags[:3], flat)]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    together, again = (find_direction(model, cached(bags), range(4)) for _ in range(2))
    assert torch.equal(together.vector, again.vector) and together.agreement == again.agreement
    monkeypatch.setattr("smmil.data.cache.AHEAD", 0)
    alone = find_direction(model, cached(bags), range(4))
    scale = float(alone.vector.abs().max())
    torch.testing.assert_close(together.vector, alone.vector, rtol=1e-9, atol=1e-10 * scale)
    torch.testing.assert_close(together.origin, alone.origin, rtol=1e-12, atol=1e-12)
    assert together.agreement == pytest.approx(alone.agreement, abs=1e-6) and -1 <= together.agreement <= 1
    for bag in bags:
        score = signed_score(together, bag.x)
        assert score.shape == (len(bag),) and score.dtype == torch.float32 and bool(score.isfinite().all())
    assert len(set(signed_score(together, bags[3].x).tolist())) == 1 and bool(together.vector.any())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_gradient_is_that_of_a_common_shift() -> None:
    torch.manual_seed(1)
    model = build_model("abmil", P, width=8, attention_dim=4).double().eval()
    bag = make_bag(6, 0, features=P)
    bag = dataclasses.replace(bag, x=bag.x.double())
    (gradient,), (logit,) = signed.shift_gradients(model, pack([bag]))
    shift, step = torch.randn(P, dtype=torch.float64), 1e-6
    with torch.no_grad():
        moved = model(pack([dataclasses.replace(bag, x=bag.x + step * shift)])).bag_logit[0]
    assert float((moved - logit) / step) == pytest.approx(float(gradient @ shift), rel=1e-4)


class Mean(MILModel):
    """Logit c . mean x, score minus the first feature: an attention that looks away."""

    def __init__(self, c: torch.Tensor) -> None:
        super().__init__(len(c), width=1)
        self.c = c

    def forward(self, batch: BagBatch) -> Output:
        return Output(segment_mean(batch.x, batch.offsets) @ self.c, -batch.x[:, 0])


def test_for_mean_pooling_it_is_the_instances_own_contribution() -> None:
    c = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0, 1.0])
    bags = [make_bag(n, n, features=P) for n in (4, 9, 2)]
    found = find_direction(Mean(c), cached(bags), range(3))
    everything = torch.cat([bag.x for bag in bags])
    assert found.agreement == pytest.approx(1.0)
    for bag in bags:
        expected = (bag.x - everything.mean(0)) @ c
        torch.testing.assert_close(signed_score(found, bag.x), expected, rtol=1e-5, atol=1e-5)


def test_a_gradient_that_contradicts_the_logits_is_turned_around() -> None:
    class Folded(Mean):
        """Falls along c near every bag, though bags further along c have the higher logit: a saw tooth."""

        def forward(self, batch: BagBatch) -> Output:
            along = segment_mean(batch.x, batch.offsets) @ self.c
            return Output(2 * along.detach() - along, batch.x[:, 0])

    c, bags = torch.ones(P), [make_bag(n, n, features=P) for n in (4, 9, 2, 5)]
    found = find_direction(Folded(c), cached(bags), range(4))
    assert found.agreement == pytest.approx(-1.0)
    torch.testing.assert_close(found.vector, c.double())


def test_without_a_usable_gradient_scores_are_zero_and_without_bags_it_refuses() -> None:
    class Nowhere(Mean):
        def forward(self, batch: BagBatch) -> Output:
            return Output(segment_mean(batch.x, batch.offsets) @ self.c + 0 * (batch.x - batch.x).sqrt().sum(), self.c)

    bags = [make_bag(4, 0, features=P)]
    found = find_direction(Nowhere(torch.ones(P)), cached(bags), [0])
    assert found.agreement == 0.0 and signed_score(found, bags[0].x).tolist() == [0.0] * 4
    with pytest.raises(ValueError, match="no validation bag"):
        find_direction(Mean(torch.ones(P)), cached(bags), [])


def planted(seed: int, *, positive: bool) -> Bag:
    """8 instances; in a positive bag three are shifted along the first two features."""
    bag = make_bag(8, seed, features=P, y=float(positive))
    x = torch.randn((8, P), generator=torch.Generator().manual_seed(seed))
    y_inst = torch.zeros(8, dtype=torch.int64)
    if positive:
        y_inst[:3] = 1
        x[:3, :2] += 2.5
    return dataclasses.replace(bag, bag_id=f"{seed}", x=x, y_inst=y_inst, y=float(positive))


def test_attention_trained_and_then_turned_away_ranks_backwards_and_the_signed_score_forwards() -> None:
    """ABMIL learns planted bags, its attention is negated and frozen, and the rest is trained on around it."""
    torch.manual_seed(0)
    bags = [planted(seed, positive=seed % 2 == 1) for seed in range(80)]
    train, val, test = pack(bags[:40]), range(40, 60), bags[60:]
    model = ABMIL(P, width=16, attention_dim=8)
    fit(model, train, 40)
    upright = raw_and_signed(model, bags, val, test)
    with torch.no_grad():
        scorer = dict(model.pool.named_parameters())
        last = [value for key, value in scorer.items() if key.endswith("weight") and value.shape[0] == 1]
        assert len(last) == 1
        last[0].neg_()
    for parameter in [*model.pool.parameters(), *model.embed.parameters()]:
        parameter.requires_grad_(False)
    fit(model, train, 40)
    inverted = raw_and_signed(model, bags, val, test)
    assert upright["raw"] > 0.8 and upright["signed"] > 0.8
    assert inverted["raw"] < 0.25 and inverted["signed"] > 0.65


@pytest.mark.parametrize("learnable", [True, False])
def test_a_sign_is_supported_where_bags_were_learned_and_not_where_labels_are_random(learnable: bool) -> None:
    """Bags of digits, positive with a nine: a low agreement, and yet the right sign."""
    torch.manual_seed(0)
    rng = np.random.default_rng(1)
    images, targets = load_digits(return_X_y=True)
    bags = []
    for i in range(200):
        wanted = rng.permutation(12) < 2 * (i % 2)
        rows = [rng.choice(np.flatnonzero((targets == 9) == nine)) for nine in wanted]
        bag = make_bag(12, i, features=64, y=float(i % 2))
        x, y_inst = torch.tensor(images[rows] / 16).float(), torch.tensor(wanted).long()
        bags.append(dataclasses.replace(bag, bag_id=f"{i}", x=x, y_inst=y_inst))
    train = bags[:120]
    if not learnable:
        train = [dataclasses.replace(bag, y=float(y)) for bag, y in zip(train, rng.integers(0, 2, 120), strict=True)]
    model = ABMIL(64, width=16, attention_dim=8)
    fit(model, pack(train), 60)
    direction = find_direction(model, cached(bags), range(120, 160))
    with torch.no_grad():
        val = bag_metrics(*((batch := pack(bags[120:160])).y.numpy(), model(batch).bag_logit.numpy()))
    split = SplitMetrics(seed=1, lr=1e-4, run="r", test=PartMetrics(), val=val, signed_agreement=direction.agreement)
    test = bags[160:]
    y = np.concatenate([bag.y_inst.numpy() for bag in test])
    area = auroc(y, np.concatenate([signed_score(direction, bag.x).numpy() for bag in test]))
    assert is_unsupported(split) != learnable
    assert (area > 0.8 and direction.agreement < 0.7) if learnable else area < 0.65


def fit(model: ABMIL, batch: BagBatch, epochs: int) -> None:
    model.train()
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    for _ in range(epochs):
        optimiser.zero_grad()
        torch.autograd.backward(torch.stack(list(model.loss(batch, model(batch)).values())).sum())
        optimiser.step()


def raw_and_signed(model: ABMIL, bags: list[Bag], val: range, test: list[Bag]) -> dict[str, float]:
    found = find_direction(model, cached(bags), val)
    with torch.no_grad():
        raw = model(pack(test)).instance_score.numpy()
    y = np.concatenate([bag.y_inst.numpy() for bag in test])
    sign_aware = np.concatenate([signed_score(found, bag.x).numpy() for bag in test])
    return {"raw": auroc(y, raw) or 0.0, "signed": auroc(y, sign_aware) or 0.0}


def test_labels_of_instances_and_bags_do_not_reach_it() -> None:
    torch.manual_seed(0)
    model = build_model("dsmil", P)
    bags = [planted(seed, positive=seed % 2 == 1) for seed in range(6)]
    wrong = [dataclasses.replace(bag, y=1 - bag.y, y_inst=1 - bag.y_inst) for bag in bags]
    a, b = (find_direction(model, cached(list(one)), range(6)) for one in (bags, wrong))
    assert torch.equal(a.vector, b.vector) and a.agreement == b.agreement
