"""Trained datasets that all tests of predictions share; the slides have two splits, for ensembles."""

import pytest

from tests.predict.house import House, build


@pytest.fixture(scope="session")
def slides(tmp_path_factory: pytest.TempPathFactory) -> House:
    return build(tmp_path_factory.mktemp("slides"), "camelyon16", splits=(1, 2))


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> House:
    return build(tmp_path_factory.mktemp("scans"), "rsna")


@pytest.fixture
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of other things: drawing takes most of the time."""
    for name in ("draw_heatmap", "draw_extremes"):
        monkeypatch.setattr(f"smmil.predict.pipeline.{name}", lambda path, bag, place: None)
