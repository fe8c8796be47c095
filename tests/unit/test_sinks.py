"""Who is told of a death: as policy says, with the stages of an agent around it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from collector.agent.loop import Agent
from collector.handoff.backends import NoBackend
from collector.model import Cause, Record
from collector.policy.types import OtlpSettings, SinkSettings
from collector.sinks import journal, otlp, sinks
from collector.store.store import Store
from tests.unit.agent_fakes import FakeAgent, agents
from tests.unit.event_samples import ended, fatal
from tests.unit.store_samples import SEGFAULT
from tests.unit.test_sinks_journal import Receiver

Make = Callable[..., FakeAgent]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    with agents(tmp_path, monkeypatch) as maker:
        yield maker


@pytest.fixture
def receiver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    made = Receiver(tmp_path / "journal")
    monkeypatch.setattr(journal.Journal.__init__, "__defaults__", (made.path,))
    yield made
    made.close()


class FakeOtlp:
    """Takes ids, and sends none."""

    made: ClassVar[list[FakeOtlp]] = []

    def __init__(self, settings: OtlpSettings, store: Path) -> None:
        self.settings, self.ids, self.closed = settings, list[str](), False
        self.sent, self.lost = 0, 0
        FakeOtlp.made.append(self)

    def put(self, record: str) -> None:
        self.ids.append(record)

    def tend(self) -> None:
        self.sent = len(self.ids)

    def close(self, patience: float) -> None:
        self.closed, self.lost = True, len(self.ids) - self.sent


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[FakeOtlp]:
    monkeypatch.setattr(FakeOtlp, "made", [])
    monkeypatch.setattr(otlp, "Otlp", FakeOtlp)
    return FakeOtlp.made


def die(agent: FakeAgent) -> Record:
    agent.probe.tell(fatal())
    agent.hand_over()
    agent.probe.tell(ended())
    agent.settle()
    return agent.record()


AT = OtlpSettings(endpoint="http://127.0.0.1:1/v1/logs")


def test_each_sink_is_told_of_a_death(make: Make, receiver: Receiver, made: list[FakeOtlp]) -> None:
    # GIVEN an agent whose policy has both
    agent = make()
    told = agent.context.sinks
    told.configure(SinkSettings(journal=True, otlp=AT))
    # WHEN a process dies THEN both know of it, once
    record = die(agent)
    assert receiver.receive()["COREWARD_ID"] == record.id
    assert made[0].ids == [record.id]
    told.tend()
    assert (told.sent(), told.lost()) == ({"journal": 1, "otlp": 1}, {"journal": 0, "otlp": 0})


def test_what_could_not_be_stored_is_read_later(
    make: Make, made: list[FakeOtlp], monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a disk that is full
    from collector.agent.export import store_again  # noqa: PLC0415
    from collector.errors import StoreError  # noqa: PLC0415

    agent = make()
    agent.context.sinks.configure(SinkSettings(otlp=AT))
    put = agent.store.put

    def full(record: Record) -> None:
        raise StoreError("no room")

    monkeypatch.setattr(agent.store, "put", full)
    agent.probe.tell(fatal())
    agent.hand_over()
    agent.probe.tell(ended())
    agent.settle()
    # THEN who reads the store is told when the record is there
    assert made[0].ids == []
    monkeypatch.setattr(agent.store, "put", put)
    store_again(agent.context)
    assert made[0].ids == [agent.record().id]


def test_a_reload_changes_who_is_told(
    tmp_path: Path, receiver: Receiver, made: list[FakeOtlp]
) -> None:
    with Store(tmp_path / "store", create=True) as store:
        told = sinks.Sinks(store)
        assert not told.waiting
        told.configure(SinkSettings(journal=True, otlp=AT))
        told.tell(SEGFAULT, stored=True)
        told.tell(SEGFAULT, stored=True)
        # WHEN the settings are the same THEN nothing is begun anew
        told.configure(SinkSettings(journal=True, otlp=AT))
        assert len(made) == 1
        # WHEN they are others THEN what the first had in hand is counted, and the next is told
        other = OtlpSettings(endpoint=AT.endpoint, timeout=1.0)
        told.configure(SinkSettings(otlp=other))
        told.tell(SEGFAULT, stored=True)
        assert (made[0].closed, made[0].ids) == (True, [SEGFAULT.id] * 2)
        assert (made[1].settings, made[1].ids) == (other, [SEGFAULT.id])
        assert (told.sent(), told.lost()) == ({"journal": 2, "otlp": 0}, {"journal": 0, "otlp": 2})
        # AND at the end all of it
        told.close(0.0)
        assert told.lost() == {"journal": 0, "otlp": 3}


def test_the_agent_wakes_for_what_waits(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    # GIVEN no journal, and a death
    agent = make()
    waits: list[int] = []
    monkeypatch.setattr(journal.Journal.__init__, "__defaults__", ("/nonexistent",))
    agent.native.wait = lambda *args: waits.append(args[-1])  # type: ignore[attr-defined]
    agent.probe.fileno = lambda: -1  # type: ignore[attr-defined]
    agent.context.sinks.configure(SinkSettings(journal=True))
    agent.context.backend = NoBackend("none")
    loop = Agent(agent.context)
    loop._storms = SimpleNamespace(timeout_ms=-1)  # type: ignore[assignment]
    loop._wait()
    agent.context.sinks.tell(SEGFAULT, stored=True)
    loop._wait()
    # THEN it looks soon after
    assert 0 < waits[1] <= 5000 and not 0 <= waits[0] <= waits[1]


def test_nothing_is_loaded_that_nobody_wants(make: Make) -> None:
    loaded = ("collector.sinks.journal", "collector.sinks.otlp", "collector.sinks.otlp_document")
    for name in loaded:
        sys.modules.pop(name, None)
    agent = make()
    agent.context.sinks.configure(SinkSettings())
    die(agent)
    assert not [name for name in loaded if name in sys.modules]
    assert agent.record().cause is Cause.SIGNAL
