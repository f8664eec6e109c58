"""C files as shared libraries: built once, and a fallback without a compiler."""

import stat
from pathlib import Path

import pytest

from smmil.sm import compiled, native

needs_compiler = pytest.mark.skipif(not native.widths(), reason="no C compiler")


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """Start with an empty cache and no loaded library."""
    monkeypatch.setenv("SMMIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SMMIL_NATIVE", raising=False)
    compiled.library.cache_clear()
    yield tmp_path
    compiled.library.cache_clear()


def source(folder: Path, text: str) -> Path:
    path = folder / "answer.c"
    path.write_text(text)
    return path


@needs_compiler
def test_a_library_is_built_once(fresh, monkeypatch) -> None:
    path = source(fresh, "int answer(void) { return 42; }")
    loaded = compiled.library(path)
    assert loaded is not None and loaded.answer() == 42
    built = list((fresh / "cache").iterdir())
    assert len(built) == 1 and built[0].suffix == ".so"
    assert not built[0].stat().st_mode & stat.S_IWOTH
    compiled.library.cache_clear()
    monkeypatch.setenv("PATH", "")
    assert compiled.library(path) is not None, "what is built needs no compiler"


def test_without_a_compiler_or_when_switched_off_there_is_none(fresh, monkeypatch, caplog) -> None:
    path = source(fresh, "int answer(void) { return 42; }")
    monkeypatch.setenv("SMMIL_NATIVE", "0")
    assert compiled.library(path) is None and not (fresh / "cache").exists()
    compiled.library.cache_clear()
    monkeypatch.delenv("SMMIL_NATIVE")
    monkeypatch.setenv("PATH", "")
    with caplog.at_level("INFO"):
        assert compiled.library(path) is None
    assert "answer.c is not compiled" in caplog.text and "no C compiler found" in caplog.text


@needs_compiler
def test_a_source_that_does_not_compile_is_none(fresh, caplog) -> None:
    with caplog.at_level("INFO"):
        assert compiled.library(source(fresh, "no C at all")) is None
    assert "answer.c is not compiled" in caplog.text and list((fresh / "cache").iterdir()) == []
