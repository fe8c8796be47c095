"""How often captures may happen: budgets per executable and per crash site.

A budget is a sliding window: at most `limit.captures` full captures in any `limit.period`, and
at most FALLBACK_FACTOR times as many smaller ones (`stacks`, `threads`), whether asked for or
fallen back to; beyond that a death is recorded without a core. The executable's and the site's
window must have room, and that of the owner, which has OWNER_FACTOR times as much: copies of a
program are no way around, and neither are other ids of one user's namespaces, or of one container.
Each user has windows of his own, so that none uses up another's. Windows of rules with different
periods are separate.

Knows nothing of disk space or of pins; forgets everything when the agent restarts.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable

import msgspec

from collector.model import Capture
from collector.policy.site import Site
from collector.policy.types import Action, Limit
from collector.policy.units import show_duration

FALLBACK_FACTOR = 4
OWNER_FACTOR = 8
MAX_KEYS = 10_000

_OWNER = "owner"
_SMALLER = (Capture.STACKS, Capture.THREADS)
_Key = tuple[str, object, float, bool]


class Admission(msgspec.Struct, frozen=True, kw_only=True):
    """What may be captured, and why it is less than asked for (None: it is not)."""

    capture: Capture
    reason: str | None


class Limiter:
    """The windows of all executables and sites; may be used from several threads.

    `clock` gives seconds that never go back. max_keys: windows at most; beyond that the one that
    was used longest ago is forgotten.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, max_keys: int = MAX_KEYS
    ) -> None:
        self._clock = clock
        self._max_keys = max_keys
        self._lock = threading.Lock()
        self._windows: OrderedDict[_Key, deque[float]] = OrderedDict()

    def admit(
        self,
        action: Action,
        exe: str | None,
        site: Site | None,
        now: float | None = None,
        *,
        uid: int | None = None,
        owner: str | None = None,
    ) -> Admission:
        """What of `action.capture` may be done now, charged to the windows.

        Deaths whose executable is unknown share one window. `site` None: only the executable
        counts; take it from `site_of`. `now` defaults to the clock. uid: whose process it was, for
        a user's subordinate ids the user. owner: the name of whom it belongs to, where root's
        units and containers are one each; without it the uid. None: it is not known, and nobody's
        window counts.
        """
        keys: list[tuple[str, object, int]] = [("executable", (exe, uid), 1)]
        if site is not None:
            keys.append(("crash site", (site, uid), 1))
        if owner is None and uid is not None:
            owner = f"uid {uid}"
        if owner is not None:
            keys.append((_OWNER, owner, OWNER_FACTOR))
        with self._lock:
            return self._judge(action, keys, self._clock() if now is None else now)

    def _judge(self, action: Action, keys: list[tuple[str, object, int]], now: float) -> Admission:
        limit, wanted = action.limit, action.capture
        if limit is None or wanted in (Capture.RECORD, Capture.NONE):
            return Admission(capture=wanted, reason=None)
        reasons: list[str] = []
        for capture in (Capture.FULL, limit.fallback) if wanted is Capture.FULL else (wanted,):
            if capture is Capture.RECORD:
                break
            used_up = self._charge(limit, capture in _SMALLER, keys, now)
            if used_up is None:
                return Admission(capture=capture, reason=reasons[0] if reasons else None)
            reasons.append(used_up)
        return Admission(capture=Capture.RECORD, reason="; ".join(reasons))

    def _charge(
        self, limit: Limit, small: bool, keys: list[tuple[str, object, int]], now: float
    ) -> str | None:
        """Count one capture if every window has room; else say which has none."""
        windows = []
        for name, key, factor in keys:
            window = self._window((name, key, limit.period, small), now)
            windows.append(window)
            most = limit.captures * factor * (FALLBACK_FACTOR if small else 1)
            if len(window) >= most:
                kind = "smaller" if small else "full"
                span = show_duration(limit.period)
                whose = f"its owner, {key}" if name == _OWNER else f"this {name}"
                return f"limit of {most} {kind} captures per {span} used up for {whose}"
        for window in windows:
            window.append(now)
        return None

    def _window(self, key: _Key, now: float) -> deque[float]:
        """The times of a key's captures that still count, oldest first."""
        window = self._windows.get(key)
        if window is None:
            window = self._windows[key] = deque()
            if len(self._windows) > self._max_keys:
                self._windows.popitem(last=False)
        self._windows.move_to_end(key)
        while window and window[0] <= now - key[2]:
            window.popleft()
        return window
