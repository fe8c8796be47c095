"""killer: by what a fatal signal came about, and whether the sender is the one who killed. Pure.

What BPF tells of the sender is completed in `sender`.
"""

from __future__ import annotations

import signal

import msgspec

from collector.arch.syscalls import syscall_name
from collector.arch.x86_64 import Reg
from collector.model import FatalSignal, KilledBy, Killer, Sending, SentFlag
from collector.siginfo import SI_KERNEL, SYS_SECCOMP

_TIMERS = (signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF)
_TERMINAL = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
_EXECS = ("execve", "execveat")
# The sender is the one who did it, or for whom the kernel did it.
_HAVE_SENDER = (
    *(KilledBy.PROCESS, KilledBy.CGROUP_KILL, KilledBy.PARENT_DEATH),
    *(KilledBy.NAMESPACE, KilledBy.TRACER),
)
# That of the OOM killer looks like any of these.
_BY_KERNEL = (KilledBy.KERNEL, KilledBy.CPU_LIMIT, KilledBy.RT_LIMIT)


def killed_by(sending: Sending) -> KilledBy:
    """By what the signal came about; the out-of-memory killer is among KERNEL."""
    flags, number = sending.flags, sending.signal
    if SentFlag.BARE in flags:
        if SentFlag.LEAVING in flags:
            return KilledBy.PARENT_DEATH
        if number == signal.SIGKILL:
            return KilledBy.CGROUP_KILL
        return KilledBy.TERMINAL if number in _TERMINAL else KilledBy.KERNEL
    if SentFlag.BY_KERNEL not in flags:
        return KilledBy.PROCESS
    if number == signal.SIGKILL:
        return _killed_by_kernel(flags)
    if number == signal.SIGXCPU:
        return KilledBy.CPU_LIMIT
    if number in _TIMERS:
        return KilledBy.TIMER
    return KilledBy.TERMINAL if number in _TERMINAL else KilledBy.KERNEL


def _killed_by_kernel(flags: SentFlag) -> KilledBy:
    if SentFlag.TO_SELF in flags:
        if SentFlag.CPU_LIMIT in flags:
            return KilledBy.CPU_LIMIT
        return KilledBy.RT_LIMIT if SentFlag.RT_LIMIT in flags else KilledBy.KERNEL
    if SentFlag.LEAVING in flags and SentFlag.TRACER in flags:
        return KilledBy.TRACER
    if SentFlag.LEAVING in flags and SentFlag.REAPER in flags:
        return KilledBy.NAMESPACE
    return KilledBy.KERNEL


def killer_of(fatal: FatalSignal | None, status: int | None, *, oom: bool) -> Killer | None:
    """Who or what killed a process. status: of its exit, as wait(2) gives it, if that was seen."""
    sent = None if fatal is None else fatal.killer
    if oom:
        if sent is not None and sent.by in _BY_KERNEL:  # the task that ran was out of memory
            return msgspec.structs.replace(sent, by=KilledBy.OOM)
        return Killer(by=KilledBy.OOM)
    if sent is not None:
        return sent if sent.by in _HAVE_SENDER else Killer(by=sent.by)
    if fatal is None:
        # SECCOMP_RET_KILL_THREAD ends the last thread without a signal
        silent = status is not None and status & 0x7F == signal.SIGSYS
        return Killer(by=KilledBy.SECCOMP) if silent else None
    if fatal.signal == signal.SIGSYS and fatal.si_code == SYS_SECCOMP:
        return Killer(by=KilledBy.SECCOMP)
    if fatal.signal == signal.SIGSEGV and fatal.si_code == SI_KERNEL and _in_exec(fatal):
        return Killer(by=KilledBy.EXEC)
    return None


def _in_exec(fatal: FatalSignal) -> bool:
    """Whether it died in execve(2): a protection fault leaves its error code in that register."""
    return syscall_name(fatal.regs[Reg.ORIG_RAX], fatal.regs[Reg.CS]) in _EXECS
