"""The originals of the methods: every claim names files and options that exist, and the page and tables show them."""

import inspect
import re
from pathlib import Path

import pytest

from smmil.config.methods import METHODS
from smmil.methods import page
from smmil.models import build_model
from smmil.tables.notes import _departures, _one_scale
from smmil.tables.originals import ORIGINALS, original_of


def test_the_page_is_the_one_of_the_registry(repository: Path) -> None:
    text = (repository / "docs/reference/methods.md").read_text(encoding="utf-8")
    assert text == page(), "run `python -m smmil.methods > docs/reference/methods.md`"
    assert all(f"`{key}`" in text for key in METHODS)
    assert len({method.name for method in METHODS.values()}) == len(METHODS)


def test_every_original_belongs_to_a_method_and_every_fixture_to_an_original(repository: Path) -> None:
    assert {original_of(key) for key in METHODS} == {*ORIGINALS.values()}
    fixtures = {path.stem for path in (repository / "tests" / "golden").rglob("*.npz")}
    prefixes = {prefix for original in ORIGINALS.values() for prefix in original.fixtures}
    assert fixtures and all(any(name.startswith(prefix) for prefix in prefixes) for name in fixtures)
    assert all(any(name.startswith(prefix) for name in fixtures) for prefix in prefixes)


@pytest.mark.parametrize("key", METHODS)
def test_what_restores_an_original_is_an_argument_of_the_method(key: str) -> None:
    options = [departure.option for departure in original_of(key).departures if departure.option]
    names = {name for option in options for name in re.findall(r"`(\w+)", option)}
    classes = inspect.getmro(type(build_model(key, 4)))
    arguments = {name for cls in classes for name in inspect.signature(cls.__init__).parameters}
    assert names <= arguments


def test_notes_group_methods_by_what_differs() -> None:
    note = _departures(["abmil", "clam", "clam_mb", "clam", "transmil", "abmil_penalty"])
    assert (
        "GELU after the embedding for ReLU: CLAM, CLAM-MB, TransMIL; penalty weight chosen here: ABMIL+PENALTY" in note
    )
    assert _departures(["abmil", "smap_early__alpha_0p1"]) == ""


def test_methods_without_a_common_scale_are_named() -> None:
    assert "Scores of GTP, TransMIL have" in _one_scale(["abmil", "gtp", "transmil"])
    assert _one_scale(["abmil"]) == ""
