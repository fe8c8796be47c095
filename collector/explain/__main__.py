"""`python -m collector.explain CORE`: print what a core says, as one JSON document.

The child that `run` starts; by hand it does the same. It bounds and disarms itself before it loads
drgn or looks at the core, and exits with 0 whenever it printed a document.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys

import msgspec

from collector.errors import CorewardError
from collector.explain import asked
from collector.explain.find import Finder
from collector.explain.kept_threads import packed
from collector.explain.package import package_of_core
from collector.explain.types import (
    MAX_DOCUMENT,
    MAX_FULL_DOCUMENT,
    Explanation,
    StackImage,
    ThreadFrames,
    UnwoundStacks,
)
from collector.signature.types import SignatureRules


def _arguments() -> argparse.Namespace:
    parser = asked.arguments("collector.explain", "Explain a core.")
    parser.add_argument("--all", action="store_true", help="backtraces of all threads")
    parser.add_argument("--threads", type=int, help="descriptor of a file to put all threads into")
    parser.add_argument(
        "--changed",
        type=float,
        help="no file without a build-id that was changed later, seconds of the epoch; "
        "default: the time of the core",
    )
    parser.add_argument("--full", action="store_true", help="with variables and registers")
    parser.add_argument(
        "--mapped",
        action="append",
        default=[],
        type=asked.mapped,
        metavar="ADDRESS=FD",
        help="descriptor of the file that was mapped there",
    )
    parser.add_argument("--signature", help="make one: rules beside the built-in ones, as JSON")
    parser.add_argument("--stacks", type=int, help="descriptor of stacks to unwind instead")
    return parser.parse_args()


def _encode(explanation: Explanation, most: int) -> bytes:
    """As JSON, without the threads if it would be more than `most` bytes with them."""
    document = msgspec.json.encode(explanation)
    if len(document) > most:
        why = {**explanation.lost, "threads": "the backtraces of all threads are too large"}
        explanation = msgspec.structs.replace(explanation, threads=None, modules=[], lost=why)
        document = msgspec.json.encode(explanation)
    return document


def _with_signature(explanation: Explanation, more: str) -> Explanation:
    from collector.signature.rules import rules  # noqa: PLC0415  (only who wants one)
    from collector.signature.stack import stack_key  # noqa: PLC0415

    wanted = msgspec.json.decode(more, type=SignatureRules)
    return msgspec.structs.replace(
        explanation, stack=stack_key(explanation.frames or [], rules(wanted))
    )


def _print_stacks(arguments: argparse.Namespace, finder: Finder) -> None:
    from collector.explain.unwind_stacks import unwind_stacks  # noqa: PLC0415  (it loads drgn)

    with open(arguments.stacks, "rb") as file:
        stacks = msgspec.msgpack.decode(file.read(), type=list[StackImage])
    try:
        found = unwind_stacks(arguments.core, finder, stacks)
    except (CorewardError, OSError) as error:
        found = UnwoundStacks(frames=[], stacks=[[] for _ in stacks], lost={"frames": str(error)})
    sys.stdout.buffer.write(msgspec.json.encode(found) + b"\n")


def _put(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def main() -> None:
    arguments = _arguments()
    root = asked.begin(arguments)
    from collector.explain.unwind import explain  # noqa: PLC0415  (only now: it loads drgn)

    mapped = dict(arguments.mapped)
    changed = arguments.changed
    if changed is None:
        changed = arguments.core.stat().st_mtime
    finder = Finder(root, arguments.exe, mapped, changed)
    if arguments.stacks is not None:
        _print_stacks(arguments, finder)
        return
    most = MAX_FULL_DOCUMENT if arguments.full else MAX_DOCUMENT

    def tell(explanation: Explanation) -> None:
        if not arguments.all:  # who asks for all threads has the record already
            with contextlib.suppress(CorewardError, OSError):
                package = package_of_core(arguments.core, arguments.exe, root)
                explanation = msgspec.structs.replace(explanation, package=package)
        if arguments.signature is not None and explanation.frames:
            explanation = _with_signature(explanation, arguments.signature)
        sys.stdout.buffer.write(_encode(explanation, most) + b"\n")
        sys.stdout.buffer.flush()

    def keep(explanation: Explanation, threads: list[ThreadFrames]) -> None:
        """What is asked for is told before the other threads: these may take us down."""
        if not threads:
            tell(explanation)
        else:
            _put(arguments.threads, packed(threads))

    try:
        explanation = explain(
            arguments.core,
            finder,
            all_threads=arguments.all,
            full=arguments.full,
            then=None if arguments.threads is None else keep,
        )
    except (CorewardError, OSError) as error:
        tell(Explanation(lost={"frames": asked.in_words(error, arguments.core)}))
        return
    if arguments.threads is None:
        tell(explanation)


if __name__ == "__main__":
    main()
