"""From a hand-off and the events of BPF to a closed record: what the stages decide."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from collector.agent.events import ended as end_of
from collector.agent.flow import arrived
from collector.agent.release import ReleaseDecision
from collector.capture.job import Failed, Written
from collector.model import Capture, Outcome, ProcessKey, Record, Release, StackPage
from tests.unit import agent_fakes
from tests.unit.agent_fakes import OWNER, FakeAgent, agents
from tests.unit.event_samples import KEY, OTHER, ended, fatal, who

Make = Callable[..., FakeAgent]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    with agents(tmp_path, monkeypatch) as maker:
        yield maker


def kept(record: Record) -> tuple[Capture, Outcome, Release | None, dict[str, str]]:
    return record.capture, record.outcome, record.release, record.lost


def test_a_crash_from_its_signal_to_its_closed_record(make: Make) -> None:
    # GIVEN a crash whose signal BPF saw
    agent = make()
    agent.probe.tell(fatal())
    # WHEN it is handed over, and ends
    agent.hand_over()
    agent.probe.tell(ended())
    agent.settle()
    # THEN it was released first, and its memory let go when the core was there
    assert agent.log == ["released", "written as full", "unpinned"]
    record = agent.record()
    assert kept(record) == (Capture.FULL, Outcome.COMPLETE, Release.INSTANT, {})
    assert (record.rule, record.unit, record.held_ms) == ("defaults", "victim.service", 1.5)
    assert (record.core_bit, record.threads) == (True, 3)
    assert record.descriptors_open == 3
    assert [one.target for one in record.descriptors or []] == ["/dev/null", "pipe:[7]"]
    assert record.reason is not None
    # AND it was announced and counted once, and BPF may forget it
    assert agent.announced == [record]
    assert set(agent.probe.settled) == {KEY}
    # AND it was put on disk when it was opened, when its core was there, and when it was closed
    assert [(w.outcome, w.reason is not None) for w in agent.writes] == [
        (Outcome.PENDING, False),
        (Outcome.COMPLETE, False),
        (Outcome.COMPLETE, True),
    ]


@pytest.mark.parametrize("order", ["signal, exit, hand-off", "exit, signal, hand-off", "late"])
def test_events_in_any_order_are_one_death(make: Make, order: str) -> None:
    agent = make()
    events = {"signal": [fatal()], "exit": [ended()], "late": []}
    # GIVEN a process that the native part has released: its end may be seen before its worker runs
    agent.native.in_hand.append(KEY)
    for name in order.split(", ")[:-1]:
        agent.probe.tell(*events[name])
        agent.take_events()
    agent.hand_over()
    if order == "late":
        agent.probe.tell(fatal(), ended())
    agent.settle()
    # THEN there is one record, of a death that was held
    record = agent.record()
    assert (record.outcome, record.core_bit) == (Outcome.COMPLETE, True)
    assert not agent.native.in_hand


def test_policy_wants_no_record(make: Make) -> None:
    # GIVEN a rule that ignores this service
    agent = make("rules: [{name: quiet, match: {unit: victim.service}, capture: none}]")
    agent.probe.tell(fatal())
    agent.hand_over()
    agent.probe.tell(ended())
    agent.settle()
    # THEN nothing of it is kept, and it is counted
    assert agent.store.list() == []
    assert agent.log == ["released", "unpinned"]
    labels = {"cause": "signal", "signal": "SIGSEGV", "outcome": "ignored"}
    registry = agent.context.metrics.registry
    assert registry.get_sample_value("coreward_deaths_total", labels) == 1
    assert set(agent.probe.settled) == {KEY}


def test_a_limit_makes_captures_smaller(make: Make) -> None:
    # GIVEN a limit of one full capture, and no smaller ones
    limit = "{captures: 1, period: 1h, fallback: record}"
    agent = make(f"defaults: {{limit: {limit}}}")
    for _ in range(2):
        agent.probe.tell(fatal())
        agent.hand_over()
        agent.probe.tell(ended())
        agent.settle()
        last = agent.announced[-1]
    # THEN the second death is on record only, and says which limit that was
    assert (last.capture, last.outcome) == (Capture.RECORD, Outcome.REDUCED)
    assert last.lost == {
        "memory": "limit of 1 full captures per 1h used up for this executable",
        "frames": "not looked for: beyond the limit",
    }
    assert len(agent.jobs) == 1


def test_ids_of_one_users_namespaces_share_his_budget(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a limit of one full capture, and a user whose processes have ids of his namespaces
    agent = make("defaults: {limit: {captures: 1, period: 1h, fallback: record}}")
    status = agent_fakes._TEXTS["status"]
    for uid in (b"100001", b"100002"):
        monkeypatch.setitem(agent_fakes._TEXTS, "status", status.replace(b"1000", uid))
        agent.probe.tell(fatal())
        agent.hand_over()
        agent.probe.tell(ended())
        agent.settle()
        last = agent.announced[-1]
    # THEN they count as his
    assert (last.capture, last.owner) == (Capture.RECORD, "uid 1000")
    assert len(agent.jobs) == 1


def test_nobody_waits_for_a_core_that_a_limit_made_smaller(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a limit that is used up
    agent = make("defaults: {limit: {captures: 1, period: 1h, fallback: stacks}}")
    agent.probe.tell(fatal())
    agent.hand_over()
    agent.probe.tell(ended())
    agent.settle()
    agent.log.clear()
    # AND no room for another pin
    no_room = ReleaseDecision(mode=Release.AFTER_WRITE, reason="64 pins are open")
    admitted = contextlib.nullcontext(no_room)
    monkeypatch.setattr("collector.agent.hold.Governor.admitted", lambda *_: admitted)

    # WHEN another such process is handed over that the native part has not let go
    agent.probe.tell(fatal())
    agent.hand_over(pinned=False)
    agent.probe.tell(ended())
    agent.settle()

    # THEN it goes at once, and its record says why it has no core
    last = agent.announced[-1]
    assert agent.log == ["released"]
    assert (last.capture, last.outcome) == (Capture.RECORD, Outcome.REDUCED)
    assert last.lost["memory"].endswith("to wait for it was not worth while: 64 pins are open")


def test_the_process_wants_no_core(make: Make) -> None:
    agent = make("defaults: {honour_rlimit: true}")
    agent.probe.tell(fatal())
    agent.hand_over(core_limit=0)
    agent.probe.tell(ended())
    agent.settle()
    # THEN its core is not written, and it is explained all the same
    assert agent.log == ["released", "written as record", "unpinned"]
    assert agent.record().lost["memory"] == "the process's RLIMIT_CORE is 0"


def test_a_process_that_policy_wants_held(make: Make) -> None:
    # GIVEN a policy by which a process waits for its core
    agent = make("defaults: {release: after-write}")
    agent.probe.tell(fatal())
    # WHEN it is handed over
    agent.hand_over(pinned=False)
    # THEN it waits while others are served
    assert agent.log == []
    agent.settle()
    assert agent.log == ["written as full", "released"]
    agent.probe.tell(ended())
    agent.settle()
    record = agent.record()
    assert kept(record) == (Capture.FULL, Outcome.COMPLETE, Release.AFTER_WRITE, {})
    assert (record.release_reason, record.held_ms) == ("policy", 1.5)


def test_the_queue_of_captures_is_full(make: Make) -> None:
    agent = make()
    agent.lanes.captures.limit = 0
    agent.probe.tell(fatal())
    agent.hand_over()
    agent.probe.tell(ended())
    agent.settle()
    # THEN the memory is let go at once, and the record says why there is no core
    assert agent.log == ["released", "unpinned"]
    assert kept(agent.record()) == (
        Capture.RECORD,
        Outcome.FAILED,
        Release.INSTANT,
        {"core": "too many captures were waiting already"},
    )
    queue_full = agent.context.metrics.registry.get_sample_value
    assert queue_full("coreward_captures_queue_full_total") == 1


def test_a_writer_that_failed(make: Make) -> None:
    agent = make()
    agent.answer = Failed("the disk is on fire")
    agent.probe.tell(fatal())
    agent.hand_over()
    agent.probe.tell(ended())
    agent.settle()
    assert kept(agent.record())[1:] == (
        Outcome.FAILED,
        Release.INSTANT,
        {"core": "the disk is on fire"},
    )


def test_a_smaller_core_than_wanted(make: Make) -> None:
    agent = make()
    why = "the disk is full: stacks instead of full"
    agent.answer = Written(capture=Capture.STACKS, name="core.zst", lost={"memory": why})
    agent.probe.tell(fatal())
    agent.hand_over()
    agent.probe.tell(ended())
    agent.settle()
    assert kept(agent.record()) == (
        Capture.STACKS,
        Outcome.REDUCED,
        Release.INSTANT,
        {"memory": why},
    )


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyError("stat")], ids=repr)
def test_a_hand_off_that_came_to_nothing(
    make: Make, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    # GIVEN a process that cannot be decided on: its files are damaged, or not as we know them
    agent = make()
    agent.probe.tell(fatal())
    monkeypatch.setattr("collector.agent.flow.decide", failing(error))
    agent.hand_over()
    agent.probe.tell(ended())
    agent.settle()
    # THEN what BPF saw of it is on record, with why there is no more
    assert agent.log == ["released", "unpinned"]
    record = agent.record()
    assert (record.outcome, record.release) == (Outcome.RECORDED, None)
    assert error.args[-1] in record.lost["core"]


def failing(error: Exception) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("stage", "part"), [("write.run_writer", "core"), ("explain.explain_core", "frames")]
)
def test_a_stage_that_fails_in_a_way_nobody_thought_of(
    make: Make, monkeypatch: pytest.MonkeyPatch, stage: str, part: str
) -> None:
    agent = make()
    monkeypatch.setattr(f"collector.agent.{stage}", failing(KeyError("never")))
    agent.probe.tell(fatal())
    agent.hand_over()
    agent.probe.tell(ended())
    agent.settle()
    # THEN its memory is let go, and the record is closed and says why
    assert agent.log[-1] == "unpinned"
    assert agent.announced == [agent.record()]
    assert agent.record().lost[part] == "the agent failed: KeyError('never')"


def test_the_agent_stops_with_a_backlog(make: Make) -> None:
    # GIVEN a crash whose core nobody has begun to write
    agent = make()
    agent.probe.tell(fatal())
    agent.hand_over()
    agent.probe.tell(ended())
    agent.take_events()
    # WHEN the agent's lanes are closed
    for lane in agent.lanes.all():
        lane.drop() if lane is not agent.lanes.records else lane.run()
    # THEN the record is closed, and says so; the memory is let go
    assert agent.log == ["released", "unpinned"]
    assert agent.record().lost == {"core": "the agent was stopped before"}
    assert agent.announced == [agent.record()]


def test_the_agent_stops_before_a_worker_saw_to_a_hand_off(make: Make) -> None:
    # GIVEN a process that the native part has released, and that no worker has looked at
    agent = make()
    agent.probe.tell(fatal())
    arrived(agent.context, agent.taken())
    # WHEN the lane is closed
    agent.lanes.handoffs.drop()
    # THEN its memory is let go, and BPF is to tell the next agent of it
    assert agent.log == ["released", "unpinned"]
    assert agent.store.list() == [] == agent.probe.settled


def test_no_explanation_when_the_agent_stops(make: Make) -> None:
    # GIVEN a crash that is written, and not explained yet
    agent = make()
    agent.probe.tell(fatal(), ended())
    agent.native.in_hand.append(KEY)
    agent.hand_over()
    agent.lanes.captures.run()
    agent.lanes.records.run()
    # WHEN the agent stops
    agent.lanes.explains.drop()
    agent.settle()
    # THEN the core is kept
    record = agent.record()
    assert (record.core, record.lost) == ("core.zst", {"frames": "the agent was stopped before"})


def test_the_end_of_a_process_is_never_seen(make: Make) -> None:
    agent = make()
    agent.probe.tell(fatal())
    agent.hand_over()
    agent.settle()
    # WHEN the agent gives up waiting for it
    for crash in agent.context.registry.abandoned(all_done=True):
        end_of(agent.context, crash)
    # THEN the record is closed without it
    assert agent.record().lost == {"core_bit": "its exit was not seen"}
    assert agent.record().reason is not None


def test_a_process_that_is_killed_again_and_again_is_not_explained_each_time(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a limit of one capture
    agent = make("defaults: {limit: {captures: 1, period: 1h, fallback: record}}")
    monkeypatch.setattr("collector.agent.unheld.write_event_core", lambda *_: None)
    page = StackPage(address=0, data=bytes(4096))
    # WHEN two of a program are killed
    for pid in (901, 902):
        key = ProcessKey(pid, KEY.start_ns)
        whose = msgspec.structs.replace(who(key), ns_pid=pid)  # of no container
        died = fatal(key, who=whose, signal=9, sender=OTHER, stack=(page,))
        agent.probe.tell(died, ended(key, who=whose, status=9))
        agent.settle()
    # THEN both are on record, and one is explained
    assert [record.lost.get("frames") for record in agent.announced] == [
        None,
        "not looked for: beyond the limit",
    ]
    # AND a crash of it may still have its core
    agent.probe.tell(fatal())
    agent.hand_over()
    agent.settle()
    assert agent.jobs[-1].capture is Capture.FULL


def test_files_of_shared_mappings_that_were_not_opened_are_named(make: Make) -> None:
    agent = make()
    agent.probe.tell(fatal())
    agent.hand_over(unopened=7)
    agent.probe.tell(ended())
    agent.settle()
    assert agent.record().lost["shared"].startswith("the files behind 7 shared mappings")


def test_explanations_take_turns_by_owner(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    # whatever uids a user's namespaces have
    agent, owners = make(), []
    monkeypatch.setattr(
        agent.lanes.explains, "submit", lambda *_, owner, **__: owners.append(owner) is None
    )
    agent.probe.tell(fatal())
    agent.hand_over()
    agent.settle()
    assert owners == [OWNER]
