"""The coredump socket with requests: `core_pattern = @@/absolute/path` (Linux >= 6.17, core(5)).

The kernel connects to our socket for each crash and asks what to do; see <linux/coredump.h>. It
connects from within the dying process without blocking, so a full backlog or a missing listener
means no hand-off, never a process that hangs. What this is not: a way to learn the signal (the
kernel tells it from 6.19 on only), or to see processes that are not dumpable.
"""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

from collector.errors import HoldError
from collector.handoff.handoff import HandOff
from collector.handoff.listener import SocketListener
from collector.linux import pidfd

_REQUEST = struct.Struct("=IIQ")  # struct coredump_req: size, size_ack, mask
_ACK = struct.Struct("=IIQ")  # struct coredump_ack: size, spare, mask
_MARK = struct.Struct("=I")  # enum coredump_mark; 4 bytes although the header's comment says 1
_KERNEL, _USERSPACE, _WAIT = 1, 2, 8  # COREDUMP_KERNEL, COREDUMP_USERSPACE, COREDUMP_WAIT
_MARKS = {
    1: "the answer is too small",
    2: "the answer is too large",
    3: "the answer has unsupported bits",
    4: "the answer's bits contradict each other",
}
_REQUEST_LIMIT = 4096  # bytes; later kernels may send more than they do now, but not a page
_PATIENCE = struct.pack("ll", 1, 0)  # s, µs for the kernel's part, which takes microseconds
_SUN_PATH = 108  # bytes of a socket's path, with its NUL (unix(7))


class SocketHandOff(HandOff):
    backend = "socket"

    def __init__(
        self, conn: int, pid: int, fd: int, signal: int | None, agreed_ns: int | None = None
    ) -> None:
        """Owns the descriptor `conn`, a connection that blocks for `_PATIENCE` at most.

        agreed_ns: it was accepted then, and answered without a stream.
        """
        super().__init__(conn, pid, fd, signal, agreed_ns)
        self._streams = False
        self._agreed = agreed_ns is not None

    def answer(self, stream: bool) -> None:
        if self._agreed:
            return
        try:
            self._negotiate(_WAIT | (_KERNEL if stream else _USERSPACE))
        except OSError as error:
            raise HoldError(
                f"pid {self.pid}: the kernel broke off its hand-off: {error}"
            ) from error
        self._streams = stream

    def _negotiate(self, mask: int) -> None:
        size, size_ack, offered = _REQUEST.unpack(self._receive(_REQUEST.size))
        if not _REQUEST.size <= size <= _REQUEST_LIMIT or size_ack < _ACK.size:
            raise HoldError(f"pid {self.pid}: not a coredump request: sizes {size}, {size_ack}")
        self._receive(size - _REQUEST.size)  # of a later kernel
        if mask & ~offered:
            raise HoldError(f"pid {self.pid}: the kernel offers {offered:#x}, not {mask:#x}")
        os.write(self.holds, _ACK.pack(_ACK.size, 0, mask))
        (mark,) = _MARK.unpack(self._receive(_MARK.size))
        if mark:
            raise HoldError(f"pid {self.pid}: {_MARKS.get(mark, f'the kernel says {mark}')}")

    def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = os.read(self.holds, size - len(data))
            if not part:
                raise HoldError(f"pid {self.pid}: the kernel's hand-off ended early")
            data += part
        return data

    def stream_fd(self) -> int:
        if not self._streams:
            raise HoldError(f"pid {self.pid}: no core stream was asked for")
        return self.holds


class SocketBackend(SocketListener):
    """The listening end. `pattern` is what core_pattern has to be set to."""

    backend = "socket"
    pipe_limit: int | None = None  # core_pipe_limit does not matter to sockets

    def __init__(self, path: Path) -> None:
        """Listen at `path`, in an existing directory that others cannot enter.

        Raises HoldError if the kernel could not use the path or it cannot be bound. A socket that
        is left there by an earlier run is replaced.
        """
        path = path.parent.resolve() / path.name  # the kernel follows no symbolic links
        if len(os.fsencode(path)) >= _SUN_PATH or any(c in str(path) for c in " %\t\n"):
            raise HoldError(f"{path}: no path for a coredump socket: too long, or a blank or %")
        super().__init__(path)
        self.pattern = f"@@{path}"
        try:
            self._listener.bind(str(path))
            path.chmod(0o600)
            self._listener.listen(65535)  # the kernel cuts it to net.core.somaxconn
        except OSError as error:
            self._listener.close()
            raise HoldError(f"{path}: cannot listen for crashes: {error.strerror}") from error

    def _admit(self, conn: socket.socket) -> HandOff:
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            conn.setsockopt(socket.SOL_SOCKET, option, _PATIENCE)
        fd = pidfd.peer_pidfd(conn.fileno())
        try:
            facts = pidfd.info(fd)
            if not facts.dumped:
                raise HoldError(f"pid {facts.pid} (uid {facts.ruid}) is not dumping core")
            return SocketHandOff(conn.detach(), facts.pid, fd, facts.coredump_signal)
        except BaseException:
            os.close(fd)
            raise
