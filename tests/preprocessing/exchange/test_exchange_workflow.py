"""An imported dataset in the workflow: Snakemake finds its stages finished and plans training on it."""

from tests.helpers.exchange_files import clam_slide, lattice, learnable, table
from tests.helpers.workflows import planned, snakemake

SPLITS = ("train", "train", "train", "train", "test")


def test_snakemake_goes_on_from_an_import(tmp_path, monkeypatch):
    from preprocessing.exchange.__main__ import main

    monkeypatch.chdir(tmp_path)
    for i in range(5):
        clam_slide(tmp_path / "clam", f"s{i}", lattice(4 + i), learnable(4 + i, i % 2, i))
    labels = table(
        tmp_path / "labels.csv", "slide_id,label,split", *(f"s{i},{i % 2},train" for i in range(4)), "s4,0,test"
    )
    argv = ["import", "--format", "clam", "--source", "clam", "--dataset", "theirs", "--encoder", "uni_v1"]
    argv += ["--labels", str(labels), "--out", "results/theirs", "--bags-per-shard", "2"]
    assert main(argv) == 0
    jobs = planned(tmp_path, "metrics", "--configfile", "results/theirs/config.yaml")
    assert jobs["train_runs"] > 0
    assert not {"list_bags", "cut_instances", "extract_features", "fetch_weights"} & set(jobs)
    # the contact sheet is drawn by the workflow, too
    snakemake(tmp_path, "results/theirs/qc/index.html", "--configfile", "results/theirs/config.yaml")
    assert "s3" in (tmp_path / "results/theirs/qc/index.html").read_text()
