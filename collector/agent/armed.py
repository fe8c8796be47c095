"""Who is armed: processes whose memory is pinned while they live, by pid. Nothing here reads /proc.

One that is being armed may exec meanwhile: then what was pinned is of the program before, and is
not taken in. So whoever arms says `begin` first, and `add` says whether it still holds.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from typing import TYPE_CHECKING

from collector.agent.assemble import CORE_BIT
from collector.model import Exit, ProcessKey

if TYPE_CHECKING:
    from collector.capture.process import OpenProcess
    from collector.handoff.pin import Pin
    from collector.policy.types import ArmRule
    from collector.probe.armed import LeavingThread


class Armed:
    """One armed process. Owns what is open of it until `close`, or until it is taken out of it."""

    def __init__(
        self, key: ProcessKey, rule: ArmRule, opened: OpenProcess, pin: Pin, pidfd: int
    ) -> None:
        self.key = key  # exact to a tick
        self.rule = rule
        self.opened = opened
        self.pin = pin
        self.pidfd = pidfd
        self.uid = opened.uid
        self.threads: dict[int, LeavingThread] = {}  # that have left, by tid
        self._closed = False

    def close(self) -> None:
        """Give its memory up, and all that is open of it. Again does nothing."""
        if self._closed:
            return
        self._closed = True
        self.pin.release()
        self.opened.close()
        os.close(self.pidfd)


def is_handed_over(exited: Exit, *, has_handoff: bool) -> bool:
    """Whether its core is that of a crash."""
    return has_handoff and bool(exited.status & CORE_BIT)


class ArmedProcesses:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._armed: dict[int, Armed] = {}
        self._beginning: dict[int, bool] = {}  # pid -> whether it has exec'ed meanwhile

    def __len__(self) -> int:
        with self._lock:
            return len(self._armed)

    def begin(self, pid: int, most: int) -> bool:
        """Somebody arms this process; False if it is armed already, or `most` are."""
        with self._lock:
            if pid in self._armed or pid in self._beginning:
                return False
            if len(self._armed) + len(self._beginning) >= most:
                return False
            self._beginning[pid] = False
            return True

    def to_give_way(self, uid: int) -> Armed | None:
        """For one more of this user: the newest of the user that has most, if that leaves both
        with as many, or him with more."""
        with self._lock:
            users = Counter(one.uid for one in self._armed.values())
            if not users:
                return None
            most, count = users.most_common(1)[0]
            if count < users[uid] + 2:
                return None
            return next(one for one in reversed(self._armed.values()) if one.uid == most)

    def add(self, one: Armed, *, still: bool = True) -> bool:
        """It is armed; False if it has exec'ed since `begin`, or is not `still` to be armed: then
        it is the caller's to close."""
        with self._lock:
            if self._beginning.pop(one.key.pid, True) or not still:
                return False
            self._armed[one.key.pid] = one
            return True

    def end(self, pid: int) -> bool:
        """It could not be armed; whether it has exec'ed since `begin`."""
        with self._lock:
            return self._beginning.pop(pid, False)

    def exec(self, pid: int) -> Armed | None:
        """This process has exec'ed; what was armed of it is the caller's to close."""
        with self._lock:
            if pid in self._beginning:
                self._beginning[pid] = True
            return self._armed.pop(pid, None)

    def rule_of(self, pid: int) -> ArmRule | None:
        with self._lock:
            one = self._armed.get(pid)
            return None if one is None else one.rule

    def awaits(self, exited: Exit, *, has_handoff: bool) -> bool:
        """Whether this is the end of an armed process, and no hand-off comes for it."""
        with self._lock:
            one = self._armed.get(exited.who.key.pid)
            same = one is not None and one.key.is_same(exited.who.key)
            return same and not is_handed_over(exited, has_handoff=has_handoff)

    def knows(self, pid: int) -> bool:
        with self._lock:
            return pid in self._armed or pid in self._beginning

    def left(self, thread: LeavingThread) -> None:
        """A thread has ended with its process. Older kernels say so twice: the first counts."""
        with self._lock:
            one = self._armed.get(thread.key.pid)
            if one is not None and one.key.is_same(thread.key):
                one.threads.setdefault(thread.tid, thread)

    def take(self, one: Armed) -> bool:
        """It is not armed any more, and the caller's; False if it was not."""
        with self._lock:
            if self._armed.get(one.key.pid) is not one:
                return False
            del self._armed[one.key.pid]
            return True

    def all(self) -> list[Armed]:
        with self._lock:
            return list(self._armed.values())
