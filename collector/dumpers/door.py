"""Where dumpers connect: a socket in the run directory, for root, and a group that policy names.

On most hosts nobody does, ever: what deals with them is loaded when the first one knocks.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from collector.errors import HoldError

if TYPE_CHECKING:
    from collector.dumpers.hub import Hub

log = logging.getLogger(__name__)

SOCKET = "dumper"  # inside the run directory
_BACKLOG = 16


class Door:
    """A context manager; leaving it, nobody can connect any more."""

    def __init__(self, run_dir: Path, group: int | None, hub: Callable[[], Hub]) -> None:
        """Listen in an existing directory that is root's alone. hub: called when somebody knocks.

        group: its members may connect as well; the directory can be passed by them then, and
        nothing else of it is theirs. Raises HoldError if the socket cannot be made.
        """
        self._path = run_dir.resolve() / SOCKET
        self._group, self._make_hub = group, hub
        self._hub: Hub | None = None
        self._closing = os.eventfd(0, os.EFD_CLOEXEC)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            self._path.unlink(missing_ok=True)
            self._listener.bind(str(self._path))
            self._path.chmod(0o600)
            if group is not None:
                os.chown(run_dir, -1, group)
                run_dir.chmod(0o710)
                os.chown(self._path, -1, group)
                self._path.chmod(0o660)
            # those who connect are heard with it from their first packet on (Linux 6.16)
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self._listener.listen(_BACKLOG)
        except OSError as error:
            self._listener.close()
            os.close(self._closing)
            raise HoldError(f"{self._path}: no socket for dumpers: {error.strerror}") from error
        self._thread = threading.Thread(target=self._wait, name="dumpers", daemon=True)
        self._thread.start()

    def _wait(self) -> None:
        """Until the first one knocks; the hub listens from then on."""
        poll = select.poll()
        for fd in (self._listener.fileno(), self._closing):
            poll.register(fd, select.POLLIN)
        if self._closing in {fd for fd, _ in poll.poll()}:
            return
        self._hub = self._make_hub()
        self._hub.listen(self._listener.fileno(), self._knocked)

    def close(self) -> None:
        """Also again. Who is connected stays so."""
        if self._listener.fileno() >= 0:
            os.eventfd_write(self._closing, 1)
            self._thread.join()
            os.close(self._closing)
            if self._hub is not None:
                self._hub.listen(-1, lambda: None)
            self._listener.close()
            self._path.unlink(missing_ok=True)

    def _knocked(self) -> None:
        from collector.dumpers.protocol import refuse  # noqa: PLC0415 - see the module
        from collector.linux.peer import peer_of, pidfd_of  # noqa: PLC0415

        assert self._hub is not None
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        try:
            peer = peer_of(connection)
            if not self._may(connection, peer.uid):
                log.warning("dumpers: pid %d of uid %d may not register", peer.pid, peer.uid)
                refuse(connection, self._who_may())
                return
            pidfd = pidfd_of(connection)
        except OSError as error:  # it has ended already
            log.info("dumpers: somebody who connected is gone: %s", error.strerror)
            connection.close()
            return
        self._hub.take(connection, peer, pidfd)

    def _may(self, connection: socket.socket, uid: int) -> bool:
        from collector.linux.peer import groups_of  # noqa: PLC0415

        return uid == 0 or (self._group is not None and self._group in groups_of(connection))

    def _who_may(self) -> str:
        if self._group is None:
            return "only root may register dumpers here (hold.group of the policy is not set)"
        return f"only root and group {self._group} (hold.group of the policy) may register dumpers"
