"""What strace(1) and `coreward trace` say, taken apart so that they can be compared.

A line becomes a tuple whose first part says what it is. Arguments that strace decodes and that
Coreward shows as an address become ANYTHING on both sides, and nothing else does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_LINE = re.compile(r"^(?:\[pid +(\d+)\] |(\d+) +)(.*)$")
_CALL = re.compile(r"^(\w+)\((.*)\)\s+= (.*)$", re.DOTALL)
_RESUMED = re.compile(r"^<\.\.\. (\w+) resumed>(.*)$")
_COMMENT = re.compile(r" ?/\*.*?\*/")
_ESCAPE = re.compile(r"\\(x[0-9a-f]{2}|[0-7]{1,3}|.)")
_NAMED = {"n": 10, "t": 9, "r": 13, "v": 11, "f": 12, '"': 34, "\\": 92}
ANYTHING = "<decoded by strace>"

Item = tuple[Any, ...]


def by_thread(text: str) -> dict[int, list[Item]]:
    """thread -> what it did, in its order."""
    found: dict[int, list[Item]] = {}
    begun: dict[int, str] = {}
    for line in text.splitlines():
        match = _LINE.match(line)
        assert match, line
        tid, rest = int(match[1] or match[2]), match[3]
        if rest.endswith("<unfinished ...>"):
            begun[tid] = rest.removesuffix("<unfinished ...>").rstrip()
            continue
        if resumed := _RESUMED.match(rest):
            rest = begun.pop(tid) + resumed[2]
        elif tid in begun and rest.startswith("+++"):
            found.setdefault(tid, []).append(_call(begun.pop(tid) + ") = ?"))
        found.setdefault(tid, []).append(_item(rest))
    return found


def _item(text: str) -> Item:
    if text.startswith("+++"):
        return ("end", text)
    if text.startswith("---"):
        words = re.findall(r"si_(signo|code|pid|uid|status|addr)=(\w+)", text)
        return ("signal", text.split()[1], *words)
    return _call(text)


def _call(text: str) -> Item:
    match = _CALL.match(text)
    assert match, text
    name, arguments, result = match.groups()
    shown = tuple(_argument(word) for word in _split(_COMMENT.sub("", arguments)))
    return (
        "call",
        name,
        shown,
        " ".join(result.split()[:2]) if "?" in result else result.split()[0],
    )


def _split(text: str) -> Iterator[str]:
    """The arguments: commas in texts and brackets do not divide them."""
    depth, quoted, word, skip = 0, False, "", False
    for char in text:
        if skip or (quoted and char == "\\"):
            skip = not skip
        elif char == '"':
            quoted = not quoted
        elif not quoted:
            depth += (char in "[{(") - (char in "]})")
            if char == "," and not depth:
                yield word.strip()
                word = ""
                continue
        word += char
    if word.strip():
        yield word.strip()


def _argument(word: str) -> Any:
    if word.startswith('"'):
        text, cut = word.removesuffix("..."), word.endswith("...")
        return (_bytes(text[1:-1]), cut)
    if "|" in word and not word.startswith(("[", "{")):
        return frozenset(word.split("|"))
    return word


def _bytes(text: str) -> bytes:
    def value(match: re.Match[str]) -> str:
        code = match[1]
        if code[0] == "x":
            return chr(int(code[1:], 16))
        return chr(int(code, 8)) if code[0].isdigit() else chr(_NAMED[code])

    return _ESCAPE.sub(value, text).encode("latin-1")


def comparable(ours: Item, theirs: Item) -> tuple[Item, Item]:
    """Both, without the arguments that only strace decodes."""
    if ours[0] != "call" or theirs[0] != "call" or len(ours[2]) != len(theirs[2]):
        return ours, theirs
    pairs = [
        (ANYTHING, ANYTHING) if _is_decoded(one, other) else (one, other)
        for one, other in zip(ours[2], theirs[2], strict=True)
    ]
    return (
        (*ours[:2], tuple(one for one, _ in pairs), ours[3]),
        (*theirs[:2], tuple(other for _, other in pairs), theirs[3]),
    )


def _is_decoded(ours: Any, theirs: Any) -> bool:
    is_address = isinstance(ours, str) and re.fullmatch(r"0x[0-9a-f]+", ours) is not None
    return is_address and isinstance(theirs, str) and theirs[:1] in ("{", "[", "~")
