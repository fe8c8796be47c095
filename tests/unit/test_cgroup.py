"""Which cgroup is shown for a process, and what the mounts say."""

from __future__ import annotations

from pathlib import Path

import pytest

from collector.linux import cgroupfs


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (b"0::/system.slice/db.service\n", "/system.slice/db.service"),
        (b"0::/\n", "/"),
        # hybrid: systemd's own hierarchy, then the memory controller's
        (b"2:memory:/a\n1:name=systemd:/b.service\n0::/\n", "/b.service"),
        (b"4:cpu,memory:/pods/x\n1:name=systemd:/\n0::/\n", "/pods/x"),
        (b"4:memory:/\n1:name=systemd:/\n0::/\n", "/"),
        (b"3:cpu:/only\n", None),
        # names hold what they like, but no newline
        (b"0::/a:b c\r\x85d\xff\n", "/a:b c\r\udc85d\udcff"),
    ],
)
def test_the_cgroup_to_show(text: bytes, path: str | None) -> None:
    assert cgroupfs.path_in(text) == path


V1 = "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n"
CPU = "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n"
V2 = "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"


@pytest.mark.parametrize(
    ("mounts", "unified", "v1", "memory"),
    [
        ("proc /proc proc rw 0 0\n", None, False, None),
        (V1, None, True, "/sys/fs/cgroup/memory"),
        (V2, "/sys/fs/cgroup/unified", False, None),
        (CPU + V2, "/sys/fs/cgroup/unified", True, None),
        (CPU + V1 + V2, "/sys/fs/cgroup/unified", True, "/sys/fs/cgroup/memory"),
    ],
)
def test_which_hierarchies_are_mounted(
    mounts: str, unified: str | None, v1: bool, memory: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "mounts"
    file.write_text(mounts)
    assert (cgroupfs.unified_mount(file), cgroupfs.has_v1(file)) == (unified, v1)
    assert cgroupfs.memory_mount(file) == memory


def test_no_id_is_no_cgroup() -> None:
    assert cgroupfs.path_of(0) is None
    assert cgroupfs.path_of(cgroupfs.V1) is None


_BEFORE = b"12:memory:/shop\n1:name=systemd:/shop.service\n0::/old\n"


@pytest.mark.parametrize(
    ("now", "found"),
    [
        # a zombie: v1 says the root, v2 the truth
        (b"12:memory:/\n1:name=systemd:/\n0::/new\n", {"memory": "/shop", "": "/new"}),
        # waited for
        (b"", {"memory": "/shop", "": "/old"}),
        # no v2
        (b"12:memory:/\n", {"memory": "/shop"}),
    ],
)
def test_the_cgroup_of_a_process_that_exits(now: bytes, found: dict[str, str]) -> None:
    lines = cgroupfs.of_exiting(now, _BEFORE).decode().splitlines()
    told = {line.split(":", 2)[1]: line.split(":", 2)[2] for line in lines}
    told.pop("name=systemd")
    assert told == found
