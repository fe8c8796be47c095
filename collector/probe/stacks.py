"""Threads with the tops of their stacks, as bpf/live.bpf.c tells them: the mirror of bpf/live.h.

Pure decoding: bytes to values. Who reads the bytes, and when, is `live`'s business.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from collector.arch.x86_64 import FS_BASE, PAGE, RED_ZONE, SP
from collector.errors import ProbeError
from collector.probe.events import text
from collector.probe.iterators import state_letter

_ADDRESSES = 1 << 64
_NOWHERE = 0, 0
MAX_STACK = 64 << 10  # bytes of one thread
MAX_CAUGHT_STACK = 32 << 10  # of one that was caught running

LIVE = struct.Struct("<3Q6I16s5Q27Q")  # struct cw_live
_PLACED = struct.Struct("<40xI212xQ8xQ40x")  # of it flags, and sp and fs_base of the registers
SWITCHES = struct.Struct("<2Q2I")  # struct cw_switches
CAUGHT = struct.Struct("<2Q4I27QQ")  # struct cw_caught without its stack
SETTINGS = struct.Struct("<3I")  # struct cw_live_settings
ON_CPU, MOVED, KERNEL = 1, 2, 4  # enum cw_live_flag


class Listed(NamedTuple):
    """Some threads: what two reads of the iterators told, and the stacks read between them."""

    states: bytes  # struct cw_live
    extents: array[int]  # of their stacks, see `extents`; empty: none was asked for
    stacks: bytes  # what could be read, one after the other
    sizes: list[int]  # of each
    switches: bytes  # struct cw_switches of most of them, or of others


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
    return check_size(stack) // PAGE + 1 if stack else 0


def check_size(stack: int) -> int:
    """The same number. ValueError if so many bytes of a stack cannot be asked for."""
    if not 0 <= stack <= MAX_STACK:
        raise ValueError(f"{stack} bytes of stack: it can be 0 to {MAX_STACK}")
    return stack


def _extent(sp: int, block: int, stack: int) -> tuple[int, int]:
    """Address and size of what is in use of a stack: from the red zone, or the start of sp's page.

    A thread's stack ends below its control block (fs_base), where the C library made it.
    """
    start, end = max(sp - RED_ZONE, sp & -PAGE), min(sp + stack, _ADDRESSES)
    if sp < block < end:
        end = block
    return start, end - start


def extents(states: bytes, stack: int) -> array[int]:
    """Where the stacks of these threads are: address and size in turn, `stack` above sp at most."""
    found = array("Q")
    for flags, sp, block in _PLACED.iter_unpack(states):
        found.extend(_NOWHERE if flags & KERNEL else _extent(sp, block, stack))
    return found


def decode_listed(listed: Iterable[Listed]) -> Iterator[ThreadStack]:
    """The threads in the kernel's order. ProbeError if damaged."""
    for states, where, stacks, sizes, switches in listed:
        if len(states) % LIVE.size or len(switches) % SWITCHES.size:
            raise ProbeError(f"{len(states)} and {len(switches)} bytes are not whole records")
        if not where:
            yield from (_thread(words) for words in LIVE.iter_unpack(states))
            continue
        later = {tid: rest for *rest, tid, on_cpu in SWITCHES.iter_unpack(switches) if not on_cpu}
        end = 0
        for words, start, size in zip(LIVE.iter_unpack(states), where[::2], sizes, strict=True):
            still = later.get(words[3]) == [words[2], words[13] + words[14]]
            end += size
            yield _thread(words, start, stacks[end - size : end], still=still)


def _thread(
    words: tuple[int, ...], address: int = 0, data: bytes = b"", *, still: bool = True
) -> ThreadStack:
    time_ns, process_start, start, tid, tgid, ns_tid, state, flags, cpu, comm = words[:10]
    utime, stime, runtime, voluntary, involuntary = words[10:15]
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
        exact=still and not flags & (ON_CPU | MOVED),
        cpu=cpu,
        user_ns=utime,
        system_ns=stime,
        runtime_ns=runtime,
        voluntary=voluntary,
        involuntary=involuntary,
        regs=None if flags & KERNEL else words[15:],
        stack_address=address if data else 0,
        stack=data,
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
    address, size = _extent(regs[SP], regs[FS_BASE], stack)
    kept = data[address - base : address - base + size]
    return Caught(time_ns, start, tid, number, regs, address, kept)


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
    )
