"""Raw iterator output becomes threads and mappings; damaged output is refused."""

from __future__ import annotations

import pytest

from collector.capture.image import lost_names
from collector.elfcore.types import Mapping, Prot
from collector.errors import ProbeError
from collector.probe.iterators import (
    HAS_ANON_VMA,
    HAS_FILE,
    IS_DELETED,
    IS_SAME,
    IS_SPECIAL,
    IS_UNNAMED,
    IS_WALK,
    MAPPING,
    THREAD,
    decode_mappings,
    decode_threads,
)

REGS = tuple(range(200, 227))
READ, WRITE, SHARED = 1, 2, 8
START_BRK, BRK, START_STACK = 0x5000, 0x8000, 0x7FFF0500


def thread(tid: int, **changes: int) -> bytes:
    """A record of thread `tid` (in its namespace 1000 less) of process 5000."""
    times = (changes.get("utime", 3_000_000), changes.get("stime", 4_000_000))
    return THREAD.pack(
        changes.get("size", THREAD.size), tid, 5000, tid - 1000, 1, 2, 3, changes.get("state", 1),
        b"name", 0x100, 0x200, *times, 10_000_000, 20_000_000, 7_000, 8_000,
        0x7000, 0x7100, *REGS, 0xE7, 0, changes.get("xstate", 0),
    )  # fmt: skip


def mapping(start: int, end: int, flags: int = 0, path: bytes = b"", **changes: int) -> bytes:
    size = len(path) or changes.get("path_size", 0)
    return (
        MAPPING.pack(
            MAPPING.size + len(path), flags, start, end, changes.get("vm", READ), 3, 77,
            8 << 20 | 1, changes.get("nlink", 1), START_BRK, BRK, START_STACK, size, 0,
        )
        + path
    )  # fmt: skip


def test_the_leader_has_the_times_of_all_threads() -> None:
    leader, other = decode_threads(thread(5000) + thread(5001, utime=1_999_999))
    assert (leader.tid, leader.ppid, leader.pgrp, leader.sid) == (4000, 1, 2, 3)
    assert (leader.name, leader.state) == ("name", "S")
    assert (leader.sigpend, leader.sighold) == (0x100, 0x200)
    assert leader.regs == REGS
    # microseconds: of the threads that live, and of those that have ended
    assert (leader.utime, leader.stime) == (3_000 + 1_999 + 10_000, 4_000 + 4_000 + 20_000)
    assert (other.utime, other.stime, other.cutime, other.cstime) == (1_999, 4_000, 7, 8)
    assert other.xstate is None


@pytest.mark.parametrize(
    ("state", "letter"),
    [(0, "R"), (1, "S"), (2, "D"), (4, "T"), (8, "t"), (0x402, "I"), (0x2002, "D")],
)
def test_states_are_those_of_proc(state: int, letter: str) -> None:
    assert [t.state for t in decode_threads(thread(5000, state=state))] == [letter]


def test_a_mapping_is_decoded_whole() -> None:
    raw = mapping(0x1000, 0x3000, HAS_FILE | HAS_ANON_VMA, b"/lib/a b.so\0", vm=READ | SHARED)
    assert decode_mappings(raw, None) == [
        Mapping(
            start=0x1000,
            end=0x3000,
            prot=Prot.R,
            shared=True,
            offset=3 * 4096,
            device=8 << 20 | 1,
            inode=77,
            path="/lib/a b.so",
            vm_flags=READ | SHARED,
            anon_vma=True,
            nlink=1,
        )
    ]


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (mapping(0x4000, 0x6000), "[heap]"),
        (mapping(0x8000, 0x9000), None),
        (mapping(0x7FFF0000, 0x7FFF1000), "[stack]"),
        (mapping(0x6000, 0x7000, IS_SPECIAL, b"[vdso]\0"), "[vdso]"),
        (mapping(0x6000, 0x7000, IS_SPECIAL, path_size=-1), None),
        (mapping(0x6000, 0x7000, HAS_FILE, path_size=-1), None),
        (mapping(0x6000, 0x7000, HAS_FILE | IS_WALK, b"b\0a\0"), "/a/b"),
        (mapping(0x6000, 0x7000, HAS_FILE | IS_WALK | IS_DELETED, b"b\0"), "/b (deleted)"),
        (mapping(0x6000, 0x7000, HAS_FILE, b"/\xff\n\0"), "/\udcff\n"),
    ],
)
def test_mappings_are_named_as_the_kernel_does(raw: bytes, name: str | None) -> None:
    assert [m.path for m in decode_mappings(raw, None)] == [name]


def test_a_path_is_told_once() -> None:
    raw = (
        mapping(0x1000, 0x2000, HAS_FILE | IS_SAME)  # of what? nothing came before
        + mapping(0x2000, 0x3000, HAS_FILE | IS_WALK | IS_DELETED, b"b\0a\0")
        + mapping(0x3000, 0x4000)
        + mapping(0x9000, 0xA000, IS_SPECIAL, b"[vdso]\0")
        + mapping(0xA000, 0xB000, HAS_FILE | IS_WALK | IS_DELETED | IS_SAME)
        + mapping(0xB000, 0xC000, HAS_FILE | IS_UNNAMED)
        + mapping(0xC000, 0xD000, HAS_FILE | IS_SAME)
        + mapping(0xD000, 0xE000, HAS_FILE, path_size=-1)
        + mapping(0xE000, 0xF000, HAS_FILE | IS_SAME)
    )
    found = decode_mappings(raw, None)
    name = "/a/b (deleted)"
    assert [m.path for m in found] == [None, name, None, "[vdso]", name, None, name, None, None]
    assert [i for i, m in enumerate(found) if m.unnamed] == [0, 5, 7, 8]
    # AND the record tells how many are without a name, unless /proc has it
    assert lost_names(found) == {
        "mappings": "names of 4 mappings: too long, or beyond 1 MiB of paths"
    }
    text = b"0000b000-0000c000 r--p 00000000 00:00 0      /c\n"
    assert not decode_mappings(raw, text)[5].unnamed
    assert lost_names(decode_mappings(mapping(0x3000, 0x4000), None)) == {}


def test_names_of_proc_go_first() -> None:
    text = (
        b"00006000-00007000 r--p 00000000 00:00 0      /new\\012 name\n00001000-00002000 r--p 0\n"
    )
    raw = mapping(0x6000, 0x7000, HAS_FILE, b"/old\0") + mapping(0x8000, 0x9000, HAS_FILE, b"/b\0")
    assert [m.path for m in decode_mappings(raw, text)] == ["/new\n name", "/b"]


@pytest.mark.parametrize(
    "raw",
    [
        thread(5000)[:-1],
        thread(5000, size=0),
        thread(5000, size=THREAD.size + 8),
        thread(5000, xstate=8),
        b"\1",
    ],
)
def test_damaged_threads_are_refused(raw: bytes) -> None:
    with pytest.raises(ProbeError):
        decode_threads(raw)


@pytest.mark.parametrize(
    "raw",
    [
        mapping(0x1000, 0x2000)[:-1],
        mapping(0x2000, 0x2000),
        mapping(0x1000, 0x2000, HAS_FILE, path_size=5),
        b"\0" * MAPPING.size,
    ],
)
def test_damaged_mappings_are_refused(raw: bytes) -> None:
    with pytest.raises(ProbeError):
        decode_mappings(raw, None)
