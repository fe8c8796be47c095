"""A live core as its readers see it, whatever becomes of the process that holds it."""

from __future__ import annotations

import errno
import socket
import subprocess
import threading
from collections.abc import Iterator

import pytest

from collector.errors import CaptureError
from collector.mount import live_core
from collector.mount.live_core import Holder, LiveCore
from collector.mount.wire import DATA_AT, HAVE, MAX_READ, WANT, Ready, receive, send_message

PATIENCE = 60.0  # seconds


class Held:
    """A LiveCore, and the test in the place of its holder."""

    def __init__(
        self, core: LiveCore, end: socket.socket, process: subprocess.Popen[bytes]
    ) -> None:
        self.core, self.end, self.process = core, end, process

    def answer(self, number: int, data: bytes) -> threading.Thread:
        """Answer the next question so."""

        def work() -> None:
            receive(self.end, WANT.size)
            self.end.sendall(HAVE.pack(number, len(data)) + data)

        thread = threading.Thread(target=work)
        thread.start()
        return thread


@pytest.fixture
def held() -> Iterator[Held]:
    ours, end = socket.socketpair()
    process = subprocess.Popen(["sleep", "1000"])
    closed = threading.Event()
    core = LiveCore("1.core", Holder(process, ours), None, closed.set)
    with end:
        yield Held(core, end, process)
        process.kill()
        core.close()
    assert closed.is_set()


def test_what_the_holder_says(held: Held) -> None:
    called = threading.Event()
    held.core.when_ready(called.set)
    assert not held.core.is_ready() and not called.is_set()
    send_message(held.end, Ready(size=100))
    assert held.core.size() == 100
    assert called.wait(PATIENCE) and held.core.is_ready()
    thread = held.answer(0, b"x" * 40)
    assert held.core.read(60, 1000) == b"x" * 40
    thread.join()
    assert held.core.read(100, 1) == b""


def test_a_snapshot_that_cannot_be_taken(held: Held) -> None:
    send_message(held.end, Ready(error="it is a kernel thread"))
    for work in (held.core.size, lambda: held.core.read(0, 1)):
        with pytest.raises(CaptureError, match="it is a kernel thread"):
            work()


@pytest.mark.parametrize("said", [b"", b"\xff\xff\xff\xff", b"\x02\0\0\0{]"])
def test_a_holder_that_ends_or_talks_nonsense(held: Held, said: bytes) -> None:
    held.end.sendall(said)
    held.end.shutdown(socket.SHUT_RDWR)
    with pytest.raises(CaptureError, match="no snapshot"):
        held.core.size()


def test_an_error_of_one_read_is_not_the_end(held: Held) -> None:
    send_message(held.end, Ready(size=100))
    thread = held.answer(errno.EIO, b"process 1 has ended")
    with pytest.raises(CaptureError, match="process 1 has ended"):
        held.core.read(0, 10)
    thread.join()
    thread = held.answer(0, b"0123456789")
    assert held.core.read(0, 10) == b"0123456789"
    thread.join()


def test_a_read_that_does_not_return_is_waited_for_once(
    held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_core, "_READ_S", 0.05)
    send_message(held.end, Ready(size=100))
    with pytest.raises(CaptureError, match="longer than"):
        held.core.read(0, 10)
    assert held.process.poll() is not None  # it was killed
    with pytest.raises(CaptureError, match="its snapshot is lost"):
        held.core.read(0, 10)


def test_an_answer_that_is_too_long(held: Held) -> None:
    send_message(held.end, Ready(size=100))

    def work() -> None:
        receive(held.end, WANT.size)
        held.end.sendall(HAVE.pack(0, MAX_READ + 1))

    thread = threading.Thread(target=work)
    thread.start()
    with pytest.raises(CaptureError, match=f"an answer of {MAX_READ + 1} bytes"):
        held.core.read(0, 10)
    thread.join()


def test_where_the_data_is(held: Held) -> None:
    send_message(held.end, Ready(size=100))
    thread = held.answer(0, DATA_AT.pack(8, 40))
    assert held.core.data_at(5) == (8, 40)
    thread.join()
    thread = held.answer(0, b"")
    assert held.core.data_at(50) is None
    thread.join()
