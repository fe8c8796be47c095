"""The server of the metrics: what those who connect can do to it."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.export import server
from collector.export.endpoint import Endpoint
from collector.export.server import MOST

GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n"
PATIENCE = 60.0  # seconds, with a busy machine
BODY = b"# the metrics\n" * 100_000


@pytest.fixture
def served() -> Iterator[Endpoint]:
    server = Endpoint("127.0.0.1", 0, lambda accept: (accept or "text/plain", BODY))
    try:
        yield server
    finally:
        server.close()


def connect(server: Endpoint) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), PATIENCE)


def fetch(server: Endpoint, **headers: str) -> tuple[str, bytes]:
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}/metrics", headers=headers)
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return answer.headers["Content-Type"], answer.read()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def rest(connection: socket.socket) -> bytes:
    """All that comes until the other side closes; nothing if it resets."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(1 << 16):
            found += data
    return found


def test_the_whole_document_in_the_format_that_is_asked_for(served: Endpoint) -> None:
    assert fetch(served) == ("text/plain", BODY)
    assert fetch(served, Accept="a/b;q=1") == ("a/b;q=1", BODY)


def test_a_request_in_pieces(served: Endpoint) -> None:
    with connect(served) as one:
        for byte in GET + b"\r\n":
            one.send(bytes([byte]))
        assert rest(one).endswith(BODY)


@pytest.mark.parametrize("request_", [b"POST / HTTP/1.1\r\n\r\n", b"\r\n\r\n", b"\xff \0\r\n\r\n"])
def test_other_requests(request_: bytes, served: Endpoint) -> None:
    with connect(served) as one:
        one.sendall(request_)
        assert rest(one).startswith(b"HTTP/1.1 405 ")


def test_a_request_without_end(served: Endpoint) -> None:
    with connect(served) as one, contextlib.suppress(ConnectionError):
        for _ in range(1000):
            one.sendall(b"x: y\r\n" * 1000)
        raise AssertionError("it takes in megabytes")
    assert fetch(served)[1] == BODY


def test_an_answer_that_fails() -> None:
    def fail(accept: str) -> tuple[str, bytes]:
        raise ValueError

    server = Endpoint("127.0.0.1", 0, fail)
    try:
        with pytest.raises(urllib.error.HTTPError, match="500"):
            fetch(server)
        with pytest.raises(urllib.error.HTTPError, match="500"):  # and it goes on
            fetch(server)
    finally:
        server.close()


def test_whoever_is_silent_is_left(served: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "PATIENCE_S", 0.05)
    # GIVEN somebody who says nothing, who says half of it, and who reads no answer
    with connect(served) as silent, connect(served) as half, connect(served) as deaf:
        half.sendall(GET)
        deaf.sendall(GET + b"\r\n")
        # THEN each of them is left after a while
        assert rest(silent) == b""
        assert rest(half) == b""
        assert len(rest(deaf)) <= len(BODY) + 1000


def test_many_who_are_silent(served: Endpoint) -> None:
    # GIVEN many more than there are places for; beyond them the kernel lets nobody in
    before, stack = descriptors(), contextlib.ExitStack()
    ours = 0
    with stack:
        for _ in range(10 * MOST):
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", served.port))
            ours += 1
        # THEN the metrics can be had all the same
        assert fetch(served)[1] == BODY
        # AND only so many descriptors are used for it
        assert descriptors() - before - ours <= MOST + 1


def is_left(one: socket.socket) -> bool:
    """Whether the other side has closed it, or sends."""
    return bool(select.select([one], [], [], 0)[0])


@pytest.mark.parametrize("deaf", [False, True])
def test_the_slow_keep_nobody_waiting(deaf: bool, served: Endpoint) -> None:
    # GIVEN many more than there are places for, who come again whenever they are left: 200 who say
    # nothing, 50 who send byte by byte, or read no answer
    silent: list[socket.socket] = []
    slow: list[socket.socket] = []
    try:
        for number in range(10):
            for crowd, most in ((silent, 200), (slow, 50)):
                for one in [one for one in crowd if is_left(one)]:
                    one.close()
                    crowd.remove(one)
                crowd += [connect(served) for _ in range(most - len(crowd))]
            for one in slow:
                with contextlib.suppress(ConnectionError):
                    one.sendall(GET + b"\r\n" if deaf else GET[number : number + 1])
            # THEN each scrape has its answer
            assert fetch(served)[1] == BODY
    finally:
        for one in silent + slow:
            one.close()


def test_who_reads_byte_by_byte_is_left(served: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "PATIENCE_S", 0.2)
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.connect(("127.0.0.1", served.port))
        one.sendall(GET + b"\r\n")
        # WHEN somebody takes a little of the answer again and again THEN it ends all the same
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while one.recv(16):
                assert time.monotonic() - began < PATIENCE


def use_cpu(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_requests_one_after_the_other_leave_the_cpu_to_others(served: Endpoint) -> None:
    # GIVEN an answer that takes 20 ms of work
    busy: list[float] = []

    def work(accept: str) -> tuple[str, bytes]:
        use_cpu(0.02)
        busy.append(0.02)
        return "text/plain", b""

    served._answer = work
    began = time.monotonic()
    # WHEN two ask for it as fast as they can
    threads = [threading.Thread(target=lambda: [fetch(served) for _ in range(5)]) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # THEN it worked for a quarter of the time; it does not rest after the last
    assert len(busy) == 10
    assert sum(busy[:-1]) <= (time.monotonic() - began) / 4 + 0.02


def test_requests_at_the_same_time_leave_the_cpu_to_others(served: Endpoint) -> None:
    # GIVEN an answer that takes 5 ms, and as many connections as there are places for
    def work(accept: str) -> tuple[str, bytes]:
        use_cpu(0.005)
        return "text/plain", b""

    served._answer = work
    with contextlib.ExitStack() as stack:
        many = [stack.enter_context(connect(served)) for _ in range(MOST)]
        # WHEN all of them ask for it at once
        began = time.monotonic()
        for one in many:
            one.sendall(GET + b"\r\n")
        for one in many:
            assert rest(one).startswith(b"HTTP/1.1 200 ")
        # THEN the next one waits until the others have had the CPU for three times as long
        fetch(served)
        assert time.monotonic() - began >= 0.005 * (MOST - 1) * 3


def test_an_answer_that_waits_makes_nobody_wait_longer(served: Endpoint) -> None:
    # GIVEN an answer that takes long on a busy machine, but no work
    def wait(accept: str) -> tuple[str, bytes]:
        time.sleep(0.2)
        return "text/plain", b""

    served._answer = wait
    # WHEN it was given THEN the next one need not wait for three times as long
    fetch(served)
    assert served._rest_until < time.monotonic() + 0.2


def test_no_descriptors(served: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    # GIVEN no descriptor for a connection, twice
    real, failed = served._listener, []
    monkeypatch.setattr(server, "_NO_DESCRIPTORS_S", 0.01)

    class Listener:
        def __getattr__(self, name: str) -> object:
            return getattr(real, name)

        def accept(self) -> object:
            if len(failed) < 2:
                failed.append(1)
                raise OSError(24, "Too many open files")
            return real.accept()

    served._listener = Listener()  # type: ignore[assignment]
    # THEN it is served later
    assert fetch(served)[1] == BODY
    assert len(failed) == 2
    served._listener = real


def test_closing_frees_the_address() -> None:
    before = descriptors()
    server = Endpoint("::1", 0, lambda accept: ("text/plain", b""))
    held = socket.create_connection(("::1", server.port))
    server.close()
    assert rest(held) == b""
    held.close()
    with socket.create_server(("::1", server.port), family=socket.AF_INET6):
        pass
    server.wake()  # nobody is there any more
    assert descriptors() == before
