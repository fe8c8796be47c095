"""Threads and mappings of one process from the BPF task iterators: read fast, decode later.

Reading (`read_all`) happens while the dying process is held: it only copies bytes. Decoding
happens afterwards, anywhere on the same machine. The mirror of struct cw_thread and cw_mapping in
bpf/coreward.h. Which process is read is chosen when the iterator is opened.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from collector.arch import xsave
from collector.arch.x86_64 import PAGE
from collector.elfcore.types import VM_EXEC, VM_READ, VM_SHARED, VM_WRITE, Mapping, Prot, Thread
from collector.errors import ProbeError
from collector.linux.procfs import parse_maps, thread_with_memory
from collector.native.cpu import xsave_layout
from collector.probe.events import text

# Address space for the records of one process. It takes memory only where it is written, in huge
# pages where they can be had: the page faults of a list of chunks took a third of the time.
CAPACITY = 1 << 30
CHUNK = 1 << 18  # the kernel fills at most 32 KiB per read
_AGAIN = 10
_MAP_NORESERVE = 0x4000  # mmap(2), x86-64
MAY_SHARE = 0x80  # VM_MAYSHARE <linux/mm.h>: MAP_SHARED, also of a file opened for reading

THREAD = struct.Struct("<8I16s10Q27QQII")  # struct cw_thread
MAPPING = struct.Struct("<IIQQQQQIIQQQii")  # struct cw_mapping
HAS_FILE, HAS_ANON_VMA, IS_SPECIAL, IS_WALK, IS_DELETED = 1, 2, 4, 8, 16  # enum cw_mapping_flag
IS_SAME, IS_UNNAMED = 128, 256
PATHS_MAX = 1 << 20  # CW_PATHS_MAX, bytes

_SIZE = struct.Struct("<I")

# task_struct.__state <linux/sched.h>, as /proc/PID/stat shows it
_STATES = ((0x402, "I"), (0x1, "S"), (0x2, "D"), (0x4, "T"), (0x8, "t"), (0x40, "P"))


Raw = bytes | memoryview  # records as they were read


class _ThreadFields(NamedTuple):
    size: int
    tid: int
    tgid: int
    ns_tid: int
    ns_ppid: int
    ns_pgrp: int
    ns_sid: int
    state: int
    comm: bytes
    sigpend: int
    sighold: int
    utime: int
    stime: int
    group_utime: int
    group_stime: int
    cutime: int
    cstime: int
    clear_child_tid: int
    robust_list: int
    regs: tuple[int, ...]
    xfeatures: int
    pkru: int
    xstate_size: int


class _MappingFields(NamedTuple):
    size: int
    flags: int
    start: int
    end: int
    vm_flags: int
    pgoff: int
    inode: int
    device: int
    nlink: int
    start_brk: int
    brk: int
    start_stack: int
    path_size: int
    others: int


def read_all(program: int, pid: int, *, single: bool = False) -> memoryview:
    """All that an iterator program has to say of a process (`single`: of one thread).

    OSError ESRCH if there is none, ENOBUFS if it has more than CAPACITY bytes to say.
    """
    from collector.linux import libbpf  # noqa: PLC0415 - decoding has no use for it

    descriptor = libbpf.open_task_iterator(program, pid, single=single)
    try:
        area = mmap.mmap(-1, CAPACITY, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
        area.madvise(mmap.MADV_HUGEPAGE, CHUNK, CAPACITY - CHUNK)  # but not for a small process
        view = memoryview(area)
        used, last = 0, -1
        while size := _read(descriptor, view[used : used + CHUNK]):
            if single:
                if (start := _start_at(view, used)) <= last:
                    break  # the kernel tells the last buffer again and again instead of ending
                last = start
            used += size
            if used + CHUNK > CAPACITY:
                raise OSError(errno.ENOBUFS, "too many threads or mappings")
        return view[:used].toreadonly()
    finally:
        os.close(descriptor)


def _read(descriptor: int, to: memoryview) -> int:
    """As readv(2); the program may have had no memory of its own at that moment."""
    for _ in range(_AGAIN):
        with contextlib.suppress(BlockingIOError):
            return os.readv(descriptor, [to])
    return os.readv(descriptor, [to])


def iterate_mappings(program: int, pid: int) -> memoryview:
    """All mappings of a process; empty if it has none.

    A leader that called pthread_exit(3) has no memory any more; then another thread tells.
    """
    raw = read_all(program, pid, single=True)
    if raw or (other := thread_with_memory(pid)) == pid:
        return raw
    return read_all(program, other, single=True)


def _start_at(records: memoryview, offset: int) -> int:
    """The address of the mapping at `offset`; they rise (task_vma_seq_get_next() of the kernel)."""
    return int.from_bytes(records[offset + 8 : offset + 16], "little")


def _records(raw: Raw, fixed: int, what: str) -> Iterator[int]:
    """The offsets of records that begin with their own size."""
    offset, end = 0, len(raw)
    size_at = _SIZE.unpack_from
    while offset + fixed <= end:
        (size,) = size_at(raw, offset)
        if size < fixed or offset + size > end:
            raise ProbeError(f"{what} record at {offset} of {end} bytes claims {size} bytes")
        yield offset
        offset += size
    if offset != end:
        raise ProbeError(f"{end - offset} bytes at {offset} are no {what} record")


def _threads(raw: Raw) -> Iterator[tuple[int, _ThreadFields]]:
    for offset in _records(raw, THREAD.size, "thread"):
        words = THREAD.unpack_from(raw, offset)
        fields = _ThreadFields._make([*words[:19], words[19:46], *words[46:]])
        if fields.size != THREAD.size + fields.xstate_size:
            raise ProbeError(f"thread {fields.tid} claims {fields.xstate_size} bytes of XSAVE area")
        yield offset, fields


def state_letter(state: int) -> str:
    """task_struct.__state as /proc/PID/stat shows it."""
    for bits, letter in _STATES:
        if state & bits == bits:
            return letter
    return "R"


def _thread(raw: Raw, offset: int, t: _ThreadFields, own: xsave.Layout | None) -> Thread:
    area = bytes(raw[offset + THREAD.size : offset + t.size])
    return Thread(
        tid=t.ns_tid,
        regs=t.regs,
        ppid=t.ns_ppid,
        pgrp=t.ns_pgrp,
        sid=t.ns_sid,
        name=text(t.comm),
        sigpend=t.sigpend,
        sighold=t.sighold,
        utime=t.utime // 1000,
        stime=t.stime // 1000,
        cutime=t.cutime // 1000,
        cstime=t.cstime // 1000,
        xstate=xsave.standard(area, t.xfeatures, t.pkru, own) if own and area else None,
        state=state_letter(t.state),
    )


def decode_threads(raw: Raw) -> list[Thread]:
    """The threads in the kernel's order. The group's leader has the times of all (see core(5)).

    `xstate` is None where the area could not be read or this CPU's layout is not known.
    """
    layout = xsave_layout()
    threads: list[Thread] = []
    leader: tuple[int, _ThreadFields] | None = None
    utime = stime = 0
    for offset, fields in _threads(raw):
        utime += fields.utime
        stime += fields.stime
        if fields.tid == fields.tgid:
            leader = len(threads), fields
        threads.append(_thread(raw, offset, fields, layout))
    if leader is not None:
        index, fields = leader
        threads[index] = msgspec.structs.replace(
            threads[index],
            utime=(utime + fields.group_utime) // 1000,
            stime=(stime + fields.group_stime) // 1000,
        )
    return threads


def _name(m: _MappingFields, tail: bytes) -> str | None:
    """As the kernel names a mapping in /proc/PID/maps (fs/proc/task_mmu.c)."""
    if m.path_size > 0 and m.flags & IS_WALK:
        suffix = " (deleted)" if m.flags & IS_DELETED else ""
        return "/" + os.fsdecode(b"/".join(tail.split(b"\0")[-2::-1])) + suffix
    if m.path_size > 0:
        return os.fsdecode(tail.split(b"\0", 1)[0]) or None
    if m.flags & (HAS_FILE | IS_SPECIAL):
        return None
    if m.start < m.brk and m.end > m.start_brk:
        return "[heap]"
    if m.start <= m.start_stack <= m.end:
        return "[stack]"
    return None


def _mappings(raw: Raw) -> Iterator[tuple[int, _MappingFields]]:
    for offset in _records(raw, MAPPING.size, "mapping"):
        m = _MappingFields(*MAPPING.unpack_from(raw, offset))
        if m.size != MAPPING.size + max(m.path_size, 0) or m.end <= m.start:
            raise ProbeError(f"mapping {m.start:#x}-{m.end:#x} in a record of {m.size} bytes")
        yield offset, m


def decode_mappings(raw: Raw, maps_text: bytes | None) -> list[Mapping]:
    """The mappings by address. Names in `maps_text` (/proc/PID/maps) go before those in `raw`."""
    names = {(line.start, line.end): line.path for line in parse_maps(maps_text or b"")}
    mappings = []
    told: str | None = None  # the path that came last
    for offset, m in _mappings(raw):
        prot = Prot(0)
        for bit, allowed in ((VM_READ, Prot.R), (VM_WRITE, Prot.W), (VM_EXEC, Prot.X)):
            if m.vm_flags & bit:
                prot |= allowed
        if m.flags & IS_SAME:
            name = told
        elif m.flags & IS_UNNAMED:
            name = None
        else:
            name = _name(m, bytes(raw[offset + MAPPING.size : offset + m.size]))
            if m.flags & HAS_FILE:
                told = name
        name = names.get((m.start, m.end)) or name
        mappings.append(
            Mapping(
                start=m.start,
                end=m.end,
                prot=prot,
                shared=bool(m.vm_flags & (VM_SHARED | MAY_SHARE)),
                offset=m.pgoff * PAGE,
                device=m.device,
                inode=m.inode,
                path=name,
                vm_flags=m.vm_flags,
                anon_vma=bool(m.flags & HAS_ANON_VMA),
                nlink=m.nlink if m.flags & HAS_FILE else None,
                unnamed=bool(m.flags & HAS_FILE) and name is None,
                special=bool(m.flags & IS_SPECIAL),
            )
        )
    return mappings
