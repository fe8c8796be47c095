"""What is made on this machine, once, so that guests need not make it for themselves."""

from __future__ import annotations

import compileall
from pathlib import Path

from tests.system.victims import ROOT, SOURCES, build

__all__ = ["ROOT", "SLOWNESS", "prepare"]

SLOWNESS = 10  # times that an emulated processor takes longer, at most


def prepare() -> None:
    """Build all victims, and compile all Python."""
    sources: list[Path] = [*SOURCES.glob("*.c"), *(ROOT / "demo").glob("*.c")]
    for source in sources:
        build(source.stem)
    build("uncaught")
    for folder in ("collector", "demo", "tests"):
        compileall.compile_dir(ROOT / folder, quiet=2)
