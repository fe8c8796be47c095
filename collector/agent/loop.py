"""The agent's main thread: it waits, takes events in, applies policy, and ends in order.

A death goes from stage to stage, in this order and by these threads:

    probe    events come in and are joined           `events`    main thread, or who needs them
    accept   the kernel hands a process over         `accept`    threads of its own, natively
    gather   registers, mappings, files              `gather`    the same
    release  pin and release, or hold                `hold`      the same; if something has to be
                                                                 weighed, after `decide`
    decide   policy, limits                          `decide`    lane `handoff`; if the process is
                                                                 held, whoever accepted it
    write    a process of its own writes the core    `write`     lane `capture`
    explain  another one unwinds the stack           `explain`   lane `explain`, or `kill`
    export   store, metrics, one line                `export`    whoever is last

`flow` has it in one place. What no hand-off came for is recorded in `unheld`. What happens before
the release is as little as can be; whatever queues, queues behind it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from collector.agent.accept import Acceptor
from collector.agent.context import Context
from collector.agent.events import ended, take_events
from collector.agent.export import close, store_again
from collector.agent.flow import arrived
from collector.agent.pods import learn_of_pods
from collector.agent.release import most_pinned
from collector.agent.storm import Storms
from collector.agent.unheld import Notes
from collector.errors import HoldError
from collector.handoff.backends import NoBackend
from collector.handoff.native import Native
from collector.handoff.overwrites import Overwrites
from collector.model import Capture, Outcome, Record
from collector.policy.match import all_instant, wants_exits
from collector.policy.types import ArmSettings, DumperRule, Hook, Policy
from collector.workers import USUAL_S

if TYPE_CHECKING:
    from collector.agent.arm import Arming
    from collector.agent.service import Service
    from collector.dumpers.plugins import Plugins

log = logging.getLogger(__name__)

_FINISH_S = 45.0  # for all that is being worked on when the agent is to end
_LAST_S = 10.0  # and for what then is only to be put on record; both below TimeoutStopSec
_TOLD_S = 5.0  # and for the sinks, of deaths that are on record
_LEFT_S = 5.0  # instead of the first, when processes wait for the next agent meanwhile
_SETTLE_MS = 20  # how often is looked whether all is finished, when it is to be
_RECORDS_GO_ON = 2  # where cores end at `store.min_free`, records do at this part of it
_LOOK_MS = 5000  # how often is looked at deaths whose end does not come, and at the unstored


class Agent:
    """Owns every part; `run` returns after `stop`. One per host and run directory."""

    def __init__(self, context: Context) -> None:
        self._context = context
        metrics, pins = context.metrics, context.pins
        metrics.pins.set_function(lambda: pins.totals().count)
        metrics.pinned.set_function(lambda: pins.totals().bytes)
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._acceptor: Acceptor | None = None
        self._storms = Storms()
        self._arming: Arming | None = None  # begins with the first rules of `arm`
        self._plugins: Plugins | None = None  # begin with the first of `dumpers`
        self._store_again_at = 0.0  # of time.monotonic
        self._stopping = False
        self._reload = False
        self.service: Service | None = None  # where a service manager wants to hear of us

    # ---- the main thread: wait, take in, hand on

    def catch_up(self) -> None:
        """Put on record what happened before: while no agent was there, or to one that was killed.

        To be called before the kernel hands anything over: then nobody waits for it.
        """
        self._context.sinks.configure(self._context.policy.policy.sinks)
        self._give_up_interrupted()
        take_events(self._context)

    def run(self) -> None:
        """Work until `stop`. What is then being captured is finished first."""
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        self._apply_policy()
        learn_of_pods(self._context)
        self._start_accepting()
        if self.service is not None:
            self.service.ready(self._acceptor)
        self._take_notes()
        while not self._stopping:
            self._wait()
            self._look()
            if take_events(self._context):
                self._storms.stir()
            self._storms.look(self._context)
            self._store_again()
            self._context.retention.look(self._context)
            if self._reload:
                self._reload = False
                self._apply_reload()
        self._finish()

    def _start_accepting(self) -> None:
        """Have threads see to what was handed over, also while we started."""
        backend = self._context.backend
        if not isinstance(backend, NoBackend):
            self._acceptor = Acceptor(backend, partial(arrived, self._context))

    def _apply_policy(self) -> None:
        context, policy = self._context, self._context.policy.policy
        if context.probe is not None:
            context.probe.set_want_exits(wants_exits(policy))
            context.probe.set_has_handoff(not isinstance(context.backend, NoBackend))
        allow(context.native, policy)
        context.store.min_free = policy.store.min_free // _RECORDS_GO_ON
        context.recorder.configure(policy)
        context.sinks.configure(policy.sinks)
        for watch in policy.watch:
            for trigger in watch.triggers:
                context.metrics.fires(watch.name, trigger.name)
        self._arm(policy.arm)
        self._run_plugins(policy.dumpers)
        self._run_hooks(policy.hooks)

    def _run_plugins(self, rules: tuple[DumperRule, ...]) -> None:
        if self._plugins is None:
            if not rules or self._context.open_hub is None:
                return
            # few policies have such rules
            from collector.dumpers.plugins import Plugins  # noqa: PLC0415

            self._plugins = Plugins(self._context.open_hub(), self._context.run_dir)
        self._plugins.configure(rules)

    def _run_hooks(self, hooks: tuple[Hook, ...]) -> None:
        if self._context.hooks is None:
            if not hooks:
                return
            from collector.agent.hooks import Hooks  # noqa: PLC0415 - few policies have any

            self._context.hooks = Hooks(self._context.metrics)
        self._context.hooks.configure(hooks)

    def _arm(self, settings: ArmSettings) -> None:
        if self._arming is None:
            if not settings.rules:
                if self._context.probe is not None:
                    self._context.probe.disarm_all()
                return
            from collector.agent.arm import Arming  # noqa: PLC0415 - few policies have such rules

            self._arming = Arming(self._context)
        self._arming.apply(settings, self._context.policy.policy.kubernetes)

    def _wait(self) -> None:
        """Wait until there is something to do.

        While a process waits for its release, or ends, nothing is done here that can be done after
        it: it needs the CPU that we are on, perhaps. An event of a signal comes before the
        hand-off of its process, which gets a moment to come first.
        """
        probe = self._context.probe
        ring = -1 if probe is None else probe.fileno()
        context = self._context
        waits = context.registry.waits or len(context.unstored) > 0 or context.sinks.waiting
        times: list[int] = [self._storms.timeout_ms, _LOOK_MS if waits else -1]
        times.append(self._context.retention.timeout_ms)
        times += [part.timeout_ms for part in (self.service, self._overwrites) if part is not None]
        timeout_ms = min((time for time in times if time >= 0), default=-1)
        self._sleep(ring, timeout_ms)

    def _sleep(self, ring: int, timeout_ms: int) -> None:
        """Until there is something in BPF's ring (-1: none), or somebody calls `wake`."""
        self._context.native.wait(self._wake_read, ring, timeout_ms)
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)

    @property
    def _overwrites(self) -> Overwrites | None:
        backend = self._context.backend
        return None if isinstance(backend, NoBackend) else backend.overwrites

    def _look(self) -> None:
        """Whether the kernel still hands over to us; and say that we are alive."""
        for part in (self._overwrites, self.service):
            if part is not None:
                part.look()

    def _store_again(self) -> None:
        """What could not be stored, or told, every few seconds."""
        now, context = time.monotonic(), self._context
        if now < self._store_again_at or not (len(context.unstored) or context.sinks.waiting):
            return
        self._store_again_at = now + _LOOK_MS / 1e3
        if len(context.unstored):
            context.record(partial(store_again, context))
        if context.sinks.waiting:
            context.sinks.tend()

    def _give_up_interrupted(self) -> None:
        """Records that an earlier agent had begun when it was killed: say what they lack."""
        context = self._context
        for record in context.store.list(closed=False):
            context.record(partial(close, context, _interrupted(record)))

    def stop(self) -> None:
        """Ask `run` to end; safe in a signal handler."""
        self._stopping = True
        self.wake()

    def reload(self) -> None:
        """Ask for the policy file to be read again; safe in a signal handler."""
        self._reload = True
        self.wake()

    def wake(self) -> None:
        """Have the main thread look at what there is; from any thread."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"!")

    def _apply_reload(self) -> None:
        if self.service is not None:
            self.service.reloading()
        if self._context.policy.reload():
            self._context.metrics.reloaded(True)
            for key in self._context.policy.needs_restart:
                log.warning("policy: %s changes only with a restart", key)
            self._apply_policy()
            log.info("policy: %s is in force", self._context.policy.policy.source)
        else:
            self._context.metrics.reloaded(False)
            log.error("policy: the old one stays in force: %s", self._context.policy.error)
        if self.service is not None:
            self.service.reloaded()

    def _finish(self) -> None:
        """Release what is held, and finish what is being worked on as far as the time goes.

        What was not begun by then is dropped: it is on record with what it lacks, counted, and
        logged. What is being written is left to its writer, which ends with us, and the next agent
        says so in the record. Deaths that are not on record stay in BPF's ring for it.
        """
        until = time.monotonic() + _FINISH_S
        self._context.retention.close()
        if self.service is not None:
            self.service.stopping()
        context, lanes = self._context, self._context.lanes
        if self._arming is not None:
            self._arming.close()
        if context.backend.is_kept:
            self._settle(until)
            context.backend.leave()  # who comes now waits for the next agent: not for long
            until = time.monotonic() + _LEFT_S
        else:
            self._close_backend()
        if self._acceptor is not None:
            self._acceptor.join()
        if context.dumpers is not None:  # what they have goes on to us, or is theirs by then
            context.dumpers.close(max(0.0, until - time.monotonic()) / 2)
        if self._plugins is not None:
            self._plugins.close()
        for _ in range(2):  # what was held has ended meanwhile
            take_events(self._context)
            for lane in lanes.all():
                lane.wait_idle(max(0.0, until - time.monotonic()))
        self._storms.look(context, last=True)
        dropped = {lane.name: lane.close() for lane in lanes.all() if lane is not lanes.records}
        context.record(partial(store_again, context))
        lanes.records.wait_idle(_LAST_S)
        dropped[lanes.records.name] = lanes.records.close()
        for crash in context.registry.abandoned(all_done=True):
            ended(context, crash)
        for name, count in dropped.items():
            if count:
                context.metrics.errors.labels("stop").inc(count)
                log.warning("%s: %d not begun: the agent was stopped", name, count)
        context.recorder.close(max(_LAST_S, until - time.monotonic()))
        self._tell_the_last()

    def _tell_the_last(self) -> None:
        """Deaths that are on record by now, to those who are told of each."""
        self._context.sinks.close(_TOLD_S)
        if self._context.hooks is not None:
            self._context.hooks.close(_TOLD_S)

    def _close_backend(self) -> None:
        try:
            self._context.backend.close()
        except HoldError as error:  # the settings cannot be put back; all else is done the same
            log.error("%s", error)
        if self._context.probe is not None:
            self._context.probe.set_has_handoff(False)

    def _settle(self, until: float) -> None:
        """Go on as before until all that is being worked on is done: who dies meanwhile need not
        wait for the next agent."""
        done = [lane.all_so_far() for lane in self._context.lanes.all()]
        while time.monotonic() < until and not all(are_done() for are_done in done):
            self._sleep(-1, _SETTLE_MS)
            take_events(self._context)
            self._storms.look(self._context)

    # ---- hold: the kernel's hand-off

    def _take_notes(self) -> None:
        """Deaths that the pipe helper noted while no agent was there."""
        spooled = self._context.backend.notes()
        take_events(self._context)  # of all that was noted
        for task in Notes(self._context, spooled.notes).tasks():
            self._context.record(task)
        if spooled.lost:
            self._context.metrics.errors.labels("spool").inc(spooled.lost)
            log.warning("%d deaths of the time without an agent are only counted", spooled.lost)


def allow(native: Native, policy: Policy) -> None:
    """Tell the native part what it may do by itself."""
    native.allow(
        instant=all_instant(policy),
        max_pins=policy.release.max_pins,
        max_pinned=most_pinned(policy.release),
        patience_s=policy.hold.patience,
    )
    native.expect(USUAL_S / policy.capture.workers)  # until one was written


def _interrupted(record: Record) -> Record:
    lost = dict(record.lost)
    if record.frames is None:
        lost.setdefault("frames", "the agent ended before it was explained")
    if record.core_bit is None:
        lost.setdefault("core_bit", "the agent ended before its exit was seen")
    if record.outcome is not Outcome.PENDING:
        return msgspec.structs.replace(record, lost=lost)
    lost["core"] = "the agent ended before it was written"
    return msgspec.structs.replace(
        record, outcome=Outcome.FAILED, capture=Capture.RECORD, lost=lost
    )
