"""Why a program ended itself: by what it said, and by the functions that it was in. Pure."""

from __future__ import annotations

import re
import signal
from collections.abc import Collection, Sequence

from collector.diagnosis import Category, Confidence
from collector.model import Frame, Record

_CERTAIN, _LIKELY = Confidence.CERTAIN, Confidence.LIKELY

# What malloc(3) of glibc says before it aborts: malloc_printerr() in malloc.c and arena.c.
_HEAP = re.compile(
    r"(?:free|malloc|calloc|realloc|memalign|munmap_chunk|mremap_chunk|malloc_consolidate"
    r"|malloc_check_get_size|sysmalloc|corrupted_chunk|tcache_thread_shutdown)\(\): "
    r"|double free or corruption|corrupted (?:size vs\. prev_size|double-linked list)"
    r"|break adjusted to free malloc space|.*\(top chunk\)|invalid fastbin entry"
)
_CHECKED = re.compile(r"\*\*\* (?:stack smashing|buffer overflow) detected \*\*\*")
_ASSERTED = re.compile(r".*Assertion (?:`|'|\").*failed")
_BY_FUNCTION = (
    (Category.HEAP_CORRUPTION, ("malloc_printerr",)),
    (Category.BUFFER_OVERFLOW, ("__fortify_fail", "__stack_chk_fail", "__chk_fail")),
    (
        Category.ASSERTION,
        (
            *("__assert_fail", "__assert_fail_base", "__assert_perror_fail", "__assert"),
            *("std::__glibcxx_assert_fail", "g_assertion_message", "g_assertion_message_expr"),
            *("qt_assert", "qt_assert_x"),
        ),
    ),
    (Category.UNCAUGHT_EXCEPTION, ("__cxa_throw", "__cxa_rethrow")),
)
_PANICS = (
    (
        Category.RUST_PANIC,
        (
            *("rust_panic", "rust_begin_unwind", "__rustc::rust_panic", "__rust_start_panic"),
            *("core::panicking::", "std::panicking::"),
        ),
    ),
    (
        Category.GO_PANIC,
        ("runtime.gopanic", "runtime.fatalpanic", "runtime.fatalthrow", "runtime.throw"),
    ),
)


def gave_up(record: Record) -> tuple[Category, Confidence]:
    """Of a process that sent itself its fatal signal."""
    frames = record.frames or ()
    if (panic := panicked(frames)) is not None:
        return panic, _CERTAIN
    untold = record.si_code is None and record.sender is None  # nobody saw the signal itself
    if untold and "abort" not in {_bare(frame.function) for frame in frames}:
        return Category.UNKNOWN, Confidence.GUESS
    if record.signal != signal.SIGABRT:
        return Category.RAISED, _CERTAIN if record.si_code is not None else _LIKELY
    if record.abort_message is not None and (said := _said(record.abort_message)) is not None:
        return said, _CERTAIN
    functions = {_bare(frame.function) for frame in frames}
    known = record.diagnosis.evidence if record.diagnosis is not None else None
    if known is not None and known.exception is not None and is_terminated(functions):
        return Category.UNCAUGHT_EXCEPTION, _CERTAIN if frames else _LIKELY
    for category, signs in _BY_FUNCTION:
        if functions.intersection(signs):
            return category, _CERTAIN
    return Category.ABORT, _CERTAIN if record.abort_message or "abort" in functions else _LIKELY


def panicked(frames: Sequence[Frame]) -> Category | None:
    """Whether a language's own panic ended it, for which some execute an illegal instruction."""
    for frame in frames:
        name = frame.function or ""
        for category, signs in _PANICS:
            if name.startswith(signs):
                return category
    return None


def is_terminated(functions: Collection[str]) -> bool:
    """Whether the C++ runtime ended it, or nothing is known of where it was."""
    return not functions or any("terminate" in name for name in functions)


def _said(message: str) -> Category | None:
    if _HEAP.match(message):
        return Category.HEAP_CORRUPTION
    if _CHECKED.match(message):
        return Category.BUFFER_OVERFLOW
    return Category.ASSERTION if _ASSERTED.match(message) else None


def _bare(function: str | None) -> str:
    """The name without its arguments."""
    return (function or "").split("(", 1)[0]
