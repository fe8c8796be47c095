"""Where the BPF sources and the built objects are: in this package where it was installed from a
wheel (`make wheel`), else in the checkout that it is part of.
"""

from __future__ import annotations

from pathlib import Path

from collector.errors import ProbeError

OBJECT_NAME = "coreward.bpf.o"
LIVE_OBJECT_NAME = "live.bpf.o"
TRACE_OBJECT_NAME = "trace.bpf.o"
_PACKAGE = Path(__file__).resolve().parent
_ROOT = _PACKAGE.parents[1]


def source_file() -> Path:
    """bpf/coreward.bpf.c. ProbeError if the sources are not there."""
    return _source("coreward.bpf.c")


def live_source_file() -> Path:
    """bpf/live.bpf.c; the same."""
    return _source("live.bpf.c")


def trace_source_file() -> Path:
    """bpf/trace.bpf.c; the same."""
    return _source("trace.bpf.c")


def _source(name: str) -> Path:
    places = [folder / "bpf" / name for folder in (_PACKAGE, _ROOT)]
    for path in places:
        if path.is_file():
            return path
    raise ProbeError(f"{places[-1]} is missing: install the whole package, or use a checkout")


def object_file() -> Path:
    """Where the built object is, or belongs in a checkout; it may not be there."""
    return _object(OBJECT_NAME)


def live_object_file() -> Path:
    """The same of live.bpf.c."""
    return _object(LIVE_OBJECT_NAME)


def trace_object_file() -> Path:
    """The same of trace.bpf.c."""
    return _object(TRACE_OBJECT_NAME)


def _object(name: str) -> Path:
    installed = _PACKAGE / name
    return installed if installed.is_file() else _ROOT / "build" / name
