"""Where dying processes are handed over: a listening socket, whoever is behind it."""

from __future__ import annotations

import abc
import contextlib
import logging
import socket
from pathlib import Path

from collector.errors import HoldError
from collector.handoff.handoff import HandOff

log = logging.getLogger(__name__)

_ACCEPT_BURST = 256  # connections looked at in one call


class SocketListener(abc.ABC):
    """Accepts connections, and tells those that hand a process over from others."""

    def __init__(self, path: Path) -> None:
        """A socket that does not block, to be bound to `path`, from where an old one is removed."""
        self.path = path
        self.refused = 0  # connections that were no hand-offs
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)

    @abc.abstractmethod
    def _admit(self, conn: socket.socket) -> HandOff:
        """The process behind a connection. Raises HoldError if there is none."""

    def fileno(self) -> int:
        """Readable when `accept` has something to do."""
        return self._listener.fileno()

    def accept(self) -> HandOff | None:
        """The next dying process; None if there is none.

        Connections that are no hand-offs are closed, counted in `refused` and logged.
        """
        for _ in range(_ACCEPT_BURST):
            try:
                conn, _ = self._listener.accept()
            except BlockingIOError:
                return None
            except OSError as error:
                log.error("cannot accept a hand-off: %s", error)
                return None
            with conn:
                try:
                    return self._admit(conn)
                except HoldError as error:
                    self.refuse(error)
        return None

    def refuse(self, why: HoldError) -> None:
        """Count a connection that was closed because it was no hand-off, and log it."""
        self.refused += 1
        log.warning("refused a connection to %s: %s", self.path, why)

    def block(self) -> int:
        """The descriptor for others to accept from, who wait there until `close`."""
        self._listener.setblocking(True)
        return self._listener.fileno()

    def close(self) -> None:
        """Stop listening; who was not accepted yet is let go by the kernel, or by its helper."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes those who wait in accept(2)
        self._listener.close()
        self.path.unlink(missing_ok=True)
