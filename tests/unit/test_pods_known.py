"""What is known of pods when a process dies: names that were read before, and those that are asked
for."""

from __future__ import annotations

import ctypes
import errno
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from msgspec.structs import replace

from collector.circumstances import PodSource
from collector.linux import inotify
from collector.pods import known
from collector.pods.known import Pods, _size
from tests.unit.pod_samples import CGROUP, CONTAINERD, DOCKER, ID, OTHER_UID, UID, containerd, logs
from tests.unit.test_pods_files import BARE, BY_LOGS, NAMED, OPTED_OUT

PATIENCE = 60.0  # seconds, for what takes milliseconds on an idle machine
OTHER = "9ab3" * 16


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Pods]:
    made = Pods(tmp_path)
    yield made
    made.close()


def wait_until(condition: Callable[[], bool]) -> None:
    end, pause = time.monotonic() + PATIENCE, threading.Event()
    while not condition():
        assert time.monotonic() < end
        pause.wait(0.01)


@pytest.mark.parametrize("cgroup", [None, "/", "/system.slice/db.service", f"/docker/{ID}"])
def test_what_is_in_no_pod(pods: Pods, cgroup: str | None) -> None:
    assert pods.known(cgroup) is None
    assert pods.find(cgroup) is None


def test_names_are_asked_for_and_then_known(pods: Pods, tmp_path: Path) -> None:
    containerd(tmp_path)
    # WHEN nobody has asked, THEN no file is looked at
    assert pods.known(CGROUP) == BARE
    # WHEN somebody asks, THEN they are known from then on, also when the container is gone
    assert pods.find(CGROUP, PATIENCE) == NAMED
    shutil.rmtree(tmp_path / CONTAINERD)
    assert pods.known(CGROUP) == NAMED
    assert pods.find(CGROUP, 0) == NAMED
    # AND not for a pod that only claims this container
    assert pods.known(CGROUP.replace(UID, OTHER_UID)) == replace(BARE, uid=OTHER_UID)


def test_a_container_that_has_begun_and_ended_is_known(pods: Pods, tmp_path: Path) -> None:
    # GIVEN a node with a container
    containerd(tmp_path)
    pods.start()
    wait_until(lambda: pods.known(CGROUP) == NAMED)
    # WHEN another one begins, and is gone before anything of it dies
    (tmp_path / CONTAINERD / OTHER).mkdir()
    containerd(tmp_path, OTHER, **OPTED_OUT)
    cgroup = CGROUP.replace(ID, OTHER)
    wait_until(lambda: pods.known(cgroup) != replace(BARE, container_id=OTHER))
    shutil.rmtree(tmp_path / CONTAINERD / OTHER)
    # THEN it is known
    named = replace(NAMED, container_id=OTHER, annotations=OPTED_OUT)
    assert pods.find(cgroup, 0) == named


@pytest.mark.parametrize("others", [False, True])
def test_a_runtime_that_comes_after_the_agent_is_watched(
    pods: Pods, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: bool
) -> None:
    # GIVEN a node that boots: the agent is there, and no folder of this runtime
    monkeypatch.setattr(known, "_LOOK_AGAIN_S", 0.01)
    monkeypatch.setattr(known, "_SELDOM_S", 0.01)
    if others:
        (tmp_path / DOCKER).mkdir(parents=True)
    pods.start()
    # WHEN the runtime has started a container, THEN that is known before anybody asks
    containerd(tmp_path)
    wait_until(lambda: pods.known(CGROUP) == NAMED)


def test_names_are_asked_for_where_inotify_is_used_up(
    pods: Pods, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # GIVEN a user whose inotify instances are all taken
    def used_up(_: int) -> int:
        ctypes.set_errno(errno.EMFILE)
        return -1

    monkeypatch.setattr(inotify, "_libc", SimpleNamespace(inotify_init1=used_up))
    containerd(tmp_path)
    # THEN names are still read for those who ask
    assert pods.find(CGROUP, PATIENCE) == NAMED
    assert "inotify" in caplog.text


def test_a_size_is_what_lies_in_memory() -> None:
    # GIVEN texts with one character that makes all the others wide
    wide = replace(NAMED, annotations={f"k{n}": "\U0001f4a5" + "a" * 255 for n in range(32)})
    assert _size(wide) > 32 * 4 * 256


def test_nobody_waits_longer_than_he_says(
    pods: Pods, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a file system that does not answer
    answer = threading.Event()
    read = pods._files.read
    monkeypatch.setattr(pods._files, "read", lambda one: (answer.wait(PATIENCE), read(one))[1])
    logs(tmp_path)
    # THEN there are the ids at once, and the names when it has answered
    assert pods.find(CGROUP, 0.01) == BARE
    answer.set()
    wait_until(lambda: pods.known(CGROUP) == BY_LOGS)


def test_what_was_not_there_is_not_looked_for_again_at_once(
    pods: Pods, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pods.find(CGROUP, PATIENCE) == BARE
    monkeypatch.setattr(pods._files, "read", lambda _: pytest.fail("it is looked for again"))
    assert pods.find(CGROUP, PATIENCE) == BARE


def test_what_is_kept_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # GIVEN room for three, and nobody who reads them in an order of his own
    monkeypatch.setattr(Pods, "_watch", lambda *_: None)
    pods = Pods(tmp_path, most_bytes=3 * _size(NAMED))
    ids = [f"{n:04x}" * 16 for n in range(5)]
    for id in ids:
        containerd(tmp_path, id)
        assert pods.find(CGROUP.replace(ID, id), PATIENCE) is not None
    shutil.rmtree(tmp_path / CONTAINERD)
    pods.close()
    found = [pods.find(CGROUP.replace(ID, id)) for id in ids]
    sources = [None if pod is None else pod.source for pod in found]
    assert sources == [PodSource.CGROUP] * 2 + [PodSource.BUNDLE] * 3


def test_what_is_asked_after_the_end_is_answered_at_once(pods: Pods, tmp_path: Path) -> None:
    containerd(tmp_path)
    pods.close()
    assert pods.find(CGROUP, PATIENCE) == BARE
