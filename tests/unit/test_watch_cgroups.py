"""What a look at the cgroups of a process says: shared, rare, and about whatever may be there."""

from __future__ import annotations

from pathlib import Path

import pytest

from collector.watch.cgroups import LOOK_S, Cgroups, CgroupVitals

MIB = 1 << 20
NONE_V1 = 0x7FFFFFFFFFFFF000  # what v1 says of no limit


class Host:
    """/proc and /sys/fs/cgroup made of files, and a clock."""

    def __init__(self, folder: Path) -> None:
        self.root, self.proc, self.now = folder / "cgroup", folder / "proc", 100.0
        self.root.mkdir()
        self.write(self.proc / "meminfo", "MemTotal: 1024 kB\nMemAvailable: 256 kB\n")
        self.stall(self.proc / "pressure/memory", 0)
        self.cgroups = Cgroups(str(self.root), str(self.proc), lambda: self.now)

    def write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def stall(self, path: Path, total_us: int) -> None:
        line = "avg10=99.00 avg60=0.00 avg300=0.00 total"
        self.write(path, f"some {line}={total_us}\nfull {line}={total_us // 2}\n")

    def group(self, path: str, **files: int | str) -> Path:
        """A cgroup; the names of its files have "_" for their first "."."""
        for name, text in files.items():
            self.write(self.root / path / name.replace("_", ".", 1), f"{text}\n")
        return self.root / path

    def look(self, groups: str, after: float = LOOK_S) -> CgroupVitals:
        self.now += after
        return self.cgroups.look(groups.encode())


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def used(vitals: CgroupVitals) -> list[tuple[str | None, int, int]]:
    return [(use.of and Path(use.of).name, use.used, use.limit) for use in vitals.memory]


def test_each_level_with_a_limit_counts_and_what_can_be_dropped_does_not(host: Host) -> None:
    # GIVEN a cgroup below another, each with a limit, of which part is cache
    host.group("a", memory_max=1000, memory_current=900, memory_stat="inactive_file 300")
    host.group("a/b", memory_max="max", memory_high=500, memory_current=480, memory_stat="x 1")
    host.group("a/b/c", memory_max="max", memory_high="max", memory_current=480)
    assert used(host.look("0::/a/b/c\n")) == [("b", 480, 500), ("a", 600, 1000)]


def test_the_v1_controller_beside_an_empty_v2(host: Host) -> None:
    for name in ("unified", "memory"):
        (host.root / name).mkdir()
    host.group("memory/s", memory_limit_in_bytes=NONE_V1, memory_usage_in_bytes=7)
    host.group("memory/s/x", memory_limit_in_bytes=100, memory_usage_in_bytes=70)
    found = host.look("4:cpu,memory:/s/x\n1:name=systemd:/\n0::/\n")
    assert used(found) == [("x", 70, 100)]
    assert found.lost == {"memory-high": "no cgroup of it has memory.high"}


def test_the_host_stands_for_cgroups_without_a_limit(host: Host) -> None:
    host.group("free", memory_max="max", memory_current=MIB)
    assert used(host.look("0::/free\n")) == [(None, 768 << 10, 1 << 20)]


@pytest.mark.parametrize("groups", ["0::/gone\n", "0::/../outside\n", "3:memory:/gone\n0::/\n"])
def test_a_cgroup_that_cannot_be_seen(host: Host, groups: str) -> None:
    found = host.look(groups)
    assert found.memory == ()
    assert found.lost["memory"] == "its memory cgroup cannot be seen from here"


def test_pressure_is_that_of_the_cgroup_since_the_look_before(host: Host) -> None:
    file = host.group("a", memory_max="max") / "memory.pressure"
    host.stall(file, 5_000_000)
    assert host.look("0::/a\n").stalled is None  # it may be hours old
    host.stall(file, 5_500_000)
    found = host.look("0::/a\n", after=2.0).stalled
    assert found is not None and (found.of, found.value) == (str(file.parent), 0.25)


@pytest.mark.parametrize("groups", ["0::/a\n", "0::/\n"], ids=["no file", "root"])
def test_pressure_of_the_host_where_the_cgroup_has_none(host: Host, groups: str) -> None:
    host.group("a", memory_max="max")
    host.look(groups)
    host.stall(host.proc / "pressure/memory", 100_000)
    found = host.look(groups).stalled
    assert found is not None and (found.of, found.value) == (None, pytest.approx(0.1))


def test_a_kernel_without_pressure_says_so(host: Host) -> None:
    (host.proc / "pressure/memory").unlink()
    assert host.look("0::/\n").lost["pressure"] == "the kernel does not tell pressure (PSI)"


def test_events_of_memory_high_are_a_rate_of_each_level(host: Host) -> None:
    for name, count in (("a", 10), ("a/b", 100)):
        host.group(name, memory_high=9, **{"memory_events.local": f"low 0\nhigh {count}\nmax 7"})
    assert host.look("0::/a/b\n").high == ()
    host.group("a", **{"memory_events.local": "low 0\nhigh 16\nmax 7"})
    found = host.look("0::/a/b\n", after=2.0)
    assert [(Path(rate.of or "").name, rate.value) for rate in found.high] == [("b", 0), ("a", 3)]
    assert "memory-high" not in found.lost


def test_processes_of_one_cgroup_share_a_look(host: Host) -> None:
    # GIVEN a cgroup in which a look has just been taken
    file = host.group("a", memory_max=1000, memory_current=900) / "memory.current"
    before = host.look("0::/a\n")
    # WHEN the figures change, and 99 other processes are asked for within the same second
    file.write_text("700\n")
    # THEN all have that look, and the next one has the new figures
    for _ in range(99):
        assert host.look("0::/a\n", after=0.001) is before
    assert used(host.look("0::/a\n")) == [("a", 700, 1000)]
    # AND one in a cgroup below it, which is looked at by itself, shares what is above
    file.write_text("500\n")
    host.group("a/b", memory_max=10, memory_current=1)
    assert used(host.look("0::/a/b\n", after=0.001)) == [("b", 1, 10), ("a", 700, 1000)]


def test_what_nobody_asks_for_is_forgotten(host: Host) -> None:
    # GIVEN a process that moves to a new cgroup every second
    for number in range(200):
        group = host.group(f"g{number}", memory_max=1000, memory_current=1)
        host.look(f"0::/g{number}\n")
        for file in group.iterdir():
            file.unlink()
        group.rmdir()
    # THEN no more is known than of the last minutes
    assert max(len(host.cgroups._levels), len(host.cgroups._looks)) < 150
