"""The registry of deaths that are not yet on record: from pid and start time to the one value.

Joins what is seen of one death: BPF events and the kernel's hand-off, in any order. A hand-off
knows the start time to a clock tick, an event to a nanosecond: the tick is what counts. Nothing
here reads the system.
"""

from __future__ import annotations

import threading
import time

from collector.agent.crash import Crash, State
from collector.model import Event, Exit, FatalSignal, ProcessKey

_FORGET_S = 120.0  # an unfinished death is looked at again after this long
_EXIT_S = 5.0  # the end of a released process is waited for no longer
_ENDED = 4096  # deaths that are remembered for a hand-off that is looked at too late


class Registry:
    """Thread-safe.

    A death is given out once: by `note` when its end is seen, unless somebody holds it; by
    `settle` or `give_back`, if its end was seen while it was held; else by `abandoned`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._crashes: dict[ProcessKey, Crash] = {}  # by ProcessKey.to_tick()
        self._late: set[ProcessKey] = set()  # the same
        self._ended: dict[ProcessKey, None] = {}  # the same: given out by `note`, the oldest first

    def note(self, event: Event, *, late: bool = False) -> Crash | None:
        """Take an event in; returns the death if that was its end and nobody works on it.

        late: it happened while no agent ran.
        """
        with self._lock:
            crash = self._of(event.who.key)
            if late:
                self._late.add(crash.key.to_tick())
            if isinstance(event, FatalSignal):
                crash.seen.fatal = crash.seen.fatal or event
            elif isinstance(event, Exit):
                crash.seen.exit = event
                if crash.state is not State.HELD:
                    return self._end(crash)
            else:
                crash.seen.oom = event
            return None

    def _end(self, crash: Crash) -> Crash:
        at = crash.key.to_tick()
        self._ended[at] = None
        if len(self._ended) > _ENDED:
            del self._ended[next(iter(self._ended))]
        return self._crashes.pop(at)

    def hold(self, key: ProcessKey) -> Crash | None:
        """The death of a process that was handed over; the caller's until `settle`.

        None: it was let go before anybody looked at it, and its death was given out already.
        """
        with self._lock:
            if key.to_tick() in self._ended:
                return None
            crash = self._of(key)
            crash.state = State.HELD
            return crash

    def expect(self, key: ProcessKey) -> None:
        """This process was released, and its worker is still to come; or it has come meanwhile."""
        with self._lock:
            crash = self._of(key)
            if crash.state is State.SEEN and crash.not_held is None:
                crash.state = State.HELD

    def claimed(self, key: ProcessKey) -> Crash | None:
        """The death that was expected, and is the caller's until `settle` or `give_back`."""
        with self._lock:
            crash = self._crashes.get(key.to_tick())
            return crash if crash is not None and crash.state is State.HELD else None

    def settle(self, crash: Crash, *, blind: bool) -> bool:
        """The hand-off's work is done. True: its end was seen, the caller has all of it.

        blind: nobody will tell its end, so it is complete.
        """
        with self._lock:
            crash.state = State.DONE
            return self._is_complete(crash, blind)

    def give_back(self, crash: Crash, why: str, *, blind: bool) -> bool:
        """The hand-off came to nothing, so the events are all. True: they are complete."""
        with self._lock:
            crash.state, crash.not_held = State.SEEN, why
            return self._is_complete(crash, blind)

    def _is_complete(self, crash: Crash, blind: bool) -> bool:
        crash.since = time.monotonic()
        if crash.seen.exit is None and not blind:
            return False
        self._crashes.pop(crash.key.to_tick(), None)
        return True

    @property
    def waits(self) -> bool:
        """Whether `abandoned` will have something to give out if no event comes."""
        with self._lock:
            return bool(self._crashes)

    def abandoned(self, *, all_done: bool = False) -> list[Crash]:
        """Deaths whose end was not seen in time (an event was lost); they are the caller's now.

        all_done: those that only wait for their end, however short.
        """
        now = time.monotonic()
        with self._lock:
            old = [c for c in self._crashes.values() if _is_over(c, now, all_done)]
            for crash in old:
                del self._crashes[crash.key.to_tick()]
            return old

    def knows(self, key: ProcessKey) -> bool:
        """Whether this death is still to be given out, or BPF saw it while no agent ran."""
        at = key.to_tick()
        with self._lock:
            return at in self._late or at in self._crashes

    def _of(self, key: ProcessKey) -> Crash:
        at = key.to_tick()
        crash = self._crashes.get(at)
        if crash is None:
            crash = self._crashes[at] = Crash(key)
        return crash


def _is_over(crash: Crash, now: float, all_done: bool) -> bool:
    if crash.state is State.DONE:
        return all_done or crash.since < now - _EXIT_S
    return crash.state is State.SEEN and crash.since < now - _FORGET_S
