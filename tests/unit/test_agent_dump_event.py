"""What a dumper is told of a process, from what the agent has gathered: of one that lives."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from collector.agent.crash import Crash, Decided
from collector.agent.dump_event import Event
from collector.agent.gather import Gathered
from collector.capture.image import decode_maps
from collector.capture.job import Patch
from collector.capture.process import OpenProcess
from collector.dumpers.plugin import HeldProcess, SparseWriter, write_core
from collector.dumpers.protocol import MAX_PACKET, Message, encode
from collector.elfcore.reader import CoreFile
from collector.elfcore.types import VM_EXEC, VM_READ, VM_WRITE, Prot
from collector.handoff.handoff import HandOff
from collector.model import Capture, Cause, ProcessKey
from collector.policy.limit import Admission
from collector.policy.match import decide
from collector.policy.types import Facts
from collector.probe.iterators import HAS_ANON_VMA, IS_SPECIAL
from tests.unit.agent_fakes import FakeAgent, agents
from tests.unit.live_event import SECRET, living
from tests.unit.test_probe_iterator_output import mapping, thread

Make = Callable[[], tuple[FakeAgent, Crash]]


def raw_mappings(pid: int) -> bytes:
    """As the iterator of BPF tells them; all private ones have pages of their own."""
    found = b""
    for m in decode_maps(Path(f"/proc/{pid}/maps").read_bytes()):
        flags = 0
        for bit, vm in ((Prot.R, VM_READ), (Prot.W, VM_WRITE), (Prot.X, VM_EXEC)):
            flags |= vm if m.prot & bit else 0
        found += mapping(
            m.start,
            m.end,
            HAS_ANON_VMA | (IS_SPECIAL if (m.path or "").startswith("[v") else 0),
            os.fsencode(m.path or ""),
            vm=flags,
        )
    return found


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    with contextlib.ExitStack() as opened, agents(tmp_path, monkeypatch) as maker:

        def of() -> tuple[FakeAgent, Crash]:
            agent = maker("defaults: {memory: {max: 1GiB}}")
            event, address = opened.enter_context(living())
            pid = int(event.get("pid") or 0)
            dying = opened.enter_context(OpenProcess(pid))
            crash = Crash(ProcessKey(pid, 5000))
            hold, write = os.pipe()
            os.close(write)
            handoff = HandOff(hold, pid, os.pidfd_open(pid), 0, False)
            opened.callback(handoff.release)
            crash.gathered = Gathered(
                handoff=handoff,
                dying=dying,
                threads=memoryview(thread(pid + 1000) + thread(pid + 1001)),
                mappings=memoryview(raw_mappings(pid)),
                head=None,
                patches=[Patch(address, b"WORD")],
                shared_fds={},
                unopened=0,
                address=address,
                others=0,
                spared=False,
                pin=None,
                size=0,
                open=contextlib.ExitStack(),
            )
            facts = Facts(cause=Cause.SIGNAL, signal=11, exe="/bin/a\nb", unit="a.service")
            crash.decided = Decided(
                facts=facts,
                decision=decide(agent.context.policy.policy, facts),
                admission=Admission(capture=Capture.FULL, reason=None),
                explain=True,
            )
            return agent, crash

        yield of


@contextlib.contextmanager
def told(agent: FakeAgent, crash: Crash, *, held: bool) -> Iterator[Message]:
    with Event(agent.context, crash, held=held) as event:
        said = event.dump()
        held_too = (("held", "yes" if held else "no"), *said.fields)
        yield Message("DUMP", held_too, said.fds)


def test_a_held_process_with_all_that_can_be_seen_of_it(make: Make, tmp_path: Path) -> None:
    agent, crash = make()
    pid, address = crash.key.pid, crash.gathered.address
    with told(agent, crash, held=True) as said:
        assert len(encode(said)) < MAX_PACKET
        process = HeldProcess(said)
        assert (process.pid, process.signal, process.exe) == (pid, 11, "/bin/a\nb")
        assert (process.limit, process.unit, process.start_ns) == (1 << 30, "a.service", 5000)
        assert process.arguments[1:3] == ["-S", "-c"]
        assert sorted(said.fds) == sorted(
            ["pidfd", "proc", "mem", "pagemap", "root", "exe", "maps", "mappings", "notes"]
        )
        assert [one.tid for one in process.threads()] == [pid, pid + 1]
        assert process.read(address, len(SECRET)) == SECRET
        # THEN its mappings have the kernel's flags, and the names of /proc
        text = decode_maps(Path(f"/proc/{pid}/maps").read_bytes())
        assert [(m.start, m.end, m.path) for m in process.mappings()] == [
            (m.start, m.end, m.path) for m in text
        ]
        assert all(m.vm_flags is not None for m in process.mappings())
        # AND its core has its memory
        with open(tmp_path / "core", "wb") as file:
            write_core(process, SparseWriter(file.fileno()))
        with CoreFile(tmp_path / "core") as core:
            assert core.read(address, len(SECRET)) == SECRET


def test_pinned_memory_with_the_words_that_its_end_has_changed(make: Make) -> None:
    agent, crash = make()
    with told(agent, crash, held=False) as said:
        process = HeldProcess(said)
        # THEN there is nothing that only a process has
        assert not {"pidfd", "proc"} & said.fds.keys()
        assert process.words() == [(crash.gathered.address, b"WORD")]
        # AND its mappings are told as /proc would
        text = os.pread(said.fds["maps"], 1 << 20, 0)
        starts = [m.start for m in decode_maps(Path(f"/proc/{process.pid}/maps").read_bytes())]
        assert [m.start for m in decode_maps(text)] == starts


def test_nobody_can_change_what_others_are_told(make: Make) -> None:
    agent, crash = make()
    with told(agent, crash, held=False) as said:
        for name in ("maps", "mappings", "notes", "words"):
            with pytest.raises(OSError):
                os.pwrite(said.fds[name], b"x", 0)
            with pytest.raises(OSError):
                os.ftruncate(said.fds[name], 0)
        with pytest.raises(OSError):
            os.pwrite(said.fds["mem"], b"x", crash.gathered.address)


def test_descriptors_that_were_made_for_it_are_closed(make: Make) -> None:
    agent, crash = make()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for held in (True, False):
        with told(agent, crash, held=held):
            pass
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_probe_of_many_threads_has_no_notes(make: Make) -> None:
    agent, crash = make()
    crash.gathered.threads = memoryview(thread(2000) * 10_000)
    with Event(agent.context, crash, held=True) as event:
        assert "notes" not in event.probe().fds
        assert "maps" in event.probe().fds


def test_damaged_records_leave_parts_out(make: Make) -> None:
    agent, crash = make()
    crash.gathered.mappings = memoryview(b"\xff" * 100)
    with told(agent, crash, held=False) as said:
        assert not {"maps", "notes"} & said.fds.keys()
        assert "mem" in said.fds
