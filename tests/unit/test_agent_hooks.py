"""Programs that get the record of a death: which deaths, as whom, for how long, how many."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from collector.agent.hooks import Hooks, run
from collector.export.metrics import Metrics
from collector.model import Cause, Record
from collector.policy.types import Hook, Match
from tests.unit.agent_fakes import FakeLane
from tests.unit.store_samples import SEGFAULT

EXITED = msgspec.structs.replace(SEGFAULT, cause=Cause.EXIT, signal=None)


def script(folder: Path, text: str) -> tuple[str, ...]:
    file = folder / "hook.sh"
    file.write_text(text)
    return ("/bin/sh", str(file), str(folder))


def test_the_record_is_on_its_stdin(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    lines = 'cat > "$1/stdin"; echo "$COREWARD_ID $COREWARD_HOOK" > "$1/env"; pwd > "$1/pwd"; env'
    hook = Hook(name="a", exec=script(tmp_path, lines), user=os.geteuid())
    assert run(hook, SEGFAULT) == 0
    assert msgspec.json.decode((tmp_path / "stdin").read_bytes(), type=Record) == SEGFAULT
    assert (tmp_path / "env").read_text() == f"{SEGFAULT.id} a\n"
    assert (tmp_path / "pwd").read_text() == "/\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="changes its user")
def test_it_runs_as_nobody() -> None:
    check = 'test "$(id -un)" = nobody && test "$(id -G)" = "$(id -g)"'
    assert run(Hook(name="a", exec=("/bin/sh", "-c", check)), SEGFAULT) == 0


def test_its_time_is_bounded_and_all_of_it_is_killed(tmp_path: Path) -> None:
    # GIVEN a hook that hangs, and has started another process that does
    lines = 'sleep 1000 & echo $! > "$1/child.new"; mv "$1/child.new" "$1/child"; wait'
    hook = Hook(name="a", exec=script(tmp_path, lines), user=os.geteuid(), timeout=0.3)
    before = time.monotonic()
    outcomes = []
    while not (tmp_path / "child").exists():  # on a busy host it may not come that far in time
        outcomes.append(run(hook, SEGFAULT))
        hook = msgspec.structs.replace(hook, timeout=hook.timeout * 2)
    # THEN it is killed, and that one with it, when it gets a CPU for that
    assert set(outcomes) == {None}
    child = Path(f"/proc/{(tmp_path / 'child').read_text().strip()}/stat")
    with contextlib.suppress(OSError):  # it is gone
        while child.read_text().rpartition(") ")[2][0] not in "ZX":
            assert time.monotonic() - before < 500
            time.sleep(0.01)


@pytest.fixture
def lane() -> FakeLane:
    return FakeLane("hook")


def hooks_of(lane: FakeLane, *hooks: Hook) -> tuple[Hooks, Metrics]:
    metrics = Metrics()
    made = Hooks(metrics, lane)  # type: ignore[arg-type]
    made.configure(hooks)
    return made, metrics


def counted(metrics: Metrics, outcome: str) -> float:
    name = "coreward_hook_runs_total"
    return metrics.registry.get_sample_value(name, {"outcome": outcome}) or 0.0


TRUE, FALSE = ("/bin/true",), ("/bin/false",)


@pytest.mark.parametrize(
    ("match", "record", "wanted"),
    [
        (Match(), SEGFAULT, True),
        (Match(), EXITED, True),
        (Match(unit=("victim.*",)), SEGFAULT, True),
        (Match(unit=("other.*",)), SEGFAULT, False),
        (Match(signal=(6,)), SEGFAULT, False),
        # an exit that is on record was asked for by a rule
        (Match(unit=("victim.*",)), EXITED, True),
        (Match(cause=(Cause.EXIT,)), EXITED, True),
        (Match(cause=(Cause.EXIT,)), SEGFAULT, False),
        # a hook's own death
        (Match(), msgspec.structs.replace(SEGFAULT, ppid=os.getpid()), False),
    ],
)
def test_which_deaths(lane: FakeLane, match: Match, record: Record, wanted: bool) -> None:
    hooks, _ = hooks_of(lane, Hook(name="a", match=match, exec=TRUE))
    hooks.died(record)
    assert len(lane.tasks) == wanted


def test_what_became_of_them_is_counted(lane: FakeLane, caplog: pytest.LogCaptureFixture) -> None:
    me: dict[str, Any] = {"user": os.geteuid()}
    hooks, metrics = hooks_of(
        lane,
        Hook(name="good", exec=TRUE, **me),
        Hook(name="bad", exec=FALSE, **me),
        Hook(name="missing", exec=("/no/such/program",), **me),
        Hook(name="slow", exec=("/bin/sleep", "1000"), timeout=0.05, **me),
    )
    hooks.died(SEGFAULT)
    lane.run()
    found = {outcome: counted(metrics, outcome) for outcome in ("done", "failed", "hung")}
    assert found == {"done": 1, "failed": 2, "hung": 1}
    assert "hook missing: /no/such/program cannot be run" in caplog.text


def test_how_many(lane: FakeLane) -> None:
    # GIVEN a death that comes again and again
    lane.limit = 30
    hooks, metrics = hooks_of(lane, Hook(name="a", exec=TRUE), Hook(name="b", exec=TRUE))
    for _ in range(100):
        hooks.died(SEGFAULT)
        if lane.waiting == 30:
            lane.tasks.clear()
    # THEN each hook is started sixty times in a minute, and what is beyond is counted
    assert counted(metrics, "dropped") == 80
    lane.limit = 0
    more, metrics = hooks_of(lane, Hook(name="a", exec=TRUE))
    more.died(SEGFAULT)
    assert counted(metrics, "dropped") == 1


def test_what_waits_when_the_agent_ends_is_dropped(lane: FakeLane) -> None:
    hooks, metrics = hooks_of(lane, Hook(name="a", exec=TRUE))
    hooks.died(SEGFAULT)
    lane.drop()
    assert counted(metrics, "dropped") == 1
