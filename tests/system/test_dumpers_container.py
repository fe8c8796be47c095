"""A container that asks for its crashes gets them, and one that does not has them kept by the host.

The container is a process with namespaces of its own, in a cgroup that looks as systemd leaves it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.elfcore.reader import CoreFile
from collector.linux.cgroupfs import unified_mount
from tests.system.agents import agent
from tests.system.dumping import UNLIMITED
from tests.system.victims import PATIENCE, ROOT, build

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(unified_mount() is None, reason="needs cgroup v2"),
]

CONFIG = f"""{UNLIMITED}
dumpers:
  - name: container
    module: "collector.dumpers.container:Container"
    match: {{comm: null_main}}
"""
# Its init, and the handler of its crashes: has a program die twice, the second time without it.
INIT = """
import array, json, os, socket, subprocess, sys
folder, victim = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "none", "/run"], check=True)
os.makedirs("/run/systemd")
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind("/run/systemd/coredump")
listener.listen()
def die():
    died = subprocess.Popen([victim], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=folder)
    died.stdin.write(b"\\n")
    died.stdin.close()
    return died
died = die()
peer, _ = listener.accept()
fields = {}
while True:
    packet, rights, _, _ = peer.recvmsg(1 << 16, 64)
    if rights:
        break
    name, _, value = packet.decode().partition("=")
    fields[name] = value
fd, = array.array("i", rights[0][2])
with open(f"{folder}/inside.core", "wb") as core:
    while data := os.read(fd, 1 << 20):
        core.write(data)
os.close(fd)
died.wait()
peer.close()
listener.close()
again = die()
again.wait()
print(json.dumps([fields, died.pid, died.returncode, again.pid]), flush=True)
"""


@contextlib.contextmanager
def unit_cgroup(**attributes: bytes) -> Iterator[Path]:
    """The cgroup of a unit of the host, with these attributes."""
    mount = unified_mount()
    assert mount is not None
    folder = Path(mount, "coreward-test.slice", f"coreward-test-{os.getpid()}.service")
    folder.mkdir(parents=True)
    try:
        for name, value in attributes.items():
            os.setxattr(folder, f"user.{name}", value)
        yield folder
    finally:
        folder.rmdir()
        with contextlib.suppress(OSError):
            folder.parent.rmdir()


def test_crashes_of_a_container_go_to_its_handler_while_it_has_one(tmp_path: Path) -> None:
    victim = build("null_main")
    with (
        agent(tmp_path, config=CONFIG, hold="bids: 1s, max: 1h") as one,
        unit_cgroup(delegate=b"1", coredump_receive=b"1") as cgroup,
    ):
        one.wait_line("dumper container .* is registered")
        # WHEN two processes of a container die, the second one without a handler there
        done = subprocess.run(
            [
                *("sh", "-c", f'echo $$ > {cgroup}/cgroup.procs; exec "$@"', "sh"),
                *("unshare", "--pid", "--fork", "--mount", "--propagation", "private"),
                *(sys.executable, "-c", INIT, str(tmp_path), str(victim)),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
        fields, pid, status, _ = json.loads(done.stdout)
        # THEN the first one's core is inside, with the ids of the inside
        assert status == -11
        assert (fields["COREDUMP_PID"], fields["COREDUMP_SIGNAL"]) == (str(pid), "11")
        assert (fields["COREDUMP_UID"], fields["COREDUMP_COMM"]) == ("0", "null_main")
        assert {f"COREDUMP_{name}" for name in ("GID", "TIMESTAMP", "RLIMIT", "HOSTNAME")} <= {
            *fields
        }
        with CoreFile(tmp_path / "inside.core") as core:
            assert core.threads[0].signal == 11
            ip = core.threads[0].regs[16]
        # AND the host has a record of it, and a core of the second one
        one.wait_line(r"pid \d+ null_main")
        one.wait_line(r"pid \d+ null_main")
        second, first = one.listed("--comm", "null_main")
        assert (first["outcome"], first["ip"], first["core"]) == ("handled", ip, None)
        assert first["dumpers"][0]["note"].endswith("bytes to the handler of its container")
        assert (second["outcome"], second["dumpers"][0]["status"]) == ("complete", 111)
