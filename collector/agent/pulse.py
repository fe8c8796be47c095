"""Whether the flow moves: what the service manager's watchdog is fed by.

A beat goes where a death goes: from the main thread to a worker that decides, from there to the one
that makes records, and back. Only when it is round does the watchdog hear of us. A stage in which
all workers hang lets no beat through, and neither does a main thread that hangs, for it starts the
beats. Stages in which one death may rightly take long are looked at instead: not all of their
workers may be at one task for longer than that can take.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Protocol

log = logging.getLogger(__name__)

_PER_WATCHDOG = 4  # beats in the time after which we would be ended
_AGAIN_S = 0.2  # when a lane was full


class Stage(Protocol):
    """A lane that a beat goes through."""

    name: str

    def submit(self, task: Callable[[], None], *, first: bool) -> bool: ...


class Slow(Protocol):
    """Workers of whom each may rightly be at one task for a while."""

    name: str

    def stuck_s(self) -> float:
        """For how many seconds none of them has begun another task; 0: one is free."""
        ...


class Pulse:
    """Its methods are for the main thread, which `wake` wakes from any thread."""

    def __init__(
        self,
        watchdog_s: float,
        through: Sequence[Stage],
        slow: Sequence[tuple[Slow, float]],
        feed: Callable[[], None],
        wake: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """slow: with the seconds that one task may take."""
        self._every = watchdog_s / _PER_WATCHDOG
        self._through, self._slow = through, slow
        self._feed, self._wake, self._clock = feed, wake, clock
        self._next = clock()
        self._under_way = False
        self._came: bool | None = None  # set by a worker: it is round, or a lane was full
        self._blamed = ""  # the stage that was last said to hang

    @property
    def timeout_ms(self) -> int:
        """In how many milliseconds `look` wants to be called again; -1: `wake` will say."""
        if self._under_way:
            return -1
        return max(0, math.ceil((self._next - self._clock()) * 1000))

    def look(self) -> None:
        """Feed the watchdog if a beat has come round; start the next one if it is time."""
        came, now = self._came, self._clock()
        if came is not None:
            self._came, self._under_way = None, False
            self._next = now + (self._every if came else _AGAIN_S)
            if came and self._is_moving():
                self._feed()
        if not self._under_way and now >= self._next:
            self._under_way = True  # first: it may be round before this returns
            self._pass_on(0)

    def _is_moving(self) -> bool:
        hanging = [
            (stage.name, age) for stage, most in self._slow if (age := stage.stuck_s()) > most
        ]
        blamed = hanging[0][0] if hanging else ""
        if hanging and blamed != self._blamed:
            log.error("%s: no worker has ended its task for %.0f s: the agent hangs", *hanging[0])
        self._blamed = blamed
        return not hanging

    def _pass_on(self, index: int) -> None:
        """Give the beat to this stage; behind the last one it is round."""
        if index < len(self._through):
            if self._through[index].submit(lambda: self._pass_on(index + 1), first=True):
                return
            self._came = False
        else:
            self._came = True
        self._wake()
