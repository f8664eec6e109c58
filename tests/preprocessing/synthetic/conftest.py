"""A tiny synthetic cohort of every data set, built once."""

from pathlib import Path

import pytest

from preprocessing.synthetic import cohort


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> dict[str, Path]:
    return cohort.build(tmp_path_factory.mktemp("cohorts"), "tiny", 3)
