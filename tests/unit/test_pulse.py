"""The watchdog is fed by the flow: by a task that goes through its stages, not by a clock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from collector.agent.pulse import Pulse
from collector.agent.service import Service
from collector.handoff.backends import NoBackend
from collector.linux.service_manager import ServiceManager
from collector.policy.holder import PolicyHolder
from collector.workers import Lane
from tests.service_manager import ServiceManager as Listening
from tests.unit.agent_fakes import FakeAgent, FakeLane

PATIENCE = 10.0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Busy:
    """Workers that have all been at their tasks for so long."""

    name = "capture"
    age = 0.0

    def stuck_s(self) -> float:
        return self.age


class Flow:
    """Two stages, a main thread that is woken, and what the watchdog was fed."""

    def __init__(self) -> None:
        self.clock, self.slow = Clock(), Busy()
        self.lanes = FakeLane("handoff"), FakeLane("record")
        self.fed = self.woken = 0
        self.pulse = Pulse(
            20.0, self.lanes, [(self.slow, 100.0)], self._feed, self._wake, self.clock
        )

    def _feed(self) -> None:
        self.fed += 1

    def _wake(self) -> None:
        self.woken += 1


def test_a_beat_that_comes_round_feeds_and_the_next_one_has_time() -> None:
    flow = Flow()
    assert flow.pulse.timeout_ms == 0
    # WHEN a beat has started THEN nothing is fed, however long the main thread looks
    flow.pulse.look()
    flow.clock.now = 1000.0
    flow.pulse.look()
    assert (flow.fed, flow.pulse.timeout_ms) == (0, -1)
    # AND WHEN it has gone through one stage THEN neither
    assert flow.lanes[0].run()
    flow.pulse.look()
    assert (flow.fed, flow.woken) == (0, 0)
    # AND WHEN it is round THEN the main thread is woken, and feeds
    assert flow.lanes[1].run()
    assert flow.woken == 1
    flow.pulse.look()
    assert (flow.fed, flow.pulse.timeout_ms) == (1, 5000)
    # AND the next one starts after a quarter of the watchdog's time, not before
    flow.clock.now += 4.9
    flow.pulse.look()
    assert flow.lanes[0].waiting == 0
    flow.clock.now += 0.1
    flow.pulse.look()
    assert flow.lanes[0].waiting == 1


def test_a_beat_comes_before_what_waits_and_one_that_is_lost_is_tried_again() -> None:
    # GIVEN a second stage that is full
    flow = Flow()
    flow.lanes[1].limit = 0
    flow.pulse.look()
    flow.lanes[0].run()
    # THEN the main thread is woken, feeds nothing, and tries again soon
    assert flow.woken == 1
    flow.pulse.look()
    assert (flow.fed, flow.pulse.timeout_ms) == (0, 200)
    # AND WHEN there is room again, behind other work
    flow.lanes[1].limit = 10
    done: list[str] = []
    flow.lanes[1].submit(lambda: done.append("a record"))
    flow.clock.now += 0.2
    flow.pulse.look()
    flow.lanes[0].run()
    # THEN it comes first
    flow.lanes[1].tasks[0][0]()
    flow.pulse.look()
    assert (flow.fed, done) == (1, [])


def test_nothing_is_fed_while_all_writers_are_at_one_core_for_too_long(
    caplog: pytest.LogCaptureFixture,
) -> None:
    flow = Flow()

    def beat() -> None:
        flow.clock.now += 5.0
        flow.pulse.look()
        flow.lanes[0].run()
        flow.lanes[1].run()
        flow.pulse.look()

    flow.slow.age = 99.0
    beat()
    assert flow.fed == 1
    # WHEN they take longer than a core can THEN it is not fed, and said once
    flow.slow.age = 101.0
    beat()
    beat()
    assert flow.fed == 1
    assert [record.message for record in caplog.records] == [
        "capture: no worker has ended its task for 101 s: the agent hangs"
    ]
    # AND WHEN one of them is free THEN it is fed again
    flow.slow.age = 0.0
    beat()
    assert flow.fed == 2


class Gate:
    """A task that does not end until it is told."""

    def __init__(self) -> None:
        self.running, self.go = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.running.set()
        assert self.go.wait(PATIENCE)


class Running:
    """The service of an agent whose two stages are real lanes, with a loop as the agent's."""

    def __init__(self, agent: FakeAgent, listening: Listening) -> None:
        self.handoffs, self.records = Lane("handoff", 2, 10), Lane("record", 1, 10)
        agent.context.probe, agent.context.backend = None, NoBackend("it is a test")
        agent.context.policy = PolicyHolder(None)
        lanes = agent.context.lanes
        lanes.handoffs, lanes.records = self.handoffs, self.records
        lanes.captures = Lane("capture", 1, 1)
        self.woken = threading.Event()
        manager = ServiceManager(listening.address, watchdog_s=0.04)
        self.service = Service(manager, agent.context, self.woken.set)
        self.looked = 0
        self.stopped = False
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    def _loop(self) -> None:
        self.service.ready(None)
        while not self.stopped:
            timeout_ms = self.service.timeout_ms
            self.woken.wait(timeout_ms / 1000 if timeout_ms >= 0 else PATIENCE)
            self.woken.clear()
            self.service.look()
            self.looked += 1

    def has_looked(self, times: int) -> bool:
        return self.looked >= times

    def close(self) -> None:
        self.stopped = True
        self.woken.set()
        self._thread.join(PATIENCE)
        self.handoffs.close()
        self.records.close()


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Listening]:
    with Listening(tmp_path) as one:
        yield one


@pytest.mark.parametrize("stage", ["handoffs", "records"])
def test_a_flow_that_is_stuck_is_not_fed_until_it_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listening: Listening, stage: str
) -> None:
    # GIVEN a service that is fed
    running = Running(FakeAgent(tmp_path, monkeypatch), listening)
    try:
        listening.wait_for("READY", "1")
        for _ in range(3):
            listening.wait_for("WATCHDOG", "1")
        # WHEN every worker of one stage hangs
        lane: Lane = getattr(running, stage)
        gates = [Gate() for _ in range(2 if stage == "handoffs" else 1)]
        for gate in gates:
            assert lane.submit(gate)
            assert gate.running.wait(PATIENCE)
        _until(lambda: lane.waiting == 1)  # the beat that was on its way, or the next one
        fed = _fed(listening)
        # THEN nothing is fed any more, though the main thread goes on
        looked = running.looked
        for turn in range(1, 11):
            running.woken.set()
            _until(partial(running.has_looked, looked + turn))
        assert _fed(listening) == fed
        # AND WHEN one of them moves THEN it is fed
        gates[0].go.set()
        listening.wait_for("WATCHDOG", "1")
        for gate in gates:
            gate.go.set()
    finally:
        running.close()


def _fed(listening: Listening) -> int:
    return sum("WATCHDOG" in message for message in listening.told)


def _until(is_so: Callable[[], bool]) -> None:
    """Spin until another thread has got there."""
    barrier = threading.Event()
    for _ in range(int(PATIENCE * 1000)):
        if is_so():
            return
        barrier.wait(0.001)
    raise AssertionError("it does not come to that")
