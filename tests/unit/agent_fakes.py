"""An agent's stages without a kernel: fakes for the probe, the hand-off and what was gathered.

    agent = FakeAgent(tmp_path, policy="defaults: {capture: stacks}")
    agent.probe.tell(fatal()); agent.hand_over(); agent.probe.tell(ended()); agent.settle()
    agent.records()

Lanes work when `settle` is called, in the order in which they hand work on; nothing runs beside.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

from collector.agent.context import Context
from collector.agent.events import take_events
from collector.agent.flow import handle
from collector.capture.job import Explainable, Failed, Job, WriterAnswer, Written
from collector.capture.space import AskForRoom
from collector.explain.types import Explanation
from collector.export.metrics import Metrics
from collector.handoff.handoff import HandOff
from collector.handoff.native import Taken
from collector.linux.memory import LevelKey
from collector.model import Capture, Event, ProcessKey, Record
from collector.native.contract import FILES, OWNER_DEVICE
from collector.policy.load import loads
from collector.probe.tallies import Tally
from collector.store.store import Store
from tests.unit.event_samples import KEY

OWNER = LevelKey(OWNER_DEVICE, 1000)  # of all its processes
_NO_LIMIT = resource.RLIM_INFINITY
_TEXTS = {  # of a process that started at tick 5000
    "stat": b"812 (victim) S 1" + b" 0" * 17 + b" 5000" + b" 0" * 30,
    "status": b"Name:\tvictim\nUid:\t1000\t1000\t1000\t1000\nGid:\t100\t100\t100\t100\n"
    b"VmRSS:\t4 kB\nNSpid:\t812\n",
    "cmdline": b"victim\0-x\0",
    "auxv": b"",
    "cgroup": b"0::/system.slice/victim.service\n",
    "coredump_filter": b"33",
    "descriptors": b"3\x000 /dev/null\x001 pipe:[7]\x00",
    "maps": b"",
}


class FakeLane:
    """A lane whose tasks wait for `run`."""

    def __init__(self, name: str, limit: int = 1000) -> None:
        self.name = name
        self.limit = limit
        self.tasks: list[tuple[Callable[[], None], Callable[[], None] | None]] = []
        self.each_s = 0.05

    def submit(
        self,
        task: Callable[[], None],
        *,
        first: bool = False,
        dropped: Callable[[], None] | None = None,
        owner: object = None,
        size: int = 0,
    ) -> bool:
        if len(self.tasks) >= self.limit:
            return False
        self.tasks.insert(0 if first else len(self.tasks), (task, dropped))
        return True

    @property
    def waiting(self) -> int:
        return len(self.tasks)

    def waiting_of(self, owner: object) -> int:
        """It has one owner's."""
        return len(self.tasks)

    def run(self) -> bool:
        """Work off what waits; whether that was anything."""
        tasks, self.tasks = self.tasks, []
        for task, _ in tasks:
            task()
        return bool(tasks)

    def drop(self) -> None:
        """What closing the lane does to what waits."""
        tasks, self.tasks = self.tasks, []
        for _, dropped in tasks:
            if dropped is not None:
                dropped()


class FakeLanes:
    def __init__(self) -> None:
        self.handoffs, self.captures = FakeLane("handoff"), FakeLane("capture")
        self.records, self.explains = FakeLane("record"), FakeLane("explain")
        self.kills, self.copies = FakeLane("kill"), FakeLane("copy")
        self.units, self.dumps = FakeLane("unit"), FakeLane("dump")
        self.writers = 3

    def all(self) -> tuple[FakeLane, ...]:
        lanes = self.handoffs, self.dumps, self.records, self.copies, self.captures, self.explains
        return (*lanes, self.kills, self.units)


class FakeTallies:
    """What BPF only counted."""

    def __init__(self) -> None:
        self.found: dict[bytes, Tally] = {}

    def all(self) -> list[Tally]:
        return list(self.found.values())

    def remove(self, tally: Tally) -> Tally | None:
        return self.found.pop(tally.key, None)


class FakeProbe:
    """BPF: events that a test tells, and which deaths it may forget."""

    attached_ns = 0
    since_s = float("inf")

    def __init__(self) -> None:
        self._waiting: list[Event] = []
        self.settled: list[ProcessKey] = []
        self.tallies = FakeTallies()
        self.replaced_tallies: list[Tally] = []

    def tell(self, *events: Event) -> None:
        self._waiting += events

    def drain(self, most: int | None = None) -> list[Event]:
        waiting, self._waiting = self._waiting[:most], self._waiting[len(self._waiting[:most]) :]
        return waiting

    def tallied(self) -> int:
        return sum(tally.count for tally in self.tallies.found.values())

    def recorded(self, key: ProcessKey) -> None:
        self.settled.append(key)

    def was_taken(self, key: ProcessKey) -> bool:
        return False


class FakeHandOff(HandOff):
    """A held process; `released` says when it was let go, as a number in the order of events."""

    backend = "socket"

    def __init__(self, agent: FakeAgent, pid: int = KEY.pid) -> None:
        super().__init__(-1, pid, -1, time.monotonic_ns(), False)
        self.signal = 11
        self._agent = agent

    def release(self) -> float:
        if self._held_ms is None:
            self._held_ms = 1.5
            self._agent.log.append("released")
        return self._held_ms


class FakePin:
    def __init__(self, agent: FakeAgent) -> None:
        self._agent = agent

    def release(self) -> None:
        self._agent.log.append("unpinned")


class FakeNative:
    def __init__(self) -> None:
        self.in_hand: list[ProcessKey] = []
        self.spared: list[ProcessKey] = []

    def has_in_hand(self, key: ProcessKey) -> bool:
        return any(key.is_same(other) for other in self.in_hand)

    def joined(self, key: ProcessKey) -> None:
        self.in_hand = [other for other in self.in_hand if not key.is_same(other)]

    def was_spared(self, key: ProcessKey) -> bool:
        return key in self.spared

    def expect(self, capture_s: float) -> None:
        """It has no storms."""

    def entered(self, size: int, levels: tuple[LevelKey, ...] = ()) -> None:
        """It has an account of its own in the real one."""


class FakeRecorder:
    def ask_calls(self, record: Record, answered: object, *, texts: bool) -> bool:
        """No trace rule."""
        return False

    def ask(self, record: Record, answered: object) -> bool:
        """No watch rule."""
        return False


class FakePolicy:
    def __init__(self, text: str) -> None:
        self.policy = loads(text, "test")


@contextlib.contextmanager
def agents(folder: Path, monkeypatch: Any, usual: str = "") -> Iterator[Callable[..., FakeAgent]]:
    """What makes them, each with a policy; they are closed at the end."""
    made: list[FakeAgent] = []

    def make(policy: str = usual) -> FakeAgent:
        made.append(FakeAgent(folder, monkeypatch, policy))
        return made[-1]

    yield make
    for agent in made:
        agent.close()


class FakeAgent:
    """The stages, wired as the agent wires them. `log`: what happened to processes, in order."""

    def __init__(self, folder: Path, monkeypatch: Any, policy: str = "") -> None:
        self.log: list[str] = []
        self.announced: list[Record] = []
        self.answer: Written | Failed = Written(capture=Capture.FULL, name="core.zst", memory=1)
        self.secrets: dict[str, list[str]] = {}  # that are told with the small core
        self.jobs: list[Job] = []
        self.explanation = Explanation(frames=[])
        self.probe, self.lanes, self.native = FakeProbe(), FakeLanes(), FakeNative()
        self.store = Store(folder / "store", create=True)
        self.writes: list[Record] = []
        self._count_writes(monkeypatch)
        self.context = Context(
            policy=FakePolicy(policy),  # type: ignore[arg-type]
            probe=self.probe,  # type: ignore[arg-type]
            store=self.store,
            backend=None,  # type: ignore[arg-type]
            metrics=Metrics(),
            announce=self.announced.append,
            lanes=self.lanes,  # type: ignore[arg-type]
            recorder=FakeRecorder(),  # type: ignore[arg-type]
            native=self.native,  # type: ignore[arg-type]
            boot_id="0" * 32,
            has_journal=False,
        )
        stages = "collector.agent"
        monkeypatch.setattr(f"{stages}.write.run_writer", self._write)
        monkeypatch.setattr(f"{stages}.explain.os.dup", lambda fd: fd)
        monkeypatch.setattr(f"{stages}.explain.explain_core", lambda *_, **__: self.explanation)
        monkeypatch.setattr(f"{stages}.explain.Files.close", lambda _: None)

    def _count_writes(self, monkeypatch: Any) -> None:
        put = self.store.put

        def counted(record: Record) -> None:
            self.writes.append(record)
            put(record)

        monkeypatch.setattr(self.store, "put", counted)

    def _write(self, job: Job, _: AskForRoom) -> Generator[WriterAnswer, None, None]:
        self.jobs.append(job)
        self.log.append(f"written as {job.capture.value}")
        if job.explain:
            core = os.open(os.devnull, os.O_RDONLY)
            yield Explainable(3, "worker-3", None, core=core, secrets=self.secrets)
        yield self.answer

    def close(self) -> None:
        """Give its descriptors back; the garbage collector takes its time."""
        self.store.close()

    def taken(
        self,
        *,
        pinned: bool = True,
        core_limit: int = _NO_LIMIT,
        others: int = 0,
        spared: bool = False,
        unopened: int = 0,
    ) -> Taken:
        """What comes of the native part; `pinned`: it has released the process; `spared`: without
        a pin."""
        handoff = FakeHandOff(self)
        if pinned or spared:
            handoff.release()
        return Taken(
            handoff=handoff,
            key=KEY,
            why="",
            tid=KEY.pid,
            files=dict.fromkeys(FILES, -1),
            texts=_TEXTS,
            threads=memoryview(b""),
            mappings=memoryview(b""),
            words=[],
            shared_fds={},
            code_fds={},
            unopened=unopened,
            core_limit=core_limit,
            address=0,
            others=others,
            spared=spared,
            pin=FakePin(self) if pinned and not spared else None,  # type: ignore[arg-type]
            size=4096,
            levels=(OWNER,) if pinned else (),
            owner=OWNER,
        )

    def hand_over(self, **how: Any) -> None:
        """The kernel hands the process over, and a worker sees to it. how: as for `taken`."""
        handle(self.context, self.taken(**how))

    def take_events(self) -> None:
        take_events(self.context)

    def settle(self) -> None:
        """Take in all events, and work until nothing waits."""
        self.take_events()
        while sum(lane.run() for lane in self.lanes.all()):
            self.take_events()

    def record(self) -> Record:
        (record,) = self.store.list()
        return record
