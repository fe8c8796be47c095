"""What is kept of a death that was seen before: the first whole, the next ones less.

When this is decided nobody has unwound a stack: what tells one bug from another by then is its
*place*, the executable as it is on disk and the code at which the process died. A new build is
another place, and so is a bug that came back in one: both count as new.

Forgets everything when the agent restarts, as limits do.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from collector.model import Capture, Signature
from collector.policy.site import Site
from collector.policy.types import Collect
from collector.policy.units import show_duration

MAX_PLACES = 1000


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a bug before its stack is. None: not known."""

    uid: int | None
    exe: str | None
    version: tuple[int, int] | None  # size and time of change of the executable
    signal: int | None
    site: Site | None
    caller: int | None = None  # of a fault in a library: who called it, as offset in the executable

    @property
    def is_exact(self) -> bool:
        """Whether deaths there may be taken for the same bug."""
        return self.site is not None


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """What is captured of one death, and why."""

    capture: Capture
    number: int  # of this death among those at the place, from 1
    why: str | None  # None: it is the first


class _Seen:
    """What is remembered of a place."""

    __slots__ = ("count", "signature", "start")

    def __init__(self, start: float) -> None:
        self.start = start  # of the period
        self.count = 0
        self.signature: Signature | None = None


class Places:
    """The places at which processes died last; may be used from several threads.

    `clock` gives seconds that never go back. Beyond `most` places the one that was used longest ago
    is forgotten.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, most: int = MAX_PLACES) -> None:
        self._clock = clock
        self._most = most
        self._lock = threading.Lock()
        self._seen: OrderedDict[Place, _Seen] = OrderedDict()

    def stage(self, collect: Collect, place: Place) -> Stage:
        """What the next death there is worth; it counts when `captured` says so."""
        now = self._clock()
        with self._lock:
            seen = self._seen_at(place, now)
            if now - seen.start >= collect.period:
                seen.start, seen.count = now, 0
            number = seen.count + 1
        span = show_duration(collect.period)
        if number == 1:
            return Stage(capture=collect.first, number=number, why=None)
        if number <= 1 + collect.times:
            why = f"collect: death {number} at this place within {span}"
            return Stage(capture=collect.then, number=number, why=why)
        why = f"collect: {number - 1} deaths at this place within {span} were captured already"
        return Stage(capture=collect.after, number=number, why=why)

    def captured(self, place: Place) -> None:
        """A death there was admitted as its stage has it; else the next one gets the same."""
        with self._lock:
            self._seen_at(place, self._clock()).count += 1

    def learn(self, place: Place, signature: Signature) -> None:
        """What the stack of a death there said."""
        with self._lock:
            self._seen_at(place, self._clock()).signature = signature

    def signature(self, place: Place) -> Signature | None:
        """Of a death at the same place, the last one that was unwound."""
        if not place.is_exact:
            return None
        with self._lock:
            seen = self._seen.get(place)
            return None if seen is None else seen.signature

    def _seen_at(self, place: Place, now: float) -> _Seen:
        seen = self._seen.get(place)
        if seen is None:
            seen = self._seen[place] = _Seen(now)
            if len(self._seen) > self._most:
                self._seen.popitem(last=False)
        self._seen.move_to_end(place)
        return seen
