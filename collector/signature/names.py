"""One name for one function, however it was compiled: without arguments, template arguments, return
type, clones and hashes.

Pure. Names come from the dead process's files and are hostile: each step is bounded by the length
of a name, and one that makes no sense stays as it is.
"""

from __future__ import annotations

import re

_LONGEST = 1024  # characters that are looked at
_DEEPEST = 8  # `<<A as B>::C as D>::e`
_SPACE = "\0"  # one that is part of a name

# What compilers and linkers append: GCC's and LLVM's copies, versions, entries of the PLT
_CLONE = re.compile(
    r"(?:\.(?:constprop|isra|ipa_ra|part|cold|lto_priv|llvm|clone|localalias|__uniq|hot|unlikely"
    r"|warm|startup|exit|resume|destroy|cleanup|simdclone|avx\w*|sse\w*|default|resolver)"
    r"(?:\.\d+)*|\.\d+| \[clone [^\]]{0,100}\]|@plt|@@?[A-Z][\w.]*)+$"
)
_RUST_HASH = re.compile(r"::h[0-9a-f]{16}$")
_OPERATOR = re.compile(
    r"operator(?:\(\)|\[\]|<=>|<<=|>>=|->\*|->|<<|>>|&&|\|\||\+\+|--|[-+*/%^&|~!=<>,]=?"
    r"| (?:new|delete|co_await)(?:\[\])?|\"\" ?\w+| [\w:]+)"
)
_QUALIFIERS = re.compile(r"(?: const| volatile| noexcept|&|\s)+$")
_ANONYMOUS = "(anonymous namespace)"
_CLOSING = {")": "(", ">": "<", "]": "[", "}": "{"}
_OPENING = frozenset(_CLOSING.values())
_NUMBERED = re.compile(r"#\d+|\d+(?=')")
_SEPARATORS = re.compile(r"(?:::){2,}")


def normal(name: str) -> str:
    """`void ns::Pool<int>::drop<char>(int) const [clone .isra.0]` is `ns::Pool::drop`."""
    short = _RUST_HASH.sub("", _CLONE.sub("", name[:_LONGEST]))
    if short.startswith("<") and _ends(short).get(0) == len(short):
        return short  # `<signal handler called>`
    made = _bare(short, _DEEPEST)
    made = _QUALIFIERS.sub("", made).rsplit(" ", 1)[-1].replace(_SPACE, " ")
    return _SEPARATORS.sub("::", made).strip(":").removesuffix("::") or name[:_LONGEST]


def _bare(name: str, depth: int) -> str:
    """The name without what is in brackets; those spaces that belong to it are marked."""
    kept: list[str] = []
    ends = _ends(name)
    at = 0
    while at < len(name):
        char = name[at]
        if name.startswith(_ANONYMOUS, at):
            kept.append(_ANONYMOUS.replace(" ", _SPACE))
            at += len(_ANONYMOUS)
        elif char == "o" and _starts_word(name, at) and (found := _OPERATOR.match(name, at)):
            kept.append(found[0].replace(" ", _SPACE))
            at = found.end()
        elif char in _OPENING and (end := ends.get(at)) is not None:
            kept.append(_group(name, at, end, depth, kept))
            at = end
        else:
            kept.append(char)
            at += 1
    return "".join(kept)


def _group(name: str, start: int, end: int, depth: int, before: list[str]) -> str:
    """What stays of a bracket."""
    inner = name[start + 1 : end - 1]
    match name[start]:
        case "{":  # `{lambda(int)#2}`, `{{closure}}`, `{impl#3}`
            return "{" + _NUMBERED.sub("", _bare(inner.strip("{}"), 0) if depth else "") + "}"
        case "(" if before and before[-1] == ".":  # Go's `main.(*Server).serve`
            return f"({inner})"
        case "<" if depth and start == 0:  # Rust's `<Pool as Drop>::drop`
            return _bare(inner.split(" as ", 1)[0], depth - 1).replace(" ", _SPACE)
    return ""


def _starts_word(name: str, at: int) -> bool:
    return at == 0 or not (name[at - 1].isalnum() or name[at - 1] == "_")


def _ends(name: str) -> dict[int, int]:
    """Of each bracket that is closed: where it begins, and behind where it ends. One pass."""
    ends: dict[int, int] = {}
    open_: list[int] = []
    for at, char in enumerate(name):
        if char in _OPENING:
            open_.append(at)
        elif char in _CLOSING and not (char == ">" and name[at - 1 : at] == "-"):
            # a `<` in between may be no bracket
            while open_ and name[open_[-1]] == "<" and char != ">":
                open_.pop()
            if open_ and name[open_[-1]] == _CLOSING[char]:
                ends[open_.pop()] = at + 1
    return ends
