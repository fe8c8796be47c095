"""Records for the tests of the store and of the verbs that show it."""

from __future__ import annotations

import datetime

import msgspec

from collector.model import (
    Access,
    Capture,
    Cause,
    CrashSite,
    Fault,
    Frame,
    Outcome,
    Record,
    Release,
    Sender,
)

TIME = datetime.datetime(2026, 11, 21, 3, 0, 0, 123456, tzinfo=datetime.UTC)

SEGFAULT = Record(
    id="0123456789abcdef",
    time=TIME,
    pid=812,
    tid=815,
    cause=Cause.SIGNAL,
    comm="victim",
    start_ns=5,
    ns_pid=7,
    ppid=1,
    exe="/usr/bin/victim",
    cmdline=["/usr/bin/victim", "-x", "a b"],
    uid=1000,
    gid=1000,
    cgroup="/system.slice/victim.service",
    unit="victim.service",
    container=True,
    signal=11,
    signal_name="SIGSEGV",
    si_code=1,
    si_addr=0,
    ip=0x55D0C0DE1234,
    sp=0x7FFE00001000,
    fault_access=Access.WRITE,
    last_fault=Fault(time_ns=3, tid=815, signal=11, si_code=1, si_addr=8, ip=1, sp=2),
    core_bit=True,
    thread_name="worker-3",
    threads=4,
    capture_wanted=Capture.FULL,
    capture=Capture.FULL,
    outcome=Outcome.TRUNCATED,
    core="core",
    core_size=2411725,
    core_memory=67108864,
    resident_bytes=67108864,
    held_ms=1.2345,
    capture_s=0.52,
    release=Release.INSTANT,
    release_reason="there is room for its successor",
    site=CrashSite(build_id="ab" * 20, offset=0x1234),
    reason="SIGSEGV: wrote to address 0x0 in `inner` (victim.c:10), thread `worker-3`",
    frames=[
        Frame(
            pc=0x55D0C0DE1234,
            function="inner",
            offset=0x12,
            file="victim.c",
            line=10,
            module="/usr/bin/victim",
        ),
        Frame(pc=0x55D0C0DE1300, function="middle", file="victim.c", line=20, inline=True),
        Frame(pc=0x7F00, module="/lib/libc.so.6"),
    ],
    rule="defaults",
    lost={"core": "store.min_free was reached"},
)

# Killed by another process: no core, names made to disturb a terminal.
KILLED = Record(
    id="fedcba9876543210",
    time=TIME - datetime.timedelta(days=9),
    pid=4000,
    tid=4000,
    cause=Cause.KILLED,
    comm="ev\nil\x1b[31m",
    start_ns=6,
    exe="/tmp/\u202ex\udcff",
    signal=9,
    signal_name="SIGKILL",
    sender=Sender(pid=812, comm="ba\x9bsh", uid=0),
    reason="killed by SIGKILL from `ba\x9bsh` (pid 812, uid 0)",
)


def numbered(number: int, **changes: object) -> Record:
    """A small record with this number as its id, one second younger with each number."""
    plain = Record(
        id=f"{number:016x}",
        time=TIME + datetime.timedelta(seconds=number),
        pid=number + 1,
        tid=number + 1,
        cause=Cause.SIGNAL,
        comm="victim",
        start_ns=number,
    )
    return msgspec.structs.replace(plain, **changes)
