"""A core over a socket: HTTP/1.1 with ranges (RFC 9110), for curl and whatever pulls parts.

    GET /core    Range: bytes=A-B, A- or -N; one range at a time
    HEAD /core   its size

Only processes of the same user, or of root, may connect. What the core is, is not known here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import socketserver
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from collector.errors import CaptureError, CorewardError, UsageError
from collector.mount.tree import OpenCore

_PATH = "/core"
_STEP = 1 << 20  # bytes that are read at a time
_CONNECTIONS = 16  # at a time
_PATIENCE_S = 60.0  # with a client that neither asks nor reads
_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})", re.ASCII)
_UCRED = struct.Struct("3i")  # pid, uid, gid: unix(7)
log = logging.getLogger(__name__)


class UnsatisfiableRange(ValueError):
    """The range begins behind the end."""


def range_of(header: str | None, size: int) -> tuple[int, int] | None:
    """[start, end) of what is asked for; None: all of it, also if the header is none of ours.

    UnsatisfiableRange if no byte of it is there.
    """
    found = _RANGE.fullmatch((header or "").strip())
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        start, end = max(0, size - int(found[2])), size
    else:
        start = int(found[1])
        end = min(size, int(found[2]) + 1) if found[2] else size
        if found[2] and int(found[2]) < start:
            return None
    if start >= size or start == end:
        raise UnsatisfiableRange
    return start, end


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = _PATIENCE_S

    def do_HEAD(self) -> None:
        self._head()

    def do_GET(self) -> None:
        wanted = self._head()
        if wanted is None:
            return
        start, end = wanted
        try:
            while start < end:
                data = self.server.core.read(start, min(_STEP, end - start))
                if not data:
                    raise CaptureError("the core ends before its end")
                self.wfile.write(data)
                start += len(data)
        except (CorewardError, OSError) as error:
            # the client sees fewer bytes than were announced: no others take their place
            log.warning("core: bytes from %d on: %s", start, error)
            self.close_connection = True

    def _head(self) -> tuple[int, int] | None:
        """Answer but for the body. The range to send; None: there is nothing to send."""
        if self.path != _PATH:
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        try:
            size = self.server.core.size()
            part = range_of(self.headers["Range"], size)
        except UnsatisfiableRange:
            self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            self.send_header("Content-Range", f"bytes */{self.server.core.size()}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        except CorewardError as error:
            self.send_error(HTTPStatus.GONE, explain=str(error))
            return None
        start, end = part or (0, size)
        self.send_response(HTTPStatus.PARTIAL_CONTENT if part else HTTPStatus.OK)
        self.send_header("Content-Type", "application/x-coredump")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - start))
        if part:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.end_headers()
        return start, end

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: object) -> None:
        log.debug(format, *args)


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = _CONNECTIONS

    def __init__(self, path: Path, core: OpenCore) -> None:
        self.core = core
        self._room = threading.BoundedSemaphore(_CONNECTIONS)
        super().__init__(os.fspath(path), _Handler)

    def verify_request(self, request: object, _client: object) -> bool:
        assert isinstance(request, socket.socket)
        return _peer(request) in (0, os.geteuid()) and self._room.acquire(blocking=False)

    def process_request_thread(self, request: object, client: object) -> None:
        try:
            super().process_request_thread(request, client)  # type: ignore[arg-type]
        finally:
            self._room.release()

    def handle_error(self, _request: object, client: object) -> None:
        log.debug("a client left", exc_info=True)


def _peer(connection: socket.socket) -> int:
    """The uid of the process that has connected."""
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return int(_UCRED.unpack(found)[1])


@contextlib.contextmanager
def served(path: Path, core: OpenCore) -> Iterator[Callable[[], None]]:
    """A socket at `path`, mode 0600, that is gone at the end. Gives what serves until interrupted.

    UsageError if something else than an old socket is there, or none can be made.
    """
    try:
        if path.exists() or path.is_symlink():
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise UsageError(f"{path}: exists, and is no socket")
            path.unlink()
        before = os.umask(0o177)
        try:
            server = _Server(path, core)
        finally:
            os.umask(before)
    except OSError as error:
        raise UsageError(f"{path}: no socket can be made there: {error}") from error
    try:
        with server:
            yield server.serve_forever
    finally:
        path.unlink(missing_ok=True)
