"""Names of C++, Rust and Swift for people, by LLVM's demanglers.

Runs in the explaining child only: names are hostile, and demanglers have had their faults.
"""

from __future__ import annotations

import functools

_MAX_MANGLED = 1024  # characters; longer ones are shown as they are
_PREFIXES = ("_Z", "__Z", "_R", "$s", "_$s", "$S", "_$S")  # C++ and older Rust; Rust; Swift


def is_mangled(name: str) -> bool:
    """Whether it looks like a name that a compiler made of more words."""
    return name.startswith(_PREFIXES)


@functools.cache
def demangle(name: str) -> str:
    """`name` in the words of its source if it is a mangled one, else unchanged."""
    if not is_mangled(name) or len(name) > _MAX_MANGLED:
        return name
    import pydemumble  # noqa: PLC0415  (few programs have such names)

    try:
        return pydemumble.demangle(name) or name
    except (TypeError, UnicodeError):  # the name, or what it would become, is no text
        return name
