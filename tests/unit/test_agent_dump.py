"""Dumpers and the policy: who has a process first, what follows when a dumper fails, what is told.

The hub and the stages are the real ones; the dumpers are this process, at socket pairs.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from collector.agent.crash import Crash
from collector.agent.dump_event import maps_line
from collector.agent.release import ReleaseDecision
from collector.capture.image import decode_maps
from collector.capture.job import Failed, Written
from collector.dumpers.client import Client
from collector.dumpers.hub import Hub
from collector.dumpers.protocol import GENERIC, HIGHPRIORITY, NOMATCH, SPECIAL, Message
from collector.model import Capture, DumpFacts, Outcome, Record, Release
from tests.unit.agent_fakes import FakeAgent
from tests.unit.event_samples import ended, fatal
from tests.unit.test_dumpers_hub import connection, join, wait_until

LONG = 60.0


class Dumpers:
    """An agent with a hub, and dumpers that registered there."""

    def __init__(self, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
        self.agent = agent
        self.hub = Hub(LONG, LONG)
        agent.context.dumpers = self.hub
        # what the native part has let wait is released or kept here
        monkeypatch.setattr("collector.agent.dump_event.Event._fds", lambda _: {})
        monkeypatch.setattr("collector.agent.dump_event.Event._add_notes", lambda *_: None)
        monkeypatch.setattr(f"{type(agent).__module__}.FakeHandOff.keep", self._keep, raising=False)

    def _keep(self, most_s: float) -> None:
        self.agent.log.append("kept")

    def die(self, **how: Any) -> None:
        """A process dies, and is handed over."""
        self.agent.probe.tell(fatal())
        self.agent.hand_over(**{"pinned": False, **how})

    def have(self, client: Client, verb: str = "DUMP") -> Message:
        """The next message of a dumper, which is this one."""
        wait_until(lambda: bool(self.agent.lanes.dumps.run()) or self._has_mail(client))
        event = client.receive()
        assert event.verb == verb
        return event

    def _has_mail(self, client: Client) -> bool:
        return bool(select.select([client.fileno()], [], [], 0)[0])

    def end(self) -> Record:
        """The finished record."""
        self.agent.probe.tell(ended())

        def is_finished() -> bool:
            self.agent.settle()
            return bool(self.agent.announced)

        wait_until(is_finished)
        return self.agent.record()


Make = Callable[..., Dumpers]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    made: list[Dumpers] = []

    def of(policy: str = "") -> Dumpers:
        made.append(Dumpers(FakeAgent(tmp_path, monkeypatch, policy), monkeypatch))
        return made[-1]

    # instead of a look at the memory of the host
    monkeypatch.setattr(
        "collector.agent.flow.release_or_hold",
        lambda _, crash: (
            crash.gathered.handoff.release(),
            ReleaseDecision(mode=Release.INSTANT, reason="room"),
        )[1],
    )
    yield of
    for one in made:
        one.hub.close(0)
        one.agent.close()


def told(record: Record) -> list[tuple[str, int | None, str]]:
    return [(one.name, one.status, one.note) for one in record.dumpers or ()]


def test_the_process_waits_until_its_dumper_says_continue(make: Make) -> None:
    # GIVEN a dumper
    dumpers = make()
    dumpers.agent.answer = Written(capture=Capture.RECORD)
    client = join(dumpers.hub, "mine", priority=SPECIAL)
    # WHEN a process dies
    dumpers.die()
    event = dumpers.have(client)
    # THEN it is told who, within which limits
    assert {key: event.get(key) for key in ("pid", "comm", "uid", "unit", "signal", "held")} == {
        "pid": "812",
        "comm": "victim",
        "uid": "1000",
        "unit": "victim.service",
        "signal": "11",
        "held": "yes",
    }
    assert event.all("arg") == ["victim", "-x"]
    assert dumpers.agent.log == ["kept"]
    # AND it goes when that is said; no other core is made, but the reason is looked for
    client.let_go(event, 0, "core in the bucket")
    record = dumpers.end()
    assert dumpers.agent.log == ["kept", "released", "written as record"]
    assert [job.explain for job in dumpers.agent.jobs] == [True]
    assert (record.outcome, record.lost["memory"]) == (
        Outcome.HANDLED,
        "dumper mine has taken it",
    )
    (facts,) = record.dumpers or ()
    assert facts == DumpFacts(
        name="mine",
        priority=SPECIAL,
        pid=os.getpid(),
        uid=os.getuid(),
        status=0,
        note="core in the bucket",
        seconds=facts.seconds,
        held=True,
    )


def test_one_that_was_taken_and_cannot_be_explained_is_not_lost(make: Make) -> None:
    dumpers = make()
    dumpers.agent.answer = Failed("the writer ended with status 9 and no answer")
    client = join(dumpers.hub, "mine", priority=SPECIAL)
    dumpers.die()
    client.let_go(dumpers.have(client), 0)
    record = dumpers.end()
    assert (record.outcome, "core" in record.lost) == (Outcome.HANDLED, False)
    assert record.lost["frames"] == "the writer ended with status 9 and no answer"


def test_failure_makes_room_for_the_next_and_at_last_for_the_policy(make: Make) -> None:
    dumpers = make()
    clients = {
        priority: join(dumpers.hub, f"bids-{priority}", priority=priority)
        for priority in (SPECIAL, GENERIC, HIGHPRIORITY, 70)
    }
    dumpers.die()
    # WHEN the first fails, the second dies, and the third cannot
    event = dumpers.have(clients[HIGHPRIORITY])
    clients[HIGHPRIORITY].let_go(event, errno.ENOSPC, "no room")
    dumpers.have(clients[70])
    clients[70].close()
    event = dumpers.have(clients[SPECIAL])
    clients[SPECIAL].let_go(event, errno.EIO)
    # THEN the policy has it, before the one who bids no more than it
    record = dumpers.end()
    assert told(record) == [
        ("bids-100", errno.ENOSPC, "no room"),
        ("bids-70", None, "the other side has closed the connection"),
        ("bids-50", errno.EIO, ""),
    ]
    assert (record.capture, record.outcome) == (Capture.FULL, Outcome.COMPLETE)
    assert "memory" not in record.lost
    counted = dumpers.agent.context.metrics.registry.get_sample_value
    assert counted("coreward_dumps_total", {"outcome": "failed"}) == 3


def test_one_that_passes_it_on_is_not_the_last(make: Make) -> None:
    dumpers = make()
    client = join(dumpers.hub, "also", priority=SPECIAL)
    dumpers.die()
    client.let_go(dumpers.have(client), 0, "told the pager", pass_on=True)
    record = dumpers.end()
    assert told(record) == [("also", 0, "told the pager")]
    assert (record.capture, record.outcome) == (Capture.FULL, Outcome.COMPLETE)


def test_one_that_declines_leaves_it_to_the_policy(make: Make) -> None:
    dumpers = make()
    client = join(dumpers.hub, "picky")
    dumpers.die()
    event = dumpers.have(client, "PROBE")
    assert dumpers.agent.log == []  # it waits for the bid
    client.bid(event, NOMATCH)
    record = dumpers.end()
    assert dumpers.agent.log == ["released", "written as full"]
    assert (record.outcome, record.dumpers) == (Outcome.COMPLETE, None)


def test_one_that_hangs_loses_it_and_no_other_may_let_it_wait(make: Make) -> None:
    dumpers = make()
    dumpers.hub.most_s = 0.02
    hangs = join(dumpers.hub, "hangs", priority=HIGHPRIORITY)
    other = join(dumpers.hub, "other", priority=SPECIAL)
    dumpers.die()
    dumpers.have(hangs)
    record = dumpers.end()
    ((name, status, why),) = told(record)
    assert (name, status) == ("hangs", None)
    assert why.startswith("it was not done in time (0.0")
    assert record.outcome is Outcome.COMPLETE
    assert not dumpers._has_mail(other)
    counted = dumpers.agent.context.metrics.registry.get_sample_value
    assert counted("coreward_dumps_total", {"outcome": "hung"}) == 1


def test_all_dumpers_together_have_no_more_than_hold_max(make: Make) -> None:
    dumpers = make()
    first = join(dumpers.hub, "first", priority=HIGHPRIORITY)
    second = join(dumpers.hub, "second", priority=SPECIAL)
    dumpers.die()
    event = dumpers.have(first)
    # WHEN the first fails when there is little time left
    dumpers.hub.most_s = 0.0
    first.let_go(event, errno.EIO)
    record = dumpers.end()
    # THEN the policy has it
    assert told(record) == [("first", errno.EIO, "")]
    assert not dumpers._has_mail(second)


def test_who_wants_it_held_does_not_get_one_that_has_gone(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    dumpers = make()

    def released(_: object, crash: Crash) -> ReleaseDecision:
        crash.gathered.handoff.release()
        return ReleaseDecision(mode=Release.INSTANT, reason="room")

    monkeypatch.setattr("collector.agent.dump.release_or_hold", released)
    pins = join(dumpers.hub, "pins", priority=HIGHPRIORITY, pin=True)
    waits = join(dumpers.hub, "waits", priority=SPECIAL)
    dumpers.die()
    # WHEN it was released for the first one, which fails
    pins.let_go(dumpers.have(pins), errno.EIO)
    assert told(dumpers.end()) == [("pins", errno.EIO, "")]
    assert not dumpers._has_mail(waits)


def test_pinned_memory_is_dumped_when_the_process_has_gone(make: Make) -> None:
    # GIVEN a dumper for which pinned memory will do, and one for which it will not
    dumpers = make()
    pins = join(dumpers.hub, "pins", priority=SPECIAL, pin=True)
    waits = join(dumpers.hub, "waits", priority=HIGHPRIORITY)
    # WHEN a process dies that the native part has released
    dumpers.die(pinned=True)
    event = dumpers.have(pins)
    assert event.get("held") == "no"
    assert dumpers.agent.log == ["released"]
    pins.let_go(event, 0)
    record = dumpers.end()
    # THEN its memory is given up when the dumper is done
    assert dumpers.agent.log == ["released", "written as record", "unpinned"]
    assert [(one.name, one.held) for one in record.dumpers or ()] == [("pins", False)]
    assert not dumpers._has_mail(waits)


@pytest.mark.parametrize("room", [True, False])
def test_a_held_process_is_pinned_for_a_dumper_if_there_is_room(
    make: Make, monkeypatch: pytest.MonkeyPatch, room: bool
) -> None:
    dumpers = make()
    mode = Release.INSTANT if room else Release.AFTER_COPY
    asked: list[Capture] = []

    def release_or_hold(_: object, crash: Crash) -> ReleaseDecision:
        asked.append(crash.decided.admission.capture)
        if room or len(asked) > 1:
            crash.gathered.handoff.release()
        return ReleaseDecision(mode=mode if len(asked) == 1 else Release.INSTANT, reason="so")

    for stage in ("dump", "flow"):
        monkeypatch.setattr(f"collector.agent.{stage}.release_or_hold", release_or_hold)
    pins = join(dumpers.hub, "pins", priority=SPECIAL, pin=True)
    # WHEN a process dies that the native part could not release
    dumpers.die()
    event = dumpers.have(pins)
    # THEN it goes before the dumper has it, or waits for it, and no longer
    assert (event.get("held"), dumpers.agent.log) == (("no", ["released"]) if room else ("yes", []))
    pins.let_go(event, 0)
    record = dumpers.end()
    assert dumpers.agent.log == ["released", "written as record"]
    assert asked == ([Capture.FULL] if room else [Capture.FULL, Capture.RECORD])
    assert (record.outcome, record.release) == (Outcome.HANDLED, Release.INSTANT)


@pytest.mark.parametrize(
    ("policy", "how"),
    [
        ("rules: [{name: secret, match: {comm: victim}, capture: record}]", {}),
        ("rules: [{name: secret, match: {comm: victim}, redact: {mappings: heap}}]", {}),
        ("rules: [{name: secret, match: {comm: victim}, capture: none}]", {}),
        ("defaults: {honour_rlimit: true}", {"core_limit": 0}),
        ("", {"pinned": True, "spared": True}),
    ],
)
def test_memory_that_policy_does_not_keep_is_for_nobody(
    make: Make, policy: str, how: dict[str, Any]
) -> None:
    dumpers = make(policy)
    client = join(dumpers.hub, "curious", priority=HIGHPRIORITY)
    dumpers.die(**how)
    dumpers.agent.probe.tell(ended())
    dumpers.agent.settle()
    assert not dumpers._has_mail(client)
    assert all(record.dumpers is None for record in dumpers.agent.store.list())


def test_the_limit_is_the_smaller_of_policys_and_the_processs(make: Make) -> None:
    dumpers = make("defaults: {honour_rlimit: true, memory: {max: 1MiB}}")
    client = join(dumpers.hub, "asks", priority=SPECIAL)
    dumpers.die(core_limit=65536)
    event = dumpers.have(client)
    assert (event.get("limit"), event.get("rlimit_core")) == ("65536", "65536")
    client.let_go(event, 0)
    dumpers.end()


def test_what_a_dumper_did_is_on_record_if_the_rest_fails(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    dumpers = make()
    client = join(dumpers.hub, "tries", priority=SPECIAL)
    dumpers.die()
    event = dumpers.have(client)

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr("collector.agent.flow.release_or_hold", broken)
    client.let_go(event, errno.ENOMEM)
    record = dumpers.end()
    assert told(record) == [("tries", errno.ENOMEM, "")]
    assert record.lost["core"] == "[Errno 5] broken"
    assert dumpers.agent.log[-1] == "released"


def test_a_line_of_maps_is_as_the_kernel_writes_it() -> None:
    text = Path("/proc/self/maps").read_bytes()
    assert "".join(map(maps_line, decode_maps(text))).encode() == text
    hostile = decode_maps(b"1000-2000 r--p 00000000 00:00 7 /a\\012b\n")
    assert decode_maps("".join(map(maps_line, hostile)).encode()) == hostile


def test_the_hub_can_be_waited_for_when_the_agent_ends(make: Make) -> None:
    dumpers = make()
    with connection(dumpers.hub) as ours:
        client = Client(ours, "slow", priority=SPECIAL)
        dumpers.die()
        dumpers.have(client)
        # WHEN the agent ends, and the dumper is not done in time
        dumpers.hub.close(0.01)
        # THEN the policy has the process
        record = dumpers.end()
        assert told(record) == [("slow", None, "the agent was stopped")]
        assert record.outcome is Outcome.COMPLETE
