"""Multiple-instance learning for slides and scans: bags in; trained models, predictions, tables, figures and maps out.

The names in `__all__` are the public interface. They are loaded at first use, so that `import smmil` is instant;
`__init__.pyi` declares them for type checkers and editors.
"""

import importlib

__version__ = "0.1.0"

_MODULES = {
    "BagBatch": "smmil.data.batch",
    "Sm": "smmil.sm.operator",
    "build_model": "smmil.models",
    "load_bags": "smmil.data.sources",
    "normalise_adjacency": "smmil.sm.operator",
}
__all__ = ["BagBatch", "Sm", "build_model", "load_bags", "normalise_adjacency", "predict"]


def __getattr__(name: str) -> object:
    """Import a public name at its first use."""
    if name == "predict":
        # `smmil.predict` is a package that can also be called; see its `__init__.py`.
        return importlib.import_module("smmil.predict")
    if name not in _MODULES:
        raise AttributeError(f"module 'smmil' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
