"""The flight recorder beside crashes that the kernel hands over."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.agents import RunningAgent, agent
from tests.system.recorders import KEEP, WATCH, recorder_of, sampled
from tests.system.victims import running

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="module")
def watching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningAgent]:
    with agent(tmp_path_factory.mktemp("agent"), config=WATCH, metrics=True) as one:
        yield one
        assert not [line for line in one.lines if "Traceback" in line]


def test_a_core_and_the_last_samples_are_of_one_record(
    watching: RunningAgent, tmp_path: Path
) -> None:
    # WHEN a watched process crashes
    with running("watched", cwd=tmp_path) as victim:
        sampled(watching)
        victim.go()
        assert victim.wait() == -signal.SIGSEGV
        record = watching.record(victim.pid)
    # THEN its record has both
    assert (record["outcome"], record["samples"]["count"]) == ("complete", KEEP)


def test_deaths_while_the_recorder_hangs_are_recorded(
    watching: RunningAgent, tmp_path: Path
) -> None:
    # GIVEN a flight recorder that does not answer, WHEN a watched process dies
    with running("watched", cwd=tmp_path) as victim:
        sampled(watching)
        recorder = recorder_of(watching)
        os.kill(recorder, signal.SIGSTOP)
        try:
            victim.go()
            # THEN the process is gone at once all the same
            assert victim.wait() == -signal.SIGSEGV
        finally:
            os.kill(recorder, signal.SIGCONT)
        # AND its record is whole when the recorder comes to itself
        assert watching.record(victim.pid)["outcome"] == "complete"
