"""routine: ends that are no crashes. Who ended a process in the usual way is noted, and no more.

A test runner ends its children, `timeout` what it started, systemd a service that is stopped, the
terminal what Ctrl-C was pressed for; a writer ends when its reader has gone. Such an end is counted
and kept as one line (`store.routine`); there is no folder and no backtrace. Policy may say
otherwise (`routine: record`).

Whatever is not certain is a death: a SIGKILL from elsewhere, of a unit that was not being stopped
or did not stop in time, or where systemd did not say.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from functools import partial

import msgspec

from collector.agent.context import Context
from collector.agent.crash import Crash
from collector.agent.unit import ask_before
from collector.errors import CorewardError
from collector.model import KilledBy, Killer, Record
from collector.store.routine import RoutineEnd, Way

log = logging.getLogger(__name__)

_SIGNALS = frozenset((signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE))
# The kernel sends SIGPIPE in the name of who writes. Shells and Python, which catch SIGINT, pass it
# on to themselves when they have tidied up.
_BY_ITSELF: dict[int, Way] = {signal.SIGPIPE: Way.PIPE, signal.SIGINT: Way.TERMINAL}
_MANAGER = "systemd"
_ORDERED = "success"  # systemd's result of a unit that it stops because it was told to


def settle(context: Context, crash: Crash, death: Callable[[], None]) -> None:
    """Note the end of this process if it was routine; else `death` goes on with it.

    systemd has to be asked where it sent the signal: then either is done later.
    """
    way = way_of(crash.record) if crash.seen.fatal is not None else None
    if way is None:
        death()
    elif way is not Way.MANAGER:
        _note(context, crash, way)
    elif not ask_before(context, crash, partial(_answered, context, crash, death)):
        death()


def way_of(record: Record) -> Way | None:
    """In which usual way this process came to its end, as far as its record tells. MANAGER: only
    if systemd had ordered it. None: it was a death."""
    if record.signal not in _SIGNALS or record.oom:
        return None
    killer, sender = record.killer, record.sender
    if killer is None:
        if sender is None or sender.pid == record.pid:
            return _BY_ITSELF.get(record.signal)
        return Way.PARENT if sender.pid == record.ppid and sender.pid != 1 else None
    if killer.by is KilledBy.KERNEL and record.signal == signal.SIGPIPE:
        return Way.PIPE
    if killer.by is KilledBy.TERMINAL:
        return Way.TERMINAL
    if killer.by not in (KilledBy.PROCESS, KilledBy.CGROUP_KILL):
        return None
    if killer.pid == 1 and killer.comm == _MANAGER and record.unit is not None:
        return Way.MANAGER
    if not killer.parent or killer.by is not KilledBy.PROCESS:
        return None
    return None if _is_last_resort(record, killer) else Way.PARENT


def _is_last_resort(record: Record, killer: Killer) -> bool:
    """Whether a user's own manager, which is not asked, has killed a service: after a timeout?"""
    return record.signal == signal.SIGKILL and killer.comm == _MANAGER and record.unit is not None


def _answered(context: Context, crash: Crash, death: Callable[[], None]) -> None:
    """What systemd says of the unit is in the record."""
    killer = crash.record.killer
    state = None if killer is None else killer.unit_state
    if state is not None and state.result == _ORDERED:
        _note(context, crash, Way.MANAGER)
    else:
        death()


def _note(context: Context, crash: Crash, way: Way) -> None:
    context.metrics.routine_ends.labels(way.value).inc()
    record = crash.record
    killer = record.killer
    end = RoutineEnd(
        time=record.time,
        way=way,
        pid=record.pid,
        comm=record.comm,
        exe=record.exe,
        uid=record.uid,
        unit=record.unit,
        signal=record.signal,
        signal_name=record.signal_name,
        by_pid=killer.pid if killer else None,
        by_comm=killer.comm if killer else None,
        by_unit=killer.unit if killer else None,
    )
    try:
        context.store.routine.add(end)
    except (CorewardError, OSError) as error:
        context.metrics.errors.labels("store").inc()
        log.error("the end of process %d cannot be noted: %s", record.pid, error)
    log.debug("routine: %s", msgspec.structs.asdict(end))
    if context.probe is not None and crash.seen.who is not None:
        context.probe.recorded(crash.seen.who.key)
