"""Which memory is in a snapshot, and what the record says of memory that is not of its instant."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from collector.elfcore.reader import CoreFile
from collector.model import Outcome, Record
from tests.system.snapshots import NOBODY, coreward, done, holds, nobodys_folder
from tests.system.victims import running

MIB = 1 << 20
HUGE_PAGES = Path("/proc/sys/vm/nr_hugepages")
READABLE = {"private", "shared", "hugetlb", "dontfork", "wipeonfork", "guard", "lightweight", "thp"}


class Areas(NamedTuple):
    """A live_areas, and where its areas are: (address, size) by name."""

    pid: int
    where: dict[str, tuple[int, int]]


@contextlib.contextmanager
def areas(folder: Path, *what: str, uid: int | None = None) -> Iterator[Areas]:
    file = folder / "areas"
    file.touch()
    file.chmod(0o666)
    with running("live_areas", str(file), *what, cwd=folder, uid=uid) as victim:
        lines = (line.split() for line in file.read_text().splitlines())
        yield Areas(victim.pid, {name: (int(at, 16), int(size, 16)) for name, at, size in lines})


@pytest.fixture
def huge_page() -> Iterator[None]:
    """One huge page more on this machine."""
    with open("/run/lock/coreward-huge-pages.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = HUGE_PAGES.read_text()

        def restore() -> None:
            HUGE_PAGES.write_text(before)

        atexit.register(restore)
        HUGE_PAGES.write_text(str(int(before) + 1))
        try:
            yield
        finally:
            restore()
            atexit.unregister(restore)


@pytest.fixture
def nobodys() -> Iterator[Path]:
    with nobodys_folder() as folder:
        yield folder


def page_tables(pid: int) -> int:
    """KiB."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split("VmPTE:")[1].split()[0])


def names(core: CoreFile, found: Areas) -> set[str]:
    """The areas whose start is in a core, with their own name there."""
    held = {name for name, (start, _) in found.where.items() if holds(core, start)}
    assert {core.read(found.where[n][0], len(n)).decode() for n in held} == held
    return held


@pytest.mark.parametrize(
    "way", [[], ["--no-inject"], ["--mode", "nonstop"]], ids=["fork", "copy", "nonstop"]
)
def test_kinds_of_memory(way: list[str], tmp_path: Path, huge_page: None) -> None:
    file = tmp_path / "core"
    with areas(tmp_path) as found:
        # WHEN a process with all kinds of memory is snapshot
        took = done(coreward("snapshot", found.pid, *way, "-o", file))
    with CoreFile(file) as core:
        note = core.coreward_note
        # THEN all of it is there, except what is not to be dumped
        assert names(core, found) == READABLE
        # AND so is what guard pages have, except those of MADV_GUARD_INSTALL, which have nothing
        start, _ = found.where["lightweight"]
        assert core.read(start + 4096, 4096) == bytes(4096)
        assert core.read(start + 8192, 1) == b"!"
        start, _ = found.where["guard"]
        assert (core.read(start + 4096, 1), core.read(start + 8192, 1)) == (b"!", b"!")
        start, size = found.where["thp"]
        words = memoryview(core.read(start, size)).cast("Q")
        assert list(words[512::512]) == list(range(4096, size, 4096))
    # AND memory that is not of one instant is named
    assert note is not None
    start, size = found.where["shared"]
    if not way or "--no-inject" in way:
        for text in (took.stderr, note.text):
            assert f"{start:#x}-{start + size:#x} " in text
            assert "shared memory: others may have written it since" in text
    if not way:
        start, size = found.where["wipeonfork"]
        assert (
            f"{start:#x}-{start + size:#x} : MADV_WIPEONFORK: read after the instant" in note.text
        )
    assert note.consistent == ("nonstop" not in way)


def test_as_nobody(nobodys: Path) -> None:
    # GIVEN a process of another user
    with areas(nobodys, uid=NOBODY) as found:
        for mode in ("threads", "nonstop", "full-stop"):
            file = nobodys / mode
            # WHEN that user takes a snapshot, without BPF
            took = coreward(
                "snapshot", found.pid, "--mode", mode, "--capture", "full", "-o", file, user=NOBODY
            )
            done(took)
            # THEN the same memory is in it
            with CoreFile(file) as core:
                assert names(core, found) == READABLE - {"hugetlb"}
                assert len(core.threads) == 1


def children_cpu() -> float:
    """Seconds of CPU of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_sparse_memory(tmp_path: Path) -> None:
    # GIVEN a process with an area of 20 GiB, of which 200 MiB are touched
    file = tmp_path / "core"
    with areas(tmp_path, "sparse") as found:
        # WHEN it is snapshot
        before = page_tables(found.pid)
        before_cpu = children_cpu()
        done(coreward("snapshot", found.pid, "-o", file))
        took = children_cpu() - before_cpu
        tables = page_tables(found.pid)
    # THEN that is little work, the process has not got more page tables by it, and the core takes
    # no more room than the memory did
    assert took < 15
    assert tables == before
    assert file.stat().st_size > 20 << 30
    assert file.stat().st_blocks * 512 < 220 * MIB
    start, size = found.where["sparse"]
    stride = size // (200 * MIB >> 12)
    with CoreFile(file) as core:
        for i in range(stride, size, 1000 * stride):
            assert core.read(start + (i & -4096), 8) == i.to_bytes(8, "little")


def test_a_limit(tmp_path: Path) -> None:
    file = tmp_path / "core"
    with areas(tmp_path) as found:
        # WHEN a snapshot is bounded, in a file and in the store
        took = done(coreward("snapshot", found.pid, "--max", "2MiB", "-o", file))
        limited = ("--max", "2MiB", "--store", tmp_path / "store", "--json")
        kept = done(coreward("snapshot", found.pid, *limited))
    # THEN it holds no more memory than that, and says so
    assert "coreward: this core is truncated: " in took.stderr
    assert "bytes are beyond the limit on the core's size\n" in took.stderr
    with CoreFile(file) as core:
        assert core.coreward_note is not None and core.coreward_note.truncated
        assert len(core.threads) == 1
    assert file.stat().st_blocks * 512 <= 3 * MIB
    record = msgspec.json.decode(kept.stdout, type=Record)
    assert record.outcome is Outcome.TRUNCATED
    assert record.core_memory is not None and record.core_memory <= 2 * MIB
    assert "beyond the limit" in record.lost["memory"]
    assert "coreward: this core is truncated: " in kept.stderr
