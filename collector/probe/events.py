"""Ring records into `collector.model` events; the mirror of bpf/coreward.h.

Strict: a record of another type or size than the header file says is a ProbeError, for it means
that program and reader are not of the same build. Names come from hostile processes: bytes that
are not UTF-8 become \\xNN escapes, control characters stay as they are.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from collector import siginfo
from collector.arch.x86_64 import IP, PAGE
from collector.errors import ProbeError
from collector.linux.memory import NO_LIMIT
from collector.model import (
    Access,
    CrashSite,
    Event,
    Exit,
    FatalSignal,
    Fault,
    Identity,
    MappedObject,
    OomLevel,
    OomVictim,
    ProcessKey,
    Sender,
    Sending,
    SentFlag,
    StackPage,
)

FORMAT = 8  # CW_FORMAT
STACK_PAGES = 8
SIGINFO_USER = 128  # sizeof(siginfo_t)
TOLD_INFO, TOLD_CORE_BYTE = 1, 2  # enum cw_told
TRAP_PAGE_FAULT = 14  # <asm/trapnr.h>
ERROR_WRITE, ERROR_FETCH = 1 << 1, 1 << 4  # X86_PF_WRITE, X86_PF_INSTR <asm/trap_pf.h>
BUILD_ID_VALID = 1  # enum bpf_stack_build_id_status
# enum cw_event_type
TYPE_FATAL, TYPE_EXIT, TYPE_OOM, TYPE_MAPPED, TYPE_SIGNAL, TYPE_KILLER = 1, 2, 3, 4, 5, 6
VM_EXEC = 0x4  # <linux/mm.h>

WHO = struct.Struct("<QQ7Ii16s768s")  # struct cw_who
SENDER = struct.Struct("<QIIiI16s")  # struct cw_sender
FAULT = struct.Struct("<6QIiiI")  # struct cw_fault
HEAD = struct.Struct("<IIQ")  # the head of struct cw_event
EVENT_BYTES = HEAD.size + WHO.size + SENDER.size + FAULT.size
# enum cw_unmapped, in words for the record
UNMAPPED = {
    1: "its mappings were not told: too many deaths at a time",
    2: "more objects are mapped than BPF tells of one process",
}
OOM = struct.Struct("<II")  # struct cw_oom behind its event
OOM_LEVELS = 16
OOM_LEVEL = struct.Struct("<4Q")  # struct cw_oom_level
EXIT = struct.Struct("<IIII")  # struct cw_exit behind its event
SIGNAL = struct.Struct("<iI16s48s27QIIi20sQQQ")  # struct cw_signal behind its event
MAPPED = struct.Struct("<IIQQIi3QII768s")  # struct cw_mapped
KILLER = struct.Struct("<IIQQIiiIQ16s")  # struct cw_killer before its `who`
ARGUMENTS = struct.Struct("<iI512s")  # and behind it
KILLER_BYTES = KILLER.size + WHO.size + ARGUMENTS.size
SIGNAL_BYTES = EVENT_BYTES + SIGNAL.size
FATAL_BYTES = SIGNAL_BYTES + STACK_PAGES * PAGE
SIZES = {
    TYPE_FATAL: FATAL_BYTES,
    TYPE_EXIT: EVENT_BYTES + EXIT.size,
    TYPE_OOM: EVENT_BYTES + OOM.size + OOM_LEVELS * OOM_LEVEL.size,
    TYPE_SIGNAL: SIGNAL_BYTES,
}


class _Common(NamedTuple):
    """What all records begin with."""

    time_ns: int
    who: Identity
    sender: Sender | None
    fault: Fault | None


def text(raw: bytes) -> str:
    """A C string of a kernel buffer."""
    return raw.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


def path_of(raw: bytes) -> str:
    """The path whose components, the last one first, are in `raw`, each with a zero behind."""
    names = raw.split(b"\0")[-2::-1]
    return "/" + b"/".join(names).decode("utf-8", "backslashreplace")


def identity(record: bytes, at: int) -> Identity:
    """A struct cw_who that is at an offset. ProbeError if it is damaged."""
    fields = WHO.unpack_from(record, at)
    start, cgroup, pid, tid, ns_pid, ns_tid, ppid, uid, gid, exe_len, comm, exe = fields
    if exe_len > len(exe):
        raise ProbeError(f"a record of pid {pid} claims a path of {exe_len} bytes")
    return Identity(
        key=ProcessKey(pid, start),
        tid=tid,
        ns_pid=ns_pid,
        ns_tid=ns_tid,
        ppid=ppid,
        comm=text(comm),
        uid=uid,
        gid=gid,
        cgroup_id=cgroup,
        exe=path_of(exe[:exe_len]) if exe_len > 0 else None,
    )


def sender(record: bytes, at: int) -> Sender | None:
    """A struct cw_sender that is at an offset."""
    _target, pid, uid, signal, _, comm = SENDER.unpack_from(record, at)
    return Sender(pid=pid, comm=text(comm), uid=uid) if signal else None


def _fault(record: bytes) -> Fault | None:
    fields = FAULT.unpack_from(record, HEAD.size + WHO.size + SENDER.size)
    _start, _exec, time_ns, address, ip, sp, tid, signal, code, _ = fields
    if not time_ns:
        return None
    return Fault(
        time_ns=time_ns, tid=tid, signal=signal, si_code=code, si_addr=address, ip=ip, sp=sp
    )


def _site(status: int, build_id: bytes, offset: int) -> CrashSite | None:
    if status != BUILD_ID_VALID:
        return None
    # The kernel pads shorter build-ids (16: MD5 or UUID; 8: fast) with zeros.
    for length in (8, 16):
        if not any(build_id[length:]):
            build_id = build_id[:length]
            break
    return CrashSite(build_id=build_id.hex(), offset=offset)


def _access(trap: int, error: int) -> Access | None:
    if trap != TRAP_PAGE_FAULT:
        return None
    if error & ERROR_FETCH:
        return Access.EXECUTE
    return Access.WRITE if error & ERROR_WRITE else Access.READ


def _fatal(common: _Common, record: bytes) -> FatalSignal:
    fields = SIGNAL.unpack_from(record, EVENT_BYTES)
    signal, told_of, thread_comm, info = fields[:4]
    has_info = told_of & TOLD_INFO
    trap, trap_error, status, build_id, offset, base, valid = fields[31:]
    told = siginfo.decode(info) if has_info else None
    is_fault = told is not None and told.address is not None
    is_call = is_fault and told is not None and told.address == fields[4 + IP]
    stack = SIGNAL_BYTES
    return FatalSignal(
        who=common.who,
        time_ns=common.time_ns,
        signal=signal,
        si_code=told.code if told else None,
        si_addr=told.address if told else None,
        siginfo=info.ljust(SIGINFO_USER, b"\0") if has_info else b"",
        sender=common.sender,
        regs=tuple(fields[4:31]),
        stack=tuple(
            StackPage(
                address=base + page * PAGE,
                data=record[stack + page * PAGE : stack + (page + 1) * PAGE],
            )
            for page in range(STACK_PAGES)
            if valid >> page & 1
        ),
        # where there is no code, the kernel takes the next mapping for it
        site=None if is_call else _site(status, build_id, offset),
        last_fault=common.fault,
        thread_name=text(thread_comm),
        fault_access=_access(trap, trap_error) if is_fault else None,
        core_byte=bool(told_of & TOLD_CORE_BYTE),
    )


class Mapped(NamedTuple):
    """An object of a process whose `Exit` is still to come; not an event of its own."""

    key: ProcessKey
    found: MappedObject | None  # None: its path could not be told


def _mapped(record: bytes) -> Mapped:
    if len(record) != MAPPED.size:
        raise ProbeError(f"a record of a mapping with {len(record)} bytes")
    fields = MAPPED.unpack(record)
    _, _, _, start_ns, pid, path_len, start, end, offset, vm_flags, _, path = fields
    if path_len > len(path):
        raise ProbeError(f"a record of pid {pid} claims a path of {path_len} bytes")
    found = MappedObject(
        start=start,
        end=end,
        offset=offset,
        executable=bool(vm_flags & VM_EXEC),
        path=path_of(path[:path_len]),
    )
    return Mapped(ProcessKey(pid, start_ns), found if path_len > 0 else None)


def _levels(record: bytes) -> tuple[OomLevel, ...]:
    """The memory cgroups above the victim, its own first."""
    count, _ = OOM.unpack_from(record, EVENT_BYTES)
    if count > OOM_LEVELS:
        raise ProbeError(f"a record of an OOM kill claims {count} levels")
    begin = EVENT_BYTES + OOM.size
    found = []
    for at in range(begin, begin + count * OOM_LEVEL.size, OOM_LEVEL.size):
        cgroup_id, usage, limit, failcnt = OOM_LEVEL.unpack_from(record, at)
        # without a limit it is LONG_MAX in pages
        found.append(
            OomLevel(
                cgroup_id=cgroup_id,
                usage=usage * PAGE,
                limit=limit * PAGE if limit * PAGE < NO_LIMIT else None,
                failcnt=failcnt,
            )
        )
    return tuple(found)


class Sent(NamedTuple):
    """Who sent the fatal signal of a process whose `FatalSignal` is still to come."""

    key: ProcessKey
    sending: Sending


def _sent(record: bytes) -> Sent:
    if len(record) != KILLER_BYTES:
        raise ProbeError(f"a record of a killer with {len(record)} bytes")
    fields = KILLER.unpack_from(record)
    _, _, _, target_start, target, signal, code, flags, parent_start, parent_comm = fields
    who = identity(record, KILLER.size)
    length, size, arguments = ARGUMENTS.unpack_from(record, KILLER.size + WHO.size)
    if length > len(arguments):
        raise ProbeError(f"a record of pid {target} claims arguments of {length} bytes")
    sending = Sending(
        who=who,
        signal=signal,
        code=code,
        flags=SentFlag(flags),
        parent=ProcessKey(who.ppid, parent_start),
        parent_comm=text(parent_comm),
        arguments=arguments[:length] if length >= 0 else None,
        arguments_size=size,
    )
    return Sent(ProcessKey(target, target_start), sending)


def decode(record: bytes) -> Event | Mapped | Sent:
    """One ring record. ProbeError if it is not one of bpf/coreward.h."""
    kind = HEAD.unpack_from(record)[0] if len(record) >= HEAD.size else None
    if kind == TYPE_MAPPED:
        return _mapped(record)
    if kind == TYPE_KILLER:
        return _sent(record)
    if len(record) < EVENT_BYTES:
        raise ProbeError(f"a record of {len(record)} bytes is too short for any event")
    kind, size, time_ns = HEAD.unpack_from(record)
    # The ring rounds nothing: the length of a record is what the program reserved.
    if size != len(record) or size != SIZES.get(kind):
        raise ProbeError(f"a record of type {kind} with {len(record)} bytes, said to have {size}")
    who, sent = identity(record, HEAD.size), sender(record, HEAD.size + WHO.size)
    common = _Common(time_ns, who, sent, _fault(record))
    if kind in (TYPE_FATAL, TYPE_SIGNAL):
        return _fatal(common, record)
    if kind == TYPE_EXIT:
        status, oom, unmapped, _ = EXIT.unpack_from(record, EVENT_BYTES)
        return Exit(
            who=common.who,
            time_ns=time_ns,
            status=status,
            oom=bool(oom),
            unmapped=UNMAPPED.get(unmapped),
            sender=common.sender,
            last_fault=common.fault,
        )
    return OomVictim(who=common.who, time_ns=time_ns, levels=_levels(record))
