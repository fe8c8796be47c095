"""Who is armed, and the records of BPF's ring for armed processes."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import pytest
from prometheus_client import Gauge

from collector.agent.arm import Arming
from collector.agent.armed import Armed, ArmedProcesses, is_handed_over
from collector.arch.x86_64 import Reg
from collector.errors import ProbeError
from collector.linux.procfs import TICK_NS
from collector.model import Exit, Identity, ProcessKey
from collector.policy.types import ArmRule, ArmSettings, Match
from collector.probe import armed as probe
from collector.probe.iterators import THREAD, decode_threads

KEY = ProcessKey(7, 3 * TICK_NS + 5)
RULE = ArmRule(name="r", match=Match(comm=("x",)))
CORE = 0x80


class Part:
    """A pin, or open files; says whether it was closed."""

    def __init__(self, uid: int = 0) -> None:
        self.closed = 0
        self.uid = uid

    def release(self) -> None:
        self.closed += 1

    close = release


def one(pid: int = 7, start: int = 3 * TICK_NS, uid: int = 0) -> Armed:
    parts = cast(Any, Part(uid))
    return Armed(ProcessKey(pid, start), RULE, parts, parts, os.open("/dev/null", os.O_RDONLY))


def exited(status: int, key: ProcessKey = KEY) -> Exit:
    who = Identity(
        key=key, tid=7, ns_pid=7, ns_tid=7, ppid=1, comm="x", uid=0, gid=0, cgroup_id=1, exe=None
    )
    return Exit(who=who, time_ns=1, status=status, sender=None, last_fault=None)


# ---- the registry


def test_there_are_no_more_than_there_may_be() -> None:
    processes = ArmedProcesses()
    # GIVEN one that is armed and one that is being armed
    assert processes.begin(7, 2) and processes.add(one())
    assert processes.begin(8, 2)
    # THEN there is room for none, and none is armed twice
    assert not processes.begin(9, 2)
    assert not processes.begin(7, 9) and not processes.begin(8, 9)
    # AND there is when one could not be armed
    assert not processes.end(8)
    assert processes.begin(9, 2)


def test_who_has_most_gives_way_to_another_user() -> None:
    processes = ArmedProcesses()
    # GIVEN that nobody is armed THEN nobody gives way
    assert processes.to_give_way(5) is None
    # GIVEN that all places are one user's
    for pid in (1, 2, 3, 4):
        assert processes.begin(pid, 4) and processes.add(one(pid, uid=5))
    # THEN none of his own takes another's place
    assert processes.to_give_way(5) is None
    # AND another user's takes that of the newest, until both have as many
    for pid in (8, 9):
        other = processes.to_give_way(6)
        assert other is not None and (other.key.pid, other.uid) == (12 - pid, 5)
        assert processes.take(other)
        assert processes.begin(pid, 4) and processes.add(one(pid, uid=6))
    assert processes.to_give_way(6) is None and processes.to_give_way(5) is None
    # AND a third one's takes one of theirs
    assert processes.to_give_way(7) is not None


def test_what_was_pinned_before_an_exec_is_not_taken_in() -> None:
    processes = ArmedProcesses()
    # WHEN a process execs while it is being armed
    processes.begin(7, 9)
    assert processes.exec(7) is None
    # THEN what was pinned does not count
    assert not processes.add(one())
    assert len(processes) == 0 and processes.begin(7, 9)


def test_nobody_is_taken_in_by_a_rule_that_went_meanwhile() -> None:
    gauge, processes = Gauge("armed", "x", registry=None), ArmedProcesses()
    context = SimpleNamespace(armed=processes, metrics=Mock(armed=gauge))
    arming = Arming(cast(Any, context))
    arming._probe = Mock()
    arming._finder = Mock()  # no process of this machine is meant
    # GIVEN two processes that are being pinned by a rule in force
    arming.apply(ArmSettings(rules=(RULE,)))
    first, second = one(7), one(8)
    first.pidfd, second.pidfd = os.eventfd(0), os.eventfd(0)
    assert processes.begin(7, 9) and processes.begin(8, 9)
    assert arming._add(first)
    assert [sample.value for sample in gauge.collect()[0].samples] == [1]
    # WHEN the rules go before the second one is pinned
    processes.take(first)
    arming.apply(ArmSettings())
    # THEN it is not armed, and may be looked at anew
    assert not arming._add(second)
    assert not processes.knows(8)
    assert [sample.value for sample in gauge.collect()[0].samples] == [0]


def test_an_exec_gives_out_what_was_armed_before() -> None:
    processes = ArmedProcesses()
    processes.begin(7, 9)
    first = one()
    processes.add(first)
    assert processes.exec(7) is first
    assert not processes.take(first) and not processes.knows(7)


def test_the_end_is_awaited_of_the_very_process() -> None:
    processes = ArmedProcesses()
    processes.begin(7, 9)
    processes.add(one())
    assert processes.awaits(exited(9), has_handoff=True)
    # WHEN the pid is another process's THEN its end is not
    assert not processes.awaits(exited(9, ProcessKey(7, 9 * TICK_NS)), has_handoff=True)
    # AND one that dumped core is another one's, where there is a hand-off
    assert not processes.awaits(exited(11 | CORE), has_handoff=True)
    assert processes.awaits(exited(11 | CORE), has_handoff=False)
    assert not is_handed_over(exited(9), has_handoff=True)


def test_threads_are_kept_once_and_of_the_very_process() -> None:
    processes = ArmedProcesses()
    processes.begin(7, 9)
    mine = one()
    processes.add(mine)
    first, second = leaving(tid=7), leaving(tid=7, sp=2)
    for thread in (first, second, leaving(tid=8, start=99 * TICK_NS)):
        processes.left(thread)
    assert mine.threads == {7: first}


def test_it_is_closed_once() -> None:
    mine = one()
    mine.close()
    mine.close()
    assert cast(Any, mine.pin).closed == 2  # its pin and its files, which are the same here


# ---- records


def thread_record(
    *, tid: int = 8, start: int = KEY.start_ns, sp: int = 1, told: int = 0, xstate: bytes = b""
) -> bytes:
    regs = [0] * 27
    regs[Reg.RSP], regs[Reg.ORIG_RAX] = sp, (1 << 64) - 1
    size = THREAD.size + len(xstate)
    fields = (size, tid, 7, tid + 100, 1, 1, 1, 1, b"name")
    thread = THREAD.pack(*fields, *[0] * 8, 0x1234, 0x5678, *regs, 3, 0, len(xstate))
    words = [(0x1234, 55), (0x5000, 77)]
    packed = b"".join(probe.WORD.pack(*word, 0) for word in words).ljust(
        probe.WORDS * probe.WORD.size, b"\0"
    )
    body = probe.TOLD.pack(told, 0) + packed + thread + xstate + bytes(16)
    event = probe.EVENT.pack(probe.TYPE_THREAD, probe.EVENT.size + len(body), start, 7, 0)
    return event + body


def leaving(**given: Any) -> probe.LeavingThread:
    found = probe.decode(thread_record(**given))
    assert isinstance(found, probe.LeavingThread)
    return found


def test_a_thread_has_what_the_iterator_would_tell() -> None:
    thread = leaving(told=probe.MORE_WORDS, sp=0x7000, xstate=b"x" * 8)
    assert (thread.key, thread.tid, thread.ns_tid) == (KEY, 8, 108)
    assert (thread.sp, thread.syscall) == (0x7000, -1)
    assert thread.words == ((0x1234, b"7\0\0\0"), (0x5000, b"M\0\0\0"))
    assert (thread.ran, thread.more_words) == (False, True)
    (decoded,) = decode_threads(thread.raw)
    assert (decoded.tid, decoded.name, decoded.regs[Reg.RSP]) == (108, "name", 0x7000)


def test_a_thread_that_ran_says_so() -> None:
    thread = leaving(told=probe.NO_XSTATE)
    assert (thread.ran, thread.more_words) == (True, False)


def test_what_starts_is_told_with_its_parent() -> None:
    fork = probe.EVENT.pack(probe.TYPE_FORK, probe.EVENT.size, KEY.start_ns, 7, 6)
    exec_ = probe.EVENT.pack(probe.TYPE_EXEC, probe.EVENT.size, KEY.start_ns, 7, 0)
    assert probe.decode(fork) == probe.Started(KEY, 6)
    assert probe.decode(exec_) == probe.Started(KEY, None)


@pytest.mark.parametrize(
    "record",
    [
        b"",
        bytes(23),
        probe.EVENT.pack(9, probe.EVENT.size, 1, 7, 0),
        probe.EVENT.pack(probe.TYPE_EXEC, 99, 1, 7, 0),
        probe.EVENT.pack(probe.TYPE_THREAD, probe.EVENT.size, 1, 7, 0),
        thread_record()[:-1],
        thread_record().replace((THREAD.size).to_bytes(4, "little"), b"\xff\xff\0\0", 1),
    ],
)
def test_a_damaged_record_is_refused(record: bytes) -> None:
    with pytest.raises(ProbeError):
        probe.decode(record)
