"""Which memory goes into a core: pure functions from mappings and threads to segments.

Nothing here touches a process: what must be looked up in its memory comes through `read`, a
function (address, size) -> bytes that returns fewer bytes, or none, where memory is unreadable.

Three selections: `full` follows the kernel's own rules (vma_dump_size() in fs/coredump.c) and a
rule's choices on top; `stacks` takes what a debugger needs to walk every thread's stack and to
name the libraries; `threads` takes no memory at all. All three keep a program header for every
mapping, so that a debugger sees the whole address space.
"""

from __future__ import annotations

import bisect
import struct
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase

from collector.arch.x86_64 import FS_BASE, PAGE, RED_ZONE, SP
from collector.capture.interrupted import MOST, interrupted_sp
from collector.elfcore.types import VM_DONTDUMP, VM_HUGETLB, VM_IO, Mapping, Prot, Segment, Thread
from collector.policy.types import MappingKind, MemoryChoice
from collector.ranges import Range, union

Read = Callable[[int, int], bytes]

# Bits of /proc/PID/coredump_filter (core(5)).
ANON_PRIVATE, ANON_SHARED, MAPPED_PRIVATE, MAPPED_SHARED = 1, 2, 4, 8
ELF_HEADERS, HUGETLB_PRIVATE, HUGETLB_SHARED = 16, 32, 64
DEFAULT_FILTER = ANON_PRIVATE | ANON_SHARED | ELF_HEADERS | HUGETLB_PRIVATE

CONTROL_BLOCK = 0x940  # glibc's struct pthread behind fs_base, rounded up
STATIC_TLS = 0x1000  # thread-local variables just below fs_base
MAX_STACK = 8 << 20  # of one thread in a `stacks` core
GUARD_REACH = 1 << 20  # an overflowed sp is at most this far below its stack
MAX_BSS = 1 << 18  # bytes of libc's data that are looked through
MAX_MESSAGE = 1 << 16  # an area with a message of the C library is not larger
MAX_OBJECTS = 5000  # shared objects followed in the loader's list
HANDLERS = 4  # stacks of signal handlers that interrupted each other
HANDLING = 64  # threads that are looked at for handlers
POINTER_REGS = (*range(15), 16, 19)  # all that may hold an address: not orig_rax, flags, segments


def kind_of(mapping: Mapping) -> MappingKind | None:
    """The kind by which policy names a mapping; None for the kernel's own ([vdso], ...)."""
    path = mapping.path or ""
    if mapping.vm_flags is not None and mapping.vm_flags & VM_HUGETLB:
        return MappingKind.HUGETLB
    if path.startswith("/anon_hugepage"):
        return MappingKind.HUGETLB
    if path.startswith("[stack"):
        return MappingKind.STACK
    if path == "[heap]":
        return MappingKind.HEAP
    if mapping.special or (path.startswith("[") and not path.startswith("[anon")):
        return None
    if is_shm(mapping):
        return MappingKind.SHM
    return MappingKind.FILE if _is_file(mapping) else MappingKind.ANON


def is_shm(mapping: Mapping) -> bool:
    """Shared memory without a lasting file: MAP_ANONYMOUS|MAP_SHARED, memfd, System V, /dev/shm."""
    path = mapping.path or ""
    return mapping.shared and (
        mapping.nlink == 0
        or not (path or mapping.unnamed)
        or path.startswith(("/dev/zero (deleted)", "/memfd:", "/SYSV", "/dev/shm/"))
    )


def _is_file(mapping: Mapping) -> bool:
    return mapping.unnamed or (mapping.path or "").startswith("/")


def kernel_dump_size(mapping: Mapping, coredump_filter: int, read: Read) -> int:
    """Bytes of a mapping that the kernel's own core would hold: vma_dump_size().

    A mapping that came from the kernel's own program headers says so itself (`dump_size`).
    """
    if mapping.dump_size is not None:
        return mapping.dump_size
    flags = mapping.vm_flags or 0
    if mapping.special:
        return mapping.size
    if flags & VM_DONTDUMP:
        return 0
    if flags & VM_HUGETLB:
        wanted = HUGETLB_SHARED if mapping.shared else HUGETLB_PRIVATE
        return mapping.size if coredump_filter & wanted else 0
    if flags & VM_IO:
        return 0
    if mapping.shared:
        wanted = ANON_SHARED if mapping.nlink == 0 else MAPPED_SHARED
        return mapping.size if coredump_filter & wanted else 0
    if coredump_filter & ANON_PRIVATE and mapping.anon_vma:
        return mapping.size
    if not mapping.inode:
        return 0
    if coredump_filter & MAPPED_PRIVATE:
        return mapping.size
    if coredump_filter & ELF_HEADERS and mapping.offset == 0 and mapping.prot & Prot.R:
        return PAGE if read(mapping.start, 4) == b"\x7fELF" else 0
    return 0


def select_full(
    mappings: Sequence[Mapping], choice: MemoryChoice, coredump_filter: int, read: Read
) -> list[Segment]:
    """What the kernel would dump, with the rule's choices over it."""
    if choice.coredump_filter is not None:
        coredump_filter = choice.coredump_filter
    return [
        _segment(m, m.start, m.end, _chosen_size(m, choice, coredump_filter, read))
        for m in mappings
    ]


def _chosen_size(m: Mapping, choice: MemoryChoice, coredump_filter: int, read: Read) -> int:
    if choice.exclude and is_chosen(m, choice.exclude):
        return 0
    io = bool((m.vm_flags or 0) & VM_IO)
    if choice.include and is_chosen(m, choice.include) and not io:
        return m.size
    if choice.dontdump and m.vm_flags is not None and m.vm_flags & VM_DONTDUMP and not io:
        return m.size
    return kernel_dump_size(m, coredump_filter, read)


def is_chosen(mapping: Mapping, names: Iterable[str]) -> bool:
    """Whether one of these kinds, or globs of paths, is that of a mapping."""
    kind = kind_of(mapping)
    path = mapping.path or ""
    return any(name == kind or (path and fnmatchcase(path, name)) for name in names)


def select_none(mappings: Sequence[Mapping]) -> list[Segment]:
    """A `threads` core: every mapping named, none dumped."""
    return [_segment(m, m.start, m.end, 0) for m in mappings]


def select_stacks(
    mappings: Sequence[Mapping],
    threads: Sequence[Thread],
    auxv: bytes,
    read: Read,
    *,
    max_stack: int = MAX_STACK,
) -> list[Range]:
    """Page ranges, sorted and disjoint, that let a debugger show every thread's whole backtrace.

    Stacks from below sp (red zone included), also those that signal handlers on stacks of their own
    have left, thread control blocks, pages that registers point into, the ELF headers of mapped
    objects, the vdso, and the loader's data: program headers, dynamic section, list of objects and
    their names, writable data of ld.so and libc.
    """
    space = _Space(mappings)
    for index, thread in enumerate(threads):
        _add_thread(space, thread, max_stack)
        if index < HANDLING:
            _add_interrupted(space, thread, max_stack, read)
    for index, m in enumerate(mappings):
        path = m.path or ""
        if path == "[vdso]" or (m.special and m.prot & Prot.X):
            space.add(m.start, m.end)
        elif m.offset == 0 and _is_file(m) and read(m.start, 4) == b"\x7fELF":
            space.add(m.start, m.start + PAGE)
        if m.prot & Prot.W and not m.shared and _is_runtime(path):
            space.add(m.start, m.end)
            bss = mappings[index + 1] if index + 1 < len(mappings) else None
            if bss and bss.start == m.end and not bss.path and bss.prot & Prot.W:
                space.add(bss.start, bss.end)
                _add_messages(space, read(bss.start, min(bss.size, MAX_BSS)))
            _add_messages(space, read(m.start, min(m.size, MAX_BSS)))
    _add_loader(space, auxv, read)
    return space.merged()


def carve(segments: Sequence[Segment], keep: Sequence[Range]) -> list[Segment]:
    """Segments for `keep` (sorted, disjoint) inside the given address ranges, all else undumped.

    A segment can hold only its beginning, so one that is kept in parts becomes several.
    """
    starts = [start for start, _ in keep]
    out: list[Segment] = []
    for segment in segments:
        end = segment.vaddr + segment.memsz
        at = segment.vaddr
        index = max(bisect.bisect_right(starts, at) - 1, 0)
        while index < len(keep) and keep[index][0] < end:
            first, last = max(keep[index][0], at), min(keep[index][1], end)
            index += 1
            if first >= last:
                continue
            if first > at:
                out.append(_like(segment, at, first, 0))
            out.append(_like(segment, first, last, last - first))
            at = last
        if at < end:
            out.append(_like(segment, at, end, 0))
    return out


def _segment(m: Mapping, start: int, end: int, filesz: int) -> Segment:
    return Segment(vaddr=start, memsz=end - start, filesz=filesz, flags=m.prot)


def _like(segment: Segment, start: int, end: int, filesz: int) -> Segment:
    return Segment(vaddr=start, memsz=end - start, filesz=filesz, flags=segment.flags)


class _Space:
    """Collects page ranges that lie inside readable mappings."""

    def __init__(self, mappings: Sequence[Mapping]) -> None:
        self._mappings = mappings
        self._starts = [m.start for m in mappings]
        self._ranges: list[Range] = []

    def find(self, address: int) -> Mapping | None:
        index = bisect.bisect_right(self._starts, address) - 1
        if index >= 0 and address < self._mappings[index].end:
            return self._mappings[index]
        return None

    def above(self, address: int, reach: int) -> Mapping | None:
        """The first readable mapping that begins within `reach` bytes above an address."""
        index = bisect.bisect_right(self._starts, address)
        while index < len(self._mappings) and self._starts[index] - address <= reach:
            if self._mappings[index].prot & Prot.W:
                return self._mappings[index]
            index += 1
        return None

    def add(self, start: int, end: int) -> None:
        """Whole pages of [start, end), as far as the mapping at `start` goes."""
        mapping = self.find(start)
        if mapping is None or not mapping.prot & Prot.R or end <= start:
            return
        last = min((end + PAGE - 1) & -PAGE, mapping.end)
        self._ranges.append((start & -PAGE, last))

    def merged(self) -> list[Range]:
        return union(self._ranges)


def _stack(space: _Space, sp: int, control: int) -> Range | None:
    """The stack that this stack pointer is in, from its red zone to its top."""
    stack = space.find(max(sp - RED_ZONE, 0))
    first = sp - RED_ZONE
    if stack is None or not stack.prot & Prot.W:  # sp ran into its guard page
        stack = space.above(max(first, 0), GUARD_REACH)
        first = stack.start if stack else 0
    if stack is None:
        return None
    # pthread stacks may share one mapping; the control block lies at the stack's top
    return first, control + CONTROL_BLOCK if sp < control < stack.end else stack.end


def _add_interrupted(space: _Space, thread: Thread, max_stack: int, read: Read) -> None:
    sp, control = thread.regs[SP], thread.regs[FS_BASE]
    for _ in range(HANDLERS):
        stack = _stack(space, sp, control)
        if stack is None:
            return
        start = max(stack[0], 0) & -PAGE
        before = interrupted_sp(start, read(start, min(stack[1] - start, MOST)))
        if before is None or (other := _stack(space, before, control)) is None:
            return
        space.add(other[0], min(other[1], other[0] + max_stack))
        sp = before


def _add_thread(space: _Space, thread: Thread, max_stack: int) -> None:
    sp, control = thread.regs[SP], thread.regs[FS_BASE]
    stack = _stack(space, sp, control)
    if stack is not None:
        space.add(stack[0], min(stack[1], stack[0] + max_stack))
    if control:
        space.add(max(control - STATIC_TLS, 0), control)
        space.add(control, control + CONTROL_BLOCK)
    for index in POINTER_REGS:
        pointer = thread.regs[index]
        target = space.find(pointer)
        # read-only file pages are in the file; everything else is worth its page
        if target is not None and (target.prot & Prot.W or not target.inode):
            space.add(pointer, pointer + 1)


def _add_messages(space: _Space, data: bytes) -> None:
    """Small areas of their own that libc's data points to: glibc keeps `__abort_msg` in one."""
    for (pointer,) in struct.iter_unpack("<Q", data[: len(data) & -8]):
        if pointer and not pointer & (PAGE - 1):
            area = space.find(pointer)
            if area and area.start == pointer and not area.path and area.size <= MAX_MESSAGE:
                space.add(pointer, pointer + PAGE)


def _is_runtime(path: str) -> bool:
    name = path.rpartition("/")[2]
    return name.startswith(("ld-linux", "ld-musl", "ld.so", "ld-2.", "libc.so", "libc-2.", "libc."))


def _add_loader(space: _Space, auxv: bytes, read: Read) -> None:
    """The loader's list of objects, from AT_PHDR through DT_DEBUG (elf.h, link.h)."""
    aux = dict(struct.iter_unpack("<QQ", auxv[: len(auxv) & -16]))
    phdr, phent, phnum = aux.get(3, 0), aux.get(4, 56), min(aux.get(5, 0), 512)
    if not phdr or phent != 56:
        return
    table = read(phdr, 56 * phnum)
    headers = [struct.unpack_from("<IIQQQQQQ", table, 56 * i) for i in range(len(table) // 56)]
    space.add(phdr, phdr + 56 * phnum)
    base = next((phdr - h[3] for h in headers if h[0] == 6), 0)
    dynamic = next(((base + h[3], min(h[6], 1 << 16)) for h in headers if h[0] == 2), None)
    if dynamic is None:
        return
    space.add(dynamic[0], sum(dynamic))
    content = read(*dynamic)
    debug = next(
        (v for t, v in struct.iter_unpack("<QQ", content[: len(content) & -16]) if t == 21), 0
    )
    if not debug:
        return
    space.add(debug, debug + 40)
    link = _word(read, debug + 8)
    for _ in range(MAX_OBJECTS):
        if not link:
            return
        space.add(link, link + 0x480)  # struct link_map with the loader's private part
        name, section, following = (_word(read, link + at) for at in (8, 16, 24))
        space.add(name, name + 256)
        space.add(section, section + 0x300)
        link = following


def _word(read: Read, address: int) -> int:
    data = read(address, 8)
    return int.from_bytes(data, "little") if len(data) == 8 else 0
