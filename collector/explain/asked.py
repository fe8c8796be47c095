"""What `child` tells each of its children, as the child takes it: its core, its bounds, its root.

First of all, before a child loads what it needs or looks at the core, it gives up its rights.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from collector.explain.confine import confine
from collector.explain.files import Root


def arguments(prog: str, description: str) -> argparse.ArgumentParser:
    """A parser of what all children are told; each adds its own."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("core", type=Path, help="an ELF core")
    parser.add_argument("--root-fd", type=int, help="descriptor of the root that paths are under")
    parser.add_argument("--exe", type=Path, help="the main program's file")
    parser.add_argument("--memory", type=int, default=1 << 30, help="bound, bytes")
    parser.add_argument("--cpu", type=int, default=60, help="bound, seconds")
    parser.add_argument("--nice", type=int, default=19, help="0: somebody waits for it")
    parser.add_argument("--parent", type=int, help="die with this process")
    return parser


def begin(told: argparse.Namespace) -> Root:
    """Bound and disarm this process, for good; returns where files are looked for."""
    confine(told.parent or os.getppid(), told.memory, told.cpu, told.nice)
    root_fd = told.root_fd
    if root_fd is None:
        root_fd = os.open("/", os.O_PATH | os.O_CLOEXEC)
    return Root(root_fd)


def mapped(word: str) -> tuple[int, int]:
    """ADDRESS=FD: the address, hexadecimal, and the descriptor."""
    address, _, fd = word.partition("=")
    return int(address, 16), int(fd)


def in_words(error: Exception, core: Path) -> str:
    """What went wrong with the core, whose path is often only a descriptor's."""
    return str(error).removeprefix(f"{core}: ")
