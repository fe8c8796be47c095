"""Deaths that nobody held: what BPF or the pipe helper saw is all that there is."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from collector import copies, proof
from collector.agent.assemble import CORE_BIT
from collector.agent.context import Context
from collector.agent.crash import Crash
from collector.agent.crowd import REASON
from collector.agent.explain import Files, explain
from collector.agent.export import ask_recorder, close, count, end, look_around, recorded
from collector.agent.facts import Placed
from collector.agent.gone import facts_of
from collector.agent.logs import read_logs
from collector.agent.pods import with_pod
from collector.agent.routine import settle
from collector.agent.unit import ask_systemd
from collector.arch.x86_64 import PAGE, RED_ZONE, SP
from collector.capture.event_core import write_event_core
from collector.capture.job import MAX_EXPLAIN_CORE
from collector.errors import CorewardError
from collector.handoff.handoff import HandOff
from collector.handoff.pipe import PipeNote
from collector.linux.bounded import bounded_file, seal
from collector.model import TICK_NS, Capture, Cause, Identity, Outcome, ProcessKey, Record
from collector.policy.facts import facts_from
from collector.policy.match import decide
from collector.policy.site import site_of
from collector.policy.types import Decision, Facts, Routine
from collector.probe.events import STACK_PAGES
from collector.signals import CORE_SIGNALS, signal_name
from collector.store.ids import record_id

_INTERPRETER = os.readlink("/proc/self/exe")  # now: it may be replaced while we run
NOTE_SLACK = datetime.timedelta(seconds=5)  # a note has whole seconds of another clock


def record_unheld(context: Context, crash: Crash) -> None:
    """A death that no hand-off came for, or one that failed: the record is what events say."""
    who = crash.seen.who
    if who is None:
        return
    late = context.probe is not None and crash.seen.time_ns < context.probe.attached_ns
    none = _is_proof(crash, who) or _is_helper(crash, who) or copies.is_copy(who.key)
    if not none and not _is_known(context, crash, who, late):
        _open(context, crash, who, late)
    recorded(context, crash)


def _is_proof(crash: Crash, who: Identity) -> bool:
    """Whether it was a proof that a hand-off works: our own, a killed agent's or doctor's.

    Only root's processes that run our own interpreter, in our pid namespace, can pass for one.
    """
    looks = (who.comm, who.uid, crash.seen.signal) == (proof.NAME, 0, proof.SIGNAL)
    return looks and who.exe == _INTERPRETER and who.ns_pid == who.key.pid


def _is_helper(crash: Crash, who: Identity) -> bool:
    """Whether it is a child of ours that did not keep to its time, and that we killed: what it was
    to do says so."""
    sender = crash.seen.sender
    return sender is not None and sender.pid == who.ppid == os.getpid()


def _is_known(context: Context, crash: Crash, who: Identity, late: bool) -> bool:
    """Whether this death is on record: a killed agent's, or its end was waited for in vain."""
    if context.store.has(record_id(context.boot_id, who.key)):
        return True
    # a hand-off without an event, and a note of the helper, know its start to a tick only
    return late and context.store.has(record_id(context.boot_id, who.key.to_tick()))


def _open(context: Context, crash: Crash, who: Identity, late: bool) -> None:
    seen = crash.seen
    facts = with_pod(context, facts_of(who, seen.cause, seen.signal), waits=False)
    decision = decide(context.policy.policy, facts)
    if decision.action.capture is Capture.NONE:
        count(context, seen.cause, seen.signal, Outcome.IGNORED)
        return
    lost = {}
    if decision.action.capture is not Capture.RECORD and seen.cause is not Cause.EXIT:
        lost["core"] = crash.not_held or _why_not_held(context, crash, who, late)
    identity = record_id(context.boot_id, who.key)
    crash.redact = decision.action.redact
    crash.open(seen.record(identity, late=late, lost=lost), "record")
    crash.learn(
        Placed(
            cgroup=facts.cgroup,
            unit=facts.unit,
            container=facts.container,
            pod=facts.of_pod,
            rule=decision.rule,
            capture_wanted=decision.action.capture,
        )
    )
    if not facts.cgroup:
        crash.lose("cgroup", "it was gone when the event was read")
    look_around(crash)
    go_on = partial(_death, context, crash, decision, facts)
    if decision.action.routine is Routine.NOTE:
        settle(context, crash, go_on)
    else:
        go_on()


def _death(context: Context, crash: Crash, decision: Decision, facts: Facts) -> None:
    """It is one, and gets all that can be had of it."""
    seen = crash.seen
    ask_recorder(context, crash)
    ask_systemd(context, crash)
    read_logs(context, crash, decision.action.logs)
    mapped = seen.exit.mapped if seen.exit else ()
    code = ((one.start, one.end, one.offset) for one in mapped if one.executable)
    site = site_of(seen.fatal, code) if seen.fatal else None
    uid = crash.record.uid
    if context.kill_limiter.admit(decision.action, facts.exe, site, uid=uid).reason is None:
        _explain_events(context, crash)
    else:
        crash.lose("frames", "not looked for: beyond the limit")
    end(context, crash, "record")


def _explain_events(context: Context, crash: Crash) -> None:
    """A backtrace from what BPF saw, where nobody held the process."""
    fatal, exited = crash.seen.fatal, crash.seen.exit
    if fatal is None or exited is None:
        return
    if crash.record.container:
        crash.lose("frames", "its files lie in a container that may be gone")
        return
    if not fatal.stack:
        crash.lose("frames", "its stack was not told: too many deaths at a time")
        return
    if not exited.mapped and exited.status & CORE_BIT:
        # where crashes are handed over BPF does not tell the mappings of what dumps core
        crash.lose("frames", "they would have come from its core")
        return
    core = -1
    try:
        core = bounded_file("coreward-explain", MAX_EXPLAIN_CORE)
        write_event_core(core, fatal, exited)
        seal(core)
    except (CorewardError, OSError) as error:
        if core >= 0:
            os.close(core)
        crash.lose("frames", str(error))
        return
    crash.lose("symbols", "files were found by path: no build-id was left to check")
    if exited.unmapped is not None:
        crash.lose("modules", exited.unmapped)
    crash.keep(context.store)
    crash.seen.drop_memory()
    cut = None
    base = fatal.regs[SP] - RED_ZONE & -PAGE
    if fatal.stack[-1].address == base + (STACK_PAGES - 1) * PAGE:  # there may be more
        cut = f"the stack beyond the {STACK_PAGES * PAGE >> 10} KiB that BPF copies"
    explain(context, crash, core, Files(), owner=crash.record.uid, cut=cut)


def _why_not_held(context: Context, crash: Crash, who: Identity, late: bool) -> str:
    seen = crash.seen
    if seen.signal not in CORE_SIGNALS:
        name = signal_name(seen.signal) or seen.cause
        return f"{name}: the kernel hands over only signals that dump core"
    if late:
        was_taken = context.probe is not None and context.probe.was_taken(who.key)
        return "the agent was killed" if was_taken else "the agent was down"
    if context.backend.backend == "none":
        return f"no hand-off: {context.backend.reason}"
    if seen.exit is not None and seen.exit.status & CORE_BIT:
        if context.native.was_spared(who.key):
            context.metrics.crowded.inc()
            return REASON
        return "the agent did not answer the kernel in time"
    if seen.time_ns < context.backend.opened_ns:
        return "the agent was still starting"
    if seen.fatal is not None and seen.fatal.core_byte and context.backend.backend == "pipe":
        return "the kernel did not hand it over: its RLIMIT_CORE is one byte"
    return "the kernel did not hand it over: not dumpable, as after a change of user"


def record_untold(
    context: Context, handoff: HandOff, key: ProcessKey | None, texts: Mapping[str, bytes], why: str
) -> None:
    """A hand-off that came to nothing where there is no BPF: nobody else tells of the death.

    texts: its files of /proc by name, as far as they were read.
    """
    status, groups = texts.get("status") or None, texts.get("cgroup") or None
    told = facts_from(Cause.SIGNAL, handoff.signal, status=status, groups=groups, exe=None)
    facts = with_pod(context, told, waits=False)
    decision = decide(context.policy.policy, facts)
    if decision.action.capture is Capture.NONE:
        count(context, Cause.SIGNAL, handoff.signal, Outcome.IGNORED)
        return
    key = key or ProcessKey(handoff.pid, 0)
    identity = record_id(context.boot_id, key)
    if copies.is_copy(key) or context.store.has(identity):
        return
    record = Record(
        id=identity,
        time=datetime.datetime.now(datetime.UTC),
        pid=key.pid,
        tid=key.pid,
        cause=Cause.SIGNAL,
        comm=facts.comm or "",
        start_ns=key.start_ns,
        uid=facts.uid,
        cgroup=facts.cgroup,
        unit=facts.unit,
        container=facts.container,
        pod=facts.of_pod,
        signal=handoff.signal,
        signal_name=signal_name(handoff.signal),
        rule=decision.rule,
        capture_wanted=decision.action.capture,
        lost={"core": why, "event": "the agent has no BPF"},
    )
    close(context, record)


class Notes:
    """What the pipe helper noted while no agent was there. For the records' lane alone.

    In a storm these are thousands: what is on record is looked up once for all of them.
    """

    def __init__(self, context: Context, notes: Sequence[PipeNote]) -> None:
        self._context = context
        self._notes = notes
        self._known: set[ProcessKey] | None = None  # to a tick: deaths on record at that time

    def tasks(self) -> Iterator[Callable[[], None]]:
        """One for each note of a death that BPF has not seen, to be done after those waiting."""
        for note in self._notes:
            key = ProcessKey(note.pid, (note.start_ticks or 0) * TICK_NS)
            if not self._is_seen(note) and not self._context.registry.knows(key):
                yield partial(self._record, note, key)

    def _is_seen(self, note: PipeNote) -> bool:
        """Whether the programs were attached by then: they have told it, or counted it."""
        probe = self._context.probe
        return probe is not None and note.time_s > probe.since_s

    def _record(self, note: PipeNote, key: ProcessKey) -> None:
        """Unless it is on record already."""
        if self._known is None:
            self._known = self._find_known()
        if key in self._known:  # by an earlier agent, too slow for the helper; or noted twice
            return
        self._known.add(key)
        close(self._context, _of_note(self._context, note, key))

    def _find_known(self) -> set[ProcessKey]:
        times = [_time_of(note) for note in self._notes]
        found = self._context.store.list(
            since=min(times) - NOTE_SLACK, until=max(times) + NOTE_SLACK
        )
        deaths = (record for record in found if record.cause is not Cause.SNAPSHOT)
        return {ProcessKey(record.pid, record.start_ns).to_tick() for record in deaths}


def _of_note(context: Context, note: PipeNote, key: ProcessKey) -> Record:
    return Record(
        id=record_id(context.boot_id, key),
        time=_time_of(note),
        pid=note.pid,
        tid=note.tid,
        cause=Cause.SIGNAL,
        comm="",
        start_ns=key.start_ns,
        uid=note.uid,
        gid=note.gid,
        signal=note.signal,
        signal_name=signal_name(note.signal),
        late=True,
        lost={"comm": "only the pipe helper saw it", "core": "no agent answered the helper"},
    )


def _time_of(note: PipeNote) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(note.time_s, datetime.UTC)
