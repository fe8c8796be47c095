"""A small HTTP server that nobody who connects can make dear (RFC 9112).

One thread, a bounded number of connections, a bounded time and size for each request, and a
bounded share of a CPU for all answers together. Where all places are taken, the connection that was
opened first makes room for a new one: an answer takes milliseconds, so whoever is the oldest is
silent, or slow, or waits for something to happen and can ask again. It answers GET only, one
request a connection, and knows nothing of what it serves.
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
from typing import NamedTuple

log = logging.getLogger(__name__)

MOST = 64  # connections at a time
PATIENCE_S = 5.0  # for a whole request and its answer, however it is sent and read
LONGEST_S = 60.0  # that a request may wait for something to happen, beside that
BACKLOG = 512  # connections that the kernel keeps until we look; beyond it they try again in 1 s
_REST = 3  # times as long as an answer took: so much of the CPU stays with the agent
_NO_DESCRIPTORS_S = 1.0  # until another one may be there
_LOOK_S = 1.0  # at those that wait
_MAX_REQUEST = 16 << 10  # bytes
_END = b"\r\n\r\n"


class Request(NamedTuple):
    """A GET that came in whole."""

    target: str  # as it was sent: path and query
    accept: str
    waited: float  # seconds, since then


class Reply(NamedTuple):
    kind: str  # the content type
    body: bytes
    status: str = "200 OK"


# None: not yet; it is asked again after `wake`, and now and then
Respond = Callable[[Request], Reply | None]


class _Connection:
    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.until = time.monotonic() + PATIENCE_S
        self.request = bytearray()
        self.asked: Request | None = None  # waits for its answer
        self.asked_at = 0.0
        self.answer: memoryview | None = None  # what is still to be sent


class Server:
    """Serves from its making on, until `close`."""

    def __init__(self, listener: socket.socket, respond: Respond, name: str) -> None:
        """listener: a listening socket, which is closed at the end. respond: called in the thread
        of the server. name: of that, and in the log."""
        self._listener = listener
        self._listener.setblocking(False)
        self._respond, self._name = respond, name
        self._connections: dict[int, _Connection] = {}  # by descriptor, the oldest first
        self._rest_until = 0.0
        self._look_at = 0.0  # at those that wait
        self._closing = False
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._epoll = select.epoll()
        for fd in (self._wake_read, self._listener.fileno()):
            self._epoll.register(fd, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Something has happened that a request may wait for. Any thread may call it, until
        `close`; then nothing is done."""
        if not self._closing:
            self._poke()

    def _poke(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it was woken often enough
            os.write(self._wake_write, b"x")

    def close(self) -> None:
        """Stop serving; the address is free when it returns."""
        self._closing = True
        self._poke()
        self._thread.join()
        for connection in list(self._connections.values()):
            self._drop(connection)
        self._listener.close()
        self._epoll.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _run(self) -> None:
        listener = self._listener.fileno()
        while not self._closing:
            self._drop_late()
            happened = self._wait(listener)
            if self._wake_read in happened:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_read, 4096)
                self._look_at = 0.0
            for fd in happened & self._connections.keys():
                self._go_on(self._connections[fd])
            if listener in happened:
                self._accept()
            self._look()

    def _wait(self, listener: int) -> set[int]:
        """Descriptors that something can be done with."""
        now = time.monotonic()
        wake = [connection.until for connection in self._connections.values()]
        rests = self._rest_until > now
        if rests:
            wake.append(self._rest_until)
        if any(one.asked for one in self._connections.values()):
            wake.append(max(self._look_at, self._rest_until))
        self._epoll.modify(listener, 0 if rests else select.EPOLLIN)
        timeout = max(min(wake) - now, 0) + 1e-3 if wake else None
        return {fd for fd, _ in self._epoll.poll(timeout)}

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return  # it has gone again
        except OSError as error:
            log.warning("%s: cannot accept a connection: %s", self._name, error.strerror)
            self._rest_until = time.monotonic() + _NO_DESCRIPTORS_S
            return
        if len(self._connections) >= MOST:
            self._drop(self._oldest())
        connection = _Connection(sock)
        self._connections[sock.fileno()] = connection
        self._epoll.register(sock, select.EPOLLIN)
        self._go_on(connection)  # most have sent their request with it

    def _look(self) -> None:
        """Whether those that wait can have their answer; not while the CPU is others'."""
        now = time.monotonic()
        if now < max(self._look_at, self._rest_until):
            return
        self._look_at = now + _LOOK_S
        for connection in list(self._connections.values()):
            if connection.asked is not None:
                self._go_on(connection, looks=True)

    def _go_on(self, connection: _Connection, *, looks: bool = False) -> None:
        began = time.thread_time()
        try:
            if connection.answer is None and not looks:
                self._read(connection)
            if connection.asked is not None:
                self._ask(connection)
            if connection.answer is not None:
                sent = connection.sock.send(connection.answer)
                connection.answer = connection.answer[sent:]
                if not connection.answer:
                    self._drop(connection)
        except BlockingIOError:
            pass
        except OSError:
            self._drop(connection)
        if connection.answer is not None or connection.asked is not None:
            # of many answers at a time each counts; waiting for a busy CPU is no work
            self._rest_until = max(time.monotonic(), self._rest_until) + _REST * (
                time.thread_time() - began
            )

    def _read(self, connection: _Connection) -> None:
        """Take in what is there. OSError if it will never be a request."""
        data = connection.sock.recv(_MAX_REQUEST)
        connection.request += data
        if not data or len(connection.request) > _MAX_REQUEST:
            raise ConnectionAbortedError
        if connection.asked is None and _END in connection.request:
            request = _parsed(bytes(connection.request))
            if request is None:
                refusal = b"HTTP/1.1 405 Method Not Allowed\r\nAllow: GET\r\n"
                self._answer_with(connection, refusal + b"Connection: close\r\n\r\n")
                return
            connection.asked, connection.asked_at = request, time.monotonic()

    def _ask(self, connection: _Connection) -> None:
        """Have an answer made, if it is time for it."""
        assert connection.asked is not None
        waited = time.monotonic() - connection.asked_at
        try:
            reply = self._respond(connection.asked._replace(waited=waited))
        except Exception:  # one bad request, or one metric that cannot be read
            log.exception("%s: no answer", self._name)
            reply = Reply("text/plain", b"", "500 Internal Server Error")
        if reply is None:
            connection.until = connection.asked_at + LONGEST_S + PATIENCE_S
            return
        connection.asked = None
        self._answer_with(connection, _encoded(reply))

    def _answer_with(self, connection: _Connection, answer: bytes) -> None:
        connection.until = max(connection.until, time.monotonic() + PATIENCE_S)
        connection.answer = memoryview(answer)
        self._epoll.modify(connection.sock, select.EPOLLOUT)

    def _drop_late(self) -> None:
        now = time.monotonic()
        for connection in list(self._connections.values()):
            if connection.until <= now:
                self._drop(connection)

    def _oldest(self) -> _Connection:
        return next(iter(self._connections.values()))

    def _drop(self, connection: _Connection) -> None:
        self._connections.pop(connection.sock.fileno(), None)
        connection.asked = None
        with contextlib.suppress(OSError):
            connection.sock.close()


def _parsed(request: bytes) -> Request | None:
    """None: it is no GET."""
    first, *fields = request.partition(_END)[0].decode("latin-1").split("\r\n")
    method, _, rest = first.partition(" ")
    if method != "GET":
        return None
    accept = [f.partition(":")[2] for f in fields if f.lower().startswith("accept:")]
    return Request(rest.partition(" ")[0], ",".join(accept).strip(), 0.0)


def _encoded(reply: Reply) -> bytes:
    head = (
        f"HTTP/1.1 {reply.status}\r\nContent-Type: {reply.kind}\r\n"
        f"Content-Length: {len(reply.body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + reply.body
