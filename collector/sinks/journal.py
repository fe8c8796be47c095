"""Writes to systemd's journal in its native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL).

A message is one datagram; one that is too large for that goes as a sealed memfd. Nobody waits for
the journal: what it does not take at once is kept, as much as the bounds allow, and tried again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterable

SOCKET = "/run/systemd/journal/socket"
MOST = 256  # messages that wait
MOST_BYTES = 1 << 20  # of these together
_LENGTH = struct.Struct("<Q")
_TOO_LARGE = (errno.EMSGSIZE, errno.ENOBUFS)
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


def encoded(fields: Iterable[tuple[str, str]]) -> bytes:
    """The message; values with a newline have their length before them."""
    parts = []
    for name, value in fields:
        data = value.encode("utf-8", "backslashreplace")
        if b"\n" in data:
            parts.append(name.encode() + b"\n" + _LENGTH.pack(len(data)) + data + b"\n")
        else:
            parts.append(name.encode() + b"=" + data + b"\n")
    return b"".join(parts)


class Journal:
    """Any thread may call its methods; none of them waits."""

    def __init__(self, path: str = SOCKET) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._waiting: deque[bytes] = deque()
        self._bytes = 0  # of those that wait
        self.sent = 0
        self.lost = 0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def put(self, fields: Iterable[tuple[str, str]]) -> None:
        """Send a message, after those that wait. Where too many wait, the oldest is lost."""
        message = encoded(fields)
        with self._lock:
            self._waiting.append(message)
            self._bytes += len(message)
            self._flush()
            while len(self._waiting) > MOST or self._bytes > MOST_BYTES:
                self._drop()
                self.lost += 1

    def flush(self) -> None:
        """Try what waits."""
        with self._lock:
            self._flush()

    def close(self) -> None:
        """What still waits is lost."""
        with self._lock:
            self._flush()
            self.lost += len(self._waiting)
            self._waiting.clear()
            self._socket.close()

    def _flush(self) -> None:
        while self._waiting and self._send(self._waiting[0]):
            self._drop()
            self.sent += 1

    def _drop(self) -> None:
        self._bytes -= len(self._waiting.popleft())

    def _send(self, message: bytes) -> bool:
        """Whether the journal has it. It has not while it is busy, or restarts."""
        try:
            self._socket.sendto(message, self._path)
        except OSError as error:
            if error.errno not in _TOO_LARGE:
                return False
            return self._send_file(message)
        return True

    def _send_file(self, message: bytes) -> bool:
        with contextlib.suppress(OSError):
            file = os.memfd_create("coreward-journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                with os.fdopen(os.dup(file), "wb") as stream:
                    stream.write(message)
                fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", file))]
                self._socket.sendmsg([], rights, 0, self._path)
                return True
            finally:
                os.close(file)
        return False
