"""Threads with the tops of their stacks, as bpf/live.bpf.c tells them: the mirror of bpf/live.h.

Pure decoding: bytes to values. Who reads the bytes, and when, is `live`'s business.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from collector.errors import ProbeError
from collector.probe.events import text
from collector.probe.iterators import state_letter

PAGE = 4096
RED_ZONE = 128  # bytes below sp that are still in use (x86-64 ABI)
SP, FS_BASE = 19, 21  # in struct user_regs_struct (<sys/user.h>)
MAX_STACK = 64 << 10  # bytes of one thread
MAX_CAUGHT_STACK = 32 << 10  # of one that was caught running
POOL_PAGES = 1024  # CS_LIVE_POOL

LIVE = struct.Struct("<3Q6I16s5Q27QQ4I")  # struct cs_live
USED, USED_AT = struct.Struct("<2I"), LIVE.size - 16  # first_page and pages
CAUGHT = struct.Struct("<2Q4I27QQ")  # struct cs_caught without its stack
SETTINGS = struct.Struct("<4I")  # struct cs_live_settings
ON_CPU, MOVED, NO_ROOM, KERNEL = 1, 2, 4, 8  # enum cs_live_flag


class Chunk(NamedTuple):
    """What one read of the iterator gave: records, and the pages that they speak of."""

    records: bytes
    pages: bytes


class ThreadStack(msgspec.Struct, frozen=True, kw_only=True):
    """One thread at one moment. Ids of the initial namespaces, but for `ns_tid`."""

    time_ns: int  # CLOCK_MONOTONIC
    process_start_ns: int  # CLOCK_BOOTTIME; with tgid it names the process
    start_ns: int
    tid: int
    tgid: int
    ns_tid: int
    name: str
    state: str  # as /proc/PID/stat shows it
    on_cpu: bool
    exact: bool  # registers and stack are of one moment, and it has not run since
    cpu: int  # where it runs, or ran last
    user_ns: int  # as the kernel accounts it: often by ticks
    system_ns: int
    runtime_ns: int  # time on a CPU; of a running thread up to its last tick
    voluntary: int  # context switches
    involuntary: int
    regs: tuple[int, ...] | None  # 27 words of struct user_regs_struct; None: a kernel thread
    stack_address: int = 0
    stack: bytes = b""  # from the red zone, or the start of sp's page, upwards; may be empty
    no_room: bool = False  # its stack was not copied, or not whole, for want of memory


class Caught(NamedTuple):
    """The registers and the stack of a thread in the middle of running."""

    time_ns: int
    start_ns: int
    tid: int
    round: int
    regs: tuple[int, ...]
    stack_address: int
    stack: bytes


def pages_for(stack: int) -> int:
    """How many pages hold `stack` bytes from any address on."""
    if not 0 <= stack <= MAX_STACK:
        raise ValueError(f"{stack} bytes of stack: it can be 0 to {MAX_STACK}")
    return stack // PAGE + 1 if stack else 0


def _trimmed(base: int, data: bytes, regs: tuple[int, ...], stack: int) -> tuple[int, bytes]:
    """Of the pages at `base` what is in use, at most `stack` bytes above sp.

    A thread's stack ends below its control block, where the C library made it.
    """
    sp, block = regs[SP], regs[FS_BASE]
    start, end = max(base, sp - RED_ZONE), sp + stack
    if sp < block < end:
        end = block
    return start, data[start - base : end - base]


def decode_stacks(chunks: Iterable[Chunk], stack: int) -> Iterator[ThreadStack]:
    """The threads in the kernel's order; `stack` is what was asked for. ProbeError if damaged."""
    for chunk in chunks:
        if len(chunk.records) % LIVE.size:
            raise ProbeError(f"{len(chunk.records)} bytes are not whole records of threads")
        for words in LIVE.iter_unpack(chunk.records):
            yield _thread(words, chunk.pages, stack)


def _thread(words: tuple[int, ...], pool: bytes, stack: int) -> ThreadStack:
    time_ns, process_start, start, tid, tgid, ns_tid, state, flags, cpu, comm = words[:10]
    utime, stime, runtime, voluntary, involuntary = words[10:15]
    regs, (base, first, pages, size, _) = words[15:42], words[42:]
    if (first + pages) * PAGE > len(pool) or size > pages * PAGE:
        raise ProbeError(f"thread {tid} claims {size} bytes in {pages} pages of stack at {first}")
    address, data = 0, b""
    if size:
        found = pool[first * PAGE : first * PAGE + size]
        address, data = _trimmed(base, found, regs, stack)
    return ThreadStack(
        time_ns=time_ns,
        process_start_ns=process_start,
        start_ns=start,
        tid=tid,
        tgid=tgid,
        ns_tid=ns_tid,
        name=text(comm),  # type: ignore[arg-type]
        state=state_letter(state),
        on_cpu=bool(flags & ON_CPU),
        exact=not flags & (ON_CPU | MOVED),
        cpu=cpu,
        user_ns=utime,
        system_ns=stime,
        runtime_ns=runtime,
        voluntary=voluntary,
        involuntary=involuntary,
        regs=None if flags & KERNEL else regs,
        stack_address=address,
        stack=data,
        no_room=bool(flags & NO_ROOM),
    )


def decode_caught(record: bytes, stack: int) -> Caught:
    """A record of the ring. ProbeError if it is damaged."""
    if len(record) < CAUGHT.size:
        raise ProbeError(f"{len(record)} bytes are no caught thread")
    words = CAUGHT.unpack_from(record)
    time_ns, start, tid, pages, number = words[:5]
    regs, base = words[6:33], words[33]
    if CAUGHT.size + pages * PAGE > len(record):
        raise ProbeError(f"caught thread {tid} claims {pages} pages of stack")
    data = record[CAUGHT.size : CAUGHT.size + pages * PAGE]
    address, data = _trimmed(base, data, regs, stack)
    return Caught(time_ns, start, tid, number, regs, address, data)


def with_caught(thread: ThreadStack, caught: Caught) -> ThreadStack:
    """The thread with the registers and the stack that it was caught with."""
    return msgspec.structs.replace(
        thread,
        time_ns=caught.time_ns,
        regs=caught.regs,
        stack_address=caught.stack_address,
        stack=caught.stack,
        on_cpu=True,
        exact=True,
        no_room=False,
    )
