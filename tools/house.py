"""Print figures of the code base: lines, files per room, deferred imports, untyped dicts, broad excepts, shapes.

Run from the root: `python tools/house.py`. In: the tracked files. Out: a table, one figure a row.
"""

import ast
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("smmil", "preprocessing")
ARRAYS = re.compile(r"\b(NDArray|Tensor|Floats|BagBatch)\b")
SHAPE = re.compile(r"\([A-Za-z0-9+*^'., |-]*,[A-Za-z0-9+*^'., |-]*\)|\bscalars?\b|\bany shape\b")


def tracked(*patterns: str) -> list[Path]:
    """Return the tracked files that match."""
    listed = subprocess.run(["git", "ls-files", *patterns], capture_output=True, text=True, check=True).stdout
    return [Path(line) for line in listed.splitlines()]


def lines_of(files: list[Path]) -> int:
    """Count the lines of some files."""
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)


def imports(tree: ast.AST, deferred: bool = False) -> Iterator[tuple[str, bool]]:
    """Yield (module, deferred) for each import of the project's own modules."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            yield node.module or "", deferred
        yield from imports(node, deferred or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


def public_functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Yield public functions and methods."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node


def takes_arrays(function: ast.FunctionDef) -> bool:
    """Return whether a function's signature names an array type."""
    hints = [a.annotation for a in [*function.args.args, *function.args.kwonlyargs]] + [function.returns]
    return any(hint is not None and ARRAYS.search(ast.unparse(hint)) for hint in hints)


def main() -> None:
    """Print the table."""
    source = [path for path in tracked("*.py", "*.c", "*.smk", "Snakefile") if path.parts[0] not in ("tests", "tools")]
    code = [path for path in source if path.suffix == ".py" and path.parts[0] in PACKAGES]
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in code}
    deferred = Counter(late for tree in trees.values() for _, late in imports(tree))
    rooms = Counter(path.parent for path in code if path.name != "__init__.py")
    text = "\n".join(path.read_text(encoding="utf-8") for path in source if path.suffix == ".py")
    arrays = [f for tree in trees.values() for f in public_functions(tree) if takes_arrays(f)]
    shaped = [function for function in arrays if SHAPE.search(ast.get_docstring(function) or "")]
    largest, n = rooms.most_common(1)[0]
    for name, value in (
        ("Python + C + Snakemake lines, without tests", lines_of(source)),
        ("test lines", lines_of([path for path in tracked("tests") if path.suffix in (".py", ".c", ".sh")])),
        ("deferred internal imports", f"{deferred[True] / deferred.total():.0%}"),
        ("dict[str, Any]", text.count("dict[str, Any]")),
        ("broad excepts", len(re.findall(r"except (?:BaseException|Exception)\b|except:", text))),
        ("TODO", len(re.findall(r"\b(?:TODO|FIXME)\b", text))),
        ("files of the largest room", f"{n} ({largest})"),
        (
            "public functions with arrays whose docstring gives shapes",
            f"{len(shaped) / len(arrays):.0%} of {len(arrays)}",
        ),
    ):
        print(f"{name:60} {value}")


if __name__ == "__main__":
    main()
