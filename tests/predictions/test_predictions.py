"""Predictions of finished runs: the contract of the files, equal bytes, the selected model, other bags."""

import json
import shutil

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from preprocessing.store.bags import read_arrays, read_feature_attrs, read_instance_attrs, write_bag
from smmil import score
from smmil.artifacts.records import FeatureFacts, PredictionIndex
from smmil.artifacts.results import load_predictions, read_index
from smmil.data.batch import pack
from smmil.data.cache import BagCache
from smmil.data.loading import list_usable, load_listed
from smmil.data.splits import read_splits
from smmil.evaluate.runs import evaluate_runs
from smmil.predictions import runs as predictions
from smmil.predictions.__main__ import main as predict_main
from smmil.predictions.one_bag import score_energy, smooth_score
from smmil.predictions.signed import find_direction, signed_score
from smmil.train import __main__ as train
from tests.helpers.dataset_files import read_table
from tests.helpers.graphs import dense_normalised, path
from tests.helpers.predictions import write_run
from tests.helpers.train_helpers import make_dataset, source_arguments, train_arguments

METHOD = ("--method-options", '{"width": 8, "attention_dim": 4}')


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny dataset and two splits x two learning rates on it."""
    folder = make_dataset(tmp_path_factory.mktemp("tiny"))
    arguments = train_arguments(folder, folder / "runs", "smap_early", epochs=2, splits=[1, 2])
    assert train.main([*arguments, *METHOD, "--learning-rates", "0.01,0.001"]) == 0
    return folder


def predict_arguments(folder, out):
    names = ("--runs", str(folder / "runs" / "runs.json"), "--out", str(out), "--index", str(out / "index.json"))
    return [*names, *source_arguments(folder), "--device", "cpu", "--threads", "1"]


@pytest.fixture(scope="module")
def predicted(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("predictions")
    assert predict_main(predict_arguments(trained, out)) == 0
    return out


DTYPES = {
    **{"y": "float32", "bag_logit": "float64", "offsets": "int64", "energy": "float64", "instance_score": "float32"},
    **{
        "signed_score": "float32",
        "signed_sm_score": "float32",
        "coverage": "float32",
        "y_inst": "int8",
        "grid": "int32",
    },
}


def test_every_run_is_predicted_on_validation_and_test_bags_and_validations_choice_is_marked(trained, predicted):
    index = PredictionIndex.read(predicted / "index.json")
    names = [f"split{seed}_lr{rate}.npz" for seed in (1, 2) for rate in ("0.01", "0.001")]
    assert [run.file for run in index.runs] == names and index.random_weights and index.protocol == "as_written"
    chosen = [run for run in index.runs if run.chosen]
    assert [run.seed for run in chosen] == [1, 2]
    assert all(a.selection_score >= b.selection_score for a in chosen for b in index.runs if a.seed == b.seed)
    metrics = evaluate_runs(read_index(predicted / "index.json"), resamples=0)
    assert [(split.seed, split.run) for split in metrics.splits] == [(run.seed, run.run) for run in chosen]
    splits = read_splits(trained / "runs" / "splits.csv")
    for file in read_index(predicted / "index.json"):
        stored = load_predictions(file)
        parts = splits[stored.meta.seed]
        val, test = (sorted(name for name, part in parts.items() if part == which) for which in ("val", "test"))
        assert stored.arrays["bag_id"].tolist() == val + test
        assert stored.arrays["split"].tolist() == ["val"] * len(val) + ["test"] * len(test)
        assert {n: array.dtype.name for n, array in stored.arrays.items() if array.dtype.kind != "U"} == DTYPES
        # the validation logits give back the selection score that training logged
        y, z = stored.part("val")["y"].astype(np.float64), stored.part("val")["bag_logit"]
        bce = np.mean(np.logaddexp(0, np.where(y == 1, -z, z)))
        assert roc_auc_score(y, z) - bce == pytest.approx(stored.meta.selection_score, abs=1e-6)


@pytest.fixture(scope="module")
def bags(trained):
    """All bags of the dataset."""
    manifests = [trained / stage / "shards" / "0000.json" for stage in ("instances", "features/tiny")]
    infos = list_usable(trained / "bags.csv", manifests).bags
    return load_listed(infos, trained / "instances", trained / "features" / "tiny")[0]


def test_arrays_are_the_models_scores_and_what_follows_from_them(trained, predicted, bags):
    """Logit and scores of the model, energies, sign-aware scores of validation bags, and ten dense steps over these."""
    model, config, _ = predictions.load_run(trained / "runs" / "split1_lr0.01", torch.device("cpu"))
    assert not model.training and config.method == "smap_early"
    stored = load_predictions(predicted / "split1_lr0.01.npz")
    val = [bag for bag in bags if bag.bag_id in set(stored.part("val")["bag_id"])]
    direction = find_direction(model, BagCache(val, torch.device("cpu")), range(len(val)))
    assert stored.meta.signed_agreement == pytest.approx(direction.agreement, abs=1e-9)
    for bag in (bag for bag in bags if bag.bag_id in set(stored.arrays["bag_id"])):
        saved = stored.bag(bag.bag_id)
        np.testing.assert_allclose(saved["signed_score"], signed_score(direction, bag.x), rtol=1e-5, atol=1e-7)
        with torch.no_grad():
            output = model(pack([bag]))
        np.testing.assert_allclose(saved["instance_score"], output.instance_score, rtol=1e-6)
        np.testing.assert_allclose(saved["bag_logit"], output.bag_logit, rtol=1e-6)
        assert saved["y_inst"].tolist() == bag.y_inst.tolist()
        np.testing.assert_array_equal(saved["grid"], bag.grid.numpy())
        f, adjacency = saved["instance_score"].astype(np.float64), dense_normalised(bag.neighbors).numpy()
        energy = f @ (np.eye(len(f)) - adjacency) @ f
        np.testing.assert_allclose(saved["energy"][0], [energy, energy / (f @ f)], rtol=0, atol=1e-12)
        signed = saved["signed_score"].astype(np.float64)
        smooth = signed
        for _ in range(10):
            smooth = 0.5 * adjacency @ smooth + 0.5 * signed
        np.testing.assert_allclose(saved["signed_sm_score"], smooth, rtol=1e-6, atol=1e-7)
        assert len(signed) == 1 or np.abs(smooth - signed).max() > 1e-6


def test_again_gives_the_same_bytes_and_finished_files_are_left_alone(trained, predicted, tmp_path):
    assert predict_main(predict_arguments(trained, tmp_path)) == 0
    names = sorted(path.name for path in predicted.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir())
    for name in names:
        assert (tmp_path / name).read_bytes() == (predicted / name).read_bytes()
    kept = tmp_path / "split1_lr0.01.npz"
    before = kept.stat().st_mtime_ns
    (tmp_path / "index.json").unlink()
    (tmp_path / "split2_lr0.01.npz").unlink()
    assert predict_main(predict_arguments(trained, tmp_path)) == 0
    assert kept.stat().st_mtime_ns == before
    assert (tmp_path / "split2_lr0.01.npz").read_bytes() == (predicted / "split2_lr0.01.npz").read_bytes()


def test_a_run_scores_other_bags_even_unlabelled(trained, predicted, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(trained, other, ignore=shutil.ignore_patterns("runs"))
    text = (other / "bags.csv").read_text()
    (other / "bags.csv").write_text(text.replace(",0,train,", ",,,").replace(",1,train,", ",,,"))
    run, out = trained / "runs" / "split1_lr0.01", tmp_path / "out/split1_lr0.01.npz"
    arguments = ["--run", str(run), "--out", str(out.parent), *source_arguments(other), "--device", "cpu"]
    assert score.main(arguments) == 0
    with np.load(out, allow_pickle=False) as found, np.load(predicted / "split1_lr0.01.npz") as reference:
        assert len(found["bag_id"]) == 16 and set(found["split"]) == {"score"}
        assert np.isnan(found["y"][:12]).all() and not np.isnan(found["y"][12:]).any()
        logits = dict(zip(found["bag_id"], found["bag_logit"], strict=True))
        for bag_id, logit in zip(reference["bag_id"], reference["bag_logit"], strict=True):
            assert logits[bag_id] == logit
        assert json.loads(str(found["meta"]))["run"] == "split1_lr0.01"


def test_features_of_another_encoder_are_refused():
    trained = FeatureFacts(encoder="resnet18", weights_sha256="a")
    predictions.check_features(trained, trained, "x")
    with pytest.raises(ValueError, match="weights_sha256: found 'b', expected 'a'"):
        predictions.check_features(trained, FeatureFacts(encoder="resnet18", weights_sha256="b"), "x")


def test_runs_of_another_version_of_training_are_refused(trained, monkeypatch):
    monkeypatch.setattr(predictions.stage_versions, "RUNS", predictions.stage_versions.RUNS + 1)
    with pytest.raises(ValueError, match="config.json: found stage_version .*train the run again"):
        predictions.load_run(trained / "runs" / "split1_lr0.01", torch.device("cpu"))


def test_unfinished_or_mixed_runs_and_other_bags_are_refused(trained, tmp_path, capsys):
    run = tmp_path / "runs" / "split1_lr0.01"
    shutil.copytree(trained / "runs", tmp_path / "runs")
    (run / "done.json").write_text((run / "done.json").read_text().replace('"key": "', '"key": "0'))
    with pytest.raises(ValueError, match="of different runs"):
        predictions.load_run(run, torch.device("cpu"))
    (run / "done.json").unlink()
    with pytest.raises(ValueError, match="no such file"):
        predictions.load_run(run, torch.device("cpu"))
    listed = json.loads((tmp_path / "runs" / "runs.json").read_text())
    listed["inputs"]["bags"] = "other"
    (tmp_path / "runs" / "runs.json").write_text(json.dumps(listed))
    arguments = ["--runs", str(tmp_path / "runs" / "runs.json"), "--out", str(tmp_path), "--index", str(tmp_path / "i")]
    assert predict_main([*arguments, *source_arguments(trained), "--device", "cpu"]) == 2
    assert "trained on other bags" in capsys.readouterr().err
    for main, missing in ((predict_main, "--runs, --out, --index"), (score.main, "--out")):
        with pytest.raises(SystemExit, match="2"):
            main(source_arguments(trained))
        assert f"required: {missing}" in capsys.readouterr().err


def test_a_table_trains_and_predicts_too(tmp_path):
    """The import door, end to end: features in a CSV, no store."""
    rng = np.random.default_rng(0)
    lines = ["bag_id,label,split,a,b,c"]
    for i in range(16):
        for _ in range(3):
            values = ",".join(f"{v:.4f}" for v in rng.normal(size=3) + i % 2)
            lines.append(f"t{i:02d},{i % 2},{'test' if i >= 12 else 'train'},{values}")
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    source = ["--table", str(tmp_path / "t.csv"), "--table-graph", "chain"]
    options = {"epochs": 2, "splits": [1], "learning_rates": [0.01], "device": "cpu", "threads": 1}
    runs = tmp_path / "runs"
    named = ["--dataset", "t", "--encoder", "none", "--method", "smap_early", *METHOD]
    place = ["--out", str(runs), "--done", str(runs / "runs.json")]
    assert train.main([*named, *source, "--config-json", json.dumps(options), *place]) == 0
    out = tmp_path / "out"
    where = ["--runs", str(runs / "runs.json"), "--out", str(out), "--index", str(out / "index.json")]
    assert predict_main([*where, *source, "--device", "cpu"]) == 0
    found = load_predictions(out / "split1_lr0.01.npz")
    assert (found.arrays["y_inst"] == -1).all() and len(found.part("test")["bag_id"]) == 4


def test_energy_by_hand_on_a_graph_without_weights_or_self_loops():
    # path 0 - 1 - 2: degrees 1, 2, 1; f = (1, 0, 0): f^T (I - A_hat) f = 1
    assert score_energy(torch.tensor([1.0, 0.0, 0.0]), path(3)) == (1.0, 1.0)
    # the released chain lists every slice among its own neighbours
    looped = torch.tensor([[0, 1, -1], [0, 1, 2], [1, 2, -1]])
    assert score_energy(torch.tensor([1.0, 0.0, 0.0]), looped) == (1.0, 1.0)
    # smooth on the normalised graph is sqrt(degree); an isolated instance, and scores of zero, have none
    raw, share = score_energy(torch.tensor([1.0, 2.0**0.5, 1.0]), path(3))
    assert raw == pytest.approx(0, abs=1e-6) and share == pytest.approx(0, abs=1e-6) and raw >= 0
    assert score_energy(torch.tensor([3.0]), path(1)) == (0.0, 0.0)
    assert score_energy(torch.zeros(3), path(3)) == (0.0, 0.0)


def test_smoothing_keeps_what_is_smooth_and_needs_a_graph():
    score, chain = torch.tensor([1.0, -2.0, 0.5, 3.0]), path(4)
    assert torch.equal(smooth_score(score, chain, T=0), score) and torch.equal(
        smooth_score(score, chain, alpha=0), score
    )
    assert torch.equal(smooth_score(score, torch.full((4, 2), -1)), score)
    # loops of the released chain are no neighbours
    assert torch.equal(smooth_score(score, torch.cat([torch.arange(4)[:, None], chain], 1)), smooth_score(score, chain))
    torch.testing.assert_close(smooth_score(-3 * score, chain), -3 * smooth_score(score, chain))
    # fixed: the square root of the degree, and equal scores on a ring, where all degrees are equal
    degrees = torch.tensor([1.0, 2.0, 2.0, 1.0])
    torch.testing.assert_close(smooth_score(degrees.sqrt(), chain), degrees.sqrt())
    ring = torch.tensor([[3, 1], [0, 2], [1, 3], [2, 0]])
    torch.testing.assert_close(smooth_score(torch.full((4,), 7.0), ring), torch.full((4,), 7.0))
    assert smooth_score(torch.ones(4), chain)[0] < 1 < smooth_score(torch.ones(4), chain)[1]


def test_optional_arrays_may_be_missing(tmp_path):
    plain, full = write_run(tmp_path / "a"), write_run(tmp_path / "b", full=True)
    assert "grid" not in load_predictions(plain).part("test")
    part = load_predictions(full).part("test")
    assert part["grid"].shape == (7, 2) and part["energy"].shape == (3, 2) and part["signed_score"].shape == (7,)
    with np.load(full, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    np.savez(full, **{**arrays, "energy": arrays["energy"][:-1]})
    with pytest.raises(ValueError, match="energy: found 4, expected 5"):
        load_predictions(full)


def test_scoring_with_all_chosen_runs_gives_what_each_alone_and_the_predictions_say(trained, predicted, tmp_path):
    """Two ways to one direction: found again from the validation bags, and kept by the training."""
    arguments = [*source_arguments(trained), "--device", "cpu"]
    assert score.main(["--runs", str(trained / "runs" / "runs.json"), "--out", str(tmp_path), *arguments]) == 0
    for file in read_index(tmp_path / "index.json"):
        run, alone = trained / "runs" / file.stem, tmp_path / "alone"
        assert score.main(["--run", str(run), "--out", str(alone), *arguments]) == 0
        assert (alone / file.name).read_bytes() == file.read_bytes()
        assert [entry.run for entry in PredictionIndex.read(alone / "index.json").runs] == [file.stem]
        scored, expected = load_predictions(file), load_predictions(predicted / file.name)
        assert scored.meta.signed_agreement == pytest.approx(expected.meta.signed_agreement, abs=1e-9)
        for bag_id in expected.arrays["bag_id"].tolist():
            ours, theirs = scored.bag(bag_id)["signed_score"], expected.bag(bag_id)["signed_score"]
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)
            assert np.abs(theirs).max() > 0
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert len(lines) == 1 + 16 and lines[0].startswith("bag_id,state")


def rewrite(folder, bag_id, *, stage="instances", **attributes):
    """Store a bag again with other attributes."""
    store = folder / stage / "store"
    read = read_instance_attrs if stage == "instances" else read_feature_attrs
    write_bag(store, bag_id, read_arrays(store, bag_id), read(store, bag_id).updated(**attributes))


def test_bags_cut_or_encoded_otherwise_are_refused_by_name_and_the_others_scored(trained, predicted, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(trained, other, ignore=shutil.ignore_patterns("runs"))
    rewrite(other, "bag12", tile_px=256)
    rewrite(other, "bag14", stage="features/tiny", weights_sha256="1" * 64)
    where = ["--runs", str(trained / "runs/runs.json"), *source_arguments(other), "--device", "cpu"]
    assert score.main([*where, "--out", str(tmp_path / "out")]) == 0
    lines = {line["bag_id"]: line for line in read_table(tmp_path / "out/scores.csv")}
    assert {name for name, line in lines.items() if line["state"] == "refused"} == {"bag12", "bag14"}
    assert "tile_px: 256 here, null trained" in lines["bag12"]["reason"] and not lines["bag12"]["probability"]
    assert f"weights_sha256: found '{'1' * 64}'" in lines["bag14"]["reason"]
    for path_ in read_index(tmp_path / "out/index.json"):
        scored, reference = load_predictions(path_), load_predictions(predicted / path_.name)
        assert len(scored.arrays["bag_id"]) == 14
        assert scored.bag("bag13")["bag_logit"] == reference.bag("bag13")["bag_logit"]
    for i in range(16):
        rewrite(other, f"bag{i:02d}", tile_px=256)
    assert score.main([*where, "--out", str(tmp_path / "none")]) == 2
    assert "16 of 16 bags refused, e.g. bag00: not cut as the run's dataset was" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def damage(kind, file):
    data = file.read_bytes()
    other = (file.parent.parent / "split2_lr0.01" / file.name).read_bytes()
    changed = {"flip": data[:-1] + bytes([data[-1] ^ 1]), "cut": data[:-5], "swap": other}
    file.write_bytes(changed[kind]) if kind in changed else file.unlink()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("lose", "No such file"), ("flip", "fail their checksum"), ("cut", "damaged"), ("swap", "other weights")],
)
def test_without_a_direction_to_trust_there_is_no_signed_score_and_the_log_says_why(
    trained, tmp_path, kind, reason, caplog
):
    caplog.set_level("INFO")
    shutil.copytree(trained / "runs", tmp_path / "runs")
    listed = json.loads((tmp_path / "runs/runs.json").read_text())["runs"]
    (run,) = [one["run"] for one in listed if one["seed"] == 1 and one["chosen"]]
    damage(kind, tmp_path / "runs" / run / "direction.safetensors")
    arguments = ["--runs", str(tmp_path / "runs/runs.json"), "--out", str(tmp_path / "out"), *source_arguments(trained)]
    assert score.main([*arguments, "--device", "cpu"]) == 0
    scored = {path_.stem: load_predictions(path_) for path_ in read_index(tmp_path / "out/index.json")}
    assert {name: "signed_score" in one.arrays for name, one in scored.items()} == {n: n != run for n in scored}
    assert len(scored) == 2 and scored[run].meta.signed_agreement is None
    (line,) = [record.getMessage() for record in caplog.records if "sign-aware" in record.getMessage()]
    assert reason in line and run in line
