"""The XSAVE area of a thread: from the kernel's compacted copy to the format of core files.

The kernel keeps extended registers compacted (only the components in use, tightly packed); a core
file and PTRACE_GETREGSET have the standard format (each component at its place). The conversion is
that of copy_xstate_to_uabi_buf() in arch/x86/kernel/fpu/xstate.c. Places and sizes come from
CPUID leaf 0xD (Intel SDM volume 1, chapter 13), and XCR0 from XGETBV, executed here: so it must
run on the machine whose threads it converts. It knows x86-64 only.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import struct
from functools import cache
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
LEAF_XSAVE = 0xD
MAX_COMPONENT = 63
CONTROL_WORD_DEFAULT = 0x37F
MXCSR_DEFAULT = 0x1F80

_CPUID = bytes.fromhex(  # void cpuid(u32 leaf, u32 subleaf, u32 out[4])
    "53"  # push rbx
    "4989d0"  # mov r8, rdx
    "89f8"  # mov eax, edi
    "89f1"  # mov ecx, esi
    "0fa2"  # cpuid
    "418900"  # mov [r8], eax
    "41895804"  # mov [r8+4], ebx
    "41894808"  # mov [r8+8], ecx
    "4189500c"  # mov [r8+12], edx
    "5b"  # pop rbx
    "c3"  # ret
)
_XGETBV = bytes.fromhex("31c90f01d048c1e2204809d0c3")  # u64 xgetbv(): XCR0
_FXSAVE = bytes.fromhex("480fae07c3")  # void fxsave(u8 out[512]), 16-aligned


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


class _Code:
    """A page of machine code; a context manager because the page is executable."""

    def __init__(self) -> None:
        prot = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
        self._page = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot)
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._page))

    def _load(self, code: bytes) -> int:
        self._page[: len(code)] = code
        return self._base

    def cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        out = (ctypes.c_uint32 * 4)()
        prototype = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)
        prototype(self._load(_CPUID))(leaf, subleaf, ctypes.addressof(out))
        return out[0], out[1], out[2], out[3]

    def xgetbv(self) -> int:
        return int(ctypes.CFUNCTYPE(ctypes.c_uint64)(self._load(_XGETBV))())

    def mxcsr_mask(self) -> int:
        """The bits of MXCSR that this CPU has, from FXSAVE."""
        buffer = ctypes.create_string_buffer(LEGACY + 16)
        address = (ctypes.addressof(buffer) + 15) & ~15
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._load(_FXSAVE))(address)
        mask = ctypes.c_uint32.from_address(address + MXCSR + 4).value
        return int(mask) or 0xFFBF  # Intel SDM: 0 means this default


class Unavailable(NamedTuple):
    """Why there is no layout."""

    reason: str


@cache
def probe() -> Layout | Unavailable:
    """This machine's layout, or why it cannot be had. Executes code on a page of its own."""
    if platform.machine() != "x86_64":
        return Unavailable(f"XSAVE is x86-64 only, this is {platform.machine()}")
    try:
        code = _Code()
    except OSError as error:
        return Unavailable(f"CPUID cannot be run: no executable page ({error.strerror})")
    if not code.cpuid(1, 0)[2] >> 27 & 1:  # OSXSAVE
        return Unavailable("the CPU or the kernel does not use XSAVE")
    features = code.xgetbv()
    components = []
    for number in range(FIRST_EXTENDED, MAX_COMPONENT):
        size, offset, flags, _ = code.cpuid(LEAF_XSAVE, number)
        if size:
            components.append(Component(number, size, offset, bool(flags & 2)))
    user = [c for c in components if features >> c.number & 1]
    end = max((c.offset + c.size for c in user), default=HEADER_END)
    return Layout(features, end, code.mxcsr_mask(), tuple(components))


def layout() -> Layout | None:
    """This machine's layout; `probe` says why there is none."""
    found = probe()
    return found if isinstance(found, Layout) else None


def xsave_layout() -> bytes | None:
    """The body of NT_X86_XSAVE_LAYOUT: struct x86_xfeat_component for each user component.

    It is the same for all processes of this machine. None if the layout is not known.
    """
    own = layout()
    if own is None:
        return None
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
