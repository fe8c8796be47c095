"""What a node's health agent is told, at a real socket, by the example client."""

from __future__ import annotations

import datetime
import importlib.util
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from collector.agent.health import open_health
from collector.errors import HoldError
from collector.export.server import MOST as PLACES
from collector.health import interface, log
from collector.health.interface import HealthInterface
from collector.health.log import EventLog
from collector.health.types import Death, Events, Last, Loops, State, Trigger
from collector.model import Cause, Record
from collector.policy.types import HealthSettings
from tests.health_schema import SCHEMA, made
from tests.unit.agent_fakes import FakeAgent, agents
from tests.unit.event_samples import ended, fatal
from tests.unit.store_samples import SEGFAULT, TIME
from tests.unit.test_pods_files import BARE, NAMED

CLIENT = Path(__file__).resolve().parents[2] / "examples" / "health" / "client.py"
STATE = State(
    agent="1",
    started=TIME,
    bpf="core",
    handoff="socket",
    core_pattern_ours=True,
    policy="built-in",
    policy_error=None,
    captures_waiting=0,
    pins_open=0,
    deaths=0,
    store_free_bytes=1,
    store_min_free_bytes=1,
    unstored=0,
)


def client() -> Any:
    spec = importlib.util.spec_from_file_location("health_client", CLIENT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def death(number: int, **differs: object) -> Record:
    return msgspec.structs.replace(SEGFAULT, id=f"{number:016x}", **differs)


def ids(events: Events) -> list[str | None]:
    return [event.id for event in events.events]


# ---- the log


def test_what_happened_after_a_cursor() -> None:
    happened: list[None] = []
    events = EventLog("a", lambda: happened.append(None))
    # GIVEN two deaths and a trigger
    events.died(death(1))
    events.fired("api", "hangs", "snapshot", "no thread has run for 10 s", "f" * 16)
    events.died(death(2))
    # THEN all are known, in their order, and whoever waits was woken
    found = events.after(None, 10)
    assert [type(event) for event in found.events] == [Death, Trigger, Death]
    assert ids(found) == [death(1).id, "f" * 16, death(2).id]
    assert (found.missed, len(happened)) == (False, 3)
    # AND each cursor says where to go on
    assert ids(events.after(found.events[0].cursor, 10)) == ["f" * 16, death(2).id]
    first = events.after(None, 2)
    assert ids(events.after(first.cursor, 2)) == [death(2).id]
    at_end = events.after(found.cursor, 10)
    assert (at_end.events, at_end.cursor, at_end.missed) == ([], found.cursor, False)


@pytest.mark.parametrize("cursor", ["b-1", "a-99", "a-x", "", "a--1", "a-" + "9" * 5000, "\u0664"])
def test_a_cursor_of_somebody_else_misses_something(cursor: str) -> None:
    events = EventLog("a", lambda: None)
    events.died(death(1))
    found = events.after(cursor, 10)
    assert found.missed and ids(found) == [death(1).id]


def test_what_is_kept_is_bounded() -> None:
    # GIVEN far more deaths than are kept, with long names
    events = EventLog("a", lambda: None)
    events.died(death(0))
    first = events.after(None, 1).cursor
    for number in range(2 * log.MOST):
        events.died(death(number, exe="/" * 10_000, reason="x" * 10_000))
    # THEN the last are known, in short, and who asks for older ones is told that there were some
    found = events.after(first, 10 * log.MOST)
    assert found.missed and len(found.events) == log.MOST
    assert len(msgspec.json.encode(found)) < log.MOST * 2500
    assert not events.after(found.events[0].cursor, 1).missed


def test_a_crash_loop() -> None:
    events = EventLog("a", lambda: None)
    now = TIME + datetime.timedelta(seconds=1000)

    def ago(seconds: int) -> datetime.datetime:
        return now - datetime.timedelta(seconds=seconds)

    # GIVEN a service that crashes again and again, one that did, one that is killed, and no service
    for number in range(5):
        events.died(death(number, unit="db.service", time=ago(100 - number)))
        events.died(death(10 + number, unit="old.service", time=ago(900)))
        events.died(death(20 + number, unit="web.service", time=ago(10), cause=Cause.KILLED))
        events.died(death(30 + number, unit=None, time=ago(10)))
    events.died(death(40, unit="once.service", time=ago(10)))
    # THEN the first is in a loop
    (loop,) = events.loops(now).services
    assert (loop.unit, loop.crashes, loop.last_id) == ("db.service", 5, death(4).id)


def test_a_pod_is_in_a_crash_loop_although_each_of_its_containers_is_another_unit() -> None:
    events = EventLog("a", lambda: None)
    for number in range(5):
        unit = f"cri-containerd-{number:064x}.scope"
        events.died(death(number, unit=unit, pod=NAMED, time=TIME))
        events.died(death(10 + number, unit=unit, pod=BARE, time=TIME))
    (loop,) = events.loops(TIME).services
    assert (loop.unit, loop.crashes) == ("shop/web-0", 5)
    told = events.after(None, 1).events[0]
    assert isinstance(told, Death)
    assert (told.namespace, told.pod) == ("shop", "web-0")


# ---- the socket


@pytest.fixture
def health(tmp_path: Path) -> Iterator[HealthInterface]:
    served = HealthInterface(tmp_path / "health.sock", None, "a", lambda: STATE)
    yield served
    served.close()
    assert not (tmp_path / "health.sock").exists()


@pytest.fixture
def asked(health: HealthInterface, tmp_path: Path) -> Any:
    return client().Health(str(tmp_path / "health.sock"))


def test_all_documents_are_as_the_schema_says(health: HealthInterface, asked: Any) -> None:
    for number in range(5):
        health.log.died(death(number, time=datetime.datetime.now(datetime.UTC)))
    health.log.fired("api", "hangs", "limited", "why", None)
    # THEN each answer is what its type decodes, and the schema is that of the types
    for path, kind in (
        ("/v1/state", State),
        ("/v1/loops", Loops),
        ("/v1/last?unit=victim.service", Last),
        ("/v1/events", Events),
    ):
        found = asked._get(path)
        assert found["version"] == 1
        strict = msgspec.convert(found, kind)
        assert msgspec.to_builtins(strict) == found
    assert made() == SCHEMA.read_text(), "run `python -m tests.health_schema`"


def test_a_long_poll_is_answered_when_something_happens(
    health: HealthInterface, asked: Any
) -> None:
    health.log.died(death(1))
    cursor = asked.events(None)["cursor"]
    # GIVEN many who wait for the next event
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(asked.events(cursor, wait=60)))
        for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    while sum(one.asked is not None for one in list(_connections(health))) < 20:
        assert not found
    # WHEN it happens THEN all know of it
    health.log.died(death(2))
    for thread in threads:
        thread.join(60)
    assert [[event["id"] for event in one["events"]] for one in found] == [[death(2).id]] * 20


def _connections(health: HealthInterface) -> Any:
    assert health._server is not None
    return health._server._connections.copy().values()


def test_a_long_poll_ends(asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # GIVEN nothing happens THEN the answer comes when the time is over
    assert asked.events(None, wait=1)["events"] == []


def test_following_goes_on_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "health.sock"
    module = client()
    first = HealthInterface(path, None, "a", lambda: STATE)
    first.log.died(death(1))
    events = module.Health(str(path)).follow()
    assert next(events)["id"] == death(1).id
    # WHEN the agent is away, and comes again THEN that is told, and that some may be missed
    first.close()
    assert next(events)["event"] == "away"
    second = HealthInterface(path, None, "b", lambda: STATE)
    second.log.died(death(2))
    assert next(events) == {"event": "missed", "after": "a-1"}
    assert next(events)["id"] == death(2).id
    second.close()


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("/v1/nothing", "there are /v1/state"),
        ("/v1/events?limit=0", "limit: a number from 1 to 256 is wanted"),
        ("/v1/events?limit=9999999999999", "limit: a number from 1 to 256 is wanted"),
        ("/v1/events?wait=61", "wait: a number from 0 to 60 is wanted"),
        ("/v1/events?wait=%D9%A4", "wait: a number from 0 to 60 is wanted"),
        ("/v1/events?x=1", "unknown parameter x"),
        ("/v1/events?after", "bad query field"),
        ("/v1/state?a=b", "/v1/state takes no parameters"),
    ],
)
def test_what_cannot_be_answered(target: str, error: str, asked: Any) -> None:
    with pytest.raises(Exception, match=re.escape(error)):
        asked._get(target)


def test_the_slow_and_the_silent_keep_nobody_waiting(
    health: HealthInterface, asked: Any, tmp_path: Path
) -> None:
    # GIVEN as many as there are places for who say nothing, and some who wait for long
    many = []
    for number in range(2 * PLACES):
        one = socket.socket(socket.AF_UNIX)
        one.connect(str(tmp_path / "health.sock"))
        if number % 2:
            one.sendall(b"GET /v1/events?wait=60 HTTP/1.1\r\n\r\n")
        many.append(one)
    # THEN others are answered, and deaths are told as before
    assert asked.state()["agent"] == "1"
    health.log.died(death(1))
    assert len(asked.events(None)["events"]) == 1
    for one in many:
        one.close()


def test_who_may_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "health.sock"
    served = HealthInterface(path, None, "a", lambda: STATE)
    assert path.stat().st_mode & 0o777 == 0o600
    served.close()
    given: list[tuple[object, ...]] = []
    monkeypatch.setattr(interface.os, "chown", lambda *args: given.append(args))
    served = HealthInterface(path, 4711, "a", lambda: STATE)
    assert path.stat().st_mode & 0o777 == 0o660
    assert given == [(path, -1, 4711)]
    served.close()
    # AND what is there already, and is no socket, is left alone
    path.write_text("mine")
    with pytest.raises(HoldError, match="is no socket"):
        HealthInterface(path, None, "a", lambda: STATE)
    assert path.read_text() == "mine"


def test_names_are_safe_to_show(health: HealthInterface, tmp_path: Path) -> None:
    health.log.died(death(1, comm="x\x1b[2J\n", unit="\udcff\u202e"))
    command = [sys.executable, str(CLIENT), "--socket", str(tmp_path / "health.sock"), "events"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip().isprintable()
    assert json.loads(done.stdout)["comm"] == "x\x1b[2J\n"


def test_nobody_answers(tmp_path: Path) -> None:
    command = [sys.executable, str(CLIENT), "--socket", str(tmp_path / "none"), "state"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"health: {tmp_path}/none: [Errno 2] No such file or directory\n"


# ---- the agent


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FakeAgent]]:
    with agents(tmp_path, monkeypatch) as maker:
        yield maker


def test_an_agent_tells_its_deaths_and_its_state(
    make: Callable[..., FakeAgent], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collector.agent.health.check_folders", lambda _: None)
    agent = make()
    context = agent.context
    context.backend = SimpleNamespace(  # type: ignore[assignment]
        backend="socket", is_in_place=lambda: False
    )
    context.policy.error = None
    agent.probe.loader = "core"  # type: ignore[attr-defined]
    # GIVEN an agent with the interface
    path = tmp_path / "health.sock"
    context.health = open_health(context, HealthSettings(socket=path))
    asked = client().Health(str(path))
    # WHEN a process dies THEN it is told, once
    agent.probe.tell(fatal())
    agent.hand_over()
    agent.probe.tell(ended())
    agent.settle()
    (event,) = asked.events(None)["events"]
    record = agent.record()
    assert (event["id"], event["unit"], event["cause"]) == (record.id, "victim.service", "signal")
    # AND so is a trigger, and the state
    context.recorder.on_fired("api", "hangs", "failed", "why", None)
    assert asked.events(event["cursor"])["events"][0]["trigger"] == "hangs"
    state = asked.state()
    wanted = {"bpf": "core", "handoff": "socket", "core_pattern_ours": False, "deaths": 1}
    assert {name: state[name] for name in wanted} == wanted
    assert state["store_free_bytes"] > 0
    context.health.close()
    assert not path.exists()


def test_why_a_unit_last_died(health: HealthInterface, asked: Any) -> None:
    # GIVEN two deaths of a unit, and one of another
    for number, unit in ((1, "db.service"), (2, "db.service"), (3, "web.service")):
        health.log.died(death(number, unit=unit))
    # THEN the newer one is told
    assert asked._get("/v1/last?unit=db.service")["death"]["id"] == death(2).id
    assert asked._get("/v1/last?unit=none.service") == {
        "version": 1,
        "unit": "none.service",
        "death": None,
    }
    # AND who asks for something else is told what there is
    for query in ("", "?unit=a&after=b", "?name=x", "?unit=" + "x" * 513):
        with pytest.raises(Exception, match=r"unit: at most|parameter unit"):
            asked._get(f"/v1/last{query}")
