"""What is known of a live process and its threads. Pure values; None: it could not be had."""

from __future__ import annotations

import datetime
import enum
from typing import NamedTuple

import msgspec

from collector.model import ProcessKey


class Source(enum.StrEnum):
    """Where the facts of a thread come from."""

    BPF = "bpf"  # the task iterator: everything, all threads within milliseconds
    PROC = "proc"  # /proc alone: no registers, one thread after the other


class Registers(NamedTuple):
    """General registers in the order of struct user_regs_struct (<sys/user.h>), x86-64."""

    r15: int
    r14: int
    r13: int
    r12: int
    rbp: int
    rbx: int
    r11: int
    r10: int
    r9: int
    r8: int
    rax: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    orig_rax: int
    rip: int
    cs: int
    eflags: int
    rsp: int
    ss: int
    fs_base: int
    gs_base: int
    ds: int
    es: int
    fs: int
    gs: int


class SystemCall(msgspec.Struct, frozen=True, kw_only=True):
    """The system call that a thread is in."""

    number: int
    name: str | None  # None: newer than this program, or of a 32-bit program
    args: tuple[int, ...]  # six words, whether used or not


class Stack(msgspec.Struct, frozen=True):
    """The top of a thread's stack: memory from `address` upwards, the red zone included."""

    address: int
    data: bytes


class ThreadState(msgspec.Struct, frozen=True, kw_only=True):
    """One thread at one moment. Times in ns; `time_ns` of CLOCK_MONOTONIC.

    `exact`: registers, system call and stack are of this moment. If not, the thread was running
    and is known as it last entered the kernel; then there are neither system call nor stack.
    """

    tid: int
    name: str
    state: str  # R, S, D, T, t, I, P, Z as in proc(5)
    source: Source
    exact: bool
    time_ns: int
    start_ns: int  # CLOCK_BOOTTIME
    on_cpu: bool | None  # it was running just then; None: /proc does not tell
    cpu: int  # where it runs, or ran last
    runtime_ns: int  # time on a CPU since its start
    user_ns: int
    system_ns: int
    voluntary: int | None  # context switches
    involuntary: int | None
    syscall: SystemCall | None = None
    wait_channel: str | None = None  # function of the kernel that it sleeps in, if asked for
    registers: Registers | None = None
    ip: int | None = None
    sp: int | None = None
    stack: Stack | None = None


class ProcessIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """Who a process is, as /proc tells it to this user."""

    key: ProcessKey  # start to a clock tick
    ns_pid: int  # in its own pid namespace
    ppid: int
    started: datetime.datetime  # UTC
    comm: str
    exe: str | None  # as the process itself sees it; None: not permitted, or no program
    cmdline: list[str]
    uid: int
    gid: int
    cgroup: str | None
    unit: str | None  # of systemd
    container: bool | None
    threads: int
    resident_bytes: int
