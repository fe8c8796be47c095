"""A small HTTP server for one document, that nobody who connects can make dear (RFC 9112).

One thread, a bounded number of connections, a bounded time and size for each request, and a
bounded share of a CPU for all answers together. Where all places are taken, the connection that was
opened first makes room for a new one: an answer takes milliseconds, so whoever is the oldest is
silent, or slow. Knows nothing of metrics.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

MOST = 64  # connections at a time
PATIENCE_S = 5.0  # for a whole request and its answer, however it is sent and read
_BACKLOG = 512  # connections that the kernel keeps until we look; beyond it they try again in 1 s
_REST = 3  # times as long as an answer took: so much of the CPU stays with the agent
_NO_DESCRIPTORS_S = 1.0  # until another one may be there
_MAX_REQUEST = 16 << 10  # bytes
_END = b"\r\n\r\n"

# For the value of `Accept`: the content type and the document
Answer = Callable[[str], tuple[str, bytes]]


class _Connection:
    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.since = time.monotonic()
        self.request = bytearray()
        self.answer: memoryview | None = None  # what is still to be sent


class Endpoint:
    """Serves from its making on, until `close`. OSError if the address cannot be listened on."""

    def __init__(self, host: str, port: int, answer: Answer) -> None:
        """port 0: any free one, see `port`. answer: called in the thread of the endpoint."""
        family, _, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        self._listener = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
        self._listener.setblocking(False)
        self.port = int(self._listener.getsockname()[1])
        self._answer = answer
        self._connections: dict[int, _Connection] = {}  # by descriptor, the oldest first
        self._rest_until = 0.0
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC)
        self._epoll = select.epoll()
        for fd in (self._wake_read, self._listener.fileno()):
            self._epoll.register(fd, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving; the address is free when it returns."""
        os.write(self._wake_write, b"x")
        self._thread.join()
        for connection in list(self._connections.values()):
            self._drop(connection)
        self._listener.close()
        self._epoll.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _run(self) -> None:
        listener = self._listener.fileno()
        while True:
            self._drop_late()
            happened = self._wait(listener)
            if self._wake_read in happened:
                return
            for fd in happened & self._connections.keys():
                self._go_on(self._connections[fd])
            if listener in happened:
                self._accept()

    def _wait(self, listener: int) -> set[int]:
        """Descriptors that something can be done with."""
        now = time.monotonic()
        wake = [self._oldest().since + PATIENCE_S] if self._connections else []
        rests = self._rest_until > now
        if rests:
            wake.append(self._rest_until)
        self._epoll.modify(listener, 0 if rests else select.EPOLLIN)
        timeout = max(min(wake) - now, 0) + 1e-3 if wake else None
        return {fd for fd, _ in self._epoll.poll(timeout)}

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return  # it has gone again
        except OSError as error:
            log.warning("metrics: cannot accept a connection: %s", error.strerror)
            self._rest_until = time.monotonic() + _NO_DESCRIPTORS_S
            return
        if len(self._connections) >= MOST:
            self._drop(self._oldest())
        connection = _Connection(sock)
        self._connections[sock.fileno()] = connection
        self._epoll.register(sock, select.EPOLLIN)
        self._go_on(connection)  # most have sent their request with it

    def _go_on(self, connection: _Connection) -> None:
        began = time.thread_time()
        try:
            if connection.answer is None:
                self._read(connection)
            if connection.answer is not None:
                sent = connection.sock.send(connection.answer)
                connection.answer = connection.answer[sent:]
                if not connection.answer:
                    self._drop(connection)
        except BlockingIOError:
            pass
        except OSError:
            self._drop(connection)
        if connection.answer is not None:
            # of many answers at a time each counts; waiting for a busy CPU is no work
            self._rest_until = max(time.monotonic(), self._rest_until) + _REST * (
                time.thread_time() - began
            )

    def _read(self, connection: _Connection) -> None:
        """Take in what is there, and answer when it is all. OSError if it will never be."""
        data = connection.sock.recv(_MAX_REQUEST)
        connection.request += data
        if not data or len(connection.request) > _MAX_REQUEST:
            raise ConnectionAbortedError
        if _END in connection.request:
            connection.answer = memoryview(self._respond(bytes(connection.request)))
            self._epoll.modify(connection.sock, select.EPOLLOUT)

    def _respond(self, request: bytes) -> bytes:
        first, *fields = request.partition(_END)[0].decode("latin-1").split("\r\n")
        if not first.startswith("GET "):
            return b"HTTP/1.1 405 Method Not Allowed\r\nAllow: GET\r\nConnection: close\r\n\r\n"
        accept = [f.partition(":")[2] for f in fields if f.lower().startswith("accept:")]
        try:
            kind, body = self._answer(",".join(accept).strip())
        except Exception:  # one bad request, or one metric that cannot be read
            log.exception("metrics: no answer")
            return b"HTTP/1.1 500 Internal Server Error\r\nConnection: close\r\n\r\n"
        head = f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        return b"HTTP/1.1 200 OK\r\n" + head.encode() + body

    def _drop_late(self) -> None:
        late = time.monotonic() - PATIENCE_S
        while self._connections and (oldest := self._oldest()).since <= late:
            self._drop(oldest)

    def _oldest(self) -> _Connection:
        return next(iter(self._connections.values()))

    def _drop(self, connection: _Connection) -> None:
        self._connections.pop(connection.sock.fileno(), None)
        with contextlib.suppress(OSError):
            connection.sock.close()
