"""Where the BPF source and the built object are: in the checkout that this package is part of."""

from __future__ import annotations

from pathlib import Path

from collector.errors import ProbeError

OBJECT_NAME = "coreward.bpf.o"
LIVE_OBJECT_NAME = "live.bpf.o"
_ROOT = Path(__file__).resolve().parents[2]


def source_file() -> Path:
    """bpf/coreward.bpf.c. ProbeError if the sources are not installed."""
    return _source("coreward.bpf.c")


def live_source_file() -> Path:
    """bpf/live.bpf.c; the same."""
    return _source("live.bpf.c")


def _source(name: str) -> Path:
    path = _ROOT / "bpf" / name
    if not path.is_file():
        raise ProbeError(f"{path} is missing: compiling needs a checkout of the sources")
    return path


def object_file() -> Path:
    """Where the built object belongs; it may not be there."""
    return _ROOT / "build" / OBJECT_NAME


def live_object_file() -> Path:
    """Where the built object of live.bpf.c belongs; it may not be there."""
    return _ROOT / "build" / LIVE_OBJECT_NAME
