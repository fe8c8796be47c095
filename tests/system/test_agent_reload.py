"""A configuration that changes while the agent runs: taken over when it is right, else refused."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from tests.system.agents import RunningAgent, agent
from tests.system.victims import running


def test_a_configuration_is_read_again(tmp_path: Path) -> None:
    # GIVEN an agent that keeps cores
    with agent(tmp_path, config="defaults: {limit: none}", backend="auto", loader="auto") as one:
        file = tmp_path / "coreward.yaml"
        good = file.read_text()
        # WHEN its file says otherwise, and it is told so
        file.write_text(good.replace("limit: none", "limit: none, capture: threads"))
        one.process.send_signal(signal.SIGHUP)
        one.wait_line(r"policy: .*coreward\.yaml is in force")
        # THEN that holds for the next death
        assert plain_death(one, tmp_path)["capture"] == "threads"


def plain_death(one: RunningAgent, folder: Path) -> dict[str, Any]:
    with running("null_main", cwd=folder) as victim:
        victim.go()
        victim.wait()
    return one.record(victim.pid)


def test_a_bad_configuration_leaves_the_old_one_in_force(tmp_path: Path) -> None:
    # GIVEN an agent that keeps stacks
    with agent(tmp_path, config="defaults: {capture: stacks}", metrics=True) as one:
        file = tmp_path / "coreward.yaml"
        good = file.read_text()
        assert one.metric("coreward_config_last_reload_successful") == 1
        # WHEN its file is damaged, and it is told to read it
        file.write_text(good.replace("capture: stacks", "capture: stakcs"))
        one.process.send_signal(signal.SIGHUP)
        line = one.wait_line(r"policy: the old one stays in force")
        # THEN it says what is wrong and where, goes on as before, and the metric tells
        assert f"{file}:3: defaults.capture: " in line
        assert one.metric("coreward_config_last_reload_successful") == 0
        assert plain_death(one, tmp_path)["capture"] == "stacks"
        # AND WHEN the file is right again
        file.write_text(good)
        one.process.send_signal(signal.SIGHUP)
        one.wait_line(r"policy: .*coreward\.yaml is in force")
        # THEN the metric says so
        assert one.metric("coreward_config_last_reload_successful") == 1


def test_the_agent_can_not_be_crashed_into_waiting_for_itself(tmp_path: Path) -> None:
    """Not a policy, but what every policy rests on: the agent's own death is not handed to it."""
    with agent(tmp_path) as one:
        one.process.send_signal(signal.SIGSEGV)
        assert one.process.wait(10) == -signal.SIGSEGV
