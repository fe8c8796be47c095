"""What a program said of its end in the last lines of its log, as runtimes of languages do. Pure.

Only lines of the process itself count; they are its own words, so they are likely, never certain.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from collector.circumstances import LogLine
from collector.diagnosis import Category

_TRACEBACK = "Traceback (most recent call last):"
_EXCEPTION = re.compile(r"([A-Za-z_][\w.]*)(?:: (.*))?")
_RUST = re.compile(r"thread '.*' (?:\(\d+\) )?panicked at (?:'(.*)', )?(\S+:\d+:\d+):?")
_GO = re.compile(r"(?:panic|fatal error): (.*)")


class LastWords(NamedTuple):
    """An exception of Python, or a panic. exception: its type, where it has one."""

    category: Category
    exception: str | None
    message: str | None


def last_words(logs: Sequence[LogLine] | None, pid: int) -> LastWords | None:
    """Of the process's last lines; None if they say nothing of the kind."""
    lines = [line.message for line in logs or () if line.pid == pid]
    for number in range(len(lines) - 1, -1, -1):
        rest = lines[number + 1 :]
        found = _python(lines[number], rest) or _rust(lines[number], rest)
        found = found or _go(lines[number], rest)
        if found is not None:
            return found
    return None


def _python(line: str, rest: Sequence[str]) -> LastWords | None:
    if line != _TRACEBACK:
        return None
    # the places of the calls are indented
    last = next((said for said in rest if said and not said.startswith(" ")), "")
    match = _EXCEPTION.fullmatch(last)
    return None if match is None else LastWords(Category.PYTHON_EXCEPTION, match[1], match[2])


def _rust(line: str, rest: Sequence[str]) -> LastWords | None:
    match = _RUST.fullmatch(line)
    if match is None:
        return None
    message = match[1] if match[1] is not None else next(iter(rest), None)  # that of old releases
    return LastWords(Category.RUST_PANIC, None, message)


def _go(line: str, rest: Sequence[str]) -> LastWords | None:
    match = _GO.fullmatch(line)
    if match is None or not any(said.startswith("goroutine ") for said in rest):
        return None
    return LastWords(Category.GO_PANIC, None, match[1])
