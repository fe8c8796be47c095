"""The agent as a service: what it tells its service manager, here one of the test's own."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service_manager import ServiceManager
from tests.system.agents import NotReady, agent
from tests.system.victims import running

FOREIGN = "|/bin/true %P"
# others may be dying on this machine, too
STATE = r"core BPF, (?:socket|pipe) hand-off; (\d+) deaths, \d+ wait for their core"


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    # that keeps no socket: with one, an agent that stops leaves the settings to the next one
    with ServiceManager(tmp_path, watchdog_s=2.0, keeps=0) as one:
        yield one


def test_it_is_ready_when_crashes_are_handed_over(tmp_path: Path, manager: ServiceManager) -> None:
    # GIVEN an agent that a service manager has started
    with agent(tmp_path, launch=manager.launch) as one:
        # WHEN it says that it is ready
        ready = manager.wait_for("READY", "1")
        # THEN the kernel hands over to it
        assert re.fullmatch(STATE, ready["STATUS"])
        with running("null_main", cwd=tmp_path) as victim:
            victim.go()
            victim.wait()
        assert one.record(victim.pid)["core"] is not None
        # AND its watchdog is fed, with the present state
        state = re.fullmatch(STATE, manager.wait_for("STATUS")["STATUS"])
        assert state is not None
        assert int(state[1]) > 0
        # AND at the end it says so
        assert one.stop() == 0
        assert manager.wait_for("STOPPING", "1")["STATUS"] == "finishing what is being written"


def test_a_reload_says_when_it_is_over_and_how(tmp_path: Path, manager: ServiceManager) -> None:
    with agent(tmp_path, launch=manager.launch, backend="none") as one:
        manager.wait_for("READY", "1")
        file = tmp_path / "coreward.yaml"
        good = file.read_text()
        # WHEN it is to read a file that is wrong
        file.write_text(good + "\nruls: []\n")
        one.process.send_signal(signal.SIGHUP)
        # THEN it says that it reloads, since when, and that the old policy stays and why
        assert int(manager.wait_for("RELOADING", "1")["MONOTONIC_USEC"]) > 0
        state = manager.wait_for("READY", "1")["STATUS"]
        assert re.search(rf"; the old policy stays in force: {file}:\d+: ruls: unknown key", state)
        # AND WHEN the file is right THEN that is gone
        file.write_text(good)
        one.process.send_signal(signal.SIGHUP)
        manager.wait_for("RELOADING", "1")
        assert "the old policy" not in manager.wait_for("READY", "1")["STATUS"]


def test_one_that_cannot_start_says_why(tmp_path: Path, manager: ServiceManager) -> None:
    with (
        pytest.raises(NotReady),
        agent(tmp_path, launch=manager.launch, backend="none", config="ruls: []"),
    ):
        pass
    said = manager.wait_for("STATUS")["STATUS"]
    assert re.match(rf"{tmp_path / 'coreward.yaml'}:\d+: ruls: unknown key", said)
    assert not any("READY" in message for message in manager.told)


@pytest.mark.parametrize("policy", ["keep", "true"])
def test_what_others_write_to_core_pattern_is_noticed(
    tmp_path: Path, manager: ServiceManager, policy: str
) -> None:
    # GIVEN an agent whose kernel setting is its own
    with agent(tmp_path, launch=manager.launch, takeover=policy, metrics=True) as one:
        ours = one.settings.read("core_pattern")
        # WHEN somebody writes it through a mount of /proc of his own
        subprocess.run(
            ["unshare", "-m", "sh", "-c", f"mount -t proc none {tmp_path} && echo '{FOREIGN}' "
             f"> {tmp_path}/sys/kernel/core_pattern"],
            check=True,
        )  # fmt: skip
        # THEN the agent says so (how soon: test_handoff_overwrites), and does what its policy says
        line = one.wait_line("by someone else's hand")
        assert FOREIGN in line
        kept = policy == "keep"
        assert one.settings.read("core_pattern") == (ours if kept else FOREIGN)
        done = "kept" if kept else "yielded"
        assert one.metric(f'coreward_core_pattern_overwritten_total{{done="{done}"}}') == 1
        assert one.metric("coreward_core_pattern_ours") == kept
        # AND doctor tells it in words
        checks = json.loads(one.attempt("doctor", "--json", "--run-dir", str(one.run_dir)).stdout)
        said = next(check["detail"] for check in checks if check["name"] == "core_pattern")
        assert ("an agent is at work" if kept else "someone else has written it") in said
        # AND at the end what they have written is in force
        assert one.stop() == 0
        assert one.settings.read("core_pattern") == FOREIGN
