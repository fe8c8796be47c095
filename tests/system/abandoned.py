"""A test run to be killed: it has taken over crashes and mounted something, and waits."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.system.agents import agent
from tests.system.scratch import tmpfs


def test_it_waits(tmp_path: Path) -> None:
    folder = tmp_path / "mounted"
    folder.mkdir()
    with tmpfs(folder, "1m"), agent(tmp_path):
        print("busy", flush=True)
        signal.pause()
