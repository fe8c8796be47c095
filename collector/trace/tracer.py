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
import errno
import os
import select
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import NamedTuple, Self

import msgspec

from collector.errors import ProbeError, ProcessGone, UsageError
from collector.linux import libbpf, procfs
from collector.linux.bpfhash import HashMap
from collector.linux.ringbuf import Ring
from collector.probe import files
from collector.trace import filter as wanted_calls
from collector.trace import layout, signatures, waiting
from collector.trace.layout import Event, ExecEvent, ExitEvent, ForkEvent, KeptEvent, Present

# those that see a thread's end and its children first, so that no thread is armed without them
_PROGRAMS = ("born", "execed", "ended", "signal_sent", "signal_taken", "leave", "enter")
RING_BYTES = 8 << 20
_RESERVED = 8  # one part of so many of the ring is kept for what is no call
_LOOK = 0.01  # seconds after which the ring is looked at, though nobody has woken us
_CHECK = 1.0  # seconds of silence after which the threads are counted
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
        self._ring_bytes = ring
        self._links: list[int] = []
        self._descriptors: dict[str, int] = {}
        self._maps: dict[str, int] = {}
        self._alive: set[int] = set()  # threads, in the initial pid namespace
        self._lost_events = 0
        self._lost_calls = 0
        self._texts: dict[int, bytes] = {}  # by thread: of the record that comes next

    # -- the context ---------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Load and attach. ProbeError says what is missing."""
        path = files.trace_object_file()
        try:
            image = path.read_bytes()
        except OSError as error:
            raise ProbeError(
                f"{path} cannot be read ({error.strerror}): build it with "
                "`python -m collector.probe.build build`. Only this object can trace: "
                "the loader bcc has no typed tracepoints"
            ) from error
        try:
            self._load(image, str(path))
        except OSError as error:
            self.close()
            raise ProbeError(f"tracing cannot begin: {error.strerror or error}") from error
        except ProbeError:
            self.close()
            raise
        return self

    def _load(self, image: bytes, name: str) -> None:
        with libbpf.Object(image, name, entries={"ring": self._ring_bytes}) as loaded:
            programs = dict(loaded.programs())
            for map_name in ("rules", "shapes", "arming", "trace_counters", "stopped", "untold"):
                self._maps[map_name] = os.dup(loaded.map(map_name))
            self._ring = Ring(os.dup(loaded.map("ring")))
            for iterator in ("arm", "disarm", "present", "kept_calls"):
                self._descriptors[iterator] = os.dup(programs[iterator])
            for number, rule in enumerate(self._rules, 1):
                libbpf.write_array(self._maps["rules"], number, rule.pack(self._ring_bytes))
            if any(rule.strings for rule in self._rules):
                self._write_shapes()
            for program in _PROGRAMS:
                self._descriptors[program] = os.dup(programs[program])
                self._links.append(libbpf.attach_function(programs[program]))
        self._stopped = HashMap(os.dup(self._maps["stopped"]))
        self._untold = HashMap(os.dup(self._maps["untold"]))

    def _write_shapes(self) -> None:
        table, size = signatures.shapes(), layout.SHAPE.size
        for index in range(len(table) // size):
            one = table[index * size : (index + 1) * size]
            if any(one):
                libbpf.write_array(self._maps["shapes"], index, one)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def stop(self) -> None:
        """Detach the programs: nobody is traced from now on. What is in the ring can be read."""
        while self._links:
            os.close(self._links.pop())
        if hasattr(self, "_stopped"):
            waiting.resume_all(self._stopped)

    def close(self) -> None:
        """Detach, unload. Safe to call again."""
        self.stop()
        for descriptor in (*self._descriptors.values(), *self._maps.values()):
            os.close(descriptor)
        self._descriptors, self._maps = {}, {}
        for name in ("_ring", "_stopped", "_untold"):
            if hasattr(self, name):
                getattr(self, name).close()
                delattr(self, name)

    @contextlib.contextmanager
    def resumed_at_death(self) -> Iterator[None]:
        """For rules with `wait`: should this process be killed meanwhile, another one resumes all
        that wait for it."""
        child = waiting.start(self._maps["stopped"])
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
        libbpf.write_array(self._maps["arming"], 0, layout.ARMING.pack(rule + 1, from_exec))
        found: set[int] = set()
        for _ in range(_PASSES):
            armed = self._armed("arm", pid)
            seen = {tid for tid, _ in armed}
            for tid in _threads(pid):
                if tid not in seen:  # the iterator's own place may end under it
                    armed += self._armed("arm", tid, single=True)
            if any(how == layout.ARMED_NOT for _, how in armed):
                raise ProbeError(
                    f"process {pid}: the kernel has no memory to trace all its threads"
                )
            new = [tid for tid, how in armed if how == layout.ARMED_NOW]
            found |= {t for t, how in armed if how in (layout.ARMED_NOW, layout.ARMED_BEFORE)}
            if not new:
                break
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
        raw = self._iterate(program, pid, single=single)
        return [(tid, how) for tid, _, how in layout.ARMED.iter_unpack(raw)]

    def _iterate(self, program: str, pid: int, *, single: bool = False) -> bytes:
        """All that an iterator tells; `pid` 0: of all tasks."""
        try:
            iterator = libbpf.open_task_iterator(self._descriptors[program], pid, single=single)
        except OSError as error:
            if error.errno in (errno.ESRCH, errno.ENOENT):
                return b""
            raise
        try:
            parts = []
            while part := os.read(iterator, 1 << 20):
                parts.append(part)
            return b"".join(parts)
        except OSError as error:
            if error.errno != errno.ESRCH:
                raise ProbeError(f"process {pid} cannot be listed: {error.strerror}") from error
            return b""
        finally:
            os.close(iterator)

    # -- what they do --------------------------------------------------------------------------

    @property
    def alive(self) -> frozenset[int]:
        """The traced threads that have not ended, as far as events tell."""
        return frozenset(self._alive)

    def events(self) -> Iterator[Event]:
        """All events, until every traced thread has ended."""
        silent_since = time.monotonic()
        while self._alive:
            for event in self.read(_LOOK):
                silent_since = time.monotonic()
                yield event
            if time.monotonic() - silent_since > _CHECK:
                silent_since = time.monotonic()
                self.check()

    def read(self, seconds: float = 0) -> Iterator[Event]:
        """The events that wait; if there are none, those that come within this time."""
        poll = select.poll()
        poll.register(self._ring.descriptor, select.POLLIN)
        poll.poll(seconds * 1000)
        for record in self._ring.records():
            event = self._event(record)
            if event is not None:
                self._note(event)
                yield event
        self._ring.trim()
        waiting.resume_all(self._stopped)
        self._read_untold()

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

    def _read_untold(self) -> None:
        """Ends that had no room in the ring."""
        for key in self._untold:
            value = self._untold.remove(key)
            if value is not None:
                _, lost_calls, _, lost = layout.UNTOLD.unpack(value)
                self._alive.discard(int.from_bytes(key, "little"))
                self._lost_calls += lost_calls
                self._lost_events += lost + 1

    def check(self) -> None:
        """Ask the kernel who is traced: afterwards `alive` is true."""
        listed = {thread.tid for thread in self.present()}
        self._alive &= listed

    def present(self, pid: int = 0) -> list[Present]:
        """The traced threads that live, of one process or of all, each with the call it is in."""
        return list(layout.decode_present(self._iterate("present", pid)))

    def kept(self, pid: int) -> list[KeptEvent]:
        """What each thread of a process has kept so far (mode RECORD), the open call last."""
        raw, found, at = self._iterate("kept_calls", pid), [], 0
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

    def losses(self) -> Losses:
        """What is known to be lost so far; of threads that live, from themselves."""
        living = self.present() if self._alive else []
        untraced, unnamed = (
            int.from_bytes(libbpf.read_array(self._maps["trace_counters"], number, 8), "little")
            for number in range(2)
        )
        return Losses(
            calls=self._lost_calls + sum(thread.lost_calls for thread in living),
            events=self._lost_events + sum(thread.lost for thread in living),
            untraced=untraced,
            unnamed=unnamed,
            missed=sum(libbpf.recursion_misses(self._descriptors[name]) for name in _PROGRAMS),
        )


def _threads(pid: int) -> Sequence[int]:
    try:
        return procfs.thread_ids(pid)
    except OSError:
        return ()


def _descendants(pids: Sequence[int]) -> list[int]:
    """All that descend from these processes now."""
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 (names, not paths)
        if name.isdigit() and (stat := procfs.read(f"/proc/{name}/stat")):
            parents.setdefault(procfs.parse_stat(stat).ppid, []).append(int(name))
    found: list[int] = []
    left = list(pids)
    while left:
        children = parents.get(left.pop(), [])
        found += children
        left += children
    return found
