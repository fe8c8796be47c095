"""The record of one death as far as its events tell, or its hand-off; no I/O.

What only the process itself can tell is added stage by stage; see `facts`.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping

import msgspec

from collector.agent.killer import killer_of
from collector.capture.process import OpenProcess
from collector.explain.facts import with_signal
from collector.handoff.handoff import HandOff
from collector.handoff.pipe import PipeHandOff
from collector.linux.clock import boot_to_utc
from collector.model import (
    Cause,
    Exit,
    FatalSignal,
    Identity,
    Killer,
    OomVictim,
    Record,
    Sender,
)
from collector.signals import signal_name

CORE_BIT = 0x80  # of a wait status: the kernel dumped core, or handed the process over (wait(2))


class Seen:
    """The events of one death as they come in. Not thread-safe; `agent.registry` guards it."""

    def __init__(self) -> None:
        self.fatal: FatalSignal | None = None
        self.oom: OomVictim | None = None
        self.exit: Exit | None = None

    @property
    def who(self) -> Identity | None:
        """Who died: of the fatal signal where there is one, for it names the thread."""
        for event in (self.fatal, self.exit, self.oom):
            if event is not None:
                return event.who
        return None

    @property
    def signal(self) -> int | None:
        if self.fatal is not None:
            return self.fatal.signal
        if self.exit is not None:
            return (self.exit.status & 0x7F) or None
        return int(signal.SIGKILL) if self.oom is not None else None

    @property
    def is_oom(self) -> bool:
        """Whether the out-of-memory killer chose it: as told at that moment, or at its end."""
        return self.oom is not None or (self.exit is not None and self.exit.oom)

    @property
    def sender(self) -> Sender | None:
        """Who sent the signal; None where the kernel raised it."""
        if self.is_oom:
            return None  # the task that happened to run out of memory is not to blame
        for event in (self.fatal, self.exit):
            if event is not None and event.sender is not None:
                return event.sender
        return None

    @property
    def killer(self) -> Killer | None:
        """Who killed it, or which part of the kernel; None: it did so itself, or is not known."""
        status = None if self.exit is None else self.exit.status
        return killer_of(self.fatal, status, oom=self.is_oom)

    @property
    def cause(self) -> Cause:
        if self.is_oom:
            return Cause.OOM
        if self.signal is None:
            return Cause.EXIT
        sender, who = self.sender, self.who
        if sender is not None and who is not None and sender.pid != who.key.pid:
            return Cause.KILLED
        return Cause.SIGNAL

    @property
    def time_ns(self) -> int:
        """When it happened, CLOCK_BOOTTIME: the first of its events."""
        times = [e.time_ns for e in (self.fatal, self.exit, self.oom) if e is not None]
        return min(times, default=time.clock_gettime_ns(time.CLOCK_BOOTTIME))

    def record(self, record_id: str, *, late: bool, lost: Mapping[str, str]) -> Record:
        """The record as far as the events tell. Needs at least one event."""
        who = self.who
        if who is None:
            raise ValueError("a death without any event")
        fatal = self.fatal
        exited = self.exit
        missing = dict(lost)
        if fatal is None and self.signal is not None and not self.is_oom:
            missing.setdefault("si_code", "the event of the signal was lost")
        if fatal is not None and fatal.si_code is None:
            missing.setdefault("si_code", "the kernel passed none with the signal")
        if who.exe is None:
            missing.setdefault("exe", "its path could not be read")
        if self.oom is None and self.is_oom:
            missing.setdefault("oom_facts", "the kernel did not tell of it when it chose")
        fault = (fatal and fatal.last_fault) or (exited and exited.last_fault)
        record = Record(
            id=record_id,
            time=boot_to_utc(self.time_ns),
            pid=who.key.pid,
            tid=who.tid,
            cause=self.cause,
            comm=who.comm,
            start_ns=who.key.start_ns,
            ns_pid=who.ns_pid,
            ppid=who.ppid,
            exe=who.exe,
            uid=who.uid,
            gid=who.gid,
            signal=self.signal,
            signal_name=signal_name(self.signal),
            si_code=fatal.si_code if fatal else None,
            si_addr=fatal.si_addr if fatal else None,
            sender=self.sender,
            killer=self.killer,
            last_fault=fault or None,
            exit_code=exited.status >> 8 & 0xFF if exited and self.signal is None else None,
            core_bit=bool(exited.status & CORE_BIT) if exited else None,
            oom=self.is_oom,
            oom_facts=None if self.oom is None else self.oom.facts,
            late=late,
            thread_name=fatal.thread_name if fatal else None,
            site=fatal.site if fatal else None,
            lost=missing,
        )
        return with_signal(record, fatal) if fatal else record

    def drop_memory(self) -> None:
        """Forget stack and mappings, once they are in a core."""
        if self.fatal is not None:
            self.fatal = msgspec.structs.replace(self.fatal, stack=())
        if self.exit is not None:
            self.exit = msgspec.structs.replace(self.exit, mapped=())


def record_of_held(record_id: str, handoff: HandOff, dying: OpenProcess) -> Record:
    """The record of a process that was handed over although BPF saw nothing of it."""
    return Record(
        id=record_id,
        time=boot_to_utc(time.clock_gettime_ns(time.CLOCK_BOOTTIME)),
        pid=handoff.pid,
        tid=handoff.identity.tid if isinstance(handoff, PipeHandOff) else handoff.pid,
        cause=Cause.SIGNAL,
        comm=dying.comm,
        start_ns=dying.key.start_ns,
        ns_pid=dying.ns_pid,
        ppid=dying.stat.ppid,
        uid=dying.uid,
        gid=dying.gid,
        signal=handoff.signal,
        signal_name=signal_name(handoff.signal),
    )
