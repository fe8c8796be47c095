"""Where the arguments and the environment of a process have what is to be hidden. Pure.

Both are blocks of texts that end in NUL, as the kernel puts them on the first stack.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from collector.ranges import Range

_MOST_WORDS = 1 << 14  # of a block; all that comes behind them is hidden
_WILD = re.compile(r"[*?\[]")


def argument_spans(block: bytes, globs: Sequence[str]) -> list[Range]:
    """What is hidden of a block of arguments, of which the first is the program's name.

    A glob hides what its text before the first wildcard leaves of an argument; if that leaves
    nothing, the next argument. One without wildcards also hides what follows it and a `=`.
    """
    found: list[Range] = []
    hide_next = False
    for number, (start, word) in enumerate(_words(block)):
        if number == _MOST_WORDS:
            found.append((start, len(block)))
        elif hide_next:
            hide_next = False
            found.append((start, start + len(word)))
        elif number:
            hidden = _hidden_from(word.decode("latin-1"), globs)
            if hidden is None:
                continue
            hide_next = hidden == len(word) and not word.endswith(b"=")
            found.append((start + hidden, start + len(word)))
    return [span for span in found if span[0] < span[1]]


def hidden_arguments(words: Sequence[str], globs: Sequence[str], mark: str) -> list[str]:
    """The same of a list of arguments, in place of what is hidden with a mark."""
    raw = [word.encode("utf-8", "surrogateescape") for word in words]
    block = b"\0".join(raw)
    hidden = dict(argument_spans(block, globs))  # start -> end of a word
    found, at = [], 0
    for word in raw:
        start = next((at + i for i in range(len(word)) if at + i in hidden), None)
        kept = word if start is None else word[: start - at]
        found.append(kept.decode("utf-8", "surrogateescape") + ("" if start is None else mark))
        at += len(word) + 1
    return found


def environment_spans(block: bytes, globs: Sequence[str]) -> list[Range]:
    """The values of those variables of a block whose names match."""
    found: list[Range] = []
    for number, (start, word) in enumerate(_words(block)):
        if number == _MOST_WORDS:
            found.append((start, len(block)))
            break
        name, equals, value = word.partition(b"=")
        if equals and value and is_named(name.decode("latin-1"), globs):
            found.append((start + len(name) + 1, start + len(word)))
    return found


def is_named(name: str, globs: Sequence[str]) -> bool:
    """Whether the name of a variable matches one of them."""
    return any(fnmatchcase(name, glob) for glob in globs)


def assignment_regex(globs: Sequence[str]) -> bytes:
    """What finds such a variable with its value in memory, as RE2 and `re` have it: in group 1."""
    names = "|".join(
        re.escape(glob).replace(r"\*", "[0-9A-Za-z_]*").replace(r"\?", "[0-9A-Za-z_]")
        for glob in globs
    )
    return rf"\b(?:{names})=([^\x00\r\n]+)".encode()


def _hidden_from(word: str, globs: Sequence[str]) -> int | None:
    for glob in globs:
        raw = glob.encode().decode("latin-1")
        wild = _WILD.search(raw)
        if wild is not None:
            if fnmatchcase(word, raw):
                return wild.start()
        elif word == raw or word.startswith(f"{raw}="):
            return min(len(raw) + 1, len(word))
    return None


def _words(block: bytes) -> Iterator[tuple[int, bytes]]:
    """Each text, and where it begins; all behind the last one that is looked at in one piece."""
    at = 0
    for word in block.split(b"\0", _MOST_WORDS):
        yield at, word
        at += len(word) + 1
