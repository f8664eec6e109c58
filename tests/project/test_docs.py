"""The worked example of the docs is run: its file, its registry line and its table line."""

import importlib.util
import re

import pytest
import torch

from smmil import models
from smmil.config import methods as methods_table
from smmil.data.batch import pack
from tests.helpers.graphs import make_bag
from tests.models.test_models import planted

P = 12


@pytest.fixture
def example(repository, tmp_path, monkeypatch):
    """Registers the method that the page adds."""
    page = (repository / "docs" / "adding-a-method.md").read_text(encoding="utf-8")
    source, registry, table = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    path = tmp_path / "example.py"
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("example_of_the_docs", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, line, known in (("MODELS", registry, models), ("METHODS", table, methods_table)):
        added = eval("{" + line + "}", {**vars(known), **vars(module)})
        assert len(added) == 1
        monkeypatch.setattr(known, name, {**getattr(known, name), **added})
    return source, next(iter(added))


def test_the_example_is_short_and_shown_by_its_name(example):
    source, key = example
    assert len(source.splitlines()) < 60
    assert methods_table.display_name(key) == "Sm log-mean-exp"
    assert methods_table.METHODS[key][1] in methods_table.GROUPS


def test_the_example_keeps_the_contract_of_a_method(example):
    torch.manual_seed(0)
    model = models.build_model(example[1], P, pos_weight=2.0).eval()
    batch = pack([make_bag(n, n, features=P) for n in (7, 1, 20)])
    with torch.no_grad():
        whole, singles = model(batch), [model(single) for single in batch.split()]
    torch.testing.assert_close(whole.bag_logit, torch.cat([s.bag_logit for s in singles]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(whole.instance_score, torch.cat([s.instance_score for s in singles]))
    # the sharper, the closer to the maximum; a bag of one instance is its instance
    sharp = models.build_model(example[1], P, r=200.0)
    sharp.load_state_dict(model.state_dict())
    output = sharp(batch)
    top = torch.stack([part.max() for part in output.instance_score.split(batch.sizes.tolist())])
    torch.testing.assert_close(output.bag_logit, top, rtol=0, atol=0.02)
    assert output.bag_logit[1].item() == pytest.approx(output.instance_score[7].item(), abs=1e-6)


def test_the_example_finds_planted_instances(example):
    torch.manual_seed(0)
    model, batch = models.build_model(example[1], P), pack([planted(seed, seed % 2 == 1) for seed in range(12)])
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(30):
        optimiser.zero_grad()
        sum(model.loss(batch, model(batch)).values()).backward()
        optimiser.step()
    assert all(parameter.grad is not None for parameter in model.parameters())
    fresh = pack([planted(100 + seed, seed % 2 == 1) for seed in range(10)])
    output = model(fresh)
    assert ((output.bag_logit > 0) == (fresh.y == 1)).all()
    scores = output.instance_score
    assert scores[fresh.y_inst == 1].mean() > scores[fresh.y_inst == 0].mean()
