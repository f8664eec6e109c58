"""One new slide or scan: label, attention map and GeoJSON from trained runs."""

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    # `smmil.predict` is a function of the public interface and the package of the command `python -m smmil.predict`.
    # Importing any module of the package binds the package to that name, so the package itself must be callable.
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Predict one image, see `smmil.predict.pipeline.predict`."""
        from smmil.predict.pipeline import predict

        return predict(*arguments, **options)


sys.modules[__name__].__class__ = _CallablePackage
