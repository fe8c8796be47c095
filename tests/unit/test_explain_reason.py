"""What `reason` says, for each kind of death: whole sentences."""

from __future__ import annotations

import datetime
import signal
import struct
from typing import Any

import msgspec
import pytest

from collector.diagnosis import Diagnosis, Evidence
from collector.explain.facts import with_explanation, with_signal
from collector.explain.reason import concluded
from collector.explain.types import Explanation
from collector.model import (
    Access,
    Cause,
    FatalSignal,
    Fault,
    Frame,
    Identity,
    ProcessKey,
    Record,
    Sender,
)

EXE, LIBC = "/opt/shop/bin/victim", "/usr/lib/x86_64-linux-gnu/libc.so.6"


def own(function: str | None, line: int | None = None, file: str = "src/victim.c") -> Frame:
    """A frame of the program's own."""
    return Frame(pc=0x401136, function=function, file=file if line else None, line=line, module=EXE)


def libc(function: str | None) -> Frame:
    return Frame(pc=0x7F0000001234, function=function, module=LIBC)


def record(**facts: Any) -> Record:
    """The main thread of pid 700 died by SIGSEGV, unless said otherwise."""
    base: dict[str, Any] = {
        "id": "0123456789abcdef",
        "time": datetime.datetime(2025, 1, 2, tzinfo=datetime.UTC),
        "pid": 700,
        "tid": 700,
        "cause": Cause.SIGNAL,
        "comm": "victim",
        "start_ns": 1,
        "signal": signal.SIGSEGV,
    }
    return Record(**{**base, **facts})


def segv(code: int = 1, address: int = 0, **facts: Any) -> Record:
    return record(si_code=code, si_addr=address, **facts)


def aborted(*frames: Frame, **facts: Any) -> Record:
    runtime = [libc("raise"), libc("abort")]
    base = {"signal": signal.SIGABRT, "si_code": -6, "frames": [*runtime, *frames]}
    return record(**{**base, **facts})


INNER = [own("inner", 10), own("outer", 20), own("main", 30)]
FAULT = Fault(time_ns=1, tid=700, signal=11, si_code=1, si_addr=0x20, ip=0x401136, sp=0x7FFE0000)
BASH = Sender(pid=812, comm="bash", uid=0)
STACK = 0x7FFC12345F80

SENTENCES = [
    (
        segv(frames=INNER, fault_access=Access.WRITE, tid=703, thread_name="worker-3"),
        "SIGSEGV: wrote to address 0x0 in `inner` (victim.c:10), thread `worker-3`",
    ),
    (segv(), "SIGSEGV: accessed address 0x0"),
    (
        segv(address=16, fault_access=Access.READ, tid=703),
        "SIGSEGV: read from address 0x10, thread 703",
    ),
    (
        segv(frames=[libc("__strlen_evex"), own(None), own("main", 3)], fault_access=Access.READ),
        "SIGSEGV: read from address 0x0 in `__strlen_evex` (libc.so.6),"
        " called from victim at 0x401136",
    ),
    (
        segv(2, 0x7F00, frames=INNER, fault_access=Access.WRITE),
        "SIGSEGV: wrote to address 0x7f00, which is not writable, in `inner` (victim.c:10)",
    ),
    (
        segv(2, 0x7F00),
        "SIGSEGV: accessed address 0x7f00, which its mapping does not allow",
    ),
    (
        segv(4, 0x7F00, fault_access=Access.READ),
        "SIGSEGV: read from address 0x7f00, which its protection key does not allow",
    ),
    (
        segv(1, 0, ip=0, frames=[Frame(pc=0), own("main", 33)]),
        "SIGSEGV: jumped to address 0x0 from `main` (victim.c:33)",
    ),
    (
        segv(2, 0x7F00, ip=0x7F00),
        "SIGSEGV: jumped to address 0x7f00, which is not executable",
    ),
    (
        segv(0x80, 0, frames=INNER, ip=0x401136),
        "SIGSEGV: general protection fault, address unknown in `inner` (victim.c:10)",
    ),
    (
        segv(2, STACK - 8, sp=STACK, frames=[own("recurse", 9)] * 200, fault_access=Access.WRITE),
        "SIGSEGV: stack overflow at address 0x7ffc12345f78 in `recurse` (victim.c:9)",
    ),
    (
        segv(1, STACK + 8192, sp=STACK, fault_access=Access.READ),
        "SIGSEGV: read from address 0x7ffc12347f80",
    ),
    (
        record(
            si_code=-6,
            last_fault=msgspec.structs.replace(FAULT, ip=0x401200),
            frames=[libc("raise"), own("on_fault", 22)],
        ),
        "SIGSEGV: accessed address 0x20, then raised by its handler `on_fault` (victim.c:22)",
    ),
    (
        record(
            si_code=-6,
            last_fault=msgspec.structs.replace(FAULT, si_addr=FAULT.sp - 16, ip=0x401200),
            frames=[
                *(libc("raise"), own("on_fault", 22), libc("__restore_rt")),
                *[Frame(pc=0x401200, function="recurse", file="v.c", line=9, module=EXE)] * 2,
            ],
        ),
        "SIGSEGV: stack overflow at address 0x7ffdfff0 in `recurse` (v.c:9),"
        " then raised by its handler `on_fault` (victim.c:22)",
    ),
    (
        record(signal=signal.SIGBUS, si_code=2, si_addr=0x7F00, frames=[own("read_mapped", 8)]),
        "SIGBUS: accessed address 0x7f00, beyond the end of its mapped file,"
        " in `read_mapped` (victim.c:8)",
    ),
    (
        record(signal=signal.SIGBUS, si_code=1, si_addr=3, fault_access=Access.READ),
        "SIGBUS: read from address 0x3, which is not aligned",
    ),
    (
        record(signal=signal.SIGFPE, si_code=1, frames=[own("divide", 6)]),
        "SIGFPE: integer divide by zero in `divide` (victim.c:6)",
    ),
    (
        record(signal=signal.SIGILL, si_code=2, frames=[own("undefined")]),
        "SIGILL: executed an illegal instruction in `undefined` (victim)",
    ),
    (
        record(signal=signal.SIGTRAP, si_code=0x80, frames=[own("stop_here", 6)]),
        "SIGTRAP: hit a breakpoint or trap instruction in `stop_here` (victim.c:6)",
    ),
    (
        record(signal=signal.SIGSYS, si_code=1, syscall=110, frames=[libc("getppid"), *INNER]),
        "SIGSYS: its seccomp filter refused system call 110 in `getppid` (libc.so.6),"
        " called from `inner` (victim.c:10)",
    ),
    (
        aborted(own("check_invariant", 14)),
        "SIGABRT: abort() called from `check_invariant` (victim.c:14)",
    ),
    (
        aborted(libc("malloc_printerr"), own("release", 6), abort_message="free(): bad\x1b[0m\n"),
        "SIGABRT: free(): bad?[0m, in `release` (victim.c:6)",
    ),
    (
        aborted(abort_message="victim: victim.c:8: f: Assertion `n == 0' failed.", frames=None),
        "SIGABRT: victim: victim.c:8: f: Assertion `n == 0' failed",
    ),
    (
        aborted(libc("std::terminate()"), libc("__cxa_throw"), own("shop::Order::place(int)", 13)),
        "SIGABRT: uncaught C++ exception, thrown from `shop::Order::place(int)` (victim.c:13)",
    ),
    (
        aborted(
            own("my_terminate", 3),
            *(libc("std::terminate()"), libc("__cxa_throw"), libc("std::__throw_out_of_range()")),
            *(own("std::vector<int>::_M_range_check(unsigned long) const"), own("pick", 3)),
            diagnosis=Diagnosis(evidence=Evidence(exception="std::out_of_range", what="n is 5.")),
        ),
        "SIGABRT: uncaught C++ exception `std::out_of_range`: n is 5, thrown from"
        " `pick` (victim.c:3), in `std::vector<int>::_M_range_check(unsigned long) const` (victim)",
    ),
    (
        aborted(own("shop::total(int)", 1016, "/usr/include/c++/12/bits/stl_vector.h")),
        "SIGABRT: abort() called from `shop::total(int)` (victim)",
    ),
    (
        aborted(libc("std::terminate()"), own("join", 5)),
        "SIGABRT: std::terminate() called from `join` (victim.c:5)",
    ),
    (aborted(frames=None), "SIGABRT: raised by the process itself"),
    (
        record(signal=signal.SIGPIPE, si_code=0, frames=[libc("write"), own("send", 4)]),
        "SIGPIPE: wrote to a pipe or socket that nobody reads in `write` (libc.so.6),"
        " called from `send` (victim.c:4)",
    ),
    (record(signal=signal.SIGXCPU, si_code=0x80), "SIGXCPU: its limit on CPU time was reached"),
    (
        record(cause=Cause.KILLED, signal=signal.SIGKILL, sender=BASH),
        "killed by SIGKILL from `bash` (pid 812, uid 0)",
    ),
    (
        record(cause=Cause.KILLED, signal=signal.SIGRTMIN + 3),
        "killed by SIGRTMIN+3 from an unknown process",
    ),
    (
        record(
            cause=Cause.KILLED,
            signal=signal.SIGTERM,
            sender=Sender(pid=9, comm="a`b\n\x1b[1m\u202e", uid=1000),
        ),
        "killed by SIGTERM from `a?b??[1m?` (pid 9, uid 1000)",
    ),
    (
        record(cause=Cause.OOM, signal=9, resident_bytes=512 << 20, cgroup="/x"),
        "killed by the kernel's out-of-memory killer (resident 512 MiB, cgroup /x)",
    ),
    (
        record(cause=Cause.KILLED, signal=9, oom=True),
        "killed by the kernel's out-of-memory killer",
    ),
    (record(cause=Cause.EXIT, signal=None, exit_code=3), "exited with code 3"),
    (
        record(cause=Cause.EXIT, signal=None, exit_code=1, last_fault=FAULT),
        "exited with code 1 after handling SIGSEGV at address 0x20",
    ),
    (record(signal=None), "died, and it is not known of what"),
]


@pytest.mark.parametrize(("death", "sentence"), SENTENCES, ids=[s for _, s in SENTENCES])
def test_a_death_in_one_sentence(death: Record, sentence: str) -> None:
    assert concluded(death).reason == sentence


def test_a_hostile_name_stays_short_and_on_one_line() -> None:
    # GIVEN a thread whose function has a name of 4,096 characters, with a newline in it
    death = segv(frames=[own("f\n" + "x" * 4094)])
    # THEN the sentence keeps 200 of them, and no line break
    assert concluded(death).reason == f"SIGSEGV: accessed address 0x0 in `f?{'x' * 197}…` (victim)"


def test_a_record_learns_from_its_signal_and_its_explanation() -> None:
    # GIVEN a SIGSYS event, as the kernel passes its siginfo
    siginfo = struct.pack("=iiii QiI", signal.SIGSYS, 0, 1, 0, 0x7F00, 110, 0xC000003E).ljust(128)
    event = FatalSignal(
        who=Identity(
            key=ProcessKey(700, 1),
            tid=700,
            ns_pid=700,
            ns_tid=700,
            ppid=1,
            comm="victim",
            uid=0,
            gid=0,
            cgroup_id=1,
            exe=None,
        ),
        time_ns=1,
        signal=signal.SIGSYS,
        si_code=1,
        si_addr=None,
        siginfo=siginfo,
        sender=None,
        regs=tuple(range(27)),
        stack=(),
        site=None,
        last_fault=None,
    )
    # WHEN the record takes the event's and then the core's facts
    known = with_signal(record(lost={"exe": "gone"}), event)
    known = with_explanation(known, Explanation(frames=INNER, lost={"symbols": "none"}))
    # THEN it has the words of user_regs_struct, the system call, the frames and both losses
    assert known == record(
        ip=16,
        sp=19,
        syscall=110,
        frames=INNER,
        lost={"exe": "gone", "symbols": "none"},
    )
