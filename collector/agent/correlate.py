"""Joins what is seen of one death: BPF events and the kernel's hand-off, in any order.

The key is pid and start time. A hand-off knows the start time only to a clock tick, an event to a
nanosecond; both are compared to a tick. Nothing here reads the system.
"""

from __future__ import annotations

import threading
import time

from collector.agent.assemble import Parts
from collector.agent.case import Case
from collector.model import Event, Exit, FatalSignal, ProcessKey

_FORGET_S = 120.0  # an unfinished death is looked at again after this long
_EXIT_S = 5.0  # the end of a released process is waited for no longer


class Death(Parts):
    """One death on its way; made by `Deaths` only."""

    def __init__(self, key: ProcessKey) -> None:
        super().__init__()
        self.key = key
        self.held = False  # the hand-off has it: its worker makes the record
        self.settled = False  # that worker is done with it; only its end may still come
        self.case: Case | None = None  # of a held one, once it is opened
        self.why: str | None = None  # why a hand-off came to nothing
        self.seen = time.monotonic()


class Deaths:
    """All deaths that are not yet on record. Thread-safe.

    A death is given out once: by `note` when its end is seen, unless somebody holds it; by
    `settle` or `let_go`, if its end was seen while it was held; else by `abandoned`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[int, Death] = {}
        self._orphans: list[Death] = []  # their pid was used again before their end was seen

    def note(self, event: Event) -> Death | None:
        """Take an event in; returns the death if that was its end and nobody works on it."""
        with self._lock:
            death = self._of(event.who.key)
            if isinstance(event, FatalSignal):
                death.fatal = death.fatal or event
            elif isinstance(event, Exit):
                death.exit = event
                if not death.held or death.settled:
                    return self._open.pop(event.who.key.pid)
            else:
                death.oom = event
            return None

    def hold(self, key: ProcessKey) -> Death:
        """The death of a process that was handed over; the caller's until `settle` or `let_go`."""
        with self._lock:
            death = self._of(key)
            death.held = True
            return death

    def settle(self, death: Death) -> bool:
        """The hand-off's work is done. True: its end was seen, the caller has all of it."""
        with self._lock:
            death.settled = True
            return self._ended(death)

    def let_go(self, death: Death, why: str) -> bool:
        """The hand-off came to nothing, so the events are all. True: they are complete."""
        with self._lock:
            death.held, death.why = False, why
            return self._ended(death)

    def _ended(self, death: Death) -> bool:
        if death.exit is None:
            death.seen = time.monotonic()
            return False
        if self._open.get(death.key.pid) is death:
            del self._open[death.key.pid]
        return True

    @property
    def waits(self) -> bool:
        """Whether `abandoned` will have something to give out if no event comes."""
        with self._lock:
            return bool(self._open or self._orphans)

    def abandoned(self, *, all_settled: bool = False) -> list[Death]:
        """Deaths whose end was not seen in time (an event was lost); they are the caller's now.

        all_settled: those that only wait for their end, however short.
        """
        now = time.monotonic()
        with self._lock:
            old = [d for d in self._open.values() if self._is_over(d, now, all_settled)]
            for death in old:
                del self._open[death.key.pid]
            orphans, self._orphans = self._orphans, []
            return old + orphans

    @staticmethod
    def _is_over(death: Death, now: float, all_settled: bool) -> bool:
        if death.settled:
            return all_settled or death.seen < now - _EXIT_S
        return not death.held and death.seen < now - _FORGET_S

    def _of(self, key: ProcessKey) -> Death:
        death = self._open.get(key.pid)
        if death is None or not death.key.is_same(key):
            if death is not None and (death.settled or not death.held):
                self._orphans.append(death)
            death = self._open[key.pid] = Death(key)
        return death
