"""Threads and mappings from BPF against what ptrace(2) and /proc say of the same process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from collector.arch.x86_64 import FS_BASE
from collector.capture.image import decode_maps
from collector.elfcore.types import VM_DONTDUMP, Mapping, Thread
from collector.errors import ProbeError
from collector.probe.iterators import (
    IS_SAME,
    MAPPING,
    PATHS_MAX,
    _mappings,
    _threads,
    decode_mappings,
    decode_threads,
)
from collector.probe.probe import Probe
from tests.system.probe_support import LOADERS, opened, overlay
from tests.system.victims import PATIENCE, Stuck, build, deep_files, running

THREADS = 20
RAX = 10  # in struct user_regs_struct
# <linux/ptrace.h>, <linux/elf.h>
SEIZE, INTERRUPT, GETREGSET, DETACH = 0x4206, 0x4207, 0x4204, 17
NT_PRSTATUS, NT_X86_XSTATE = 1, 0x202
WALL = 0x40000000
SYS_READ, SYS_PAUSE = 0, 34
OWN_TID = 0x2D0  # of struct pthread behind fs_base: the word that the kernel clears (glibc 2.36)

_libc = ctypes.CDLL(None, use_errno=True)


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


@pytest.fixture(scope="module", params=LOADERS)
def probe(request: pytest.FixtureRequest) -> Iterator[Probe]:
    with opened(request.param, "iterators") as found:
        yield found


def ptrace(request: int, tid: int, address: int = 0, data: int = 0) -> None:
    arguments = (ctypes.c_long(request), tid, ctypes.c_void_p(address), ctypes.c_void_p(data))
    if _libc.ptrace(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"ptrace {request:#x} of {tid}")


def regset(tid: int, kind: int) -> bytes:
    buffer = ctypes.create_string_buffer(1 << 14)
    vector = _Iovec(ctypes.addressof(buffer), len(buffer))
    ptrace(GETREGSET, tid, kind, ctypes.addressof(vector))
    return buffer.raw[: vector.length]


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[list[int]]:
    """All threads of a process, stopped by ptrace."""
    tids = sorted(int(task.name) for task in Path(f"/proc/{pid}/task").iterdir())
    for tid in tids:
        ptrace(SEIZE, tid)
        ptrace(INTERRUPT, tid)
        os.waitpid(tid, WALL)
    try:
        yield tids
    finally:
        for tid in tids:
            ptrace(DETACH, tid)


def wait_asleep(pid: int, threads: int) -> None:
    """Until so many threads of a process sleep in pause(2), and its main one in read(2)."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        calls = [
            (task / "syscall").read_text().split()[0]
            for task in Path(f"/proc/{pid}/task").iterdir()
        ]
        if sorted(calls) == [str(SYS_READ), *[str(SYS_PAUSE)] * threads]:
            return
        os.sched_yield()
    raise Stuck(f"not all of {threads} threads of {pid} sleep")


def by_tid(threads: list[Thread]) -> dict[int, Thread]:
    return {thread.tid: thread for thread in threads}


def stat_field(pid: int, tid: int, number: int) -> int:
    """A field of /proc/PID/task/TID/stat as proc(5) counts them."""
    text = Path(f"/proc/{pid}/task/{tid}/stat").read_text()
    return int(text.rpartition(")")[2].split()[number - 3])


def test_registers_are_those_that_ptrace_reads(probe: Probe, tmp_path: Path) -> None:
    # GIVEN threads that sleep with different general and extended registers
    with running("probe_registers", str(THREADS), cwd=tmp_path) as victim:
        wait_asleep(victim.pid, THREADS)
        # WHEN they are listed while they sleep, and again while ptrace has stopped them
        asleep = by_tid(decode_threads(probe.threads(victim.pid)))
        with stopped(victim.pid) as tids:
            held = by_tid(decode_threads(probe.threads(victim.pid)))
            regs = {tid: struct.unpack("<27Q", regset(tid, NT_PRSTATUS)) for tid in tids}
            xstate = {tid: regset(tid, NT_X86_XSTATE) for tid in tids}

    # THEN all is equal to what ptrace reads
    assert sorted(held) == sorted(asleep) == tids
    assert {tid: thread.regs for tid, thread in held.items()} == regs
    assert {tid: thread.xstate for tid, thread in held.items()} == xstate
    # AND sleepers differ only in rax: stopping a thread ends its system call
    assert {tid: _without(thread.regs, RAX) for tid, thread in asleep.items()} == {
        tid: _without(words, RAX) for tid, words in regs.items()
    }
    assert {tid: thread.xstate for tid, thread in asleep.items()} == xstate
    # AND the victim really had different ones
    assert len(set(xstate.values())) > THREADS // 2
    assert {thread.state for thread in asleep.values()} == {"S"}
    assert {thread.state for thread in held.values()} == {"t"}


def _without(words: tuple[int, ...], index: int) -> tuple[int, ...]:
    return (*words[:index], *words[index + 1 :])


def test_threads_have_the_ids_and_masks_of_proc(probe: Probe, tmp_path: Path) -> None:
    with running("probe_registers", str(THREADS), cwd=tmp_path) as victim:
        wait_asleep(victim.pid, THREADS)
        raw = probe.threads(victim.pid)
        threads = decode_threads(raw)
        words = [fields for _, fields in _threads(raw)]
        expected = {
            tid: (
                Path(f"/proc/{victim.pid}/task/{tid}/comm").read_text().strip(),
                stat_field(victim.pid, tid, 4),  # ppid
                stat_field(victim.pid, tid, 5),  # pgrp
                stat_field(victim.pid, tid, 6),  # session
                stat_field(victim.pid, tid, 31),  # signals pending for the thread
                stat_field(victim.pid, tid, 32),  # blocked
            )
            for tid in sorted(thread.tid for thread in threads)
        }
        cleared = {
            word.tid: struct.unpack("<I", _memory(victim.pid, word.clear_child_tid, 4))[0]
            for word in words
        }
    assert {
        t.tid: (t.name, t.ppid, t.pgrp, t.sid, t.sigpend, t.sighold)
        for t in sorted(threads, key=lambda t: t.tid)
    } == expected
    assert threads[0].tid == victim.pid
    # the word that the kernel clears holds the thread's id until then
    assert cleared == {tid: tid for tid in expected}
    assert {w.tid: w.clear_child_tid - w.regs[FS_BASE] for w in words} == dict.fromkeys(
        expected, OWN_TID
    )
    assert all(w.robust_list for w in words)


def _memory(pid: int, address: int, size: int) -> bytes:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        return memory.read(size)


def smaps(pid: int) -> tuple[list[Mapping], set[int]]:
    """The mappings, and the start addresses of those with MADV_DONTDUMP (flag `dd`)."""
    text = Path(f"/proc/{pid}/smaps").read_bytes()
    heads = [line for line in text.split(b"\n") if re.match(rb"[0-9a-f]+-[0-9a-f]+ ", line)]
    marked = set()
    start = 0
    for line in text.split(b"\n"):
        head = re.match(rb"([0-9a-f]+)-[0-9a-f]+ ", line)
        if head:
            start = int(head[1], 16)
        elif line.startswith(b"VmFlags:") and b" dd" in line:
            marked.add(start)
    return decode_maps(b"\n".join(heads)), marked


def _shape(mapping: Mapping) -> tuple[object, ...]:
    """What /proc/PID/maps shows of a mapping."""
    m = mapping
    return m.start, m.end, m.prot, m.shared, m.offset, m.device, m.inode, m.path


def test_mappings_are_those_of_proc(probe: Probe, tmp_path: Path) -> None:
    with running("probe_registers", str(THREADS), cwd=tmp_path) as victim:
        wait_asleep(victim.pid, THREADS)
        raw = probe.mappings(victim.pid)
        expected, dontdump = smaps(victim.pid)
        maps_text = Path(f"/proc/{victim.pid}/maps").read_bytes()
    found = decode_mappings(raw, None)

    # [vsyscall] belongs to no process
    expected = [mapping for mapping in expected if mapping.path != "[vsyscall]"]
    assert [_shape(mapping) for mapping in found] == [_shape(mapping) for mapping in expected]
    assert [_shape(m) for m in decode_mappings(raw, maps_text)] == [_shape(m) for m in found]
    assert {m.start for m in found if (m.vm_flags or 0) & VM_DONTDUMP} == dontdump
    paths = {mapping.path for mapping in found}
    assert {"[heap]", "[stack]", "[vdso]", "[vvar]", "/memfd:a memfd (deleted)"} <= paths
    assert {f"{tmp_path}/a file with\nlines", f"{tmp_path}/an unlinked\nfile (deleted)"} <= paths
    assert {m.path for m in found if m.special} == {p for p in paths if p and p[:2] == "[v"}
    # what decides whether the kernel dumps a mapping
    by_path = {mapping.path: mapping for mapping in found}
    assert by_path["/memfd:a memfd (deleted)"].nlink == 0
    assert by_path[f"{tmp_path}/a file with\nlines"].nlink == 1
    assert by_path["[stack]"].anon_vma and by_path["[stack]"].nlink is None
    shared = [m for m in found if m.nlink == 0 and m.shared]
    assert len(shared) == 2  # the anonymous one and the memfd


def test_many_mappings_are_told_once_each(probe: Probe, tmp_path: Path) -> None:
    # more than one buffer of the kernel
    with running("mappings", "3000", cwd=tmp_path) as victim:
        found = decode_mappings(probe.mappings(victim.pid), None)
        expected = decode_maps(Path(f"/proc/{victim.pid}/maps").read_bytes())
    assert len(found) >= 3000
    assert [_shape(m) for m in found] == [_shape(m) for m in expected if m.path != "[vsyscall]"]


@pytest.mark.parametrize("files", [1, 2])
def test_paths_are_told_once_and_have_a_bound(probe: Probe, tmp_path: Path, files: int) -> None:
    # GIVEN tens of thousands of mappings of one file with a long path, or of two in turn
    count, names = 65_000, deep_files(tmp_path, files)
    with running("mapped_paths", str(count), *names, cwd=tmp_path) as victim:
        # WHEN they are listed, and again by the same reader
        raw = probe.mappings(victim.pid)
        assert probe.mappings(victim.pid) == raw
        maps = Path(f"/proc/{victim.pid}/maps").read_bytes()
    found = decode_mappings(raw, None)
    expected = [m for m in decode_maps(maps) if m.path != "[vsyscall]"]

    # THEN the listing is not much longer than it would be without any path
    paths = len(raw) - len(found) * MAPPING.size
    assert paths < (8192 if files == 1 else PATHS_MAX + 8192)
    # AND each mapping is there, with the name that it has if it has one
    assert [_shape(m)[:-1] for m in found] == [_shape(m)[:-1] for m in expected]
    named = [(m.path, e.path) for m, e in zip(found, expected, strict=True) if not m.unnamed]
    assert all(one == other for one, other in named)
    # (of two, the one that was told last keeps its name)
    assert len(found) - len(named) == 0 if files == 1 else count // 3 < len(named) < count * 2 // 3


def test_a_path_is_told_again_behind_another(probe: Probe, tmp_path: Path) -> None:
    # GIVEN mappings of two files in turn, fewer than there is room for, in several buffers
    names = deep_files(tmp_path, 2)
    with running("mapped_paths", "200", *names, cwd=tmp_path) as victim:
        raw = probe.mappings(victim.pid)
        maps = Path(f"/proc/{victim.pid}/maps").read_bytes()
    # THEN all have their names
    expected = [_shape(m) for m in decode_maps(maps) if m.path != "[vsyscall]"]
    assert [_shape(m) for m in decode_mappings(raw, None)] == expected
    # AND those of libraries, which have several mappings each, were told once
    assert sum(bool(m.flags & IS_SAME) for _, m in _mappings(raw)) > 3


def test_a_process_goes_on_without_its_leader(probe: Probe, tmp_path: Path) -> None:
    # GIVEN a process whose main thread has left
    with running("probe_leaderless", cwd=tmp_path) as victim:
        tids = [int(task.name) for task in Path(f"/proc/{victim.pid}/task").iterdir()]
        (survivor,) = [tid for tid in tids if tid != victim.pid]
        # WHEN it is listed
        threads = decode_threads(probe.threads(victim.pid))
        found = decode_mappings(probe.mappings(victim.pid), None)
        maps = Path(f"/proc/{victim.pid}/task/{survivor}/maps").read_bytes()
    # THEN the thread that lives is there, and the memory that it has
    assert [thread.tid for thread in threads] == [survivor]
    expected = [m for m in decode_maps(maps) if m.path != "[vsyscall]"]
    assert [_shape(m) for m in found] == [_shape(m) for m in expected]


def test_several_threads_may_list_at_once(probe: Probe, tmp_path: Path) -> None:
    with running("probe_registers", str(THREADS), cwd=tmp_path) as victim:
        wait_asleep(victim.pid, THREADS)
        expected = probe.threads(victim.pid)
        with ThreadPoolExecutor(8) as pool:
            listed = list(pool.map(probe.threads, [victim.pid] * 200))
    assert set(listed) == {expected}


def test_files_of_containers_have_the_path_that_they_see(probe: Probe, tmp_path: Path) -> None:
    # GIVEN a program on an overlay, where the kernel maps a file of another file system
    with overlay(tmp_path) as merged:
        program = merged / "victim"
        shutil.copy(build("probe_registers"), program)
        with running("probe_registers", "1", cwd=merged, file=program) as victim:
            wait_asleep(victim.pid, 1)
            found = decode_mappings(probe.mappings(victim.pid), None)
            expected, _ = smaps(victim.pid)
    expected = [mapping for mapping in expected if mapping.path != "[vsyscall]"]
    assert [_shape(mapping) for mapping in found] == [_shape(mapping) for mapping in expected]
    assert str(program) in {mapping.path for mapping in found}
    assert f"{merged}/an unlinked\nfile (deleted)" in {mapping.path for mapping in found}


def test_a_process_that_is_not_there_is_an_error(probe: Probe) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(ProbeError, match=f"no process {child}"):
        probe.threads(child)
    assert probe.mappings(child) == b""
