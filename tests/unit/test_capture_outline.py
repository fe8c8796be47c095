"""What is copied of a process that waits, without a look at it: parts, from its mappings alone."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from collector.capture import mapped
from collector.capture.outline import few_mappings, hasty_outline, outline
from collector.capture.parts import Kind, Part
from collector.capture.process import OpenProcess, ProcText
from collector.elfcore.types import VM_DONTDUMP, VM_EXEC, VM_READ, VM_SHARED, VM_WRITE
from collector.model import Capture
from collector.policy.types import MemoryChoice
from collector.probe.iterators import HAS_ANON_VMA, HAS_FILE, IS_SPECIAL, MAPPING

PAGE, MIB = 4096, 1 << 20
TEXT, DATA, HEAP, SHM, STACK, VDSO = (n << 32 for n in range(1, 7))
SP = STACK + 2 * PAGE
RW = VM_READ | VM_WRITE
OWN, FOREIGN = 8 << 20 | 1, 8 << 20 | 2  # devices; who reads the second may have to wait


def mapping(
    start: int, size: int, vm_flags: int, flags: int = 0, *, device: int = 0, nlink: int = 1
) -> bytes:
    words = (0, nlink, 0, 0, 0, 0, 0)
    inode = 77 if flags & HAS_FILE else 0
    return MAPPING.pack(
        MAPPING.size, flags, start, start + size, vm_flags, 0, inode, device, *words[1:]
    )


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenProcess]:
    monkeypatch.setattr(mapped, "own_devices", lambda: frozenset({OWN}))
    text = ProcText(
        stat=b"", status=b"", cmdline=b"", auxv=b"", cgroup=b"", coredump_filter=b"33", maps=None
    )
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(6)]
    process = OpenProcess.adopt(1, 1, fds, text, 0)
    yield process
    process.close()


def records(device: int) -> memoryview:
    """Of a usual process, whose program is on that device."""
    return memoryview(
        b"".join(
            (
                mapping(TEXT, 4 * MIB, VM_READ | VM_EXEC, HAS_FILE, device=device),
                mapping(DATA, 2 * PAGE, RW, HAS_FILE | HAS_ANON_VMA, device=device),
                mapping(HEAP, 64 * MIB, RW, HAS_ANON_VMA),
                mapping(HEAP + 64 * MIB, MIB, RW | VM_DONTDUMP, HAS_ANON_VMA),
                mapping(SHM, 8 * MIB, RW | VM_SHARED, HAS_FILE, nlink=0),
                mapping(STACK, 4 * PAGE, RW, HAS_ANON_VMA),
                mapping(VDSO, PAGE, VM_READ | VM_EXEC, IS_SPECIAL),
            )
        )
    )


def test_what_the_kernel_would_dump_small_parts_first(dying: OpenProcess) -> None:
    parts = outline(dying, records(OWN), {SHM: 9}, SP, MemoryChoice())
    assert parts == [
        # the first page of a file may be an ELF header
        Part(TEXT, TEXT + PAGE, Kind.IN_MEMORY),
        Part(TEXT, TEXT + PAGE, Kind.ABSENT),
        Part(VDSO, VDSO + PAGE, Kind.ALL),
        Part(DATA, DATA + 2 * PAGE, Kind.IN_MEMORY),
        Part(DATA, DATA + 2 * PAGE, Kind.ABSENT),
        Part(STACK, STACK + 4 * PAGE, Kind.IN_MEMORY),
        Part(SHM, SHM + 8 * MIB, Kind.OF_FILE, 9, 0),
        Part(HEAP, HEAP + 64 * MIB, Kind.IN_MEMORY),
    ]


def test_what_policy_says_of_it(dying: OpenProcess) -> None:
    choice = MemoryChoice(exclude=("shm",), dontdump=True)
    parts = outline(dying, records(OWN), {SHM: 9}, SP, choice)
    assert parts is not None
    assert [part.start for part in parts[-3:]] == [STACK, HEAP + 64 * MIB, HEAP]


def test_a_file_that_may_keep_us_waiting_is_left_to_a_writer(dying: OpenProcess) -> None:
    assert outline(dying, records(FOREIGN), {}, SP, MemoryChoice()) is None


def test_so_is_a_stack_that_is_not_dumped(dying: OpenProcess) -> None:
    assert outline(dying, records(OWN), {SHM: 9}, HEAP + 65 * MIB - 8, MemoryChoice()) is None


def test_and_more_mappings_than_are_told_quickly(dying: OpenProcess) -> None:
    many = memoryview(
        b"".join(mapping(HEAP + at * 2 * PAGE, PAGE, RW, HAS_ANON_VMA) for at in range(4097))
    )
    assert outline(dying, many, {}, HEAP, MemoryChoice()) is None
    assert outline(dying, many[MAPPING.size :], {}, HEAP + 2 * PAGE, MemoryChoice()) is not None
    assert outline(dying, None, {}, HEAP, MemoryChoice()) is None


def test_in_haste_its_stack_comes_first_and_the_rest_without_what_may_keep_us(
    dying: OpenProcess,
) -> None:
    decoded = few_mappings(dying, records(FOREIGN))
    assert decoded is not None
    parts = hasty_outline(dying, decoded, {SHM: 9}, SP, MemoryChoice(), Capture.FULL)
    assert parts == [
        Part(STACK + PAGE, STACK + 4 * PAGE, Kind.IN_MEMORY),
        Part(TEXT, TEXT + PAGE, Kind.IN_MEMORY),
        Part(VDSO, VDSO + PAGE, Kind.ALL),
        Part(DATA, DATA + 2 * PAGE, Kind.IN_MEMORY),
        Part(STACK, STACK + PAGE, Kind.IN_MEMORY),
        Part(SHM, SHM + 8 * MIB, Kind.OF_FILE, 9, 0),
        Part(HEAP, HEAP + 64 * MIB, Kind.IN_MEMORY),
    ]
    # AND where all its memory is not wanted, no large ones
    few = hasty_outline(dying, decoded, {SHM: 9}, SP, MemoryChoice(), Capture.STACKS)
    assert few == parts[:-1]
