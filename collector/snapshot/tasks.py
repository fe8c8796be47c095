"""What a core says of each thread of a live process but its registers, from /proc.

Threads come and go while they are listed: one that has left is None, never an error. A look does
not disturb a thread. Sources: proc_pid_status(5), proc_pid_stat(5).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from collector.elfcore.types import Thread
from collector.linux import procfs


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


def facts(pid: int, tid: int) -> TaskFacts | None:
    """What /proc says of a thread; None if it has gone, or is the kernel's own (is_worker)."""
    line, status = procfs.read_thread(pid, tid, "stat"), procfs.read_thread(pid, tid, "status")
    if not line or not status:
        return None
    fields = procfs.fields(status)
    ids = fields.get(b"NSpid") or fields[b"Pid"]
    stat = procfs.parse_stat(line)
    if stat.flags & procfs.PF_WORKER:
        return None
    of_all = procfs.read(f"/proc/{pid}/stat") if tid == pid else None
    times = procfs.parse_stat(of_all) if of_all else stat
    return TaskFacts(
        tid=int(ids[-1]),
        ppid=_parent(int(fields[b"PPid"][0]), len(ids)),
        pgrp=int(fields[b"NSpgid"][-1]) if b"NSpgid" in fields else stat.pgrp,
        sid=int(fields[b"NSsid"][-1]) if b"NSsid" in fields else stat.session,
        name=stat.comm,
        state=stat.state,
        sigpend=int(fields[b"SigPnd"][0], 16),
        sighold=int(fields[b"SigBlk"][0], 16),
        utime=times.user_ns // 1000,
        stime=times.system_ns // 1000,
        cutime=times.children_user_ns // 1000,
        cstime=times.children_system_ns // 1000,
    )


def gone(tid: int) -> TaskFacts:
    """All that is known of a thread that left before it could be looked at."""
    return TaskFacts(tid, 0, 0, 0, "", "X", 0, 0, 0, 0, 0, 0)


def _parent(ppid: int, depth: int) -> int:
    """The parent's pid in a pid namespace `depth` levels deep; 0 if it is not inside."""
    if depth == 1 or not ppid:
        return ppid
    status = procfs.read_thread(ppid, ppid, "status")
    ids = procfs.fields(status).get(b"NSpid", []) if status else []
    return int(ids[depth - 1]) if len(ids) >= depth else 0
