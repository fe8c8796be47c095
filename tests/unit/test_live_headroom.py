"""Whether a copy of a process fits beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from collector.linux.memory import CgroupLevel, LevelKey, MemoryFacts
from collector.snapshot.headroom import RESERVE, NoRoom, check_room, price_of, shortage

GIB, MIB = 1 << 30, 1 << 20


def facts(
    private: int | None = GIB, available: int | None = 64 * GIB, *levels: CgroupLevel
) -> MemoryFacts:
    return MemoryFacts(
        private=private, host_total=128 * GIB, host_available=available, levels=levels
    )


def level(limit: int, usage: int, reclaimable: int = 0) -> CgroupLevel:
    return CgroupLevel(
        path="/sys/fs/cgroup/x",
        key=LevelKey(1, 2),
        limit=limit,
        usage=usage,
        reclaimable=reclaimable,
    )


def test_what_a_copy_costs() -> None:
    # a page of entries for 511 pages, and all pages once more if all are written meanwhile
    assert price_of(facts()) == GIB // 511 + GIB
    assert price_of(facts(None)) is None


@pytest.mark.parametrize(
    ("known", "reason"),
    [
        (facts(), None),
        (facts(GIB, 64 * GIB, level(4 * GIB, GIB)), None),
        (facts(GIB, 64 * GIB, level(4 * GIB, 3 * GIB)), "has 1024 MiB left of 4096 MiB"),
        (facts(GIB, 64 * GIB, level(4 * GIB, 3 * GIB, GIB)), None),  # the page cache gives way
        (facts(GIB, 64 * GIB, level(9 * GIB, 0), level(GIB, GIB)), "has 0 MiB left of 1024 MiB"),
        (facts(GIB, GIB), "the host has 1024 MiB"),
        (facts(GIB, None), "the memory of the host is unknown"),
        (
            MemoryFacts(private=GIB, host_total=GIB, host_available=GIB, levels=None),
            "the memory cgroup of the process is unknown",
        ),
    ],
)
def test_the_first_shortage_is_told(known: MemoryFacts, reason: str | None) -> None:
    """
    GIVEN memory cgroups and a host with some room
    WHEN 1 GiB more is needed, and the reserve is to be left
    THEN it is told where that is missing, or nothing
    """
    found = shortage(known, GIB)
    assert (found is None) == (reason is None)
    assert reason is None or (found is not None and found.endswith(reason))


def test_a_refusal_names_the_cgroup(tmp_path: Path) -> None:
    """
    GIVEN a process of 64 MiB in a cgroup v2 with room for 10 MiB and the reserve
    WHEN a copy is asked for
    THEN it is refused, and allowed once there is room
    """
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    group = cgroups / "service"
    (proc / "7").mkdir(parents=True)
    group.mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable: 8000000 kB\n")
    (proc / "7/status").write_text("RssAnon:\t65536 kB\n")
    (proc / "7/cgroup").write_text("0::/service\n")
    (group / "memory.max").write_text(f"{100 * MIB}\n")
    (group / "memory.current").write_text(f"{90 * MIB - RESERVE}\n")
    with pytest.raises(NoRoom, match=f"no copy of process 7: .* memory cgroup {group} has 26 MiB"):
        check_room(7, proc=proc, cgroups=cgroups)
    (group / "memory.max").write_text(f"{200 * MIB}\n")
    check_room(7, proc=proc, cgroups=cgroups)
