"""C++ names for people, by the C++ runtime's own demangler where there is one.

Runs in the explaining child only: names are hostile, and demanglers have had their faults.
"""

from __future__ import annotations

import ctypes
import functools

_MAX_MANGLED = 1024  # characters; longer ones are shown as they are


@functools.cache
def _demangler() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libstdc++.so.6")
        library.__cxa_demangle.restype = ctypes.c_void_p
        library.__cxa_demangle.argtypes = [ctypes.c_char_p] + [ctypes.c_void_p] * 3
        library.free.argtypes = [ctypes.c_void_p]
    except (OSError, AttributeError):
        return None
    return library


def demangle(name: str) -> str:
    """`name` in the words of its source if it is a mangled C++ name, else unchanged."""
    if not name.startswith("_Z") or len(name) > _MAX_MANGLED:
        return name
    library = _demangler()
    if library is None:
        return name
    status = ctypes.c_int()
    made = library.__cxa_demangle(name.encode(), None, None, ctypes.byref(status))
    if not made:
        return name
    try:
        return ctypes.string_at(made).decode("utf-8", "replace")
    finally:
        library.free(made)
