"""A user reads and removes what is left of his own process; nobody else's, and root's not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.agents import RunningAgent, agent
from tests.system.victims import ROOT

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
HIS, ANOTHERS = 54321, 54322

SEEN = """
import os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from collector.errors import CorewardError
from collector.store.store import Store
os.setgroups([]); os.setgid(int(sys.argv[3])); os.setuid(int(sys.argv[3]))
try:
    with Store(Path(sys.argv[2]), create=False) as store:
        for record in store.list():
            path = store.core_path(record)
            print(record.pid, None if path is None else path.read_bytes()[:4].hex())
        for word in sys.argv[4:]:
            store.remove(word)
except CorewardError as error:
    print(error)
"""


@pytest.fixture
def watching() -> Iterator[RunningAgent]:
    """With a store where other users can come to."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    try:
        with agent(folder, config="defaults: {limit: none, compress: none}") as one:
            yield one
    finally:
        shutil.rmtree(folder)


def dies(uid: int, script: str = "kill -SEGV $$") -> int:
    """A shell of this user that crashes; its pid."""
    command = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "sh", "-c", script]
    with subprocess.Popen(command) as process:
        process.wait()
    return process.pid


def seen(one: RunningAgent, uid: int, *remove: str) -> list[str]:
    """What this user sees of the store, and the beginnings of the cores; then what he removes."""
    words = [sys.executable, "-c", SEEN, str(ROOT), str(one.store), str(uid), *remove]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()


def test_his_own_and_no_others(watching: RunningAgent) -> None:
    # GIVEN crashes of two users and of root
    his, anothers, roots = dies(HIS), dies(ANOTHERS), dies(0)
    identity = watching.wait_record(his)
    assert watching.info(identity)["readable_by"] == HIS
    assert watching.record(anothers)["readable_by"] == ANOTHERS
    assert watching.record(roots)["readable_by"] is None
    # THEN each sees his own, with its core
    elf = b"\x7fELF".hex()
    assert seen(watching, HIS) == [f"{his} {elf}"]
    assert seen(watching, ANOTHERS) == [f"{anothers} {elf}"]
    assert {f"{pid} {elf}" for pid in (his, anothers, roots)} <= set(seen(watching, 0))
    # WHEN he removes it THEN he sees it no more
    seen(watching, HIS, identity)
    assert seen(watching, HIS) == []


def test_what_is_not_dumpable_is_roots(watching: RunningAgent) -> None:
    script = "import ctypes, os; ctypes.CDLL(None).prctl(4, 0); os.kill(os.getpid(), 11)"
    command = ["setpriv", f"--reuid={HIS}", f"--regid={HIS}", "--clear-groups"]
    with subprocess.Popen([*command, "/usr/bin/python3", "-c", script]) as process:
        process.wait()
    assert watching.record(process.pid)["readable_by"] is None
    assert "none of the crashes is yours to read" in seen(watching, HIS)[0]
