"""Fixtures every test may use: real data beside the checkout (skipped when absent), one torch thread."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real slides, scans and labels beside the checkout; the test is skipped where it is not."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data beside the checkout: this test reads real slides, scans or labels")
    return folder


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return ROOT


# not of the session: Playwright's event loop must be closed before other tests run one
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium of the system, driven by Playwright; the test is skipped where either is absent."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium or google-chrome on this machine")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(autouse=True, scope="session")
def _one_torch_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """The tiny bag store."""
    from tests.helpers.train_helpers import make_dataset

    return make_dataset(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def noisy() -> Iterator[None]:
    """Register the method `noisy`."""
    from smmil.config.methods import METHODS
    from tests.helpers.train_helpers import register_noisy

    register_noisy()
    yield
    METHODS.pop("noisy")
