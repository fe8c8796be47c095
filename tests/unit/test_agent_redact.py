"""What policy redacts is in no record on disk, from the first time that one is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from collector.capture.job import Failed, Written
from collector.explain.types import Explanation
from collector.model import Capture
from collector.redact.types import Pattern
from tests.unit.agent_fakes import FakeAgent, agents
from tests.unit.event_samples import ended, fatal

Make = Callable[..., FakeAgent]
POLICY = """
defaults:
  redact: {patterns: [{name: number, regex: 'card [0-9]+'}]}
watch: [{name: all, match: {uid: [0, 1000]}}]
"""


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    with agents(tmp_path, monkeypatch) as maker:
        yield maker


def prepared(make: Make, policy: str = POLICY) -> FakeAgent:
    """An agent in whose hands something dies whose message has the number, and a value."""
    agent = make(policy)
    agent.explanation = Explanation(frames=[], abort_message="card 1234 of hunter22")
    agent.answer = Written(
        capture=Capture.FULL,
        name="core.zst",
        memory=1,
        redacted={"number": 3},
        secrets={"environment": ["hunter22"]},
    )
    agent.probe.tell(fatal())
    agent.hand_over()
    agent.probe.tell(ended())
    return agent


def test_no_record_on_disk_has_what_is_redacted(make: Make) -> None:
    # WHEN a death is worked on from its first event to its last
    agent = prepared(make)
    agent.settle()
    # THEN its core is written so
    assert [job.redact.patterns for job in agent.jobs] == [
        (Pattern(name="number", regex="card [0-9]+"),)
    ]
    # AND its record: until it is whole it has no such texts
    assert len(agent.writes) > 1
    assert [record.abort_message for record in agent.writes[:-1]] == [None] * (
        len(agent.writes) - 1
    )
    record = agent.record()
    assert record.abort_message == "[redacted] of [redacted]"
    assert record.redacted["number"] > 3
    assert record.lost["samples"] == "not kept: the stacks in them cannot be redacted"
    # AND whoever is told is told the same
    assert agent.announced == [record]
    for word in (b"card 1234", b"hunter22"):
        assert not any(word in msgspec.json.encode(one) for one in agent.writes)


def test_what_is_to_be_hidden_is_known_though_the_writer_fails_later(make: Make) -> None:
    # GIVEN a writer that says it with the small core, and then ends without an answer
    agent = make(POLICY)
    agent.explanation = Explanation(frames=[], abort_message="card 1234 of hunter22")
    agent.secrets = {"environment": ["hunter22"]}
    agent.answer = Failed("it was killed")
    agent.probe.tell(fatal())
    agent.hand_over()
    agent.probe.tell(ended())
    agent.settle()
    # THEN the record has it not
    assert agent.record().abort_message == "[redacted] of [redacted]"


@pytest.mark.parametrize(("redact", "asked"), [("{mappings: [heap]}", []), ("{}", ["asked"])])
def test_samples_of_what_had_another_name_are_not_asked_for(
    make: Make, monkeypatch: pytest.MonkeyPatch, redact: str, asked: list[str]
) -> None:
    # GIVEN a process that no `watch` rule names when it dies; the recorder may have samples of it
    agent = make(f"defaults: {{redact: {redact}}}\nwatch: [{{name: w, match: {{uid: 7}}}}]")
    said: list[str] = []
    monkeypatch.setattr(agent.context.recorder, "ask", lambda *_: bool(said.append("asked")))
    # WHEN it dies, THEN nobody asks for them where something is redacted
    agent.probe.tell(fatal())
    agent.hand_over()
    agent.probe.tell(ended())
    agent.settle()
    assert (said, "samples" in agent.record().lost) == (asked, False)


def test_a_policy_that_redacts_nothing_leaves_all_as_it_was(make: Make) -> None:
    agent = prepared(make, "")
    agent.settle()
    assert agent.record().abort_message == "card 1234 of hunter22"
    assert agent.record().redacted == {"number": 3}
    assert not any(job.redact.anything for job in agent.jobs)


def test_an_agent_that_stops_leaves_out_what_nobody_has_looked_through(make: Make) -> None:
    # GIVEN a death of which all is known but that its texts were not looked through
    agent = prepared(make)
    agent.take_events()
    for _ in range(4):
        for lane in agent.lanes.all():
            if lane is not agent.lanes.explains:
                lane.run()
    # WHEN the agent stops
    agent.lanes.explains.drop()  # its explanation
    agent.lanes.explains.drop()  # the look at its texts
    # THEN it is on record without them
    record = agent.record()
    assert record.abort_message is None
    assert "the agent was stopped" in record.lost["redaction"]


@pytest.mark.parametrize(("policy", "texts"), [(POLICY, False), ("", True)])
def test_the_recorder_is_told_whether_calls_may_have_texts(
    make: Make, monkeypatch: pytest.MonkeyPatch, policy: str, texts: bool
) -> None:
    # GIVEN no `trace` rule of today's: calls that are kept may be of yesterday's
    said: list[bool] = []
    ask = lambda *_, texts: bool(said.append(texts))  # noqa: E731
    agent = make(policy)
    monkeypatch.setattr(agent.context.recorder, "ask_calls", ask)
    agent.probe.tell(fatal())
    agent.hand_over()
    agent.probe.tell(ended())
    agent.settle()
    assert said == [texts]
