"""Armed processes: pinned while they live, so that whatever kills them leaves their memory.

The kernel hands over only what dumps core. What a policy's `arm` rules name has its memory pinned
beforehand, and BPF tells each of its threads, with its registers, as it leaves. This is the thread
that waits for that, and for the ends of these processes by their pidfds; it looks at no process. An
execve makes another process of one, whose old memory is given up at once. `arm_find` finds and
pins, `arm_death` takes a death on its way through the stages.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from functools import partial

from collector.agent.arm_death import died, give_back
from collector.agent.arm_find import Finder
from collector.agent.armed import Armed, ArmedProcesses
from collector.agent.context import Context
from collector.agent.events import take_events
from collector.errors import ProbeError
from collector.linux.pidfd import has_ended
from collector.model import Cause, ProcessKey
from collector.policy.match import Watcher
from collector.policy.types import USUAL_PODS, ArmRule, ArmSettings, KubernetesSettings
from collector.probe.armed import FOLLOW_CHILDREN, TELL_EXIT, ArmedProbe, Started

log = logging.getLogger(__name__)

_JOIN_S = 5.0
_REST_S = 0.002  # where programs are started all the time: many are taken in at once
_LOOK_S = 5.0  # at whether a process keeps us waiting


class Arming:
    """Begins with the first policy that has rules. `apply` and `close` are for one thread."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._armed: ArmedProcesses = context.armed
        self._probe: ArmedProbe | None = None
        self._thread: threading.Thread | None = None
        refused = context.metrics.arm_refused
        self._finder = Finder(
            self._armed, self._add, self, self._give_up, lambda why: refused.labels(why).inc()
        )
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        context.metrics.armed.set_function(self._armed.__len__)
        # who is armed, whose end is waited for, and who has a rule in force, are the same
        self._lock = threading.Lock()
        self._rules: tuple[ArmRule, ...] = ()
        self._by_fd: dict[int, Armed] = {}
        self._dropped = 0
        self._active = False
        self._ending = False

    def apply(self, settings: ArmSettings, kubernetes: KubernetesSettings = USUAL_PODS) -> None:
        """These rules are in force. What no rule names any more is given up."""
        if self._probe is None and not (settings.rules and self._begin()):
            return
        assert self._probe is not None
        if settings.rules and not self._active:
            self._probe.begin()
        with self._lock:
            self._rules = settings.rules  # nobody is taken in any more by a rule that is gone
        self._finder.apply(settings, kubernetes)
        rules = Watcher(settings.rules, kubernetes)
        for one in self._armed.all():
            rule = rules.rule_of(one.key.pid)
            follows = one.rule.children and one.rule in settings.rules
            if rule != one.rule and not follows:
                self._give_up(one, "its rule was changed just before")
        if not settings.rules:
            self._probe.end()
        self._active = bool(settings.rules)

    def _begin(self) -> bool:
        context = self._context
        if context.probe is None:
            log.error("no process can be armed: there is no BPF")
            return False
        try:
            self._probe = context.armed_probe = ArmedProbe(context.probe.directory)
        except ProbeError as error:
            log.error("no process can be armed: %s", error)
            return False
        context.native.know_armed(self._probe.armed_map)
        for fd in (self._wake, self._probe.fileno()):
            self._epoll.register(fd, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, name="arm", daemon=True)
        self._thread.start()
        return True

    def close(self) -> None:
        """Give up all memory; what has died is on its way already."""
        self._finder.close()
        self._ending = True
        os.eventfd_write(self._wake, 1)
        if self._thread is not None:
            self._thread.join(_JOIN_S)
        if self._probe is not None:
            self._probe.end()
        for one in self._armed.all():
            self._give_up(one, "the agent was stopped just before")

    # ---- from whoever finds

    def tell(self, key: ProcessKey, rule: ArmRule) -> None:
        """Have BPF tell its threads from now on."""
        assert self._probe is not None
        flags = TELL_EXIT if Cause.EXIT in rule.on else 0
        self._probe.arm(key, flags | (FOLLOW_CHILDREN if rule.children else 0))

    def forget(self, key: ProcessKey) -> int:
        """Not any more; how many could not be told."""
        assert self._probe is not None
        return self._probe.disarm(key)

    def _add(self, one: Armed) -> bool:
        """Its end is waited for from now on; it may have come already. False: it is another
        program now, or no rule in force is its."""
        with self._lock:
            if not self._armed.add(one, still=one.rule in self._rules):
                return False
            self._by_fd[one.pidfd] = one
            self._epoll.register(one.pidfd, select.EPOLLIN | select.EPOLLONESHOT)
        log.debug("armed: process %d, by rule %s", one.key.pid, one.rule.name)
        return True

    # ---- the thread

    def _run(self) -> None:
        assert self._probe is not None
        while not self._ending:
            found = [fd for fd, _ in self._epoll.poll(_LOOK_S)]
            self._finder.check()
            try:
                self._take_in()
                ended = [one for one in map(self._by_fd.get, found) if one is not None]
                for one in ended:
                    self._ended(one)
                if not ended:
                    time.sleep(_REST_S)
            except Exception:
                self._context.metrics.errors.labels("arm").inc()
                log.exception("armed processes")

    def _take_in(self) -> None:
        assert self._probe is not None
        while records := self._probe.drain():
            for record in records:
                if isinstance(record, Started):
                    self._started(record)
                else:
                    self._armed.left(record)
        probe = self._context.probe
        dropped = 0 if probe is None else probe.counters().dropped_started
        if dropped != self._dropped:
            self._dropped = dropped
            self._finder.missed()

    def _started(self, told: Started) -> None:
        pid = told.key.pid
        if told.parent is not None:
            rule = self._armed.rule_of(told.parent)
            follows = rule is not None and rule.children
            self._finder.started(pid, rule if follows else None, forked=True)
            return
        with self._lock:
            old = self._armed.exec(pid)
            if old is not None:
                # now, for all that is known by its pid will be of the other program soon
                self._forget(old)
        if old is None:
            self._finder.started(pid)
            return
        give_back(self._context, old, "it had called execve just before")
        self._finder.started(pid, old.rule if old.rule.children else None)
        old.close()

    def _ended(self, one: Armed) -> None:
        """All its threads have ended, and are told; so is its death, if it is one that is told."""
        take_events(self._context)
        with self._lock:
            if not has_ended(one.pidfd) or not self._armed.take(one):
                return  # its descriptor had been another one's
            dropped = self._forget(one)
        work = partial(died, self._context, one, dropped)
        if not self._context.lanes.handoffs.submit(work, dropped=one.close):
            work()

    def _give_up(self, one: Armed, why: str) -> None:
        """Its memory goes; it lives on without us, or has just died and was expected here."""
        with self._lock:
            if not self._armed.take(one):
                return
            self._forget(one)
        one.close()
        give_back(self._context, one, why)

    def _forget(self, one: Armed) -> int:
        """How many of its threads could not be told."""
        self._by_fd.pop(one.pidfd, None)
        self._epoll.unregister(one.pidfd)
        self._finder.freed()
        return self.forget(one.key)
