"""An armed process that crashes: the kernel hands it over, and its other pin only goes."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

from tests.system.agents import agent
from tests.system.armed import PROGRAMS, RULES, assert_same, look_at, wait_armed
from tests.system.victims import build, running, wait_until


def test_a_crash_is_handed_over_as_ever(tmp_path: Path) -> None:
    # GIVEN an agent that arms one program, which nobody else runs
    own = tmp_path / "own"
    shutil.copy(build("armed"), own)
    rules = RULES.replace(repr(PROGRAMS), repr([str(own)]))
    with agent(tmp_path, config=rules, metrics=True, extra=("--debug",)) as one:
        with running("armed", "8", "3", cwd=tmp_path, file=own) as victim:
            wait_armed(one, victim.pid)
            before = look_at(victim.pid)
            # WHEN an armed process dies of a signal that dumps core
            os.kill(victim.pid, signal.SIGSEGV)
            assert victim.wait() == -signal.SIGSEGV
        # THEN its core is that of the hand-off, by the rule for crashes, and the only one
        record = one.record(victim.pid)
        assert (record["rule"], record["outcome"]) == ("recorded", "complete")
        # BECAUSE who holds it while it lives is nobody who goes on writing to it
        assert record["release"] == "instant", record["release_reason"]
        assert [found["id"] for found in one.listed() if found["pid"] == victim.pid] == [
            record["id"]
        ]
        assert_same(before, one.core(record, tmp_path / "core"))
        # AND nothing of it is held
        wait_until(lambda: not one.metric("coreward_armed_processes"), "it is still armed")
        wait_until(lambda: not one.metric("coreward_pins_open"), "its memory is still held")
