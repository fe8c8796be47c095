"""Which ends are no crashes, and what becomes of these."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from collector.agent.routine import way_of
from collector.linux import systemd
from collector.model import KilledBy, Killer, ProcessKey, Record, Sender, Sending, SentFlag
from collector.policy.types import Facts
from collector.store import routine
from collector.store.routine import RoutineEnd, RoutineEnds, Way
from tests.unit.agent_fakes import FakeAgent
from tests.unit.event_samples import KEY, ended, fatal, who
from tests.unit.store_samples import TIME, numbered

PARENT = Killer(by=KilledBy.PROCESS, pid=50, comm="pytest", parent=True)
OTHER = Killer(by=KilledBy.PROCESS, pid=51, comm="bash")
SYSTEMD = Killer(by=KilledBy.PROCESS, pid=1, comm="systemd", parent=True)
BY_CGROUP = Killer(by=KilledBy.CGROUP_KILL, pid=1, comm="systemd")
USERS = Killer(by=KilledBy.PROCESS, pid=50, comm="systemd", parent=True)
ITSELF, STRANGER = Sender(pid=7, uid=0), Sender(pid=8, uid=0)
UNIT = {"unit": "db.service"}


def record(signo: str, killer: Killer | None, **changes: Any) -> Record:
    number = signal.Signals[f"SIG{signo}"]
    usual = numbered(6, ppid=50, signal=int(number), killer=killer)
    return msgspec.structs.replace(usual, **changes)


@pytest.mark.parametrize(
    ("died", "way"),
    [
        (record("KILL", PARENT), Way.PARENT),
        (record("TERM", PARENT, **UNIT), Way.PARENT),
        # (who was gone when its child looked for its parent is its killer all the same)
        (record("KILL", PARENT, ppid=1), Way.PARENT),
        (record("KILL", OTHER), None),
        (record("TERM", OTHER), None),
        # what dumps core is a crash, whoever sent it
        (record("ABRT", PARENT), None),
        (record("KILL", PARENT, oom=True), None),
        # systemd is asked; outside of a unit it is a parent as any other
        (record("TERM", SYSTEMD, ppid=1, **UNIT), Way.MANAGER),
        (record("KILL", SYSTEMD, ppid=77, **UNIT), Way.MANAGER),
        (record("KILL", SYSTEMD, ppid=1), Way.PARENT),
        (
            record("KILL", Killer(by=KilledBy.CGROUP_KILL, pid=1, comm="systemd"), **UNIT),
            Way.MANAGER,
        ),
        (record("KILL", Killer(by=KilledBy.CGROUP_KILL, pid=50, comm="sh"), **UNIT), None),
        # a user's own manager is not asked: it kills after a timeout, mostly
        (record("TERM", USERS, **UNIT), Way.PARENT),
        (record("KILL", USERS, **UNIT), None),
        (record("INT", Killer(by=KilledBy.TERMINAL)), Way.TERMINAL),
        (record("HUP", Killer(by=KilledBy.TERMINAL)), Way.TERMINAL),
        (record("KILL", Killer(by=KilledBy.NAMESPACE, pid=50)), None),
        (record("KILL", Killer(by=KilledBy.CPU_LIMIT)), None),
        # by the process itself
        (record("PIPE", None), Way.PIPE),
        (record("PIPE", None, sender=ITSELF), Way.PIPE),
        (record("INT", None, sender=ITSELF), Way.TERMINAL),
        (record("TERM", None, sender=ITSELF), None),
        (record("KILL", None, sender=ITSELF), None),
        # where BPF tells no more of a sender than his pid
        (record("KILL", None, sender=STRANGER), None),
        (record("KILL", None, sender=STRANGER, ppid=8), Way.PARENT),
    ],
)
def test_what_is_routine(died: Record, way: Way | None) -> None:
    assert way_of(died) is way


# ---- through the agent


def sending(number: int, pid: int, comm: str) -> Sending:
    return Sending(
        who=msgspec.structs.replace(who(ProcessKey(pid, 1)), ppid=0, comm=comm),
        signal=number,
        code=0,
        flags=SentFlag.PARENT if pid == 1 else SentFlag(0),
        parent=ProcessKey(0, 0),
        parent_comm="",
        arguments=b"",
        arguments_size=0,
    )


def ends(agent: FakeAgent, number: int, pid: int = 1, comm: str = "init") -> None:
    """A process whose parent is 1 ends by a signal from this one."""
    sender = Sender(pid=pid, uid=0, comm=comm)
    sent = sending(number, pid, comm)
    agent.probe.tell(fatal(signal=number, si_code=0, sender=sender, sending=sent))
    agent.probe.tell(ended(status=number, sender=sender))
    agent.settle()


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeAgent]:
    one = FakeAgent(tmp_path, monkeypatch)
    yield one
    one.close()


def counted(agent: FakeAgent, name: str, **labels: str) -> float:
    return agent.context.metrics.registry.get_sample_value(f"coreward_{name}", labels) or 0.0


def test_a_routine_end_is_a_line_and_a_count(agent: FakeAgent) -> None:
    ends(agent, signal.SIGKILL)
    # THEN there is no record, nobody is told, and no later agent either
    assert (agent.store.list(), agent.announced, agent.probe.settled) == ([], [], [KEY])
    assert list((agent.store.path / "crashes").iterdir()) == []
    assert counted(agent, "routine_ends_total", by="parent") == 1
    labels = {"cause": "killed", "signal": "SIGKILL", "outcome": "recorded"}
    assert counted(agent, "deaths_total", **labels) == 0
    (end,) = agent.store.routine.each()
    assert (end.way, end.pid, end.comm, end.signal_name) == (
        Way.PARENT,
        KEY.pid,
        "victim",
        "SIGKILL",
    )
    assert (end.by_pid, end.by_comm) == (1, "init")


def test_policy_may_want_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = """
defaults: {routine: record}
rules:
  - {name: quiet, match: {comm: victim, signal: TERM}, routine: note}
  - {name: none, match: {comm: victim, signal: HUP}, capture: none, routine: record}
"""
    agent = FakeAgent(tmp_path, monkeypatch, policy)
    ends(agent, signal.SIGTERM)
    ends(agent, signal.SIGHUP)
    assert agent.store.list() == []
    ends(agent, signal.SIGKILL)
    assert agent.record().signal == signal.SIGKILL
    assert [end.signal for end in agent.store.routine.each()] == [signal.SIGTERM]


def test_a_kill_by_another_is_a_death(agent: FakeAgent) -> None:
    ends(agent, signal.SIGKILL, pid=99, comm="bash")
    assert agent.record().killer is not None
    assert list(agent.store.routine.each()) == []


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a `systemctl` that gives this result, on a host whose init is systemd; the process is
    one of db.service."""
    monkeypatch.setattr(systemd, "is_init", lambda: True)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setattr(
        "collector.agent.unheld.facts_of",
        lambda who, cause, signo: Facts(
            cause=cause, signal=signo, cgroup="/db.service", unit="db.service", container=False
        ),
    )

    def make(result: str) -> None:
        program = tmp_path / "bin" / "systemctl"
        program.parent.mkdir(exist_ok=True)
        program.write_text(
            f"#!/bin/sh\necho asked >> {tmp_path}/asked\necho Result={result}\n"
            "echo ActiveState=deactivating\necho SubState=stop-sigterm\n"
        )
        program.chmod(0o755)

    return make


def test_a_stop_that_was_ordered(agent: FakeAgent, systemctl: Callable[[str], None]) -> None:
    systemctl("success")
    ends(agent, signal.SIGTERM, comm="systemd")
    assert agent.store.list() == []
    assert [(end.way, end.unit) for end in agent.store.routine.each()] == [
        (Way.MANAGER, "db.service")
    ]


@pytest.mark.parametrize("result", ["timeout", "watchdog", "oom-kill", ""])
def test_what_systemd_did_not_do_by_order_is_a_death(
    agent: FakeAgent, systemctl: Callable[[str], None], tmp_path: Path, result: str
) -> None:
    systemctl(result)
    ends(agent, signal.SIGKILL, comm="systemd")
    killer = agent.record().killer
    assert killer is not None
    if result:
        assert killer.unit_state is not None and killer.unit_state.result == result
    else:
        assert killer.lost["unit_state"] == "systemd tells no result of db.service"
    # AND systemd was asked once
    assert (tmp_path / "asked").read_text() == "asked\n"
    assert list(agent.store.routine.each()) == []


def test_an_agent_that_is_stopped_before_systemd_answers(
    agent: FakeAgent, systemctl: Callable[[str], None]
) -> None:
    systemctl("success")
    agent.lanes.units.limit = 0
    ends(agent, signal.SIGTERM, comm="systemd")
    assert agent.record().reason is not None


# ---- the file


def end(number: int, **changes: Any) -> RoutineEnd:
    usual = RoutineEnd(time=TIME, way=Way.PARENT, pid=number, comm="victim")
    return msgspec.structs.replace(usual, **changes)


def test_the_file_does_not_grow_beyond_its_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routine, "MOST_BYTES", 2000)
    kept = RoutineEnds(tmp_path)
    for number in range(200):
        kept.add(end(number))
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size < 4200
    numbers = [one.pid for one in kept.each()]
    assert numbers == [*range(199, 199 - len(numbers), -1)]
    assert len(numbers) > 20
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_hostile_names_and_a_line_that_was_cut(tmp_path: Path) -> None:
    kept = RoutineEnds(tmp_path)
    kept.add(end(1, comm="ev\nil\x1b[31m\udcff", exe="x" * 5000))
    kept.add(end(2))
    file = tmp_path / "routine.jsonl"
    data = file.read_bytes()
    assert not {*data} & {0x1B}
    file.write_bytes(data[:-9])
    assert [(one.comm, len(one.exe or "")) for one in kept.each()] == [("ev\nil\x1b[31m\\xff", 256)]


def test_a_link_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("")
    (tmp_path / "routine.jsonl").symlink_to(tmp_path / "elsewhere")
    kept = RoutineEnds(tmp_path)
    with pytest.raises(OSError):
        kept.add(end(1))
    assert (tmp_path / "elsewhere").read_text() == ""
