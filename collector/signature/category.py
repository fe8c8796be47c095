"""The kind of a death, as a signature has it: coarse enough to be the same each time.

A pointer that is wild may hit memory that is not mapped, or is not to be written, or be no address
at all, from one run to the next: for a signature that is one kind.
"""

from __future__ import annotations

import signal

from collector.model import Cause, KilledBy, Record
from collector.signals import signal_name

_NEAR_NULL = 0x10000  # bytes: what is below is a field, or an item, of nothing (mmap_min_addr)
_SENT = 0  # si_code: at or below it somebody sent the signal
_KERNEL = 0x80  # SI_KERNEL

# Of these the stack says where the process was, not what it did wrong
_ELSEWHERE = frozenset(
    ["killed", "watchdog", "out-of-memory", "exit-status", "cpu-limit", "timer", "terminal", "exec"]
)


def kind_of(record: Record) -> str:
    """`SIGSEGV near-null`, `SIGKILL killed`, `exit 3`."""
    if record.cause is Cause.EXIT:
        return f"exit {record.exit_code}"
    name = record.signal_name or signal_name(record.signal) or "death"
    return f"{name} {category_of(record)}"


def is_elsewhere(record: Record) -> bool:
    """Whether the stack says nothing about the cause."""
    return category_of(record) in _ELSEWHERE


def category_of(record: Record) -> str:
    """One word for what happened."""
    if record.oom or record.cause is Cause.OOM:
        return "out-of-memory"
    if record.cause is Cause.EXIT:
        return "exit-status"
    killer = record.killer
    if killer is not None and killer.by is not KilledBy.PROCESS and killer.by in _BY:
        return _BY[killer.by]
    if record.cause is Cause.KILLED:
        state = None if killer is None else killer.unit_state
        return "watchdog" if state is not None and state.result == "watchdog" else "killed"
    return _own_fault(record)


_BY = {
    KilledBy.CPU_LIMIT: "cpu-limit",
    KilledBy.RT_LIMIT: "cpu-limit",
    KilledBy.TIMER: "timer",
    KilledBy.TERMINAL: "terminal",
    KilledBy.EXEC: "exec",
    KilledBy.SECCOMP: "seccomp",
    KilledBy.CGROUP_KILL: "killed",
    KilledBy.PARENT_DEATH: "killed",
    KilledBy.NAMESPACE: "killed",
    KilledBy.TRACER: "killed",
}
_PLAIN = {
    int(signal.SIGABRT): "abort",
    int(signal.SIGFPE): "division",
    int(signal.SIGILL): "illegal-instruction",
    int(signal.SIGTRAP): "trap",
    int(signal.SIGSYS): "seccomp",
    int(signal.SIGPIPE): "broken-pipe",
    int(signal.SIGXFSZ): "file-size-limit",
    int(signal.SIGXCPU): "cpu-limit",
}


def _own_fault(record: Record) -> str:
    number, code = record.signal, record.si_code
    fault = code is not None and code > _SENT and code != _KERNEL
    if number in (signal.SIGSEGV, signal.SIGBUS):
        if code is None:  # of a death that was only counted, or whose event was lost
            return "unknown"
        if code <= _SENT:
            return "raised"
        if number == signal.SIGBUS:
            return "bus"
        if fault and record.si_addr is not None and record.si_addr < _NEAR_NULL:
            return "near-null"
        if record.signature is not None and record.signature.cycle:
            return "stack-overflow"
        return "bad-pointer"
    return _PLAIN.get(number or 0, "signal")
