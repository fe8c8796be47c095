"""A real Prometheus scrapes a real agent, and the alerts fire: the way from a death to a person."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.metrics_document import documented
from tests.promtool import PROMETHEUS, RULES
from tests.system.agents import agent, free_port
from tests.system.victims import PATIENCE, Stuck, running, wait_until

# (so that others who die on this machine are none of ours, and few of ours are explained)
CONFIG = """
defaults: {capture: none, limit: {captures: 1, period: 1h}}
rules:
  - name: ours
    match: {comm: [null_main, heap_abort, illegal, divide, wait_for_kill]}
    capture: record
"""
TIMES = 6  # that each dies: together more than CorewardCrashStorm stands for
KINDS = {"null_main": "SIGSEGV", "heap_abort": "SIGABRT", "illegal": "SIGILL", "divide": "SIGFPE"}
Labels = dict[str, str]


class Prometheus:
    """A server that scrapes one agent each second; alerts do not wait, whatever their `for`."""

    def __init__(self, folder: Path, target: int) -> None:
        self.port = free_port()
        for name in ("recording.yaml", "alerts.yaml"):
            document = yaml.safe_load((RULES / name).read_text())
            for rule in (rule for group in document["groups"] for rule in group["rules"]):
                if "alert" in rule:
                    rule["for"] = "0s"
            (folder / name).write_text(yaml.safe_dump(document))
        document = yaml.safe_load((RULES / "scrape.yaml").read_text())
        (scrape,) = document["scrape_configs"]
        scrape["scrape_interval"] = scrape["scrape_timeout"] = "1s"
        scrape["static_configs"] = [{"targets": [f"127.0.0.1:{target}"]}]
        document["global"] = {"evaluation_interval": "1s"}
        (folder / "prometheus.yml").write_text(yaml.safe_dump(document))
        self.process = subprocess.Popen(
            [
                PROMETHEUS,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{self.port}",
                "--enable-feature=exemplar-storage",
            ],
            stderr=subprocess.DEVNULL,
        )

    def get(self, path: str, **parameters: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            return json.load(answer)["data"]

    def value(self, query: str) -> float | None:
        """Of the only series; None if there is none yet, or nobody answers."""
        with contextlib.suppress(OSError):
            for one in self.get("query", query=query)["result"]:
                return float(one["value"][1])
        return None

    def firing(self) -> list[Labels]:
        return [one["labels"] for one in self.get("alerts")["alerts"] if one["state"] == "firing"]

    def wait_firing(self, **wanted: str) -> None:
        end = time.monotonic() + PATIENCE
        while not any(wanted.items() <= labels.items() for labels in self.firing()):
            if time.monotonic() > end:
                raise Stuck(f"no alert {wanted} among {self.firing()}")
            time.sleep(0.2)


@contextlib.contextmanager
def prometheus(folder: Path, target: int) -> Iterator[Prometheus]:
    folder.mkdir()
    server = Prometheus(folder, target)
    try:
        end = time.monotonic() + PATIENCE
        while server.value("up") != 1:
            if time.monotonic() > end:
                raise Stuck("the agent is not scraped")
            time.sleep(0.1)
        yield server
    finally:
        server.process.kill()
        server.process.wait()


@contextlib.contextmanager
def service(name: str) -> Iterator[Path]:
    """A control group, as systemd makes one for a service."""
    root = Path("/sys/fs/cgroup/unified")
    group = (root if root.is_dir() else Path("/sys/fs/cgroup")) / name
    group.mkdir()
    try:
        yield group
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text(), "the group is empty")
        group.rmdir()


def die(name: str, folder: Path, group: Path | None = None) -> int:
    """The pid of one that has died."""
    with running(name, cwd=folder, cgroup=group) as victim:
        if name == "wait_for_kill":
            victim.process.kill()
        else:
            victim.go()
        victim.wait()
    return victim.pid


def test_from_a_death_to_an_alert(tmp_path: Path) -> None:
    loop = f"looping-{os.getpid()}.service"
    with (
        agent(tmp_path, config=CONFIG, metrics=True) as one,
        prometheus(tmp_path / "prometheus", one.port) as server,
    ):
        # GIVEN an agent that is well
        assert {a["alertname"] for a in server.firing()} <= {"CorewardStoreNearlyFull"}
        names = {name.removesuffix("_sum") for name in server.get("label/__name__/values")}
        assert documented() - {"coreward_triggers_total"} <= names

        # WHEN one process crashes THEN that raises an alert, which names the signal
        first = one.wait_record(die("illegal", tmp_path))
        server.wait_firing(alertname="CorewardCrash", signal="SIGILL", cause="signal")
        # AND the chart's point has the id of the record
        kept = server.get(
            "query_exemplars",
            query='coreward_deaths_total{signal="SIGILL"}',
            start=str(time.time() - 600),
            end=str(time.time() + 600),
        )
        assert [e["labels"] for found in kept for e in found["exemplars"]] == [{"crash_id": first}]

        # WHEN many die, of each kind, and one service again and again
        with service(loop) as group:
            for _ in range(TIMES):
                for name in KINDS:
                    die(name, tmp_path, group if name == "null_main" else None)
            killed = die("wait_for_kill", tmp_path)
        # THEN each raises its alert
        for signo in KINDS.values():
            server.wait_firing(alertname="CorewardCrash", signal=signo)
        server.wait_firing(alertname="CorewardCrashLoop", unit=loop, severity="critical")
        server.wait_firing(alertname="CorewardCrashStorm")
        # AND who was killed by another raises none
        one.wait_record(killed)
        assert not [a for a in server.firing() if a.get("cause") == "killed"]

        # WHEN the policy is damaged, and others take core_pattern
        (tmp_path / "coreward.yaml").write_text("defaults: {capture: stakcs}")
        one.process.send_signal(signal.SIGHUP)
        one.settings.write("core_pattern", "core")
        # THEN both is told
        server.wait_firing(alertname="CorewardPolicyRefused")
        server.wait_firing(alertname="CorewardCorePatternTaken")

        # WHEN it ends THEN it is missed
        one.stop()
        server.wait_firing(alertname="CorewardAgentAbsent")
