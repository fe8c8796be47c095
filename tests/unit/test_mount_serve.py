"""A core by HTTP: which bytes a range means, and what a client gets of them."""

from __future__ import annotations

import http.client
import random
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.errors import CaptureError, UsageError
from collector.mount import serve
from collector.mount.serve import UnsatisfiableRange, range_of, served

DATA = random.Random(7).randbytes(3_000_000)  # more than is read at a time
PATIENCE = 60.0  # seconds


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("bytes=0-0", (0, 1)),
        ("bytes=10-", (10, 100)),
        ("bytes=10-1000", (10, 100)),
        ("bytes=-10", (90, 100)),
        ("bytes=-1000", (0, 100)),
        # what is not understood is as if it were not there (RFC 9110, 14.2)
        ("bytes=-", None),
        ("bytes=5-4", None),
        ("bytes=0-1,4-5", None),
        ("lines=0-1", None),
        ("bytes=0x0-1", None),
        ("bytes=0-" + "9" * 30, None),
    ],
)
def test_ranges(header: str | None, expected: tuple[int, int] | None) -> None:
    assert range_of(header, 100) == expected


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=100-200", "bytes=-0"])
def test_ranges_without_a_byte(header: str) -> None:
    with pytest.raises(UnsatisfiableRange):
        range_of(header, 100)


@given(st.integers(1, 1000), st.integers(0, 2000), st.integers(0, 2000))
def test_a_range_is_as_python_slices(size: int, first: int, length: int) -> None:
    header = f"bytes={first}-{first + length}"
    expected = bytes(size)[first : first + length + 1]
    if not expected:
        with pytest.raises(UnsatisfiableRange):
            range_of(header, size)
    else:
        found = range_of(header, size)
        assert found is not None and found[1] - found[0] == len(expected)


class FakeCore:
    """An OpenCore over DATA, of which reads fail from `until` on."""

    lasting = False

    def __init__(self) -> None:
        self.until = len(DATA)
        self.lost: str | None = None

    def size(self) -> int:
        if self.lost is not None:
            raise CaptureError(self.lost)
        return len(DATA)

    def is_ready(self) -> bool:
        return True

    def when_ready(self, call: Callable[[], None]) -> None:
        call()

    def read(self, offset: int, length: int) -> bytes:
        if offset + length > self.until:
            raise CaptureError("it has ended")
        return DATA[offset : offset + length]

    def idle(self, give_up: Callable[[], None]) -> bool:
        return False

    def close(self) -> None:
        return


class Client(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("core", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))

    def ask(
        self, method: str = "GET", path: str = "/core", part: str | None = None
    ) -> http.client.HTTPResponse:
        self.request(method, path, headers={} if part is None else {"Range": part})
        return self.getresponse()


@pytest.fixture
def core() -> FakeCore:
    return FakeCore()


@pytest.fixture
def client(core: FakeCore, tmp_path: Path) -> Iterator[Client]:
    path = tmp_path / "socket"
    with served(path, core) as run:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        threading.Thread(target=run, daemon=True).start()
        client = Client(path)
        yield client
        client.close()
        run.__self__.shutdown()  # type: ignore[attr-defined]
    assert not path.exists()


def test_the_whole_and_parts_on_one_connection(client: Client) -> None:
    whole = client.ask()
    assert (whole.status, whole.read()) == (200, DATA)
    head = client.ask("HEAD")
    assert (head.status, head.read(), head.headers["Content-Length"]) == (200, b"", str(len(DATA)))
    part = client.ask(part="bytes=1000000-2999998")
    assert part.headers["Content-Range"] == f"bytes 1000000-2999998/{len(DATA)}"
    assert (part.status, part.read()) == (206, DATA[1_000_000:2_999_999])
    none = client.ask(part=f"bytes={len(DATA)}-")
    assert (none.status, none.headers["Content-Range"]) == (416, f"bytes */{len(DATA)}")
    none.read()
    assert client.ask(path="/other").status == 404


def test_memory_that_is_gone_ends_the_answer(client: Client, core: FakeCore) -> None:
    core.until = 1 << 20
    with pytest.raises(http.client.IncompleteRead) as error:
        client.ask().read()
    assert error.value.partial == DATA[: 1 << 20]
    core.lost = "its snapshot is lost"
    client.close()
    answer = client.ask()
    assert answer.status == 410
    assert b"its snapshot is lost" in answer.read()


def test_other_users_are_not_answered(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "_peer", lambda _: 4711)
    with pytest.raises(ConnectionError):
        client.ask("HEAD")


def test_a_file_is_not_replaced_by_a_socket(core: FakeCore, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises(UsageError, match="exists, and is no socket"), served(path, core):
        pass
    assert path.read_text() == "precious"
    elsewhere = served(tmp_path / "no" / "folder", core)
    with pytest.raises(UsageError, match="no socket can be made there"), elsewhere:
        pass
