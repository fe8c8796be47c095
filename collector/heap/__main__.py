"""`python -m collector.heap CORE`: print what its heap was used for, as one JSON document.

The child that `run` starts; by hand it does the same. It bounds and disarms itself before it looks
at the core, and exits with 0 whenever it printed a document.
"""

from __future__ import annotations

import argparse
import sys

import msgspec

from collector.errors import CorewardError
from collector.explain import asked
from collector.heap.memory import Budget
from collector.heap.read import read_heap
from collector.heap.types import HeapReport


def _arguments() -> argparse.Namespace:
    parser = asked.arguments("collector.heap", "Read a core's heap; it may be compressed.")
    parser.add_argument("--seconds", type=float, default=2.0, help="for the allocator's lists")
    return parser.parse_args()


def main() -> None:
    arguments = _arguments()
    root = asked.begin(arguments)
    budget = Budget(seconds=arguments.seconds)
    try:
        report = read_heap(arguments.core, budget, root=root, exe=arguments.exe)
    except (CorewardError, OSError) as error:
        report = HeapReport(lost={"heap": asked.in_words(error, arguments.core)})
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")


if __name__ == "__main__":
    main()
