"""Why a process died, in one sentence.

Pure: it works on a `Record` alone, with frames or without, and says nothing that the record does
not. Names and messages come from the dead process and are hostile: `shown` makes them one line of
printable text.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import PurePosixPath

from collector.arch.x86_64 import PAGE
from collector.explain import names
from collector.model import (
    SIGNAL_FRAME,
    Access,
    Cause,
    Fault,
    Frame,
    KilledBy,
    Killer,
    Record,
    SnapshotFacts,
)
from collector.siginfo import SI_KERNEL
from collector.signals import signal_name

_MAX_SHOWN = 200  # characters of one name

# Objects that carry out what the program asked for: a reader wants the frame that called them.
_RUNTIME = (
    "libc.so",
    "libc-",
    "libpthread",
    "ld-linux",
    "libstdc++",
    "libgcc_s",
    "libc++",
    "[vdso]",
)
# The same for programs that are linked statically.
_RUNTIME_FUNCTIONS = frozenset(
    [
        *("raise", "abort", "gsignal", "pthread_kill", "__pthread_kill"),
        *("__pthread_kill_implementation", "__libc_message", "malloc_printerr"),
        *("_int_free", "free", "__libc_free", "cfree"),
        *("__assert_fail", "__assert_fail_base", "__fortify_fail", "__stack_chk_fail"),
        *("__cxa_throw", "__cxa_rethrow"),
        SIGNAL_FRAME,
    ]
)
# Where a backtrace that was not cut ends: the entry of a program, or of a thread of its own.
OUTERMOST = frozenset(["_start", "__clone", "clone", "__clone3", "clone3"])
_VERBS = {Access.READ: "read from", Access.WRITE: "wrote to", Access.EXECUTE: "jumped to"}
_FORBIDDEN = {Access.READ: "readable", Access.WRITE: "writable", Access.EXECUTE: "executable"}


def reason(record: Record) -> str:
    """One sentence, no full stop: "killed by SIGKILL from `bash` (pid 812, uid 0)"."""
    if record.snapshot is not None:
        return _snapshot(record.snapshot, record.trigger)
    if record.oom or record.cause is Cause.OOM:
        return _out_of_memory(record)
    if record.cause is Cause.EXIT:
        return _exit(record)
    if record.signal is None:
        return "died, and it is not known of what"
    name = signal_name(record.signal)
    killer = record.killer
    if killer is not None and killer.by in names.KILLED_BY:
        return f"{name}: {names.KILLED_BY[killer.by]}" + _by(killer)
    if killer is not None and killer.by is KilledBy.TIMER and record.signal in names.FROM_KERNEL:
        return f"{name}: {names.FROM_KERNEL[record.signal]}"
    if record.si_code == SI_KERNEL and record.signal in names.FROM_KERNEL:
        return f"{name}: {names.FROM_KERNEL[record.signal]}" + _thread(record)
    if record.cause is Cause.KILLED:
        return f"killed by {name} from {_sender(record)}" + _how(killer)
    return f"{name}: {_what_happened(record)}" + _thread(record) + _earlier_fault(record)


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
    return f"exited with {code}{handled}"


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
    if record.last_fault is None or _from_hardware(record):
        return ""
    return f", after handling {_fault(record.last_fault)}"


def _from_hardware(record: Record) -> bool:
    return record.si_code is not None and record.si_code > 0


def _what_happened(record: Record) -> str:
    by_signal = {
        signal.SIGSEGV: _segv,
        signal.SIGBUS: _bus,
        signal.SIGFPE: _arithmetic,
        signal.SIGILL: _illegal,
        signal.SIGTRAP: _trap,
        signal.SIGSYS: _refused_call,
    }
    assert record.signal is not None
    if record.signal == signal.SIGABRT:
        return _abort(record)
    if _from_hardware(record):
        describe = by_signal.get(signal.Signals(record.signal)) if record.signal < 32 else None
        if describe is not None:
            return describe(record)
        code = names.code_name(record.signal, record.si_code or 0) or f"code {record.si_code}"
        return f"sent by the kernel ({code})" + _where(record)
    # the kernel's send_sig() makes these two look as if the process had sent them itself
    if record.signal in (signal.SIGPIPE, signal.SIGXFSZ) and record.si_code in (
        None,
        names.SI_USER,
    ):
        return names.FROM_KERNEL[record.signal] + _where(record)
    if record.si_code is None and record.sender is None:
        return "the kernel does not say why" + _where(record)
    return "raised by the process itself" + _called_from(record.frames or (), "from")


def _segv(record: Record) -> str:
    if record.si_code == SI_KERNEL or record.si_addr is None:
        return "general protection fault, address unknown" + _where(record)
    if record.si_code == names.SEGV_CPERR:
        return "control-flow protection fault" + _where(record)
    access = _access(record)
    if _is_stack_overflow(record, access):
        return f"stack overflow at address {record.si_addr:#x}" + _where(record)
    return _accessed(record, access, _refusal(record.si_code, access))


def _refusal(code: int | None, access: Access | None) -> str:
    if code == names.SEGV_ACCERR:
        if access is None:
            return "which its mapping does not allow"
        return f"which is not {_FORBIDDEN[access]}"
    if code == names.SEGV_PKUERR:
        return "which its protection key does not allow"
    if code == names.SEGV_BNDERR:
        return "which is out of bounds"
    return ""


def _access(record: Record) -> Access | None:
    if record.fault_access is None and record.ip is not None and record.ip == record.si_addr:
        return Access.EXECUTE
    return record.fault_access


def _accessed(record: Record, access: Access | None, remark: str) -> str:
    verb = _VERBS[access] if access else "accessed"
    place = _place(record, access)
    aside = (f", {remark}," if place else f", {remark}") if remark else ""
    return f"{verb} address {record.si_addr:#x}{aside}{place}"


def _is_stack_overflow(record: Record, access: Access | None) -> bool:
    """The page that the stack pointer is in, or the one below it, cannot be accessed."""
    if record.sp is None or record.si_addr is None or access is Access.EXECUTE:
        return False
    if record.si_code not in (names.SEGV_MAPERR, names.SEGV_ACCERR) or record.sp < PAGE:
        return False
    return record.sp - PAGE <= record.si_addr < (record.sp | (PAGE - 1)) + 1


def _bus(record: Record) -> str:
    if record.si_addr is None:
        return "bus error, address unknown" + _where(record)
    access = _access(record)
    remark = {
        names.BUS_ADRALN: "which is not aligned",
        names.BUS_ADRERR: "beyond the end of its mapped file",
        names.BUS_OBJERR: "where the hardware failed",
        names.BUS_MCEERR_AR: "where the memory is defective",
        names.BUS_MCEERR_AO: "where the memory is defective",
    }.get(record.si_code or 0, "")
    return _accessed(record, access, remark)


def _arithmetic(record: Record) -> str:
    return names.ARITHMETIC.get(record.si_code or 0, "arithmetic error") + _where(record)


def _illegal(record: Record) -> str:
    return "executed an illegal instruction" + _where(record)


def _trap(record: Record) -> str:
    return "hit a breakpoint or trap instruction" + _where(record)


def _refused_call(record: Record) -> str:
    number = "a system call" if record.syscall is None else f"system call {record.syscall}"
    if record.si_code == names.SYS_SECCOMP:
        return f"its seccomp filter refused {number}" + _where(record)
    return f"{number} was refused" + _where(record)


def _abort(record: Record) -> str:
    functions = {frame.function or "" for frame in record.frames or ()}
    caller = _program_frame(record.frames or ())
    called_from = f" called from {_describe(caller)}" if caller else ""
    if record.abort_message:
        message = " ".join(record.abort_message.split())
        said = "".join(c if c.isprintable() else "?" for c in message[:_MAX_SHOWN]).rstrip(".")
        return said + (f", in {_describe(caller)}" if caller else "")
    if {"__cxa_throw", "__cxa_rethrow"} & functions:
        thrown = f", thrown from {_describe(caller)}" if caller else ""
        return f"uncaught C++ exception{thrown}"
    if any("terminate" in function for function in functions):
        return "std::terminate()" + (called_from or " called")
    if "abort" in functions:
        return "abort()" + (called_from or " called")
    if record.si_code is None and record.sender is None:
        return "the kernel does not say why" + _where(record)
    return "raised by the process itself" + _called_from(record.frames or (), "from")


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
    return place + (_called_from(frames[1:], "called from", ",") if _is_runtime(frames[0]) else "")


def _called_from(frames: Sequence[Frame], word: str, comma: str = "") -> str:
    caller = _program_frame(frames)
    return f"{comma} {word} {_describe(caller)}" if caller else ""


def _program_frame(frames: Sequence[Frame]) -> Frame | None:
    """The innermost frame of the program's own; generated code (a JIT's) has nothing to show."""
    return next((f for f in frames if (f.function or f.module) and not _is_runtime(f)), None)


def _is_runtime(frame: Frame) -> bool:
    if frame.function in _RUNTIME_FUNCTIONS:
        return True
    return frame.module is not None and PurePosixPath(frame.module).name.startswith(_RUNTIME)


def _describe(frame: Frame) -> str:
    if frame.file is not None and frame.line is not None:
        place = f"{shown(PurePosixPath(frame.file).name)}:{frame.line}"
    elif frame.module is not None:
        place = shown(PurePosixPath(frame.module).name)
    else:
        place = ""
    if frame.function is not None:
        return f"`{shown(frame.function)}`" + (f" ({place})" if place else "")
    return f"{place or 'unknown code'} at {frame.pc:#x}"
