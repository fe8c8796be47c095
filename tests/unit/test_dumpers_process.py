"""What a dumper sees of a process, and the cores that it writes: of a process that lives."""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from collector.dumpers.desk import Dumped
from collector.dumpers.dumper import Bid
from collector.dumpers.hub import Hub
from collector.dumpers.plugin import (
    SPECIAL,
    HeldProcess,
    SparseWriter,
    WriterParams,
    write_core,
)
from collector.dumpers.protocol import Message
from collector.elfcore.reader import CoreFile
from collector.errors import ProcessError, Unreadable
from collector.linux.peer import peer_of, pidfd_of
from collector.model import Capture
from tests.unit.live_event import SECRET, living
from tests.unit.test_dumpers_hub import FACTS, PATIENCE, hub_of

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "dumpers"


@pytest.fixture
def event() -> Iterator[tuple[Message, int]]:
    with living() as (found, address):
        yield Message("DUMP", (*found.fields, ("held", "yes")), found.fds), address


def test_the_process_as_its_dumper_sees_it(event: tuple[Message, int]) -> None:
    said, address = event
    process = HeldProcess(said)
    assert (process.name, process.signal, process.limit) == ("python3", 11, 1 << 30)
    assert process.arguments == ["python3", "a\nb"]
    assert (process.held, process.core_limit, process.unit) == (True, None, None)
    assert [thread.tid for thread in process.threads()] == [process.pid, process.pid + 1]
    assert process.exe in [m.path for m in process.mappings()]
    assert process.read(address, len(SECRET)) == SECRET
    assert list(process.populated(address, address + 1)) == [
        (address & -4096, address + 4096 & -4096)
    ]
    with pytest.raises(Unreadable) as unreadable:
        process.read(4096, 1)
    assert unreadable.value.address == 4096


def test_what_did_not_come_is_named(event: tuple[Message, int]) -> None:
    said, _ = event
    fds = {name: fd for name, fd in said.fds.items() if name not in ("notes", "maps")}
    process = HeldProcess(Message("PROBE", said.fields, fds))
    with pytest.raises(ProcessError, match="its notes could not be had"):
        process.threads()
    with pytest.raises(ProcessError, match="its mappings could not be had"):
        process.mappings()


class Recorded:
    """A writer of one's own: what it was told, in order; and the bytes."""

    def __init__(self) -> None:
        self.params: WriterParams | None = None
        self.data = bytearray()
        self.holes = self.ended = 0

    def init(self, params: WriterParams) -> None:
        self.params = params

    def write(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        assert offset == len(self.data)
        self.data += data

    def extend(self, size: int) -> None:
        self.holes += size
        self.data += bytes(size)

    def close(self) -> None:
        self.ended += 1

    def abort(self) -> None:
        raise AssertionError("it was given up")


def test_a_writer_of_ones_own_has_init_write_and_extend(
    event: tuple[Message, int], tmp_path: Path
) -> None:
    said, address = event
    # GIVEN a word of its memory that its end has changed
    fd = os.memfd_create("words")
    os.write(fd, (address + 4).to_bytes(8, "little") + b"WORD" + bytes(4))
    process = HeldProcess(Message("DUMP", said.fields, {**said.fds, "words": fd}))
    # WHEN its core is written
    writer = Recorded()
    result = write_core(process, writer)
    os.close(fd)
    # THEN the core is whole, with holes, and the word as it was
    assert writer.params is not None
    assert (len(writer.data), writer.ended) == (writer.params.size, 1)
    assert result.written > 0 and writer.holes > 0
    (tmp_path / "core").write_bytes(writer.data)
    with CoreFile(tmp_path / "core") as core:
        assert core.read(address, len(SECRET)) == SECRET[:4] + b"WORD" + SECRET[8:]
        assert [thread.tid for thread in core.threads] == [process.pid, process.pid + 1]


def test_a_limit_bounds_the_memory_in_a_core(event: tuple[Message, int], tmp_path: Path) -> None:
    process = HeldProcess(event[0])
    sizes = {}
    for limit in (None, 64 << 10):
        with open(tmp_path / "core", "wb") as file:
            sizes[limit] = write_core(process, SparseWriter(file.fileno()), limit=limit).written
    assert 0 < sizes[64 << 10] <= 64 << 10 < sizes[None]
    with open(tmp_path / "core", "wb") as file:
        result = write_core(process, SparseWriter(file.fileno()), capture=Capture.THREADS)
    assert result.written == 0


class Outside:
    """A hub that programs connect to, each by the socket `path`."""

    def __init__(self, hub: Hub, folder: Path) -> None:
        self.path = folder / "dumper"
        self.hub = hub
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(self.path))
        self.listener.listen()
        hub.listen(self.listener.fileno(), self._take)

    def _take(self) -> None:
        connection, _ = self.listener.accept()
        self.hub.take(connection, peer_of(connection), pidfd_of(connection))


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Outside]:
    with hub_of() as (hub, _):
        found = Outside(hub, tmp_path)
        yield found
        hub.listen(-1, lambda: None)
        found.listener.close()


def dumped_by(hub: Hub, event: Message) -> Dumped:
    bids_in: queue.SimpleQueue[list[Bid]] = queue.SimpleQueue()
    hub.ask(FACTS, event, held=True, done=bids_in.put)
    (bid,) = bids_in.get(timeout=PATIENCE)
    assert bid.priority == SPECIAL
    done: queue.SimpleQueue[Dumped] = queue.SimpleQueue()
    hub.dump(bid, event, held=True, done=done.put)
    return done.get(timeout=PATIENCE)


@contextlib.contextmanager
def registered(command: list[str], folder: Path) -> Iterator[IO[str]]:
    """What a dumper says that has registered; killed at the end."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "registered\n"
            yield process.stdout
        finally:
            process.kill()


@pytest.mark.parametrize("how", ["priority=50", "bid=yes"])
def test_the_example_in_c_keeps_the_notes(outside: Outside, tmp_path: Path, how: str) -> None:
    # GIVEN the example, built without a warning
    program = tmp_path / "example"
    source = str(EXAMPLES / "dumper.c")
    subprocess.run(["cc", "-Wall", "-Wextra", "-Werror", "-O2", "-o", program, source], check=True)
    command = [str(program), str(outside.path), "mine", how, "match.exe=/usr/*"]
    with registered(command, tmp_path) as output, living() as (event, _):
        # WHEN it has a process
        dumped = dumped_by(outside.hub, event)
        # THEN it says what it has seen, and that is the truth
        count = Path(f"/proc/{event.get('pid')}/maps").read_bytes().count(b"\n")
        assert (dumped.status, dumped.note) == (0, f"{count} mappings")
        assert output.readline() == (
            f"python3[{event.get('pid')}]: {count} mappings, "
            "program begins with 7f 45 4c 46: kept\n"
        )
        kept = (tmp_path / f"mine.{event.get('pid')}.notes").read_bytes()
        assert kept == os.pread(event.fds["notes"], 1 << 20, 0)


def test_the_example_in_c_says_why_it_is_refused(outside: Outside, tmp_path: Path) -> None:
    program = tmp_path / "example"
    subprocess.run(["cc", "-O2", "-o", program, str(EXAMPLES / "dumper.c")], check=True)
    done = subprocess.run(
        [program, outside.path, "mine"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "REFUSED\nwhy=REGISTER: give either bid=yes or priority=N\n"


def test_the_example_in_python_keeps_a_core(outside: Outside, tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "keeper.py"), str(outside.path), str(tmp_path)]
    with registered(command, ROOT), living() as (event, address):
        dumped = dumped_by(outside.hub, event)
        path = tmp_path / f"{event.get('pid')}.core.zst"
        assert (dumped.status, dumped.note) == (0, f"{path.stat().st_size} bytes")
        with CoreFile(path) as core:
            assert core.read(address, len(SECRET)) == SECRET
        # AND of a process that has its core already it says so
        assert dumped_by(outside.hub, event).status == errno.EEXIST
