"""Dumpers and real crashes: who waits for whom, what a dumper sees, and what ends it.

The external dumpers are this process, or children that are killed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from collector.dumpers.client import Client
from collector.dumpers.plugin import NOMATCH, SPECIAL, HeldProcess, SparseWriter, write_core
from collector.dumpers.protocol import Message
from collector.elfcore.reader import CoreFile
from tests.system.agents import RunningAgent, agent, functions
from tests.system.victims import PATIENCE, ROOT, Victim, running, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

MOST_S = 1.0  # hold.max
SLACK_S = 20.0  # of a busy machine, for what must be over at once
UNLIMITED = "defaults: {limit: none}"
# a dumper that says that it has a process, and then nothing more
DEAF = """
import sys, time
from pathlib import Path
from collector.dumpers.client import Client
match = [("comm", "null_main")]
with Client.connect(Path(sys.argv[1]), sys.argv[2], priority=60, match=match) as client:
    print("registered", flush=True)
    for event in client.events():
        print(event.verb, flush=True)
        time.sleep(float(sys.argv[3]))
        if event.verb == "DUMP":
            client.let_go(event, 0)
"""


@pytest.fixture(scope="module")
def running_agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningAgent]:
    folder = tmp_path_factory.mktemp("agent")
    with agent(folder, config=UNLIMITED, metrics=True, hold="max: 1h, bids: 1s") as one:
        yield one
        assert not [line for line in one.lines if "Traceback" in line]


def join(one: RunningAgent, name: str, comm: str, **how: Any) -> Client:
    how = {"priority": SPECIAL, **how}
    return Client.connect(one.run_dir / "dumper", name, match=[("comm", comm)], **how)


def told(client: Client, verb: str) -> Message:
    assert select.select([client.fileno()], [], [], PATIENCE)[0], f"no {verb} came"
    event = client.receive()
    assert event.verb == verb
    return event


@contextlib.contextmanager
def deaf(one: RunningAgent, name: str, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """Another process that is a dumper, has registered, and takes so long for each message."""
    with subprocess.Popen(
        [sys.executable, "-c", DEAF, str(one.run_dir / "dumper"), name, str(seconds)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "registered\n"
            yield process
        finally:
            process.kill()


def is_dying(victim: Victim) -> bool:
    """Whether it waits, in its death."""
    status = Path(f"/proc/{victim.pid}/status").read_text()
    return "CoreDumping:\t1" in status and "State:\tZ" not in status


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


def test_nobody_waits_for_a_dumper_longer_than_hold_max(tmp_path: Path) -> None:
    with agent(tmp_path, config=UNLIMITED, hold=f"max: {MOST_S:g}s") as one:
        with deaf(one, "hangs", 1000), running("null_main", cwd=tmp_path) as victim:
            victim.go()
            victim.wait()
            record = one.record(victim.pid)
        assert MOST_S * 1e3 <= record["held_ms"] < (MOST_S + SLACK_S) * 1e3
        (dumper,) = record["dumpers"]
        assert dumper["status"] is None
        assert dumper["note"].startswith("it was not done in time")
        assert (record["outcome"], record["release"]) == ("complete", "instant")
        # WHEN dumpers are killed again and again while processes die
        pids = []
        for number in range(5):
            with deaf(one, f"unlucky-{number}", 0.05) as dumper_process:
                victims = []
                with contextlib.ExitStack() as alive:
                    for _ in range(4):
                        victims.append(alive.enter_context(running("null_main", cwd=tmp_path)))
                    for victim in victims:
                        victim.go()
                    time.sleep(random.uniform(0, 0.1))  # (any moment will do)
                    dumper_process.kill()
                    for victim in victims:
                        assert victim.wait() == -signal.SIGSEGV
                pids += [victim.pid for victim in victims]
        # THEN each death is on record, and nobody was held longer than that
        records = [one.record(pid) for pid in pids]
        assert {record["outcome"] for record in records} <= {"complete", "handled"}
        assert max(record["held_ms"] for record in records) < (MOST_S + SLACK_S) * 1e3


def test_a_killed_agent_releases_what_a_dumper_has(tmp_path: Path) -> None:
    with agent(tmp_path, config=UNLIMITED) as one:
        with join(one, "mine", "null_main") as client, running("null_main", cwd=tmp_path) as victim:
            victim.go()
            told(client, "DUMP").close()
            # WHEN the agent is killed
            one.process.kill()
            # THEN the process goes, and the next agent has it on record
            assert victim.wait() == -signal.SIGSEGV
        one.restart()
        record = one.record(victim.pid)
        assert (record["late"], record["core"]) == (True, None)


def test_a_plugin_has_the_process_as_a_user_of_its_own(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        # GIVEN a plugin
        (folder / "site_dumper.py").write_text(
            "import os\n"
            "from pathlib import Path\n"
            "from collector.dumpers.plugin import SPECIAL, SparseWriter, write_core\n"
            "class Keeper:\n"
            "    def probe(self, process):\n"
            "        return SPECIAL if process.threads() and process.mappings() else -1\n"
            "    def handle(self, process, limit):\n"
            f"        with open('{folder}/core', 'wb') as file:\n"
            "            write_core(process, SparseWriter(file.fileno()), limit=limit)\n"
            "        self.note = f'uid {os.getuid()}'\n"
        )
        config = (
            f"{UNLIMITED}\ndumpers: [{{name: keeper, module: 'site_dumper:Keeper', user: nobody, "
            "match: {comm: threads}}]"
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(folder))
            with agent(tmp_path, config=config, metrics=True, hold="bids: 1s") as one:
                one.wait_line("dumper keeper .* is registered")
                # WHEN a process dies
                with running("threads", "20", cwd=tmp_path) as victim:
                    victim.go()
                    victim.wait()
                    record = one.record(victim.pid)
                assert record["outcome"] == "handled"
                (dumper,) = record["dumpers"]
                assert (dumper["name"], dumper["note"]) == ("keeper", "uid 65534")
                with CoreFile(folder / "core") as core:
                    assert len(core.threads) == record["threads"]
                # WHEN the policy does not name it any more, THEN it ends
                Path(one.arguments[1]).write_text(
                    Path(one.arguments[1]).read_text().partition("dumpers:")[0]
                )
                one.process.send_signal(signal.SIGHUP)
                one.wait_line("dumper keeper .* is gone: it has left")
                wait_until(lambda: not Path(f"/proc/{dumper['pid']}").exists(), "its end")
