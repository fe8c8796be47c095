"""The last lines of the unit whose process died become part of its record, which waits for them."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.capture.job import Written
from collector.circumstances import LogLine
from collector.errors import CorewardError
from collector.linux import journal
from collector.model import Capture
from tests.unit.agent_fakes import FakeAgent, agents
from tests.unit.event_samples import ended, fatal
from tests.unit.test_agent_stages import Make

LINE = LogLine(time=datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), pid=812, message="bye")


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    with agents(tmp_path, monkeypatch) as maker:
        yield maker


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int | None]]:
    """What a journal, which has one line of each unit, was asked for."""
    found: list[tuple[str, int, int | None]] = []

    def last_lines(
        unit: str, count: int, _until: datetime.datetime, *, uid: int | None
    ) -> list[LogLine]:
        found.append((unit, count, uid))
        return [LINE]

    monkeypatch.setattr(journal, "last_lines", last_lines)
    return found


def die(agent: FakeAgent) -> None:
    """A process of victim.service is handed over, and the agent sees to all of it."""
    agent.probe.tell(fatal())
    agent.hand_over()
    agent.probe.tell(ended())
    agent.settle()


def test_the_record_has_the_last_lines(
    make: Make, asked: list[tuple[str, int, int | None]]
) -> None:
    # WHEN a process of a unit dies
    agent = make()
    agent.context.has_journal = True
    die(agent)
    # THEN its record has what the unit wrote last, and of that only what this user wrote
    assert asked == [("victim.service", 50, 1000)]
    assert (agent.record().logs, agent.record().lost) == ([LINE], {})
    assert agent.announced == [agent.record()]


@pytest.mark.parametrize(("policy", "has_journal"), [("defaults: {logs: off}", True), ("", False)])
def test_nobody_is_asked(
    make: Make, asked: list[tuple[str, int, int | None]], policy: str, has_journal: bool
) -> None:
    # GIVEN a policy that wants no lines, or a host without a journal
    agent = make(policy)
    agent.context.has_journal = has_journal
    # WHEN a process dies
    die(agent)
    # THEN the record is closed without them, and nothing is missing
    assert asked == []
    assert (agent.record().logs, agent.record().lost) == (None, {})


def test_a_journal_that_does_not_answer(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def last_lines(*_: object, **__: object) -> list[LogLine]:
        raise CorewardError("the journal was not read within 3 s")

    monkeypatch.setattr(journal, "last_lines", last_lines)
    agent = make("defaults: {logs: 7}")
    agent.context.has_journal = True
    die(agent)
    assert agent.record().lost == {"logs": "the journal was not read within 3 s"}
    assert agent.announced == [agent.record()]


def test_variables_that_policy_names(make: Make) -> None:
    # GIVEN a policy that names two variables
    agent = make("defaults: {attributes: [RELEASE, ROLE]}")
    agent.answer = Written(
        capture=Capture.FULL, name="core.zst", memory=1, attributes={"RELEASE": "2.3"}
    )
    # WHEN a process dies
    die(agent)
    # THEN its writer was asked for them, and what it found is in the record
    assert [job.attributes for job in agent.jobs] == [("RELEASE", "ROLE")]
    assert agent.record().attributes == {"RELEASE": "2.3"}
