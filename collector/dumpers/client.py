"""The dumper's side of the protocol, for dumpers in Python.

    with Client.connect(Path("/run/coreward/dumper"), name="mine", priority=SPECIAL) as client:
        for event in client.events():
            if event.verb == "PROBE":
                client.bid(event, SPECIAL)
            elif event.verb == "DUMP":
                client.let_go(event, 0)      # CONTINUE: the process goes on

One that dumps one process after the other has all that in `client.dump_each(dump)`.

Needs nothing but what is imported here. One thread at a time may use it.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from collector.dumpers.protocol import (
    VERSION,
    BadMessage,
    Gone,
    Message,
    message,
    receive,
    send,
)
from collector.errors import CorewardError


class Refused(CorewardError):
    """The agent does not take this dumper; the message says why."""


def status_of(error: Exception) -> int:
    """The status for CONTINUE. Not each OSError has an errno, nor one that the kernel knows:
    socket.gaierror has its own."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and isinstance(error, TimeoutError):
        return errno.ETIMEDOUT
    return number if number in errno.errorcode and number else errno.EIO


class Client:
    """A registered dumper. A context manager; leaving it releases all that it has."""

    def __init__(
        self,
        connection: socket.socket,
        name: str,
        *,
        priority: int | None = None,
        match: Iterable[tuple[str, str]] = (),
        pin: bool = False,
        events: int | None = None,
    ) -> None:
        """Register. priority: of every bid; None: to be asked each time. match: conditions of the
        policy (`exe`, `unit`, ...) with their values; of those with the same name one must hold.
        pin: pinned memory will do. events: processes that it can have at a time.

        Raises Refused. Owns `connection` from now on.
        """
        self._connection = connection
        conditions = tuple((f"match.{key}", value) for key, value in match)
        wanted = message(
            "REGISTER",
            version=VERSION,
            name=name,
            priority=priority,
            bid=True if priority is None else None,
            pin=pin,
            events=events,
        )
        try:
            with contextlib.suppress(BrokenPipeError):  # it may have refused us already
                send(connection, Message("REGISTER", (*wanted.fields, *conditions)))
            try:
                answer = receive(connection)
            except ConnectionResetError:  # said once; what came before it can be read now
                answer = receive(connection)
        except (CorewardError, OSError) as error:
            connection.close()
            raise Refused(str(error)) from error
        if answer.verb != "REGISTERED":
            connection.close()
            raise Refused(answer.get("why") or answer.verb)
        self.id = answer.number("id", 1, 1 << 62)
        self.bid_s = answer.number("bid_ms", 0, 1 << 40) / 1e3  # seconds that a bid may take
        self.most_s = answer.number("most_ms", 0, 1 << 40) / 1e3  # and a dump

    @classmethod
    def connect(
        cls,
        path: Path,
        name: str,
        *,
        priority: int | None = None,
        match: Iterable[tuple[str, str]] = (),
        pin: bool = False,
        events: int | None = None,
    ) -> Self:
        """Connect to the agent's socket, and register. Also raises OSError as connect(2) does."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.connect(str(path))
        except OSError:
            connection.close()
            raise
        return cls(connection, name, priority=priority, match=match, pin=pin, events=events)

    def fileno(self) -> int:
        """Readable when there is a message."""
        return self._connection.fileno()

    def receive(self) -> Message:
        """The next message; its descriptors are the caller's. Raises Gone at the end."""
        return receive(self._connection)

    def events(self) -> Iterator[Message]:
        """All messages until the agent closes the connection; each is closed after its turn."""
        while True:
            try:
                event = self.receive()
            except Gone:
                return
            try:
                yield event
            finally:
                event.close()

    def dump_each(self, dump: Callable[[Message], str | None]) -> None:
        """Have each process dumped, one after the other, until the agent closes the connection.

        dump: is given the DUMP; its answer is the note for the record. If it raises, the next
        dumper has its turn: see `status_of`. Of no use with `bid=yes`.
        """
        for event in self.events():
            if event.verb != "DUMP":
                continue
            try:
                status, note = 0, dump(event)
            except (OSError, CorewardError) as error:
                status, note = status_of(error), str(error)
            with contextlib.suppress(BrokenPipeError):  # the agent ends; so do we
                self.let_go(event, status, note)

    def bid(self, event: Message, priority: int) -> None:
        """Answer a PROBE. NOMATCH: it is nothing for us."""
        self._say(event, "BID", priority=priority)

    def let_go(
        self, event: Message, status: int, note: str | None = None, *, pass_on: bool = False
    ) -> None:
        """End a DUMP: the process goes on. status: an errno, 0 if all went well; with any other
        the next dumper has its turn. note: up to 256 characters for the record. pass_on: the next
        one has its turn in any case."""
        self._say(event, "CONTINUE", status=status, note=note, **{"pass": pass_on})

    def leave(self) -> None:
        """No more processes; UNREGISTERED comes when nothing of this one is in progress."""
        send(self._connection, message("UNREGISTER"))

    def _say(self, event: Message, verb: str, **fields: object) -> None:
        number = event.get("event")
        if number is None:
            raise BadMessage(f"{event.verb} is about no process")
        send(self._connection, message(verb, event=number, **fields))

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
