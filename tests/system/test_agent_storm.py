"""A storm of deaths by one program: the deaths of others are on record, and it is counted whole."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from collector.agent.crowd import REASON
from tests.system.agents import RunningAgent, Stuck, agent
from tests.system.needs import by_socket
from tests.system.victims import PATIENCE, build

CROWD = 50  # at a time; more than a user's share of so many pins
PINS = 16
STORM = 5000  # more than the ring has room for, and than a program's share


def records(running: RunningAgent, comm: str) -> list[dict[str, Any]]:
    """Those of a program's deaths that are on disk."""
    found = [json.loads(file.read_text()) for file in running.store.glob("crashes/*/record.json")]
    return [record for record in found if record["comm"] == comm]


def wait_for_count(running: RunningAgent, comm: str, wanted: int) -> list[dict[str, Any]]:
    """Wait until the records of a program stand for so many deaths, or more."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found = records(running, comm)
        if sum(record["count"] or 1 for record in found) >= wanted:
            return found
        if time.monotonic() > deadline:
            raise Stuck(f"{len(found)} records of {comm}, {wanted} deaths")
        time.sleep(0.2)  # there is nothing else to wait for: counts are told by no line


def wait_for_outcomes(running: RunningAgent, program: Path, wanted: int) -> list[dict[str, Any]]:
    """Wait until so many deaths of a program are on record, and their cores are, if there are any;
    their explanations may take longer."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found = [one for one in records(running, "storm") if one["exe"] == str(program)]
        if len(found) == wanted and all(one["outcome"] != "pending" for one in found):
            return found
        if time.monotonic() > deadline:
            raise Stuck(f"{len(found)} records of {program}, {wanted} deaths")
        time.sleep(0.2)  # as above


def test_a_storm_is_counted_to_the_last_one(tmp_path: Path) -> None:
    with agent(tmp_path) as running:
        # GIVEN a program that kills its children as fast as it can
        program = build("storm")
        storm = subprocess.Popen([program, str(STORM)])
        # WHEN somebody else dies meanwhile
        other = subprocess.Popen(["/bin/sleep", "1000"])
        other.kill()
        other.wait()
        assert storm.wait(PATIENCE) == 0

        # THEN that death has a record of its own
        assert running.record(other.pid)["signal"] == signal.SIGKILL
        # AND those of the storm are all there, most of them as one record
        found = wait_for_count(running, "storm", STORM)
        together = [record for record in found if record["count"]]
        assert len(together) == 1
        assert len(found) - 1 + together[0]["count"] == STORM
        assert together[0]["signal"] == signal.SIGKILL
        assert together[0]["exe"] == str(program)
        assert together[0]["outcome"] == "counted"


def test_a_storm_without_an_agent_is_counted_by_the_next(tmp_path: Path) -> None:
    with agent(tmp_path) as running:
        # GIVEN an agent that was killed
        running.process.kill()
        # WHEN a storm passes before the next one
        subprocess.run([build("storm"), str(STORM)], check=True)
        running.restart()
        # THEN it has all of its deaths
        found = wait_for_count(running, "storm", STORM)
        assert sum(record["count"] or 1 for record in found) == STORM


@pytest.mark.parametrize("backend", [by_socket("socket"), "pipe"])
def test_a_crowd_whose_cores_are_all_wanted(tmp_path: Path, backend: str) -> None:
    # GIVEN a policy that wants the core of each death
    config = f"release: {{max_pins: {PINS}}}\ndefaults: {{limit: none}}\n"
    with agent(tmp_path, backend=backend, config=config, patience="250ms", metrics=True) as running:
        # WHEN more of one user's processes crash at a time than can be pinned
        program = build("storm")
        storm = subprocess.Popen([program, str(CROWD), str(int(signal.SIGABRT))])
        assert storm.wait(PATIENCE) == 0
        # THEN each is on record, with its core or with the reason why there is none
        found = wait_for_outcomes(running, program, CROWD)
        assert all(one["signal"] == signal.SIGABRT for one in found)
        without = [one for one in found if one["core"] is None]
        assert 0 < len(without) < CROWD
        assert all("memory" in one["lost"] or "core" in one["lost"] for one in without)
        # AND those that were let go for the others' sake are counted
        spared = [one for one in found if REASON in one["lost"].values()]
        assert running.metric("coreward_captures_crowded_total") >= len(spared) > 0
