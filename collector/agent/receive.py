"""Gather, decide, release: what happens to a process from its hand-off on.

Where policy and room allow it the native part has released it before this begins. Else it is held
while this runs, some milliseconds: what happens here is as little as can be. All decoding, and all
memory, is left for later.
"""

from __future__ import annotations

import contextlib
import logging
import time

from collector.agent.case import Case
from collector.agent.context import Context
from collector.agent.correlate import Death
from collector.agent.events import Events
from collector.agent.facts import Opened
from collector.agent.finish import Finisher, Task
from collector.agent.gather import Gathered, gather
from collector.agent.release import ROOM, Governor, ReleaseDecision
from collector.capture.job import Job
from collector.capture.process import OpenProcess
from collector.errors import CorewardError, HoldError
from collector.handoff.handoff import HandOff
from collector.handoff.native import Taken
from collector.handoff.pin import Pin
from collector.handoff.pipe import PipeHandOff
from collector.linux.clock import boot_to_utc
from collector.model import Capture, Cause, Outcome, Record, Release
from collector.policy.facts import exe_of, facts_from
from collector.policy.limit import Admission, site_of
from collector.policy.match import decide
from collector.policy.types import Action, Decision, Facts
from collector.signals import signal_name
from collector.store.ids import record_id

log = logging.getLogger(__name__)

NO_CORE_WANTED = "the process's RLIMIT_CORE is 0"


class Receiver:
    """Takes handed-over processes, several at a time."""

    def __init__(self, context: Context, finisher: Finisher, events: Events) -> None:
        self._context = context
        self._finisher = finisher
        self._events = events

    def handle(self, taken: Taken) -> None:
        """From hand-off to release, for one process."""
        context, handoff = self._context, taken.handoff
        death: Death | None = None
        with contextlib.ExitStack() as held:
            held.callback(handoff.release)
            try:
                gathered = gather(taken)
                held.callback(gathered.close)
                if gathered.pin is not None:
                    held.callback(context.pins.release, context.pins.enter(gathered.size))
                    context.native.entered(gathered.size)
                death = self._join(gathered.dying)
                self._decide(handoff, gathered, death, held)
                return
            except (CorewardError, OSError) as error:
                context.metrics.errors.labels("handoff").inc()
                log.error("process %d: %s", handoff.pid, error)
                why = str(error)
        if death is not None and context.deaths.let_go(death, why):
            self._events.complete(death)

    def _decide(
        self, handoff: HandOff, gathered: Gathered, death: Death, held: contextlib.ExitStack
    ) -> None:
        """Policy, release if it is held still; the rest is for the writer."""
        dying = gathered.dying
        signo = death.signal or handoff.signal
        facts = facts_from(
            # the kernel hands over what a signal kills, whether BPF has seen it or not
            Cause.SIGNAL if death.who is None else death.cause,
            signo,
            status=dying.text.status,
            groups=dying.text.cgroup,
            exe=None if dying.exe_fd is None else exe_of(f"/proc/self/fd/{dying.exe_fd}"),
        )
        decision = decide(self._context.policy.policy, facts)
        action = decision.action
        if action.capture is Capture.NONE:
            handoff.release()
            self._finisher.count(facts.cause, signo, Outcome.IGNORED)
            self._context.deaths.settle(death)
            self._context.recorded(death)
            return
        admission = self._admit(dying, death, action, facts)
        if admission.reason:
            self._context.metrics.limited.labels(admission.capture.value).inc()
        job = self._job(handoff, gathered, death, decision, admission)
        plan = self._plan_release(handoff, gathered, job, action.release, held)
        case = self._open_case(handoff, dying, death, facts, decision, admission, plan)
        if not job.explain:
            case.lose("frames", "not looked for: beyond the limit")
        task = Task(
            case=case,
            death=death,
            job=job,
            dying=dying,
            handoff=handoff,
            release=plan,
            open=held.pop_all(),
        )
        self._finisher.queue(task)

    def _admit(self, dying: OpenProcess, death: Death, action: Action, facts: Facts) -> Admission:
        """How much may be captured of it, by its own limit and by policy's."""
        if action.honour_rlimit and dying.core_limit == 0:
            return Admission(capture=Capture.RECORD, reason=NO_CORE_WANTED)
        site = site_of(death.fatal) if death.fatal else None
        return self._context.limiter.admit(action, facts.exe, site)

    def _join(self, dying: OpenProcess) -> Death:
        """The death that a held process belongs to, with the events that came before it."""
        self._events.take()
        death = self._context.deaths.hold(dying.key)
        self._context.native.joined(dying.key)
        return death

    def _job(
        self,
        handoff: HandOff,
        gathered: Gathered,
        death: Death,
        decision: Decision,
        admission: Admission,
    ) -> Job:
        """Everything of the process that is gone after its release, and what to do with it."""
        dying, who, fatal = gathered.dying, death.who, death.fatal
        identity = record_id(self._context.boot_id, who.key if who else dying.key)
        action = decision.action
        return Job(
            record_id=identity,
            folder="",
            pid=handoff.pid,
            tid=who.ns_tid if who else None,
            signal=death.signal or handoff.signal or 0,
            siginfo=fatal.siginfo if fatal else b"",
            text=dying.text,
            threads=gathered.threads,
            mappings=gathered.mappings,
            head=gathered.head,
            patches=gathered.patches,
            mem_fd=dying.mem_fd,
            pagemap_fd=dying.pagemap_fd,
            shared_fds=gathered.shared_fds,
            capture=admission.capture,
            memory=action.memory,
            compress=action.compress,
            max_bytes=dying.core_limit if action.honour_rlimit else None,
            min_free=self._context.policy.policy.store.min_free,
            # one that a limit reduced to a record was explained the first times
            explain=admission.capture is not Capture.RECORD
            or admission.reason in (None, NO_CORE_WANTED),
            urgent=False,
        )

    def _plan_release(
        self,
        handoff: HandOff,
        gathered: Gathered,
        job: Job,
        wanted: Release,
        held: contextlib.ExitStack,
    ) -> ReleaseDecision:
        """Pin and release at once, or say why the process has to wait for its core."""
        if job.capture is Capture.RECORD and not job.explain:
            handoff.release()
            return ReleaseDecision(mode=Release.INSTANT, reason="no memory is kept")
        if gathered.pin is not None:
            return ReleaseDecision(mode=Release.INSTANT, reason=ROOM)
        dying = gathered.dying
        governor = Governor(self._context.policy.policy.release, self._context.pins)
        plan = held.enter_context(
            governor.admitted(handoff.pid, wanted, dying.text.status, dying.text.cgroup)
        )
        if plan.mode is Release.INSTANT:
            try:
                held.enter_context(Pin(dying.mem_fd, [gathered.address]))
            except HoldError as error:
                plan = ReleaseDecision(mode=Release.AFTER_WRITE, reason=str(error))
            else:
                handoff.release()
        return plan

    def _open_case(
        self,
        handoff: HandOff,
        dying: OpenProcess,
        death: Death,
        facts: Facts,
        decision: Decision,
        admission: Admission,
        plan: ReleaseDecision,
    ) -> Case:
        """The record as far as it goes; on disk before the core is begun."""
        lost = {"memory": admission.reason} if admission.reason else {}
        if death.who is None:
            record = _record_of_held(self._context.boot_id, handoff, dying)
            seen = self._context.probe is not None
            lost["event"] = "BPF did not report this death" if seen else "the agent has no BPF"
        else:
            identity = record_id(self._context.boot_id, death.who.key)
            record = death.record(identity, late=False, lost={})
        case = death.case = Case(record, self._context.store, self._finisher.closed)
        case.begin("exit")
        gone = plan.mode is Release.INSTANT
        case.learn(
            Opened(
                exe=facts.exe,
                cmdline=dying.cmdline,
                cgroup=facts.cgroup,
                unit=facts.unit,
                container=facts.container,
                resident_bytes=dying.resident,
                rule=decision.rule,
                capture_wanted=decision.action.capture,
                capture=admission.capture,
                outcome=Outcome.PENDING,
                release=plan.mode,
                release_reason=plan.reason,
                held_ms=round(handoff.release(), 3) if gone else None,
            )
        )
        for part, why in lost.items():
            case.lose(part, why)
        if case.keep():
            self._context.recorded(death)
        self._context.recorder.ask(case)
        return case


def _record_of_held(boot_id: str, handoff: HandOff, dying: OpenProcess) -> Record:
    """A record for a process that was handed over although BPF saw nothing of it."""
    return Record(
        id=record_id(boot_id, dying.key),
        time=boot_to_utc(time.clock_gettime_ns(time.CLOCK_BOOTTIME)),
        pid=handoff.pid,
        tid=handoff.identity.tid if isinstance(handoff, PipeHandOff) else handoff.pid,
        cause=Cause.SIGNAL,
        comm=dying.comm,
        start_ns=dying.key.start_ns,
        ns_pid=dying.ns_pid,
        uid=dying.uid,
        gid=dying.gid,
        signal=handoff.signal,
        signal_name=signal_name(handoff.signal),
    )
