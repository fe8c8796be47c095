"""The open probe: one reader of the pinned programs, and how it comes to be.

Opening takes over what is pinned: pins of the same build are used as they are; those of another
build are replaced without a gap (the new programs are attached before the old ones are detached,
and what both saw is reported once).
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import select
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import msgspec

from collector.errors import ProbeError
from collector.linux import libbpf
from collector.linux.ringbuf import Ring
from collector.model import Event, Exit, FatalSignal, MappedObject, ProcessKey, Sending
from collector.probe import btf, core, events, files, iterators, pins
from collector.probe.ledger import Ledger
from collector.probe.tallies import Tallies, Tally

PIN_DIR = Path("/sys/fs/bpf/coreward")
_COUNTER = struct.Struct("<Q")
_SETTING = struct.Struct("<I")
_WANT_EXITS, _HAS_HANDOFF, _ARMING = 0, 1, 2  # enum cw_setting
_MAX_LEAVING = 1024  # processes between the two records of their end


class Counters(msgspec.Struct, frozen=True, kw_only=True):
    """What the programs counted since they were loaded, and the reader since it was opened."""

    dropped_exit: int  # deaths that found the ring full
    dropped_oom: int
    dropped_mapped: int  # objects of killed processes: their backtraces miss them
    handled: int  # signals that were delivered and not fatal
    fatal: int
    tallied: int  # deaths that are in tallies only
    untallied: int  # and those for which there was no room even there
    dropped_armed: int  # threads of armed processes
    dropped_started: int  # processes that might have been armed when they started
    undecodable: int  # records of another build's format, or damaged
    overwritten: int  # deaths that a killed reader had taken, and whose events are gone


class _Build(NamedTuple):
    """A way to make the programs. `name` is that of its directory of pins."""

    loader: str
    name: str
    load: Callable[[Path], None]


def _build_name(loader: str, content: bytes) -> str:
    digest = hashlib.sha256(content + btf.kernel_hash().encode()).hexdigest()
    return f"{loader}-{digest[:16]}"


def _core_build(object_file: Path | None) -> _Build:
    path = object_file or files.object_file()
    try:
        image = path.read_bytes()
    except OSError as error:
        raise ProbeError(
            f"{path} cannot be read ({error.strerror}): build it with "
            "`python -m collector.probe.build build`, or use the loader bcc"
        ) from error
    return _Build(
        "core", _build_name("core", image), lambda target: core.load(image, str(path), target)
    )


def _bcc_build() -> _Build:
    from collector.probe import bccload  # noqa: PLC0415 - it is also a program of its own

    text = bccload.translated(files.source_file())
    return _Build("bcc", _build_name("bcc", text.encode()), bccload.load_elsewhere)


def _builds(loader: str, object_file: Path | None) -> Iterator[_Build]:
    """The builds to try, best first."""
    if loader not in ("auto", "core", "bcc"):
        raise ProbeError(f"loader {loader!r}: there are auto, core and bcc")
    if loader == "core" or object_file is not None:
        yield _core_build(object_file)
    elif loader == "auto" and files.object_file().exists():
        yield _core_build(None)
    if loader in ("auto", "bcc"):
        yield _bcc_build()


def _ensure(build: _Build, pin_dir: Path) -> Path:
    """The directory with this build's pins; loaded if it is not there."""
    directory = pin_dir / build.name
    if not pins.is_complete(directory):
        pins.remove(directory)
        try:
            build.load(directory)
        except ProbeError:
            pins.remove(directory)
            raise
    return directory


def _load_best(loader: str, pin_dir: Path, object_file: Path | None) -> tuple[str, Path]:
    problems = []
    for build in _builds(loader, object_file):
        try:
            return build.loader, _ensure(build, pin_dir)
        except ProbeError as error:
            problems.append(f"{build.loader}: {error}")
    raise ProbeError("; ".join(problems) or "no loader can be used")


class _Old:
    """A replaced build: detached, its ring read to the end. Its pins go when all is on record."""

    def __init__(self, directory: Path) -> None:
        pins.detach(directory)
        self.events: list[Event] = []
        self.undecodable = 0
        self.directory = directory
        self._ring = Ring(libbpf.get_pin(str(directory / "ring")))
        self.ledger = Ledger(directory, self._ring)
        readable = pins.event_format(directory) == events.FORMAT
        self.tallies = _last_tallies(directory) if readable else []
        sent: dict[ProcessKey, Sending] = {}
        for position, record in (*self.ledger.again(), *self._ring.positioned()):
            try:
                if not readable:
                    raise ProbeError("another format")
                event = events.decode(record)
            except ProbeError:
                self.undecodable += 1
                continue
            if isinstance(event, events.Sent):
                sent[event.key] = event.sending
            elif not isinstance(event, events.Mapped):
                if isinstance(event, FatalSignal):
                    sending = sent.pop(event.who.key, None)
                    event = msgspec.structs.replace(event, sending=sending)
                self.events.append(event)
                self.ledger.take(event.who.key, position)
        self.ledger.keep()

    def remove_if_settled(self) -> bool:
        """True if it is no longer there."""
        if not self.ledger.is_settled:
            return False
        self.close()
        pins.remove(self.directory)
        return True

    def close(self) -> None:
        self.ledger.close()
        self._ring.close()


def _last_tallies(directory: Path) -> list[Tally]:
    tallies = Tallies(directory)
    try:
        return list(tallies.all())
    finally:
        tallies.close()


def _take_over(directory: Path) -> _Old | None:
    """Another build with what it had recorded; None if nothing can be read of it."""
    if pins.is_complete(directory, attached=False):
        return _Old(directory)
    pins.remove(directory)
    return None


def open_probe(
    loader: str = "auto", pin_dir: Path = PIN_DIR, object_file: Path | None = None
) -> Probe:
    """Use the programs that are pinned below `pin_dir`, or load them: "core", "bcc", or the best.

    `object_file` is the CO-RE object (default: build/coreward.bpf.o of the checkout). Needs root
    (CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN for the iterators). ProbeError says what to do.
    """
    descriptor = pins.lock(pin_dir)
    try:
        used, directory = _load_best(loader, pin_dir, object_file)
        found = [_take_over(path) for path in pins.builds(pin_dir) if path != directory]
        return Probe(used, directory, descriptor, [old for old in found if old is not None])
    except OSError as error:
        os.close(descriptor)
        raise ProbeError(f"{pin_dir}: {error.strerror or error}") from error
    except BaseException:
        os.close(descriptor)
        raise


class Probe:
    """One reader of the programs; see `open_probe`. All methods may be called from any thread."""

    loader: str
    attached_ns: int  # CLOCK_BOOTTIME; earlier events happened while nobody listened
    since_s: float  # since the epoch: the programs, or those they replace, see every death
    tallies: Tallies
    replaced_tallies: list[Tally]  # of replaced builds; they grow no more

    def __init__(self, loader: str, directory: Path, lock: int, replaced: list[_Old]) -> None:
        self.loader = loader
        self._directory = directory
        self._lock_descriptor = lock
        self._undecodable = sum(old.undecodable for old in replaced)
        self._waiting = deque(event for old in replaced for event in old.events)
        self._reported = {_identity(event) for event in self._waiting}
        self._mapped: dict[ProcessKey, list[MappedObject]] = {}  # of processes that leave
        # who sent them a signal that is fatal, and where that stands in the ring
        self._sent: dict[ProcessKey, tuple[Sending, int]] = {}
        directories = [directory, *(old.directory for old in replaced)]
        self.since_s = min(map(pins.published_s, directories))
        self._drain_lock = threading.Lock()
        self._fence = threading.Lock()
        self._ring = Ring(libbpf.get_pin(str(directory / "ring")))
        self._counters = libbpf.get_pin(str(directory / "counters"))
        self._settings = libbpf.get_pin(str(directory / "settings"))
        self.tallies = Tallies(directory)
        self.replaced_tallies = [tally for old in replaced for tally in old.tallies]
        self._threads = libbpf.get_pin(str(directory / "threads"))
        self._mappings = libbpf.get_pin(str(directory / "mappings"))
        self._epoll = select.epoll()
        self._epoll.register(self._ring.descriptor, select.EPOLLIN)
        self.attached_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._ledger = Ledger(directory, self._ring)
        again = list(self._decoded(self._ledger.again()))
        self._again = {event.who.key for event in again}
        self._waiting += again
        self._ring.trim()
        self._replaced_lock = threading.Lock()
        self._replaced = [old for old in replaced if not old.remove_if_settled()]
        self._overwritten = sum(one.lost for one in (self._ledger, *(o.ledger for o in replaced)))
        self._wake = os.eventfd(1 if self._waiting else 0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def fileno(self) -> int:
        """A descriptor for poll(2), readable when events wait."""
        return self._epoll.fileno()

    def drain(self, most: int | None = None) -> list[Event]:
        """The events that wait, oldest first, and at most so many of them. Does not block.

        Fewer than `most`: there are no more.
        """
        with self._drain_lock:
            found: list[Event] = []
            while self._waiting and len(found) != most:
                found.append(self._waiting.popleft())
                if not self._waiting:
                    os.eventfd_read(self._wake)
            found += self._some(most and most - len(found))
            # A writer wakes us only if it sees that we have read all before its record. The lock's
            # atomic operation is the barrier between our store and the second look.
            with self._fence:
                found += self._some(most and most - len(found))
            self._ring.trim()
            if found:
                self._ledger.keep()
            return found

    def _some(self, most: int | None) -> Iterator[Event]:
        with contextlib.closing(self._ring.positioned()) as records:
            yield from itertools.islice(self._decoded(records), most)

    def _decoded(self, records: Iterable[tuple[int, bytes]]) -> Iterator[Event]:
        for position, record in records:
            try:
                event = events.decode(record)
            except ProbeError:
                self._undecodable += 1
                continue
            if isinstance(event, events.Mapped):
                self._note_mapped(event)
                continue
            if isinstance(event, events.Sent):
                self._note_sent(event, position)
                continue
            first = position
            if isinstance(event, FatalSignal) and event.who.key in self._sent:
                sending, first = self._sent.pop(event.who.key)
                event = msgspec.structs.replace(event, sending=sending)
            if isinstance(event, Exit):
                found = self._mapped.pop(event.who.key, [])
                event = msgspec.structs.replace(event, mapped=tuple(found))
            if event.time_ns < self.attached_ns and _identity(event) in self._reported:
                continue  # the replaced build saw it as well
            self._ledger.take(event.who.key, first)
            yield event

    def _note_mapped(self, told: events.Mapped) -> None:
        """Buffer it until the exit event of the same process, which follows in the ring."""
        if told.found is None:
            return
        if len(self._mapped) > _MAX_LEAVING:  # their exits were lost
            self._mapped.clear()
        self._mapped.setdefault(told.key, []).append(told.found)

    def _note_sent(self, told: events.Sent, position: int) -> None:
        """Buffer it until the signal is delivered, which is told next of the same process."""
        if len(self._sent) > _MAX_LEAVING:  # the records behind them were lost
            self._sent.clear()
        self._sent[told.key] = told.sending, position

    @property
    def iterators(self) -> tuple[int, int]:
        """Descriptors of the programs behind `threads` and `mappings`."""
        return self._threads, self._mappings

    def threads(self, pid: int) -> memoryview:
        """All threads of a process as raw records for `decode_threads`, without stopping any.

        ProbeError if there is no such process in this pid namespace.
        """
        raw = self._iterate(iterators.read_all, self._threads, pid)
        if not raw:
            raise ProbeError(f"no process {pid} has threads to list")
        return raw

    def mappings(self, pid: int) -> memoryview:
        """All mappings of a process as raw records for `decode_mappings`; empty if it has none.

        A leader that called pthread_exit(3) has no memory any more; then another thread is asked.
        """
        return self._iterate(iterators.iterate_mappings, self._mappings, pid)

    def _iterate(
        self, read: Callable[[int, int], memoryview], program: int, pid: int
    ) -> memoryview:
        try:
            return read(program, pid)
        except OSError as error:
            raise ProbeError(f"process {pid} cannot be listed: {error.strerror}") from error

    def set_want_exits(self, on: bool) -> None:
        """Whether exits with a status other than 0 are reported although nothing went wrong."""
        libbpf.write_array(self._settings, _WANT_EXITS, _SETTING.pack(int(on)))

    def set_has_handoff(self, on: bool) -> None:
        """Whether processes that dump core are handed over, so that their mappings, which are many
        records, need not be told at their end.
        """
        libbpf.write_array(self._settings, _HAS_HANDOFF, _SETTING.pack(int(on)))

    @property
    def directory(self) -> Path:
        """Of the pins; see `armed.ArmedProbe`."""
        return self._directory

    def disarm_all(self) -> None:
        """No process is armed: an earlier agent, which was killed, may have left it otherwise."""
        libbpf.write_array(self._settings, _ARMING, _SETTING.pack(0))

    def tallied(self) -> int:
        """Deaths that are in `tallies` only, of all times."""
        index = Counters.__struct_fields__.index("tallied")
        return int(_COUNTER.unpack(libbpf.read_array(self._counters, index, _COUNTER.size))[0])

    def counters(self) -> Counters:
        """What was counted so far."""
        names = Counters.__struct_fields__[:-2]  # in the order of enum cw_counter
        values = {
            name: _COUNTER.unpack(libbpf.read_array(self._counters, index, _COUNTER.size))[0]
            for index, name in enumerate(names)
        }
        return Counters(**values, undecodable=self._undecodable, overwritten=self._overwritten)

    def recorded(self, key: ProcessKey) -> None:
        """The death of this process is on record, or is not to be.

        Until then, whoever opens the programs next is given the events of it again.
        """
        with self._replaced_lock:
            for old in self._replaced:
                old.ledger.recorded(key)
            self._replaced = [old for old in self._replaced if not old.remove_if_settled()]
        self._ledger.recorded(key)

    def was_taken(self, key: ProcessKey) -> bool:
        """Whether an earlier reader had taken an event of this process, and ended before it had
        recorded the death."""
        return key in self._again

    def unpin(self) -> None:
        """Detach the programs for good; events that wait can still be drained."""
        with self._replaced_lock:
            for directory in (self._directory, *(old.directory for old in self._replaced)):
                pins.remove(directory)
        pins.remove_empty(self._directory.parent)

    def close(self) -> None:
        """Stop reading. Pinned programs go on recording for the next opener."""
        if self._epoll.closed:
            return
        self._epoll.close()
        self._ledger.close()
        self._ring.close()
        self.tallies.close()
        with self._replaced_lock:
            for old in self._replaced:
                old.close()
            self._replaced = []
        for descriptor in (
            self._wake,
            self._counters,
            self._settings,
            self._threads,
            self._mappings,
            self._lock_descriptor,
        ):
            os.close(descriptor)


def _identity(event: Event) -> tuple[type[Event], ProcessKey]:
    return type(event), event.who.key
