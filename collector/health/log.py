"""What happened last, in bounded memory: deaths and triggers, each with a place in their order.

A cursor names a place, and the start of the agent that gave it: after a restart nobody takes an
old one for a new.
"""

from __future__ import annotations

import datetime
import threading
from collections import Counter, deque
from collections.abc import Callable

from collector.health.types import Death, Event, Events, Last, Loop, Loops, Trigger
from collector.model import Cause, Record

MOST = 512  # events that are kept
MOST_TEXT = 512  # characters of a text in one
WINDOW_S, CRASHES = 600, 5  # what a crash loop is; as the alert CorewardCrashLoop
_MOST_LOOPS = 64


def _short(text: str | None) -> str | None:
    return text if text is None or len(text) <= MOST_TEXT else text[:MOST_TEXT] + "…"


def _service(death: Death) -> str | None:
    """What is started again when it dies: in a pod that has another unit then."""
    return death.unit if death.pod is None else f"{death.namespace or '?'}/{death.pod}"


class EventLog:
    """Any thread may call its methods."""

    def __init__(self, epoch: str, happened: Callable[[], None]) -> None:
        """epoch: names this start of the agent. happened: called after each event."""
        self._epoch, self._happened = epoch, happened
        self._lock = threading.Lock()
        self._events: deque[Event] = deque(maxlen=MOST)
        self._next = 1  # number of the next event
        self.deaths = 0

    def died(self, record: Record) -> None:
        self.deaths += 1
        self._add(
            lambda cursor: Death(
                cursor=cursor,
                id=record.id,
                time=record.time,
                pid=record.pid,
                comm=record.comm,
                cause=record.cause.value,
                outcome=record.outcome.value,
                reason=_short(record.reason),
                category=None if record.diagnosis is None else record.diagnosis.category.value,
                signature=None if record.signature is None else record.signature.id,
                signal=record.signal_name,
                exe=_short(record.exe),
                unit=_short(record.unit),
                cgroup=_short(record.cgroup),
                uid=record.uid,
                late=record.late,
                count=record.count or 1,
                namespace=None if record.pod is None else record.pod.namespace,
                pod=None if record.pod is None else record.pod.name,
            )
        )

    def fired(self, rule: str, trigger: str, outcome: str, why: str, record: str | None) -> None:
        now = datetime.datetime.now(datetime.UTC)
        self._add(
            lambda cursor: Trigger(
                cursor=cursor,
                time=now,
                rule=rule,
                trigger=trigger,
                why=_short(why) or "",
                outcome=outcome,  # type: ignore[arg-type]  # one of the three
                id=record,
            )
        )

    def _add(self, make: Callable[[str], Event]) -> None:
        with self._lock:
            self._events.append(make(self._cursor(self._next)))
            self._next += 1
        self._happened()

    def _cursor(self, number: int) -> str:
        return f"{self._epoch}-{number}"

    def after(self, cursor: str | None, limit: int) -> Events:
        """At most so many events after a cursor; None: all that are known."""
        with self._lock:
            first = self._next - len(self._events)  # number of the oldest that is kept
            wanted = first if cursor is None else self._number_after(cursor)
            missed = wanted is None or wanted < first
            begin = first if wanted is None else max(wanted, first)
            events = list(self._events)[begin - first :][:limit]
            last = begin + len(events) - 1
            return Events(cursor=self._cursor(last), missed=missed, events=events)

    def _number_after(self, cursor: str) -> int | None:
        """None: it is none of this agent's."""
        epoch, _, number = cursor.rpartition("-")
        if epoch != self._epoch or not number.isdecimal() or len(number) > 18:
            return None
        after = int(number) + 1
        return after if after <= self._next else None

    def last(self, unit: str) -> Last:
        """The newest death of a unit."""
        with self._lock:
            events = list(self._events)
        deaths = (one for one in reversed(events) if isinstance(one, Death))
        return Last(unit=unit, death=next((one for one in deaths if one.unit == unit), None))

    def loops(self, now: datetime.datetime) -> Loops:
        """Services that crash again and again, those first that do it most."""
        since = now - datetime.timedelta(seconds=WINDOW_S)
        count: Counter[str] = Counter()
        last: dict[str, Death] = {}
        with self._lock:
            events = list(self._events)
        for event in events:
            if not isinstance(event, Death) or event.time < since:
                continue
            service = _service(event)
            if service is not None and event.cause in (Cause.SIGNAL, Cause.OOM):
                count[service] += event.count
                last[service] = event
        found = [
            Loop(
                unit=unit,
                crashes=crashes,
                last=last[unit].time,
                last_id=last[unit].id,
                last_reason=last[unit].reason,
            )
            for unit, crashes in count.most_common(_MOST_LOOPS)
            if crashes >= CRASHES
        ]
        return Loops(window_s=WINDOW_S, crashes=CRASHES, services=found)
