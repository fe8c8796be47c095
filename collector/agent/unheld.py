"""Deaths that nobody held: what BPF or the pipe helper saw is all that there is."""

from __future__ import annotations

import datetime
import os

from collector import proof
from collector.agent.assemble import CORE_BIT
from collector.agent.case import Case
from collector.agent.context import Context
from collector.agent.correlate import Death
from collector.agent.facts import Placed
from collector.agent.finish import Files, Finisher
from collector.arch.x86_64 import PAGE, RED_ZONE, SP
from collector.capture.event_core import write_event_core
from collector.capture.job import EXPLAIN_CORE
from collector.errors import CaptureError
from collector.handoff.pipe import PipeNote
from collector.linux import cgroupfs, procfs
from collector.linux.clock import boot_to_utc
from collector.model import TICK_NS, Capture, Cause, Identity, Outcome, ProcessKey, Record
from collector.policy.facts import is_container, unit_of_cgroup
from collector.policy.limit import Limiter, site_of
from collector.policy.match import decide
from collector.policy.types import Facts
from collector.probe.events import STACK_PAGES
from collector.signals import signal_name
from collector.store.ids import record_id

NOTE_SLACK = datetime.timedelta(seconds=5)  # a note has whole seconds of another clock
CORE_SIGNALS = frozenset(
    # signal(7), disposition "Core"
    {3, 4, 5, 6, 7, 8, 11, 24, 25, 31}
)


class Unheld:
    """Makes records of deaths that no hand-off came for."""

    def __init__(self, context: Context, finisher: Finisher) -> None:
        self._context = context
        self._finisher = finisher
        self._interpreter = os.readlink("/proc/self/exe")
        # of explanations: a process that is killed again and again uses up no captures of crashes
        self._limiter = Limiter()

    def record(self, death: Death) -> None:
        """A death that no hand-off came for, or one that failed: the record is what events say."""
        who = death.who
        if who is None:
            return
        probe = self._context.probe
        late = probe is not None and death.time_ns < probe.attached_ns
        if not self._is_proof(death, who) and not self._is_known(death, who, late):
            self._open_case(death, who, late)
        self._context.recorded(death)

    def _is_proof(self, death: Death, who: Identity) -> bool:
        """Whether it was a proof that a hand-off works: our own, a killed agent's or doctor's.

        Only root's processes that run our own interpreter, in our pid namespace, can pass for one.
        """
        looks = (who.comm, who.uid, death.signal) == (proof.NAME, 0, proof.SIGNAL)
        return looks and who.exe == self._interpreter and who.ns_pid == who.key.pid

    def _is_known(self, death: Death, who: Identity, late: bool) -> bool:
        """Whether this death is on record: a killed agent's, or its end was waited for in vain."""
        if self._context.store.has(record_id(self._context.boot_id, who.key)):
            return True
        return late and self._on_record(who.key, boot_to_utc(death.time_ns))

    def _open_case(self, death: Death, who: Identity, late: bool) -> None:
        group = _live_cgroup(who) or cgroupfs.path_of(who.cgroup_id)
        facts = Facts(
            cause=death.cause,
            exe=who.exe,
            comm=who.comm,
            cgroup=group,
            unit=unit_of_cgroup(group) if group else None,
            uid=who.uid,
            signal=death.signal,
            container=is_container(group, who.ns_pid != who.key.pid),
        )
        decision = decide(self._context.policy.policy, facts)
        if decision.action.capture is Capture.NONE:
            self._finisher.count(death.cause, death.signal, Outcome.IGNORED)
            return
        lost = {}
        if decision.action.capture is not Capture.RECORD and death.cause is not Cause.EXIT:
            lost["core"] = death.why or self._why_not_held(death, who, late)
        record = death.record(record_id(self._context.boot_id, who.key), late=late, lost=lost)
        case = Case(record, self._context.store, self._finisher.closed)
        case.learn(
            Placed(
                cgroup=group,
                unit=facts.unit,
                container=facts.container,
                rule=decision.rule,
                capture_wanted=decision.action.capture,
            )
        )
        if not group:
            case.lose("cgroup", "it was gone when the event was read")
        case.begin("record")
        self._context.recorder.ask(case)
        site = site_of(death.fatal) if death.fatal else None
        if self._limiter.admit(decision.action, facts.exe, site).reason is None:
            self._explain_relic(case, death)
        else:
            case.lose("frames", "not looked for: beyond the limit")
        case.end("record")

    def _explain_relic(self, case: Case, death: Death) -> None:
        """A backtrace from what BPF saw, where nobody held the process."""
        if death.fatal is None or death.exit is None:
            return
        if case.record.container:
            case.lose("frames", "its files lie in a container that may be gone")
            return
        if not death.exit.mapped and death.exit.status & CORE_BIT:
            # where crashes are handed over BPF does not tell the mappings of what dumps core
            case.lose("frames", "they would have come from its core")
            return
        core = self._context.store.folder(case.record.id) / EXPLAIN_CORE
        try:
            write_event_core(core, death.fatal, death.exit)
        except (CaptureError, OSError) as error:
            case.lose("frames", str(error))
            return
        case.lose("symbols", "files were found by path: no build-id was left to check")
        if death.exit.unmapped is not None:
            case.lose("modules", death.exit.unmapped)
        case.keep()
        cut = None
        base = death.fatal.regs[SP] - RED_ZONE & -PAGE
        if death.fatal.stack[-1].address == base + (STACK_PAGES - 1) * PAGE:  # there may be more
            cut = f"the stack beyond the {STACK_PAGES * PAGE >> 10} KiB that BPF copies"
        self._finisher.queue_explanation(case, core, Files(), cut=cut)

    def _why_not_held(self, death: Death, who: Identity, late: bool) -> str:
        if death.signal not in CORE_SIGNALS:
            return f"{death.cause}: the kernel hands over only signals that dump core"
        if late:
            probe = self._context.probe
            was_taken = probe is not None and probe.was_taken(who.key)
            return "the agent was killed" if was_taken else "the agent was down"
        if self._context.backend.backend == "none":
            return f"no hand-off: {self._context.backend.reason}"
        if death.exit is not None and death.exit.status & CORE_BIT:
            return "the agent did not answer the kernel in time"
        return "the kernel did not hand it over: not dumpable, as after a change of user"

    def record_note(self, note: PipeNote) -> None:
        """A death of the time without an agent; one that BPF saw as well is on record already."""
        key = ProcessKey(note.pid, (note.start_ticks or 0) * TICK_NS)
        time = datetime.datetime.fromtimestamp(note.time_s, datetime.UTC)
        if any(key.is_same(seen) for seen in self._context.late):
            return
        if self._on_record(key, time):  # by an earlier agent, which was too slow for the helper
            return
        record = Record(
            id=record_id(self._context.boot_id, key),
            time=time,
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
        case = Case(record, self._context.store, self._finisher.closed)
        case.end("record")

    def _on_record(self, key: ProcessKey, time: datetime.datetime) -> bool:
        """Whether the death of this process, at about that time, is in the store."""
        near = self._context.store.list(since=time - NOTE_SLACK, until=time + NOTE_SLACK)
        deaths = [record for record in near if record.cause is not Cause.SNAPSHOT]
        return any(key.is_same(ProcessKey(r.pid, r.start_ns)) for r in deaths)


def _live_cgroup(who: Identity) -> str | None:
    """The cgroup of a process that died but may not be reaped yet; None if it is gone."""
    pid = who.key.pid
    stat, groups = procfs.read(f"/proc/{pid}/stat"), procfs.read(f"/proc/{pid}/cgroup")
    if not stat or not groups:
        return None
    same = who.key.is_same(ProcessKey(pid, procfs.parse_stat(stat).start_ns))
    return cgroupfs.path_in(groups) if same else None
