"""What /proc and a cgroup path say of a process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from collector.model import Cause
from collector.policy.facts import facts_of, is_container, unit_of_cgroup
from collector.policy.types import Facts

ID = "0123456789abcdef" * 4


def process(root: Path, status: bytes, cgroup: bytes, exe: str | None = "/bin/a") -> Path:
    """A /proc with one process, 7."""
    folder = root / "7"
    folder.mkdir()
    (folder / "status").write_bytes(status)
    (folder / "cgroup").write_bytes(cgroup)
    if exe is not None:
        (folder / "exe").symlink_to(exe)
    return root


def test_a_service_on_the_host(tmp_path: Path) -> None:
    proc = process(
        tmp_path,
        b"Name:\tdb\nUmask:\t0022\nUid:\t26\t0\t26\t26\nNSpid:\t7\n",
        b"0::/system.slice/db.service/worker\n",
    )
    assert facts_of(7, Cause.SIGNAL, 11, proc) == Facts(
        cause=Cause.SIGNAL,
        exe="/bin/a",
        comm="db",
        cgroup="/system.slice/db.service/worker",
        unit="db.service",
        uid=26,
        signal=11,
        container=False,
    )


def test_a_process_with_hostile_names_in_a_pid_namespace_of_its_own(tmp_path: Path) -> None:
    # GIVEN a name with a newline, a backslash, an `n` behind one, and a byte that is not UTF-8
    proc = process(
        tmp_path,
        b"Name:\ta\\nUid:\t0\\\\n\xff\nUid:\t1000\t0\t0\t0\nNSpid:\t7\t1\n",
        b"2:cpu:/\n1:name=systemd:/x:y\x0b/\xff\n",
        exe=None,
    )
    # WHEN its facts are read, THEN no name is taken for another field
    assert facts_of(7, Cause.OOM, None, proc) == Facts(
        cause=Cause.OOM,
        comm="a\nUid:\t0\\n\udcff",
        cgroup="/x:y\x0b/\udcff",
        uid=1000,
        container=True,
    )


def test_a_process_that_is_gone_has_no_facts(tmp_path: Path) -> None:
    assert facts_of(7, Cause.KILLED, 9, tmp_path) == Facts(cause=Cause.KILLED, signal=9)


def test_a_live_process_whose_executable_was_replaced(tmp_path: Path) -> None:
    # GIVEN a process whose executable is unlinked, and one that is really called so
    gone, odd = tmp_path / "gone", tmp_path / "odd (deleted)"
    for path in (gone, odd):
        shutil.copy("/bin/cat", path)
    live = [subprocess.Popen([path], stdin=subprocess.PIPE) for path in (gone, odd)]
    try:
        gone.unlink()
        # WHEN their facts are read
        read = [facts_of(child.pid, Cause.SIGNAL, 11) for child in live]
    finally:
        for child in live:
            child.communicate()

    # THEN rules on the path match both
    assert [(facts.exe, facts.uid) for facts in read] == [
        (str(gone), os.getuid()),
        (str(odd), os.getuid()),
    ]


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        ("/", None),
        ("/init.scope", "init.scope"),
        ("/system.slice", None),
        ("/system.slice/db.service", "db.service"),
        ("/system.slice/db.service/a/b.service", "db.service"),
        ("/a.slice/a-b.slice/db.service", "db.service"),
        ("/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service"),
        (r"/system.slice/dev-disk-by\x2duuid-1.swap", r"dev-disk-by\x2duuid-1.swap"),
        (r"/system.slice/system-x\x2dy.slice/x\x2dy@1.service", r"x\x2dy@1.service"),
        ("/system.slice/_cpu.service", "cpu.service"),  # systemd's own escape, cg_escape()
        ("/user.slice/user-1000.slice/session-3.scope", "session-3.scope"),
        ("/user.slice/user-1000.slice/user@1000.service/init.scope",
         "user@1000.service/init.scope"),
        ("/user.slice/user-1000.slice/user@1000.service", "user@1000.service"),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/app-x.slice/e.service/sub",
         "user@1000.service/e.service"),
        (f"/system.slice/docker-{ID}.scope/system.slice/db.service", f"docker-{ID}.scope"),
        (f"/docker/{ID}", None),
        ("/db.service.d/db.service", None),  # the first that is no slice, or none
        ("/system.slice/.service", None),
        ("/system.slice/a b.service", None),
        ("/system.slice/a.service\n", None),
        ("/system.slice/" + "a" * 300 + ".service", None),
    ],
)  # fmt: skip
def test_the_unit_is_the_one_that_systemd_started(path: str, unit: str | None) -> None:
    assert unit_of_cgroup(path) == unit


@pytest.mark.parametrize(
    ("path", "container"),
    [
        (f"/docker/{ID}", True),
        (f"/system.slice/docker-{ID}.scope", True),
        (f"/kubepods.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope", True),
        (f"/kubepods/burstable/pod1/{ID}", True),
        (f"/kubepods.slice/kubepods-pod1.slice/crio-{ID}.scope", True),
        (f"/user.slice/user-0.slice/user@0.service/user.slice/libpod-{ID}.scope/container", True),
        (f"/machine.slice/libpod-{ID}.scope", True),
        (f"/system.slice/containerd.service/kubepods-pod1.slice:cri-containerd:{ID}", True),
        ("/lxc/web", True),
        ("/lxc.payload.web/system.slice/db.service", True),
        ("/machine.slice/systemd-nspawn@web.service/payload", True),
        (r"/machine.slice/machine-web\x2d1.scope/payload", True),
        # what stands beside containers, and virtual machines, belongs to the host
        ("/system.slice/docker.service", False),
        ("/system.slice/containerd.service", False),
        (f"/machine.slice/libpod-conmon-{ID}.scope", False),
        (f"/kubepods-x/crio-conmon-{ID}.scope", True),
        ("/lxc.monitor.web", False),
        (r"/machine.slice/machine-qemu\x2d1\x2dvm.scope", False),
        ("/system.slice/mydocker-1.service", False),
        ("/", False),
    ],
)
def test_containers_are_known_by_their_cgroup(path: str, container: bool) -> None:
    assert is_container(path, False) is container


@pytest.mark.parametrize(
    ("path", "nested", "container"),
    [
        ("/a", True, True),
        (None, True, True),
        ("/docker/a", None, True),
        ("/a", None, None),
        (None, False, None),
        (None, None, None),
    ],
)
def test_a_container_is_also_known_by_its_pid_namespace(
    path: str | None, nested: bool | None, container: bool | None
) -> None:
    assert is_container(path, nested) is container


def test_reading_facts_imports_nothing_heavy() -> None:
    # GIVEN a fresh interpreter, WHEN it imports all that the agent needs of policy
    code = (
        "import sys, collector.policy.facts, collector.policy.match, collector.policy.limit, "
        "collector.policy.holder; print(sorted({'yaml', 'drgn', 'elftools'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # THEN YAML is not among it
    assert out.stdout == "[]\n"
