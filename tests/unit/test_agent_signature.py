"""Which bug a death was, as the agent's stages find it out; and what that makes of the next one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from collector.explain.types import Explanation
from collector.model import Capture, CrashSite, Record, SignatureBasis
from collector.signature.note import Note
from collector.signature.rules import rules
from collector.signature.stack import stack_key
from tests.unit.agent_fakes import FakeAgent, agents
from tests.unit.event_samples import ended, fatal
from tests.unit.signature_samples import ENTRY, own
from tests.unit.store_samples import TIME

Make = Callable[..., FakeAgent]
SITE = CrashSite(build_id="ab" * 20, offset=0x1234)
FRAMES = [*own("count_request"), *ENTRY]
COLLECT = "defaults: {collect: {times: 1, period: 1h}, limit: none}"


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    with agents(tmp_path, monkeypatch) as maker:
        yield maker


def unwound(agent: FakeAgent) -> None:
    """What the explaining process says from now on."""
    agent.explanation = Explanation(frames=FRAMES, stack=stack_key(FRAMES, rules()))


def died(agent: FakeAgent, site: CrashSite | None = SITE) -> Record:
    agent.probe.tell(fatal(site=site))
    agent.hand_over()
    agent.probe.tell(ended())
    agent.settle()
    return agent.announced[-1]


def counted(agent: FakeAgent, seen: str) -> float | None:
    registry = agent.context.metrics.registry
    return registry.get_sample_value("coreward_signatures_total", {"seen": seen})


def test_a_death_has_its_signature_when_it_is_closed(make: Make) -> None:
    agent = make()
    unwound(agent)
    first = died(agent)
    assert first.signature is not None
    assert first.signature.text == "SIGSEGV near-null | count_request"
    assert (first.signature.basis, first.signature.note) == (SignatureBasis.FRAMES, None)
    assert agent.record().signature == first.signature
    # AND it is counted as new, once
    died(agent)
    assert [counted(agent, seen) for seen in ("new", "again", "regression")] == [1, 1, 0]


def test_what_is_known_is_collected_less_and_less_and_not_unwound_again(make: Make) -> None:
    # GIVEN a policy that wants the first death whole, the stacks of one more, then records
    agent = make(COLLECT)
    unwound(agent)
    kept = [died(agent) for _ in range(4)]
    # THEN that is what was asked of the writer
    assert [job.capture for job in agent.jobs] == [Capture.FULL, Capture.STACKS]
    assert [record.capture_wanted for record in kept] == [
        *(Capture.FULL, Capture.STACKS, Capture.RECORD, Capture.RECORD)
    ]
    # AND all are known to be one bug, the last ones by their place
    signatures = [record.signature for record in kept]
    assert len({s.id for s in signatures if s}) == 1
    assert [s.basis for s in signatures if s] == [
        *(SignatureBasis.FRAMES, SignatureBasis.FRAMES),
        *(SignatureBasis.PLACE, SignatureBasis.PLACE),
    ]
    first = kept[0].signature
    assert first is not None
    assert kept[3].lost == {
        "memory": "collect: 2 deaths at this place within 1h were captured already",
        "frames": f"not looked for: it died where others of signature {first.id} did",
    }


def test_a_death_that_is_only_recorded_is_unwound_as_long_as_nobody_knows_what_it_is(
    make: Make,
) -> None:
    # GIVEN stacks that could not be unwound
    agent = make(COLLECT)
    agent.explanation = Explanation(lost={"frames": "the core is damaged"})
    kept = [died(agent) for _ in range(3)]
    # THEN the signature is the place itself, and it is tried again
    assert kept[2].lost["frames"] == "the core is damaged"
    assert kept[2].signature is not None
    assert kept[2].signature.text == "SIGSEGV near-null | victim+abababab+0x1234"


def test_a_limit_that_makes_it_smaller_does_not_use_up_the_first(make: Make) -> None:
    # GIVEN no room for full captures at all
    agent = make("defaults: {collect: {times: 1}, limit: {captures: 0, fallback: stacks}}")
    unwound(agent)
    kept = [died(agent) for _ in range(2)]
    # THEN each is asked for whole still
    assert [record.capture_wanted for record in kept] == [Capture.FULL, Capture.FULL]


def test_a_note_is_on_record_at_the_next_death_and_a_regression_is_counted(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make()
    unwound(agent)
    first = died(agent)
    assert first.signature is not None
    assert first.signature.id is not None
    # GIVEN somebody noted that the bug is fixed from another build on
    note = Note(text="fixed in 2.3", time=TIME, fixed_in="2.3", builds=("ab" * 20,))
    agent.store.notes.write(first.signature.id, note)
    # WHEN a build dies of it that was not there then
    monkeypatch.setattr("collector.signature.note.build_of", lambda _: "cd" * 20)
    again = died(agent)
    # THEN its record says so
    assert again.signature is not None
    assert (again.signature.id, again.signature.note) == (first.signature.id, "fixed in 2.3")
    assert again.signature.regression
    assert counted(agent, "regression") == 1
