"""The coredump socket with requests: `core_pattern = @@/absolute/path` (Linux >= 6.17, core(5)).

The kernel connects to our socket for each crash and asks what to do (native/accept_socket.c).
It connects from within the dying process without blocking, so a full backlog or a missing listener
means no hand-off, never a process that hangs. What this is not: a way to learn the signal (the
kernel tells it from 6.19 on only), or to see processes that are not dumpable.
"""

from __future__ import annotations

import os
from pathlib import Path

from collector.errors import HoldError
from collector.handoff.handoff import HandOff
from collector.handoff.listener import SocketListener

_SUN_PATH = 108  # bytes of a socket's path, with its NUL (unix(7))


class SocketHandOff(HandOff):
    backend = "socket"


class SocketBackend(SocketListener):
    """The listening end. `pattern` is what core_pattern has to be set to."""

    backend = "socket"
    pipe_limit: int | None = None  # core_pipe_limit does not matter to sockets

    def __init__(self, path: Path, kept: int | None = None) -> None:
        """Listen at `path`, in an existing directory that others cannot enter.

        Raises HoldError if the kernel could not use the path or it cannot be bound. A socket that
        is left there by an earlier run is replaced, or is `kept`: see SocketListener.
        """
        path = path.parent.resolve() / path.name  # the kernel follows no symbolic links
        if len(os.fsencode(path)) >= _SUN_PATH or any(c in str(path) for c in " %\t\n"):
            raise HoldError(f"{path}: no path for a coredump socket: too long, or a blank or %")
        self.pattern = f"@@{path}"
        try:
            super().__init__(path, str(path), kept)
        except OSError as error:
            raise HoldError(f"{path}: cannot listen for crashes: {error.strerror}") from error
