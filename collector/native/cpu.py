"""What this CPU saves of a thread's extended registers: cpu.c asks it, here it gets its meaning.

Components come from CPUID leaf 0xD (Intel SDM volume 1, chapter 13), those in use from XCR0. It is
the same for all processes of a machine, and true of no other machine.
"""

from __future__ import annotations

import ctypes
import platform
from functools import cache
from typing import NamedTuple

from collector.arch.xsave import FIRST_EXTENDED, HEADER_END, MAX_COMPONENT, Component, Layout
from collector.native.build import CPU_LIBRARY, find

_LEAF_FEATURES, _ECX_OSXSAVE = 1, 1 << 27
_LEAF_XSAVE = 0xD
_ECX_ALIGNED = 1 << 1
_MXCSR_MASK_DEFAULT = 0xFFBF  # Intel SDM: what a mask of 0 means


class Unavailable(NamedTuple):
    """Why there is no layout."""

    reason: str


@cache
def probe() -> Layout | Unavailable:
    """This machine's layout, or why it is not known."""
    if platform.machine() != "x86_64":
        return Unavailable(f"XSAVE is x86-64 only, this is {platform.machine()}")
    path = find(CPU_LIBRARY)
    if path is None:
        return Unavailable(f"{CPU_LIBRARY} was not built: run `make setup`")
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return Unavailable(f"{CPU_LIBRARY} cannot be loaded: {error}")
    library.coreward_xgetbv.restype = ctypes.c_uint64
    library.coreward_mxcsr_mask.restype = ctypes.c_uint32
    if not _cpuid(library, _LEAF_FEATURES, 0)[2] & _ECX_OSXSAVE:
        return Unavailable("the CPU or the kernel does not use XSAVE")
    features = library.coreward_xgetbv()
    components = []
    for number in range(FIRST_EXTENDED, MAX_COMPONENT):
        size, offset, flags, _ = _cpuid(library, _LEAF_XSAVE, number)
        if size:
            components.append(Component(number, size, offset, bool(flags & _ECX_ALIGNED)))
    user = [c for c in components if features >> c.number & 1]
    end = max((c.offset + c.size for c in user), default=HEADER_END)
    mask = library.coreward_mxcsr_mask() or _MXCSR_MASK_DEFAULT
    return Layout(features, end, mask, tuple(components))


def xsave_layout() -> Layout | None:
    """This machine's layout; `probe` says why there is none."""
    found = probe()
    return found if isinstance(found, Layout) else None


def _cpuid(library: ctypes.CDLL, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
    out = (ctypes.c_uint32 * 4)()
    library.coreward_cpuid(ctypes.c_uint32(leaf), ctypes.c_uint32(subleaf), out)
    return out[0], out[1], out[2], out[3]
