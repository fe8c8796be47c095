"""Deaths that nobody held: what BPF or the pipe helper saw is all that there is."""

from __future__ import annotations

import datetime
import os

from collector import cgroup, proof
from collector.capture.job import SMALL_CORE
from collector.capture.relic import write_relic
from collector.capture.select import RED_ZONE, SP
from collector.case import Case
from collector.deaths import TICK_NS, Death, same_process
from collector.errors import CaptureError
from collector.flow.context import Context
from collector.flow.settle import Files, Settler
from collector.hold.pipe import PipeNote
from collector.model import Capture, Cause, Identity, Outcome, ProcessKey, Record
from collector.policy.facts import is_container, unit_of_cgroup
from collector.policy.match import decide
from collector.policy.types import Facts
from collector.probe.events import PAGE, STACK_PAGES
from collector.records import CORE_BIT, boot_to_utc
from collector.signals import signal_name
from collector.store.ids import record_id

NOTE_SLACK = datetime.timedelta(seconds=5)  # a note has whole seconds of another clock
CORE_SIGNALS = frozenset(
    # signal(7), disposition "Core"
    {3, 4, 5, 6, 7, 8, 11, 24, 25, 31}
)


class Witness:
    """Makes records from hearsay."""

    def __init__(self, context: Context, settler: Settler) -> None:
        self._context = context
        self._settler = settler
        self._interpreter = os.readlink("/proc/self/exe")

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

        Only root's processes that run our own interpreter can pass for one.
        """
        looks = (who.comm, who.uid, death.signal) == (proof.NAME, 0, proof.SIGNAL)
        return looks and who.exe == self._interpreter

    def _is_known(self, death: Death, who: Identity, late: bool) -> bool:
        """Whether this death is on record: a killed agent's, or its end was waited for in vain."""
        if self._context.store.has(record_id(self._context.boot_id, who.key)):
            return True
        return late and self._on_record(who.key, boot_to_utc(death.time_ns))

    def _open_case(self, death: Death, who: Identity, late: bool) -> None:
        group = _live_cgroup(who) or cgroup.path_of(who.cgroup_id)
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
            self._settler.count(death.cause, death.signal, Outcome.IGNORED)
            return
        lost = {}
        if decision.action.capture is not Capture.RECORD and death.cause is not Cause.EXIT:
            lost["core"] = death.why or self._why_not_held(death, who, late)
        record = death.record(record_id(self._context.boot_id, who.key), late=late, lost=lost)
        case = Case(record, self._context.store, self._settler.closed)
        case.learn(
            cgroup=group,
            unit=facts.unit,
            container=facts.container,
            rule=decision.rule,
            capture_wanted=decision.action.capture,
            lost=None if group else {"cgroup": "it was gone when the event was read"},
        )
        case.begin("record")
        self._context.recorder.ask(case)
        self._explain_relic(case, death)
        case.end("record")

    def _explain_relic(self, case: Case, death: Death) -> None:
        """A backtrace from what BPF saw, where nobody held the process."""
        if death.fatal is None or death.exit is None:
            return
        if case.record.container:
            case.learn(lost={"frames": "its files lie in a container that may be gone"})
            return
        if not death.exit.mapped and death.exit.status & CORE_BIT:
            # where crashes are handed over BPF does not tell the mappings of what dumps core
            case.learn(lost={"frames": "they would have come from its core"})
            return
        core = self._context.store.folder(case.record.id) / SMALL_CORE
        try:
            write_relic(core, death.fatal, death.exit)
        except (CaptureError, OSError) as error:
            case.learn(lost={"frames": str(error)})
            return
        case.learn(lost={"symbols": "files were found by path: no build-id was left to check"})
        cut = None
        base = death.fatal.regs[SP] - RED_ZONE & -PAGE
        if death.fatal.stack[-1].address == base + (STACK_PAGES - 1) * PAGE:  # there may be more
            cut = f"the stack beyond the {STACK_PAGES * PAGE >> 10} KiB that BPF copies"
        self._settler.queue_explanation(case, core, Files(), cut=cut)

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
        if any(same_process(key, seen) for seen in self._context.late):
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
            lost={"comm": "only the pipe helper saw it", "core": "the agent was down"},
        )
        case = Case(record, self._context.store, self._settler.closed)
        case.learn()
        case.end("record")

    def _on_record(self, key: ProcessKey, time: datetime.datetime) -> bool:
        """Whether the death of this process, at about that time, is in the store."""
        near = self._context.store.list(since=time - NOTE_SLACK, until=time + NOTE_SLACK)
        deaths = [record for record in near if record.cause is not Cause.SNAPSHOT]
        return any(same_process(key, ProcessKey(r.pid, r.start_ns)) for r in deaths)


def _live_cgroup(who: Identity) -> str | None:
    """The cgroup of a process that died but may not be reaped yet; None if it is gone."""
    try:
        with open(f"/proc/{who.key.pid}/stat", "rb") as stat:
            started = int(stat.read().rpartition(b")")[2].split()[19])
        with open(f"/proc/{who.key.pid}/cgroup", "rb") as file:
            text = file.read()
    except (OSError, ValueError, IndexError):
        return None
    same = same_process(who.key, ProcessKey(who.key.pid, started * TICK_NS))
    return cgroup.path_in(text) if same else None
