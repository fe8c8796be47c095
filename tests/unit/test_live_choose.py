"""Which way to take a full stop suits a process."""

from __future__ import annotations

import mmap
import os

import pytest

from collector.linux import procfs
from collector.snapshot.choose import CopyChoice, CopyFacts, Method, choose, copy_facts

GIB = 1 << 30


@pytest.mark.parametrize(
    ("facts", "choice"),
    [
        (
            CopyFacts(resident=100 << 20, huge=None),
            CopyChoice(method=Method.FORK, why="100 MiB resident: a fork takes about 2.7 ms"),
        ),
        (
            CopyFacts(resident=2 * GIB, huge=0.0),
            CopyChoice(method=Method.PRECOPY, why="2048 MiB resident: a fork takes about 56.0 ms"),
        ),
        (
            CopyFacts(resident=2 * GIB, huge=0.98),
            CopyChoice(
                method=Method.FORK,
                why="2048 MiB resident, 98 % of it in huge pages: a fork takes about 3.1 ms",
            ),
        ),
        (
            CopyFacts(resident=6 * GIB, huge=1.0),
            CopyChoice(
                method=Method.PRECOPY,
                why="6144 MiB resident, 100 % of it in huge pages: a fork takes about 6.0 ms",
            ),
        ),
        (
            CopyFacts(resident=10 << 20, huge=None, no_room="no copy: its cgroup is full"),
            CopyChoice(method=Method.PRECOPY, why="10 MiB resident; no copy: its cgroup is full"),
        ),
    ],
)
def test_the_choice_and_its_reason(facts: CopyFacts, choice: CopyChoice) -> None:
    assert choose(facts) == choice


def test_the_share_of_huge_pages_is_looked_at() -> None:
    # GIVEN a process (this one) that says it has a gigabyte, and has a large area, in huge pages as
    # far as this machine has some
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    with mmap.mmap(-1, 256 << 20, flags=private) as area:
        area.madvise(mmap.MADV_HUGEPAGE)
        for at in range(0, len(area), 4096):
            area[at] = 1
        pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)
        try:
            facts = copy_facts(os.getpid(), GIB, pagemap)
        finally:
            os.close(pagemap)
        whole = procfs.read("/proc/self/smaps_rollup") or b""
    if facts.huge is None:
        pytest.skip("no PAGEMAP_SCAN on this kernel")
    # THEN the share is what the kernel itself counts
    huge, private = (procfs.size(whole, name) or 0 for name in (b"AnonHugePages", b"Anonymous"))
    assert facts.huge == pytest.approx(huge / private, abs=0.1)
