"""The tracer: what some processes and all their descendants do, as they do it.

    with Tracer(Rule(strings=32)) as tracer:
        tracer.attach(pid)
        for event in tracer.events():
            ...

No process is stopped or changed, and none knows. The programs are attached from entry to exit of
the context, and belong to this process: nothing is pinned, and any number of tracers may be open.
Needs root (CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN) and the built object; bcc, the other loader of this
project, cannot load these programs, as it has no typed tracepoints.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import NamedTuple, Self

import msgspec

from collector.errors import ProbeError, ProcessGone, UsageError
from collector.linux import procfs
from collector.trace import filter as wanted_calls
from collector.trace import layout, waiting
from collector.trace.layout import Event, ExecEvent, ExitEvent, ForkEvent, KeptEvent, Present
from collector.trace.programs import Programs

RING_BYTES = 8 << 20
_RESERVED = 8  # one part of so many of the ring is kept for what is no call
_LOOK = 0.01  # seconds after which the ring is looked at, though nobody has woken us
_CHECK = 1.0  # seconds of silence after which the threads are counted
_AT_ONCE = 10_000  # events between two looks at everything else
_LOW = 8  # a ring that is filled to one part of so many has room for those that wait for it
_PENDING = 1024  # records whose other half has not come
_PASSES = 100  # over the threads of a process that goes on making new ones


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """What is traced. ValueError for numbers that are out of range."""

    mode: int = layout.LIVE
    wanted: wanted_calls.Wanted = wanted_calls.EVERYTHING
    strings: int = 0  # bytes of each string or buffer; none is copied if 0
    calls: int = layout.MAX_KEPT  # RECORD: kept of each thread
    follow: bool = True  # children as well
    wait: bool = False  # LIVE: processes wait while the ring is half full
    tell_failed: bool = False  # RECORD: what is kept comes as events when a process fails

    def __post_init__(self) -> None:
        if not 0 <= self.strings <= layout.MAX_TEXT:
            raise UsageError(f"strings: {self.strings}: from 0 to {layout.MAX_TEXT} bytes")
        if self.mode == layout.RECORD and self.strings > layout.MAX_KEPT_TEXT:
            raise UsageError(f"strings: {self.strings}: at most {layout.MAX_KEPT_TEXT} are kept")
        if not 1 <= self.calls <= layout.MAX_KEPT:
            raise UsageError(f"calls: {self.calls}: from 1 to {layout.MAX_KEPT}")

    def pack(self, ring: int) -> bytes:
        """As a struct cw_trace_rule."""
        flags = (
            (layout.RULE_WAIT if self.wait else 0)
            | (layout.RULE_TELL_FAILED if self.tell_failed else 0)
            | (layout.RULE_FOLLOW if self.follow else 0)
        )
        room, high = ring - ring // _RESERVED, ring // 2
        numbers = (self.mode, flags, self.strings, self.calls, os.getpid(), 0)
        return layout.RULE.pack(room, high, *self.wanted, *numbers)


class Losses(NamedTuple):
    """What was made and not told, by thread; complete when the threads have ended."""

    calls: int  # system calls
    events: int  # of all kinds, those included
    untraced: int  # children that there was no memory to follow
    unnamed: int  # threads whose end is known by number alone
    missed: int  # events that came while their program was at work already


class Tracer:
    """See the module. One thread at a time may use it."""

    def __init__(self, *rules: Rule, ring: int = RING_BYTES) -> None:
        """`rules` are numbered from 0, for `attach`; without any there is one that tells all.

        ring: bytes for events that wait to be read, a power of two from 64 KiB to 1 GiB.
        """
        self._rules = rules or (Rule(),)
        if len(self._rules) >= layout.RULES:
            raise UsageError(f"{len(self._rules)} rules: at most {layout.RULES - 1}")
        if ring & (ring - 1) or not 64 << 10 <= ring <= 1 << 30:
            raise UsageError(f"a ring of {ring} bytes: a power of two from 64 KiB to 1 GiB")
        packed = [rule.pack(ring) for rule in self._rules]
        strings = any(rule.strings for rule in self._rules)
        self._programs = Programs(packed, ring, strings=strings)
        self._alive: set[int] = set()  # threads, in the initial pid namespace
        self._lost_events = 0
        self._lost_calls = 0
        self._texts: dict[int, bytes] = {}  # by thread: of the record that comes next

    # -- the context ---------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Load and attach. ProbeError says what is missing."""
        self._programs.__enter__()
        self._waiting = waiting.Waiting(self._programs.stopped)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.stop()
        finally:
            self._programs.close()

    def stop(self) -> None:
        """Nobody is traced from now on; what is in the ring can be read."""
        self._programs.detach()
        self._waiting.resume_all()

    @contextlib.contextmanager
    def resumed_at_death(self) -> Iterator[None]:
        """For rules with `wait`: should this process be killed meanwhile, another one resumes all
        that wait for it."""
        child = waiting.start(self._programs.descriptor("stopped"))
        try:
            yield
        finally:
            assert child.stdin is not None
            child.stdin.close()
            child.wait()

    # -- whom ----------------------------------------------------------------------------------

    def attach(self, pid: int, rule: int = 0, *, from_exec: bool = False) -> int:
        """Trace all threads of a process, and what descends from them from now on.

        from_exec: nothing is told before its next execve(2). Returns how many threads. A thread
        that is made meanwhile is not missed: it is armed by its maker before it runs, or else by
        a later pass, and the passes end when one has found nobody new. ProcessGone if there is
        none; ProbeError if the kernel has no memory.
        """
        self._programs.write("arming", 0, layout.ARMING.pack(rule + 1, from_exec))
        found: set[int] = set()
        for _ in range(_PASSES):
            armed = self._armed("arm", pid)
            seen = {tid for tid, _ in armed}
            for tid in _threads(pid):
                if tid not in seen:  # the iterator's own place may end under it
                    armed += self._armed("arm", tid, single=True)
            # no memory; or this CPU had its lock of task storages, which another pass finds free
            refused = any(how == layout.ARMED_NOT for _, how in armed)
            new = [tid for tid, how in armed if how == layout.ARMED_NOW]
            found |= {t for t, how in armed if how in (layout.ARMED_NOW, layout.ARMED_BEFORE)}
            if not new and not refused:
                break
        if refused:
            raise ProbeError(f"process {pid}: the kernel has no memory to trace all its threads")
        if not found:
            raise ProcessGone(f"no process {pid} has threads to trace")
        self._alive |= found
        return len(found)

    def attach_tree(self, pid: int, rule: int = 0) -> dict[int, int]:
        """The same for a process and all that descends from it: pid -> number of threads. A process
        whose parent ends before it is found is not among them."""
        found = {pid: self.attach(pid, rule)}
        gone: set[int] = set()
        while new := [c for c in _descendants([*found]) if c not in found and c not in gone]:
            for child in new:
                try:
                    found[child] = self.attach(child, rule)
                except ProcessGone:
                    gone.add(child)
        return found

    def detach(self, pid: int) -> None:
        """Trace no thread of this process any more, nor its future children."""
        for _ in range(_PASSES):
            armed = self._armed("disarm", pid)
            self._alive -= {tid for tid, _ in armed}
            if not any(how == layout.ARMED_BEFORE for _, how in armed):
                return

    def _armed(self, program: str, pid: int, *, single: bool = False) -> list[tuple[int, int]]:
        """(tid, enum cw_armed) of the threads that an iterator has passed."""
        raw = self._programs.iterate(program, pid, single=single)
        return [(tid, how) for tid, _, how in layout.ARMED.iter_unpack(raw)]

    # -- what they do --------------------------------------------------------------------------

    def is_traced(self, tid: int) -> bool:
        """Whether this thread is traced and has not ended, as far as events tell."""
        return tid in self._alive

    def has_threads(self) -> bool:
        """Whether any traced thread has not ended."""
        if not self._alive and self._lost_events:
            self._alive = {thread.tid for thread in self.present()}  # births may be lost, too
        return bool(self._alive)

    def events(self) -> Iterator[Event]:
        """All events, until every traced thread has ended."""
        silent_since = time.monotonic()
        while self.has_threads():
            for event in self.read(_LOOK):
                silent_since = time.monotonic()
                yield event
            if time.monotonic() - silent_since > _CHECK:
                silent_since = time.monotonic()
                self.check()

    def fileno(self) -> int:
        """Becomes readable when events wait."""
        return self._programs.ring.descriptor

    def read(self, seconds: float = 0) -> Iterator[Event]:
        """The events that wait, 10,000 at most; if none do, those that come within this time."""
        ring = self._programs.ring
        poll = select.poll()
        poll.register(ring.descriptor, select.POLLIN)
        poll.poll(seconds * 1000)
        with contextlib.closing(ring.records()) as records:
            for record in itertools.islice(records, _AT_ONCE):
                event = self._event(record)
                if event is not None:
                    self._note(event)
                    yield event
        ring.trim()
        self._waiting.resume(lambda: ring.waiting <= ring.size // _LOW)
        yield from self._read_untold()

    def rest(self) -> Iterator[Event]:
        """Stop, and give the events that are left."""
        self.stop()
        while self._programs.ring.waiting:
            yield from self.read()

    def _event(self, record: bytes) -> Event | None:
        kind, tid = layout.kind_of(record)
        if kind == layout.TYPE_TEXTS:  # the record that they belong to comes next, or was lost
            if len(self._texts) >= _PENDING:
                self._texts.clear()
            self._texts[tid] = record
            return None
        if kind == layout.TYPE_KEPT and len(record) == layout.KEPT_BYTES:
            return layout.decode_kept(record, self._texts.pop(tid, b""))
        return layout.decode(record)

    def _note(self, event: Event) -> None:
        self._lost_events += event.lost
        match event:
            case ForkEvent() if not event.untraced:
                self._alive.add(event.child_tid)
            case ExecEvent():
                self._alive.discard(event.old_tid)
                self._alive.add(event.tid)
            case ExitEvent():
                self._alive.discard(event.tid)
                self._lost_calls += event.lost_calls

    def _read_untold(self) -> Iterator[KeptEvent]:
        """Ends that had no room in the ring; of threads that keep their calls as events."""
        for key in self._programs.untold:
            value = self._programs.untold.remove(key)
            if value is None:
                continue
            event = layout.decode_untold(key, value)
            self._alive.discard(event.tid)
            self._lost_calls += event.lost_calls
            self._lost_events += event.lost + 1
            if self._rules[event.rule - 1].mode == layout.RECORD:
                yield event

    def check(self) -> None:
        """Ask the kernel who is traced and has not ended."""
        listed = {thread.tid for thread in self.present()}
        self._alive &= listed

    def present(self, pid: int = 0) -> list[Present]:
        """The traced threads that live, of one process or of all, each with the call it is in."""
        return list(layout.decode_present(self._programs.iterate("present", pid)))

    def kept(self, pid: int) -> list[KeptEvent]:
        """What each thread of a process has kept so far (mode RECORD), the open call last.

        `lost_calls` of each are those that there was no memory to keep. A thread that is `present`
        and not here has no memory to keep any.
        """
        raw, found, at = self._programs.iterate("kept_calls", pid), [], 0
        present = layout.EVENT.size + layout.PRESENT.size
        while at + layout.KEPT_BYTES + present <= len(raw):
            record = raw[at : at + layout.KEPT_BYTES]
            at += layout.KEPT_BYTES
            texts = b""
            if layout.has_texts(record):
                texts = raw[at : at + layout.KEPT_TEXTS_BYTES]
                at += layout.KEPT_TEXTS_BYTES
            found.append(layout.decode_kept(record, texts, raw[at : at + present]))
            at += present
        return found

    @property
    def untraced(self) -> int:
        """Children that there was no memory to follow, so far."""
        return self._programs.counter(0)

    def losses(self) -> Losses:
        """What is known to be lost so far; of threads that live, from themselves."""
        living = self.present() if self._alive else []
        return Losses(
            calls=self._lost_calls + sum(thread.lost_calls for thread in living),
            events=self._lost_events + sum(thread.lost for thread in living),
            untraced=self.untraced,
            unnamed=self._programs.counter(1),
            missed=self._programs.missed(),
        )


def _threads(pid: int) -> Sequence[int]:
    try:
        return procfs.thread_ids(pid)
    except OSError:
        return ()


def _descendants(pids: Sequence[int]) -> list[int]:
    """All that descend from these processes now."""
    parents: dict[int, list[int]] = {}
    for pid in procfs.process_ids():
        if stat := procfs.read(f"/proc/{pid}/stat"):
            parents.setdefault(procfs.parse_stat(stat).ppid, []).append(pid)
    found: list[int] = []
    left = list(pids)
    while left:
        children = parents.get(left.pop(), [])
        found += children
        left += children
    return found
