"""A live core as its readers see it, and the process that holds it.

Each snapshot is held by a process of its own (holder.py): a read that does not return costs that
one, and whoever reads waits for it for some seconds, once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from collector.errors import CaptureError
from collector.linux import children, pidfd
from collector.model import SnapshotMode
from collector.mount.processes import key_of
from collector.mount.wire import (
    DATA_AT,
    HAVE,
    MAX_READ,
    WANT,
    HoldJob,
    Ready,
    receive,
    receive_message,
    send_message,
)
from collector.ranges import Range
from collector.redact.types import Redact
from collector.snapshot import refusal

MAX_AGE = 600.0  # seconds, if nobody says
_TAKE_S = 60.0  # that a snapshot may take
_READ_S = 10.0  # that one read may take
_END_S = 15.0  # that a holder has to leave its process as it was
log = logging.getLogger(__name__)


class Holder(NamedTuple):
    """A process that holds, or is to hold, a snapshot; and our end of its socket."""

    process: subprocess.Popen[bytes]
    end: socket.socket

    def leave(self) -> None:
        """Have it end, and with it all that it did; it is given some seconds."""
        with contextlib.suppress(OSError):
            self.end.shutdown(socket.SHUT_RDWR)
        if self.process.returncode is None and children.has_ended(self.process.pid, _END_S):
            self.process.wait()
        children.kill(self.process)
        self.end.close()


def start_holder() -> Holder:
    """A holder without a job. OSError, CaptureError if there can be no more."""
    if children.hanging() >= children.MAX_HANGING:
        raise CaptureError("too many processes hang in the kernel")
    ours, end = socket.socketpair()
    with contextlib.ExitStack() as until, end:
        until.callback(ours.close)
        process = children.start(
            [sys.executable, "-P", "-s", "-m", "collector.mount.holder", str(end.fileno())],
            0,
            pass_fds=[end.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C is for the mount, which ends it then
        )
        until.pop_all()
    return Holder(process, ours)


def hold(pid: int, mode: SnapshotMode, max_age: float, redact: Redact) -> LiveCore:
    """A snapshot of a process, held until it is closed or so many seconds old. Raises CaptureError,
    ProcessLookupError if it is known at once that there can be none; else its `size` does."""
    refusal.check(pid)
    key, holder = key_of(pid), start_holder()
    job = HoldJob(
        pid=pid, start_ns=key.start_ns, mode=mode, max_age=max_age, viewer=None, redact=redact
    )
    send_message(holder.end, job)
    return LiveCore(f"live/{pid}.core", holder, None, lambda: None)


class LiveCore:
    """A snapshot that a process of its own holds. An `OpenCore`."""

    lasting = False

    def __init__(
        self,
        name: str,
        holder: Holder,
        opener: int | None,
        closed: Callable[[], None],
    ) -> None:
        """opener: pidfd of the process that may come back; this object's. closed: called last."""
        self._name, self._holder, self._end, self._closed = name, holder, holder.end, closed
        self._opener = opener
        self._give_up: Callable[[], None] | None = None
        self._turn = threading.Lock()  # one question at a time
        self._ready = threading.Event()
        self._calls: list[Callable[[], None]] = []
        self._calls_lock = threading.Lock()
        self._size = 0
        self._lost: str | None = None  # why there is nothing to be read any more
        threading.Thread(target=self._wait, name=f"snapshot {name}", daemon=True).start()

    def _wait(self) -> None:
        """Until the snapshot is there, or it is known that there is none."""
        try:
            ready = receive_message(self._end, Ready, time.monotonic() + _TAKE_S)
            self._size, self._lost = ready.size, ready.error
            log.info("%s: %s", self._name, ready.error or ready.text)
        except (OSError, EOFError, ValueError, msgspec.MsgspecError) as error:
            self._lost = f"no snapshot: {error or 'it took too long'}"
        with self._calls_lock:
            self._ready.set()
            calls, self._calls = self._calls, []
        for call in calls:
            call()

    def is_ready(self) -> bool:
        return self._ready.is_set()

    def when_ready(self, call: Callable[[], None]) -> None:
        with self._calls_lock:
            if not self._ready.is_set():
                self._calls.append(call)
                return
        call()

    def size(self) -> int:
        self._ready.wait()
        self._check()
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        length = max(0, min(length, self.size() - offset, MAX_READ))
        return self._ask(offset, length) if length else b""

    def data_at(self, offset: int) -> Range | None:
        self.size()
        found = self._ask(offset, 0)
        if not found:
            return None
        start, end = DATA_AT.unpack(found)
        return start, end

    def _ask(self, offset: int, length: int) -> bytes:
        with self._turn:
            self._check()
            deadline = time.monotonic() + _READ_S
            try:
                self._end.settimeout(_READ_S)
                self._end.sendall(WANT.pack(offset, length))
                number, size = HAVE.unpack(receive(self._end, HAVE.size, deadline))
                if size > MAX_READ:
                    raise ValueError(f"an answer of {size} bytes")
                data = receive(self._end, size, deadline)
            except TimeoutError as error:
                why = f"a read takes longer than {_READ_S:g} seconds"
                raise self._lose(why) from error
            except (OSError, EOFError, ValueError) as error:
                raise self._lose(str(error)) from error
        if number:
            raise CaptureError(data.decode(errors="replace"))
        self._check()
        return bytes(data)

    def _lose(self, why: str) -> CaptureError:
        """The error for it: nobody answers any more, or not as agreed. It is our turn."""
        self._lost = f"its snapshot is lost: {why}"
        children.kill(self._holder.process)
        return CaptureError(self._lost)

    def _check(self) -> None:
        if self._lost is not None:
            raise CaptureError(self._lost)

    def idle(self, give_up: Callable[[], None]) -> bool:
        if self._opener is None or pidfd.has_ended(self._opener):
            return False
        watched, self._give_up = self._give_up is not None, give_up
        if not watched:
            threading.Thread(target=self._wait_for_opener, daemon=True).start()
        return True

    def _wait_for_opener(self) -> None:
        assert self._opener is not None
        pidfd.has_ended(self._opener, None)
        if self._give_up is not None:
            self._give_up()

    def close(self) -> None:
        if self._opener is not None and self._give_up is None:  # else its thread waits on it
            os.close(self._opener)
        with contextlib.suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)  # for who still waits for it
        self._ready.wait()
        self._holder.leave()
        self._closed()
