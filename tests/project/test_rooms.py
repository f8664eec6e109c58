"""The rooms: imports run downwards, no circles, no overfull folders, few deferred imports.

A room is a folder of `smmil/` or `preprocessing/`, or a single file at their top. `__main__.py` of a room is a command:
it may import from every room, and nothing imports it.
"""

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("smmil", "preprocessing")
# Top to bottom: a room imports only rooms that stand after it.
FLOORS = (
    "smmil.__main__ smmil.cli smmil.view "
    "smmil.predict smmil.score smmil.comparisons smmil.comparison_table smmil.maps smmil.provenance smmil.protocol "
    "smmil.methods smmil.planning smmil.report smmil.findings smmil.analysis smmil.figures smmil.tables "
    "smmil.train smmil.predictions smmil.evaluate smmil.models smmil.layers smmil.data smmil.artifacts smmil.config "
    "smmil.compute smmil.sm smmil.installation smmil "
    "preprocessing.synthetic preprocessing.exchange preprocessing.status preprocessing.qc preprocessing.check "
    "preprocessing.raw preprocessing.weights preprocessing.features preprocessing.instances preprocessing.datasets "
    "preprocessing.tiling preprocessing.slides preprocessing.scans preprocessing.bags preprocessing.store "
    "preprocessing.common preprocessing"
).split()
MAX_FILES = 12
ZOOS = {"smmil.models": 20, "smmil.figures": 20, "preprocessing.exchange": 20, "preprocessing.synthetic": 20}
MAX_LINES = 400
MAX_DEFERRED = 0.10


class Import(NamedTuple):
    """One import of a module of the project by another."""

    importer: str
    imported: str
    line: int
    deferred: bool


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file, `__init__.py` under the name of its package."""
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def room_of(module: str) -> str:
    """`smmil.sm.operator` -> `smmil.sm`; a file at the top of a package is a room of its own."""
    return ".".join(module.split(".")[:2])


def internal_imports(module: str, path: Path, known: dict[str, Path]) -> Iterator[Import]:
    """Imports of the project's own modules, type-checking ones and those inside functions included."""

    def walk(node: ast.AST, deferred: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ImportFrom) and child.module and child.module.split(".")[0] in PACKAGES:
                targets = {f"{child.module}.{alias.name}" for alias in child.names}
                for target in {name if name in known else child.module for name in targets}:
                    yield Import(module, target, child.lineno, deferred)
            elif isinstance(child, ast.Import):
                for alias in child.names:
                    if alias.name in known:
                        yield Import(module, alias.name, child.lineno, deferred)
            yield from walk(child, deferred or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), False)


@pytest.fixture(scope="module")
def imports() -> list[Import]:
    known = modules()
    return [entry for module, path in known.items() for entry in internal_imports(module, path, known)]


def test_no_module_imports_itself_through_others(imports):
    arrows: dict[str, set[str]] = {}
    for entry in imports:
        arrows.setdefault(entry.importer, set()).add(entry.imported)
    # raises CycleError, which names the circle
    TopologicalSorter(arrows).prepare()


def test_a_room_imports_only_rooms_below_it(imports):
    rooms = {room_of(module) for module in modules()}
    assert rooms <= set(FLOORS), f"add {sorted(rooms - set(FLOORS))} to FLOORS"
    climbing = [
        f"{entry.importer}:{entry.line} imports {entry.imported}"
        for entry in imports
        if room_of(entry.importer) != room_of(entry.imported)
        and not entry.importer.endswith("__main__")
        and FLOORS.index(room_of(entry.importer)) > FLOORS.index(room_of(entry.imported))
    ]
    assert not climbing


def test_nothing_imports_a_command(imports):
    assert not [entry for entry in imports if entry.imported.endswith("__main__")]


def test_rooms_are_not_overfull():
    # `__init__.py` only says what lives in the room
    files = Counter(module.rpartition(".")[0] for module, path in modules().items() if path.name != "__init__.py")
    overfull = {room: n for room, n in files.items() if n > ZOOS.get(room, MAX_FILES)}
    assert not overfull


def test_every_room_says_what_lives_in_it():
    silent = [
        str(path.relative_to(ROOT))
        for path in modules().values()
        if path.name == "__init__.py" and not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not silent


def test_files_can_be_held_in_the_head():
    lengths = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in modules().items()}
    assert not {module: n for module, n in lengths.items() if n > MAX_LINES}


def test_imports_are_deferred_only_where_help_must_be_quick(imports):
    deferred = [entry for entry in imports if entry.deferred]
    assert len(deferred) <= MAX_DEFERRED * len(imports), Counter(entry.importer for entry in deferred).most_common(12)
