"""What the methods with Sm and the options of all methods have in common."""

import pytest
import torch

from tests.helpers.models import assert_same, batch_of, build

BASES = [(f"smap_{placement}", "abmil") for placement in ("early", "mid", "late")]
BASES += [("smtap", "t_ap"), ("smclam", "clam"), ("smdsmil", "dsmil"), ("smdftd", "dftd")]


@pytest.mark.parametrize(("name", "base"), BASES)
def test_alpha_zero_is_the_base_method(name, base):
    smooth, plain, batch = build(name, alpha=0.0, spectral_norm=False), build(base), batch_of(9, 4, 1)
    plain.load_state_dict(smooth.state_dict())
    assert_same(smooth(batch), plain(batch))
    torch.testing.assert_close(smooth.loss(batch, smooth(batch)), plain.loss(batch, plain(batch)))


@pytest.mark.parametrize("name", [name for name, _ in BASES])
def test_a_fixed_alpha_as_released_is_one_minus_alpha_as_written_bit_for_bit(name):
    batch = batch_of(9, 4)
    released, mirrored, written = (
        build(name, alpha=alpha, quirks=quirks)(batch)
        for alpha, quirks in ((0.3, ["sm_alpha_rule"]), (0.7, []), (0.3, []))
    )
    assert_same(released, mirrored, rtol=0, atol=0)
    assert not torch.equal(released.bag_logit, written.bag_logit)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("smclam", {"attention.V", "attention.U", "attention.w"}),
        ("smdsmil", {"query", "query_2"}),
        ("smdftd", {"pool.W", "pool.w", "pool.gate"}),
        *[(name, {"pool.W", "pool.w"}) for name in ("smap_early", "t_smap", "smtap")],
        *[("smap_mid", {"pool.w"}), ("smap_late", set()), ("smt_ap", set())],
    ],
)
def test_only_the_layers_after_sm_are_spectrally_normalised(name, layers):
    parameters = dict(build(name).named_parameters())
    assert {key.split(".parametrizations")[0] for key in parameters if "original" in key} == layers


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        *[("deepgraphsurv", {"K": 0}, "K"), ("deepgraphsurv", {"variant": "gin"}, "variant")],
        *[("gtp", {"seed": "two"}, "seed"), ("gtp", {"relevance": "gradient"}, "relevance")],
        *[("pathgcn", {"variant": "knn"}, "variant"), ("camil", {"code": "released"}, "code")],
        *[("abmil_penalty", {"on": "f"}, "'f'"), ("abmil_penalty", {"penalty": -1.0}, "-1")],
        *[("abmil_penalty", {"power": 3}, "3"), ("clam", {"inst_loss": "hinge"}, "inst_loss")],
        *[("dsmil", {"score": "max"}, "score"), ("dftd", {"distill": "mean"}, "distill")],
        *[("mean_pool", {"pool": "sum"}, "pool"), ("smap_early", {"placement": "start"}, "placement")],
        *[("abmil", {"embed_act": "elu"}, "embed_act"), ("transmil", {"small_bags": "padded"}, "small_bags")],
        *[("abmil", {"widht": 8}, "widht"), ("camil", {"n_landmark": 8}, "n_landmark")],
        *[("iibmil", {"max_tokens": 8}, "max_tokens = 8"), ("setmil", {"max_tokens": 8}, "max_tokens = 8")],
    ],
)
def test_wrong_options_and_too_long_bags_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        build(name, **options)(batch_of(9))
