"""Loads `coreward-handoff.so` and tells ctypes what it exports; handoff.h says what each does."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_int, c_int32, c_int64, c_uint64, c_void_p
from pathlib import Path

from collector.errors import HoldError
from collector.native.build import LIBRARY, find
from collector.native.contract import Account, Bidder, Level, Orders, Taken

FUNCTIONS = {
    "coreward_serve": (c_void_p, c_int, c_int, POINTER(Orders)),
    "coreward_take": (c_int, c_void_p, POINTER(Taken), c_int),
    "coreward_stop": (None, c_void_p),
    "coreward_leave": (None, c_void_p),
    "coreward_unwatch": (c_int, c_int),
    "coreward_drop": (None, POINTER(Taken)),
    "coreward_entered": (None, POINTER(Orders), c_int64, POINTER(Level), c_int32),
    "coreward_count": (None, POINTER(Orders), POINTER(Account)),
    "coreward_fresh": (None, POINTER(Orders), POINTER(Account)),
    "coreward_bidders": (None, POINTER(Orders), POINTER(Bidder), c_int32),
    "coreward_was_spared": (c_int, c_int, c_uint64),
    "coreward_busy": (None, POINTER(Orders), c_int),
    "coreward_wait": (None, POINTER(Orders), c_int, c_int, c_int),
    "coreward_sizes": (c_uint64,),
}


def load(path: Path | None = None) -> ctypes.CDLL:
    """The library at `path`, or where it was installed or built.

    Raises HoldError if it was not built, or not for this version.
    """
    path = path or find(LIBRARY)
    if path is None:
        raise HoldError("the native part of the hand-off was not built; run `make setup`")
    try:
        library = ctypes.CDLL(str(path), use_errno=True)
        for name, (result, *arguments) in FUNCTIONS.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        sizes = library.coreward_sizes()
    except (OSError, AttributeError) as error:
        raise HoldError(f"{path}: {error}; build it with `make setup`") from error
    if sizes != ctypes.sizeof(Orders) << 32 | ctypes.sizeof(Taken):
        raise HoldError(f"{path} is of another version: build it with `make setup`")
    return library
