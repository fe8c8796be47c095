"""Which memory goes into a core: the kernel's rules, a rule's choices, and what stacks need."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import pytest

from collector.arch.x86_64 import FS_BASE, PAGE, RED_ZONE, SP
from collector.capture import select
from collector.capture.select import carve, kind_of, select_full, select_none, select_stacks
from collector.elfcore.types import VM_DONTDUMP, VM_HUGETLB, VM_IO, Mapping, Prot, Segment, Thread
from collector.policy.types import MappingKind, MemoryChoice

RW = Prot.R | Prot.W
ELF = b"\x7fELF"


def mapping(start: int = 0x10000, size: int = 4 * PAGE, **differs: object) -> Mapping:
    """Private anonymous memory that was written to, unless told otherwise."""
    usual: dict[str, object] = {"prot": RW, "vm_flags": 0, "anon_vma": True}
    return Mapping(start=start, end=start + size, **{**usual, **differs})  # type: ignore[arg-type]


def file(path: str = "/usr/bin/x", **differs: object) -> Mapping:
    usual: dict[str, object] = {"path": path, "inode": 7, "nlink": 1, "anon_vma": False}
    return mapping(**{**usual, **differs})


def nothing(address: int, size: int) -> bytes:
    return b""


@pytest.mark.parametrize(
    ("one", "kind"),
    [
        (mapping(), MappingKind.ANON),
        (mapping(path="[anon:jemalloc]"), MappingKind.ANON),
        (mapping(path="[heap]"), MappingKind.HEAP),
        (mapping(path="[stack]"), MappingKind.STACK),
        (mapping(path="[vdso]", special=True), None),
        (mapping(path="[vvar]"), None),
        (file(), MappingKind.FILE),
        (file(shared=True), MappingKind.FILE),
        (file(path=None, unnamed=True), MappingKind.FILE),
        (file(path=None, unnamed=True, shared=True), MappingKind.FILE),
        (file(path=None, unnamed=True, shared=True, nlink=0), MappingKind.SHM),
        (file("/dev/zero (deleted)", shared=True, nlink=0), MappingKind.SHM),
        (file("/memfd:x (deleted)", shared=True, nlink=None), MappingKind.SHM),
        (file("/dev/shm/x", shared=True), MappingKind.SHM),
        (file("/SYSV00000000 (deleted)", shared=True, nlink=None), MappingKind.SHM),
        (file("/anon_hugepage (deleted)"), MappingKind.HUGETLB),
        (mapping(vm_flags=VM_HUGETLB), MappingKind.HUGETLB),
    ],
)
def test_kinds_of_mappings(one: Mapping, kind: MappingKind | None) -> None:
    assert kind_of(one) is kind


@pytest.mark.parametrize(
    ("one", "bits", "size"),
    [
        (mapping(), 0x33, 4 * PAGE),
        (mapping(), 0x32, 0),
        (mapping(anon_vma=False), 0x33, 0),  # never written to
        (mapping(vm_flags=VM_DONTDUMP), 0x33, 0),
        (mapping(vm_flags=VM_IO), 0x33, 0),
        (mapping(vm_flags=VM_HUGETLB), 0x33, 4 * PAGE),
        (mapping(vm_flags=VM_HUGETLB), 0x13, 0),
        (mapping(vm_flags=VM_HUGETLB, shared=True), 0x33, 0),
        (mapping(vm_flags=VM_HUGETLB, shared=True), 0x73, 4 * PAGE),
        (mapping(special=True, anon_vma=False), 0, 4 * PAGE),
        (file(shared=True, nlink=0), 0x33, 4 * PAGE),
        (file(shared=True, nlink=0), 0x31, 0),
        (file(shared=True), 0x33, 0),
        (file(shared=True), 0x3B, 4 * PAGE),
        (file(), 0x33, PAGE),  # the page of its ELF header
        (file(), 0x23, 0),
        (file(), 0x37, 4 * PAGE),
        (file(offset=PAGE), 0x33, 0),
        (file(prot=Prot(0)), 0x33, 0),
        (file(anon_vma=True), 0x33, 4 * PAGE),
        (mapping(dump_size=PAGE, vm_flags=VM_DONTDUMP), 0, PAGE),  # the kernel has spoken
    ],
)
def test_what_the_kernel_would_dump(one: Mapping, bits: int, size: int) -> None:
    assert select.kernel_dump_size(one, bits, lambda at, count: ELF[:count]) == size


def test_a_file_that_is_no_elf_object_is_not_dumped() -> None:
    assert select.kernel_dump_size(file(), 0x33, lambda at, count: b"#!/b"[:count]) == 0


ANON, SHM = mapping(0x10000), file("/dev/shm/x", start=0x20000, shared=True, nlink=0)
DATA = file("/srv/data", start=0x30000, shared=True)
SECRET = mapping(0x40000, vm_flags=VM_DONTDUMP)
DEVICE = file("/dev/mem", start=0x50000, vm_flags=VM_IO, shared=True)
ALL = [ANON, SHM, DATA, SECRET, DEVICE]


@pytest.mark.parametrize(
    ("choice", "dumped"),
    [
        (MemoryChoice(), [ANON, SHM]),
        (MemoryChoice(exclude=("shm",)), [ANON]),
        (MemoryChoice(exclude=("/dev/*", "anon")), []),
        (MemoryChoice(include=("file",)), [ANON, SHM, DATA]),
        (MemoryChoice(include=("/srv/*", "/dev/*")), [ANON, SHM, DATA]),  # a device never
        (MemoryChoice(include=("file",), exclude=("/srv/*",)), [ANON, SHM]),
        (MemoryChoice(dontdump=True), [ANON, SHM, SECRET]),
        (MemoryChoice(coredump_filter=0x1), [ANON]),
        (MemoryChoice(coredump_filter=0x0), []),
    ],
)
def test_what_a_rule_chooses(choice: MemoryChoice, dumped: list[Mapping]) -> None:
    segments = select_full(ALL, choice, 0x33, nothing)
    assert segments == [
        Segment(vaddr=m.start, memsz=m.size, filesz=m.size if m in dumped else 0, flags=RW)
        for m in ALL
    ]


def test_none_names_every_mapping_and_dumps_nothing() -> None:
    assert select_none(ALL) == [
        Segment(vaddr=m.start, memsz=m.size, filesz=0, flags=RW) for m in ALL
    ]


# ---- stacks


STACK = mapping(0x7000_0000, 64 * PAGE, path="[stack]")


def thread(sp: int, control: int = 0, **registers: int) -> Thread:
    words = [0] * 27
    words[SP], words[FS_BASE] = sp, control
    if "rdi" in registers:
        words[14] = registers["rdi"]
    return Thread(tid=1, regs=tuple(words))


def stacks(mappings: Iterable[Mapping], threads: list[Thread], **how: int) -> list[tuple[int, int]]:
    return select_stacks(list(mappings), threads, b"", nothing, **how)


def test_a_stack_is_kept_from_its_red_zone_to_its_end() -> None:
    sp = STACK.end - 3 * PAGE + 64  # its red zone begins on the page before
    assert stacks([STACK], [thread(sp)]) == [(STACK.end - 4 * PAGE, STACK.end)]


def test_a_stack_is_kept_up_to_a_limit() -> None:
    sp = STACK.start + 8 * PAGE
    first = sp - PAGE
    assert stacks([STACK], [thread(sp)], max_stack=5 * PAGE) == [(first, first + 6 * PAGE)]


def test_of_threads_in_one_mapping_each_has_its_own_stack() -> None:
    # GIVEN two pthread stacks which the kernel has merged, each with its control block at the top
    one, other = STACK.start + 20 * PAGE, STACK.start + 60 * PAGE
    threads = [thread(one - 2 * PAGE + 256, one), thread(other - 2 * PAGE + 256, other)]
    # THEN what lies between them is not kept
    assert stacks([STACK], threads) == [
        (one - 2 * PAGE, one + PAGE),
        (other - 2 * PAGE, other + PAGE),
    ]


def test_an_overflowed_stack_is_found_above_its_guard() -> None:
    # GIVEN a stack pointer in the guard page below its stack
    guard = mapping(STACK.start - PAGE, PAGE, prot=Prot(0), anon_vma=False)
    assert stacks([guard, STACK], [thread(STACK.start - 64)]) == [(STACK.start, STACK.end)]


@pytest.mark.parametrize("sp", [0, 8, (1 << 64) - 8, 0x4141_4141_4141_4141])
def test_a_wild_stack_pointer_keeps_nothing(sp: int) -> None:
    assert stacks([STACK], [thread(sp)]) == []


def _context(base: int, size: int, sp: int, flags: int = 7) -> bytes:
    """What the kernel leaves for a handler on an alternate stack: the first words of ucontext."""
    return struct.pack("<4QQ", flags, 0, base, 0, size) + bytes(15 * 8) + struct.pack("<Q", sp)


@pytest.mark.parametrize(
    ("place", "flags", "follows"), [(0, 7, True), (8 * PAGE, 7, False), (0, 0x7FFF, False)]
)
def test_the_stack_that_a_handler_has_left_is_kept(place: int, flags: int, follows: bool) -> None:
    # GIVEN a handler on a stack of its own, and what it has interrupted
    other = mapping(0x5000_0000, 8 * PAGE)
    top, sp = other.end - 1024, STACK.end - 5 * PAGE + 256
    context = _context(other.start + place, 8 * PAGE, sp, flags)
    handler = top - 3 * PAGE
    memory = Memory({handler & -PAGE: bytes(top - (handler & -PAGE)) + context})
    # WHEN stacks are selected
    kept = select_stacks([other, STACK], [thread(handler)], b"", memory.read)
    # THEN the interrupted one is among them, if the bounds are those of the handler's stack
    left = [(STACK.end - 5 * PAGE, STACK.end)] if follows else []
    assert kept == [(handler - RED_ZONE & -PAGE, other.end), *left]


def test_handlers_that_claim_to_have_interrupted_each_other_end() -> None:
    # GIVEN a context that leads to its own stack
    sp = STACK.end - 2 * PAGE + 256
    memory = Memory({sp & -PAGE: bytes(256) + _context(STACK.start, STACK.size, sp)})
    kept = select_stacks([STACK], [thread(sp)], b"", memory.read)
    assert kept == [(STACK.end - 2 * PAGE, STACK.end)]


def test_a_page_that_a_register_points_to_is_kept() -> None:
    heap = mapping(0x5000_0000, 16 * PAGE, path="[heap]")
    at = heap.start + 5 * PAGE + 17
    code = file("/usr/bin/x", start=0x6000_0000, prot=Prot.R | Prot.X, offset=PAGE)
    sp = STACK.end - 256
    wanted = [(heap.start + 5 * PAGE, heap.start + 6 * PAGE), (STACK.end - PAGE, STACK.end)]
    assert stacks([heap, code, STACK], [thread(sp, rdi=at)]) == wanted
    # what is in the file need not be in the core
    assert stacks([heap, code, STACK], [thread(sp, rdi=code.start + 8)]) == wanted[1:]


class Memory:
    """Words and strings at addresses; all else cannot be read."""

    def __init__(self, content: dict[int, bytes]) -> None:
        self._content = content

    def read(self, address: int, size: int) -> bytes:
        for start, data in self._content.items():
            if start <= address < start + len(data):
                return data[address - start : address - start + size]
        return b""


def test_the_loaders_list_of_objects_is_followed() -> None:
    # GIVEN a program with its headers, its dynamic section and a list of two objects
    base, heap = 0x40_0000, 0x60_0000
    dynamic, debug, link = base + 2 * PAGE, base + 3 * PAGE, heap
    phdr = base + 64
    table = struct.pack("<IIQQQQQQ", 6, 4, 64, 64, 64, 112, 112, 8)
    table += struct.pack("<IIQQQQQQ", 2, 6, 0, 2 * PAGE, 0, 32, 32, 8)
    second = heap + 5 * PAGE
    name = heap + 9 * PAGE
    memory = Memory(
        {
            base: ELF,
            phdr: table,
            dynamic: struct.pack("<4Q", 21, debug, 0, 0),
            debug: struct.pack("<2Q", 1, link),
            link: struct.pack("<4Q", base, 0, 0, second),
            second: struct.pack("<4Q", 0x7F00, name, 0, 0),
            name: b"/lib/libx.so\0",
        }
    )
    program = file("/usr/bin/x", start=base, size=4 * PAGE, anon_vma=True)
    auxv = struct.pack("<6Q", 3, phdr, 4, 56, 5, 2)
    kept = select_stacks([program, mapping(heap, 16 * PAGE, path="[heap]")], [], auxv, memory.read)
    # THEN a debugger finds all of them in the core
    assert kept == [
        (base, base + PAGE),
        (dynamic, base + 4 * PAGE),
        (link, link + PAGE),
        (second, second + PAGE),
        (name, name + PAGE),
    ]


def test_a_list_of_objects_that_bites_its_tail_ends() -> None:
    base = 0x40_0000
    table = struct.pack("<IIQQQQQQ", 2, 6, 0, base + PAGE, 0, 32, 32, 8)
    memory = Memory(
        {
            base: table,
            base + PAGE: struct.pack("<4Q", 21, base + 2 * PAGE, 0, 0),
            base + 2 * PAGE: struct.pack("<2Q", 1, base + 3 * PAGE),
            base + 3 * PAGE: struct.pack("<4Q", 0, 0, 0, base + 3 * PAGE),
        }
    )
    auxv = struct.pack("<6Q", 3, base, 4, 56, 5, 1)
    kept = select_stacks([mapping(base, 8 * PAGE)], [], auxv, memory.read)
    assert kept == [(base, base + 4 * PAGE)]


# ---- carving


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ([], [(0, 8, 0)]),
        ([(0, 8)], [(0, 8, 8)]),
        ([(2, 4)], [(0, 2, 0), (2, 2, 2), (4, 4, 0)]),
        ([(0, 2), (6, 8)], [(0, 2, 2), (2, 4, 0), (6, 2, 2)]),
        ([(-4, 3)], [(0, 3, 3), (3, 5, 0)]),
        ([(7, 20)], [(0, 7, 0), (7, 1, 1)]),
        ([(-9, -1), (8, 12)], [(0, 8, 0)]),
    ],
)
def test_carving(keep: list[tuple[int, int]], expected: list[tuple[int, int, int]]) -> None:
    """Numbers are pages, from the segment's start; results are (start, size, dumped)."""
    base = 0x10_0000
    segment = Segment(vaddr=base, memsz=8 * PAGE, filesz=3 * PAGE, flags=RW)
    ranges = [(base + a * PAGE, base + b * PAGE) for a, b in keep]
    assert carve([segment], ranges) == [
        Segment(vaddr=base + at * PAGE, memsz=size * PAGE, filesz=held * PAGE, flags=RW)
        for at, size, held in expected
    ]
