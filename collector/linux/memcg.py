"""What a memory cgroup says of itself, v1 and v2, and who is in it, bounded in number and time.

Documentation/admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst. Whoever owns a cgroup may have put
a hundred thousand processes or cgroups into it, and it may be gone at any time: what cannot be read
is absent.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import NamedTuple

from collector.linux import procfs

# In memory.stat also counts of events stand, which are no sizes.
_SIZES_V2 = """
    anon file kernel kernel_stack pagetables sec_pagetables percpu sock vmalloc shmem zswap zswapped
    file_mapped file_dirty file_writeback swapcached anon_thp file_thp shmem_thp inactive_anon
    active_anon inactive_file active_file unevictable slab_reclaimable slab_unreclaimable
"""
_SIZES_V1 = """
    cache rss rss_huge shmem mapped_file dirty writeback swap inactive_anon active_anon
    inactive_file active_file unevictable
"""
_SIZES = frozenset(f"{_SIZES_V1} {_SIZES_V2}".split())
_OF_SUBTREE = "total_"  # v1: with what is below, as all of v2
_FILE = 1 << 14  # bytes
_PROCS = 1 << 18  # bytes, 37,000 pids
_CGROUPS = 256
_LEAST = 64  # processes are looked at however late it is: a host out of memory is busy
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Task(NamedTuple):
    """A process and its resident memory in bytes."""

    pid: int
    comm: str
    resident: int


class Tasks(NamedTuple):
    """Those that were found: `largest` first, `found` in all; `cut`: there may be more."""

    largest: list[Task]
    found: int
    cut: bool


def stat(directory: str) -> dict[str, int]:
    """Sizes in memory.stat, in bytes, that are not 0; of all below as well."""
    figures = _numbers(f"{directory}/memory.stat")
    subtree = {
        name.removeprefix(_OF_SUBTREE): size
        for name, size in figures.items()
        if name.startswith(_OF_SUBTREE)
    }
    return {name: size for name, size in (subtree or figures).items() if name in _SIZES and size}


def events(directory: str) -> dict[str, int]:
    """How often it ran against its limits: memory.events, or of v1 its oom_control and failcnt."""
    found = _numbers(f"{directory}/memory.events")
    if found:
        return found
    found = _numbers(f"{directory}/memory.oom_control")
    text = procfs.read(f"{directory}/memory.failcnt", _FILE) or b""
    return {**found, "failcnt": int(text)} if text.strip().isdigit() else found


def _numbers(path: str) -> dict[str, int]:
    found = {}
    for line in (procfs.read(path, _FILE) or b"").split(b"\n"):
        name, _, value = line.partition(b" ")
        if value.isdigit():
            found[name.decode("ascii", "replace")] = int(value)
    return found


def tasks(directory: str | None, most: int, seconds: float) -> Tasks:
    """The `most` largest processes in a cgroup and below it; None: of the host."""
    end = time.monotonic() + seconds
    sizes: list[tuple[int, bytes]] = []
    seen, cut = 0, False
    for pids, whole in _pids(directory):
        cut = cut or not whole
        for pid in pids:
            if seen >= _LEAST and time.monotonic() > end:
                cut = True
                break
            seen += 1
            if (size := _resident(pid)) is not None:
                sizes.append((size, pid))
        if cut and seen >= _LEAST and time.monotonic() > end:
            break
    sizes.sort(reverse=True)
    largest = [Task(int(pid), _comm(pid), size) for size, pid in sizes[:most] if size]
    return Tasks(largest, seen, cut)


def _pids(directory: str | None) -> Iterator[tuple[list[bytes], bool]]:
    """Process ids, and whether these are all of that cgroup. A bound on cgroups ends it, too."""
    if directory is None:
        yield [b"%d" % pid for pid in procfs.process_ids()], True
        return
    waiting, known = [directory], 1
    while waiting:
        here = waiting.pop()
        text = procfs.read(f"{here}/cgroup.procs", _PROCS) or b""
        # a number that was cut off is no pid
        yield text.split(b"\n")[:-1], len(text) < _PROCS
        try:
            with os.scandir(here) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        known += 1
                        if known > _CGROUPS:
                            yield [], False
                            return
                        waiting.append(entry.path)
        except OSError:  # it is gone
            continue


def _resident(pid: bytes) -> int | None:
    """From statm, which is short whatever the process does, and waits for no lock of its memory."""
    words = (procfs.read(f"/proc/{pid.decode()}/statm", _FILE) or b"").split()
    return int(words[1]) * _PAGE if len(words) > 1 else None


def _comm(pid: bytes) -> str:
    text = procfs.read(f"/proc/{pid.decode()}/comm", _FILE) or b""
    return os.fsdecode(text.removesuffix(b"\n"))
