"""Threads with equal stacks together, and a stack in a few words. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

import msgspec

from collector.explain.types import ThreadFrames
from collector.model import Frame

# Objects whose functions wait and start on behalf of the program.
_LIBRARIES = ("libc.so", "libc-", "libpthread", "ld-linux", "ld-musl", "libstdc++", "[vdso]")
_STARTERS = frozenset(
    [
        *("_start", "__libc_start_main", "__libc_start_main_impl", "__libc_start_call_main"),
        *("start_thread", "clone", "__clone", "clone3", "__clone3"),
    ]
)


def folded(threads: Sequence[ThreadFrames]) -> list[list[ThreadFrames]]:
    """The threads, those with the same frames together, in the order of the first of each.

    With variables only those that have the same ones.
    """
    groups: dict[object, list[ThreadFrames]] = {}
    for number, thread in enumerate(threads):
        # functions of an interpreter have its address
        pcs = tuple((f.pc, f.function, f.line) if f.language else f.pc for f in thread.frames)
        values = msgspec.json.encode(thread.values)
        groups.setdefault((pcs, values, thread.lost) if pcs else number, []).append(thread)
    return list(groups.values())


def in_short(frames: Sequence[Frame]) -> str:
    """Where a thread is, in two names: `pthread_cond_wait <- worker_loop`."""
    named = [frame for frame in frames if frame.function and frame.function not in _STARTERS]
    own = next((i for i, frame in enumerate(named) if not _is_library(frame)), None)
    shown = named[-1:] if own is None else named[max(own - 1, 0) : own + 1]
    return " <- ".join(_bare(frame.function or "") for frame in shown) or "no names"


def _is_library(frame: Frame) -> bool:
    return frame.module is not None and PurePosixPath(frame.module).name.startswith(_LIBRARIES)


def _bare(function: str) -> str:
    """Without the version of a symbol."""
    return function.partition("@")[0]
