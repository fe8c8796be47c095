"""Dumpers and real crashes: who waits for whom, and what a dumper sees.

The external dumpers are this process, or children that are killed.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.dumpers.plugin import NOMATCH, HeldProcess, SparseWriter, write_core
from collector.elfcore.reader import CoreFile
from tests.system.agents import RunningAgent, agent, functions
from tests.system.dumping import UNLIMITED, deaf, is_dying, join, told
from tests.system.victims import running

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="module")
def running_agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningAgent]:
    folder = tmp_path_factory.mktemp("agent")
    with agent(folder, config=UNLIMITED, metrics=True, hold="max: 1h, bids: 1s") as one:
        yield one
        assert not [line for line in one.lines if "Traceback" in line]


def test_the_process_waits_until_its_dumper_says_continue(
    running_agent: RunningAgent, tmp_path: Path
) -> None:
    with (
        join(running_agent, "mine", "null_main") as client,
        running("null_main", cwd=tmp_path) as victim,
    ):
        # WHEN a process dies that a dumper wants, and one that it does not
        with running("threads", "20", cwd=tmp_path) as other:
            victim.go()
            event = told(client, "DUMP")
            process = HeldProcess(event)
            # THEN the other one goes while the first waits
            other.go()
            other.wait()
            assert running_agent.record(other.pid)["release"] == "instant"
        assert is_dying(victim)
        assert victim.process.poll() is None
        # AND the dumper sees it whole: who it is, where it died, and its memory
        assert (process.pid, process.name, process.signal) == (victim.pid, "null_main", 11)
        assert process.held
        (thread,) = process.threads()
        assert thread.signal == signal.SIGSEGV
        code = next(m for m in process.mappings() if m.path == process.exe)
        assert process.read(code.start, 4) == b"\x7fELF"
        assert os.readlink(f"/proc/self/fd/{event.fds['exe']}") == process.exe
        # WHEN it says continue, THEN the process ends
        client.let_go(event, 0, "seen")
        event.close()
        assert victim.wait() == -signal.SIGSEGV
        record = running_agent.record(victim.pid)
    assert (record["outcome"], record["core"], record["capture"]) == ("handled", None, "record")
    (dumper,) = record["dumpers"]
    assert (dumper["name"], dumper["status"], dumper["note"]) == ("mine", 0, "seen")
    assert (dumper["pid"], dumper["held"]) == (os.getpid(), True)
    # AND its record says why and where it died all the same
    assert record["reason"] == "SIGSEGV: wrote to address 0x0 in `inner` (null_main.c:6)"
    assert functions(record) == ["inner", "outer", "main"]


def test_a_dumpers_core_has_the_bytes_of_the_stored_one(
    running_agent: RunningAgent, tmp_path: Path
) -> None:
    # GIVEN a dumper that writes a core itself, and passes the process on
    with (
        join(running_agent, "also", "threads") as client,
        running("threads", "20", cwd=tmp_path) as one,
    ):
        one.go()
        event = told(client, "DUMP")
        with open(tmp_path / "own", "wb") as file:
            write_core(HeldProcess(event), SparseWriter(file.fileno()))
        client.let_go(event, 0, pass_on=True)
        event.close()
        one.wait()
        record = running_agent.record(one.pid)
    assert record["outcome"] == "complete"
    stored = running_agent.core(record, tmp_path / "stored")
    # THEN both have the same threads, and the same memory
    with CoreFile(tmp_path / "own") as own, CoreFile(stored) as usual:
        assert own.threads == usual.threads
        assert own.auxv == usual.auxv
        segments = [p.segment for p in usual.segments]
        assert [p.segment for p in own.segments] == segments
        for segment in segments:
            if segment.filesz and not segment.zeros:
                size = min(segment.filesz, 1 << 20)
                assert own.read(segment.vaddr, size) == usual.read(segment.vaddr, size)


def test_pinned_memory_is_there_when_the_process_has_gone(
    running_agent: RunningAgent, tmp_path: Path
) -> None:
    # GIVEN a dumper for which pinned memory will do
    with (
        join(running_agent, "pins", "threads", pin=True) as client,
        running("threads", "20", cwd=tmp_path) as victim,
    ):
        # WHEN a process dies, THEN it is gone before the dumper has done anything
        victim.go()
        assert victim.wait() < 0
        event = told(client, "DUMP")
        process = HeldProcess(event)
        assert not process.held
        with open(tmp_path / "core", "wb") as file:
            result = write_core(process, SparseWriter(file.fileno()))
        client.let_go(event, 0)
        event.close()
        record = running_agent.record(victim.pid)
    assert (record["outcome"], record["release"]) == ("handled", "instant")
    assert [one["held"] for one in record["dumpers"]] == [False]
    assert result.written > 0
    # AND its core has all threads where they were
    with CoreFile(tmp_path / "core") as core:
        assert len(core.threads) == record["threads"] > 1
        assert core.threads[0].regs[16] == record["ip"]


def test_a_dumper_that_declines_costs_little(running_agent: RunningAgent, tmp_path: Path) -> None:
    with (
        join(running_agent, "picky", "null_main", priority=None) as client,
        running("null_main", cwd=tmp_path) as victim,
    ):
        victim.go()
        event = told(client, "PROBE")
        assert HeldProcess(event).threads()
        client.bid(event, NOMATCH)
        event.close()
        victim.wait()
        record = running_agent.record(victim.pid)
    assert (record["outcome"], record["dumpers"], record["release"]) == (
        "complete",
        None,
        "instant",
    )


def test_a_dumper_that_dies_loses_the_process_to_the_next_bidder(
    running_agent: RunningAgent, tmp_path: Path
) -> None:
    # GIVEN a dumper that bids more than another one
    with (
        join(running_agent, "second", "null_main") as second,
        deaf(running_agent, "first", 1000) as first,
        running("null_main", cwd=tmp_path) as victim,
    ):
        victim.go()
        assert first.stdout is not None
        assert first.stdout.readline() == "DUMP\n"
        # WHEN it is killed while it has the process
        first.kill()
        # THEN the other one has it, and fails
        event = told(second, "DUMP")
        second.let_go(event, errno.ENOSPC, "the bucket is full")
        event.close()
        victim.wait()
        # AND at last the policy
        record = running_agent.record(victim.pid)
    assert [(one["name"], one["status"]) for one in record["dumpers"]] == [
        ("first", None),
        ("second", errno.ENOSPC),
    ]
    assert (record["outcome"], record["capture"]) == ("complete", "full")
    said = running_agent.command("info", record["id"])
    assert "second (bid 50): failed, No space left on device: the bucket is full" in said
