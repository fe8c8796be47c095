"""For the tests of stopped processes: their counters, and what /proc says of their threads."""

from __future__ import annotations

import os
import select
import struct
from pathlib import Path
from typing import NamedTuple

from tests.system.victims import PATIENCE, Victim, wait_until

_ROW = struct.Struct("<24sQQQq")  # struct row of live_blocked.c
_COUNTERS = struct.Struct("<7Q")  # struct counters of live_busy.c


# The threads of live_blocked whose calls fail with EINTR when a debugger stops them.
NOTICING = frozenset(
    (
        *("accept_timed", "accept4_timed", "connect_timed", "epoll_pwait", "epoll_pwait2"),
        *("epoll_wait", "epoll_wait_timed", "io_getevents", "io_uring_enter", "read_timed"),
        *("recv_timed", "recvmsg_timed", "recvmmsg_timed", "semop", "semtimedop", "send_timed"),
        *("sendmsg_timed", "sigtimedwait", "sigwaitinfo", "write_timed"),
    )
)


class Row(NamedTuple):
    """One thread of live_blocked: how its system call came back."""

    name: str
    eintr: int
    other: int
    last: int


class Counters(NamedTuple):
    """What live_busy has done."""

    births: int
    sums: int
    turns: int
    timeouts: int
    signals: int
    eintr: int
    wrong: int


def rows(file: Path) -> dict[int, Row]:
    """The threads of live_blocked by tid."""
    return {
        tid: Row(name.rstrip(b"\0").decode(), *rest)
        for name, tid, *rest in _ROW.iter_unpack(file.read_bytes())
    }


def counters(file: Path) -> Counters:
    """The counters of live_busy as they are now."""
    return Counters._make(_COUNTERS.unpack(file.read_bytes()))


def states(pid: int) -> dict[int, str]:
    """The state of each thread, one letter each."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            found[int(task.name)] = (task / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue  # it has left
    return found


def wait_blocked(pid: int, file: Path) -> None:
    """Until each thread of live_blocked that blocks has gone to sleep, and so has the main one."""
    spinners = {tid for tid, row in rows(file).items() if row.name == "spin"}
    wait_until(
        lambda: {state for tid, state in states(pid).items() if tid not in spinners} == {"S"},
        f"the threads of {pid} do not go to sleep",
    )


def tracers(pid: int) -> set[int]:
    """Who traces any of its threads; {0}: nobody."""
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            lines = (task / "status").read_text().splitlines()
        except OSError:
            continue
        found.update(int(line.split()[1]) for line in lines if line.startswith("TracerPid:"))
    return found


def wait_untraced(pid: int) -> None:
    """Until nobody traces it, and none of its threads stands in a stop of a tracer."""
    wait_until(
        lambda: tracers(pid) == {0} and "t" not in states(pid).values(),
        f"{pid} is still being traced: {os.getpid()}",
    )


def read_line(victim: Victim) -> bytes:
    """The next line of a victim's output."""
    output = victim.process.stdout
    assert output is not None
    assert select.select([output], [], [], PATIENCE)[0]
    return output.readline()
