"""The kind of a death, as a signature has it: coarse enough to be the same each time.

It is the category of the diagnosis, and of these some are one: a wild pointer hits memory that is
not mapped in one run, and no address at all in the next. Records that are older than diagnoses are
told by their signal alone.
"""

from __future__ import annotations

import signal

from collector.diagnosis import Category
from collector.model import Cause, KilledBy, Record
from collector.signals import signal_name

BAD_POINTER = "bad-pointer"
STACK_OVERFLOW = Category.STACK_OVERFLOW.value
_NEAR_NULL = 0x10000  # bytes: what is below is a field, or an item, of nothing (mmap_min_addr)
_KERNEL = 0x80  # SI_KERNEL
_BUS_ADRERR = 2  # si_code of SIGBUS: there is no such part of the file

# What one bug is in one run or another
_ONE = {
    Category.NULL_DEREFERENCE: Category.NEAR_NULL.value,
    Category.UNMAPPED: BAD_POINTER,
    Category.USE_AFTER_UNMAP: BAD_POINTER,
    Category.FREED_MEMORY: BAD_POINTER,
    Category.NON_CANONICAL: BAD_POINTER,
    Category.NO_ACCESS: BAD_POINTER,
    Category.EXECUTE_DATA: Category.BAD_CALL.value,
}
# Of these the stack says where the process was, not what it did
_ELSEWHERE = frozenset(
    [
        *(Category.KILLED, Category.WATCHDOG, Category.OUT_OF_MEMORY, Category.EXIT_STATUS),
        *(Category.CPU_LIMIT, Category.TIMER, Category.TERMINAL, Category.EXEC_FAILED),
        Category.KERNEL,
    ]
)


def kind_of(record: Record) -> str:
    """`SIGSEGV near-null`, `SIGKILL killed`, `exit 3`."""
    if record.cause is Cause.EXIT:
        return f"exit {record.exit_code}"
    name = record.signal_name or signal_name(record.signal) or "death"
    return f"{name} {category_of(record)}"


def is_elsewhere(record: Record) -> bool:
    """Whether the stack says nothing about the cause."""
    return _category(record) in _ELSEWHERE


def category_of(record: Record) -> str:
    """One word for what happened."""
    found = _category(record)
    kind = _ONE.get(found, found.value)
    # the stack pointer need not be near the fault: a large frame, or none of its own
    deep = record.signature is not None and record.signature.cycle
    return STACK_OVERFLOW if deep and kind == BAD_POINTER else kind


def _category(record: Record) -> Category:
    if record.diagnosis is not None and record.diagnosis.category is not Category.UNKNOWN:
        return record.diagnosis.category
    if record.oom or record.cause is Cause.OOM:
        return Category.OUT_OF_MEMORY
    if record.cause is Cause.EXIT:
        return Category.EXIT_STATUS
    killer = record.killer
    if killer is not None and killer.by in _BY:
        return _BY[killer.by]
    if record.cause is Cause.KILLED:
        state = None if killer is None else killer.unit_state
        watched = state is not None and state.result == "watchdog"
        return Category.WATCHDOG if watched else Category.KILLED
    return _own_fault(record)


_BY = {
    KilledBy.CPU_LIMIT: Category.CPU_LIMIT,
    KilledBy.RT_LIMIT: Category.CPU_LIMIT,
    KilledBy.TIMER: Category.TIMER,
    KilledBy.TERMINAL: Category.TERMINAL,
    KilledBy.EXEC: Category.EXEC_FAILED,
    KilledBy.SECCOMP: Category.SECCOMP,
    KilledBy.CGROUP_KILL: Category.KILLED,
    KilledBy.PARENT_DEATH: Category.KILLED,
    KilledBy.NAMESPACE: Category.KILLED,
    KilledBy.TRACER: Category.KILLED,
}
_PLAIN: dict[int, Category] = {
    signal.SIGABRT: Category.ABORT,
    signal.SIGFPE: Category.DIVISION,
    signal.SIGILL: Category.ILLEGAL_INSTRUCTION,
    signal.SIGTRAP: Category.TRAP,
    signal.SIGSYS: Category.SECCOMP,
    signal.SIGPIPE: Category.BROKEN_PIPE,
    signal.SIGXFSZ: Category.FILE_SIZE_LIMIT,
    signal.SIGXCPU: Category.CPU_LIMIT,
}


def _own_fault(record: Record) -> Category:
    number, code = record.signal, record.si_code
    if number in (signal.SIGSEGV, signal.SIGBUS):
        if code is None:  # of a death that was only counted, or whose event was lost
            return Category.UNKNOWN
        if code <= 0:  # somebody sent it: it did so itself
            return Category.RAISED
        if number == signal.SIGBUS:
            return Category.PAST_END_OF_FILE if code == _BUS_ADRERR else Category.MISALIGNED
        if code == _KERNEL or record.si_addr is None:
            return Category.NON_CANONICAL
        if record.ip is not None and record.ip == record.si_addr:
            return Category.BAD_CALL
        return Category.NEAR_NULL if record.si_addr < _NEAR_NULL else Category.UNMAPPED
    return Category.UNKNOWN if number is None else _PLAIN.get(number, Category.UNKNOWN)
