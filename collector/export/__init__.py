"""Metrics and their endpoint, by prometheus-client without what it serves and pushes metrics with.

Its package loads OpenSSL, http and urllib as soon as anything of it is imported: 5 MB, a seventh of
an agent at rest, which has an endpoint of its own. Here the package is there, and its `__init__`
runs when something is asked for that is none of its submodules.
"""

import importlib.util
import sys

_NAME = "prometheus_client"


def _begin() -> None:
    spec = importlib.util.find_spec(_NAME)
    if spec is None or spec.loader is None:
        return  # who imports it hears of that
    package, loader = importlib.util.module_from_spec(spec), spec.loader

    def missing(name: str) -> object:
        if name.startswith("__") or importlib.util.find_spec(f"{_NAME}.{name}") is not None:
            raise AttributeError(name)  # a submodule, which is imported then
        if vars(package).pop("__getattr__", None) is not None:
            loader.exec_module(package)
        return getattr(package, name)

    vars(package)["__getattr__"] = missing
    sys.modules[_NAME] = package


if _NAME not in sys.modules:
    _begin()
