"""Who is traced by the policy's `trace` rules, and what of their calls goes beside a record.

The programs are attached while somebody is traced, and for no longer. A process is found by looking
through /proc; what it starts is traced from its first instruction. When a traced process fails,
each of its threads tells what it has kept as it ends; of one that is held still, the threads are
asked. It reads no memory of a process: the kernel's side does, and never waits.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import msgspec

from collector.arch.call_sets import EVERYTHING, Wanted, wanted
from collector.errors import CorewardError, ProbeError, ProcessGone
from collector.linux import procfs
from collector.linux.procfs import PF_KTHREAD
from collector.model import ProcessKey
from collector.policy.match import Watcher
from collector.policy.types import USUAL_PODS, KubernetesSettings, Trace
from collector.trace import RECORD, KeptEvent, Rule, Tracer
from collector.watch import kept
from collector.watch.messages import AskCalls, Calls

log = logging.getLogger(__name__)

_RING = 16 << 20  # bytes: what a process of a thousand threads tells at its end
_WAIT_S = 2.0  # for the last thread of a process that was asked for
_DEAD = 32  # processes that ended, and were not asked for yet
_THREADS = 20_000  # of which calls are kept here, over all of these
_TEXTS = "not kept: the texts in them cannot be redacted"
_AGAIN_S = 60.0  # after which a tracer that could not begin is tried again

Tell = Callable[[Calls], None]


class Told(msgspec.Struct):
    """What the threads of one process have told."""

    rule: str
    threads: dict[int, KeptEvent] = {}
    complete: bool = False
    lost_texts: int = 0

    def add(self, event: KeptEvent, rule: str) -> None:
        self.rule = self.rule or rule
        self.lost_texts += bool(event.lost)
        self.threads[event.tid] = event
        self.complete |= event.last

    @property
    def has_texts(self) -> bool:
        """Whether a call has one that was copied, or was to be."""
        return any(call.texts for event in self.threads.values() for call in event.calls)

    @property
    def lost(self) -> dict[str, str]:
        """What of them is missing, and why."""
        short = [event.lost_calls for event in self.threads.values() if event.lost_calls]
        lost = {}
        if short:
            lost["calls"] = (
                f"{sum(short)} of {len(short)} threads: there was no memory to keep them, "
                "or no room to tell"
            )
        if self.lost_texts:
            lost["texts"] = f"those of {self.lost_texts} threads had no room"
        return lost


class CallKeeper:
    """See the module. One thread at a time may use it."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._rules: tuple[Trace, ...] = ()
        self._watcher: Watcher[Trace] = Watcher(())
        self._kubernetes = KubernetesSettings()
        self._tracer: Tracer | None = None
        self._seen: dict[int, tuple[int, str]] = {}  # pid -> start and comm when looked at
        self._dead: OrderedDict[ProcessKey, Told] = OrderedDict()  # to the tick
        self._asked: list[tuple[AskCalls, float]] = []  # until when the last thread is waited for
        self._untraced = 0  # threads and processes that were noticed so far
        self._not_before = 0.0
        self._why_not: str | None = None
        self.threads = 0  # that were traced when it looked last

    def configure(
        self, rules: tuple[Trace, ...], kubernetes: KubernetesSettings = USUAL_PODS
    ) -> None:
        """Trace by these from now on; calls that are kept by rules that changed are dropped."""
        if (rules, kubernetes) == (self._rules, self._kubernetes):
            return
        self.close()
        self._rules, self._kubernetes = rules, kubernetes
        self._watcher = Watcher(rules, kubernetes)

    def close(self) -> None:
        """Trace nobody any more."""
        if self._tracer is not None:
            self._tracer.__exit__(None, None, None)
            self._tracer = None
        self._seen.clear()

    @property
    def descriptor(self) -> int | None:
        """Becomes readable when threads have told something."""
        return None if self._tracer is None else self._tracer.fileno()

    # ---- processes

    def scan(self) -> None:
        """Look for processes that a rule matches; let the programs go if there is none left."""
        if not self._rules:
            return
        present = set(procfs.process_ids())
        self._seen = {pid: seen for pid, seen in self._seen.items() if pid in present}
        for pid in present - {os.getpid(), os.getppid()}:
            line = procfs.read(f"/proc/{pid}/stat")
            if not line:
                continue
            stat = procfs.parse_stat(line)
            seen = stat.start_ns, stat.comm
            if self._seen.get(pid) == seen or stat.flags & PF_KTHREAD:
                continue
            self._seen[pid] = seen
            rule = self._watcher.rule_of(pid)
            if rule is not None:
                self._trace(pid, rule)
        threads = self._tracer.present() if self._tracer is not None else []
        self.threads = len(threads)
        self._trace_untraced({(thread.tgid, thread.rule) for thread in threads})
        if self._tracer is not None and not self._asked and not self.threads:
            self._take()
            self._tracer.__exit__(None, None, None)
            self._tracer = None

    def _trace_untraced(self, traced: set[tuple[int, int]]) -> None:
        """Threads and children that there was no memory to trace at their birth. `traced`: pids of
        those that may be their parents, each with the tracer's number of its rule."""
        if self._tracer is None or self._tracer.untraced == self._untraced:
            return
        self._untraced = self._tracer.untraced
        for pid, rule in traced:
            with contextlib.suppress(ProcessGone):
                try:
                    self._tracer.attach_tree(pid, rule - 1)
                except ProbeError as error:
                    log.warning("trace: process %d: %s", pid, error)

    def _trace(self, pid: int, rule: Trace) -> None:
        try:
            tracer = self._started()
            if tracer is not None:
                tracer.attach(pid, self._rules.index(rule))
        except ProcessGone:
            return
        except CorewardError as error:
            log.warning("trace: process %d: %s", pid, error)

    def _started(self) -> Tracer | None:
        """The tracer, which is started for the first process."""
        now = time.monotonic()
        if self._tracer is None and now >= self._not_before:
            tracer = Tracer(*(rule_of(rule) for rule in self._rules), ring=_RING)
            try:
                self._tracer = tracer.__enter__()
                self._untraced = 0
                self._why_not = None
            except ProbeError as error:
                self._not_before = now + _AGAIN_S
                self._why_not = str(error)
                log.error("trace: no calls are kept: %s", error)
        return self._tracer

    # ---- what they tell

    def take(self) -> None:
        """Take in what threads have told, and answer what can be."""
        self._take()
        now = time.monotonic()
        waiting, self._asked = self._asked, []
        for ask, until in waiting:
            dead = self._dead.get(_key(ask.pid, ask.start_ns))
            if (dead is not None and dead.complete) or now >= until:
                self._answer(ask)
            else:
                self._asked.append((ask, until))

    @property
    def due(self) -> float | None:
        """When `take` has something to do though nobody tells anything (time.monotonic)."""
        return min((until for _, until in self._asked), default=None)

    def _take(self) -> None:
        if self._tracer is None:
            return
        for event in self._tracer.read():
            if isinstance(event, KeptEvent):
                self._note(event)

    def _note(self, event: KeptEvent) -> None:
        key = _key(event.tgid, event.start_ns)
        self._dead.setdefault(key, Told(rule="")).add(event, self._rule_name(event))
        while len(self._dead) > 1 and (
            len(self._dead) > _DEAD or sum(len(d.threads) for d in self._dead.values()) > _THREADS
        ):
            self._dead.popitem(last=False)

    def _rule_name(self, event: KeptEvent) -> str:
        return self._rules[event.rule - 1].name if event.rule <= len(self._rules) else "?"

    # ---- the agent, and snapshots

    def give(self, ask: AskCalls) -> None:
        """Answer when the last thread of that process has told what it kept, or in two seconds."""
        self._take()
        if _key(ask.pid, ask.start_ns) not in self._dead:
            live = self._live(ask)
            if not live:
                self._tell(Calls(record=ask.record, lost=self._why_not))
                return
            for event in live:
                self._note(event)
        self._asked.append((ask, time.monotonic() + _WAIT_S))

    def of_living(self, ask: AskCalls) -> Calls:
        """What the threads of a process keep at this moment, which goes on: for a snapshot."""
        told = Told(rule="")
        for event in self._live(ask):
            told.add(event, self._rule_name(event))
        if not told.threads:
            return Calls(record=ask.record, lost=self._why_not)
        return _written(ask, told, self._lost())

    def _live(self, ask: AskCalls) -> list[KeptEvent]:
        """Of a process that has not ended yet."""
        if self._tracer is None:
            return []
        key = _key(ask.pid, ask.start_ns)
        found = self._tracer.kept(ask.pid)
        return [event for event in found if _key(event.tgid, event.start_ns) == key]

    def _answer(self, ask: AskCalls) -> None:
        told = self._dead.pop(_key(ask.pid, ask.start_ns), None)
        if told is None:
            self._tell(Calls(record=ask.record, lost="too many processes ended at that time"))
        elif not ask.texts and told.has_texts:  # whatever the rules of today copy
            self._tell(Calls(record=ask.record, lost=_TEXTS))
        else:
            self._tell(_written(ask, told, self._lost()))

    def _lost(self) -> dict[str, str]:
        """What is missing of no known process, since the tracer began."""
        if self._tracer is None:
            return {}
        losses, lost = self._tracer.losses(), {}
        if losses.untraced:
            lost["born"] = (
                f"{losses.untraced} threads and processes, of all that are traced, were traced "
                "late: there was no memory at their birth"
            )
        if losses.missed:
            lost["missed"] = f"{losses.missed} events, of all threads, came in the midst of others"
        if losses.unnamed:
            lost["ends"] = f"{losses.unnamed} threads, of all that are traced, had no room to tell"
        return lost


def _key(pid: int, start_ns: int) -> ProcessKey:
    return ProcessKey(pid, start_ns).to_tick()


def _written(ask: AskCalls, told: Told, lost: dict[str, str]) -> Calls:
    """Write the file; the answer to who asked for it. `lost`: of no known process."""
    file = kept.KeptCalls(
        version=kept.VERSION,
        rule=told.rule,
        time_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        threads=tuple(
            kept.KeptThread(tid=e.tid, comm=e.comm, made=e.made, calls=e.calls, lost=e.lost_calls)
            for e in told.threads.values()
        ),
        lost=lost | told.lost,
    )
    try:
        kept.write(file, Path(ask.folder))
    except OSError as error:
        return Calls(record=ask.record, lost=f"{kept.FILE}: {error.strerror}")
    return Calls(record=ask.record, facts=file.facts)


def rule_of(trace: Trace) -> Rule:
    """What the tracer is to do for a rule of the policy."""
    bits: Wanted = wanted(trace.include) if trace.include else EVERYTHING
    without = wanted(trace.exclude)
    return Rule(
        mode=RECORD,
        calls=trace.calls,
        strings=trace.strings,
        wanted=tuple(word & ~no for word, no in zip(bits, without, strict=True)),
        tell_failed=True,
    )
