"""By what a signal came about, what lies above its sender, and what systemd says of its unit."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from collector.agent.killer import killed_by, killer_of
from collector.agent.sender import Senders
from collector.arch.x86_64 import Reg
from collector.errors import CorewardError
from collector.linux import procfs, systemd
from collector.model import (
    KilledBy,
    Killer,
    ProcessKey,
    Relative,
    Sender,
    Sending,
    SentFlag,
    UnitState,
)
from tests.unit.agent_fakes import FakeAgent
from tests.unit.event_samples import KEY, ended, fatal, who

TICK = 10_000_000
BY = ProcessKey(99, 4_000 * TICK)
F = SentFlag
SENT, KERNEL = F(0), F.BY_KERNEL


def sending(number: int = signal.SIGKILL, flags: F = SENT, **differs: Any) -> Sending:
    usual = Sending(
        who=who(BY),
        signal=number,
        code=0,
        flags=flags,
        parent=ProcessKey(1, 0),
        parent_comm="init",
        arguments=b"kill\0-9\0",
        arguments_size=8,
    )
    return msgspec.structs.replace(usual, **differs)


@pytest.mark.parametrize(
    ("number", "flags", "by"),
    [
        ("KILL", SENT, KilledBy.PROCESS),
        ("TERM", F.LEAVING | F.REAPER | F.CPU_LIMIT, KilledBy.PROCESS),
        ("KILL", F.BARE, KilledBy.CGROUP_KILL),
        ("TERM", F.BARE | F.LEAVING, KilledBy.PARENT_DEATH),
        ("HUP", F.BARE, KilledBy.TERMINAL),
        ("KILL", KERNEL | F.LEAVING | F.REAPER, KilledBy.NAMESPACE),
        ("KILL", KERNEL | F.LEAVING | F.TRACER, KilledBy.TRACER),
        ("KILL", KERNEL | F.TO_SELF | F.CPU_LIMIT | F.RT_LIMIT, KilledBy.CPU_LIMIT),
        ("KILL", KERNEL | F.TO_SELF | F.RT_LIMIT, KilledBy.RT_LIMIT),
        ("KILL", KERNEL | F.CPU_LIMIT | F.REAPER, KilledBy.KERNEL),
        ("KILL", KERNEL, KilledBy.KERNEL),
        ("XCPU", KERNEL, KilledBy.CPU_LIMIT),
        ("PROF", KERNEL, KilledBy.TIMER),
        ("INT", KERNEL, KilledBy.TERMINAL),
        ("IO", KERNEL, KilledBy.KERNEL),
    ],
)
def test_by_what_it_came_about(number: str, flags: F, by: KilledBy) -> None:
    assert killed_by(sending(signal.Signals[f"SIG{number}"], flags)) is by


def completed(one: Sending, **differs: Any) -> Killer | None:
    event = fatal(signal=one.signal, si_code=None, sending=one, **differs)
    return Senders().complete(event).killer


def test_nobody_is_blamed_for_what_the_kernel_did() -> None:
    # GIVEN a signal of the kernel's, which any task may have run into
    event = Senders().complete(fatal(signal=14, sending=sending(signal.SIGALRM, KERNEL)))
    # THEN that task is no killer
    assert killer_of(event, None, oom=False) == Killer(by=KilledBy.TIMER)


def test_who_ran_out_of_memory_is_named() -> None:
    event = Senders().complete(fatal(signal=9, sending=sending(flags=KERNEL | F.CPU_LIMIT)))
    found = killer_of(event, None, oom=True)
    assert found is not None and (found.by, found.pid) == (KilledBy.OOM, BY.pid)
    # AND not who killed it at the same time
    event = Senders().complete(fatal(signal=9, sending=sending()))
    assert killer_of(event, None, oom=True) == Killer(by=KilledBy.OOM)


@pytest.mark.parametrize(
    ("event", "status", "by"),
    [
        (fatal(signal=31, si_code=1), None, KilledBy.SECCOMP),
        (None, 31, KilledBy.SECCOMP),
        (None, 9, None),
        (fatal(signal=11, si_code=0x80), None, None),
        (fatal(signal=11, si_code=1, regs=(59,) * 27), None, None),
        (fatal(signal=11, si_code=0x80, regs=(59,) * 27), None, KilledBy.EXEC),
        (fatal(signal=11, si_code=0x80, regs=(0xFFFFFFFFFFFFFFFF,) * 27), None, None),
    ],
)
def test_what_nobody_sent(event: Any, status: int | None, by: KilledBy | None) -> None:
    found = killer_of(event, status, oom=False)
    assert (None if found is None else found.by) is by
    assert Reg.ORIG_RAX == 15


def test_its_own_signal_has_no_killer() -> None:
    assert completed(sending(signal.SIGABRT, who=who(KEY))) is None


def test_arguments() -> None:
    for raw, size, words, lost in (
        (b"kill\0-9\0\0", 9, ["kill", "-9"], {}),
        (b"a\xff\0", 3, ["a\udcff"], {}),
        (b"\0\0", 2, [], {}),
        (None, 9, None, {"cmdline": "it was not in memory"}),
        (None, 0, None, {}),  # a thread of the kernel
        (b"abc", 9, ["abc"], {"cmdline": "only the first 3 of its 9 bytes were copied"}),
    ):
        found = completed(sending(arguments=raw, arguments_size=size))
        assert found is not None and found.cmdline == words
        assert {part: why for part, why in found.lost.items() if part == "cmdline"} == lost


def processes(monkeypatch: pytest.MonkeyPatch, *those: tuple[int, str, int, int]) -> list[str]:
    """/proc/PID/stat of these: pid, name, parent, start in ticks. The paths that are read."""
    texts = {
        f"/proc/{pid}/stat": f"{pid} ({comm}) S {ppid}{' 0' * 17} {start}{' 0' * 30}".encode()
        for pid, comm, ppid, start in those
    }
    read: list[str] = []

    def fake(path: str, limit: int = 0) -> bytes | None:
        read.append(path)
        return texts.get(path)

    monkeypatch.setattr(procfs, "read", fake)
    return read


PARENT = ProcessKey(50, 300 * TICK + 77)


@pytest.mark.parametrize(
    ("those", "names", "lost"),
    [
        ([(50, "sh", 7, 300), (7, "ssh)d", 1, 20), (1, "init", 0, 1)], ["sh", "ssh)d", "init"], ""),
        ([(50, "other", 7, 301), (7, "x", 1, 20)], ["sh"], "process 50 was gone when"),
        ([(7, "x", 1, 20)], ["sh"], "process 50 was gone when"),
        ([(50, "sh", 7, 300), (7, "younger", 1, 400)], ["sh"], "process 50 was gone when"),
        ([(50, "sh", 50, 300)], ["sh"] * 64, "more than 64"),
    ],
    ids=["all", "another process", "gone", "a parent that is younger", "a ring"],
)
def test_parents(
    monkeypatch: pytest.MonkeyPatch,
    those: list[tuple[int, str, int, int]],
    names: list[str],
    lost: str,
) -> None:
    processes(monkeypatch, *those)
    found = completed(sending(parent=PARENT, parent_comm="sh"))
    assert found is not None
    assert [one.comm for one in found.parents] == names
    assert found.lost.get("parents", "").startswith(lost) and bool(lost) == (
        "parents" in found.lost
    )


def test_who_kills_many_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read = processes(monkeypatch, (50, "sh", 0, 300))
    now = [0.0]
    senders = Senders(lambda: now[0])
    for number in range(1000):
        one = sending(parent=PARENT, parent_comm="sh", arguments=b"%d\0" % number)
        found = senders.complete(fatal(ProcessKey(number + 1, 5), sending=one)).killer
        assert found is not None and found.cmdline == [str(number)]
        assert found.parents == [Relative(pid=50, comm="sh")]
    once = len(read)
    assert once < 10
    now[0] = 1.5
    senders.complete(fatal(sending=one))
    assert len(read) == 2 * once


def test_many_senders_are_not_remembered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    processes(monkeypatch)
    senders = Senders(lambda: 0.0)
    for number in range(1000):
        senders.complete(fatal(sending=sending(who=who(ProcessKey(number + 1, 7)))))
    assert len(senders._known) <= 256


# ---- systemd


SYSTEMD = sending(
    signal.SIGABRT,
    who=msgspec.structs.replace(who(ProcessKey(1, 1)), ppid=0, comm="systemd"),
    parent=ProcessKey(0, 0),
)
INIT = Sender(pid=1, comm="systemd", uid=0)
Systemctl = Callable[[str], None]


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Systemctl:
    """Makes a `systemctl` of these lines of shell, on a host whose init is systemd."""
    monkeypatch.setattr(systemd, "is_init", lambda: True)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)

    def make(script: str) -> None:
        program = tmp_path / "bin" / "systemctl"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    return make


WATCHDOG = """
echo "$@" >&2
[ "$4" = -- ] && [ "$5" = victim.service ] || exit 1
echo Result=watchdog; echo ActiveState=deactivating; echo SubState=stop-watchdog
echo TimeoutStopUSec='1min 30s'; echo RuntimeMaxUSec=infinity; echo WatchdogUSec=3s; echo X=1
"""


def killed(agent: FakeAgent) -> Killer:
    agent.probe.tell(fatal(signal=6, si_code=0, sender=INIT, sending=SYSTEMD))
    agent.hand_over()
    agent.probe.tell(ended(status=6))
    agent.settle()
    killer = agent.record().killer
    assert killer is not None and (killer.comm, killer.parents) == ("systemd", [])
    return killer


def test_what_systemd_says_of_the_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, systemctl: Systemctl
) -> None:
    systemctl(WATCHDOG)
    agent = FakeAgent(tmp_path, monkeypatch)
    assert killed(agent).unit_state == UnitState(
        result="watchdog",
        active="deactivating",
        sub="stop-watchdog",
        timeouts={"TimeoutStopUSec": "1min 30s", "WatchdogUSec": "3s"},
    )
    assert agent.record().reason == (
        "killed by SIGABRT from `systemd` (pid 1, uid 0): "
        "the unit did not report to its watchdog in time"
    )


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("exit 4", "systemctl ended with status 4"),
        ("echo SubState=dead", "systemd tells no result of victim.service"),
        ("head -c 100000 /dev/zero", "systemd tells no result of victim.service"),
        ("exec sleep 1000", "systemd did not answer within 0.2 s"),
    ],
)
def test_a_systemd_that_does_not_say(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    systemctl: Systemctl,
    script: str,
    why: str,
) -> None:
    systemctl(script)
    show = systemd.show
    monkeypatch.setattr(
        systemd, "show", lambda *a: show(*a, seconds=0.2 if "sleep" in script else 60)
    )
    before = time.monotonic()
    killer = killed(FakeAgent(tmp_path, monkeypatch))
    assert (killer.unit_state, killer.lost["unit_state"]) == (None, why)
    assert time.monotonic() - before < 60


def test_too_many_units_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, systemctl: Systemctl
) -> None:
    systemctl(WATCHDOG)
    agent = FakeAgent(tmp_path, monkeypatch)
    agent.lanes.units.limit = 0
    assert killed(agent).lost["unit_state"] == "too many units were being asked for already"


def test_without_systemctl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CorewardError, match="systemctl is not there"):
        systemd.show("x.service", ["Result"])
