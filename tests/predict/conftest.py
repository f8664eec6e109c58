"""Trained datasets that all tests of predictions share; the slides have two splits, for ensembles."""

import pytest

from tests.predict.house import House, build


@pytest.fixture(scope="session")
def slides(tmp_path_factory: pytest.TempPathFactory) -> House:
    return build(tmp_path_factory.mktemp("slides"), "camelyon16", splits=(1, 2))


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> House:
    return build(tmp_path_factory.mktemp("scans"), "rsna")
