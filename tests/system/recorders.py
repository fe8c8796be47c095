"""An agent's flight recorder, and until it has samples of those that it watches."""

from __future__ import annotations

import time
from pathlib import Path

from tests.system.agents import RunningAgent, Stuck, scrape
from tests.system.victims import PATIENCE

WATCH = """
defaults: {limit: none}
watch:
  - name: service
    match: {comm: "wa*"}
    every: 20ms
    keep: 25
"""
KEEP = 25


def until(running: RunningAgent, sample: str, least: float) -> None:
    """Until a metric is at least this."""
    end = time.monotonic() + PATIENCE
    while running.metric(sample) < least:
        if time.monotonic() > end:
            raise Stuck(f"{sample} stays below {least}: {scrape(running.port)}")
        time.sleep(0.02)  # the agent answers each question


def recorder_of(running: RunningAgent) -> int:
    """The pid of the agent's flight recorder, which is there a moment after the agent is ready."""
    end = time.monotonic() + PATIENCE
    while (pid := _recorder_of(running)) is None:
        assert time.monotonic() < end
    return pid


def _recorder_of(running: RunningAgent) -> int | None:
    children = Path(f"/proc/{running.process.pid}/task").glob("*/children")
    pids = [int(pid) for listed in children for pid in listed.read_text().split()]
    names = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids}
    return next((pid for pid, name in names.items() if b"collector.watch\0" in name), None)


def sampled(running: RunningAgent, processes: int = 1) -> None:
    """Until each of so many processes that are watched has all the samples that are kept.

    On a busy machine they are looked at in turn; up to three more may be other people's.
    """
    so_far = running.metric("coreward_watch_samples_total")
    until(running, "coreward_watch_samples_total", so_far + (KEEP + 1) * (processes + 3))
