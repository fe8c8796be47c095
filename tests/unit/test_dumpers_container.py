"""Which containers ask for their crashes, and what they are told: no process dies here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from collector.dumpers.container import inside, leader_of, parse_map, receives, unit_path
from collector.linux.filesystems import open_beneath
from collector.linux.procfs import field

NSPAWN = "/machine.slice/systemd-nspawn@a.service"
NESTED = "/machine.slice/machine-b.slice/machine-b.scope"


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        (f"{NSPAWN}/payload/init.scope", NSPAWN),
        (f"{NESTED}/user.service", NESTED),
        ("/machine.slice/payload/own.service", None),  # it is not the host's unit
        ("/machine.slice", None),
        ("/", None),
    ],
)
def test_only_the_hosts_unit_is_asked(cgroup: str, unit: str | None) -> None:
    assert unit_path(cgroup) == unit


@pytest.mark.parametrize(
    ("attributes", "asks"),
    [
        ({"user.delegate": b"1", "user.coredump_receive": b"1"}, True),
        ({"user.coredump_receive": b"1"}, False),  # its cgroup is not its own
        ({"user.delegate": b"1"}, False),
        ({"user.delegate": b"1", "user.coredump_receive": b"0"}, False),
        ({}, False),
    ],
)
def test_a_unit_asks_by_both_of_its_attributes(
    tmp_path: Path, attributes: dict[str, bytes], asks: bool
) -> None:
    for name, value in attributes.items():
        try:
            os.setxattr(tmp_path, name, value)
        except OSError as error:
            pytest.skip(f"no attributes here: {error}")
    assert receives(tmp_path) is asks


def test_ids_are_those_of_the_inside() -> None:
    lines = parse_map("         0     100000      65536\n     70000       1000          1\n")
    assert [inside(lines, uid) for uid in (100000, 100005, 1000, 0, 165536)] == [
        *(0, 5, 70000),
        *(65534, 65534),  # nobody in there
    ]
    assert inside(lines, None) is None


def test_a_process_of_our_own_namespace_is_in_no_container() -> None:
    status = Path("/proc/self/status").read_bytes()
    if len((field(status, b"NSpid") or b"").split()) > 1:
        pytest.skip("we are in one ourselves")
    assert leader_of(os.getpid()) is None


def test_links_of_a_container_stay_inside_of_it(tmp_path: Path) -> None:
    # GIVEN a root folder whose /run leads to the host's, as its owner hopes
    root = tmp_path / "root"
    (root / "real").mkdir(parents=True)
    (root / "real" / "socket").write_text("its own")
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "socket").write_text("the host's")
    (root / "run").symlink_to("/real")
    (root / "up").symlink_to("../../real")
    fd = os.open(root, os.O_PATH)
    try:
        for path in ("run/socket", "up/socket"):
            found = open_beneath(fd, path)
            # THEN it is its own
            assert Path(f"/proc/self/fd/{found}").read_text() == "its own"
            os.close(found)
        with pytest.raises(FileNotFoundError):
            open_beneath(fd, "run/absent")
    finally:
        os.close(fd)
