"""What strace(1) and `coreward trace` say, taken apart so that they can be compared.

A line becomes a tuple whose first part says what it is. Arguments that strace decodes and that
Coreward shows as an address become ANYTHING on both sides, and nothing else does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from collector.signals import signal_name

_LINE = re.compile(r"^(?:\[pid +(\d+)\] |(\d+) +)(.*)$")
_CALL = re.compile(r"^(\w+)\((.*)\)\s+= (.*)$", re.DOTALL)
_RESUMED = re.compile(r"^<\.\.\. (\w+) resumed>(.*)$")
_COMMENT = re.compile(r" ?/\*.*?\*/")
_ESCAPE = re.compile(r"\\(x[0-9a-f]{2}|[0-7]{1,3}|.)")
_NAMED = {"n": 10, "t": 9, "r": 13, "v": 11, "f": 12, '"': 34, "\\": 92}
ANYTHING = "<decoded by strace>"

Item = tuple[Any, ...]

# strace shows the mask that rt_sigreturn restores, which is no argument
NO_ARGUMENT = ("call", "rt_sigreturn")
NO_RETURN = ("exit", "exit_group")


def by_thread(text: str) -> dict[int, list[Item]]:
    """thread -> what it did, in its order."""
    found: dict[int, list[Item]] = {}
    begun: dict[int, str] = {}
    for line in text.splitlines():
        match = _LINE.match(line)
        assert match, line
        tid, rest = int(match[1] or match[2]), match[3]
        if rest.startswith(("???(", "<... ??? resumed>")):  # killed before strace could look
            continue
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
    if ours[0] != "call" or theirs[0] != "call":
        return ours, theirs
    if theirs[3] == "?" and ours[1] not in NO_RETURN:  # it was killed before strace could look
        ours = (*ours[:3], "?")
    if ours[1] == "prctl":  # how many arguments it has, and of which kind, is its option's affair
        ours, theirs = ((*item[:2], item[2][:1], item[3]) for item in (ours, theirs))
    if len(ours[2]) != len(theirs[2]):
        return ours, theirs
    pairs = [
        (ANYTHING, ANYTHING) if _is_decoded(one, other) else (_plain(one), _plain(other))
        for one, other in zip(ours[2], theirs[2], strict=True)
    ]
    return (
        (*ours[:2], tuple(one for one, _ in pairs), ours[3]),
        (*theirs[:2], tuple(other for _, other in pairs), theirs[3]),
    )


def compare(ours: dict[int, list[Item]], theirs: dict[int, list[Item]]) -> int:
    """Each thread that strace saw did the same in the same order: calls, arguments, results,
    signals. How many were compared.

    What the first thread does before it is the traced program is strace's own affair.
    """
    compared = 0
    for tid, items in theirs.items():
        mine = ours[tid]
        if tid == min(theirs):
            mine = mine[[item[:2] for item in mine].index(("call", "execve")) :]
        if len(mine) == len(items) + 1 and mine[-1][0] == items[-1][0] == "end":
            del mine[-2]  # a call in whose entry it was killed, before strace could look
        for one, other in zip(mine, items, strict=False):
            if one[:2] == NO_ARGUMENT:
                assert one[3] == other[3]
                continue
            left, right = comparable(one, other)
            assert left == right
            compared += 1
        assert len(mine) == len(items)
    return compared


def _is_decoded(ours: Any, theirs: Any) -> bool:
    is_address = isinstance(ours, str) and re.fullmatch(r"0x[0-9a-f]+", ours) is not None
    return is_address and isinstance(theirs, str) and theirs[:1] in ("{", "[", "~")


def _plain(word: Any) -> Any:
    """Real-time signals, which strace counts from the kernel's first one and we from that of the C
    library; values of socket options, which strace shows as numbers and we as their bytes."""
    if isinstance(word, str) and (match := re.fullmatch(r"SIGRT_(\d+)", word)):
        return signal_name(32 + int(match[1]))
    if isinstance(word, str) and (match := re.fullmatch(r"\[(-?\d+)\]", word)):
        return (int(match[1]).to_bytes(4, "little", signed=True), False)
    return word
