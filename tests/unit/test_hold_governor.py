"""Instant release or hold: the rule, the account of pins, and the readers of its facts."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from collector.agent.release import (
    Governor,
    Pins,
    PinTotals,
    ReleaseDecision,
    bytes_of,
    decide,
)
from collector.linux.memory import CgroupLevel, LevelKey, MemoryFacts, read_facts
from collector.model import Release
from collector.native.contract import OWNER_DEVICE
from collector.policy.types import ReleaseSettings

GIB = 1 << 30
ROOMY = MemoryFacts(private=GIB, host_total=16 * GIB, host_available=8 * GIB, levels=())
BY_POLICY = ReleaseDecision(mode=Release.AFTER_WRITE, reason="policy")
INSTANT = ReleaseDecision(mode=Release.INSTANT, reason="room for a successor")


def level(limit: int, usage: int, reclaimable: int = 0, path: str = "/cg/a") -> CgroupLevel:
    return CgroupLevel(
        path=path, key=key_of(path), limit=limit, usage=usage, reclaimable=reclaimable
    )


def key_of(path: str) -> LevelKey:
    """As stat(2) tells it, or any for a cgroup that is made up."""
    if not Path(path).exists():
        return LevelKey(1, len(path))
    about = Path(path).stat()
    return LevelKey(about.st_dev, about.st_ino)


def rule(
    settings: ReleaseSettings | None = None,
    pins: PinTotals | None = None,
    wanted: Release = Release.INSTANT,
    **facts: object,
) -> ReleaseDecision:
    """The decision on a roomy host, but for what is given."""
    return decide(
        wanted,
        settings or ReleaseSettings(),
        msgspec.structs.replace(ROOMY, **facts),
        pins or PinTotals(),
    )


def held(reason: str) -> ReleaseDecision:
    return ReleaseDecision(mode=Release.AFTER_COPY, reason=reason)


def test_a_roomy_host_lets_the_process_go() -> None:
    assert rule() == INSTANT
    assert rule(host_available=GIB) == INSTANT
    assert rule(levels=(level(2 * GIB, GIB), level(4 * GIB, 3 * GIB, path="/cg"))) == INSTANT
    assert rule(levels=(level(2 * GIB, 2 * GIB, reclaimable=GIB),)) == INSTANT


def test_policy_comes_first() -> None:
    assert rule(wanted=Release.AFTER_WRITE) == BY_POLICY


@pytest.mark.parametrize(
    ("settings", "pins", "facts", "reason"),
    [
        ({}, {}, {"private": None}, "the size of the process is unknown"),
        ({}, {}, {"host_available": None}, "the memory of the host is unknown"),
        ({}, {}, {"host_total": None}, "the memory of the host is unknown"),
        ({}, {}, {"levels": None}, "the memory cgroup of the process is unknown"),
        ({"max_pins": 2}, {"count": 2}, {}, "2 pins are open, the limit is 2"),
        (
            {"max_pinned": 2 * GIB},
            {"count": 1, "bytes": GIB + 1},
            {},
            "1024 MiB are pinned, 1024 MiB more would exceed 2048 MiB",
        ),
        (
            {},
            {"count": 1, "bytes": 7 * GIB + 1},
            {},
            "7168 MiB are pinned, 1024 MiB more would exceed 8192 MiB",
        ),
        (
            {},
            {"count": 1, "bytes": GIB},
            {"host_available": 2 * GIB - 1},
            "a successor needs 1024 MiB, those of other pins 1024 MiB; the host has 2048 MiB",
        ),
        (
            {},
            {},
            {"levels": (level(8 * GIB, 0), level(2 * GIB, GIB + 1, path="/cg"))},
            "a successor needs 1024 MiB, those of other pins 0 MiB; "
            "memory cgroup /cg has 1024 MiB of 2048 MiB",
        ),
        (
            {},
            {"count": 1, "bytes": GIB, "by_level": {key_of("/cg/a"): GIB}},
            {"levels": (level(4 * GIB, 3 * GIB),)},
            "a successor needs 1024 MiB, those of other pins 1024 MiB; "
            "memory cgroup /cg/a has 1024 MiB of 4096 MiB",
        ),
        (
            {},
            {},
            {"levels": (level(GIB, 2 * GIB, reclaimable=3 * GIB),), "private": 2 * GIB},
            "a successor needs 2048 MiB, those of other pins 0 MiB; "
            "memory cgroup /cg/a has 1024 MiB of 1024 MiB",
        ),
    ],
)
def test_a_process_is_held_when_its_successor_might_not_fit(
    settings: dict[str, int], pins: dict[str, object], facts: dict[str, object], reason: str
) -> None:
    totals = msgspec.convert(pins, PinTotals)
    assert rule(ReleaseSettings(**settings), totals, **facts) == held(reason)


class Host:
    """A /proc and a cgroup file system with one process, pid 7."""

    def __init__(self, root: Path, cgroup: str) -> None:
        self.proc, self.cgroups = root / "proc", root / "cgroup"
        self.write(self.proc / "meminfo", "MemTotal: 8 kB\nMemFree: 1 kB\nMemAvailable: 6 kB\n")
        self.write(
            self.proc / "7/status",
            "Name:\tRssAnon: 1 kB\nVmRSS:\t     12 kB\nRssAnon:\t 2 kB\nRssFile:\t 9 kB\n"
            "RssShmem:\t 1 kB\nVmSwap:\t 1 kB\nThreads:\t1\n",
        )
        self.write(self.proc / "7/cgroup", cgroup)

    @staticmethod
    def write(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def group(self, path: str, **files: str) -> str:
        for name, text in files.items():
            self.write(self.cgroups / path / name.replace("_", ".", 1), text)
        return str(self.cgroups / path)


def test_facts_with_cgroup_v2(tmp_path: Path) -> None:
    host = Host(tmp_path, "0::/a.slice/b.service\n")
    service = host.group(
        "a.slice/b.service",
        memory_max="max\n",
        memory_high="900\n",
        memory_current="500\n",
        memory_stat="anon 1\ninactive_file 100\n",
    )
    group = host.group("a.slice", memory_max="1000\n", memory_high="max\n", memory_current="600\n")
    assert read_facts(7, host.proc, host.cgroups) == MemoryFacts(
        private=4 * 1024,
        host_total=8 * 1024,
        host_available=6 * 1024,
        levels=(level(900, 500, 100, service), level(1000, 600, 0, group)),
    )


def test_facts_with_cgroup_v1_beside_v2(tmp_path: Path) -> None:
    host = Host(tmp_path, "4:cpu,memory:/docker/x:y\n1:name=systemd:/\n0::/\n")
    (tmp_path / "cgroup/unified").mkdir(parents=True)
    limited = {"memory.limit_in_bytes": "700\n", "memory.usage_in_bytes": "300\n"}
    for name, text in limited.items():
        host.write(host.cgroups / "memory/docker/x:y" / name, text)
    host.write(host.cgroups / "memory/docker/x:y/memory.stat", "total_inactive_file 50\n")
    host.write(host.cgroups / "memory/memory.limit_in_bytes", "9223372036854771712\n")
    path = str(host.cgroups / "memory/docker/x:y")
    assert read_facts(7, host.proc, host.cgroups).levels == (level(700, 300, 50, path),)


@pytest.mark.parametrize("cgroup", ["0::/../elsewhere\n", "0::/not/mounted/here\n"])
def test_a_cgroup_that_cannot_be_seen_is_unknown(tmp_path: Path, cgroup: str) -> None:
    host = Host(tmp_path, cgroup)
    host.group("", memory_stat="")
    assert read_facts(7, host.proc, host.cgroups).levels is None


def test_a_process_that_is_gone_is_unknown(tmp_path: Path) -> None:
    host = Host(tmp_path, "0::/\n")
    facts = read_facts(8, host.proc, host.cgroups)
    assert (facts.private, facts.levels) == (None, None)


def test_the_account(tmp_path: Path) -> None:
    """
    GIVEN room for two pins of this size
    WHEN three processes die
    THEN two may go, the third is held; once a pin is released the next may go
    """
    host = Host(tmp_path, "0::/a\n")
    group = host.group("a", memory_max="8192\n", memory_current="0\n")
    pins = Pins()
    governor = Governor(ReleaseSettings(max_pinned=1 << 20), pins, host.proc, host.cgroups)
    host.write(host.proc / "meminfo", "MemTotal: 999 kB\nMemAvailable: 999 kB\n")

    first = governor.judge(7, Release.INSTANT)
    assert first.decision == INSTANT
    with governor.admitted(7, Release.INSTANT) as second:
        assert second == INSTANT
        assert pins.totals() == PinTotals(count=2, bytes=8192, by_level={key_of(group): 8192})
        third = governor.judge(7, Release.INSTANT)
        assert third.decision.mode is Release.AFTER_COPY
        assert third.reservation is None
        assert pins.totals().count == 2
    with governor.admitted(7, Release.INSTANT) as fourth:
        assert fourth == INSTANT
    assert governor.judge(7, Release.AFTER_WRITE) == (BY_POLICY, None, ())
    assert first.reservation is not None
    pins.release(first.reservation)
    assert pins.totals() == PinTotals()
    with pytest.raises(ValueError, match="not in list"):
        pins.release(first.reservation)


def test_an_owner_has_half_of_the_pins() -> None:
    # GIVEN an owner that has its share of ten, in cgroups of its own that have room
    settings, owner = ReleaseSettings(max_pins=10), LevelKey(OWNER_DEVICE, 1000)
    account = Pins()
    for _ in range(5):
        account.enter(GIB, (owner,))
    totals = account.totals()
    assert totals.by_level == {owner: 5}
    # WHEN one more of its processes dies, and one of somebody else
    mine = decide(Release.INSTANT, settings, ROOMY, PinTotals(by_level=totals.by_level), owner)
    others = decide(
        *(Release.INSTANT, settings, ROOMY, PinTotals(by_level=totals.by_level)),
        LevelKey(OWNER_DEVICE, 1001),
    )
    # THEN the first one waits, the other one does not
    assert (mine, others) == (held("5 pins are its user's already"), INSTANT)


@pytest.mark.parametrize(
    ("mine", "private", "reason"),
    [
        (1, GIB - 1, None),
        (1, GIB, "0 MiB of its user's are pinned, 1024 MiB more would exceed 1024 MiB"),
        (GIB, GIB, "1024 MiB of its user's are pinned, 1024 MiB more would exceed 1024 MiB"),
        (0, 2 * GIB, None),  # one alone may have all
    ],
)
def test_an_owner_has_half_of_the_bytes_or_one_pin(
    mine: int, private: int, reason: str | None
) -> None:
    settings, owner = ReleaseSettings(max_pinned=2 * GIB), LevelKey(OWNER_DEVICE, 1000)
    facts = msgspec.structs.replace(ROOMY, private=private)
    # GIVEN an owner who has so much pinned
    account = Pins()
    if mine:
        account.enter(mine, (owner, bytes_of(owner)))
    by_level = account.totals().by_level
    # WHEN one more of his processes dies
    found = decide(Release.INSTANT, settings, facts, PinTotals(by_level=by_level), owner)
    # THEN it waits if it would have more than half
    assert found == (INSTANT if reason is None else held(reason))
    # AND those of others do not
    another = LevelKey(OWNER_DEVICE, 1001)
    found = decide(Release.INSTANT, settings, facts, PinTotals(by_level=by_level), another)
    assert found == INSTANT
