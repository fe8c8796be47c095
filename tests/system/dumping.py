"""Dumpers for tests: this process, or children that are killed."""

from __future__ import annotations

import contextlib
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from collector.dumpers.client import Client
from collector.dumpers.plugin import SPECIAL
from collector.dumpers.protocol import Message
from tests.system.agents import RunningAgent
from tests.system.victims import PATIENCE, ROOT, Victim

UNLIMITED = "defaults: {limit: none}"
# a dumper that says that it has a process, and then nothing more
DEAF = """
import sys, time
from pathlib import Path
from collector.dumpers.client import Client
match = [("comm", "null_main")]
with Client.connect(Path(sys.argv[1]), sys.argv[2], priority=60, match=match) as client:
    print("registered", flush=True)
    for event in client.events():
        print(event.verb, flush=True)
        time.sleep(float(sys.argv[3]))
        if event.verb == "DUMP":
            client.let_go(event, 0)
"""


def join(one: RunningAgent, name: str, comm: str, **how: Any) -> Client:
    how = {"priority": SPECIAL, **how}
    return Client.connect(one.run_dir / "dumper", name, match=[("comm", comm)], **how)


def told(client: Client, verb: str) -> Message:
    assert select.select([client.fileno()], [], [], PATIENCE)[0], f"no {verb} came"
    event = client.receive()
    assert event.verb == verb
    return event


@contextlib.contextmanager
def deaf(one: RunningAgent, name: str, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """Another process that is a dumper, has registered, and takes so long for each message."""
    with subprocess.Popen(
        [sys.executable, "-c", DEAF, str(one.run_dir / "dumper"), name, str(seconds)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "registered\n"
            yield process
        finally:
            process.kill()


def is_dying(victim: Victim) -> bool:
    """Whether it waits, in its death."""
    status = Path(f"/proc/{victim.pid}/status").read_text()
    return "CoreDumping:\t1" in status and "State:\tZ" not in status
