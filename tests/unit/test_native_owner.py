"""Whose share a process uses: a user is one with all ids of the user namespaces that it makes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator

import pytest

from collector.native.build import build_library

IS_ROOT = os.geteuid() == 0
USER = 65534 if IS_ROOT else os.geteuid()
UID_INSIDE, CGROUP = 100007, 77
NEW_USERS = ("unshare", "--user", "--map-root-user")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    found = ctypes.CDLL(str(build_library(tmp_path_factory.mktemp("native"), inside=True)))
    found.owner_of.restype = ctypes.c_uint64
    found.owner_of.argtypes = (ctypes.c_int, ctypes.c_uint32, ctypes.c_uint64)
    return found


@contextlib.contextmanager
def running(*command: str, user: int = USER) -> Iterator[int]:
    """The pid of the process that `command` becomes, or that its children have started last."""
    waits = ("sh", "-c", "echo ready; read line")
    with subprocess.Popen(
        [*command, *waits],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        user=user if IS_ROOT else None,
        cwd="/",
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        try:
            if process.stdout.readline() != b"ready\n":
                pytest.skip("namespaces cannot be made here")
            yield last_child(process.pid)
        finally:
            process.stdin.close()


def last_child(pid: int) -> int:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        children = file.read().split()
    return last_child(int(children[-1])) if children else pid


def test_users_of_the_host(library: ctypes.CDLL) -> None:
    assert library.owner_of(os.getpid(), 1000, CGROUP) == 1000
    assert library.owner_of(os.getpid(), 0, CGROUP) == CGROUP << 32
    assert library.owner_of(os.getpid(), 0, 0) == 0


@pytest.mark.parametrize("depth", [1, 3])
def test_all_ids_of_a_users_namespaces_are_the_user(library: ctypes.CDLL, depth: int) -> None:
    with running(*NEW_USERS * depth) as pid:
        for uid in (UID_INSIDE, UID_INSIDE + 1, 0):
            assert library.owner_of(pid, uid, CGROUP) == USER


@pytest.mark.skipif(not IS_ROOT, reason="needs root")
@pytest.mark.parametrize("depth", [1, 2])
def test_namespaces_of_root_go_by_their_cgroup(library: ctypes.CDLL, depth: int) -> None:
    with running(*NEW_USERS * depth, user=0) as pid:
        assert library.owner_of(pid, UID_INSIDE, CGROUP) == CGROUP << 32


@pytest.mark.skipif(not IS_ROOT, reason="needs root")
def test_a_container_of_root_without_users_of_its_own(library: ctypes.CDLL) -> None:
    with running("unshare", "--pid", "--fork", user=0) as pid:
        assert library.owner_of(pid, 1000, CGROUP) == CGROUP << 32 | 1000


def test_a_process_that_has_gone_is_its_users(library: ctypes.CDLL) -> None:
    with subprocess.Popen(["true"]) as process:
        pass
    assert library.owner_of(process.pid, 1000, CGROUP) == 1000
