"""Cores that go on to the crash handler of before, and the writer that the document shows."""

from __future__ import annotations

import errno
import os
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from collector.dumpers.chain import Chain, arguments
from collector.dumpers.plugin import NOMATCH, SPECIAL, HeldProcess, SparseWriter, write_core
from collector.dumpers.plugins import RUN_DIR
from collector.dumpers.protocol import Message
from collector.elfcore.reader import CoreFile
from tests.unit.live_event import SECRET, living

ROOT = Path(__file__).parents[2]


@pytest.fixture
def process() -> Iterator[tuple[HeldProcess, int]]:
    with living() as (event, address):
        pidfd = os.pidfd_open(int(event.get("pid") or 0))
        fields = (*event.fields, ("held", "yes"), ("ns_pid", "7"), ("ns_tid", "9"), ("gid", "5"))
        yield HeldProcess(Message("DUMP", fields, {**event.fds, "pidfd": pidfd})), address
        os.close(pidfd)


def test_the_handlers_arguments_are_expanded_as_the_kernel_does(
    process: tuple[HeldProcess, int],
) -> None:
    held, _ = process
    pattern = "/bin/handler %P %p/%i %u:%g %s %c %d %e 100%% %F %E %z %h end%"
    pid, exe = str(held.pid), held.exe or ""
    assert arguments(pattern, held) == [
        *("/bin/handler", pid, "7/9", "1000:5", "11", str((1 << 64) - 1), "1", "python3", "100%"),
        *(str(held.fileno("pidfd")), exe.replace("/", "!"), "", os.uname().nodename, "end"),
    ]


def test_words_of_the_process_are_no_words_of_the_command_line(
    process: tuple[HeldProcess, int],
) -> None:
    held, _ = process
    held.name = "a b; %P $(c)"
    assert arguments("/bin/handler %e %u", held) == ["/bin/handler", "a b; %P $(c)", "1000"]


def test_a_program_gets_the_core_and_the_process_is_there(
    process: tuple[HeldProcess, int], tmp_path: Path
) -> None:
    held, address = process
    # GIVEN a handler that keeps what it is given, and looks at the process
    handler = tmp_path / "handler"
    handler.write_text(
        f"#!/bin/sh\ncat > {tmp_path}/core\necho $# $1 $HOME $PWD > {tmp_path}/said\n"
        f"readlink /proc/$2/exe >> {tmp_path}/said\n"
    )
    handler.chmod(0o755)
    chain = Chain(f"|{handler} %s %P")
    assert chain.probe(held) == SPECIAL
    assert chain.passes
    # WHEN it has a process
    assert chain.handle(held, None) is None
    # THEN
    assert (tmp_path / "said").read_text() == f"2 11 / /\n{held.exe}\n"
    assert chain.note == f"{(tmp_path / 'core').stat().st_size} bytes to {handler}"
    with CoreFile(tmp_path / "core") as core:
        assert core.read(address, len(SECRET)) == SECRET


def test_a_socket_gets_the_core(process: tuple[HeldProcess, int], tmp_path: Path) -> None:
    held, address = process
    got = bytearray()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()

        def take() -> None:
            connection, _ = listener.accept()
            with connection:
                while part := connection.recv(1 << 20):
                    got.extend(part)

        thread = threading.Thread(target=take)
        thread.start()
        assert Chain(f"@{tmp_path}/socket").handle(held, None) is None
        thread.join()
    (tmp_path / "core").write_bytes(got)
    with CoreFile(tmp_path / "core") as core:
        assert core.read(address, len(SECRET)) == SECRET


@pytest.mark.parametrize(
    ("pattern", "status", "note"),
    [
        ("|/bin/false", errno.EIO, "/bin/false ended with status 1"),
        ("|/bin/true", None, "bytes to /bin/true"),  # which reads nothing
        ("@@/run/systemd/coredump", errno.EOPNOTSUPP, "it takes cores from the kernel alone"),
    ],
)
def test_what_a_handler_makes_of_it_is_the_status(
    process: tuple[HeldProcess, int], pattern: str, status: int | None, note: str
) -> None:
    chain = Chain(pattern)
    assert chain.handle(process[0], None) == status
    assert note in (chain.note or "")


@pytest.mark.parametrize(
    ("before", "bid"), [("core", NOMATCH), ("|/bin/handler", SPECIAL), (None, NOMATCH)]
)
def test_it_bids_if_there_was_a_handler(
    process: tuple[HeldProcess, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: str | None,
    bid: int,
) -> None:
    # GIVEN what the agent has saved of the settings before it
    if before is not None:
        saved = {"settings": {"core_pattern": {"original": before, "ours": ["@@/x"]}}}
        (tmp_path / "settings.json").write_bytes(msgspec.json.encode(saved))
    monkeypatch.setenv(RUN_DIR, str(tmp_path))
    assert Chain().probe(process[0]) == bid


def test_the_writer_of_the_document_writes_the_same_core(
    process: tuple[HeldProcess, int], tmp_path: Path
) -> None:
    held, _ = process
    # GIVEN the example as it stands in the document, with small blocks
    found = re.search(r"```python\n(.*?)```", (ROOT / "docs/dumpers.md").read_text(), re.S)
    assert found is not None
    names: dict[str, type] = {}
    exec(found[1], names)
    names["Blocks"].SIZE = 1 << 20  # type: ignore[attr-defined]
    # WHEN it and one of ours write the same process
    write_core(held, names["Blocks"](tmp_path / "blocks"))
    with open(tmp_path / "core", "wb") as file:
        write_core(held, SparseWriter(file.fileno()))
    # THEN both have the same bytes
    whole = bytearray(int((tmp_path / "blocks" / "size").read_text()))
    for block in (tmp_path / "blocks").glob("[0-9]*"):
        data = block.read_bytes()
        whole[int(block.name) << 20 : (int(block.name) << 20) + len(data)] = data
    assert bytes(whole) == (tmp_path / "core").read_bytes()
    # AND its dumper bids as it says
    database = names["Database"]()
    held.arguments = ["postgres", "--replica"]
    assert database.probe(held) == NOMATCH
    held.arguments = ["postgres"]
    assert database.probe(held) == SPECIAL
