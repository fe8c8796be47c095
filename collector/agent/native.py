"""From the kernel's hand-off to the release, in C (`native.c`), and what it found for Python.

An agent that has been idle for a second runs Python several times slower than a busy one: on a
shared machine nothing of it is in a cache any more. So the way to the release is native code where
nothing has to be decided: BPF tells threads and mappings, policy lets every process go at once,
and there is room for a successor. Else the process stays held, and Python decides as it would
without this library. What is captured is the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import logging
import os
import resource
import struct
import threading
from collections.abc import Callable
from ctypes import c_char, c_int32, c_int64, c_uint64
from pathlib import Path

from collector.agent.gather import Gathered
from collector.capture.dying import Patch
from collector.capture.process import OpenProcess, ProcText
from collector.errors import HoldError
from collector.handoff.coredump_socket import SocketHandOff
from collector.handoff.handoff import HandOff
from collector.handoff.pin import Pin, Slot, take_slot
from collector.handoff.pipe import HelperGone, PipeHandOff, parse_line
from collector.native.build import LIBRARY, find

log = logging.getLogger(__name__)

_PINS, _HANDS = 8, 64
_EMPTY, _READY = 0, 1  # of struct pin
_CLOSED, _REFUSED, _LATE = -1, 0, 2  # answers
_NO_LIMIT = (1 << 64) - 1  # RLIM_INFINITY of <sys/resource.h>
_WORD, _SHARED = struct.Struct("=Q4s4x"), struct.Struct("=Qi4x")  # struct word, struct shared


class _Pin(ctypes.Structure):
    _fields_ = (("state", c_int32), ("uffd", c_int32), ("page", c_uint64), ("request", c_uint64))


class _Orders(ctypes.Structure):
    """struct orders of native.c."""

    _fields_ = (
        ("threads_program", c_int32),
        ("mappings_program", c_int32),
        ("instant", c_int32),
        ("max_pins", c_int32),
        ("max_pinned", c_int64),
        ("open_pins", c_int64),
        ("open_bytes", c_int64),
        ("fresh_pins", c_int64),
        ("fresh_bytes", c_int64),
        ("pins", _Pin * _PINS),
        ("in_hand", c_int32 * _HANDS),
        ("busy", c_int32),
        ("heard_fd", c_int32),
        ("heard", c_uint64),
        ("helper_device", c_uint64),
        ("helper_inode", c_uint64),
    )


class _Bytes(ctypes.Structure):
    _fields_ = (("at", c_uint64), ("size", c_uint64))

    def copy(self) -> bytes:
        return ctypes.string_at(self.at, self.size) if self.size else b""


class _Taken(ctypes.Structure):
    """struct taken of native.c."""

    _fields_ = (
        ("hold", c_int32),
        ("pidfd", c_int32),
        ("pid", c_int32),
        ("signal", c_int32),
        ("gathered", c_int32),
        ("accepted_ns", c_int64),
        ("released_ns", c_int64),
        ("why", c_char * 128),
        ("line", c_char * 256),
        ("fds", c_int32 * 6),
        ("pin", c_int32),
        ("begun", c_int32),
        ("pin_fd", c_int32),
        ("private", c_int64),
        ("entries", c_uint64),
        ("core_limit", c_uint64),
        ("texts", _Bytes * 6),
        ("threads", _Bytes),
        ("mappings", _Bytes),
        ("words", _Bytes),
        ("shared", _Bytes),
        ("area", c_uint64),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accepted:
    """A hand-off that the kernel has agreed to."""

    handoff: HandOff
    gathered: Gathered | None  # None: it is held, and something could not be had


class Native:
    """The library, and what it may do by itself. Thread-safe."""

    def __init__(self, threads_program: int, mappings_program: int) -> None:
        """For iterators with these descriptors, which must stay open.

        Raises HoldError if the library was not built, or not for this version.
        """
        path = find(LIBRARY)
        if path is None:
            raise HoldError("the native part of the hand-off was not built; run `make setup`")
        self._library = _load(path)
        self._orders = _Orders(threads_program, mappings_program)
        self._in_hand = memoryview(self._orders.in_hand).cast("B").cast("i")
        self._slots: list[Slot | None] = [None] * _PINS
        self._lock = threading.Lock()
        self._refill()

    # ---- what it may do

    def allow(self, *, instant: bool, max_pins: int, max_pinned: int) -> None:
        """instant: every process may go at once as far as policy goes. max_pinned: bytes."""
        self._orders.max_pins, self._orders.max_pinned = max_pins, max_pinned
        self._orders.instant = int(instant)

    def count(self, pins: int, size: int) -> None:
        """The pins that are in the account, and their bytes."""
        self._orders.open_pins, self._orders.open_bytes = pins, size

    def fresh(self) -> tuple[int, int]:
        """The pins that are not in the account yet, and their bytes."""
        return self._orders.fresh_pins, self._orders.fresh_bytes

    def entered(self, gathered: Gathered) -> None:
        """The pin of one that was let go is in the account now."""
        self._library.coreward_entered(ctypes.byref(self._orders), c_int64(gathered.size))

    def helpers(self, program: tuple[int, int], heard_fd: int, heard: int) -> None:
        """Of the pipe helpers: device and inode of their program; where they see how many of them
        were heard, and how many that were until now."""
        self._orders.helper_device, self._orders.helper_inode = program
        self._orders.heard_fd, self._orders.heard = heard_fd, heard

    def wait(self, wake: int, ring: int, timeout_ms: int) -> None:
        """Wait until `wake` or `ring` (-1: none) is readable; see native.c. -1 ms: for ever."""
        self._library.coreward_wait(ctypes.byref(self._orders), wake, ring, timeout_ms)

    def has_in_hand(self, pid: int) -> bool:
        """Whether this process was taken, and nobody has said `joined` of it yet."""
        return pid in self._in_hand.tolist()

    def joined(self, pid: int) -> None:
        """Whoever sees the end of this process from now on knows that it was taken."""
        for index, one in enumerate(self._in_hand):
            if one == pid:
                self._in_hand[index] = 0

    # ---- hand-offs

    def take_socket(self, listener: int) -> Accepted | None:
        """Wait for the next hand-off at a coredump socket that blocks; None: it was shut down.

        Raises HoldError if a connection was not the kernel's, or its hand-off broke off.
        """
        taken = _Taken()
        if not self._take(self._library.coreward_take_socket, listener, taken):
            return None
        signo = None if taken.signal < 0 else taken.signal
        handoff = SocketHandOff(taken.hold, taken.pid, taken.pidfd, signo, taken.accepted_ns)
        return self._accepted(handoff, taken)

    def take_pipe(self, listener: int) -> Accepted | None:
        """The same for the socket of pipe helpers. Raises HelperGone if one had given up."""
        taken = _Taken()
        if not self._take(self._library.coreward_take_pipe, listener, taken):
            return None
        who = parse_line(taken.line)
        handoff = PipeHandOff(taken.hold, who, taken.pid, taken.pidfd, taken.accepted_ns)
        return self._accepted(handoff, taken)

    def gather(self, handoff: HandOff) -> Gathered | None:
        """Gather what is of a held process, and let it go if nothing speaks against it.

        None: it is held, and something could not be had.
        """
        taken = _Taken(hold=handoff.holds, pid=handoff.pid, pidfd=handoff.pidfd, signal=-1)
        self._library.coreward_gather(ctypes.byref(self._orders), ctypes.byref(taken))
        return self._accepted(handoff, taken).gathered

    def _take(self, function: Callable[..., int], listener: int, taken: _Taken) -> bool:
        got = function(listener, ctypes.byref(self._orders), ctypes.byref(taken))
        if got == _REFUSED:
            raise HoldError(os.fsdecode(taken.why))
        if got == _LATE:
            raise HelperGone
        return got != _CLOSED

    def _accepted(self, handoff: HandOff, taken: _Taken) -> Accepted:
        if taken.hold < 0:
            handoff.note_release(taken.released_ns)
        return Accepted(handoff=handoff, gathered=self._gathered(taken))

    def _gathered(self, taken: _Taken) -> Gathered | None:
        try:
            pin = self._pin(taken)
            if not taken.gathered:
                # Python tries, and says what it can not have
                log.info("process %d: not gathered: %s", taken.pid, os.fsdecode(taken.why))
                return None
            names = ProcText.__struct_fields__  # in the order of native.c, which has no maps
            copies = [text.copy() for text in taken.texts]
            text = ProcText(**dict(zip(names[:-1], copies, strict=True)), maps=None)
            limit = taken.core_limit
            soft = resource.RLIM_INFINITY if limit == _NO_LIMIT else limit
            dying = OpenProcess.adopt(taken.pid, list(taken.fds), text, soft)
            shared_fds = dict(_SHARED.iter_unpack(taken.shared.copy()))
            for fd in shared_fds.values():
                dying.keep(fd)
            return Gathered(
                dying=dying,
                threads=memoryview(taken.threads.copy()),
                mappings=memoryview(taken.mappings.copy()),
                head=None,
                patches=[Patch(*word) for word in _WORD.iter_unpack(taken.words.copy())],
                shared_fds=shared_fds,
                pin=pin,
                size=taken.private if pin is not None else 0,
            )
        finally:
            self._library.coreward_drop(ctypes.byref(taken))

    def _pin(self, taken: _Taken) -> Pin | None:
        """The pin of a process that was let go. What was used for it is made ready anew."""
        if taken.pin < 0:
            return None
        if not taken.begun:  # its read was not even begun
            if taken.pin_fd >= 0:
                os.close(taken.pin_fd)
            self._orders.pins[taken.pin].state = _READY
            return None
        with self._lock:
            slot, self._slots[taken.pin] = self._slots[taken.pin], None
            self._orders.pins[taken.pin].state = _EMPTY
        assert slot is not None
        pin = Pin.adopt(slot, taken.pin_fd)
        self._refill()
        if taken.hold >= 0:  # it took too long
            pin.release()
            return None
        return pin

    def _refill(self) -> None:
        with self._lock, contextlib.suppress(HoldError):  # without one, Python pins
            for index in range(_PINS):
                if self._slots[index] is None:
                    slot = self._slots[index] = take_slot()
                    ready = self._orders.pins[index]
                    ready.uffd, ready.page = slot.uffd, slot.address
                    ready.request = ctypes.addressof(slot.request)
                    ready.state = _READY


def _load(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
        library.coreward_sizes.restype = c_uint64
        sizes = library.coreward_sizes()
    except (OSError, AttributeError) as error:
        raise HoldError(f"{path}: {error}; build it with `make setup`") from error
    if sizes != ctypes.sizeof(_Orders) << 32 | ctypes.sizeof(_Taken):
        raise HoldError(f"{path} is of another version: build it with `make setup`")
    return library
