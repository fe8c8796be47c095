"""The threads of a live process, from /proc: who is there, and what can be known without stopping.

Threads come and go while they are listed: one that has left is None, never an error. Everything
is as it was at the moment of the look; nothing here disturbs a thread. Sources: proc(5),
proc_pid_task(5), proc_pid_status(5), proc_pid_stat(5), proc_pid_syscall(5).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from collector.elfcore.types import Thread

_TICK_US = 1_000_000 // os.sysconf("SC_CLK_TCK")
_LISTINGS = 8
UNINTERRUPTIBLE = "D"
ENDED = "ZX"


class SystemCall(NamedTuple):
    """Where a thread is in the kernel. `number` None: blocked outside of system calls.

    sp and pc are those of user space.
    """

    number: int | None
    arguments: tuple[int, ...]
    sp: int
    pc: int


class TaskFacts(NamedTuple):
    """What /proc says of a thread. Ids as in its own pid namespace; times in microseconds."""

    tid: int
    ppid: int
    pgrp: int
    sid: int
    name: str
    state: str  # one letter, as proc_pid_stat(5) has them
    sigpend: int  # for this thread alone
    sighold: int
    utime: int  # of the process's leader: those of all threads
    stime: int
    cutime: int
    cstime: int

    def thread(self, regs: Sequence[int], xstate: bytes | None) -> Thread:
        """This thread with its registers, as a core has it."""
        return Thread(
            tid=self.tid,
            regs=tuple(regs),
            ppid=self.ppid,
            pgrp=self.pgrp,
            sid=self.sid,
            name=self.name,
            sigpend=self.sigpend,
            sighold=self.sighold,
            utime=self.utime,
            stime=self.stime,
            cutime=self.cutime,
            cstime=self.cstime,
            xstate=xstate,
            state=self.state,
        )


def tids(pid: int) -> list[int]:
    """The threads of a process in the order of their creation; empty if there is none.

    Those that were there all the time are all there: the kernel ends a listing early when the
    thread at which it stands exits, and then it is begun again.
    """
    found: dict[int, None] = {}
    for _ in range(_LISTINGS):
        try:
            names = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208  (hot)
        except OSError:
            break
        found.update(dict.fromkeys(map(int, names)))
        if len(names) >= count(pid):
            break
    return list(found)


def count(pid: int) -> int:
    """How many threads a process has, as fast as the kernel can say; 0 if there is none."""
    try:
        return os.stat(f"/proc/{pid}/task").st_nlink - 2  # noqa: PTH116  (hot)
    except OSError:
        return 0


def read(pid: int, tid: int, name: str) -> bytes | None:
    """A file of /proc/PID/task/TID; None if the thread has gone, or it may not be read."""
    return _read(f"/proc/{pid}/task/{tid}/{name}")


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    except OSError:
        return None


def state(pid: int, tid: int) -> str | None:
    """The state of a thread, one letter."""
    stat = read(pid, tid, "stat")
    return chr(stat[stat.rindex(b")") + 2]) if stat else None


def system_call(pid: int, tid: int) -> SystemCall | None:
    """Where a blocked thread is; None if it runs, has gone, or this may not be asked.

    Needs what ptrace(2) needs.
    """
    words = (read(pid, tid, "syscall") or b"").split()
    if len(words) == 9:
        number = int(words[0])
        arguments = tuple(int(word, 16) for word in words[1:7])
        return SystemCall(number, arguments, int(words[7], 16), int(words[8], 16))
    if len(words) == 3:
        return SystemCall(None, (), int(words[1], 16), int(words[2], 16))
    return None


def wait_channel(pid: int, tid: int) -> str | None:
    """The kernel function in which a thread is blocked; None if it runs or that is not told."""
    name = (read(pid, tid, "wchan") or b"0").decode("ascii", "replace")
    return None if name == "0" else name


def status_fields(text: bytes) -> dict[bytes, list[bytes]]:
    """The words of /proc/PID/status by field name."""
    fields: dict[bytes, list[bytes]] = {}
    for line in text.split(b"\n"):
        name, _, value = line.partition(b":\t")
        fields.setdefault(name, value.split())
    return fields


def facts(pid: int, tid: int) -> TaskFacts | None:
    """What /proc says of a thread; None if it has gone."""
    stat, status = read(pid, tid, "stat"), read(pid, tid, "status")
    if not stat or not status:
        return None
    fields = status_fields(status)
    ids = fields.get(b"NSpid") or fields[b"Pid"]
    close = stat.rindex(b")")
    # fields of proc_pid_stat(5) from the third on
    words = stat[close + 2 :].split()
    of_all = _read(f"/proc/{pid}/stat") if tid == pid else None
    times = of_all[of_all.rindex(b")") + 2 :].split() if of_all else words
    utime, stime, cutime, cstime = (int(ticks) * _TICK_US for ticks in times[11:15])
    return TaskFacts(
        tid=int(ids[-1]),
        ppid=_parent(int(fields[b"PPid"][0]), len(ids)),
        pgrp=int(fields[b"NSpgid"][-1]) if b"NSpgid" in fields else int(words[2]),
        sid=int(fields[b"NSsid"][-1]) if b"NSsid" in fields else int(words[3]),
        name=os.fsdecode(stat[stat.index(b"(") + 1 : close]),
        state=chr(words[0][0]),
        sigpend=int(fields[b"SigPnd"][0], 16),
        sighold=int(fields[b"SigBlk"][0], 16),
        utime=utime,
        stime=stime,
        cutime=cutime,
        cstime=cstime,
    )


def gone(tid: int) -> TaskFacts:
    """All that is known of a thread that left before it could be looked at."""
    return TaskFacts(tid, 0, 0, 0, "", "X", 0, 0, 0, 0, 0, 0)


def _parent(ppid: int, depth: int) -> int:
    """The parent's pid in a pid namespace `depth` levels deep; 0 if it is not inside."""
    if depth == 1 or not ppid:
        return ppid
    status = read(ppid, ppid, "status")
    ids = status_fields(status).get(b"NSpid", []) if status else []
    return int(ids[depth - 1]) if len(ids) >= depth else 0
