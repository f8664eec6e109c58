"""As written or as released: every quirk acts by its meaning, alone too, and none touches what it does not concern."""

import copy
import json
import re
from dataclasses import replace
from itertools import product

import pytest
import torch
import yaml
from safetensors.torch import load_file

from smmil.artifacts.hashes import hash_json
from smmil.artifacts.records import RunConfig, RunsFile
from smmil.config.experiment import parse_config, training_options
from smmil.config.quirks import QUIRKS, RELEASE, active_quirks, method_changes
from smmil.config.training_options import DataOptions, TrainingOptions
from smmil.data.batch import pack
from smmil.data.cache import BagCache
from smmil.data.loading import list_usable, load_listed
from smmil.data.sources import open_source
from smmil.data.splits import make_split
from smmil.layers.segments import plain_softmax, segment_softmax
from smmil.models import MODEL_QUIRKS, build_model
from smmil.protocol import markdown_table
from smmil.train import __main__ as train
from smmil.train.fit import validate
from smmil.train.specs import Job, job_options, job_specs
from tests.helpers.graphs import make_bag, table
from tests.helpers.train_helpers import UNBALANCED, make_dataset, train_arguments

F64 = torch.float64
P = 6


@pytest.fixture
def paper(repository):
    return yaml.safe_load((repository / "config.yaml").read_text())


def with_quirks(values, **quirks):
    return parse_config({**values, "quirks": quirks})


def spec_of(dataset, method="smap_early", options="{}", **training):
    arguments = train_arguments(dataset, dataset / "out", method, **training)
    parsed = train.build_parser().parse_args([*arguments, "--method-options", options])
    chosen = job_options(parsed.config_json, method)
    source = open_source(parsed, chosen.data)
    return job_specs(Job("tiny", "tiny", method, json.loads(options), chosen, source, dataset / "out"))[0]


def test_the_docs_show_every_row(repository):
    page = (repository / "docs/reference/protocol.md").read_text(encoding="utf-8")
    assert markdown_table() in page, "paste `python -m smmil.protocol` into docs/reference/protocol.md"


def test_every_row_cites_the_release_and_has_a_test(repository):
    place = r"[a-zA-Z_/]+/\w+\.(py|sh):\d+(-\d+)?(,\d+(-\d+)?)*"
    assert all(re.fullmatch(rf"{place}(; {place})*", quirk.source) for quirk in QUIRKS.values())
    page = (repository / "docs/reference/protocol.md").read_text(encoding="utf-8")
    assert RELEASE.split(", ")[:2] == ["github.com/by-lin/SmMIL", "commit 4e2d1e0"]
    assert all(part in page for part in RELEASE.split(", ")[:2])
    tests = [file.read_text() for file in (repository / "tests/config").glob("test_*.py")]
    rows = {
        int(n) for text in tests for names in re.findall(r"def test_((?:\d+_)+)", text) for n in names[:-1].split("_")
    }
    assert rows == set(range(1, len(QUIRKS) + 1)) and len(QUIRKS) == 19


def test_the_protocol_sets_every_row_and_a_quirk_one():
    assert active_quirks("as_written", {}) == frozenset()
    preset = active_quirks("as_released", {})
    assert preset == frozenset(QUIRKS) - {"panda_label_order"}
    assert active_quirks("as_written", {"softmax": True, "train_lr": False}) == {"softmax"}
    assert active_quirks("as_released", {"softmax": False}) == preset - {"softmax"}
    assert active_quirks("as_released", {"panda_label_order": True}) == frozenset(QUIRKS)
    with pytest.raises(ValueError, match="as_published"):
        active_quirks("as_published", {})


def test_an_unknown_quirk_is_refused_with_the_known_ones(paper):
    with pytest.raises(ValueError, match="sm_alpha_rul.*sm_alpha_rule"):
        parse_config({**paper, "quirks": {"sm_alpha_rul": True}})
    with pytest.raises(ValueError, match="smoth"):
        build_model("smap_early", P, quirks=["smoth"])


# ---- keys of finished runs


@pytest.mark.parametrize("quirk", ["eval_gate_by_bag", "eval_histogram", "panda_label_order"])
def test_what_only_evaluation_sees_trains_nothing_again(dataset, quirk):
    assert spec_of(dataset, quirks={quirk: True}).key == spec_of(dataset).key


def test_a_quirk_that_cannot_act_on_a_run_leaves_its_key(dataset):
    """Alpha is trained, ABMIL has no Sm, and only the release's name differs."""
    assert spec_of(dataset, quirks={"sm_alpha_rule": True}).key == spec_of(dataset).key
    no_sm = {"sm_alpha_param": True, "sm_spectral_norm": True, "graph_isolated": True, "graph_edge_weight": True}
    assert spec_of(dataset, "abmil", quirks=no_sm).key == spec_of(dataset, "abmil").key
    off = dict.fromkeys(QUIRKS, False)
    assert spec_of(dataset, protocol="as_released", quirks=off).key == spec_of(dataset).key


@pytest.mark.parametrize("quirk", ["sm_alpha_param", "sm_spectral_norm", "graph_isolated", "select_val_loss"])
def test_a_quirk_that_acts_is_another_run(dataset, quirk):
    assert spec_of(dataset, quirks={quirk: True}).key != spec_of(dataset).key


# ---- 1, 2, 3, 9, 11, 12, 13: the model


@pytest.mark.parametrize("method", ["smap_mid", "smtap", "smdsmil"])
def test_1_the_swap_reaches_every_sm_of_a_model(method):
    batch, outputs = pack([make_bag(7, 1), make_bag(4, 2)]), []
    for alpha, quirks in ((0.2, ["sm_alpha_rule"]), (0.8, []), (0.2, [])):
        torch.manual_seed(0)
        model = build_model(method, P, alpha=alpha, quirks=quirks).eval()
        with torch.no_grad():
            outputs.append(model(batch).instance_score)
    torch.testing.assert_close(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2], rtol=1e-3)


def parametrised(model):
    return {name for name, _ in model.named_modules() if name.endswith("parametrizations")}


@pytest.mark.parametrize("method", ["smap_early", "smap_mid", "smtap", "t_smap"])
def test_3_no_layer_is_normalised_whatever_is_asked(method):
    asked = {"spectral_norm": True}
    assert parametrised(build_model(method, P, **asked))
    assert not parametrised(build_model(method, P, **method_changes({"sm_spectral_norm"}, method, asked)))


def test_9_smt_ap_is_smtap():
    changed = method_changes({"model_smt_ap_pool"}, "smt_ap", {})
    names = [set(build_model(m, P, **o).state_dict()) for m, o in (("smt_ap", changed), ("smtap", {}), ("smt_ap", {}))]
    assert names[0] == names[1] != names[2]
    assert method_changes({"model_smt_ap_pool"}, "t_ap", {}) == {}


def test_11_the_exact_solve_is_refused_where_it_is_asked_and_left_out_of_sweeps(paper, dataset, capsys):
    with pytest.raises(ValueError, match="smap_early.*exact.*sm_exact: false"):
        parse_config({**paper, "protocol": "as_released", "method_options": {"smap_early": {"T": "exact"}}})
    assert "smap_early__t_exact" in parse_config(paper).variants_on("rsna")
    released = parse_config({**paper, "protocol": "as_released"}).variants_on("rsna")
    assert "smap_early__t_exact" not in released and "smap_early__t_50" in released
    arguments = train_arguments(dataset, dataset / "exact", "smap_early", protocol="as_released")
    assert train.main([*arguments, "--method-options", '{"T": "exact"}']) == 2
    assert "released code cannot run" in capsys.readouterr().err


def test_12_the_plain_softmax_is_the_same_until_it_overflows():
    f, offsets = torch.tensor([0.3, -2.0, 5.0, 1.0, 80.0]), torch.tensor([0, 3, 5])
    torch.testing.assert_close(plain_softmax(f, offsets), segment_softmax(f, offsets))
    assert torch.isnan(plain_softmax(torch.tensor([100.0, 0.0]), torch.tensor([0, 2]))[0])
    torch.manual_seed(0)
    model = build_model("abmil", P, quirks=["softmax"]).eval()
    with torch.no_grad():
        model.pool.w.weight.mul_(1e5)
    assert torch.isnan(model(pack([make_bag(5, 3)])).bag_logit).all()


@pytest.mark.parametrize("method", ["smap_early", "smtap"])
def test_13_the_rule_of_isolated_nodes_reaches_the_model_and_spares_bags_of_one_instance(method):
    batch, scores = pack([replace(make_bag(3, 1), neighbors=table([(0, 1)], 3)), make_bag(1, 2)]), []
    for quirks in ([], ["graph_isolated"]):
        torch.manual_seed(0)
        scores.append(build_model(method, P, quirks=quirks).eval()(batch).instance_score.detach())
    assert not torch.allclose(scores[0][2], scores[1][2]) and torch.allclose(scores[0][3], scores[1][3])


@pytest.mark.parametrize("method", ["abmil", "smap_early", "smap_late", "smt_ap", "smtap", "smclam", "camil"])
def test_every_method_trains_a_step_as_released(method):
    torch.manual_seed(0)
    model = build_model(method, P, **method_changes(frozenset(QUIRKS), method, {}))
    batch = pack([make_bag(5, 1, y=1.0), make_bag(1, 2, y=0.0), make_bag(6, 3, y=0.0, p=0.0)])
    torch.stack(list(model.loss(batch, model(batch)).values())).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_a_model_is_rebuilt_with_its_quirks_from_what_its_run_records(dataset):
    spec = spec_of(dataset, options='{"alpha": 0.1}', quirks={"sm_alpha_rule": True, "graph_isolated": True})
    recorded = json.loads(json.dumps(spec.method_options))
    assert set(recorded["quirks"]) == {"sm_alpha_rule", "graph_isolated"} <= MODEL_QUIRKS
    assert build_model(spec.method, P, **recorded).pool.sm.alpha == 0.9


# ---- 6, 7, 15, 16, 17: loading


def load(dataset, **options):
    listing = list_usable(dataset / "bags.csv", [dataset / "features/tiny/shards/0000.json"])
    return load_listed(listing.bags, dataset / "instances", dataset / "features/tiny", DataOptions(**options))[0]


def test_6_edges_are_weighted_for_methods_with_sm(paper):
    config = with_quirks(paper, graph_edge_weight=True)
    found = {m: training_options(config, "panda", m).edge_weight for m in ("smap_early", "smclam", "abmil", "gtp")}
    assert found == {"smap_early": "feature_distance", "smclam": "feature_distance", "abmil": "none", "gtp": "none"}


def test_7_a_slice_is_its_own_neighbour(paper, dataset):
    config = with_quirks(paper, graph_rsna_self_loop=True)
    loops = {pair: training_options(config, *pair).self_loop for pair in product(("rsna", "panda"), ("smtap", "camil"))}
    assert [pair for pair, loop in loops.items() if loop] == [("rsna", "smtap")]
    bag = next(bag for bag in load(dataset, self_loop=True, edge_weight="feature_distance") if len(bag) == 3)
    assert bag.neighbors[:, 0].tolist() == [0, 1, 2] and bag.edge_weight[:, 0].tolist() == [1, 1, 1]


def test_15_only_labels_of_panda_are_moved(paper, dataset):
    plain, by_name = load(dataset), load(dataset, label_order="by_name")
    assert all(torch.equal(a.y_inst, b.y_inst) for a, b in zip(plain, by_name, strict=True))
    config = with_quirks(paper, panda_label_order=True)
    orders = [training_options(config, name, "abmil").label_order for name in ("panda", "rsna", "camelyon16")]
    assert orders == ["by_name", "stored", "stored"]


def test_16_17_the_released_rules_of_bags_and_patches(paper):
    other = copy.deepcopy(paper)
    other["datasets"]["panda"]["drop_inconsistent"] = False
    other["datasets"]["camelyon16"] |= {"label_rule": "strict", "label_threshold": 0.2}
    config = with_quirks(other, panda_discard=True, c16_patch_label=True)
    assert training_options(config, "panda", "abmil").drop_inconsistent
    assert not training_options(config, "rsna", "abmil").drop_inconsistent
    patches = training_options(config, "camelyon16", "abmil")
    assert (patches.label_rule, patches.label_threshold) == ("halving", 0.5)
    assert training_options(parse_config(other), "camelyon16", "abmil").label_rule == "strict"


# ---- 4, 8, 10, 14, 19: training; 5, 18: evaluation


def test_4_the_class_weight_counts_the_training_bags_of_the_split_alone_and_no_bag_under_the_quirk(tmp_path, paper):
    dataset = make_dataset(tmp_path / "tiny", states=UNBALANCED)
    asked = {"class_weight": True, "epochs": 1, "learning_rates": [0.0001]}
    for quirks, weight in (({}, 4 / 3), ({"train_class_weight": True}, None)):
        out = tmp_path / str(weight)
        assert train.main(train_arguments(dataset, out, "abmil", quirks=quirks, **asked)) == 0
        config = RunConfig.read(out / "split1_lr0.0001" / "config.json")
        assert (config.split.train_bags, config.split.train_positive_bags, config.pos_weight) == (7, 3, weight)
        weights = load_file(out / "split1_lr0.0001" / "best.safetensors")
        assert weights["pos_weight"].item() == pytest.approx(weight or 1.0, rel=1e-6)
    assert not training_options(with_quirks(paper, train_class_weight=True), "rsna", "abmil").class_weight


def test_8_10_one_bag_per_step_on_camelyon16_and_one_learning_rate(paper):
    config = with_quirks(paper, train_batch_size=True, train_lr=True)
    for name, size in (("camelyon16", 1), ("panda", 32), ("rsna", 32)):
        options = training_options(config, name, "smap_early")
        assert (options.batch_size, options.learning_rates) == (size, [1e-4])
    assert training_options(parse_config(paper), "camelyon16", "smap_early").batch_size == 4


def test_14_the_selection_loss_of_a_short_last_batch_counts_more():
    bags = [replace(make_bag(3, i, y=float(i % 2)), bag_id=str(i)) for i in range(3)]
    cache, model = BagCache(bags, torch.device("cpu")), build_model("abmil", P)
    written, released = (
        validate(
            model, cache, [0, 1, 2], TrainingOptions(device="cpu", batch_size=2, quirks={"select_val_loss": quirk})
        )
        for quirk in (False, True)
    )
    with torch.no_grad():
        logits = [model(cache.batch([i])).bag_logit[0] for i in range(3)]
    bce = [float(torch.nn.functional.softplus(-z if i % 2 else z)) for i, z in enumerate(logits)]
    assert written["val_selection_bce"] == pytest.approx(sum(bce) / 3, rel=1e-5)
    assert released["val_selection_bce"] == pytest.approx((bce[0] + bce[1]) / 4 + bce[2] / 2, rel=1e-5)
    assert written["val_loss"] == pytest.approx(written["val_selection_bce"], rel=1e-5)
    assert 0 < written["val_score_entropy"] <= 1


def test_19_a_run_on_another_split_is_trained_again_and_no_other(dataset, tmp_path):
    bags = list_usable(dataset / "bags.csv", [dataset / "features/tiny/shards/0000.json"]).bags
    weights = []
    for released in (False, True, True):
        arguments = train_arguments(dataset, tmp_path, "abmil", epochs=1, quirks={"splits": released})
        assert train.main(arguments) == 0
        run, split = tmp_path / "split1_lr0.01", make_split(bags, 1, 0.34, released=released)
        assert RunConfig.read(run / "config.json").split.bags_sha256 == hash_json([split.train, split.val])
        weights.append((run / "best.safetensors").stat().st_mtime_ns)
    assert weights[0] != weights[1] == weights[2]


def test_a_whole_run_as_released_says_so(dataset, tmp_path):
    arguments = train_arguments(dataset, tmp_path, "smap_early", epochs=1, protocol="as_released")
    assert train.main(arguments) == 0
    listed = RunsFile.read(tmp_path / "runs.json")
    assert listed.protocol == listed.training["protocol"] == "as_released"
    assert listed.quirks == tuple(sorted(active_quirks("as_released", {})))
    assert [run.lr for run in listed.runs] == [1e-4] and listed.data["edge_weight"] == "feature_distance"
    assert listed.method_options["spectral_norm"] is False
