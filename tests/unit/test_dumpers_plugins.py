"""Plugins in their workers: what they bid, what they write, and every way in which they fail."""

from __future__ import annotations

import errno
import os
import pwd
import queue
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.dumpers import plugins
from collector.dumpers.desk import Dumped
from collector.dumpers.dumper import Bid
from collector.dumpers.hub import Hub
from collector.dumpers.plugins import Plugins
from collector.dumpers.protocol import SPECIAL, Message
from collector.dumpers.worker import conditions
from collector.elfcore.reader import CoreFile
from collector.model import Cause
from collector.policy.types import DumperRule, Match
from tests.unit.live_event import SECRET, living
from tests.unit.test_dumpers_hub import FACTS, PATIENCE, hub_of, wait_until

IS_ROOT = os.geteuid() == 0
SAMPLES = "tests.unit.plugin_samples"
ROOT = Path(__file__).parents[2]


class Running:
    """A hub and its plugins."""

    def __init__(self, hub: Hub) -> None:
        self.hub, self.plugins = hub, Plugins(hub, Path("/nonexistent"))

    def run(self, *rules: DumperRule) -> None:
        """These plugins, ready."""
        self.plugins.configure(rules)
        wait_until(lambda: set(self.hub.names()) == {rule.name for rule in rules})

    def bids(self, event: Message) -> list[Bid]:
        bids: queue.SimpleQueue[list[Bid]] = queue.SimpleQueue()
        self.hub.ask(FACTS, event, held=True, done=bids.put)
        return bids.get(timeout=PATIENCE)

    def dump(self, event: Message) -> Dumped:
        (bid,) = self.bids(event)
        done: queue.SimpleQueue[Dumped] = queue.SimpleQueue()
        self.hub.dump(bid, event, held=True, done=done.put)
        return done.get(timeout=PATIENCE)


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(plugins, "_RESTART_S", (0.01, 60.0))
    monkeypatch.setattr(plugins, "_END_S", 0.1)
    with hub_of() as (hub, _):
        found = Running(hub)
        yield found
        hub.close(PATIENCE)
        found.plugins.close()


def rule(name: str, **how: object) -> DumperRule:
    return DumperRule(name=name, module=f"{SAMPLES}:{name}", **how)  # type: ignore[arg-type]


def with_arguments(event: Message, *arguments: str) -> Message:
    others = tuple(field for field in event.fields if field[0] != "arg")
    return Message(event.verb, (*others, *(("arg", one) for one in arguments)), event.fds)


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


def test_it_bids_by_what_it_sees_and_writes_a_core(running: Running, open_to_all: Path) -> None:
    # GIVEN a plugin that runs as another user
    user = pwd.getpwnam("nobody").pw_uid if IS_ROOT else None
    running.run(rule("Keeps", user=user))
    with living() as (event, address):
        # WHEN a process is not its own THEN it declines
        assert running.bids(with_arguments(event, "yours")) == []
        # WHEN one is, THEN it bids by what it has found there, and has it
        path = open_to_all / "core"
        mine = with_arguments(event, "mine", str(path))
        assert [bid.priority for bid in running.bids(mine)] == [SPECIAL + 2]
        dumped = running.dump(mine)
        uid = os.getuid() if user is None else user
        assert (dumped.status, dumped.note) == (0, f"as uid {uid}, limit {1 << 30}")
        assert path.stat().st_uid == uid
        with CoreFile(path) as core:
            assert core.read(address, len(SECRET)) == SECRET


@pytest.mark.parametrize(
    ("how", "status", "note"),
    [
        ("errno", errno.ENOSPC, ""),
        ("os", errno.EDQUOT, "[Errno 122] no room"),
        ("raise", errno.EIO, "RuntimeError('lost its way')"),
        ("memory", errno.EIO, "MemoryError()"),
    ],
)
def test_what_it_says_or_raises_is_its_status(
    running: Running, how: str, status: int, note: str
) -> None:
    running.run(rule("Fails", memory=256 << 20))
    with living() as (event, _):
        dumped = running.dump(with_arguments(event, how))
        assert (dumped.status, dumped.note) == (status, note)
        # AND it goes on
        assert running.dump(with_arguments(event, "well")).status == 0


def test_a_probe_that_raises_declines(running: Running) -> None:
    running.run(rule("Fails"))
    with living() as (event, _):
        assert running.bids(with_arguments(event, "probe")) == []


@pytest.mark.parametrize(
    ("how", "why"), [("die", "closed the connection"), ("hang", "it was not done in time (0.3 s)")]
)
def test_one_that_dies_or_hangs_is_started_again(running: Running, how: str, why: str) -> None:
    running.run(rule("Fails", timeout=0.3))
    with living() as (event, _):
        (bid,) = running.bids(with_arguments(event, how))
        dumped = running.dump(with_arguments(event, how))
        assert dumped.status is None
        assert why in dumped.note or "has ended" in dumped.note
        # THEN another process of it is there, and the first one is gone
        wait_until(lambda: running.hub.names() == ["Fails"])
        (again,) = running.bids(with_arguments(event, "well"))
        assert again.peer.pid != bid.peer.pid
        assert not Path(f"/proc/{bid.peer.pid}").exists()


def test_a_reload_dismisses_starts_and_leaves_alone(running: Running) -> None:
    running.run(rule("Fails"), rule("Keeps"))
    with living() as (event, _):
        mine = with_arguments(event, "mine", "/dev/null")
        before = {bid.name: bid.peer.pid for bid in running.bids(mine)}
        # WHEN one has another rule
        running.run(rule("Fails"), rule("Keeps", match=Match(comm=("db",))))
        wait_until(lambda: len(running.bids(mine)) == 2)
        after = {bid.name: bid.peer.pid for bid in running.bids(mine)}
        # THEN only that one is started again
        assert after["Fails"] == before["Fails"]
        assert after["Keeps"] != before["Keeps"]
        # AND none is left when there is no rule
        running.run()
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in after.values()))


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (f"{SAMPLES}:NoDumper", f"{SAMPLES}:NoDumper has no handle()"),
        (f"{SAMPLES}:Nothing", "cannot be loaded: AttributeError"),
        ("no.such.module:Dumper", "cannot be loaded: ModuleNotFoundError"),
    ],
)
def test_what_is_no_dumper_is_named(
    running: Running, capfd: pytest.CaptureFixture[str], module: str, why: str
) -> None:
    running.plugins.configure((DumperRule(name="wrong", module=module),))
    said = ""

    def is_said() -> bool:
        nonlocal said
        said += capfd.readouterr().err
        return why in said

    wait_until(is_said)
    assert running.hub.names() == []


def test_conditions_of_the_policy_are_those_of_the_protocol() -> None:
    match = Match(
        exe=("/a*", "/b"), uid=(5,), signal=(11, 36), cause=(Cause.KILLED,), container=False
    )
    assert list(conditions(match)) == [
        ("exe", "/a*"),
        ("exe", "/b"),
        ("uid", "5"),
        ("cause", "killed"),
        ("signal", "SIGSEGV"),
        ("signal", "SIGRTMIN+2"),
        ("container", "no"),
    ]
