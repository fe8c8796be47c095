"""Deaths in containers as a kubelet has them made: by runc, in cgroups that are named as its are,
with bundles as containerd leaves them.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from collector.linux.inotify import Inotify
from tests.system.agents import RunningAgent, agent
from tests.system.scratch import NAME
from tests.system.victims import PATIENCE, wait_until
from tests.unit.pod_samples import CONTAINERD, spec

_POLICY = """
kubernetes: {{root: {root}}}
defaults: {{capture: record}}
rules:
  - name: shop
    match: {{namespace: shop, image: "*/web:*", container: true}}
    capture: stacks
"""
_VICTIM = """
#include <unistd.h>
int main(void) {
    char byte;
    write(1, "up\\n", 3);
    if (read(0, &byte, 1) == 1)
        *(volatile int *)0 = 1;
    return 0;
}
"""
_CLOSED = 0x10  # IN_CLOSE_NOWRITE of <linux/inotify.h>: somebody has read it
_HIERARCHIES = Path("/sys/fs/cgroup")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the / of a node, and the root of a container."""
    root = tmp_path_factory.mktemp("node")
    for folder in (CONTAINERD, "var/log/pods", "rootfs/proc"):
        (root / folder).mkdir(parents=True)
    source = root / "victim.c"
    source.write_text(_VICTIM)
    subprocess.run(["gcc", "-static", "-g", source, "-o", root / "rootfs/victim"], check=True)
    return root


@pytest.fixture(scope="module")
def running_agent(node: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningAgent]:
    policy = _POLICY.format(root=node)
    with agent(tmp_path_factory.mktemp("agent"), config=policy, metrics=True) as started:
        yield started


class Container:
    """One that runs `/victim`. `uid`: its pod's."""

    def __init__(self, node: Path, **annotations: str) -> None:
        self._state = node / "runc"
        self.id, self.uid = os.urandom(32).hex(), str(uuid.uuid4())
        self._name = f"{NAME}-{self.id[:8]}"
        self.bundle = node / CONTAINERD / self.id
        self._spec = spec(**{"io.kubernetes.cri.sandbox-uid": self.uid, **annotations}) | {
            "ociVersion": "1.0.0",
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["/victim"], "cwd": "/"},
            "root": {"path": str(node / "rootfs"), "readonly": True},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {
                "cgroupsPath": f"/{NAME}/kubepods/burstable/pod{self.uid}/{self.id}",
                "namespaces": [{"type": kind} for kind in ("pid", "ipc", "mount")],
            },
        }
        self.pid = 0

    def write_bundle(self, *, known: bool) -> None:
        """As its runtime does before it starts; known: wait until the agent has read it."""
        made = self.bundle.parent.parent / self.id
        made.mkdir()
        (made / "config.json").write_text(json.dumps(self._spec))
        with Inotify() as notify:
            notify.watch(str(made), _CLOSED)
            made.rename(self.bundle)
            while known and "config.json" not in {told.name for told in notify.read()}:
                assert select.select([notify], [], [], PATIENCE)[0], "the agent does not read it"

    def start(self) -> None:
        """Until it is up."""
        file = self.bundle.parent.parent / f"{self.id}.pid"
        reading, self._stdin = os.pipe()
        self._stdout, writing = os.pipe()
        try:
            create = ("create", "--bundle", str(self.bundle), "--pid-file", str(file))
            self._runc(*create, stdin=reading, stdout=writing, stderr=writing)
        finally:
            os.close(reading)
            os.close(writing)
        self.pid = int(file.read_text())
        self._runc("start")
        assert os.read(self._stdout, 3) == b"up\n"

    def crash(self) -> None:
        os.write(self._stdin, b"\n")

    def kill(self) -> None:
        self._runc("kill", last=("KILL",))

    def _runc(self, verb: str, *options: str, last: tuple[str, ...] = (), **files: int) -> None:
        command = ("runc", "--root", str(self._state), verb, *options, self._name, *last)
        subprocess.run(command, check=True, timeout=PATIENCE, **files)  # type: ignore[call-overload]

    def close(self) -> None:
        if self.pid:
            os.close(self._stdin)
            os.close(self._stdout)
        with contextlib.suppress(subprocess.CalledProcessError):
            self._runc("delete", "--force")
        shutil.rmtree(self.bundle, ignore_errors=True)
        for mount in (_HIERARCHIES, *_HIERARCHIES.iterdir()):
            path = mount / NAME / "kubepods/burstable" / f"pod{self.uid}" / self.id
            for folder in (path, *list(path.parents)[:4]):
                with contextlib.suppress(OSError):
                    folder.rmdir()


@contextlib.contextmanager
def container(node: Path, **annotations: str) -> Iterator[Container]:
    made = Container(node, **annotations)
    try:
        yield made
    finally:
        made.close()


def expected(one: Container, **differs: Any) -> dict[str, Any]:
    return {
        "uid": one.uid,
        "source": "bundle",
        "name": "web-0",
        "namespace": "shop",
        "container": "app",
        "container_id": one.id,
        "image": "registry.example/shop/web:1.4",
        "labels": {},
        "annotations": {},
        **differs,
    }


def test_a_crash_in_a_pod(running_agent: RunningAgent, node: Path) -> None:
    # GIVEN a container that begins, and crashes, on a node
    with container(node) as one:
        one.write_bundle(known=False)
        one.start()
        one.crash()
        record = running_agent.record(one.pid)
    # THEN its record says which pod it was, and the rule of its namespace was applied
    assert record["pod"] == expected(one)
    assert (record["rule"], record["capture"], record["container"]) == ("shop", "stacks", True)
    # AND it is found by it
    found = running_agent.listed("--namespace", "sh*", "--pod", "web-0")
    assert record["id"] in [other["id"] for other in found]
    assert running_agent.listed("--namespace", "other") == []


def test_a_container_that_is_gone_when_its_death_is_looked_at(
    running_agent: RunningAgent, node: Path
) -> None:
    # GIVEN a container of which nothing is left with its runtime
    with container(node, team="cart") as one:
        one.write_bundle(known=True)
        one.start()
        shutil.rmtree(one.bundle)
        # WHEN it is killed, so that nothing is handed over
        one.kill()
        record = running_agent.record(one.pid)
    # THEN its names are those that were read when it began
    assert record["pod"] == expected(one, annotations={"team": "cart"})
    assert (record["cause"], record["rule"]) == ("killed", "shop")


def test_a_pod_that_has_opted_out(running_agent: RunningAgent, node: Path) -> None:
    ignored = 'coreward_deaths_total{cause="signal",outcome="ignored",signal="SIGSEGV"}'
    before = running_agent.metric(ignored)
    with container(node, **{"coreward/collect": "false"}) as one:
        one.write_bundle(known=False)
        one.start()
        one.crash()
        # THEN its death is counted, and on no record
        wait_until(lambda: running_agent.metric(ignored) == before + 1, "it is not counted")
    assert one.pid not in [other["pid"] for other in running_agent.listed()]
