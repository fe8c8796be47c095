"""sender: who sent a fatal signal, whole, although he may be gone when it is told.

BPF tells him as he was at that moment. What is above him, his unit and his container are looked up
at once, by files of /proc that nobody's memory can hold up, and only as far as the processes there
are still those that were told (pid and start time).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import msgspec

from collector.agent.gone import facts_of
from collector.agent.killer import killed_by
from collector.linux.ancestry import stat_of, with_ancestors
from collector.model import (
    Cause,
    FatalSignal,
    KilledBy,
    Killer,
    ProcessKey,
    Relative,
    Sending,
    SentFlag,
)

_KEEP_S = 1.0  # one who kills many is looked up once in that time
_MANY = 256


class Senders:
    """Looks senders up, and remembers those of the last second. Not thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[tuple[ProcessKey, ProcessKey], tuple[float, Killer]] = {}

    def complete(self, event: FatalSignal) -> FatalSignal:
        """The event with its killer, if somebody sent the signal."""
        sending = event.sending
        if sending is None or (
            sending.who.key == event.who.key and SentFlag.BY_KERNEL not in sending.flags
        ):
            return event
        killer = msgspec.structs.replace(self._above(sending), **_taken(sending))
        lost = {**killer.lost, **_arguments_lost(sending)}
        return msgspec.structs.replace(
            event, killer=msgspec.structs.replace(killer, lost=lost), sending=None
        )

    def _above(self, sending: Sending) -> Killer:
        """What lies above the sender; of a look not older than a second."""
        key, now = (sending.who.key, sending.parent), self._clock()
        at, known = self._known.get(key, (now - _KEEP_S, None))
        if known is not None and now - at < _KEEP_S:
            return known
        if len(self._known) >= _MANY:
            self._known.clear()
        found = _look_up(sending)
        self._known[key] = now, found
        return found


def _look_up(sending: Sending) -> Killer:
    facts = facts_of(sending.who, Cause.KILLED, None)
    parents, lost = _parents(sending)
    return Killer(
        by=KilledBy.PROCESS,
        cgroup=facts.cgroup,
        unit=facts.unit,
        container=facts.container,
        parents=parents,
        lost={} if lost is None else {"parents": lost},
    )


def _taken(sending: Sending) -> dict[str, Any]:
    """What BPF told, by the fields of a Killer."""
    who, raw = sending.who, sending.arguments
    words = None if raw is None else [os.fsdecode(w) for w in raw.rstrip(b"\0").split(b"\0")]
    return {
        "by": killed_by(sending),
        "pid": who.key.pid,
        "tid": who.tid,
        "ns_pid": who.ns_pid,
        "start_ns": who.key.start_ns,
        "comm": who.comm,
        "exe": who.exe,
        "cmdline": [] if words == [""] else words,
        "uid": who.uid,
        "gid": who.gid,
        "parent": SentFlag.PARENT in sending.flags,
    }


def _arguments_lost(sending: Sending) -> dict[str, str]:
    if sending.arguments is None:
        return {"cmdline": "it was not in memory"} if sending.arguments_size else {}
    if len(sending.arguments) < sending.arguments_size:
        known, all_ = len(sending.arguments), sending.arguments_size
        return {"cmdline": f"only the first {known} of its {all_} bytes were copied"}
    return {}


def _parents(sending: Sending) -> tuple[list[Relative], str | None]:
    """All processes above the sender, the nearest first; and why not all."""
    here = sending.parent
    if here.pid == 0:
        return [], None
    found = [Relative(pid=here.pid, comm=sending.parent_comm)]
    stat = stat_of(here.pid)
    if stat is None or not here.is_same(ProcessKey(here.pid, stat.start_ns)):
        return found, f"process {here.pid} was gone when its parent was looked up"
    return with_ancestors(found, stat.ppid, stat.start_ns)
