"""Why a process died, in one sentence: its diagnosis in words.

Pure: it works on a `Record` alone, with frames or without, and says nothing that the record does
not. Names and messages come from the dead process and are hostile: `shown` makes them one line of
printable text.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

import msgspec

from collector.arch.x86_64 import is_canonical
from collector.diagnosis import Access, Category, Diagnosis, Evidence
from collector.explain import names
from collector.explain.blame import (
    THROWING,
    in_header,
    library_frame,
    passed_over,
    program_frame,
)
from collector.explain.diagnose import diagnosed, is_from_hardware
from collector.model import Cause, Fault, Frame, KilledBy, Killer, Record, SnapshotFacts
from collector.signals import signal_name

_MAX_SHOWN = 200  # characters of one name

_VERBS = {Access.READ: "read from", Access.WRITE: "wrote to", Access.EXECUTE: "jumped to"}
_FORBIDDEN = {Access.READ: "readable", Access.WRITE: "writable", Access.EXECUTE: "executable"}
_LANGUAGES = {
    Category.PYTHON_EXCEPTION: "Python exception",
    Category.RUST_PANIC: "Rust panic",
    Category.GO_PANIC: "Go panic",
}
_REMARKS = {
    Category.PROTECTION_KEY: "which its protection key does not allow",
    Category.MISALIGNED: "which is not aligned",
    Category.PAST_END_OF_FILE: "beyond the end of its mapped file",
    Category.NON_CANONICAL: "which is not canonical",
    Category.FREED_MEMORY: "by a pointer out of freed memory",
    Category.USE_AFTER_UNMAP: "which it had unmapped before",
}


def concluded(record: Record) -> Record:
    """The record with its diagnosis, and with that in words."""
    record = diagnosed(record)
    return msgspec.structs.replace(record, reason=reason(record))


def reason(record: Record) -> str:
    """One sentence, no full stop: "killed by SIGKILL from `bash` (pid 812, uid 0)"."""
    if record.snapshot is not None:
        return _snapshot(record.snapshot, record.trigger)
    found = record.diagnosis or Diagnosis()
    if found.category is Category.OUT_OF_MEMORY:
        return _out_of_memory(record)
    if record.cause is Cause.EXIT:
        return _exit(record)
    if record.signal is None:
        return "died, and it is not known of what"
    name = signal_name(record.signal)
    killer = record.killer
    if killer is not None and killer.by in names.KILLED_BY:
        return f"{name}: {names.KILLED_BY[killer.by]}" + _by(killer)
    if found.category in _ON_ITS_OWN and record.signal in names.FROM_KERNEL:
        return f"{name}: {_from_kernel(record)}"
    if record.cause is Cause.KILLED:
        return f"killed by {name} from {_sender(record)}" + _how(killer)
    return f"{name}: {_what_happened(record, found)}" + _thread(record) + _earlier_fault(record)


def _by(killer: Killer) -> str:
    """ ": `sh` (pid 12, uid 0)": whose end it was."""
    if killer.pid is None:
        return ""
    return f": `{shown(killer.comm or '')}` (pid {killer.pid}, uid {killer.uid})"


def _how(killer: Killer | None) -> str:
    """In what way, and what systemd says of it."""
    if killer is None:
        return ""
    how = ", by `cgroup.kill`" if killer.by is KilledBy.CGROUP_KILL else ""
    state = killer.unit_state
    if state is None:
        return how
    return (
        f"{how}: {names.UNIT_RESULTS.get(state.result, f'its unit ended by {shown(state.result)}')}"
    )


def _snapshot(taken: SnapshotFacts, trigger: str | None) -> str:
    """It did not die: why we looked, what was done to it, and whether it is of one instant."""
    if taken.pause_ms is not None:
        did = f"stopped for {taken.pause_ms:.1f} ms"
    elif taken.worst_ms is not None:
        did = f"no thread held longer than {taken.worst_ms:.2f} ms"
    else:
        did = "nobody stopped"
    whole = "" if taken.consistent else "; not of one instant"
    why = f"{trigger}; " if trigger else ""
    return f"{why}snapshot, {taken.mode} by {taken.method}: {did}{whole}"


def shown(name: str) -> str:
    """A hostile name as one line of at most 200 printable characters, with no backtick in it."""
    cut = name if len(name) <= _MAX_SHOWN else name[: _MAX_SHOWN - 1] + "…"
    return "".join(c if c.isprintable() and c != "`" else "?" for c in cut)


def _out_of_memory(record: Record) -> str:
    facts = []
    if record.resident_bytes is not None:
        facts.append(f"resident {record.resident_bytes >> 20} MiB")
    if record.cgroup is not None:
        facts.append(f"cgroup {shown(record.cgroup)}")
    details = f" ({', '.join(facts)})" if facts else ""
    return f"killed by the kernel's out-of-memory killer{details}"


def _exit(record: Record) -> str:
    code = "an unknown code" if record.exit_code is None else f"code {record.exit_code}"
    handled = f" after handling {_fault(record.last_fault)}" if record.last_fault else ""
    return f"exited with {code}{handled}{_said(record.diagnosis)}"


def _said(found: Diagnosis | None) -> str:
    """ ": Python exception `KeyError`: 'shop'": what a program that exited said last."""
    if found is None or found.category not in _LANGUAGES:
        return ""
    evidence = found.evidence
    kind = f" `{shown(evidence.exception)}`" if evidence.exception else ""
    message = evidence.what or evidence.message
    return f": {_LANGUAGES[found.category]}{kind}" + (f": {_printable(message)}" if message else "")


def _sender(record: Record) -> str:
    sender = record.sender
    if sender is None:
        return "an unknown process"
    name = f"`{shown(sender.comm)}`" if sender.comm is not None else "a process"
    return f"{name} (pid {sender.pid}, uid {sender.uid})"


def _fault(fault: Fault) -> str:
    return f"{signal_name(fault.signal)} at address {fault.si_addr:#x}"


def _thread(record: Record) -> str:
    if record.tid == record.pid:
        return ""
    if record.thread_name is None:
        return f", thread {record.tid}"
    return f", thread `{shown(record.thread_name)}`"


def _earlier_fault(record: Record) -> str:
    """A handled fault matters only if the process then ended itself."""
    told = record.diagnosis is not None and record.diagnosis.evidence.handled
    if record.last_fault is None or told or is_from_hardware(record):
        return ""
    return f", after handling {_fault(record.last_fault)}"


def _from_kernel(record: Record) -> str:
    """A signal that the kernel sent on its own account."""
    assert record.signal is not None
    said = names.FROM_KERNEL[record.signal]
    if record.signal in (signal.SIGPIPE, signal.SIGXFSZ):
        return said + _where(record) + _thread(record)
    return said + ("" if record.killer is not None else _thread(record))


_ON_ITS_OWN = frozenset(
    [
        *(Category.BROKEN_PIPE, Category.TIMER, Category.CPU_LIMIT, Category.FILE_SIZE_LIMIT),
        *(Category.TERMINAL, Category.KERNEL),
    ]
)


def _what_happened(record: Record, found: Diagnosis) -> str:
    describe = _IN_WORDS.get(found.category, _other)
    evidence = found.evidence
    if not evidence.handled:
        return describe(record, evidence)
    # the handler's frames lie on those of the fault that it caught
    frames, fault = record.frames or [], record.last_fault
    fell = next((n for n, frame in enumerate(frames) if frame.pc == evidence.ip), len(frames))
    as_it_fell = msgspec.structs.replace(
        record, frames=frames[fell:], si_code=record.si_code if fault is None else fault.si_code
    )
    handler = program_frame(frames[:fell])
    by = f" {_describe(handler)}" if handler else ""
    return f"{describe(as_it_fell, evidence)}, then raised by its handler{by}"


def _stack_overflow(record: Record, evidence: Evidence) -> str:
    return f"stack overflow at address {evidence.address:#x}" + _where(record)


def _non_canonical(record: Record, evidence: Evidence) -> str:
    if evidence.address is not None:
        return _accessed(record, evidence)
    what = "bus error" if record.signal == signal.SIGBUS else "general protection fault"
    return f"{what}, address unknown" + _where(record)


def _control_flow(record: Record, evidence: Evidence) -> str:
    return "control-flow protection fault" + _where(record)


def _accessed(record: Record, evidence: Evidence) -> str:
    """It used an address that cannot be used so."""
    access, at = evidence.access, "" if evidence.address is None else f" {evidence.address:#x}"
    verb = _VERBS[access] if access else "accessed"
    place = _place(record, access)
    remark = _remark(record, evidence)
    aside = (f", {remark}," if place else f", {remark}") if remark else ""
    return f"{verb} address{at}{aside}{place}"


def _remark(record: Record, evidence: Evidence) -> str:
    category = record.diagnosis.category if record.diagnosis else Category.UNKNOWN
    access, address = evidence.access, evidence.address
    if category is Category.BAD_CALL and address is not None and not is_canonical(address):
        return _REMARKS[Category.NON_CANONICAL]
    if category in (Category.WRITE_READ_ONLY, Category.EXECUTE_DATA, Category.NO_ACCESS):
        if access is None:
            return "which its mapping does not allow"
        return f"which is not {_FORBIDDEN[access]}"
    if category is Category.HARDWARE_MEMORY:
        hardware = record.si_code == names.BUS_OBJERR
        return "where the hardware failed" if hardware else "where the memory is defective"
    return _REMARKS.get(category, "")


def _arithmetic(record: Record, evidence: Evidence) -> str:
    return names.ARITHMETIC.get(record.si_code or 0, "arithmetic error") + _where(record)


def _illegal(record: Record, evidence: Evidence) -> str:
    return "executed an illegal instruction" + _where(record)


def _privileged(record: Record, evidence: Evidence) -> str:
    return "executed a privileged instruction" + _where(record)


def _trap(record: Record, evidence: Evidence) -> str:
    return "hit a breakpoint or trap instruction" + _where(record)


def _refused_call(record: Record, evidence: Evidence) -> str:
    number = "a system call" if evidence.syscall is None else f"system call {evidence.syscall}"
    if record.si_code == names.SYS_SECCOMP:
        return f"its seccomp filter refused {number}" + _where(record)
    return f"{number} was refused" + _where(record)


def _gave_up(record: Record, evidence: Evidence) -> str:
    """It aborted, and may have said why."""
    caller = program_frame(record.frames or ())
    if evidence.message:
        return _printable(evidence.message) + (f", in {_describe(caller)}" if caller else "")
    called_from = f" called from {_describe(caller)}" if caller else ""
    functions = {frame.function or "" for frame in record.frames or ()}
    if any("terminate" in function for function in functions):
        return "std::terminate()" + (called_from or " called")
    if "abort" in functions:
        return "abort()" + (called_from or " called")
    return _other(record, evidence)


def _printable(message: str) -> str:
    """What a program said, as one line without a full stop."""
    line = " ".join(message.split())
    return "".join(c if c.isprintable() else "?" for c in line[:_MAX_SHOWN]).rstrip(".")


def _uncaught(record: Record, evidence: Evidence) -> str:
    """From the frames that lie on the throwing one: a handler of the program's may be above it."""
    frames = record.frames or []
    threw = next((n for n, frame in enumerate(frames) if frame.function in THROWING), -1)
    caller = program_frame(frames[threw + 1 :])
    called = library_frame(frames, caller) if caller else None
    kind = f" `{shown(evidence.exception)}`" if evidence.exception else ""
    what = f": {_printable(evidence.what)}" if evidence.what else ""
    thrown = f", thrown from {_describe(caller)}" if caller else ""
    inside = f", in {_describe(called)}" if called else ""
    return f"uncaught C++ exception{kind}{what}{thrown}{inside}"


def _panic(record: Record, evidence: Evidence) -> str:
    category = record.diagnosis.category if record.diagnosis else Category.RUST_PANIC
    caller = program_frame(record.frames or ())
    said = f": {_printable(evidence.message)}" if evidence.message else ""
    where = f"{',' if said else ''} in {_describe(caller)}" if caller else ""
    return f"{_LANGUAGES[category]}{said}{where}"


def _other(record: Record, evidence: Evidence) -> str:
    if is_from_hardware(record):
        code = names.code_name(record.signal or 0, record.si_code or 0) or f"code {record.si_code}"
        return f"sent by the kernel ({code})" + _where(record)
    if record.si_code is None and record.sender is None:
        return "the kernel does not say why" + _where(record)
    return "raised by the process itself" + _called_from(record.frames or (), "from")


_IN_WORDS: dict[Category, Callable[[Record, Evidence], str]] = {
    Category.STACK_OVERFLOW: _stack_overflow,
    Category.NON_CANONICAL: _non_canonical,
    Category.CONTROL_FLOW: _control_flow,
    **dict.fromkeys(
        (
            *(Category.NULL_DEREFERENCE, Category.NEAR_NULL, Category.BAD_CALL),
            *(Category.UNMAPPED, Category.USE_AFTER_UNMAP, Category.FREED_MEMORY),
            *(Category.EXECUTE_DATA, Category.WRITE_READ_ONLY, Category.NO_ACCESS),
            *(Category.PROTECTION_KEY, Category.PAST_END_OF_FILE, Category.MISALIGNED),
            Category.HARDWARE_MEMORY,
        ),
        _accessed,
    ),
    Category.DIVISION: _arithmetic,
    Category.ARITHMETIC: _arithmetic,
    Category.ILLEGAL_INSTRUCTION: _illegal,
    Category.PRIVILEGED_INSTRUCTION: _privileged,
    Category.TRAP: _trap,
    Category.SECCOMP: _refused_call,
    Category.REFUSED_CALL: _refused_call,
    **dict.fromkeys(
        (
            *(Category.ASSERTION, Category.ABORT, Category.HEAP_CORRUPTION),
            Category.BUFFER_OVERFLOW,
        ),
        _gave_up,
    ),
    Category.UNCAUGHT_EXCEPTION: _uncaught,
    Category.RUST_PANIC: _panic,
    Category.GO_PANIC: _panic,
}


def _place(record: Record, access: Access | None) -> str:
    """Where it happened; for a jump to nowhere the frame that jumped."""
    frames = record.frames or []
    if access is Access.EXECUTE and frames and frames[0].function is None:
        return _called_from(frames[1:], "from")
    return _where(record)


def _where(record: Record) -> str:
    """ " in `inner` (victim.c:10)"; inside a library of the runtime, also who called it."""
    frames = record.frames or []
    if not frames:
        return ""
    place = f" in {_describe(frames[0])}"
    passed = passed_over(frames)(frames[0])
    return place + (_called_from(frames[1:], "called from", ",") if passed else "")


def _called_from(frames: Sequence[Frame], word: str, comma: str = "") -> str:
    caller = program_frame(frames)
    return f"{comma} {word} {_describe(caller)}" if caller else ""


def _describe(frame: Frame) -> str:
    own_line = frame.inline or not in_header(frame)
    if frame.file is not None and frame.line is not None and own_line:
        place = f"{shown(PurePosixPath(frame.file).name)}:{frame.line}"
    elif frame.module is not None:
        place = shown(PurePosixPath(frame.module).name)
    else:
        place = ""
    if frame.function is not None:
        return f"`{shown(frame.function)}`" + (f" ({place})" if place else "")
    return f"{place or 'unknown code'} at {frame.pc:#x}"
