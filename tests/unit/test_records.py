"""What the events of one death say, as a record."""

from __future__ import annotations

import datetime
import time
from typing import Any

import msgspec
import pytest

from collector.agent.assemble import Seen
from collector.linux.clock import boot_to_utc
from collector.model import Cause, Event, Fault, KilledBy, Killer, OomVictim, Record, Sender
from tests.unit.event_samples import KEY, OTHER, TICK, ended, fatal, oom, who

SELF = Sender(pid=KEY.pid, comm="victim", uid=1000)
FAULT = Fault(time_ns=1, tid=815, signal=11, si_code=1, si_addr=8, ip=2, sp=3)


def parts(*events: Event) -> Seen:
    found = Seen()
    for event in events:
        if isinstance(event, OomVictim):
            found.oom = event
        elif hasattr(event, "status"):
            found.exit = event  # type: ignore[assignment]
        else:
            found.fatal = event  # type: ignore[assignment]
    return found


@pytest.mark.parametrize(
    ("events", "cause", "signal", "sender"),
    [
        ([fatal()], Cause.SIGNAL, 11, None),
        ([fatal(sender=SELF, signal=6)], Cause.SIGNAL, 6, SELF),
        ([fatal(sender=OTHER, signal=15)], Cause.KILLED, 15, OTHER),
        ([ended(status=9, sender=OTHER)], Cause.KILLED, 9, OTHER),
        ([ended(status=3 << 8)], Cause.EXIT, None, None),
        ([oom()], Cause.OOM, 9, None),
        # a kernel that names only a thread at the choice tells it at the end
        ([fatal(signal=9, sender=OTHER), ended(status=9, oom=True)], Cause.OOM, 9, None),
        # the task that ran out of memory is not the one to blame
        ([oom(), fatal(signal=9, sender=OTHER)], Cause.OOM, 9, None),
    ],
)
def test_why_a_process_died(
    events: list[Event], cause: Cause, signal: int | None, sender: Sender | None
) -> None:
    found = parts(*events)
    assert (found.cause, found.signal, found.sender) == (cause, signal, sender)


def record(*events: Event, **lost: str) -> Record:
    made = parts(*events).record("0123456789abcdef", late=False, lost=lost)
    return msgspec.structs.replace(made, time=datetime.datetime.min)


BASE = Record(
    id="0123456789abcdef",
    time=datetime.datetime.min,
    pid=812,
    tid=812,
    cause=Cause.SIGNAL,
    comm="victim",
    start_ns=KEY.start_ns,
    ns_pid=7,
    ppid=1,
    exe="/usr/bin/victim",
    uid=1000,
    gid=100,
)


def like(**differs: Any) -> Record:
    return msgspec.structs.replace(BASE, **differs)


def test_the_record_of_a_fault() -> None:
    assert record(fatal(last_fault=FAULT), ended(), memory="too much") == like(
        tid=815,
        signal=11,
        signal_name="SIGSEGV",
        si_code=1,
        si_addr=0,
        ip=116,
        sp=119,
        last_fault=FAULT,
        core_bit=True,
        thread_name="worker-3",
        lost={"memory": "too much"},
    )


def test_the_record_of_a_kill_names_what_the_kernel_did_not_tell() -> None:
    killed = fatal(signal=9, si_code=None, si_addr=None, siginfo=b"", sender=OTHER)
    assert record(killed, ended(status=9)) == like(
        tid=815,
        cause=Cause.KILLED,
        signal=9,
        signal_name="SIGKILL",
        sender=OTHER,
        ip=116,
        sp=119,
        core_bit=False,
        thread_name="worker-3",
        lost={"si_code": "the kernel passed none with the signal"},
    )


def test_the_record_of_an_end_whose_signal_was_lost() -> None:
    assert record(ended(status=11)) == like(
        signal=11,
        signal_name="SIGSEGV",
        core_bit=False,
        lost={"si_code": "the event of the signal was lost"},
    )


def test_the_record_of_an_exit() -> None:
    assert record(ended(status=3 << 8, last_fault=FAULT)) == like(
        cause=Cause.EXIT, exit_code=3, core_bit=False, last_fault=FAULT
    )


def test_the_record_of_an_oom_victim_without_a_path() -> None:
    nameless = msgspec.structs.replace(oom(), who=msgspec.structs.replace(who(), exe=None))
    assert record(nameless) == like(
        cause=Cause.OOM,
        exe=None,
        signal=9,
        signal_name="SIGKILL",
        oom=True,
        killer=Killer(by=KilledBy.OOM),
        lost={"exe": "its path could not be read"},
    )


def test_a_death_without_any_event_has_no_record() -> None:
    with pytest.raises(ValueError, match="without any event"):
        Seen().record("0" * 16, late=False, lost={})


def test_a_death_happened_with_its_first_event() -> None:
    assert parts(fatal(), ended(), oom()).time_ns == 8_999 * TICK


def test_boot_time_as_utc() -> None:
    now = boot_to_utc(time.clock_gettime_ns(time.CLOCK_BOOTTIME))
    assert abs((now - datetime.datetime.now(datetime.UTC)).total_seconds()) < 1
    assert boot_to_utc(0) < now
