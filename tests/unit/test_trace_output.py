"""The stream of a trace as lines."""

from __future__ import annotations

from typing import Any

import msgspec

from collector.trace.layout import Call, CallEvent, Event, ExitEvent, Present
from collector.trace.notation import Notation
from collector.trace.output import Stream
from tests.unit.trace_samples import SYMBOLS, call


def event(tid: int, made: Call) -> CallEvent:
    return CallEvent(time_ns=3000, tid=tid, tgid=tid, lost=0, rule=1, call=made)


def shown(*steps: Event | list[Present], **how: Any) -> list[str]:
    lines: list[str] = []
    stream = Stream(Notation(SYMBOLS), lines.append, **{"times": False, "numbered": False, **how})
    for step in steps:
        if isinstance(step, list):
            stream.show_present(step, now_ns=2000, after_ns=500)
        else:
            stream.show(step)
    return [line.rstrip("\n") for line in lines]


def in_call(tid: int, made: Call) -> Present:
    return Present(tid=tid, tgid=tid, rule=1, made=0, lost=0, lost_calls=0, call=made)


READ = call("read", 0, 0x7F00, 10, result=None)
DONE = msgspec.structs.replace(READ, result=4)


def test_one_thread_has_no_number_until_there_are_two() -> None:
    pid = call("getpid", result=7)
    assert shown(event(7, pid), event(8, pid), event(7, pid)) == [
        "getpid() = 7",
        "[pid     8] getpid() = 7",
        "[pid     7] getpid() = 7",
    ]


def test_a_call_that_takes_long_is_shown_once_and_resumed() -> None:
    present = [in_call(7, READ)]
    assert shown(present, present, event(7, DONE)) == [
        "read(0, 0x7f00, 10 <unfinished ...>",
        "<... read resumed>) = 4",
    ]


def test_a_thread_that_ends_in_a_call() -> None:
    end = ExitEvent(
        time_ns=1, tid=7, tgid=7, lost=0, rule=1, made=1, lost_calls=0, status=9, last=True
    )
    assert shown([in_call(7, READ)], event(7, READ), end) == [
        "read(0, 0x7f00, 10 <unfinished ...>",
        "<... read resumed>) = ?",
        "+++ killed by SIGKILL +++",
    ]


def test_a_call_whose_begin_was_not_seen_says_so() -> None:
    made = msgspec.structs.replace(DONE, no_entry=True, enter_ns=None)
    assert shown(event(7, made)) == ["read(0, 0x7f00, 10) = 4 /* its begin was not seen */"]
