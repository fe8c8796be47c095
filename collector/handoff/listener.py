"""Where dying processes are handed over: a listening socket, whoever is behind it."""

from __future__ import annotations

import contextlib
import logging
import socket
from pathlib import Path

from collector.errors import HoldError

log = logging.getLogger(__name__)


class SocketListener:
    """A listening socket; the native part accepts from it, and tells hand-offs from others."""

    def __init__(self, path: Path) -> None:
        """A socket that does not block, to be bound to `path`, from where an old one is removed."""
        self.path = path
        self.refused = 0  # connections that were no hand-offs
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)

    def fileno(self) -> int:
        """Readable when somebody has connected."""
        return self._listener.fileno()

    def refuse(self, why: HoldError) -> None:
        """Count a connection that was closed because it was no hand-off, and log it."""
        self.refused += 1
        log.warning("refused a connection to %s: %s", self.path, why)

    def block(self) -> None:
        """Let whoever accepts from it wait there, until `close`."""
        self._listener.setblocking(True)

    def close(self) -> None:
        """Stop listening; who was not accepted yet is let go by the kernel, or by its helper.

        Again does nothing: the path may be another agent's by then.
        """
        if self._listener.fileno() < 0:
            return
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes those who wait in accept(2)
        self._listener.close()
        self.path.unlink(missing_ok=True)
