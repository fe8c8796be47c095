"""The way in of every hand-off: the native part takes a process from the kernel, gathers what its
end would destroy, and releases it where nothing has to be decided.

An agent that has been idle for a second runs Python several times slower than a busy one: on a
shared machine nothing of it is in a cache any more. So the way to the release is native code where
BPF tells threads and mappings, policy releases every process at once, and there is room for a
successor. Else the process stays held with the same facts, and Python decides. Where BPF is absent
the native part lets the kernel stream its core, whose notes tell the threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import resource
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from collector.errors import HoldError
from collector.handoff.coredump_socket import SocketBackend, SocketHandOff
from collector.handoff.handoff import HandOff
from collector.handoff.pin import Pin, Slot, take_slot
from collector.handoff.pipe import HelperGone, PipeBackend, PipeHandOff, parse_line
from collector.linux.memory import LevelKey
from collector.model import TICK_NS, ProcessKey
from collector.native import contract, library
from collector.native.contract import EMPTY, OWNER_DEVICE, PINS, READY, SHARED, WORD, Answer

_NO_LIMIT = (1 << 64) - 1  # RLIM_INFINITY of <sys/resource.h>
_HAND_INTS = ctypes.sizeof(contract.Hand) // 4
_IN_USE: list[tuple[contract.Orders, ctypes.c_uint64 | None]] = []


@dataclasses.dataclass(kw_only=True)
class Taken:
    """A process that the kernel has handed over, and what the native part has of it.

    Whoever has it owns `handoff`, the descriptors and the pin.
    """

    handoff: HandOff
    key: ProcessKey | None  # exact to a clock tick; None: nobody could say when it started
    why: str  # it could not be gathered, and was released, the rest is empty; "": it was
    tid: int  # of a thread that has its memory
    files: dict[str, int]  # descriptors by the names of contract.FILES; -1: cannot be had
    texts: dict[str, bytes]  # of contract.TEXTS; maps only where BPF does not tell mappings
    threads: memoryview | None  # raw records of the task iterators; None: there is no BPF
    mappings: memoryview | None
    words: list[tuple[int, bytes]]  # of memory that its exit changes: address and content
    shared_fds: dict[int, int]  # start of a shared mapping -> descriptor of its file
    code_fds: dict[int, int]  # the same of code whose file was deleted or replaced
    unopened: int  # shared mappings whose file has no name and is not in shared_fds
    core_limit: int  # soft RLIMIT_CORE, bytes, as of getrlimit(2)
    address: int  # of memory that can be read, for a pin; 0: none
    others: int  # processes that share its memory and go on; -1, -2: see handoff.h
    spared: bool  # it was released without a pin, for so many of its owner's wait for their cores
    pin: Pin | None  # of a process that is not held any more
    size: int  # of that: private memory in bytes, what a restarted instance must allocate again
    levels: tuple[LevelKey, ...] = ()  # memory cgroups with a limit above it, and its owner
    owner: LevelKey | None = None  # whose share of the pins it uses
    unwanted: Callable[[], None] = lambda: None  # strike it out of the native part's accounts

    def close(self) -> None:
        """Release the process, and close all that was opened of it: nobody wants it."""
        self.handoff.release()
        if self.pin is not None:
            self.pin.release()
        self.unwanted()
        for fd in (*self.files.values(), *self.shared_fds.values(), *self.code_fds.values()):
            if fd >= 0:
                os.close(fd)


class Native:
    """The library, and what it may do by itself. Thread-safe."""

    def __init__(
        self,
        threads_program: int = -1,
        mappings_program: int = -1,
        *,
        stream: bool | None = None,
        path: Path | None = None,
    ) -> None:
        """For BPF iterators with these descriptors, which must stay open; -1: there are none.

        stream: let the kernel write its core; by default where there are no iterators. path: of
        the library, if it is not where it was installed or built. Raises HoldError if it was not
        built, or not for this version.
        """
        self._library = library.load(path)
        programs = threads_program, mappings_program
        self._orders = contract.Orders(*programs, counted_map=-1, armed_map=-1)
        self.streams = threads_program < 0 if stream is None else stream
        self._orders.stream = self.streams
        self._in_hand = memoryview(self._orders.in_hand).cast("B").cast("i")
        self._slots: list[Slot | None] = [None] * PINS
        self._lock = threading.Lock()
        self._pool: int | None = None
        self._pipe = False
        weakref.finalize(self, _close, self._slots, self._orders)
        if threads_program >= 0:
            self._refill()

    # ---- what it may do

    def use_bpf(self, threads_program: int, mappings_program: int, counted_map: int = -1) -> None:
        """From now on BPF tells threads and mappings; the descriptors must stay open.

        counted_map: of deaths that BPF has counted already, which nobody need be told of; -1: none.
        """
        self._orders.threads_program = threads_program
        self._orders.mappings_program = mappings_program
        self._orders.counted_map = counted_map
        self._orders.stream = self.streams = False
        self._refill()

    def know_armed(self, armed_map: int = -1) -> None:
        """Which processes' memory we hold while they live, and so use with them: BPF's map of them,
        which must stay open; -1: none's."""
        self._orders.armed_map = armed_map

    def allow(
        self, *, instant: bool, max_pins: int, max_pinned: int, patience_s: float = 0
    ) -> None:
        """instant: every process may go at once as far as policy goes. max_pinned: bytes.

        patience_s: after so long a process is let go of which nothing has been decided; 0: never.
        """
        self._orders.patience_ns = round(patience_s * 1e9)
        self._orders.max_pins, self._orders.max_pinned = max_pins, max_pinned
        self._orders.instant = int(instant)

    def bidders(self, rows: Sequence[contract.Bidder]) -> None:
        """Processes that one of these rows names stay held until somebody has bid for them.

        ValueError if they are more than BIDDERS.
        """
        if len(rows) > contract.BIDDERS:
            raise ValueError(f"{len(rows)} rows of bidders, the most are {contract.BIDDERS}")
        raw = (contract.Bidder * len(rows))(*rows)
        self._library.coreward_bidders(self._orders, raw, len(rows))

    def expect(self, capture_s: float) -> None:
        """So many seconds pass until the next core is written, if all writers are at work.

        Processes of an owner who has his share of the pins are released without one if those
        before them take longer than `patience_s`.
        """
        self._orders.capture_ns = round(capture_s * 1e9)

    def count(self, pins: int, size: int, by_level: Mapping[LevelKey, int] = {}) -> None:
        """The pins that are in the account, their bytes, and those by memory cgroup."""
        open_ = contract.Account(pins, size, len(by_level))
        for level, (key, part) in zip(open_.levels, by_level.items(), strict=False):
            level.device, level.inode, level.bytes = *key, part
        self._library.coreward_count(self._orders, open_)

    def fresh(self) -> tuple[int, int, dict[LevelKey, int]]:
        """The same of those that are not in the account yet."""
        fresh = contract.Account()
        self._library.coreward_fresh(self._orders, fresh)
        levels = fresh.levels[: fresh.count]
        return fresh.pins, fresh.bytes, {LevelKey(v.device, v.inode): v.bytes for v in levels}

    def entered(self, size: int, levels: Sequence[LevelKey] = ()) -> None:
        """The pin of a process that was released, so many bytes, is in the account now."""
        raw = (contract.Level * len(levels))(*(contract.Level(*key) for key in levels))
        self._library.coreward_entered(self._orders, size, raw, len(levels))

    def wait(self, wake: int, ring: int, timeout_ms: int) -> None:
        """Wait until `wake` or `ring` (-1: none) is readable; -1 ms: for ever.

        Events in the ring are told some milliseconds later while a process is held.
        """
        self._library.coreward_wait(self._orders, wake, ring, timeout_ms)

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """While Python holds a process: `wait` tells events later."""
        self._library.coreward_busy(self._orders, 1)
        try:
            yield
        finally:
            self._library.coreward_busy(self._orders, -1)

    def has_in_hand(self, key: ProcessKey) -> bool:
        """Whether this process was released, and nobody has said `joined` of it yet."""
        return self._index_in_hand(key) is not None

    def was_spared(self, key: ProcessKey) -> bool:
        """Whether it was released, and is told by nobody but BPF: see `Taken.spared`."""
        ticks = key.start_ns // TICK_NS
        return bool(self._library.coreward_was_spared(key.pid, ticks))

    def joined(self, key: ProcessKey) -> None:
        """Python has registered this process, so its exit event can be matched from now on."""
        if (index := self._index_in_hand(key)) is not None:
            self._orders.in_hand[index].pid = 0

    def _index_in_hand(self, key: ProcessKey) -> int | None:
        if key.pid in (pids := self._in_hand[::_HAND_INTS].tolist()):
            for index, pid in enumerate(pids):
                start_ns = self._orders.in_hand[index].start_ticks * TICK_NS
                if pid == key.pid and key.is_same(ProcessKey(pid, start_ns)):
                    return index
        return None

    # ---- hand-offs

    def serve(self, listener: SocketBackend | PipeBackend) -> None:
        """Have threads of the native part take what is handed over at a listener, until it is
        closed; from then on it is theirs.

        Raises HoldError if there can be no threads.
        """
        pipe, heard = isinstance(listener, PipeBackend), None
        if isinstance(listener, PipeBackend):
            heard = listener.heard
            self._orders.helper_device, self._orders.helper_inode = listener.helper_id
            path = bytes(listener.helper)
            self._orders.helper_path = path if len(path) < contract.HELPER_PATH else b""
            self._orders.heard = 0 if heard is None else ctypes.addressof(heard)
        listener.block()
        self.leave()
        ctypes.set_errno(0)
        # they may be kept waiting for longer than we live: what they use stays
        _IN_USE.append((self._orders, heard))
        self._pool = self._library.coreward_serve(listener.fileno(), pipe, self._orders)
        self._pipe = pipe
        if error := ctypes.get_errno():
            raise HoldError(f"no threads to take processes with: {os.strerror(error)}")

    def stop_taking(self) -> None:
        """Take no more, although the listener stays: who connects waits for the next one.

        What was taken is still told by `take`.
        """
        if self._pool is not None:
            self._library.coreward_stop(self._pool)

    def leave(self) -> None:
        """After the listener was closed: release what was taken and not asked for.

        Nobody may be in `take`.
        """
        pool, self._pool = self._pool, None
        if pool is not None:
            self._library.coreward_leave(pool)

    @property
    def left_behind(self) -> int:
        """Threads that a process keeps waiting."""
        return int(self._orders.left_behind)

    @property
    def untold(self) -> int:
        """Hand-offs that there was no memory for; what BPF saw of these deaths is all."""
        return int(self._orders.untold)

    def take(self, timeout_s: float | None = None) -> Taken | None:
        """The next process that was handed over. timeout_s None: waits for ever.

        None: not in that time, or the listener was closed. Raises HoldError if a
        connection was not the kernel's, or its hand-off broke off; HelperGone if a pipe's helper
        had given up.
        """
        raw = contract.Taken()
        timeout_ms = -1 if timeout_s is None else round(timeout_s * 1000)
        answer = self._library.coreward_take(self._pool, raw, timeout_ms)
        if answer == Answer.REFUSED:
            raise HoldError(os.fsdecode(raw.why))
        if answer == Answer.LATE:
            raise HelperGone
        if answer != Answer.PROCESS:
            return None
        handoff: HandOff | None = None
        try:
            handoff = self._handoff(raw)
            return self._taken(raw, handoff)
        except BaseException:  # nobody may be held for ever
            self._abandon(raw, handoff)
            raise
        finally:
            self._library.coreward_drop(raw)

    def _handoff(self, raw: contract.Taken) -> HandOff:
        handoff: HandOff
        streams = self._pipe or self.streams
        unwatch = partial(self._unwatch, raw.watch)
        if self._pipe and raw.line:
            who = parse_line(raw.line)
            handoff = PipeHandOff(
                *(raw.hold, raw.pid, raw.pidfd, raw.accepted_ns, streams, unwatch), who
            )
        else:
            handoff = SocketHandOff(
                *(raw.hold, raw.pid, raw.pidfd, raw.accepted_ns, streams, unwatch)
            )
        if raw.signal >= 0:
            handoff.signal = raw.signal
        if raw.hold < 0:
            handoff.note_release(raw.released_ns)
        return handoff

    def _taken(self, raw: contract.Taken, handoff: HandOff) -> Taken:
        bpf = self._orders.threads_program >= 0
        texts = (text.copy() for text in raw.texts)
        unnamed = list(SHARED.iter_unpack(raw.shared.copy()))
        limit = resource.RLIM_INFINITY if raw.core_limit == _NO_LIMIT else raw.core_limit
        taken = Taken(
            handoff=handoff,
            key=ProcessKey(raw.pid, raw.start_ticks * TICK_NS) if raw.start_ticks else None,
            why="" if raw.gathered else os.fsdecode(raw.why),
            tid=raw.tid,
            files=dict(zip(contract.FILES, raw.fds, strict=True)),
            texts=dict(zip(contract.TEXTS, texts, strict=True)),
            threads=memoryview(raw.threads.copy()) if bpf else None,
            mappings=memoryview(raw.mappings.copy()) if bpf else None,
            words=list(WORD.iter_unpack(raw.words.copy())),
            shared_fds={start: fd for start, fd, code in unnamed if not code},
            code_fds={start: fd for start, fd, code in unnamed if code},
            unopened=raw.unopened,
            core_limit=limit,
            address=raw.address,
            others=raw.others,
            spared=bool(raw.spared and raw.gathered),
            owner=LevelKey(OWNER_DEVICE, raw.owner),
            pin=None,
            size=0,
        )
        taken.pin = self._pin(raw)  # last: all that may fail has not
        if taken.pin is not None:
            taken.size = raw.private_size
            levels = raw.levels[: raw.limits]
            taken.levels = tuple(LevelKey(level.device, level.inode) for level in levels)
        if taken.pin is not None or taken.spared:
            taken.unwanted = partial(self._unwanted, taken)
        return taken

    def _pin(self, raw: contract.Taken) -> Pin | None:
        """The pin of a process that was released. What was used for it is made ready anew."""
        if raw.pin < 0:
            return None
        if not raw.begun:  # its read was not even begun
            if raw.pin_fd >= 0:
                os.close(raw.pin_fd)
            self._orders.pins[raw.pin].state = READY
            return None
        with self._lock:
            slot, self._slots[raw.pin] = self._slots[raw.pin], None
            self._orders.pins[raw.pin].state = EMPTY
        assert slot is not None
        pin = Pin.adopt(slot, raw.pin_fd)
        self._refill()
        if raw.hold >= 0:  # it took too long
            pin.release()
            return None
        return pin

    def _refill(self) -> None:
        with self._lock, contextlib.suppress(HoldError):  # without one, Python pins
            for index in range(PINS):
                if self._slots[index] is None:
                    slot = self._slots[index] = take_slot()
                    ready = self._orders.pins[index]
                    ready.uffd, ready.page = slot.uffd, slot.address
                    ready.request = ctypes.addressof(slot.request)
                    ready.state = READY

    def _unwanted(self, taken: Taken) -> None:
        if taken.pin is not None:
            self.entered(taken.size, taken.levels)
        if taken.key is not None:
            self.joined(taken.key)

    def _unwatch(self, watch: int) -> bool:
        return bool(self._library.coreward_unwatch(watch))

    def _abandon(self, raw: contract.Taken, handoff: HandOff | None) -> None:
        """Release a process that was taken, and close all that is open of it."""
        if handoff is not None:
            handoff.release()
        else:
            self._unwatch(raw.watch)
        shared = (fd for _, fd, _ in SHARED.iter_unpack(raw.shared.copy()))
        held = () if handoff is not None else (raw.hold, raw.pidfd)
        for fd in (*held, *raw.fds, *shared, raw.pin_fd):
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)


def _close(slots: list[Slot | None], orders: contract.Orders) -> None:
    """Close the pages that no pin has used."""
    for slot, pin in zip(slots, orders.pins, strict=True):
        if slot is not None and pin.state == READY:
            pin.state = EMPTY
            slot.close()
