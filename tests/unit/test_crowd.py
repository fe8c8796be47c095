"""An owner whose processes die faster than their cores can be written: the rest go without one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from collector.agent.crowd import REASON, is_crowded
from collector.linux.memory import LevelKey
from collector.model import Capture, Outcome, Release
from collector.native.contract import HANDFUL
from tests.unit.agent_fakes import OWNER, FakeAgent, agents
from tests.unit.event_samples import KEY, ended, fatal

Make = Callable[..., FakeAgent]
SHARE = 20
ANOTHER = LevelKey(OWNER.device, OWNER.inode + 1)
POLICY = f"""
hold: {{patience: 1s}}
release: {{max_pins: {2 * SHARE}}}
defaults: {{limit: {{captures: 1, period: 1h, fallback: record}}}}
"""


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    with agents(tmp_path, monkeypatch, POLICY) as maker:
        yield maker


def pin(agent: FakeAgent, count: int, owner: LevelKey = OWNER) -> None:
    """So many processes of an owner wait for their cores."""
    for _ in range(count):
        agent.context.pins.enter(4096, (owner,))


@pytest.mark.parametrize(
    ("pins", "each_s", "crowded"),
    [(SHARE, 0.06, True), (SHARE, 0.04, False), (SHARE - 1, 60, False)],
    ids=["too slow", "in time", "a share"],
)
def test_a_crowd_is_more_than_a_share_that_takes_too_long(
    make: Make, pins: int, each_s: float, crowded: bool
) -> None:
    agent = make()
    pin(agent, pins)
    agent.lanes.captures.each_s = each_s
    assert is_crowded(agent.context, OWNER) is crowded
    # AND who has no share of it waits for his cores
    assert not is_crowded(agent.context, ANOTHER)


def test_a_handful_is_no_crowd_however_few_pins_there_may_be(make: Make) -> None:
    agent = make("{hold: {patience: 1s}, release: {max_pins: 1}}")
    agent.lanes.captures.each_s = 60
    pin(agent, HANDFUL - 1)
    assert not is_crowded(agent.context, OWNER)
    pin(agent, 1)
    assert is_crowded(agent.context, OWNER)


def test_those_that_wait_for_copies_are_a_crowd_as_well(make: Make) -> None:
    # GIVEN no pins at all, as where a memory cgroup has no room
    agent = make()
    agent.lanes.copies.each_s = 0.2
    for _ in range(HANDFUL - 1):
        agent.lanes.copies.submit(lambda: None)
    assert not is_crowded(agent.context, OWNER)
    agent.lanes.copies.submit(lambda: None)
    assert is_crowded(agent.context, OWNER)


@pytest.mark.parametrize("spared", [True, False], ids=["by the native part", "held"])
def test_who_dies_in_a_crowd_is_let_go_without_a_core(make: Make, spared: bool) -> None:
    # GIVEN an owner who has his share of pins, and slow writers
    agent = make()
    pin(agent, SHARE)
    agent.lanes.captures.each_s = 60

    # WHEN one more of his processes dies
    agent.probe.tell(fatal())
    agent.hand_over(pinned=False, spared=spared)
    agent.probe.tell(ended())
    agent.settle()

    # THEN it goes at once, and its record says why there is no core, which is counted
    assert agent.log == ["released"] and not agent.jobs
    record = agent.record()
    assert (record.capture, record.outcome) == (Capture.RECORD, Outcome.REDUCED)
    assert (record.release, record.held_ms) == (Release.INSTANT, 1.5)
    assert record.lost == {"memory": REASON, "frames": "not looked for: beyond the limit"}
    value = agent.context.metrics.registry.get_sample_value
    assert value("coreward_captures_crowded_total") == 1
    # AND the limit of captures is not charged with it
    assert value("coreward_captures_limited_total", {"capture": "record"}) == 0


def test_who_wants_no_core_is_told_so_all_the_same(make: Make) -> None:
    agent = make("defaults: {capture: record}")
    agent.probe.tell(fatal())
    agent.hand_over(spared=True)
    agent.probe.tell(ended())
    agent.settle()
    assert agent.record().lost == {"frames": "not looked for: beyond the limit"}


def test_a_rule_that_has_a_process_wait_is_kept(make: Make) -> None:
    # GIVEN a crowd, and a rule by which a process waits until its core is written
    agent = make(POLICY + "rules: [{name: victim, match: {comm: victim}, release: after-write}]\n")
    pin(agent, SHARE)
    agent.lanes.captures.each_s = 60
    agent.probe.tell(fatal())
    agent.hand_over(pinned=False)
    agent.settle()
    assert agent.log == ["written as full", "released"]


def test_one_that_only_bpf_tells_has_the_same_reason(make: Make) -> None:
    # GIVEN a process that the native part has let go, and has told nobody of
    agent = make("")
    agent.context.backend = SimpleNamespace(backend="socket")  # type: ignore[assignment]
    agent.native.spared.append(KEY)
    # WHEN BPF tells its death
    agent.probe.tell(fatal(), ended())
    agent.settle()
    # THEN its record says why it has no core, which is counted
    assert agent.record().lost["core"] == REASON
    value = agent.context.metrics.registry.get_sample_value
    assert value("coreward_captures_crowded_total") == 1
