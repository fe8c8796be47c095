"""Why a process cannot be traced: asked before an attempt and after one that failed.

The rules are those of ptrace(2), "Ptrace access mode checking", which the kernel answers with a
bare EPERM. Here the same facts are looked at from /proc, and the first reason that holds is told
in one sentence. Nothing is promised: only the kernel's own answer counts.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from collector.errors import CaptureError
from collector.linux import procfs

_CAP_SYS_PTRACE = 1 << 19  # <linux/capability.h>
_YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")

_Fields = dict[bytes, list[bytes]]


def check(pid: int) -> None:
    """Raise CaptureError if it is known beforehand that this process cannot be traced."""
    found = reason(pid)
    if found is not None:
        raise CaptureError(found)


def refused(pid: int) -> CaptureError:
    """The error for a process that the kernel has just refused to let us trace."""
    return CaptureError(
        reason(pid)
        or f"the kernel does not allow tracing process {pid}: a security module or a seccomp "
        "filter forbids it"
    )


def reason(pid: int) -> str | None:
    """One sentence why process `pid` cannot be traced; None if nothing speaks against it."""
    if pid == os.getpid():
        return f"process {pid} is this program itself, which cannot stop itself"
    status = procfs.read_thread(pid, pid, "status")
    stat = procfs.read_thread(pid, pid, "stat")
    if not status or not stat:
        return f"there is no process {pid} in this pid namespace"
    fields = procfs.fields(status)
    if _word(fields, b"Tgid") != pid:
        return f"{pid} is a thread of process {_word(fields, b'Tgid')}: name the process"
    return (
        _by_nature(pid, fields, procfs.parse_stat(stat))
        or _by_tracer(pid)
        or _by_yama(pid, fields)
        or _by_ids(pid, fields)
    )


def _by_nature(pid: int, fields: _Fields, stat: procfs.Stat) -> str | None:
    name = stat.comm
    if stat.flags & procfs.PF_KTHREAD:
        return f"process {pid} ({name}) is a kernel thread, which has no memory of its own"
    if _word(fields, b"CoreDumping"):
        return f"process {pid} ({name}) is dumping core already: its crash is the record to look at"
    if fields[b"State"][0].decode() in procfs.ENDED and not _living(pid):
        return f"process {pid} ({name}) has ended and only waits for its parent (zombie)"
    return None


def _living(pid: int) -> list[int]:
    return [
        t
        for t in procfs.thread_ids(pid)
        if (procfs.thread_state(pid, t) or "X") not in procfs.ENDED
    ]


def _by_tracer(pid: int) -> str | None:
    for tid in procfs.thread_ids(pid):
        status = procfs.read_thread(pid, tid, "status")
        tracer = _word(procfs.fields(status), b"TracerPid") if status else 0
        if tracer and tracer != threading.get_native_id():
            status = procfs.read_thread(tracer, tracer, "status")
            process = _word(procfs.fields(status), b"Tgid") if status else tracer
            comm = procfs.read_thread(process, process, "comm")
            name = os.fsdecode(comm.strip()) if comm else "?"
            return f"process {pid} is being traced by process {process} ({name}) already"
    return None


def _by_yama(pid: int, fields: _Fields) -> str | None:
    try:
        scope = int(_YAMA.read_text())
    except (OSError, ValueError):
        return None
    setting = f"(kernel.yama.ptrace_scope = {scope})"
    if scope >= 3:
        return f"tracing is switched off on this system until its next start {setting}"
    if scope == 2 and not _capable():
        return f"only a program with CAP_SYS_PTRACE may trace process {pid} {setting}"
    if scope == 1 and not _capable() and not _is_descendant(fields):
        return f"process {pid} is not a descendant of this program {setting}: trace it as root"
    return None


def _is_descendant(fields: _Fields) -> bool:
    parent = _word(fields, b"PPid")
    while parent > 1:
        if parent == os.getpid():
            return True
        status = procfs.read_thread(parent, parent, "status")
        parent = _word(procfs.fields(status), b"PPid") if status else 0
    return False


def _by_ids(pid: int, fields: _Fields) -> str | None:
    if _capable():
        return _by_namespace(pid, fields)
    mine = (os.geteuid(), os.getegid())
    theirs = [int(word) for word in fields[b"Uid"][:3]], [int(word) for word in fields[b"Gid"][:3]]
    if set(theirs[0]) != {mine[0]}:
        return (
            f"process {pid} belongs to user {theirs[0][0]} and this program runs as user "
            f"{mine[0]}: be that user, or root"
        )
    if set(theirs[1]) != {mine[1]}:
        return (
            f"process {pid} runs with group {theirs[1][1]} and this program with {mine[1]}: "
            "trace it as root"
        )
    with contextlib.suppress(OSError):
        if Path(f"/proc/{pid}/status").stat().st_uid != mine[0]:  # proc(5): not its owner's then
            return (
                f"process {pid} is not dumpable (prctl PR_SET_DUMPABLE, or it changed its ids): "
                "trace it as root"
            )
    return _by_namespace(pid, fields)


def _by_namespace(pid: int, fields: _Fields) -> str | None:
    try:
        theirs, mine = os.readlink(f"/proc/{pid}/ns/user"), os.readlink("/proc/self/ns/user")
    except PermissionError:
        return f"process {pid} is in a user namespace in which this program has no rights"
    except OSError:
        return None
    # in a namespace of our own making we have all capabilities, and so may it
    if theirs == mine and _word(fields, b"CapPrm", 16) & ~_own_capabilities():
        return f"process {pid} has capabilities that this program lacks: trace it as root"
    return None


def _own_capabilities() -> int:
    status = procfs.read_thread(os.getpid(), os.getpid(), "status")
    return _word(procfs.fields(status), b"CapEff", 16) if status else 0


def _capable() -> bool:
    return bool(_own_capabilities() & _CAP_SYS_PTRACE)


def _word(fields: _Fields, name: bytes, base: int = 10) -> int:
    words = fields.get(name)
    return int(words[0], base) if words else 0
