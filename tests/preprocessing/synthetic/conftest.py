"""A tiny synthetic cohort of every data set, built once."""

import csv
from pathlib import Path

import pytest

from preprocessing.synthetic import cohort


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return cohort.build(tmp_path_factory.mktemp("cohorts"), "tiny", 3)


def rows(path: Path) -> list[dict[str, str]]:
    """Read a CSV table."""
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))
