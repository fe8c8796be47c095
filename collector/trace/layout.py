"""What bpf/trace.bpf.c tells, as typed values: the mirror of bpf/trace.h. Pure.

Times are seconds of CLOCK_BOOTTIME in ns; ids are those of the initial pid namespace.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Any

import msgspec

TEXTS = 3  # CW_CALL_TEXTS
MAX_TEXT = 1024  # CW_TEXT
MAX_KEPT = 64  # CW_KEPT_CALLS
MAX_KEPT_TEXT = 64  # CW_KEPT_TEXT
RULES = 64  # CW_TRACE_RULES
LIVE, RECORD = 1, 2  # enum cw_trace_mode
RULE_WAIT, RULE_TELL_FAILED, RULE_FOLLOW = 1, 2, 4  # enum cw_trace_rule_flag
LENGTH_RESULT, LENGTH_STRING, LENGTH_FIXED = 6, 7, 8  # enum cw_text_length
TEXT_IN, TEXT_OUT = 1, 2  # enum cw_text_when
_THERE, _CUT, _FAULT, _LATE = 1, 2, 4, 8  # enum cw_text_flag
_COMPAT, _NO_ENTRY, _NO_RETURN, _OPEN = 1, 2, 4, 8  # enum cw_call_flag
# enum cw_trace_type
TYPE_CALL, TYPE_SENT, TYPE_SIGNAL, TYPE_FORK, TYPE_EXEC, TYPE_EXIT = range(1, 7)
TYPE_KEPT, TYPE_WAIT, TYPE_TEXTS = 7, 8, 9
ARMED_NOW, ARMED_BEFORE, ARMED_NOT, ARMED_OTHER = 1, 2, 3, 4  # enum cw_armed

RULE = struct.Struct("<QQ16Q6I")
SHAPE = struct.Struct("<12B")
ARMING = struct.Struct("<2I")
EVENT = struct.Struct("<IIQIIII")
CALL = struct.Struct("<Q6QqIHH12s4x")
_TEXT = struct.Struct("<BBH")
SENT = struct.Struct("<7I4x16s48s")
SIGNAL = struct.Struct("<QII48s")
FORK = struct.Struct("<QIII4x")
EXEC = struct.Struct("<IIII")
EXIT = struct.Struct("<QQII")
KEPT_CALL = struct.Struct(f"<{CALL.size}sQ")
KEPT = struct.Struct("<QIIII16sQQ")
KEPT_BYTES = EVENT.size + KEPT.size + MAX_KEPT * KEPT_CALL.size
_TEXTS_OF_CALL = TEXTS * MAX_KEPT_TEXT
KEPT_TEXTS_BYTES = EVENT.size + MAX_KEPT * _TEXTS_OF_CALL
ARMED = struct.Struct("<III4x")
PRESENT = struct.Struct(f"<QQI4x{CALL.size}s")
UNTOLD = struct.Struct("<QQQIIII")


class Text(msgspec.Struct, frozen=True):
    """A string or a buffer of a call. `data` is None if it could not be read."""

    data: bytes | None
    cut: bool = False  # there is more than was asked for
    late: bool = False  # copied at the exit: at the entry it was not in memory


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One system call as the thread made it."""

    number: int
    args: tuple[int, ...]  # six words
    result: int | None  # None: it has not returned
    enter_ns: int | None  # None: its entry was not seen
    exit_ns: int | None
    compat: bool = False  # of 32-bit code
    no_entry: bool = False  # the thread was in it already, or seccomp(2) refused it
    cpu: int = 0
    texts: dict[int, Text] = {}  # by argument, from 0


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """What all events have. `lost`: of this thread, between its event before and this one."""

    time_ns: int
    tid: int
    tgid: int
    lost: int
    rule: int


class CallEvent(Event, frozen=True, kw_only=True, tag="call"):
    """A call that has returned, or that its thread ended in."""

    call: Call


class SentEvent(Event, frozen=True, kw_only=True, tag="sent"):
    """A signal was generated for the thread. by_kernel: the sender is who happened to run then."""

    signal: int
    result: int
    sender_tgid: int
    sender_tid: int
    sender_uid: int
    by_kernel: bool
    sender_comm: str
    info: bytes | None  # struct kernel_siginfo


class SignalEvent(Event, frozen=True, kw_only=True, tag="signal"):
    """The thread takes a signal. `handler`: 0 default, 1 ignored."""

    signal: int
    handler: int
    info: bytes | None  # struct kernel_siginfo


class ForkEvent(Event, frozen=True, kw_only=True, tag="fork"):
    """The thread made another. untraced: for want of memory that one is not followed."""

    clone_flags: int
    child_tid: int
    child_tgid: int
    untraced: bool


class ExecEvent(Event, frozen=True, kw_only=True, tag="exec"):
    """The process is another program now; its other threads are gone."""

    old_tid: int
    path: bytes  # of its file, as the kernel was given it; empty if no strings are wanted
    arguments: tuple[bytes, ...]  # whole ones, but perhaps the last
    cut: bool


class ExitEvent(Event, frozen=True, kw_only=True, tag="exit"):
    """A thread has ended. `status` as of wait(2); `last` of its process."""

    made: int
    lost_calls: int
    status: int
    last: bool


class KeptEvent(Event, frozen=True, kw_only=True, tag="kept"):
    """What a thread has kept of its calls, the oldest first."""

    made: int
    status: int
    last: bool
    comm: str
    start_ns: int  # of the process
    lost_calls: int  # that there was no memory to keep, or no room to tell; not among `made`
    calls: tuple[Call, ...]


class WaitEvent(Event, frozen=True, kw_only=True, tag="wait"):
    """The process was stopped until the reader had read on."""


def decode_call(raw: bytes, exit_ns: int | None, texts: bytes) -> Call:
    """A struct cw_call, with its texts one behind the other."""
    enter, *args, result, number, flags, cpu, heads = CALL.unpack(raw)
    ended = exit_ns is not None and not flags & (_NO_RETURN | _OPEN)
    return Call(
        number=number,
        args=tuple(args),
        result=result if ended else None,
        enter_ns=enter or None,
        exit_ns=exit_ns,
        compat=bool(flags & _COMPAT),
        no_entry=bool(flags & _NO_ENTRY),
        cpu=cpu,
        texts=_texts(heads, texts),
    )


def _texts(heads: bytes, data: bytes) -> dict[int, Text]:
    found, at = {}, 0
    for argument, flags, length in _TEXT.iter_unpack(heads):
        if flags & _THERE and at + length > len(data):  # they were lost, or are not told
            found[argument] = Text(None)
        elif flags & _THERE:
            found[argument] = Text(data[at : at + length], bool(flags & _CUT), bool(flags & _LATE))
            at += length
        elif flags & _FAULT:
            found[argument] = Text(None)
    return found


def decode(record: bytes) -> Event | None:
    """A record of the ring; None for what is kept, which `decode_kept` takes."""
    if len(record) < EVENT.size:
        return None
    kind, size, time_ns, tid, tgid, lost, rule = EVENT.unpack_from(record)
    if size != len(record):
        return None
    head: dict[str, Any] = {"time_ns": time_ns, "tid": tid, "tgid": tgid}
    head |= {"lost": lost, "rule": rule}
    body = record[EVENT.size :]
    match kind:
        case 1:
            call = decode_call(body[: CALL.size], time_ns, body[CALL.size :])
            return CallEvent(**head, call=call)
        case 2:
            signal, result, by_tgid, by_tid, uid, by_kernel, has_info, comm, info = SENT.unpack(
                body
            )
            return SentEvent(
                **head,
                signal=signal,
                result=result,
                sender_tgid=by_tgid,
                sender_tid=by_tid,
                sender_uid=uid,
                by_kernel=bool(by_kernel),
                sender_comm=_name(comm),
                info=info if has_info else None,
            )
        case 3:
            handler, signal, has_info, info = SIGNAL.unpack(body)
            told = info if has_info else None
            return SignalEvent(**head, signal=signal, handler=handler, info=told)
        case 4:
            flags, child_tid, child_tgid, untraced = FORK.unpack(body)
            return ForkEvent(
                **head,
                clone_flags=flags,
                child_tid=child_tid,
                child_tgid=child_tgid,
                untraced=bool(untraced),
            )
        case 5:
            return _exec(head, body)
        case 6:
            made, lost_calls, status, last = EXIT.unpack(body)
            return ExitEvent(
                **head, made=made, lost_calls=lost_calls, status=status, last=bool(last)
            )
        case 8:
            return WaitEvent(**head)
    return None


def _exec(head: dict[str, Any], body: bytes) -> ExecEvent:
    old_tid, path_bytes, told, all_bytes = EXEC.unpack_from(body)
    path = body[EXEC.size : EXEC.size + path_bytes].rstrip(b"\0")
    arguments = body[EXEC.size + path_bytes : EXEC.size + path_bytes + told]
    parts = arguments.split(b"\0")
    if parts and not parts[-1]:
        parts.pop()
    cut = all_bytes > told
    return ExecEvent(**head, old_tid=old_tid, path=path, arguments=tuple(parts), cut=cut)


def kind_of(record: bytes) -> tuple[int, int]:
    """(enum cw_trace_type, tid) of a record of the ring; (0, 0) if it is damaged."""
    if len(record) < EVENT.size:
        return 0, 0
    kind, size, _, tid, *_ = EVENT.unpack_from(record)
    return (kind, tid) if size <= len(record) else (0, 0)


def has_texts(record: bytes) -> bool:
    """Of a struct cw_kept."""
    return bool(KEPT.unpack_from(record, EVENT.size)[4])


def decode_kept(record: bytes, texts: bytes = b"", open_call: bytes = b"") -> KeptEvent:
    """A struct cw_kept, the texts of its calls, a struct cw_present for the one that is open."""
    _, _, time_ns, tid, tgid, lost, rule = EVENT.unpack_from(record)
    made, calls, status, last, _, comm, start_ns, lost_calls = KEPT.unpack_from(record, EVENT.size)
    found = [_kept_call(record, texts, slot) for slot in _slots(made, calls)]
    if open_call:
        _, _, in_call, call = PRESENT.unpack_from(open_call, EVENT.size)
        if in_call:
            found.append(decode_call(call, None, b""))
    return KeptEvent(
        time_ns=time_ns,
        tid=tid,
        tgid=tgid,
        lost=lost,
        rule=rule,
        made=made,
        status=status,
        last=bool(last),
        comm=_name(comm),
        start_ns=start_ns,
        lost_calls=lost_calls,
        calls=tuple(found),
    )


def _slots(made: int, calls: int) -> Iterator[int]:
    """The oldest first."""
    for number in range(max(0, made - calls), made):
        yield number % calls


def _kept_call(record: bytes, texts: bytes, slot: int) -> Call:
    at = EVENT.size + KEPT.size + slot * KEPT_CALL.size
    raw, exit_ns = KEPT_CALL.unpack_from(record, at)
    heads = raw[CALL.size - 16 : CALL.size - 4]
    data = b""
    for index, (_, _, length) in enumerate(_TEXT.iter_unpack(heads)):
        start = EVENT.size + slot * _TEXTS_OF_CALL + index * MAX_KEPT_TEXT
        data += texts[start : start + min(length, MAX_KEPT_TEXT)]
    return decode_call(raw, exit_ns, data)


def decode_untold(key: bytes, value: bytes) -> KeptEvent:
    """An entry of the map `untold`, of a thread that kept its calls: none of them is there."""
    _, lost_calls, start_ns, tgid, lost, rule, last = UNTOLD.unpack(value)
    return KeptEvent(
        time_ns=0,
        tid=int.from_bytes(key, "little"),
        tgid=tgid,
        lost=lost,
        rule=rule,
        made=0,
        status=0,
        last=bool(last),
        comm="",
        start_ns=start_ns,
        lost_calls=lost_calls,
        calls=(),
    )


class Present(msgspec.Struct, frozen=True, kw_only=True):
    """A traced thread that lives. `call`: the one that it is in."""

    tid: int
    tgid: int
    rule: int
    made: int
    lost: int  # events since its last one in the ring
    lost_calls: int
    call: Call | None


def decode_present(raw: bytes) -> Iterator[Present]:
    """What the iterator `present` has told."""
    size = EVENT.size + PRESENT.size
    for at in range(0, len(raw) - size + 1, size):
        _, _, _, tid, tgid, lost, rule = EVENT.unpack_from(raw, at)
        made, lost_calls, in_call, call = PRESENT.unpack_from(raw, at + EVENT.size)
        yield Present(
            tid=tid,
            tgid=tgid,
            rule=rule,
            made=made,
            lost=lost,
            lost_calls=lost_calls,
            call=decode_call(call, None, b"") if in_call else None,
        )


def _name(raw: bytes) -> str:
    return os.fsdecode(raw.partition(b"\0")[0])
