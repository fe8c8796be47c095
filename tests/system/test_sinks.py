"""Whoever is told of a death beside the store is told of a real one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.otlp_collector import Collector, attributes
from tests.system.agents import agent
from tests.system.victims import ROOT, running

CONFIG = """
defaults: {{capture: none}}
rules: [{{name: ours, match: {{comm: null_main}}, capture: stacks}}]
sinks: {{otlp: {{endpoint: "{url}"}}}}
health: {{socket: {socket}}}
"""


def ask(path: Path, *words: str) -> list[dict[str, Any]]:
    """What the example client prints."""
    client = [sys.executable, str(ROOT / "examples" / "health" / "client.py")]
    done = subprocess.run(
        [*client, "--socket", str(path), *words], capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_death_is_told(tmp_path: Path) -> None:
    path, collector = Path("/run/coreward-health-test.sock"), Collector()
    config = CONFIG.format(url=collector.url, socket=path)
    with agent(tmp_path, config=config) as one:
        # GIVEN an agent with sinks, of which nobody has died
        (state,) = ask(path, "state")
        assert state["core_pattern_ours"] and state["deaths"] == 0
        # WHEN a process crashes
        with running("null_main", cwd=tmp_path) as victim:
            victim.go()
            victim.wait()
        record = one.record(victim.pid)
        # THEN a collector has the whole of it
        (log,) = collector.wait(1)
        told = attributes(log)
        assert log["eventName"] == "app.crash"
        assert (told["app.crash.id"], told["process.pid"]) == (record["id"], str(victim.pid))
        assert log["body"]["stringValue"] == record["reason"]
        assert "null_main" in told["exception.stacktrace"]
        # AND so has the node's health agent
        (event,) = ask(path, "events")
        assert (event["id"], event["reason"]) == (record["id"], record["reason"])
        assert ask(path, "events", "--after", event["cursor"]) == []
        # WHEN it ends THEN nothing was lost on the way
        assert one.stop() == 0
        assert not [line for line in one.lines if "were not sent" in line]
    assert not path.exists()
    collector.close()


def test_lines_for_programs(tmp_path: Path) -> None:
    # GIVEN an agent whose output programs read; tests wait for its other lines
    with agent(tmp_path, config="defaults: {capture: record}") as one:
        one.stop()
        arguments = [*one.arguments, "--log-format", "json"]
        command = [sys.executable, "-m", "collector", "run", *arguments]
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None and process.stderr is not None
            ready = json.loads(process.stdout.readline())
            assert ready["event"] == "ready"
            with running("null_main", cwd=tmp_path) as victim:
                victim.go()
                victim.wait()
            # THEN a death is an object
            death: dict[str, Any] = {}
            while death.get("pid") != victim.pid:
                death = json.loads(process.stdout.readline())
            assert (death["event"], death["signal"]) == ("death", "SIGSEGV")
            process.send_signal(signal.SIGTERM)
            log = [json.loads(line) for line in process.stderr]
        # AND so is each line of its log
        assert process.returncode == 0
        assert {"time", "level", "logger", "message"} <= set(log[-1])
