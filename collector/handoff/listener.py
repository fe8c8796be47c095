"""Where dying processes are handed over: a listening socket, whoever is behind it."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from pathlib import Path

from collector.errors import HoldError

log = logging.getLogger(__name__)


class SocketListener:
    """A listening socket; the native part accepts from it, and tells hand-offs from others."""

    def __init__(self, path: Path, name: str, kept: int | None) -> None:
        """Listen at `path`, which is bound as `name`. What an earlier run has left is replaced.

        But if `kept` is a descriptor of that socket, and it still listens, it is taken over with
        all who wait in it. `kept` is ours from now on. Raises OSError.
        """
        self.path = path
        self.refused = 0  # connections that were no hand-offs
        found = None if kept is None else _listening(kept, name)
        self.is_kept = found is not None and path.is_socket()
        if found is not None and self.is_kept:
            self._listener = found
            return
        if kept is not None:
            log.warning("the socket that was kept does not listen at %s: replaced", name)
        if found is not None:
            found.close()
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._listener.bind(name)
            path.chmod(0o600)
            self._listener.listen(65535)  # the kernel cuts it to net.core.somaxconn
        except OSError:
            self._listener.close()
            raise

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

    def leave(self) -> None:
        """Close our descriptor alone: another one of it listens on, for the next agent."""
        self._listener.close()

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


def _listening(fd: int, name: str) -> socket.socket | None:
    """The listening stream socket that is bound to this path; None, and closed, if it is not."""
    one: socket.socket | None = None
    try:
        one = socket.socket(fileno=fd)
        if (
            (one.family, one.type) == (socket.AF_UNIX, socket.SOCK_STREAM)
            and one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            and one.getsockname() == name
        ):
            return one
        one.close()
    except OSError:  # it is no socket
        if one is None:
            os.close(fd)
        else:
            one.close()
    return None
