"""What the pipe helper noted while no agent was there: on record once, whoever else has seen it."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from collector.agent.unheld import Notes
from collector.handoff.backends import NoBackend
from collector.handoff.pipe import PipeNote
from collector.model import Cause, Record
from tests.unit.agent_fakes import FakeAgent
from tests.unit.event_samples import KEY, ended, fatal
from tests.unit.store_samples import SEGFAULT, TIME


def note(pid: int, ticks: int = 5000) -> PipeNote:
    return PipeNote(pid, pid, 11, 1000, 1000, 1, int(TIME.timestamp()), None, ticks)


def known(**differs: Any) -> Record:
    """A death on record, which began in the tick of KEY."""
    usual = {"start_ns": KEY.start_ns, "time": TIME + datetime.timedelta(seconds=2), **differs}
    return msgspec.structs.replace(SEGFAULT, **usual)


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeAgent]:
    made = FakeAgent(tmp_path, monkeypatch)
    with made.store:
        yield made


def take(agent: FakeAgent, *notes: PipeNote) -> list[int]:
    """The pids of the records that are made of notes."""
    for task in Notes(agent.context, notes).tasks():
        agent.context.record(task)
    agent.settle()
    return sorted(record.pid for record in agent.announced if record.late)


def test_what_only_the_helper_saw_is_on_record(agent: FakeAgent) -> None:
    assert take(agent, note(812), note(813)) == [812, 813]
    record = agent.announced[0]
    assert record.lost["core"] == "no agent answered the helper"
    assert (record.signal_name, record.uid) == ("SIGSEGV", 1000)


def test_a_note_that_is_there_twice_is_one_death(agent: FakeAgent) -> None:
    assert take(agent, note(812), note(812), note(812, ticks=5001)) == [812, 812]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (known(), []),  # of an earlier agent, which was too slow for the helper
        (known(start_ns=0), [812]),  # another process of that pid
        (known(cause=Cause.SNAPSHOT), [812]),  # it went on, and died then
        (known(time=TIME + datetime.timedelta(minutes=5)), [812]),
    ],
)
def test_a_death_on_record_is_left_alone(
    agent: FakeAgent, record: Record, expected: list[int]
) -> None:
    agent.store.put(record)
    assert take(agent, note(812)) == expected


def test_what_bpf_saw_of_that_time_is_no_second_death(agent: FakeAgent) -> None:
    # GIVEN that BPF tells of a death before the agent was there
    agent.probe.attached_ns = 1 << 62
    agent.probe.tell(fatal(), ended())
    agent.take_events()
    # THEN its record is the one that BPF's events make
    assert take(agent, note(812)) == [812]
    assert agent.record().comm == "victim"


def test_what_bpf_has_counted_is_no_second_death(agent: FakeAgent) -> None:
    # GIVEN programs that were attached when the deaths came, of which they tell nothing
    agent.probe.since_s = TIME.timestamp() - 60
    # THEN these were beyond a share, and are counted; no record is made of notes
    assert take(agent, note(812), note(813)) == []
    # WHEN they came later, THEN the helper alone has seen them
    agent.probe.since_s = TIME.timestamp() + 60
    assert take(agent, note(812), note(813)) == [812, 813]


def test_thousands_of_notes_look_at_the_store_once(
    agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []
    whole = agent.store.list
    monkeypatch.setattr(agent.store, "list", lambda **how: looks.append(how) or whole(**how))
    assert len(take(agent, *(note(pid) for pid in range(1, 200)))) == 199
    assert len(looks) == 1


def test_what_has_not_ended_yet_is_no_second_death(agent: FakeAgent) -> None:
    # GIVEN a death of which BPF has told the signal, while the agent was starting
    agent.context.backend = NoBackend("the agent was still starting")
    agent.probe.tell(fatal())
    agent.take_events()
    # WHEN its helper, which did not wait for that, has left a note
    assert take(agent, note(812)) == []
    # THEN its end makes the record
    agent.probe.tell(ended())
    agent.settle()
    assert agent.record().comm == "victim"
