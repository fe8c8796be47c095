"""`python -m collector.heap CORE`: print what its heap was used for, as one JSON document.

The child that `run` starts; by hand it does the same. It bounds and disarms itself before it looks
at the core, and exits with 0 whenever it printed a document.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import msgspec

from collector.errors import CorewardError
from collector.explain.confine import confine
from collector.explain.files import Root
from collector.heap.memory import Budget
from collector.heap.read import read_heap
from collector.heap.types import HeapReport


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="collector.heap", description="Read a core's heap.")
    parser.add_argument("core", type=Path, help="an ELF core, plain or compressed")
    parser.add_argument("--seconds", type=float, default=2.0, help="for the allocator's lists")
    parser.add_argument("--root-fd", type=int, help="descriptor of the root that paths are under")
    parser.add_argument("--exe", type=Path, help="the main program's file")
    parser.add_argument("--memory", type=int, default=1 << 30, help="bound, bytes")
    parser.add_argument("--cpu", type=int, default=60, help="bound, seconds")
    parser.add_argument("--nice", type=int, default=19, help="0: somebody waits for it")
    parser.add_argument("--parent", type=int, help="die with this process")
    return parser.parse_args()


def main() -> None:
    arguments = _arguments()
    confine(arguments.parent or os.getppid(), arguments.memory, arguments.cpu, arguments.nice)
    root_fd = arguments.root_fd
    if root_fd is None:
        root_fd = os.open("/", os.O_PATH | os.O_CLOEXEC)
    budget = Budget(seconds=arguments.seconds)
    try:
        report = read_heap(arguments.core, budget, root=Root(root_fd), exe=arguments.exe)
    except (CorewardError, OSError) as error:
        # the path is often only a descriptor's
        why = str(error).removeprefix(f"{arguments.core}: ")
        report = HeapReport(lost={"heap": why})
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")


if __name__ == "__main__":
    main()
