"""What a process died of, as a category with its evidence. Pure: it works on a `Record` alone.

The kernel's codes come first, then what the program said of itself, then the names of the functions
that it was in. `confidence` says which of these it was.
"""

from __future__ import annotations

import signal
from typing import Any

import msgspec

from collector.arch.x86_64 import PAGE
from collector.diagnosis import Access, Category, Confidence, Diagnosis, Evidence
from collector.explain import names
from collector.explain.gave_up import gave_up, panicked
from collector.explain.last_words import last_words
from collector.model import Cause, Fault, KilledBy, Record
from collector.siginfo import SI_KERNEL

_NEAR = 0x10000  # below it nothing is ever mapped: vm.mmap_min_addr
_HIGHEST = 1 << 64
_CERTAIN, _LIKELY, _GUESS = Confidence.CERTAIN, Confidence.LIKELY, Confidence.GUESS

_Found = tuple[Category, Confidence]

_ENDED_BY = {
    KilledBy.PARENT_DEATH: Category.KILLED,
    KilledBy.NAMESPACE: Category.KILLED,
    KilledBy.TRACER: Category.KILLED,
    KilledBy.CPU_LIMIT: Category.CPU_LIMIT,
    KilledBy.RT_LIMIT: Category.CPU_LIMIT,
    KilledBy.EXEC: Category.EXEC_FAILED,
    KilledBy.SECCOMP: Category.SECCOMP,
}
_KERNEL_SENT = {
    signal.SIGPIPE: Category.BROKEN_PIPE,
    signal.SIGALRM: Category.TIMER,
    signal.SIGVTALRM: Category.TIMER,
    signal.SIGPROF: Category.TIMER,
    signal.SIGXCPU: Category.CPU_LIMIT,
    signal.SIGXFSZ: Category.FILE_SIZE_LIMIT,
    signal.SIGHUP: Category.TERMINAL,
    signal.SIGINT: Category.TERMINAL,
    signal.SIGQUIT: Category.TERMINAL,
}
_BUS = {
    names.BUS_ADRALN: Category.MISALIGNED,
    names.BUS_ADRERR: Category.PAST_END_OF_FILE,
    names.BUS_OBJERR: Category.HARDWARE_MEMORY,
    names.BUS_MCEERR_AR: Category.HARDWARE_MEMORY,
    names.BUS_MCEERR_AO: Category.HARDWARE_MEMORY,
}
_EXIT_CODES = {
    Category.PYTHON_EXCEPTION: 1,
    Category.RUST_PANIC: 101,
    Category.GO_PANIC: 2,
}
_DIVIDED = (1, 3)  # FPE_INTDIV, FPE_FLTDIV


class _Faulted(msgspec.Struct, frozen=True, kw_only=True):
    """A fault of the hardware as the kernel tells it."""

    signal: int
    code: int
    address: int | None
    access: Access | None
    sp: int | None


def diagnosed(record: Record) -> Record:
    """The record with its diagnosis, if it is of a death."""
    if record.snapshot is not None or record.cause is Cause.SNAPSHOT:
        return msgspec.structs.replace(record, diagnosis=None)
    return msgspec.structs.replace(record, diagnosis=diagnose(record))


def diagnose(record: Record) -> Diagnosis:
    """What it died of. What its core said of the fault is in `record.diagnosis` already."""
    known = Evidence() if record.diagnosis is None else record.diagnosis.evidence
    (category, confidence), more = _diagnose(record)
    more = {name: value for name, value in more.items() if value is not None}
    return Diagnosis(
        category=category,
        confidence=confidence,
        evidence=msgspec.structs.replace(known, **more),
    )


def _diagnose(record: Record) -> tuple[_Found, dict[str, Any]]:
    if record.oom or record.cause is Cause.OOM:
        return (Category.OUT_OF_MEMORY, _CERTAIN), _memory(record)
    if record.cause is Cause.EXIT:
        return _exited(record)
    if record.signal is None:
        return (Category.UNKNOWN, _GUESS), {}
    if (ended := _ended_by_kernel(record)) is not None:
        return (ended, _CERTAIN), {} if record.killer is None else _killer(record)
    if record.cause is Cause.KILLED:
        return _killed(record)
    return _fell(record)


def _exited(record: Record) -> tuple[_Found, dict[str, Any]]:
    """With the status that a language's runtime has for what it said last, or with another."""
    more: dict[str, Any] = {"exit_code": record.exit_code}
    said = last_words(record.logs, record.pid)
    if said is None or _EXIT_CODES[said.category] != record.exit_code:
        return (Category.EXIT_STATUS, _CERTAIN), more
    if said.category is Category.PYTHON_EXCEPTION:
        return (said.category, _LIKELY), more | {"exception": said.exception, "what": said.message}
    return (said.category, _LIKELY), more | {"message": said.message}


def _memory(record: Record) -> dict[str, Any]:
    facts = record.oom_facts
    if facts is None:
        return {"resident": record.resident_bytes, "cgroup": record.cgroup}
    return {
        "resident": record.resident_bytes,
        "cgroup": facts.cgroup if facts.limit is not None else None,
        "limit": facts.limit,
        "usage": facts.usage,
    }


def _ended_by_kernel(record: Record) -> Category | None:
    """The kernel ended it, on its own account or in the name of another."""
    by = None if record.killer is None else record.killer.by
    if by is KilledBy.SECCOMP and is_from_hardware(record):
        return None  # it says which call that was
    if by is not None and by in _ENDED_BY:
        return _ENDED_BY[by]
    own_account = record.si_code == SI_KERNEL or by is KilledBy.TIMER
    # the kernel's send_sig() makes these two look as if the process had sent them itself
    if record.signal in (signal.SIGPIPE, signal.SIGXFSZ) and record.cause is not Cause.KILLED:
        own_account = own_account or record.si_code in (None, names.SI_USER)
    if own_account and record.signal in names.FROM_KERNEL:
        return _KERNEL_SENT.get(signal.Signals(record.signal), Category.KERNEL)
    return None


def _killer(record: Record) -> dict[str, Any]:
    killer, sender = record.killer, record.sender
    if killer is None:
        if sender is None:
            return {}
        return {"pid": sender.pid, "comm": sender.comm, "uid": sender.uid}
    who: Any = killer if killer.pid is not None or sender is None else sender
    return {
        "by": killer.by.value,
        "pid": who.pid,
        "comm": who.comm,
        "uid": who.uid,
        "unit_result": None if killer.unit_state is None else killer.unit_state.result,
        "syscall": record.syscall if killer.by is KilledBy.SECCOMP else None,
    }


def _killed(record: Record) -> tuple[_Found, dict[str, Any]]:
    more = _killer(record)
    if more.get("unit_result") == "watchdog":
        return (Category.WATCHDOG, _CERTAIN), more
    return (Category.KILLED, _CERTAIN if more else _LIKELY), more


def _fell(record: Record) -> tuple[_Found, dict[str, Any]]:
    """By a fault, or by a signal that it sent itself."""
    more: dict[str, Any] = {"ip": record.ip, "tid": record.tid, "thread": record.thread_name}
    if is_from_hardware(record) and record.signal != signal.SIGABRT:
        if (panic := panicked(record.frames or ())) is not None:
            return (panic, _LIKELY), more
        assert record.signal is not None
        faulted = _Faulted(
            signal=record.signal,
            code=record.si_code or 0,
            address=record.si_addr,
            access=access_of(record),
            sp=record.sp,
        )
        return _fault(record, faulted, more)
    if (first := raised_again(record)) is not None:
        more |= {"signal": first.signal, "handled": True, "ip": first.ip, "tid": first.tid}
        handled = _Faulted(
            signal=first.signal,
            code=first.si_code,
            address=first.si_addr,
            access=Access.EXECUTE if first.ip == first.si_addr else None,
            sp=first.sp,
        )
        return _fault(record, handled, more)
    if record.abort_message is not None:
        more["message"] = record.abort_message
    found = gave_up(record)
    said = last_words(record.logs, record.pid)
    if said is not None and said.category is found[0]:
        more["message"] = said.message  # where it panicked is in the frames
    return found, more


def raised_again(record: Record) -> Fault | None:
    """The fault that a handler of the process caught before it raised the same signal itself."""
    first = record.last_fault
    if first is None or is_from_hardware(record) or first.signal != record.signal:
        return None
    return first if first.tid == record.tid else None


def _fault(
    record: Record, faulted: _Faulted, more: dict[str, Any]
) -> tuple[_Found, dict[str, Any]]:
    described: dict[str, Any] = {}
    if faulted.signal in (signal.SIGSEGV, signal.SIGBUS):
        known = faulted.address if faulted.code != SI_KERNEL else None
        described = {"address": known, "access": faulted.access}
    found = _by_core(record) or _category(record, faulted)
    if found[0] is Category.NEAR_NULL and faulted.address is not None:
        described["offset"] = _offset(faulted.address)
    if found[0] in (Category.SECCOMP, Category.REFUSED_CALL):
        described["syscall"] = record.syscall
    return found, more | described


def _by_core(record: Record) -> _Found | None:
    """What the core alone shows; not of a fault that a handler caught before."""
    known = record.diagnosis
    if known is None or known.category is Category.UNKNOWN or not is_from_hardware(record):
        return None
    return known.category, known.confidence


def _category(record: Record, faulted: _Faulted) -> _Found:
    number, code = faulted.signal, faulted.code
    if number == signal.SIGSEGV:
        return _segv(record, faulted)
    if number == signal.SIGBUS:
        return _bus(faulted)
    if number == signal.SIGFPE:
        return (Category.DIVISION if code in _DIVIDED else Category.ARITHMETIC), _CERTAIN
    if number == signal.SIGILL:
        return Category.ILLEGAL_INSTRUCTION, _CERTAIN
    if number == signal.SIGTRAP:
        return Category.TRAP, _CERTAIN
    if number == signal.SIGSYS:
        refused = Category.SECCOMP if code == names.SYS_SECCOMP else Category.REFUSED_CALL
        return refused, _CERTAIN
    return Category.KERNEL, _CERTAIN


def _segv(record: Record, faulted: _Faulted) -> _Found:
    code, address, access = faulted.code, faulted.address, faulted.access
    if code == SI_KERNEL or address is None:
        return Category.NON_CANONICAL, _LIKELY
    if code == names.SEGV_CPERR:
        return Category.CONTROL_FLOW, _CERTAIN
    if code == names.SEGV_PKUERR:
        return Category.PROTECTION_KEY, _CERTAIN
    if _is_stack_overflow(faulted):
        return Category.STACK_OVERFLOW, _LIKELY
    if code == names.SEGV_ACCERR:
        refused = {Access.EXECUTE: Category.EXECUTE_DATA, Access.WRITE: Category.WRITE_READ_ONLY}
        if access is None:
            return Category.NO_ACCESS, _GUESS
        return refused.get(access, Category.NO_ACCESS), _CERTAIN
    if access is Access.EXECUTE:
        return Category.BAD_CALL, _CERTAIN
    if address == 0:
        return Category.NULL_DEREFERENCE, _CERTAIN
    if abs(_offset(address)) < _NEAR:
        return Category.NEAR_NULL, _LIKELY
    calls = record.calls
    if calls is not None and any(start <= address < end for start, end in calls.unmapped):
        return Category.USE_AFTER_UNMAP, _CERTAIN
    return Category.UNMAPPED, _CERTAIN


def _offset(address: int) -> int:
    """From a null pointer; those just below it are at the end of the address space."""
    return address if address < _HIGHEST >> 1 else address - _HIGHEST


def _bus(faulted: _Faulted) -> _Found:
    if faulted.code == SI_KERNEL or faulted.address is None:
        return Category.NON_CANONICAL, _LIKELY  # by way of the stack's registers
    category = _BUS.get(faulted.code)
    return (Category.KERNEL, _GUESS) if category is None else (category, _CERTAIN)


def _is_stack_overflow(faulted: _Faulted) -> bool:
    """The page that the stack pointer is in, or the one below it, cannot be accessed."""
    sp, address = faulted.sp, faulted.address
    if sp is None or address is None or faulted.access is Access.EXECUTE:
        return False
    if faulted.code not in (names.SEGV_MAPERR, names.SEGV_ACCERR) or sp < PAGE:
        return False
    return sp - PAGE <= address < (sp | (PAGE - 1)) + 1


def access_of(record: Record) -> Access | None:
    """What was done to the address of a fault."""
    if record.fault_access is None and record.ip is not None and record.ip == record.si_addr:
        return Access.EXECUTE
    return record.fault_access


def is_from_hardware(record: Record) -> bool:
    return record.si_code is not None and record.si_code > 0
