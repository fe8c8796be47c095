"""Which frames of a backtrace a sentence names: the program's own, not the library's. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from collector.model import SIGNAL_FRAME, Frame

# Objects that carry out what the program asked for: a reader wants the frame that called them.
_RUNTIME = (
    *("libc.so", "libc-", "libc.musl", "ld-musl", "libpthread", "ld-linux"),
    *("libstdc++", "libgcc_s", "libc++", "[vdso]"),
)
# The same for programs that are linked statically.
_RUNTIME_FUNCTIONS = frozenset(
    [
        *("raise", "abort", "gsignal", "pthread_kill", "__pthread_kill"),
        *("__pthread_kill_implementation", "__libc_message", "malloc_printerr"),
        *("_int_free", "free", "__libc_free", "cfree"),
        *("__assert_fail", "__assert_fail_base", "__fortify_fail", "__stack_chk_fail"),
        *("__cxa_throw", "__cxa_rethrow", SIGNAL_FRAME),
    ]
)
# Libraries of templates and inline functions, which are compiled into the program itself.
_HEADERS = ("/usr/include/", "/usr/lib/gcc/", "/rustc/")
_NAMESPACES = (
    *("std::", "__gnu_cxx::", "__cxxabiv1::"),
    *("core::", "alloc::", "__rustc::", "__rust_", "rust_panic", "rust_begin_unwind"),
    "runtime.",  # of Go
)
_OPERATOR = re.compile(r"\boperator(?:\(\)|[^\w\s(]+)")
THROWING = frozenset(["__cxa_throw", "__cxa_rethrow"])
# Where a backtrace that was not cut ends: the entry of a program, or of a thread of its own.
OUTERMOST = frozenset(["_start", "__clone", "clone", "__clone3", "clone3"])


# The interpreter, and what its programs call by it, as objects of Python's own.
_INTERPRETER = ("python3", "libpython", "_ctypes", "libffi")
_STANDARD = re.compile(r"(?:.*/lib/python3\.\d+/(?!(?:site|dist)-packages/)|<frozen ).*")


def program_frame(frames: Sequence[Frame]) -> Frame | None:
    """The innermost frame of the program's own; generated code (a JIT's) has nothing to show."""
    passed = passed_over(frames)
    return next((f for f in frames if (f.function or f.module) and not passed(f)), None)


def passed_over(frames: Sequence[Frame]) -> Callable[[Frame], bool]:
    """What tells the frames of a backtrace that are not the program's own. With functions of an
    interpreter in it, it is these that tell where the program was."""
    return _is_interpreter if any(frame.language for frame in frames) else is_runtime


def _is_interpreter(frame: Frame) -> bool:
    if is_runtime(frame):
        return True
    path = PurePosixPath(frame.module or "")
    return path.name.startswith(_INTERPRETER) or path.parent.name == "lib-dynload"


def library_frame(frames: Sequence[Frame], caller: Frame) -> Frame | None:
    """What the program's own frame called, unless that only throws."""
    number = next(n for n, frame in enumerate(frames) if frame is caller)
    called = frames[number - 1] if number else None
    if called is None or called.function is None or called.function in THROWING:
        return None
    return called


def is_runtime(frame: Frame) -> bool:
    """Whether it is of a library that every program has."""
    if frame.language is not None:
        return _STANDARD.fullmatch(frame.file or "") is not None
    if frame.function is not None:
        if frame.function in _RUNTIME_FUNCTIONS:
            return True
        # methods of Rust are called `<core::option::Option<u64>>::unwrap`
        method = frame.function.startswith("<") and frame.function.lstrip("<&")
        if method and method.startswith(_NAMESPACES):
            return True
        if own_name(frame.function).startswith(_NAMESPACES):
            return True
    if in_header(frame) and (frame.inline or frame.function is None):
        return True
    return frame.module is not None and PurePosixPath(frame.module).name.startswith(_RUNTIME)


def in_header(frame: Frame) -> bool:
    """Whether its line is one of a library. In a function of the program's own that is the line of
    what the compiler has put into it."""
    return frame.file is not None and frame.file.startswith(_HEADERS)


def own_name(function: str) -> str:
    """A function's name with its namespaces, without arguments, those of templates, and result:
    `std::vector::at` of `int& std::vector<int>::at(unsigned long)`."""
    text = _OPERATOR.sub("operator", function.replace("(anonymous namespace)", "{anonymous}"))
    name, depth = "", 0
    for char in text:
        if char in ")>}":
            depth -= 1
        if depth <= 0:
            if char == "(":
                break
            if char != " ":
                name += char
            elif not name.endswith("operator"):
                name = ""
        if char in "(<{":
            depth += 1
    return name.replace("<>", "").replace("{}", "")
