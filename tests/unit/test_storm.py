"""Deaths that BPF only counted: one record for all of a kind, and each of them in the metrics."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest

from collector.agent.storm import Storms
from collector.model import Cause, Outcome, Record
from collector.probe.tallies import Tally
from tests.unit.agent_fakes import FakeAgent
from tests.unit.event_samples import OTHER, who

SECOND = 1_000_000_000
NOW = time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def tally(count: int, pids: tuple[int, ...] = (), **differs: object) -> Tally:
    usual = Tally(
        key=b"one",
        who=who(),
        sender=OTHER,
        signal=9,
        of_owner=False,
        count=count,
        first_ns=NOW,
        last_ns=NOW + 3 * SECOND,
        pids=pids,
    )
    return msgspec.structs.replace(usual, **differs)


def counted(agent: FakeAgent, outcome: str = "counted") -> float | None:
    labels = {"cause": "killed", "signal": "SIGKILL", "outcome": outcome}
    return agent.context.metrics.registry.get_sample_value("coreward_deaths_total", labels)


def look(agent: FakeAgent, storms: Storms, found: Tally) -> None:
    agent.probe.tallies.found[found.key] = found
    storms.look(agent.context, last=True)
    agent.settle()


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeAgent:
    return FakeAgent(tmp_path, monkeypatch)


def test_a_storm_is_one_record_that_grows(agent: FakeAgent) -> None:
    # GIVEN that BPF has counted deaths
    storms = Storms()
    look(agent, storms, tally(3, (5, 6, 7)))

    # WHEN there are more of them
    look(agent, storms, tally(5, (7, 8, 9), last_ns=NOW + 9 * SECOND))

    # THEN one record stands for all
    record = agent.record()
    assert (record.count, record.pids) == (5, [5, 6, 7, 8, 9])
    assert (record.cause, record.signal, record.outcome) == (Cause.KILLED, 9, Outcome.COUNTED)
    assert record.last is not None and (record.last - record.time).total_seconds() == 9
    assert record.reason == "5 more deaths by SIGKILL of victim in 9 s, which were only counted"
    # AND each is in the metrics once, and among those of its signature
    assert counted(agent) == 5
    assert record.signature is not None
    assert record.signature.text == "SIGKILL killed | victim"
    assert [row.deaths for row in agent.store.signatures.counts()] == [5]


def test_the_next_agent_goes_on_with_the_record(agent: FakeAgent) -> None:
    # GIVEN a storm that an agent has on record before it is killed
    look(agent, Storms(), tally(3))

    # WHEN the next one finds the tally grown
    look(agent, Storms(), tally(4))

    # THEN it is the same record, and nothing is counted anew
    assert agent.record().count == 4
    assert counted(agent) == 4


def test_what_does_not_grow_is_not_written_again(agent: FakeAgent) -> None:
    storms = Storms()
    look(agent, storms, tally(3))
    look(agent, storms, tally(3))
    assert len(agent.writes) == 1


def test_a_tally_that_is_idle_makes_room(agent: FakeAgent) -> None:
    # GIVEN a storm of long ago, of which one more death comes at the last moment
    storms = Storms()
    remove = agent.probe.tallies.remove

    def at_last(old: Tally) -> Tally | None:
        agent.probe.tallies.found[old.key] = tally(4, last_ns=0, first_ns=0)
        return remove(old)

    agent.probe.tallies.remove = at_last  # type: ignore[method-assign]

    # WHEN the agent looks at it
    look(agent, storms, tally(3, last_ns=0, first_ns=0))

    # THEN the tally is gone from BPF's map, and the record has all of them
    assert not agent.probe.tallies.found
    assert agent.record().count == 4


def test_policy_may_want_no_record_of_a_storm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = FakeAgent(tmp_path, monkeypatch, "defaults: {capture: none}")
    look(agent, Storms(), tally(3))
    assert not agent.store.list()
    assert counted(agent) == 3


def test_an_owners_programs_are_counted_together(agent: FakeAgent) -> None:
    look(agent, Storms(), tally(3, of_owner=True))
    record: Record = agent.record()
    assert (record.exe, record.signature) == (None, None)
    assert record.reason == "3 more deaths by SIGKILL of uid 1000 in 3 s, which were only counted"


def test_a_quiet_host_is_not_looked_at() -> None:
    storms = Storms()
    assert storms.timeout_ms > 0


def test_after_deaths_there_is_one_more_look(agent: FakeAgent) -> None:
    # GIVEN deaths within their shares
    storms = Storms()
    storms.stir()
    # WHEN the agent has looked at once
    storms.look(agent.context, last=True)
    # THEN it looks again, for the next ones may be counted and tell nobody
    assert storms.timeout_ms > 0
