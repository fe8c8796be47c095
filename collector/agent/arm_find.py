"""Which processes are to be armed: found in /proc, told by execve and fork; opened, and pinned.

A thread of its own, for whatever looks at a process may be kept waiting by it. It takes a tenth of
a CPU at most, however many processes are started: what is told while it rests waits, each process
once; what is too much is forgotten, and /proc is read instead.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from functools import partial

from collector.agent.arm_pin import Told, is_want, pin_process, room_for_descriptors
from collector.agent.armed import Armed, ArmedProcesses
from collector.errors import CaptureError, CorewardError
from collector.linux import procfs
from collector.policy.facts import facts_of_living
from collector.policy.match import Watcher
from collector.policy.types import USUAL_PODS, ArmRule, ArmSettings, KubernetesSettings

log = logging.getLogger(__name__)

_MOST_WAITING = 4096  # processes that were told, and not looked at yet
_BURST_S = 0.5  # of work at a time, if it has rested before
_SHARE = 0.1  # of a CPU
_SETTLE_S = 0.02  # what forks to exec has done so by then
_SCAN_S = 2.0  # between two looks at all of /proc, where it is known that some were missed
_STUCK_S, _MOST_THREADS = 10.0, 8  # a thread that takes so long at one process is left behind


class Finder:
    """Finds the processes that rules name, and has them pinned."""

    def __init__(
        self,
        armed: ArmedProcesses,
        arm: Callable[[Armed], bool],
        bpf: Told,
        give_up: Callable[[Armed, str], None],
        refuse: Callable[[str], None],
    ) -> None:
        """arm: takes one in that is pinned; False: it is not to be armed as it is. give_up: is
        told why one is armed no more. refuse: counts one that is not armed, by why."""
        self._armed, self._arm, self._bpf, self._refuse = armed, arm, bpf, refuse
        self._give_up = give_up
        self._most = ArmSettings().max
        self._settings = ArmSettings()
        self._rules: Watcher[ArmRule] = Watcher(())
        self._lock = threading.Condition()
        self._waiting: dict[int, tuple[float, ArmRule | None]] = {}  # pid -> when, and its rule
        self._scan_at: float | None = None
        self._refused: set[int] = set()  # pids that cannot be armed, until they exec or are gone
        self._tried: set[int] = set()  # those that could not be armed, and are tried once more
        self._full = False  # some were left out for want of room
        self._ending = False
        self._threads = 0  # that were begun; the last one counts
        self._since: float | None = None  # when it began to look at a process
        self._credit, self._rested = _BURST_S, time.monotonic()

    def apply(self, settings: ArmSettings, kubernetes: KubernetesSettings = USUAL_PODS) -> None:
        """These rules are in force, and every process is looked at."""
        with self._lock:
            self._settings = settings
            self._rules = Watcher(settings.rules, kubernetes)
            self._most = min(settings.max, room_for_descriptors())
            if self._most < settings.max and settings.rules:
                log.warning("arm.max: there are descriptors for %d processes only", self._most)
            self._refused.clear()
            self._scan_at = time.monotonic()
            if not self._threads and settings.rules:
                self._begin()
            self._lock.notify()

    def _begin(self) -> None:
        self._threads += 1
        threading.Thread(
            target=self._run, args=(self._threads,), name="arm-find", daemon=True
        ).start()

    def check(self) -> None:
        """Leave a thread behind that a process keeps waiting, and go on with another one."""
        with self._lock:
            since = self._since
            if since is None or time.monotonic() - since < _STUCK_S:
                return
            self._since = None
            self._refuse("hangs")
            self.missed()  # what it was to look at next
            if self._threads < _MOST_THREADS:
                self._begin()
            else:
                log.error("no more processes are armed: %d keep us waiting", self._threads)

    def rule_for(self, pid: int) -> ArmRule | None:
        """The first rule that names a process which lives."""
        return self._rules.rule_of(pid)

    def started(self, pid: int, rule: ArmRule | None = None, *, forked: bool = False) -> None:
        """A process is another one now, or new. rule: that of its parent, which goes for it."""
        with self._lock:
            self._refused.discard(pid)
            if pid not in self._waiting and len(self._waiting) >= _MOST_WAITING:
                self.missed()
                return
            known = self._waiting.get(pid)
            if known is not None and rule is None:
                rule = known[1]
            self._waiting[pid] = time.monotonic() + (_SETTLE_S if forked else 0), rule
            self._lock.notify()

    def missed(self) -> None:
        """Some processes were not told: look at all of them, soon."""
        with self._lock:
            if self._scan_at is None:
                self._scan_at = time.monotonic() + _SCAN_S
            self._lock.notify()

    def freed(self) -> None:
        """There is room for one more."""
        if self._full:
            self._full = False
            self.missed()

    def close(self) -> None:
        with self._lock:
            self._ending = True
            self._lock.notify()

    def _run(self, number: int) -> None:
        while not self._ending and number == self._threads:
            for pid, rule in self._next():
                self._since = time.monotonic()
                before = time.thread_time()
                try:
                    self.consider(pid, rule)
                except Exception:
                    log.exception("process %d cannot be armed", pid)
                if number != self._threads:
                    return  # it took too long
                self._since = None
                self._rest(time.thread_time() - before)

    def _rest(self, worked: float) -> None:
        """What was not used of its share it may use later, up to a bound."""
        now = time.monotonic()
        self._credit = min(_BURST_S, self._credit + (now - self._rested) * _SHARE) - worked
        self._rested = now
        if self._credit < 0:
            time.sleep(-self._credit / _SHARE)

    def _next(self) -> list[tuple[int, ArmRule | None]]:
        """Wait for processes to look at."""
        with self._lock:
            while not self._ending:
                now = time.monotonic()
                if self._scan_at is not None and now >= self._scan_at:
                    self._scan_at = None
                    return [(pid, None) for pid in procfs.process_ids() if pid not in self._refused]
                due = [(pid, rule) for pid, (at, rule) in self._waiting.items() if at <= now]
                if due:
                    for pid, _ in due:
                        del self._waiting[pid]
                    return due
                times = [at for at, _ in self._waiting.values()]
                if self._scan_at is not None:
                    times.append(self._scan_at)
                self._lock.wait(min(times) - now if times else None)
        return []

    def consider(self, pid: int, rule: ArmRule | None) -> None:
        """Arm this process, if a rule names it. rule: that goes for it in any case, while it is in
        force."""
        if self._armed.knows(pid) or pid == os.getpid():
            return
        forced = rule is not None and rule in self._settings.rules
        rule = rule if forced else self.rule_for(pid)
        if rule is None:
            return
        if not self._armed.begin(pid, self._most) and not self._begin_instead(pid):
            return
        one, trouble = None, None
        try:
            # an execve after the first look at it may have been told before `begin`
            still = partial(self._is_still, pid, None if forced else rule)
            one = pin_process(pid, rule, self._bpf, still)
        except (CorewardError, OSError) as error:
            if not isinstance(error, CaptureError) or is_want(error):  # else it has ended
                trouble = error
        finally:
            if one is None:
                execed = self._armed.end(pid)
            elif execed := not self._arm(one):
                one.close()
                self._bpf.forget(one.key)
            if execed:
                self.started(pid, rule if rule.children else None)
        if trouble is None or execed:
            self._tried.discard(pid)
        else:
            self._not_armed(pid, rule if forced else None, trouble)

    def _begin_instead(self, pid: int) -> bool:
        """There are as many as there may be: one of a user who has more gives way, if there is."""
        if self._armed.knows(pid):
            return False
        other = self._armed.to_give_way(facts_of_living(pid).uid or 0)
        if other is not None:
            self._give_up(other, "another user's process had to be armed instead")
        self._refuse("max")
        self._full = True
        return other is not None and self._armed.begin(pid, self._most)

    def _is_still(self, pid: int, rule: ArmRule | None) -> bool:
        return rule is None or self.rule_for(pid) == rule

    def _not_armed(self, pid: int, rule: ArmRule | None, why: Exception) -> None:
        """Try it once more, for it may have exec'ed just now, which is not told yet."""
        if pid not in self._tried:
            self._tried.add(pid)
            self.started(pid, rule, forked=True)
            return
        self._tried.discard(pid)
        self._refuse("failed")
        if len(self._refused) >= _MOST_WAITING:
            self._refused.clear()
        self._refused.add(pid)
        log.warning("process %d cannot be armed: %s", pid, why)
