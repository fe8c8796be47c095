"""The dumpers that are registered, and the processes that they are asked about or have.

A thread of its own hears what they say, and looks at every time limit; nothing here waits for one
of them. Whoever asks is called back, once: `ask` with the bids that came in time, `dump` with what
became of it. Which bid counts, and what is done with the process, is not known here.

A dumper that has ended, or closed its connection, has bid for nothing, and what it had is over at
once. So is one that does not answer three times in a row, or writes nonsense. A dumper may leave:
it gets no more processes then, and its connection is closed when it has none any more.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable

from collector.dumpers.desk import Calls, Desk, joined
from collector.dumpers.dumper import MAX_ERRORS, Dumper
from collector.dumpers.protocol import (
    MAX_PRIORITY,
    MAX_TEXT,
    NOMATCH,
    VERSION,
    BadMessage,
    Gone,
    Message,
    message,
    refuse,
)
from collector.dumpers.register import Registration, registration
from collector.errors import CorewardError
from collector.linux.peer import Peer
from collector.native.contract import Bidder

log = logging.getLogger(__name__)

MAX_DUMPERS = 32
_MAX_UNKNOWN = 16  # connections that have not registered yet
_REGISTER_S = 5.0  # that these have
_START_S = 60.0  # the same of plugins, which are started for it, on a busy host perhaps
_ERRNO = 4095  # MAX_ERRNO <linux/err.h>
_NICE = -5  # of the thread: processes wait for it
_PAUSE_S = 0.05  # after an error of ours
_ONE_TURN = 32  # messages of one dumper until others have a turn


class Hub(Desk):
    """Thread-safe."""

    def __init__(
        self,
        bid_s: float,
        most_s: float,
        reach: Callable[[list[Bidder]], None] = lambda rows: None,
        missed: Callable[[], object] = lambda: None,
    ) -> None:
        """As for Desk."""
        super().__init__(bid_s, most_s, reach, missed)
        self._ids = itertools.count(1)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._door: Callable[[], None] | None = None  # takes whoever knocks
        self._door_fd = -1
        self._thread: threading.Thread | None = None

    def listen(self, fd: int, knocked: Callable[[], None]) -> None:
        """Have `knocked` called whenever this descriptor is readable; it stays the caller's.

        -1: none any more.
        """
        with self._lock:
            self._door, self._door_fd = knocked, fd
            if fd >= 0:
                self._start()
        self._look()

    def take(
        self,
        connection: socket.socket,
        peer: Peer,
        pidfd: int,
        *,
        most_s: float | None = None,
        gone: Callable[[str], None] | None = None,
    ) -> bool:
        """Somebody who may register; both descriptors are the hub's from now on.

        most_s: seconds that it may have a process, instead of those of all; then it is sent away.
        gone: told once, with the reason, when its connection is closed; from any thread.

        False: too many are here already, and it was told so.
        """
        until = time.monotonic() + (_REGISTER_S if gone is None else _START_S)
        dumper = Dumper(connection, peer, pidfd, until, most_s=most_s, gone=gone)
        with self._lock:
            full = len(self._unknown) >= _MAX_UNKNOWN or len(self._dumpers) >= MAX_DUMPERS
            if full or self._closing:
                why = "too many dumpers" if full else "the agent is about to end"
                refuse(connection, why)
                dumper.close()
                return False
            self._unknown.append(dumper)
            self._start()
        self._look()
        return True

    def close(self, patience: float) -> None:
        """Ask nobody any more, and wait so many seconds for the dumps in progress. Also again."""
        with self._calls() as calls:
            self._closing = True
            self._tell_reach()
            for dumper in list(self._dumpers.values()):
                self._leave(dumper, calls)
        with self._settled:
            self._settled.wait_for(lambda: not self._had and not self._asked, patience)
        with self._calls() as calls:
            for dumper in [*self._dumpers.values(), *self._unknown, *self._lookers]:
                self._drop(dumper, "the agent was stopped", calls)
        self._look()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            if self._wake >= 0:
                os.close(self._wake)
            self._wake = -1

    # ---- the thread: what they say, and when their time is over

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="dumpers", daemon=True)
            self._thread.start()

    def _look(self) -> None:
        """Have the thread look at what it waits for anew."""
        with self._lock, contextlib.suppress(BlockingIOError):
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # only root may raise it
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while True:
            try:
                if not self._turn():
                    return
            except Exception:  # processes wait for their limits of time
                log.exception("dumpers: what they said could not be dealt with")
                time.sleep(_PAUSE_S)

    def _turn(self) -> bool:
        """Wait until there is something to do, and do it. False: there will be nothing more."""
        with self._lock:
            here = [*self._dumpers.values(), *self._unknown, *self._lookers]
            if self._closing and not here and not self._had and not self._asked:
                return False
            timeout = self._timeout()
            watched = {d.connection.fileno(): d for d in here}
            ends = {d.pidfd: d for d in here}
        poll = select.poll()
        for fd in (self._wake, *watched, *ends):
            poll.register(fd, select.POLLIN)
        if self._door_fd >= 0 and not self._closing:
            poll.register(self._door_fd, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(timeout)]
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        if self._door_fd in ready and self._door is not None:
            self._door()
        with self._calls() as calls:
            for fd in ready:  # what somebody has said before it ended counts
                if fd in watched:
                    self._hear(watched[fd], calls)
            for fd in ready:
                if fd in ends and self._is_here(ends[fd]):
                    self._hear(ends[fd], calls)
                    self._drop(ends[fd], "it has ended", calls)
            self._expire(calls)
        return True

    def _is_here(self, dumper: Dumper) -> bool:
        others = (*self._unknown, *self._lookers)
        return dumper.id in self._dumpers or dumper in others

    def _timeout(self) -> float | None:
        """Milliseconds until somebody's time is over."""
        times = [
            *(asked.until for asked in self._asked.values()),
            *(had.until for had in self._had.values()),
            *(dumper.until for dumper in self._unknown),
        ]
        if not times:
            return None
        return max(0.0, (min(times) - time.monotonic()) * 1e3) + 1

    def _expire(self, calls: Calls) -> None:
        now = time.monotonic()
        for number, asked in list(self._asked.items()):
            if asked.until <= now:
                late = [self._dumpers[one] for one in asked.waits if one in self._dumpers]
                asked.waits.clear()
                self._decide(number, calls)
                for dumper in late:
                    self._has_missed(dumper, calls)
        for number, had in list(self._had.items()):
            if had.until <= now and number in self._had:
                why = f"it was not done in time ({had.until - had.since:.2g} s)"
                dumper = self._dumpers[had.dumper]
                dumper.tell(message("END", event=number, why=why))
                self._over(number, None, why, calls, hung=True)
                if dumper.gone is not None:  # it does nothing else, and is started anew
                    self._drop(dumper, why, calls)
        for dumper in [d for d in self._unknown if d.until <= now]:
            dumper.tell(message("REFUSED", why="no REGISTER in time"))
            self._drop(dumper, "it did not register in time", calls)

    def _hear(self, dumper: Dumper, calls: Calls) -> None:
        for _ in range(_ONE_TURN):
            if not self._is_here(dumper):
                return
            number = None
            try:
                said = dumper.hear()
                if said is None:
                    return
                said.close()  # nobody need send us descriptors
                # a kernel may not tell who sent what came before we had asked to know
                known = (dumper.peer.pid,) if dumper.wants else (dumper.peer.pid, 0, None)
                if said.sender not in known:
                    raise PermissionError(errno.EPERM, "only the process that registered may speak")
                if said.get("event") is not None:
                    number = said.number("event", 0, 1 << 62)
                self._obey(dumper, said, number, calls)
            except Gone as error:
                self._drop(dumper, str(error), calls)
            except (CorewardError, PermissionError, LookupError) as error:
                if dumper.wants is None:
                    dumper.tell(message("REFUSED", why=str(error)))
                    self._drop(dumper, f"it was refused: {error}", calls)
                    return
                self._complain(dumper, number, error)
            if dumper.errors > MAX_ERRORS:
                self._drop(dumper, f"more than {MAX_ERRORS} of its messages were wrong", calls)

    def _complain(self, dumper: Dumper, number: int | None, error: Exception) -> None:
        kinds = ((PermissionError, errno.EPERM), (LookupError, errno.ESRCH))
        code = next((code for kind, code in kinds if isinstance(error, kind)), errno.EPROTO)
        why = error.strerror if isinstance(error, OSError) else str(error.args[0])
        dumper.tell(message("ERROR", event=number, status=code, why=why))
        dumper.errors += 1

    def _obey(
        self,
        dumper: Dumper,
        said: Message,
        number: int | None,
        calls: Calls,
    ) -> None:
        if dumper in self._lookers:
            raise BadMessage(f"{said.verb}: who looks has nothing more to say")
        if dumper.wants is None and said.verb == "LOOK":
            self._show(dumper, said, calls)
        elif dumper.wants is None:
            self._register(dumper, registration(said))
        elif said.verb == "BID" and number is not None:
            priority = said.number("priority", NOMATCH, MAX_PRIORITY)
            asked = self._asked.get(number)
            if asked is None or dumper.id not in asked.waits:
                dumper.errors += 1  # it comes too late: that was said, if it was the bid's time
                return
            self._has_bid(number, asked, dumper, priority, calls)
            dumper.missed = dumper.errors = 0
        elif said.verb == "CONTINUE" and number is not None:
            had = self._had.get(number)
            if had is None:
                raise LookupError(f"nobody has event {number}")
            if had.dumper != dumper.id:
                raise PermissionError(errno.EPERM, f"another dumper has event {number}")
            status, passed = said.number("status", 0, _ERRNO), said.flag("pass")
            note = (said.get("note") or "")[:MAX_TEXT]
            self._over(number, status, note, calls, passed=passed)
        elif said.verb == "UNREGISTER":
            self._leave(dumper, calls)
        else:
            raise BadMessage(f"{said.verb}: no such message, or its event is missing")

    def _show(self, looker: Dumper, said: Message, calls: Calls) -> None:
        """Tell somebody which processes wait for their dumpers; or show one, until it is over."""
        if said.number("version", 0, 1 << 16) != VERSION:
            raise BadMessage(f"this agent speaks version {VERSION}")
        shown = {
            had.event.get("pid"): (number, had)
            for number, had in self._had.items()
            if had.event is not None
        }
        if said.get("pid") is None:
            pids = tuple(("pid", pid) for pid in shown if pid is not None)
            looker.tell(Message("HELD", pids))
            self._drop(looker, "it was told", calls)
            return
        pid = said.number("pid", 1, 1 << 31)
        number, had = shown.get(str(pid), (0, None))
        if had is None or len(self._lookers) >= MAX_DUMPERS:
            status = errno.ESRCH if had is None else errno.EAGAIN
            why = f"no dumper has process {pid}" if had is None else "too many look already"
            looker.tell(message("ERROR", status=status, why=why))
            self._drop(looker, why, calls)
            return
        assert had.event is not None
        self._unknown.remove(looker)
        self._lookers.append(looker)
        had.lookers.append(looker)
        if not looker.tell(joined(message("PROCESS", event=number, held=True), had.event)):
            self._drop(looker, "it does not read what it is told", calls)

    def _register(self, dumper: Dumper, wants: Registration) -> None:
        if wants.name in self.names():
            raise BadMessage(f"REGISTER: another dumper is named {wants.name}")
        self._unknown.remove(dumper)
        dumper.registered(next(self._ids), wants)
        self._dumpers[dumper.id] = dumper
        self._tell_reach()
        dumper.tell(
            message(
                "REGISTERED",
                version=VERSION,
                id=dumper.id,
                events=wants.events,
                bid_ms=round(self._bid_s * 1e3),
                most_ms=round(self.most_s * 1e3),
            )
        )
        log.info("dumper %s (pid %d) is registered", wants.name, dumper.peer.pid)
