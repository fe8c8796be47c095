"""What a service manager is told, and what is taken from it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from collector.linux import service_manager
from collector.linux.service_manager import ServiceManager, from_environment, passed, status
from tests.service_manager import ServiceManager as Listening


def test_its_variables_are_taken_and_no_child_sees_them() -> None:
    # GIVEN what systemd sets
    own = str(os.getpid())
    environment = {
        **{"NOTIFY_SOCKET": "/run/systemd/notify", "WATCHDOG_USEC": "30000000"},
        **{"WATCHDOG_PID": own, "FDSTORE": "4", "PATH": "/usr/bin"},
    }
    # WHEN it is read
    manager = from_environment(environment)
    # THEN nothing of it is left for others
    assert manager is not None
    assert (manager.address, manager.watchdog_s, manager.keeps) == ("/run/systemd/notify", 30.0, 4)
    assert environment == {"PATH": "/usr/bin"}


@pytest.mark.parametrize(
    ("environment", "address", "watchdog_s"),
    [
        ({}, None, None),
        ({"NOTIFY_SOCKET": "vsock:2:1"}, None, None),
        ({"NOTIFY_SOCKET": "@"}, None, None),
        ({"NOTIFY_SOCKET": "@name"}, "@name", None),
        ({"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "1000000"}, "/s", 1.0),
        ({"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}, "/s", None),
        ({"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "-5"}, "/s", None),
        ({"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "9" * 400}, "/s", None),
    ],
)
def test_what_is_no_word_of_a_service_manager_is_none(
    environment: dict[str, str], address: str | None, watchdog_s: float | None
) -> None:
    manager = from_environment(environment)
    if address is None:
        assert manager is None
    else:
        assert manager is not None
        assert (manager.address, manager.watchdog_s) == (address, watchdog_s)


def test_it_is_told_and_given_descriptors(tmp_path: Path) -> None:
    with Listening(tmp_path) as listening:
        manager = ServiceManager(listening.address, keeps=1)
        # WHEN it is given the reading end of a pipe to keep
        read, write = os.pipe()
        assert manager.keep("pipe", read)
        os.close(read)
        message = listening.wait_for("FDSTORE", "1")
        # THEN it has one that works
        assert message == {"FDSTORE": "1", "FDNAME": "pipe", "FDPOLL": "0"}
        os.write(write, b"still there")
        assert os.read(listening.store["pipe"], 100) == b"still there"
        os.close(write)
        # AND WHEN it is to forget it THEN it is closed
        manager.forget("pipe")
        listening.wait_for("FDSTOREREMOVE", "1")
        assert listening.store == {}
        # AND a reload has the time at which it began
        manager.reloading()
        began = int(listening.wait_for("RELOADING", "1")["MONOTONIC_USEC"])
        assert began > 0


def test_an_abstract_name_is_one() -> None:
    name = f"coreward-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0{name}")
        assert ServiceManager(f"@{name}").tell("READY=1", status("a\nb\x1b[31m" + "x" * 5000))
        lines = listening.recv(65536).decode().split("\n")
    assert lines[0] == "READY=1"
    assert lines[1].startswith("STATUS=a b [31mxxx")
    assert len(lines) == 2
    assert len(lines[1]) < 1100


def test_a_manager_that_has_gone_is_no_error(tmp_path: Path) -> None:
    manager = ServiceManager(str(tmp_path / "nobody"), keeps=1)
    assert not manager.tell("READY=1")
    assert not manager.keep("pipe", 0)


def test_one_that_keeps_nothing_is_given_nothing(tmp_path: Path) -> None:
    with Listening(tmp_path, keeps=0) as listening:
        assert not ServiceManager(listening.address).keep("pipe", 0)
        assert listening.told == []


def test_descriptors_are_taken_by_their_names_and_not_inherited() -> None:
    # GIVEN four descriptors one behind the other, of which the third has the name of the first
    first = 200
    read, write = os.pipe()
    for number in range(first, first + 4):
        os.dup2(read, number, inheritable=True)
    environment = {
        **{"LISTEN_FDS": "4", "LISTEN_PID": str(os.getpid())},
        "LISTEN_FDNAMES": "coredump:other:coredump",
    }
    # WHEN they are taken
    found = passed(environment, first)
    # THEN two are ours alone; one that is there twice, and one without a name, are closed
    assert found == {"coredump": first, "other": first + 1}
    assert not any(os.get_inheritable(fd) for fd in found.values())
    for number in (first + 2, first + 3):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)
    assert environment == {}
    for fd in (*found.values(), read, write):
        os.close(fd)


@pytest.mark.parametrize(
    "environment",
    [
        {"LISTEN_FDS": "1", "LISTEN_PID": "1", "LISTEN_FDNAMES": "coredump"},
        {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "coredump"},
        {"LISTEN_FDS": "x", "LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": "coredump"},
        {"LISTEN_PID": str(os.getpid())},
    ],
)
def test_what_is_meant_for_others_is_left_alone(environment: dict[str, str]) -> None:
    assert passed(environment, 200) == {}
    assert environment == {}


def test_a_descriptor_that_is_not_open_is_none() -> None:
    own = str(os.getpid())
    environment = {"LISTEN_FDS": "1000000000", "LISTEN_PID": own, "LISTEN_FDNAMES": "coredump"}
    assert service_manager.passed(environment, 5000) == {}
