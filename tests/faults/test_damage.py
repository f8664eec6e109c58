"""Changed bytes on disk are detected by a checksum, named in an error, and repaired by running again."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from preprocessing import check
from smmil.artifacts.results import load_predictions, read_index
from smmil.artifacts.runs import append_log, load_state, read_done, read_log, save_state
from smmil.evaluate.__main__ import main as evaluate
from smmil.predictions.runs import load_run
from smmil.train import fit as training
from tests.faults.damage import WAYS, flip, tree


@pytest.mark.parametrize("chunk", ["features/tiny/store/bag03/features/c.0.0", "instances/store/bag03/coverage/c.0"])
def test_a_damaged_chunk_is_named_when_it_is_loaded_and_by_the_checker(work, capsys, chunk):
    """Same length, one bit changed: only the stored checksum detects it."""
    flip(work.folder / chunk)
    (work.runs / "runs.json").unlink()
    for path in work.runs.glob("*/done.json"):
        path.unlink()
    assert work.train() == 2
    error = capsys.readouterr().err
    stage = work.folder / chunk.split("/store")[0]
    assert str(work.folder / chunk) in error and f"preprocessing.check {stage} --remove" in error
    assert not (work.runs / "runs.json").exists()
    assert "bag03" in check.check_store(stage) and len(check.check_store(stage)) == 1
    assert check.main([str(stage), "--remove"]) == 1
    assert not (stage / "shards/0000.json").exists(), "the workflow has to make the shard again"
    assert not (stage / "store/bag03").exists() and (stage / "store/bag02").exists()


@pytest.mark.parametrize("way", WAYS)
def test_predictions_are_not_made_from_a_damaged_chunk(work, capsys, way):
    chunk = work.folder / "features/tiny/store/bag13/features/c.0.0"
    WAYS[way](chunk)
    work.npz.unlink()
    work.index.unlink()
    assert work.predict() == 2
    assert str(chunk) in capsys.readouterr().err and not work.index.exists() and not work.npz.exists()


@pytest.mark.parametrize("way", WAYS)
def test_a_damaged_state_starts_its_run_again_and_says_so(work, finished, monkeypatch, caplog, way):
    """Stopped after two of three epochs, the state damaged: the same numbers, from the first epoch."""
    (work.runs / "runs.json").unlink()
    (work.run / "done.json").unlink()
    seen: list[int] = []

    def stop(path: Path, row: dict[str, Any]) -> None:
        append_log(path, row)
        seen.append(row.epoch)
        if seen == [1, 2, 3]:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "append_log", stop)
    with pytest.raises(KeyboardInterrupt):
        work.train()
    state = work.run / "state.pt"
    assert (load_state(state) or {})["cursor"]["epoch"] == 3
    WAYS[way](state)
    assert load_state(state) is None
    assert work.train() == 0
    assert f"{state}: damaged" in caplog.text and "restarts at its first epoch" in caplog.text
    assert seen == [1, 2, 3, 1, 2, 3] and [row.epoch for row in read_log(work.run / "log.jsonl")] == [1, 2, 3]
    assert tree(work.folder) == tree(finished.folder)


def test_every_bit_of_the_tensors_in_a_state_is_covered_by_its_checksum(tmp_path):
    """Torch itself reads a state with a changed bit without an error."""
    path, tensor = tmp_path / "state.pt", torch.arange(64, dtype=torch.float32)
    save_state(path, {"model": tensor})
    whole, start = path.read_bytes(), path.read_bytes().index(tensor.numpy().tobytes())
    silent = 0
    for position in range(start, start + 256, 17):
        data = bytearray(whole)
        data[position] ^= 16
        path.write_bytes(data)
        silent += not torch.equal(torch.load(path, weights_only=True)["model"], tensor)
        assert load_state(path) is None
    assert silent > 0, "torch checks states itself now: zip_damage can be removed"
    path.write_bytes(whole)
    assert torch.equal((load_state(path) or {})["model"], tensor)


@pytest.mark.parametrize("way", WAYS)
def test_damaged_weights_of_a_run_are_refused_and_that_run_alone_is_trained_again(work, finished, capsys, caplog, way):
    best, other = work.run / "best.safetensors", work.runs / "split2_lr0.01" / "best.safetensors"
    WAYS[way](best)
    work.index.unlink()
    work.npz.unlink()
    with pytest.raises(ValueError, match="of different runs; delete .*runs.json and run the workflow again"):
        load_run(work.run, torch.device("cpu"))
    assert work.predict() == 2 and not work.index.exists()
    assert "delete" in capsys.readouterr().err
    (work.runs / "runs.json").unlink()
    before = other.stat().st_mtime_ns
    assert work.train() == 0 and work.predict() == 0
    assert f"{best}: another hash than in" in caplog.text and other.stat().st_mtime_ns == before
    assert tree(work.folder) == tree(finished.folder)


def test_a_damaged_done_file_trains_its_run_again(work, finished, caplog):
    key = json.loads((work.run / "done.json").read_text())["key"]
    assert read_done(work.run, key) is not None
    (work.run / "done.json").write_text('{"key": "')
    (work.runs / "runs.json").unlink()
    assert read_done(work.run, key) is None
    assert work.train() == 0 and "done.json: damaged" in caplog.text
    assert tree(work.folder) == tree(finished.folder)


@pytest.mark.parametrize("way", WAYS)
def test_damaged_predictions_are_refused_by_every_reader_and_made_again(work, finished, capsys, caplog, way):
    WAYS[way](work.npz)
    with pytest.raises(ValueError, match=r"split1_lr0\.01\.npz: changed since index\.json was written"):
        read_index(work.index)
    with pytest.raises(ValueError, match=r"split1_lr0\.01\.npz: damaged"):
        load_predictions(work.npz)
    out = work.folder / "metrics.json"
    assert evaluate(["--index", str(work.index), "--out", str(out)]) == 2
    assert f"error: {work.npz}: changed" in capsys.readouterr().err and not out.exists()
    other = work.predictions / "split2_lr0.01.npz"
    before = other.stat().st_mtime_ns
    work.index.unlink()
    assert work.predict() == 0
    assert f"{work.npz}: damaged" in caplog.text and other.stat().st_mtime_ns == before
    assert tree(work.folder) == tree(finished.folder)
