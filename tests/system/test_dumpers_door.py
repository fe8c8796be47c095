"""Who may register a dumper with a running agent, and what becomes of them when it ends."""

from __future__ import annotations

import grp
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.dumpers.client import Client
from collector.dumpers.protocol import SPECIAL, Gone
from tests.system.agents import agent
from tests.system.victims import ROOT

pytestmark = pytest.mark.beside

NOBODY = 65534
REGISTER = """
import sys
from pathlib import Path
from collector.dumpers.client import Client
with Client.connect(Path(sys.argv[1]), "of-a-user", priority=50) as client:
    print("registered", client.id)
"""


def register_as_user(door: Path, groups: list[int]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", REGISTER, str(door)],
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        user=NOBODY,
        group=NOBODY,
        extra_groups=groups,
        capture_output=True,
        text=True,
        check=False,
    )


def test_root_may_register_and_nobody_else(tmp_path: Path) -> None:
    with agent(tmp_path, backend="none", loader="core", metrics=True) as one:
        door = one.run_dir / "dumper"
        # WHEN root registers a dumper, THEN it is counted as long as it is there
        with Client.connect(door, "one", priority=SPECIAL) as client:
            one.wait_line("dumper one .* is registered")
            assert one.metric("coreward_dumpers") == 1
            assert (client.bid_s, client.most_s) == (0.05, 30.0)
        one.wait_line("dumper one .* is gone: the other side has closed the connection")
        assert one.metric("coreward_dumpers") == 0
        # AND others have no way to the socket
        assert door.stat().st_mode & 0o777 == 0o600
        assert one.run_dir.stat().st_mode & 0o777 == 0o700
        assert "PermissionError" in register_as_user(door, []).stderr


@pytest.fixture
def passable() -> Iterator[Path]:
    """A folder that others can pass."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o711)
        yield Path(name)


def test_a_group_that_policy_names_may(passable: Path) -> None:
    group = grp.getgrnam("games")
    with agent(
        passable,
        backend="none",
        hold="group: games",
        loader="core",
    ) as one:
        door = one.run_dir / "dumper"
        # THEN its members reach the socket, and nothing else of the run directory
        assert (one.run_dir.stat().st_mode & 0o777, one.run_dir.stat().st_gid) == (
            0o710,
            group.gr_gid,
        )
        others = [path for path in one.run_dir.iterdir() if path != door]
        assert all(path.stat().st_mode & 0o077 == 0 for path in others)
        done = register_as_user(door, [group.gr_gid])
        assert (done.returncode, done.stdout) == (0, "registered 1\n"), done.stderr
        # AND a user who is handed the way to it all the same is refused
        one.run_dir.chmod(0o711)
        door.chmod(0o666)
        done = register_as_user(door, [])
        assert "(hold.group of the policy) may register dumpers" in done.stderr
        one.wait_line(f"of uid {NOBODY} may not register")


def test_an_agent_that_ends_tells_its_dumpers(tmp_path: Path) -> None:
    with agent(tmp_path, backend="none", loader="core") as one:
        door = one.run_dir / "dumper"
        with Client.connect(door, "left", priority=SPECIAL) as client:
            one.stop()
            assert client.receive().verb == "UNREGISTERED"
            with pytest.raises(Gone):
                client.receive()
        assert not door.exists()
