"""The journal's native protocol, at a socket that a test listens on, and what is in its fields."""

from __future__ import annotations

import array
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from collector.diagnosis import Category, Diagnosis
from collector.model import Cause, Frame, Outcome, Record, Signature
from collector.sinks import journal
from collector.sinks.journal import Journal, encoded
from collector.sinks.journal_fields import CRASH_ID, DEATH_ID, fields
from tests.unit.store_samples import SEGFAULT

FRAMES = [
    Frame(pc=0x1000, function="inner", offset=0x12, file="a.c", line=7, module="/usr/bin/victim"),
    Frame(pc=0x2000, module="/usr/lib/libc.so.6"),
]


class Receiver:
    """As journald listens."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._socket.settimeout(10)

    def receive(self) -> dict[str, str]:
        """The next message, by the rules of the protocol."""
        data, rights, _, _ = self._socket.recvmsg(1 << 20, socket.CMSG_SPACE(4))
        for _, kind, content in rights:
            assert kind == socket.SCM_RIGHTS and not data
            (fd,) = array.array("i", content)
            with os.fdopen(fd, "rb") as file:
                file.seek(0)
                data = file.read()
        return parsed(data)

    def close(self) -> None:
        self._socket.close()


def parsed(data: bytes) -> dict[str, str]:
    found = {}
    while data:
        line, _, data = data.partition(b"\n")
        name, given, value = line.partition(b"=")
        if not given:
            (size,) = struct.unpack_from("<Q", data)
            value, end, data = data[8 : 8 + size], data[8 + size : 9 + size], data[9 + size :]
            assert end == b"\n"
        found[name.decode()] = value.decode()
    return found


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    made = Receiver(tmp_path / "socket")
    yield made
    made.close()


def crash(**differs: object) -> Record:
    return msgspec.structs.replace(SEGFAULT, frames=FRAMES, reason="SIGSEGV: it went", **differs)


def test_a_crash_is_what_coredumpctl_looks_for(receiver: Receiver) -> None:
    record = crash(
        signature=Signature(id="0123456789ab"),
        diagnosis=Diagnosis(category=Category.NULL_DEREFERENCE),
        pid=812,
        tid=813,
        uid=1000,
        gid=100,
        core="core.zst",
        outcome=Outcome.COMPLETE,
    )
    Journal(receiver.path).put(fields(record, Path("/store/core.zst")))
    found = receiver.receive()
    assert found["MESSAGE"].split("\n") == [
        "Process 812 (victim) of user 1000: SIGSEGV: it went",
        "",
        "Stack trace of thread 813:",
        "#0   0x0000000000001000 inner + 0x12 (victim) at a.c:7",
        "#1   0x0000000000002000 n/a (libc.so.6)",
    ]
    wanted = {
        "MESSAGE_ID": CRASH_ID,
        "PRIORITY": "2",
        "COREWARD_ID": record.id,
        "COREWARD_SIGNATURE": "0123456789ab",
        "COREWARD_CATEGORY": "null-dereference",
        "COREDUMP_PID": "812",
        "COREDUMP_UID": "1000",
        "COREDUMP_GID": "100",
        "COREDUMP_SIGNAL": "11",
        "COREDUMP_SIGNAL_NAME": "SIGSEGV",
        "COREDUMP_EXE": "/usr/bin/victim",
        "COREDUMP_COMM": "victim",
        "COREDUMP_FILENAME": "/store/core.zst",
        "COREDUMP_TIMESTAMP": str(round(record.time.timestamp() * 1e6)),
    }
    assert {name: found.get(name) for name in wanted} == wanted
    assert "COREDUMP_TRUNCATED" not in found
    cut = dict(fields(crash(outcome=Outcome.TRUNCATED), None))
    assert cut["COREDUMP_TRUNCATED"] == "1" and "COREDUMP_FILENAME" not in cut


def test_a_kill_is_no_core_dump() -> None:
    found = dict(fields(crash(cause=Cause.KILLED), None))
    assert found["MESSAGE_ID"] == DEATH_ID
    assert not any(name.startswith("COREDUMP_") for name in found)


def test_nobody_writes_fields_of_his_own(receiver: Receiver) -> None:
    # GIVEN a process whose name and arguments look like fields, and like a long line
    evil = "x\nMESSAGE_ID=0\nPRIORITY=0\x1b[2J"
    record = crash(comm=evil, cmdline=["a", "b" * 100_000], exe="/tmp/" + evil, unit=evil)
    Journal(receiver.path).put(fields(record, None))
    found = receiver.receive()
    # THEN it is one value, spelled out, and of bounded length
    assert found["MESSAGE_ID"] == CRASH_ID and found["PRIORITY"] == "2"
    assert found["COREDUMP_COMM"] == "x\\nMESSAGE_ID=0\\nPRIORITY=0\\x1b[2J"
    assert len(found["COREDUMP_CMDLINE"]) < 5000
    assert found["MESSAGE"].split("\n")[1:3] == ["", f"Stack trace of thread {record.tid}:"]


def test_a_large_message_goes_as_a_file(receiver: Receiver) -> None:
    # GIVEN more than a datagram holds
    large = "\n".join("x" * 1000 for _ in range(1000))
    one = Journal(receiver.path)
    one.put([("MESSAGE", large), ("PRIORITY", "2")])
    assert receiver.receive() == {"MESSAGE": large, "PRIORITY": "2"}
    assert (one.sent, one.lost, one.waiting) == (1, 0, 0)


def test_a_journal_that_restarts_loses_nothing(tmp_path: Path) -> None:
    # GIVEN no journal yet
    path = tmp_path / "socket"
    one = Journal(str(path))
    for number in range(3):
        one.put([("MESSAGE", str(number))])
    assert (one.sent, one.waiting) == (0, 3)
    # WHEN it is there THEN all is told, in order
    receiver = Receiver(path)
    one.flush()
    assert [receiver.receive()["MESSAGE"] for _ in range(3)] == ["0", "1", "2"]
    assert (one.sent, one.lost, one.waiting) == (3, 0, 0)
    receiver.close()


def test_a_journal_that_hangs_keeps_nobody_waiting(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a journal that takes nothing any more, and room for ten
    monkeypatch.setattr(journal, "MOST", 10)
    one = Journal(receiver.path)
    for number in range(1000):
        one.put([("MESSAGE", str(number))])
    # THEN each is taken, waits, or is counted as lost, the oldest first
    assert one.waiting == 10
    assert one.sent + one.lost + one.waiting == 1000 and one.lost > 0
    heard = [receiver.receive()["MESSAGE"] for _ in range(one.sent)]
    assert heard == [str(number) for number in range(one.sent)]
    one.flush()
    assert receiver.receive()["MESSAGE"] == "990"
    # AND at the end what waits still is lost, and known to be
    sent = one.sent
    one.close()
    assert sent + one.lost <= 1000 and one.waiting == 0


def test_bytes_that_wait_are_bounded(tmp_path: Path) -> None:
    one = Journal(str(tmp_path / "none"))
    for _ in range(100):
        one.put([("MESSAGE", "x" * 100_000)])
    assert one.waiting * 100_000 <= journal.MOST_BYTES
    assert one.lost + one.waiting == 100


def test_lengths_are_of_bytes() -> None:
    assert parsed(encoded([("A", "ä\nö"), ("B", "\udcff")])) == {"A": "ä\nö", "B": "\\udcff"}
