"""Looking at a process that a dumper has, from outside."""

from __future__ import annotations

import os
import queue
from pathlib import Path

import pytest

from collector.dumpers.client import Client
from collector.dumpers.core import core_of
from collector.dumpers.desk import Dumped
from collector.dumpers.dumper import Bid
from collector.dumpers.hub import MAX_DUMPERS
from collector.dumpers.look import Look, held_now
from collector.dumpers.plugin import SPECIAL, SparseWriter, write_core
from collector.dumpers.protocol import Message, message, receive, send
from collector.errors import ProcessError
from tests.unit.live_event import SECRET, living
from tests.unit.test_dumpers_hub import FACTS, PATIENCE, connection
from tests.unit.test_dumpers_process import Outside, outside

__all__ = ["outside"]  # (a fixture)


def given(
    outside: Outside, client: Client, event: Message, *, held: bool = True
) -> tuple[Message, queue.SimpleQueue[Dumped]]:
    """A process that this dumper has."""
    bids: queue.SimpleQueue[list[Bid]] = queue.SimpleQueue()
    outside.hub.ask(FACTS, event, held=held, done=bids.put)
    (bid,) = bids.get(timeout=PATIENCE)
    done: queue.SimpleQueue[Dumped] = queue.SimpleQueue()
    outside.hub.dump(bid, event, held=held, done=done.put)
    return client.receive(), done


def test_it_is_the_core_that_its_dumper_would_write(outside: Outside, tmp_path: Path) -> None:
    # GIVEN a dumper that has a process
    with (
        Client.connect(outside.path, "mine", priority=SPECIAL) as client,
        living() as (event, address),
    ):
        pid = int(event.get("pid") or 0)
        assert held_now(outside.path) == []
        dump, done = given(outside, client, event)
        # WHEN somebody else looks
        assert held_now(outside.path) == [pid]
        with Look(outside.path, pid) as look:
            assert look.process.read(address, len(SECRET)) == SECRET
            image = core_of(look.process)
            # THEN the bytes are those of the core that the dumper writes
            with open(tmp_path / "core", "w+b") as file:
                write_core(look.process, SparseWriter(file.fileno()))
                assert os.fstat(file.fileno()).st_size == image.size
                assert image.read(0, 8192) == os.pread(file.fileno(), 8192, 0)
            look.check()
            # WHEN the dumper is done with it
            client.let_go(dump, 0)
            assert done.get(timeout=PATIENCE).status == 0
            # THEN whoever looks knows by then
            with pytest.raises(ProcessError, match="not held any more"):
                look.check()
        dump.close()
        assert held_now(outside.path) == []
        with pytest.raises(ProcessLookupError, match=f"no dumper has process {pid}"):
            Look(outside.path, pid)


def test_who_looks_keeps_nobody_and_needs_no_descriptor_of_the_dumper(outside: Outside) -> None:
    with Client.connect(outside.path, "mine", priority=SPECIAL) as client, living() as (event, _):
        before = len(list(Path("/proc/self/fd").iterdir()))
        dump, done = given(outside, client, event)
        with Look(outside.path, int(event.get("pid") or 0)) as look:
            assert look.process.name == "python3"
        # WHEN the dumper ends, with the look closed before
        client.let_go(dump, 0)
        dump.close()
        assert done.get(timeout=PATIENCE).status == 0
        # THEN nothing is left open
        outside.hub.dismiss("mine")
        assert client.receive().verb == "UNREGISTERED"
        assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_a_process_that_does_not_wait_is_not_shown(outside: Outside) -> None:
    with (
        Client.connect(outside.path, "mine", priority=SPECIAL, pin=True) as client,
        living() as (event, _),
    ):
        dump, _ = given(outside, client, event, held=False)
        assert held_now(outside.path) == []
        dump.close()


def test_who_looks_is_bounded_and_has_nothing_else_to_say(outside: Outside) -> None:
    with Client.connect(outside.path, "mine", priority=SPECIAL) as client, living() as (event, _):
        pid = int(event.get("pid") or 0)
        dump, _ = given(outside, client, event)
        looks = [Look(outside.path, pid) for _ in range(MAX_DUMPERS)]
        with pytest.raises(ProcessError, match="too many look already"):
            Look(outside.path, pid)
        # dumpers can register even so
        Client.connect(outside.path, "another", priority=SPECIAL).close()
        for look in looks:
            look.__exit__(None, None, None)
        with connection(outside.hub) as raw:
            send(raw, message("LOOK", version=1, pid=pid))
            receive(raw).close()
            send(raw, message("REGISTER", version=1, name="x", priority=1))
            refused = receive(raw)
            assert refused.verb == "REFUSED"
            assert "nothing more to say" in (refused.get("why") or "")
        dump.close()
