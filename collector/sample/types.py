"""What sampling yields. Pure values; None: it could not be had."""

from __future__ import annotations

import msgspec


class ThreadSample(msgspec.Struct, frozen=True, kw_only=True):
    """One thread at the moment of one sample. Counters are since the thread's start.

    Nothing in it changes while a thread sleeps: equal samples are kept once.
    """

    tid: int
    name: str
    start_ns: int  # with the tid it names the thread
    state: str  # as in proc(5)
    runtime_ns: int  # on a CPU
    switches: int | None  # context switches of both kinds
    syscall: str | None = None  # the one that it is in; a number where it has no name
    wait_channel: str | None = None  # function of the kernel, where no system call says enough
    stack: bytes | None = None  # key of its stack in the ring


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """All threads of one process at one moment."""

    time_ns: int  # CLOCK_MONOTONIC, when it began
    took_ns: int
    threads: tuple[ThreadSample, ...]  # by tid
    lost: dict[str, str] = {}  # part -> why it is missing


class KeptStack(msgspec.Struct, frozen=True):
    """A copied stack with the registers that belong to it.

    `context` is the number of the state of the process's mappings that it was copied in.
    """

    context: int
    regs: tuple[int, ...]
    address: int
    data: bytes
