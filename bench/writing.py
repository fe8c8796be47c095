"""Full write rate: an uncompressed core of incompressible memory, beside two plain copies.

The yardsticks are `cp` of the core that was just written (out of the page cache), and a loop that
reads the same memory through /proc/PID/mem of a living process. All three end with fsync, and
begin with nothing to be flushed.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from pathlib import Path

from bench.coreward import CorewardSession, coreward, warm_up
from bench.launch import loaded
from bench.model import MIB, Case, Figure, Say
from bench.settle import settle
from collector.linux import procfs

_CONFIG = "defaults: {limit: none, compress: {codec: none}}\n"
_CHUNK = 4 * MIB
_ROOM = 3  # so that the page cache of the copy finds memory that was in use
TARGET = 0.8


def measure(mib: int, rounds: int, say: Say) -> list[Figure]:
    """Rates in MiB/s, and the ratios to the copies of the same round."""
    case = Case(
        name="write",
        victim="resident",
        arguments=(str(mib), "16", "random"),
        rounds=rounds,
        resident=mib * MIB,
        about=f"{mib} MiB incompressible",
    )
    ours, cp, memory = [], [], []
    with coreward("auto", _CONFIG) as session:
        warm_up(session)
        for turn in range(rounds):
            say(f"write rate, {mib} MiB: round {turn + 1}")
            memory.append(_copy_of_memory(session, case))
            one, other = _core_and_copy(session, case)
            ours.append(one)
            cp.append(other)
    return [
        _figure("cp of the core", ours, cp, TARGET),
        _figure("a copy out of /proc/PID/mem", ours, memory, TARGET),
    ]


def _figure(beside: str, ours: list[float], theirs: list[float], target: float) -> Figure:
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    return Figure(
        name=f"full write rate : {beside}",
        value=statistics.median(ratios),
        unit="x",
        target=target,
        at_least=True,
        detail=f"{statistics.median(ours):.0f} : {statistics.median(theirs):.0f} MiB/s, "
        f"{len(ratios)} rounds, {min(ratios):.2f}-{max(ratios):.2f}",
    )


def _core_and_copy(session: CorewardSession, case: Case) -> tuple[float, float]:
    """MiB/s of the agent, from the release to the finished core, and of cp of the same file."""
    with loaded(case, core_limit=session.core_limit, folder=session.folder) as victim:
        settle(_ROOM * case.resident)
        shot = victim.fire()
    record = session.agent.record(shot.pid)
    core = session.core(record)
    if core is None:
        raise RuntimeError(f"no core was written: {record['lost']}")
    size = core.stat().st_blocks * 512
    seconds = (core.stat().st_ctime_ns - shot.began_ns) / 1e9
    settle(_ROOM * case.resident)
    copy = session.folder / "copy"
    begun = time.monotonic()
    subprocess.run(["cp", "--reflink=never", str(core), str(copy)], check=True)
    _flush(copy)
    copied = time.monotonic() - begun
    copied_size = copy.stat().st_blocks * 512
    copy.unlink()
    session.forget(record)
    return size / MIB / seconds, copied_size / MIB / copied


def _copy_of_memory(session: CorewardSession, case: Case) -> float:
    """MiB/s of reading the large mapping of a living process, and writing it to a file."""
    with loaded(case, core_limit=0, folder=session.folder) as victim:
        settle(_ROOM * case.resident)
        start, size = _largest(victim.pid)
        copy = session.folder / "memory"
        buffer = memoryview(bytearray(_CHUNK))
        begun = time.monotonic()
        with (
            open(f"/proc/{victim.pid}/mem", "rb", buffering=0) as memory,
            open(copy, "wb", buffering=0) as file,
        ):
            for offset in range(0, size, _CHUNK):
                got = os.preadv(memory.fileno(), [buffer[: size - offset]], start + offset)
                file.write(buffer[:got])
        _flush(copy)
        seconds = time.monotonic() - begun
        copy.unlink()
    return size / MIB / seconds


def _largest(pid: int) -> tuple[int, int]:
    """Address and size of the largest mapping of a process."""
    maps = procfs.parse_maps(Path(f"/proc/{pid}/maps").read_bytes())
    largest = max(maps, key=lambda line: line.end - line.start)
    return largest.start, largest.end - largest.start


def _flush(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
