"""`python -m collector.explain CORE`: print what a core says, as one JSON document.

The child that `run` starts; by hand it does the same. It bounds and disarms itself before it loads
drgn or looks at the core, and exits with 0 whenever it printed a document.
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
from collector.explain.types import MAX_DOCUMENT, Explanation, StackImage, UnwoundStacks


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="collector.explain", description="Explain a core.")
    parser.add_argument("core", type=Path, help="a plain ELF core")
    parser.add_argument("--all", action="store_true", help="backtraces of all threads")
    parser.add_argument("--stacks", type=int, help="descriptor of stacks to unwind instead")
    parser.add_argument("--root-fd", type=int, help="descriptor of the root that paths are under")
    parser.add_argument("--exe", type=Path, help="the main program's file")
    parser.add_argument("--memory", type=int, default=1 << 30, help="bound, bytes")
    parser.add_argument("--cpu", type=int, default=60, help="bound, seconds")
    parser.add_argument("--nice", type=int, default=19, help="0: somebody waits for it")
    parser.add_argument("--parent", type=int, help="die with this process")
    return parser.parse_args()


def _encode(explanation: Explanation) -> bytes:
    """As JSON, without the threads if it would be too large with them."""
    document = msgspec.json.encode(explanation)
    if len(document) > MAX_DOCUMENT:
        why = {**explanation.lost, "threads": "the backtraces of all threads are too large"}
        explanation = msgspec.structs.replace(explanation, threads=None, modules=[], lost=why)
        document = msgspec.json.encode(explanation)
    return document


def _print_stacks(arguments: argparse.Namespace, root: Root) -> None:
    from collector.explain.unwind_stacks import unwind_stacks  # noqa: PLC0415  (it loads drgn)

    with open(arguments.stacks, "rb") as file:
        stacks = msgspec.msgpack.decode(file.read(), type=list[StackImage])
    try:
        found = unwind_stacks(arguments.core, stacks, root=root, exe=arguments.exe)
    except (CorewardError, OSError) as error:
        found = UnwoundStacks(frames=[], stacks=[[] for _ in stacks], lost={"frames": str(error)})
    sys.stdout.buffer.write(msgspec.json.encode(found) + b"\n")


def main() -> None:
    arguments = _arguments()
    confine(arguments.parent or os.getppid(), arguments.memory, arguments.cpu, arguments.nice)
    from collector.explain.unwind import explain  # noqa: PLC0415  (only now: it loads drgn)

    root_fd = arguments.root_fd
    if root_fd is None:
        root_fd = os.open("/", os.O_PATH | os.O_CLOEXEC)
    root = Root(root_fd)
    if arguments.stacks is not None:
        _print_stacks(arguments, root)
        return
    try:
        explanation = explain(
            arguments.core, all_threads=arguments.all, root=root, exe=arguments.exe
        )
    except (CorewardError, OSError) as error:
        # the path is often only a descriptor's
        why = str(error).removeprefix(f"{arguments.core}: ")
        explanation = Explanation(lost={"frames": why})
    sys.stdout.buffer.write(_encode(explanation) + b"\n")


if __name__ == "__main__":
    main()
