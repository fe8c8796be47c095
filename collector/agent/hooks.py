"""hooks: programs of the policy's that get the record of a death on their stdin, once it is closed.

Nobody waits for them. Each runs for so long and as the user that policy says, in a session of its
own, which is killed as a whole when its time is over. A few run at a time, some wait, and each is
started so many times a minute: what is beyond is counted, and the record is in the store all the
same. The death of a hook has no hook.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pwd
import signal
import subprocess
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from msgspec.structs import replace

from collector.linux import children
from collector.model import Cause, Record
from collector.policy.match import Matcher
from collector.policy.types import Action, Facts, Hook, Match, Policy, Rule
from collector.store.encoding import json_line
from collector.workers import Lane

if TYPE_CHECKING:
    from collector.export.metrics import Metrics

log = logging.getLogger(__name__)

WORKERS = 2
_WAITING = 64  # deaths, of all hooks
_A_MINUTE = 60  # runs of one hook
_NICE = 10
_NOBODY = "nobody"


class _Compiled:
    """One hook made ready."""

    def __init__(self, hook: Hook) -> None:
        self.hook = hook
        rule = Rule(name=hook.name, match=hook.match, action=Action())
        self._matcher = None if hook.match == Match() else Matcher(Policy(rules=(rule,)))
        self._begun: deque[float] = deque(maxlen=_A_MINUTE)  # its last runs

    def wants(self, record: Record) -> bool:
        """Whether the hook names this death."""
        if self._matcher is None:
            return True
        facts = Facts(
            cause=record.cause,
            exe=record.exe,
            comm=record.comm,
            cgroup=record.cgroup,
            unit=record.unit,
            uid=record.uid,
            signal=record.signal,
            container=record.container,
            of_pod=record.pod,
        )
        if self.hook.match.cause is None:  # an exit that is on record was asked for
            facts = replace(facts, cause=Cause.SIGNAL)
        return self._matcher.decide(facts).rule == self.hook.name

    def has_turn(self) -> bool:
        """Whether it may run once more in this minute."""
        now = time.monotonic()
        if len(self._begun) == _A_MINUTE and now - self._begun[0] < 60:
            return False
        self._begun.append(now)
        return True


class Hooks:
    """Those of the policy in force. `died` is for any thread."""

    def __init__(self, metrics: Metrics, lane: Lane | None = None) -> None:
        self._metrics = metrics
        self._lane = lane or Lane("hook", WORKERS, _WAITING)
        self._hooks: tuple[_Compiled, ...] = ()

    def configure(self, hooks: tuple[Hook, ...]) -> None:
        self._hooks = tuple(_Compiled(hook) for hook in hooks)

    def died(self, record: Record) -> None:
        """Have the hooks run that name this death; never waits."""
        if record.ppid == os.getpid():  # a hook, or another helper of ours: it would go on for ever
            return
        for one in self._hooks:
            if not one.wants(record):
                continue
            dropped = partial(self._count, "dropped")
            task = partial(self._run, one.hook, record)
            if not one.has_turn() or not self._lane.submit(
                task, dropped=dropped, owner=one.hook.name
            ):
                dropped()

    def close(self, seconds: float) -> None:
        """End: those that run have so long, and those that wait are dropped."""
        self._lane.wait_idle(seconds)
        self._lane.close()

    def _count(self, outcome: str) -> None:
        self._metrics.hook_runs.labels(outcome).inc()

    def _run(self, hook: Hook, record: Record) -> None:
        outcome = "failed"
        try:
            status = run(hook, record)
        except (OSError, KeyError, subprocess.SubprocessError) as error:
            log.error("hook %s: %s cannot be run: %s", hook.name, hook.exec[0], error)
        else:
            outcome = "hung" if status is None else "failed" if status else "done"
            if status is None:
                log.warning("hook %s: killed after %g s", hook.name, hook.timeout)
            elif status:
                log.warning("hook %s: %s ended with status %d", hook.name, hook.exec[0], status)
        self._count(outcome)


def run(hook: Hook, record: Record) -> int | None:
    """Run it for one death; its exit status, None if it took too long. OSError, KeyError."""
    with open(os.memfd_create("record", os.MFD_CLOEXEC), "w+b") as stdin:
        stdin.write(json_line(record).encode())
        stdin.seek(0)
        child = children.start(
            hook.exec,
            _NICE,
            stdin=stdin,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={"PATH": os.defpath, "COREWARD_ID": record.id, "COREWARD_HOOK": hook.name},
            start_new_session=True,
            **_identity(hook),
        )
    ended = children.has_ended(child.pid, hook.timeout)
    # what it has started goes with it; its number is nobody else's until it is reaped
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    children.kill(child)
    return child.returncode if ended else None


def _identity(hook: Hook) -> dict[str, object]:
    """Who it runs as, for subprocess.Popen; nothing where we could not be another one."""
    if os.geteuid() != 0:
        return {}
    found = pwd.getpwnam(_NOBODY) if hook.user is None else pwd.getpwuid(hook.user)
    return {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": []}
