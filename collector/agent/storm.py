"""Deaths beyond their share: BPF only counts them, and here each count becomes one record.

A record of such a kind grows with its count. It is written again every few seconds while it does,
under the same id, so that an agent that is killed and the next one say the same. In the metrics
each death counts once, whether it has a record of its own or not.
"""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Iterable
from functools import partial

import msgspec

from collector.agent.context import Context
from collector.agent.gone import facts_of
from collector.agent.pods import with_pod
from collector.errors import CorewardError
from collector.linux.clock import boot_to_utc
from collector.model import Capture, Cause, Outcome, ProcessKey, Record
from collector.policy.match import decide
from collector.probe.tallies import Tally
from collector.signals import signal_name
from collector.signature.compose import signed
from collector.store.ids import record_id

log = logging.getLogger(__name__)

LOOK_S = 1.0  # between two looks at the counts
_WRITE_S = 5.0  # a record that grows is written no more often
_IDLE_NS = 60_000_000_000  # what has not grown for so long is taken out of BPF's map
_PIDS = 1024  # that one record names


class _Kind(msgspec.Struct, kw_only=True):
    """What was made of one tally so far."""

    time: datetime.datetime  # of the first death; two readings of the clocks are never the same
    told: int  # deaths of it that the metrics have
    written: int = 0  # and those that its record has
    written_at: float = float("-inf")
    pids: list[int] = []
    outcome: Outcome = Outcome.COUNTED


class Storms:
    """The tallies of BPF as records. For the main thread alone; the records' lane writes."""

    def __init__(self) -> None:
        self._kinds: dict[bytes, _Kind] = {}
        self._tallied = -1  # what BPF had counted at the last look
        self._looked = float("-inf")
        self._stirred = float("-inf")  # when deaths came last
        self._quiet = False  # nothing more is to be seen until deaths come
        self._replaced_seen = False

    def stir(self) -> None:
        """Deaths come: a storm may begin."""
        self._stirred, self._quiet = time.monotonic(), False

    @property
    def timeout_ms(self) -> int:
        """When to look again at the latest; -1: there is no need to."""
        if not self._quiet:
            return round(LOOK_S * 1e3)
        return round(_WRITE_S * 1e3) if self._kinds else -1

    def look(self, context: Context, *, last: bool = False) -> None:
        """Make or renew records of what was counted, if it is time to. last: in any case."""
        now = time.monotonic()
        if context.probe is None or (now < self._looked + LOOK_S and not last):
            return
        tallied = context.probe.tallied()
        grown, self._tallied = tallied != self._tallied, tallied
        # the first of too many are told, and only then is counted
        self._looked, self._quiet = now, not grown and now >= self._stirred + LOOK_S
        if not grown and not self._kinds:
            return
        try:
            tallies = list(context.probe.tallies.all())
        except (CorewardError, OSError) as error:
            log.error("deaths that were only counted cannot be read: %s", error)
            return
        if not self._replaced_seen:
            self._replaced_seen = True
            self._note(context, context.probe.replaced_tallies, now, last=True)
        self._note(context, tallies, now, last=last)
        self._forget_idle(context, tallies, now)

    def _note(self, context: Context, tallies: Iterable[Tally], now: float, *, last: bool) -> None:
        records = []
        for tally in tallies:
            kind = self._kinds.get(tally.key) or self._begin(context, tally)
            self._count(context, kind, tally)
            due = last or now >= kind.written_at + _WRITE_S
            if kind.written != tally.count and due and kind.outcome is not Outcome.IGNORED:
                record = _record(context, tally, kind)
                if record is None:
                    kind.outcome = Outcome.IGNORED
                else:
                    records.append((kind, record))
                kind.written, kind.written_at = tally.count, now
        if records:
            context.record(partial(_write, context, records))

    def _begin(self, context: Context, tally: Tally) -> _Kind:
        """An earlier agent may have begun with it."""
        kind = self._kinds[tally.key] = _Kind(time=boot_to_utc(tally.first_ns), told=0)
        identity = _id(context, tally)
        if context.store.has(identity):
            try:
                record = context.store.get(identity)
                kind.told = min(record.count or 0, tally.count)
                kind.time, kind.pids = record.time, record.pids or []
            except CorewardError as error:
                log.warning("%s", error)
        return kind

    def _count(self, context: Context, kind: _Kind, tally: Tally) -> None:
        new = tally.count - kind.told
        if new <= 0:
            return
        identity = None if kind.outcome is Outcome.IGNORED else _id(context, tally)
        context.metrics.died(_cause(tally), tally.signal, kind.outcome, new, identity)
        kind.told = tally.count
        kind.pids = [*kind.pids, *tally.pids[-new:]][-_PIDS:]

    def _forget_idle(self, context: Context, tallies: Iterable[Tally], now: float) -> None:
        assert context.probe is not None
        boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        for tally in tallies:
            kind = self._kinds[tally.key]
            if boot_ns - tally.last_ns < _IDLE_NS or kind.written != tally.count:
                continue
            taken = context.probe.tallies.remove(tally)
            if taken is not None and taken.first_ns == tally.first_ns:
                self._note(context, [taken], now, last=True)
            del self._kinds[tally.key]


def _cause(tally: Tally) -> Cause:
    if tally.signal is None:
        return Cause.EXIT
    sent_by_other = tally.sender is not None and tally.sender.pid != tally.who.key.pid
    return Cause.KILLED if sent_by_other else Cause.SIGNAL


def _id(context: Context, tally: Tally) -> str:
    """No process has it, as none starts in the nanosecond of its death."""
    return record_id(context.boot_id, ProcessKey(tally.who.key.pid, tally.first_ns))


def _record(context: Context, tally: Tally, kind: _Kind) -> Record | None:
    """One for all of them; None: policy wants none."""
    who, cause = tally.who, _cause(tally)
    facts = with_pod(context, facts_of(who, cause, tally.signal), waits=False)
    decision = decide(context.policy.policy, facts)
    if decision.action.capture is Capture.NONE:
        return None
    one = "its last ones are named" if tally.count > len(kind.pids) else "all are named"
    record = Record(
        id=_id(context, tally),
        time=kind.time,
        pid=who.key.pid,
        tid=who.tid,
        cause=cause,
        comm=who.comm,
        start_ns=tally.first_ns,
        ns_pid=who.ns_pid,
        ppid=who.ppid,
        exe=None if tally.of_owner else who.exe,
        uid=who.uid,
        gid=who.gid,
        cgroup=facts.cgroup,
        unit=facts.unit,
        container=facts.container,
        pod=facts.of_pod,
        signal=tally.signal,
        signal_name=signal_name(tally.signal),
        sender=tally.sender,
        capture_wanted=decision.action.capture,
        outcome=Outcome.COUNTED,
        rule=decision.rule,
        count=tally.count,
        last=kind.time + datetime.timedelta(microseconds=(tally.last_ns - tally.first_ns) // 1000),
        pids=kind.pids,
        reason=_reason(tally),
        lost={"deaths": f"too many at a time for records of their own; of the pids {one}"},
    )
    return record if tally.of_owner else signed(record)  # an owner's are of several programs


def _reason(tally: Tally) -> str:
    of = f"uid {tally.who.uid}" if tally.of_owner else tally.who.comm
    name = signal_name(tally.signal)
    by = "exits with an error" if tally.signal is None else f"deaths by {name or tally.signal}"
    seconds = (tally.last_ns - tally.first_ns) / 1e9
    return f"{tally.count:,} more {by} of {of} in {seconds:,.0f} s, which were only counted"


def _write(context: Context, records: Iterable[tuple[_Kind, Record]]) -> None:
    for kind, record in records:
        try:
            context.store.put(record)
        except (CorewardError, OSError) as error:
            kind.written = 0  # it is due again at the next look
            log.error("record %s cannot be stored: %s", record.id, error)
