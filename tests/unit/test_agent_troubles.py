"""What goes wrong in the agent itself: nobody stays held, every record is closed."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from collector import proof
from collector.agent.events import ended as end_of
from collector.agent.export import store_again
from collector.agent.flow import handle
from collector.errors import StoreError
from collector.handoff.coredump_socket import SocketBackend
from collector.handoff.native import Native
from collector.model import Outcome, ProcessKey, Record, Sender
from collector.native.build import build_library
from tests.unit.agent_fakes import FakeAgent
from tests.unit.event_samples import KEY, ended, fatal, who

Make = Callable[..., FakeAgent]
IGNORED = "defaults: {capture: none}"


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    with contextlib.ExitStack() as stores:

        def one(policy: str = "") -> FakeAgent:
            made = FakeAgent(tmp_path, monkeypatch, policy)
            stores.enter_context(made.store)
            return made

        yield one


@pytest.mark.parametrize("policy", ["", IGNORED], ids=["recorded", "ignored"])
def test_without_bpf_nothing_waits_for_ends(make: Make, policy: str) -> None:
    # GIVEN an agent without BPF, which nobody tells the ends of processes
    agent = make(policy)
    agent.context.probe = None
    # WHEN a process was handed over, and all is done
    agent.hand_over()
    agent.settle()
    # THEN nothing of it is remembered
    assert not agent.context.registry.waits


@pytest.mark.parametrize("policy", ["", IGNORED], ids=["recorded", "ignored"])
def test_without_bpf_a_hand_off_that_came_to_nothing_is_on_record(make: Make, policy: str) -> None:
    # GIVEN an agent without BPF
    agent = make(policy)
    agent.context.probe = None
    # WHEN a process could not be gathered, and was let go
    why = "it was not released in time (hold.patience)"
    handle(agent.context, dataclasses.replace(agent.taken(pinned=False), why=why))
    agent.settle()
    # THEN what is known of it is on record, unless policy wants none
    found = agent.store.list()
    if policy:
        assert found == []
        return
    (record,) = found
    assert (record.pid, record.uid, record.unit) == (KEY.pid, 1000, "victim.service")
    assert (record.comm, record.outcome) == ("victim", Outcome.RECORDED)
    assert why in record.lost["core"]
    assert agent.announced == [record]


@pytest.mark.parametrize("policy", ["", IGNORED], ids=["recorded", "ignored"])
def test_a_worker_that_is_done_before_the_end_is_noted(
    make: Make, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    # GIVEN an end that is being noted while the process is still to be looked at
    agent = make(policy)
    agent.probe.tell(fatal())
    agent.take_events()
    agent.native.in_hand.append(KEY)
    in_hand = agent.native.has_in_hand

    def overtaken(key: ProcessKey) -> bool:
        # WHEN its worker does all its work meanwhile
        answer = in_hand(key)
        monkeypatch.setattr(agent.native, "has_in_hand", in_hand)
        monkeypatch.setattr(agent.context, "taking_events", threading.RLock())
        agent.hand_over()
        agent.lanes.captures.run()
        agent.lanes.explains.run()
        return answer

    monkeypatch.setattr(agent.native, "has_in_hand", overtaken)
    monkeypatch.setattr(agent.context, "taking_events", threading.RLock())
    agent.probe.tell(ended())
    agent.settle()
    # THEN the death is complete all the same
    for crash in agent.context.registry.abandoned(all_done=True):
        end_of(agent.context, crash)
    assert not agent.context.registry.waits
    assert len(agent.announced) == (0 if policy else 1)


def test_an_event_of_somebody_else_that_cannot_be_taken(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a process that was released, and a ring that cannot be read once
    agent = make()
    agent.probe.tell(fatal())
    agent.take_events()
    agent.native.in_hand.append(KEY)
    drain = agent.probe.drain

    def once(most: int) -> Any:
        monkeypatch.setattr(agent.probe, "drain", drain)
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(agent.probe, "drain", once)
    # WHEN its worker runs into that
    agent.hand_over()
    agent.probe.tell(ended())
    agent.settle()
    # THEN its place is free, and its death is on record
    assert not agent.native.in_hand
    assert "Cannot allocate memory" in agent.record().lost["core"]


@pytest.mark.parametrize("pinned", [True, False], ids=["pinned", "held"])
def test_a_writer_that_cannot_even_be_queued(
    make: Make, monkeypatch: pytest.MonkeyPatch, pinned: bool
) -> None:
    agent = make("" if pinned else "defaults: {release: after-write}")
    agent.probe.tell(fatal())

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(agent.lanes.captures, "submit", fail)
    agent.hand_over(pinned=pinned)
    agent.probe.tell(ended())
    agent.settle()
    # THEN it is let go, and its record is closed
    assert agent.log[-1] == ("unpinned" if pinned else "released")
    assert agent.announced == [agent.record()]
    assert agent.record().outcome is Outcome.FAILED
    assert agent.record().lost["core"] == "the agent failed: RuntimeError('no')"


def test_events_that_another_thread_has_taken_are_waited_for(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a thread that has taken the signal of a process from the ring, and not noted it yet
    agent = make()
    agent.probe.tell(fatal())
    agent.native.in_hand.append(KEY)
    drain = agent.probe.drain
    taken = threading.Event()
    worker = threading.Thread(target=lambda: (taken.wait(), agent.hand_over()))
    worker.start()

    def slowly(most: int) -> Any:
        found = drain(most)
        monkeypatch.setattr(agent.probe, "drain", drain)
        # WHEN the process's worker runs: it comes to the lock, or past it
        taken.set()
        worker.join(0.2)
        return found

    monkeypatch.setattr(agent.probe, "drain", slowly)
    agent.take_events()
    worker.join()
    agent.probe.tell(ended())
    agent.settle()
    # THEN its record has the signal
    assert "event" not in agent.record().lost


def test_no_descriptors_for_an_explanation(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make()
    agent.probe.tell(fatal())

    def fail(fd: int) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("collector.agent.explain.os.dup", fail)
    agent.hand_over()
    agent.probe.tell(ended())
    agent.settle()
    # THEN the core is kept
    assert (agent.record().core, agent.record().outcome) == ("core.zst", Outcome.COMPLETE)
    assert agent.record().lost == {"frames": "its files cannot be kept open: Too many open files"}


def test_a_proof_after_our_interpreter_was_replaced(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a package update that has replaced the program that this process runs
    agent = make()
    exe = os.readlink("/proc/self/exe")
    monkeypatch.setattr("collector.agent.unheld.os.readlink", lambda _: f"{exe} (deleted)")
    # WHEN a proof that the hand-off works dies
    ours = msgspec.structs.replace(who(), comm=proof.NAME, uid=0, exe=exe, ns_pid=KEY.pid)
    agent.probe.tell(fatal(who=ours, signal=proof.SIGNAL), ended(who=ours, status=proof.SIGNAL))
    agent.settle()
    # THEN it is no death
    assert not agent.announced


@pytest.mark.parametrize("parent", ["ours", "other"])
def test_a_helper_that_we_killed_is_no_death(make: Make, parent: str) -> None:
    # GIVEN a process that was killed by this agent
    agent = make()
    killer = Sender(pid=os.getpid(), uid=0, comm="python3")
    ppid = os.getpid() if parent == "ours" else os.getppid()
    child = msgspec.structs.replace(who(), ppid=ppid)
    agent.probe.tell(
        fatal(who=child, signal=9, sender=killer), ended(who=child, status=9, sender=killer)
    )
    agent.settle()
    # THEN it is on record unless it is a child of its own
    assert bool(agent.announced) == (parent == "other")


def test_a_socket_that_is_closed_again_is_the_next_agents(tmp_path: Path) -> None:
    old = SocketBackend(tmp_path / "core.sock")
    old.close()
    new = SocketBackend(tmp_path / "core.sock")
    old.close()
    assert new.path.exists()
    new.close()


class FakeLibrary:
    """Hands over a process whose descriptors are these."""

    def __init__(self, hold: int, pidfd: int) -> None:
        self._fds = hold, pidfd

    def coreward_take(self, _pool: int, raw: Any, _timeout_ms: int) -> int:
        raw.hold, raw.pidfd = self._fds
        raw.pid, raw.signal, raw.pin, raw.pin_fd, raw.watch = 5, -1, -1, -1, -1
        for index in range(len(raw.fds)):
            raw.fds[index] = -1
        return 1

    def coreward_unwatch(self, _watch: int) -> int:
        return 1

    def coreward_drop(self, _raw: Any) -> None:
        """Nothing was allocated."""


def test_what_cannot_be_taken_over_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a process that the native part has taken
    read, hold = os.pipe()
    other, pidfd = os.pipe()
    native = Native(path=build_library(tmp_path))
    native._library = FakeLibrary(hold, pidfd)  # type: ignore[assignment]

    def fail(_raw: object) -> None:
        raise MemoryError

    monkeypatch.setattr(native, "_pin", fail)
    # WHEN Python has no memory for it
    with pytest.raises(MemoryError):
        native.take()
    # THEN it is held by nobody
    assert os.read(read, 1) == os.read(other, 1) == b""
    os.close(read)
    os.close(other)


def test_a_store_that_takes_nothing_for_a_time(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    # GIVEN a store without a descriptor to spare
    agent = make("defaults: {capture: record}")
    put = agent.store.put

    def none_left(record: Record) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(agent.store, "put", none_left)
    # WHEN a process that nobody held dies, and one that was handed over
    killed = ProcessKey(KEY.pid + 1, KEY.start_ns)
    agent.probe.tell(
        msgspec.structs.replace(ended(), who=msgspec.structs.replace(who(), key=killed))
    )
    agent.probe.tell(fatal())
    agent.hand_over()
    agent.probe.tell(ended())
    agent.settle()
    # THEN both are told, and BPF's ledger keeps them for the next agent
    assert {record.pid for record in agent.announced} == {KEY.pid, killed.pid}
    assert agent.probe.settled == []
    store_again(agent.context)
    assert agent.store.list() == []
    # AND as soon as there are descriptors they are on record, as they were told
    monkeypatch.setattr(agent.store, "put", put)
    store_again(agent.context)
    assert {r.id: r for r in agent.store.list()} == {r.id: r for r in agent.announced}
    assert set(agent.probe.settled) == {KEY, killed}
    assert not len(agent.context.unstored)


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (StoreError("the disk is full"), "the disk is full"),
        (RuntimeError("a mistake"), "the agent failed: RuntimeError('a mistake')"),
    ],
)
def test_nobody_is_held_for_a_copy_that_cannot_be_begun(
    make: Make, monkeypatch: pytest.MonkeyPatch, error: Exception, why: str
) -> None:
    # GIVEN a process that shares its memory, and so waits until that is copied
    agent = make()
    agent.probe.tell(fatal())
    agent.hand_over(pinned=False, others=1)
    assert agent.log == []

    def fail(_: str) -> Path:
        raise error

    # WHEN its writer has no place to write to
    monkeypatch.setattr(agent.store, "folder", fail)
    agent.settle()
    # THEN it goes all the same, and its record says why it has no core
    assert agent.log == ["released"]
    agent.probe.tell(ended())
    agent.settle()
    record = agent.record()
    assert (record.outcome, record.lost["core"]) == (Outcome.FAILED, why)


def test_a_hand_off_that_is_looked_at_too_late_is_no_second_death(make: Make) -> None:
    # GIVEN a process that was let go by the watchdog, and whose end makes its record
    agent = make()
    agent.context.backend = SimpleNamespace(backend="socket")  # type: ignore[assignment]
    agent.probe.tell(fatal(), ended())
    agent.settle()
    # WHEN Python comes to its hand-off
    agent.hand_over(pinned=False)
    agent.settle()
    # THEN nothing is kept of that
    assert agent.log == ["released"]
    assert agent.record().lost["core"] == "the agent did not answer the kernel in time"
    assert not agent.context.registry.waits


@pytest.mark.parametrize(
    ("opened_ns", "why"),
    [
        (0, "the kernel did not hand it over: not dumpable, as after a change of user"),
        (fatal().time_ns + 1, "the agent was still starting"),
    ],
)
def test_why_there_is_no_core_depends_on_whether_it_could_be_handed_over(
    make: Make, opened_ns: int, why: str
) -> None:
    # GIVEN an agent that looks for a way by which the kernel hands crashes over, until `opened_ns`
    agent = make()
    backend = SimpleNamespace(backend="pipe", opened_ns=opened_ns)
    agent.context.backend = backend  # type: ignore[assignment]
    # WHEN a process dies, and nobody hands it over
    agent.probe.tell(fatal(), ended(status=11))
    agent.settle()
    # THEN its record does not call it what it is not
    assert agent.record().lost["core"] == why
