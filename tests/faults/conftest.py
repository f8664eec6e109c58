"""A tiny stored dataset with a finished training and predictions, made once and copied by every test."""

import shutil
from pathlib import Path

import pytest

from smmil.predictions.__main__ import main as predict_main
from smmil.train import __main__ as train
from tests.helpers.train_helpers import make_dataset, source_arguments, train_arguments


class Work:
    """The folder of a dataset with `runs` and `predictions` in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs, self.predictions = folder, folder / "runs", folder / "predictions"
        self.run, self.index = self.runs / "split1_lr0.01", folder / "predictions" / "index.json"
        self.npz = self.predictions / "split1_lr0.01.npz"

    def train_arguments(self) -> list[str]:
        """Return arguments for two splits of SmAP, three epochs."""
        settings = {"splits": [1, 2], "epochs": 3}
        return train_arguments(self.folder, self.runs, "smap_early", **settings)

    def train(self) -> int:
        """Run `smmil.train` and return its exit code."""
        return train.main(self.train_arguments())

    def predict_arguments(self) -> list[str]:
        """Return arguments for the predictions of every run on the CPU."""
        names = ("--runs", self.runs / "runs.json", "--out", self.predictions, "--index", self.index)
        return [*map(str, names), *source_arguments(self.folder), "--device", "cpu", "--threads", "1"]

    def predict(self) -> int:
        """Run `smmil.predictions` and return its exit code."""
        return predict_main(self.predict_arguments())


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Work:
    """Return the finished work; tests must not change it."""
    made = Work(make_dataset(tmp_path_factory.mktemp("finished") / "tiny"))
    assert made.train() == 0 and made.predict() == 0
    return made


@pytest.fixture
def work(finished, tmp_path) -> Work:
    """Return a copy to damage."""
    shutil.copytree(finished.folder, tmp_path / "tiny")
    return Work(tmp_path / "tiny")
