"""The XSAVE area of a thread: from the kernel's compacted copy to the format of core files.

The kernel keeps extended registers compacted (only the components in use, tightly packed); a core
file and PTRACE_GETREGSET have the standard format (each component at its place). The conversion is
that of copy_xstate_to_uabi_buf() in arch/x86/kernel/fpu/xstate.c. Pure: places and sizes are those
of the machine whose threads are converted, which native/cpu asks. It knows x86-64 only.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

FP, SSE, YMM, PKRU = 0, 1, 2, 9  # components; FP and SSE are the legacy area
FIRST_EXTENDED = 2
MXCSR = 24  # offsets in the legacy area (struct fxregs_state)
ST_SPACE, XMM_SPACE, SW_RESERVED = 32, 160, 464
MXCSR_BYTES = 8
LEGACY = 512
HEADER_END = LEGACY + 64
COMPACTED = 1 << 63  # in xcomp_bv
ALIGNMENT = 64
MAX_COMPONENT = 63
CONTROL_WORD_DEFAULT = 0x37F
MXCSR_DEFAULT = 0x1F80


class Component(NamedTuple):
    """One extended component. `offset` is its place in the standard format."""

    number: int
    size: int
    offset: int
    aligned: bool  # in the compacted format it begins at a multiple of 64


class Layout(NamedTuple):
    """What this CPU and kernel save. `size` is that of the standard format."""

    features: int  # user components (XCR0)
    size: int
    mxcsr_mask: int
    components: tuple[Component, ...]  # by number, supervisor components as well


def layout_note(own: Layout) -> bytes:
    """The body of NT_X86_XSAVE_LAYOUT: struct x86_xfeat_component for each user component."""
    return b"".join(
        struct.pack("<4I", c.number, c.size, c.offset, 0)
        for c in own.components
        if own.features >> c.number & 1
    )


def _places(area: bytes, own: Layout) -> dict[int, tuple[int, Component]]:
    """Where each component is in `area`, which the kernel saved."""
    (compaction,) = struct.unpack_from("<Q", area, LEGACY + 8)
    if not compaction & COMPACTED:
        return {c.number: (c.offset, c) for c in own.components}
    places = {}
    offset = HEADER_END
    for component in own.components:
        if compaction >> component.number & 1:
            if component.aligned:
                offset = (offset + ALIGNMENT - 1) & ~(ALIGNMENT - 1)
            places[component.number] = offset, component
            offset += component.size
    return places


def standard(area: bytes, user_features: int, pkru: int, own: Layout) -> bytes | None:
    """A saved XSAVE area in the standard format, as PTRACE_GETREGSET(NT_X86_XSTATE) gives it.

    `user_features` are the components that user space may have (fpstate.user_xfeatures). Components
    in their initial state read as such. None if the area is too short for what it claims.
    """
    if len(area) < HEADER_END:
        return None
    (in_use,) = struct.unpack_from("<Q", area, LEGACY)
    in_use &= user_features & own.features
    out = bytearray(own.size)
    struct.pack_into("<H", out, 0, CONTROL_WORD_DEFAULT)
    struct.pack_into("<II", out, MXCSR, MXCSR_DEFAULT, own.mxcsr_mask)
    if in_use & 1 << FP:
        out[:MXCSR] = area[:MXCSR]
        out[ST_SPACE:XMM_SPACE] = area[ST_SPACE:XMM_SPACE]
    if in_use & (1 << SSE | 1 << YMM):
        out[MXCSR : MXCSR + MXCSR_BYTES] = area[MXCSR : MXCSR + MXCSR_BYTES]
    if in_use & 1 << SSE:
        out[XMM_SPACE : XMM_SPACE + 256] = area[XMM_SPACE : XMM_SPACE + 256]
    struct.pack_into("<Q", out, SW_RESERVED, own.features)
    struct.pack_into("<Q", out, LEGACY, in_use)
    for number, (place, component) in _places(area, own).items():
        if not in_use >> number & 1:
            continue
        if number == PKRU:
            value = struct.pack("<I", pkru).ljust(component.size, b"\0")
        else:
            value = area[place : place + component.size]
        if len(value) != component.size:
            return None
        out[component.offset : component.offset + component.size] = value
    return bytes(out)
